/* Tiles and products of the attention kernels for tensor cores: mma.sync m16n8k16 in bf16 with f32 sums, whose operands
 * ldmatrix takes from shared memory ("Warp-level matrix instructions" of the PTX manual has the layouts).
 *
 * A tile's row of D elements takes D + 8 elements of shared memory. D / 8 is even, so the rows' starts are an odd
 * number of 16-byte chunks apart, and the 8 rows that ldmatrix reads at once lie in different banks. The 16 bytes
 * between rows hold a row's statistics where they are wanted. */
#pragma once
#include "kernels/cuda/attention.h"

/* Four warps, each with 16 (or twice 16) rows of the tile that stays. */
enum { MMA_THREADS = 128 };

template <int D> constexpr int ROW_SIZE = D + 8;

/* Within 1e-6 of tanh. */
static __device__ __forceinline__ float tanh_fast(float x) { return 1 - __fdividef(2, __expf(2 * x) + 1); }

/* MMA_THREADS threads begin to copy ROWS rows of D elements, `stride` apart, into a tile; zeros after the first n. */
template <int D, int ROWS>
static __device__ __forceinline__ void load_rows(bf16 *tile, const bf16 *from, int stride, int n) {
    constexpr int CHUNKS = D / 8;
#pragma unroll 1 // registers are what is short
    for (int i = threadIdx.x % MMA_THREADS; i < ROWS * CHUNKS; i += MMA_THREADS) {
        int r = i / CHUNKS, c = i % CHUNKS * 8;
        cp_async16(tile + r * ROW_SIZE<D> + c, from + (r < n ? r * stride + c : 0), r < n);
    }
}

/* s[16 M, N] = rows of `own` (this warp's first row) times rows of a tile: s = own tile^T. */
template <int D, int M, int N>
static __device__ __forceinline__ void product_rows(float (&s)[M][N / 8][4], const bf16 *own, const bf16 *tile) {
    constexpr int LD = ROW_SIZE<D>;
    int lane = threadIdx.x & 31;
    const bf16 *a_at = own + (lane & 15) * LD + (lane >> 4) * 8;
    const bf16 *b_at = tile + ((lane & 7) + (lane >> 4) * 8) * LD + (lane >> 3 & 1) * 8;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int j = 0; j < N / 8; j++) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4(a[m], a_at + m * 16 * LD + i * 16);
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t b[4];
            ldmatrix_x4(b, b_at + j * 16 * LD + i * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(s[m][2 * j], a[m], b, s[m][2 * j]);
                mma_m16n8k16_bf16(s[m][2 * j + 1], a[m], b + 2, s[m][2 * j + 1]);
            }
        }
    }
}

/* acc[16 M, D] += w[16 M, N] tile[N, D]. */
template <int D, int M, int N>
static __device__ __forceinline__ void product_add(float (&acc)[M][D / 8][4], const uint32_t (&w)[M][N / 16][4],
                                                   const bf16 *tile) {
    constexpr int LD = ROW_SIZE<D>;
    int lane = threadIdx.x & 31;
    const bf16 *b_at = tile + (lane & 15) * LD + (lane >> 4) * 8;
#pragma unroll
    for (int j = 0; j < N / 16; j++)
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, b_at + j * 16 * LD + i * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(acc[m][2 * i], w[m][j], b, acc[m][2 * i]);
                mma_m16n8k16_bf16(acc[m][2 * i + 1], w[m][j], b + 2, acc[m][2 * i + 1]);
            }
        }
}

/* What product_rows left, rounded to bf16, as the operand w of product_add: the layouts of a result and of an operand
 * differ only in how 8 columns are paired. */
template <int N>
static __device__ __forceinline__ void pack_operand(uint32_t (&w)[N / 16][4], const float (&s)[N / 8][4]) {
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        w[j / 2][j % 2 * 2] = pack_bf16(s[j][0], s[j][1]);
        w[j / 2][j % 2 * 2 + 1] = pack_bf16(s[j][2], s[j][3]);
    }
}

/* The first n of this warp's 16 M rows, times their factors, to (beta 1: added to) rows of `to`. stage: this warp's
 * 16 M rows of ROW_SIZE floats in shared memory, through which stores become whole rows. */
template <int D, int M>
static __device__ __forceinline__ void store_rows(bf16 *to, int stride, int n, float beta,
                                                  const float (&acc)[M][D / 8][4], const float (&factor)[M][2],
                                                  float *stage) {
    constexpr int LD = ROW_SIZE<D>, QUADS = D / 4;
    int lane = threadIdx.x & 31;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *(float2 *)(stage + (m * 16 + e * 8 + lane / 4) * LD + i * 8 + lane % 4 * 2) =
                    make_float2(acc[m][i][2 * e] * factor[m][e], acc[m][i][2 * e + 1] * factor[m][e]);
    __syncwarp();
    for (int i = lane; i < 16 * M * QUADS; i += 32) {
        int r = i / QUADS, c = i % QUADS * 4;
        if (r >= n) break;
        float4 x = *(const float4 *)(stage + r * LD + c);
        uint2 *out = (uint2 *)(to + r * stride + c);
        if (beta != 0) {
            uint2 old = *out;
            x.x += beta * bf_lo(old.x), x.y += beta * bf_hi(old.x);
            x.z += beta * bf_lo(old.y), x.w += beta * bf_hi(old.y);
        }
        *out = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    }
}
