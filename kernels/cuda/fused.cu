/* y[T,N] = x[T,K] W^T with W decoded from NF4 inside the product: the weight is read as it is stored and never lies
 * anywhere as bf16, which costs a decoding in every block of 128 rows of x. The variant "fused" (gemm.c): where scratch
 * is short, and for prompts, whose rows are too few to pay for decoding the whole weight to memory first.
 *
 * Blocks of 128 x 64, k in steps of 64. While a step is multiplied, the next one's x is under way (cp.async), its W is
 * decoded into the other tile, and the packed W of the step after that is read into registers. */
#include "kernels/cuda/nf4.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/tile.h"

namespace {

enum { THREADS = 256, BM = 128, BN = 64, STEP = 64, X_TILE = BM * STEP, W_TILE = BN * STEP };
enum { EACH = W_TILE / THREADS, ACROSS = STEP / EACH }; /* values of a thread: 16; threads of a row: 4 */
constexpr size_t SHARED_BYTES = sizeof(bf16) * 2 * (X_TILE + W_TILE);
static_assert(sizeof(float) * (THREADS / 32) * OUT_STAGE<4> <= SHARED_BYTES, "sums leave through the same memory");

/* A thread's 16 values of a tile of W, one row's. Outside of W: zeros. */
struct share {
    uint2 packed;
    float absmax;
    __device__ __forceinline__ void read(const nb_weight &w, int64_t n0, int64_t k0) {
        const int64_t row = n0 + threadIdx.x / ACROSS, k = k0 + threadIdx.x % ACROSS * EACH, e = row * w.cols + k;
        packed = make_uint2(0, 0);
        absmax = 0;
        if (row >= w.rows || k >= w.cols) return;
        packed = ((const uint2 *)w.data)[e / EACH];
        absmax = nf4_absmax(w.nf4, e >> nf4_shift(w.nf4.blocksize)); /* 16 values lie in one block */
    }
    __device__ __forceinline__ void write(bf16 *tile, const float *level, nb_dtype dtype) const {
        const int row = threadIdx.x / ACROSS, chunk = threadIdx.x % ACROSS * 2;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t bits = h ? packed.y : packed.x;
            uint32_t two[4];
#pragma unroll
            for (int b = 0; b < 4; b++)
                two[b] = pack_bf16(nf4_value<bf16>(level[bits >> (8 * b + 4) & 15], absmax, dtype),
                                   nf4_value<bf16>(level[bits >> 8 * b & 15], absmax, dtype));
            *(uint4 *)tile_at<STEP>(tile, row, chunk + h) = make_uint4(two[0], two[1], two[2], two[3]);
        }
    }
};

/* 8 warps as 4 x 2, each 32 x 32 of the block. K % 32 == 0. */
__global__ void __launch_bounds__(THREADS, 2) fused_kernel(output c, operand x, nb_weight w) {
    SHARED_DYN(bf16, tiles); /* x's two tiles, W's two */
    SHARED(float, level, [16]);
    const int warp = threadIdx.x / 32, wm = warp / 2 * 32, wn = warp % 2 * 32;
    const int64_t n_blocks = (c.N + BN - 1) / BN, m0 = blockIdx.x / n_blocks * BM, n0 = blockIdx.x % n_blocks * BN;
    const int steps = (int)((w.cols + STEP - 1) / STEP);
    bf16 *const w_tiles = tiles + 2 * X_TILE;
    share ahead;
    if (threadIdx.x < 16) level[threadIdx.x] = w.nf4.code[threadIdx.x];
    tile_load<BM, STEP, THREADS>(tiles, x, m0, 0);
    cp_async_commit();
    ahead.read(w, n0, 0);
    __syncthreads(); /* the levels are there */
    ahead.write(w_tiles, level, w.nf4.dtype);
    ahead.read(w, n0, STEP);
    float acc[2][4][4];
#pragma unroll
    for (int i = 0; i < 32; i++) (&acc[0][0][0])[i] = 0;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        const int now = step & 1, then = now ^ 1;
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles are there, and everyone is done with the last step's */
        if (step + 1 < steps) {
            tile_load<BM, STEP, THREADS>(tiles + then * X_TILE, x, m0, (int64_t)(step + 1) * STEP);
            cp_async_commit();
            ahead.write(w_tiles + then * W_TILE, level, w.nf4.dtype);
            ahead.read(w, n0, (int64_t)(step + 2) * STEP);
        }
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                tile_left<true, STEP>(a[i], tiles + now * X_TILE, wm + 16 * i, k);
                tile_right<true, STEP>(b[i], w_tiles + now * W_TILE, wn + 16 * i, k);
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma_m16n8k16_bf16(acc[i][j], a[i], b[j / 2] + j % 2 * 2, acc[i][j]);
        }
    }
    __syncthreads();
    tile_out<2, 4>(c, (float *)tiles + warp * OUT_STAGE<4>, acc, m0 + wm, n0 + wn);
}

} /* namespace */

extern "C" bool NB_GPU(fused_fits)(const nb_dev *d, const nb_weight *w) {
    return d->compute == NB_BF16 && w->format == NB_FMT_NF4 && w->cols % 32 == 0 && w->nf4.blocksize % 32 == 0 &&
           (uintptr_t)w->data % 8 == 0;
}

extern "C" nb_status NB_GPU(fused_fwd)(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T,
                                       float beta) {
    NB_ASSERT(NB_GPU(fused_fits)(d, w));
    if (T <= 0 || w->rows <= 0) return NB_OK;
    const int64_t blocks = ((T + BM - 1) / BM) * ((w->rows + BN - 1) / BN);
    /* with the levels a little more than the 48 KB that need no asking */
    cudaFuncSetAttribute(fused_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SHARED_BYTES);
    LAUNCH(fused_kernel, (unsigned)blocks, THREADS, SHARED_BYTES, gpu_stream(d), output_of(y, T, w->rows, 1, beta),
           operand_of(nb_mat_of(x, w->cols, NB_BF16), T, w->cols), *w);
    return gpu_launched(d, "fused_fwd");
}
