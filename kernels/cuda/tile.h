/* Tiles of bf16 in shared memory for our own products: how they are laid out, filled, read as fragments of the
 * tensor cores' m16n8k16 product (PTX manual, "Matrix fragments for mma.m16n8k16"), and how sums leave.
 *
 * A tile is either KC, [outer][k] (k contiguous), or OC, [k][outer]: as the operand lies in memory, so that it is
 * copied row by row; ldmatrix reads the one, ldmatrix.trans the other. `outer` is m or n. */
#ifndef NB_KERNELS_CUDA_TILE_H
#define NB_KERNELS_CUDA_TILE_H

#include "kernels/cuda/cuda.h"

/* Chunk (8 elements, 16 bytes) of a row of a tile with W elements a row. Chunks are permuted within their row so
 * that the same chunk of 8 rows in sequence lies in 8 different groups of 4 banks: ldmatrix then has no bank
 * conflicts. */
template <int W> static __device__ __forceinline__ bf16 *tile_at(bf16 *tile, int row, int chunk) {
    constexpr int CHUNKS = W / 8 < 8 ? W / 8 : 8, LINE = 8 / CHUNKS; /* LINE: rows in 128 bytes */
    return tile + row * W + ((chunk ^ (row / LINE & (CHUNKS - 1))) << 3);
}

/* Fills one chunk: the first `valid` elements are src's, the rest 0. wide: src is aligned to 16 bytes. */
static __device__ __forceinline__ void tile_copy(bf16 *chunk, const bf16 *src, int64_t valid, bool wide) {
    if (valid <= 0 || (wide && valid >= 8)) {
        cp_async16(chunk, src, valid > 0);
        return;
    }
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint16_t *pair = (const uint16_t *)src + 2 * i;
        w[i] = (2 * i < valid ? pair[0] : 0) | (uint32_t)(2 * i + 1 < valid ? pair[1] : 0) << 16;
    }
    *(uint4 *)chunk = make_uint4(w[0], w[1], w[2], w[3]);
}

/* An operand of a product as bf16 in memory: rows of ld elements, row r element i. */
struct operand {
    const bf16 *p;
    int64_t ld, rows, cols; /* as stored */
    bool wide;              /* every row starts at 16 bytes */
};
static inline operand operand_of(const nb_mat &m, int64_t rows, int64_t cols) {
    return {(const bf16 *)m.p, m.ld, m.t ? cols : rows, m.t ? rows : cols, (uintptr_t)m.p % 16 == 0 && m.ld % 8 == 0};
}

/* Starts copying H x W elements from (row0, col0) of an operand, whatever lies outside as zeros. */
template <int H, int W, int THREADS>
static __device__ __forceinline__ void tile_load(bf16 *tile, const operand &o, int64_t row0, int64_t col0) {
    static_assert(H * W / 8 % THREADS == 0, "whole chunks a thread");
#pragma unroll
    for (int i = 0; i < H * W / 8 / THREADS; i++) {
        const int at = i * THREADS + threadIdx.x, row = at / (W / 8), chunk = at % (W / 8);
        const int64_t r = row0 + row, c = col0 + 8 * chunk;
        const bool in = r < o.rows;
        tile_copy(tile_at<W>(tile, row, chunk), o.p + (in ? r * o.ld + c : 0), in ? o.cols - c : 0, o.wide);
    }
}

/* The left operand's fragment of rows m.. and columns k.. (multiples of 16) of a tile with W elements a row. */
template <bool KC, int W> static __device__ __forceinline__ void tile_left(uint32_t a[4], bf16 *tile, int m, int k) {
    const int lane = threadIdx.x & 31;
    if (KC) ldmatrix_x4(a, tile_at<W>(tile, m + (lane & 15), k / 8 + (lane >> 4)));
    else ldmatrix_x4_trans(a, tile_at<W>(tile, k + (lane & 7) + (lane >> 4) * 8, m / 8 + (lane >> 3 & 1)));
}

/* The right operand's fragments of rows k.. and of columns n..n+7 (b[0], b[1]) and n+8..n+15 (b[2], b[3]). */
template <bool KC, int W> static __device__ __forceinline__ void tile_right(uint32_t b[4], bf16 *tile, int n, int k) {
    const int lane = threadIdx.x & 31;
    if (KC) ldmatrix_x4(b, tile_at<W>(tile, n + (lane & 7) + (lane >> 4) * 8, k / 8 + (lane >> 3 & 1)));
    else ldmatrix_x4_trans(b, tile_at<W>(tile, k + (lane & 15), n / 8 + (lane >> 4)));
}

/* Where a product goes: c = alpha * sum + beta * c; beta 0 does not read. */
struct output {
    void *p;
    int64_t ld, M, N;
    float alpha, beta;
    bool f32, wide; /* wide: four elements in sequence are aligned to their size */
};
static inline output output_of(const nb_mat &c, int64_t M, int64_t N, float alpha, float beta) {
    const bool f32 = c.dtype == NB_F32;
    return {c.p, c.ld, M, N, alpha, beta, f32, (uintptr_t)c.p % (f32 ? 16 : 8) == 0 && c.ld % 4 == 0};
}

static __device__ __forceinline__ void put(const output &o, int64_t i, float sum) {
    float v = o.alpha * sum;
    if (o.f32) ((float *)o.p)[i] = o.beta != 0 ? v + o.beta * ((float *)o.p)[i] : v;
    else ((bf16 *)o.p)[i] = __float2bfloat16(o.beta != 0 ? v + o.beta * __bfloat162float(((bf16 *)o.p)[i]) : v);
}

/* Four elements in sequence, as get4 found them where beta is not 0. */
static __device__ __forceinline__ float4 get4(const output &o, int64_t i) {
    if (o.beta == 0) return make_float4(0, 0, 0, 0);
    if (o.f32) return *(const float4 *)((const float *)o.p + i);
    const uint2 u = *(const uint2 *)((const bf16 *)o.p + i);
    return make_float4(bf_lo(u.x), bf_hi(u.x), bf_lo(u.y), bf_hi(u.y));
}
static __device__ __forceinline__ void put4(const output &o, int64_t i, const float4 &sum, const float4 &old) {
    const float x = o.alpha * sum.x + o.beta * old.x, y = o.alpha * sum.y + o.beta * old.y;
    const float z = o.alpha * sum.z + o.beta * old.z, w = o.alpha * sum.w + o.beta * old.w;
    if (o.f32) *(float4 *)((float *)o.p + i) = make_float4(x, y, z, w);
    else *(uint2 *)((bf16 *)o.p + i) = make_uint2(pack_bf16(x, y), pack_bf16(z, w));
}

/* Writes a warp's sums, MT x NT fragments of 16 x 8, to rows m0.. and columns n0.. of the output. They go through
 * shared memory, 16 rows at a time, so that what is written (and read, with beta) is whole rows of NT * 8 elements.
 * stage: OUT_STAGE<NT> floats of this warp's own. */
template <int NT> constexpr int OUT_STAGE = 16 * (NT * 8 + 8);
template <int MT, int NT>
static __device__ __forceinline__ void tile_out(const output &o, float *stage, const float (&acc)[MT][NT][4],
                                                int64_t m0, int64_t n0) {
    constexpr int PITCH = NT * 8 + 8; /* 8 banks to the next row: fragments' stores do not collide */
    constexpr int QUADS = NT * 2, EACH = 16 * QUADS / 32; /* of a row; of a lane */
    static_assert(PITCH % 32 == 8 && 32 % QUADS == 0, "NT is 4");
    const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        float4 old[EACH]; /* all on their way before the first is used */
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int64_t r = m0 + 16 * m + (i * 32 + lane) / QUADS, col = n0 + 4 * (lane % QUADS);
            if (r < o.M && col + 4 <= o.N && o.wide) old[i] = get4(o, r * o.ld + col);
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *(float2 *)(stage + (g + 8 * h) * PITCH + 8 * n + 2 * c) =
                    make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int row = (i * 32 + lane) / QUADS, quad = lane % QUADS;
            const int64_t r = m0 + 16 * m + row, col = n0 + 4 * quad;
            const float4 v = *(const float4 *)(stage + row * PITCH + 4 * quad);
            if (r >= o.M || col >= o.N) continue;
            if (o.wide && col + 4 <= o.N) {
                put4(o, r * o.ld + col, v, old[i]);
                continue;
            }
            const float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (col + j < o.N) put(o, r * o.ld + col + j, each[j]);
        }
    }
}

#endif
