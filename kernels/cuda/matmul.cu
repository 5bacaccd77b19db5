/* The general product c[M,N] = alpha * op(x) op(y) + beta * c, our own: for machines without cuBLAS and for the
 * emulator. Rows are computed independently of M: k is summed in order.
 *
 * bf16: tensor cores, blocks of 128 x 128, k in steps of 32 through three stages of shared memory filled by
 * cp.async. f32: exact products and f32 sums (no TF32), blocks of 64 x 64. */
#include "kernels/cuda/products.h"
#include "kernels/cuda/tile.h"

namespace {

enum { THREADS = 256, BLOCK = 128, STEP = 32, STAGES = 3, TILE = BLOCK * STEP };
/* 8 warps as 2 x 4, each 64 x 32 of the block: 4 x 4 fragments. */
enum { MT = 4, NT = 4 };
constexpr size_t SHARED_BYTES = sizeof(bf16) * STAGES * 2 * TILE; /* 48 KB: what a block may have without asking */
static_assert(sizeof(float) * (THREADS / 32) * OUT_STAGE<NT> <= SHARED_BYTES, "sums leave through the same memory");

/* Block number to block of the product: bands of 8 blocks of columns, so that what runs at the same time shares rows
 * of x and columns of y in the L2 cache. */
enum { BAND = 8 };
static __device__ __forceinline__ void place(int64_t *m, int64_t *n, int64_t m_blocks, int64_t n_blocks) {
    const int64_t per_band = BAND * m_blocks, band = blockIdx.x / per_band, at = blockIdx.x % per_band;
    const int64_t left = n_blocks - band * BAND, width = left < BAND ? left : (int64_t)BAND;
    *m = at / width;
    *n = band * BAND + at % width;
}

/* XT: x is stored [K,M]. YT: y is stored [N,K]. */
template <bool XT, bool YT>
__global__ void __launch_bounds__(THREADS, 2) mma_kernel(output c, operand x, operand y, int64_t K) {
    SHARED_DYN(bf16, tiles); /* STAGES times x's tile, y's tile */
    int64_t m0, n0;
    place(&m0, &n0, (c.M + BLOCK - 1) / BLOCK, (c.N + BLOCK - 1) / BLOCK);
    m0 *= BLOCK, n0 *= BLOCK;
    const int warp = threadIdx.x / 32, wm = warp / 4 * 64, wn = warp % 4 * 32;
    const int steps = (int)((K + STEP - 1) / STEP);
    auto load = [&](int step) {
        bf16 *to = tiles + step % STAGES * (2 * TILE);
        const int64_t k = (int64_t)step * STEP;
        if (step < steps) {
            if (XT) tile_load<STEP, BLOCK, THREADS>(to, x, k, m0);
            else tile_load<BLOCK, STEP, THREADS>(to, x, m0, k);
            if (YT) tile_load<BLOCK, STEP, THREADS>(to + TILE, y, n0, k);
            else tile_load<STEP, BLOCK, THREADS>(to + TILE, y, k, n0);
        }
        cp_async_commit();
    };
    float acc[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) (&acc[0][0][0])[i] = 0;
    for (int s = 0; s < STAGES - 1; s++) load(s);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* this step's tiles are there, and everyone is done with the last step's */
        load(step + STAGES - 1);
        bf16 *tx = tiles + step % STAGES * (2 * TILE), *ty = tx + TILE;
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t a[MT][4], b[NT / 2][4];
#pragma unroll
            for (int i = 0; i < MT; i++) tile_left<!XT, XT ? BLOCK : STEP>(a[i], tx, wm + 16 * i, k);
#pragma unroll
            for (int j = 0; j < NT / 2; j++) tile_right<YT, YT ? STEP : BLOCK>(b[j], ty, wn + 16 * j, k);
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) mma_m16n8k16_bf16(acc[i][j], a[i], b[j / 2] + j % 2 * 2, acc[i][j]);
        }
    }
    cp_async_wait<0>();
    __syncthreads();
    tile_out<MT, NT>(c, (float *)tiles + warp * OUT_STAGE<NT>, acc, m0 + wm, n0 + wn);
}

/* Element (o, k) of an operand lies at o * outer + k * inner. */
struct strided {
    const float *p;
    int64_t outer, inner;
};

enum { BLOCK32 = 64, STEP32 = 16, PITCH32 = BLOCK32 + 4 };

/* BLOCK32 x STEP32 elements as [k][outer]; neighbouring threads read neighbouring elements. */
static __device__ __forceinline__ void load_f32(float *tile, const strided &s, int64_t o0, int64_t k0, int64_t O,
                                                int64_t K) {
#pragma unroll
    for (int i = 0; i < BLOCK32 * STEP32 / THREADS; i++) {
        const int at = i * THREADS + threadIdx.x;
        const int o = s.outer == 1 ? at % BLOCK32 : at / STEP32, k = s.outer == 1 ? at / BLOCK32 : at % STEP32;
        const bool in = o0 + o < O && k0 + k < K;
        tile[k * PITCH32 + o] = in ? s.p[(o0 + o) * s.outer + (k0 + k) * s.inner] : 0;
    }
}

/* A thread has 4 x 4 sums. */
__global__ void __launch_bounds__(THREADS) f32_kernel(output c, strided x, strided y, int64_t K) {
    SHARED(float, tx, [STEP32 * PITCH32]);
    SHARED(float, ty, [STEP32 * PITCH32]);
    const int64_t n_blocks = (c.N + BLOCK32 - 1) / BLOCK32, m0 = blockIdx.x / n_blocks * BLOCK32;
    const int64_t n0 = blockIdx.x % n_blocks * BLOCK32;
    const int tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
    float acc[4][4] = {{0}};
    for (int64_t k0 = 0; k0 < K; k0 += STEP32) {
        __syncthreads();
        load_f32(tx, x, m0, k0, c.M, K);
        load_f32(ty, y, n0, k0, c.N, K);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP32; k++) {
            const float4 a = *(const float4 *)(tx + k * PITCH32 + tm), b = *(const float4 *)(ty + k * PITCH32 + tn);
            const float l[4] = {a.x, a.y, a.z, a.w}, r[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 16; i++) acc[i / 4][i % 4] = fmaf(l[i / 4], r[i % 4], acc[i / 4][i % 4]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t row = (m0 + tm + i) * c.ld, col = n0 + tn;
        if (m0 + tm + i >= c.M) break;
        if (c.wide && col + 4 <= c.N) {
            put4(c, row + col, make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]), get4(c, row + col));
            continue;
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (col + j < c.N) put(c, row + col + j, acc[i][j]);
    }
}

template <bool XT, bool YT>
void launch_mma(nb_dev *d, const output &c, const operand &x, const operand &y, int64_t K) {
    const int64_t blocks = ((c.M + BLOCK - 1) / BLOCK) * ((c.N + BLOCK - 1) / BLOCK);
    LAUNCH((mma_kernel<XT, YT>), (unsigned)blocks, THREADS, SHARED_BYTES, gpu_stream(d), c, x, y, K);
}

} /* namespace */

extern "C" nb_status NB_GPU(gemm_mma)(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K,
                                      float alpha, float beta) {
    if (M <= 0 || N <= 0) return NB_OK;
    const output to = output_of(c, M, N, alpha, beta);
    if (x.dtype == NB_F32) {
        NB_ASSERT(y.dtype == NB_F32);
        const strided sx = {(const float *)x.p, x.t ? 1 : x.ld, x.t ? x.ld : 1};
        const strided sy = {(const float *)y.p, y.t ? y.ld : 1, y.t ? 1 : y.ld};
        const int64_t blocks = ((M + BLOCK32 - 1) / BLOCK32) * ((N + BLOCK32 - 1) / BLOCK32);
        LAUNCH(f32_kernel, (unsigned)blocks, THREADS, 0, gpu_stream(d), to, sx, sy, K);
        return gpu_launched(d, "gemm_mma");
    }
    NB_ASSERT(x.dtype == NB_BF16 && y.dtype == NB_BF16);
    const operand ox = operand_of(x, M, K), oy = operand_of(y, K, N);
    if (x.t && y.t) launch_mma<true, true>(d, to, ox, oy, K);
    else if (x.t) launch_mma<true, false>(d, to, ox, oy, K);
    else if (y.t) launch_mma<false, true>(d, to, ox, oy, K);
    else launch_mma<false, false>(d, to, ox, oy, K);
    return gpu_launched(d, "gemm_mma");
}
