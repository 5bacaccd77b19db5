/* y[T,N] = x[T,K] W^T for few rows of x: generation. Reading W bounds it, so W is read once, as it is stored, and
 * decoded in registers. A row of y has the same bits whatever T is: who adds what in which order depends on K alone.
 *
 * few_kernel (bf16 x; W NF4 or bf16): tensor cores with W as the left operand and 8 rows of x as the right one, so
 * that 8 rows cost what 1 costs. The warps of a block share its rows of W and take turns at spans of K; their sums
 * are added in the order of the warps. Within a span the k that a tensor-core instruction multiplies are permuted:
 * lane (g, c), g = lane/4, c = lane%4, keeps what it loads with 16-byte loads (row g of W) and pairs it with the
 * same k of row g of x.
 *
 * blocks_kernel: one warp a row of W in one of GGUF's formats; any type and number of rows.
 * any_kernel: one warp a row of W, element by element, any format, type and size. */
#include "kernels/cuda/nf4.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/vec.h"

namespace {

enum {
    THREADS = 256, WARPS = THREADS / 32,
    SPAN = 128,   /* k of a warp's turn: 32 a lane */
    CHUNK = 8,    /* k of a lane's 16-byte load of x, and of the two tensor-core instructions it feeds */
    MOST = 32,    /* rows of x in one go */
    ANY_ROWS = 8, /* rows of x that any_kernel holds sums for */
};

/* What a block's rows of W and x are. */
struct few_arg {
    void *y;
    int64_t ldy;
    bool y_f32;
    const bf16 *x;
    nb_weight w;
    int T;
    float beta;
};

static __device__ __forceinline__ void put(void *y, bool f32, int64_t i, float v, float beta) {
    if (f32) ((float *)y)[i] = beta != 0 ? v + beta * ((float *)y)[i] : v;
    else ((bf16 *)y)[i] = __float2bfloat16(beta != 0 ? v + beta * __bfloat162float(((bf16 *)y)[i]) : v);
}

/* A lane's share of a span of one row of W: 32 values. Outside of W: zeros. */
template <nb_format F> struct share;

template <> struct share<NB_FMT_NF4> { /* k = k0 + 32 c + 0..31 */
    uint4 packed;
    float absmax;
    static __device__ __forceinline__ int k_of(int c, int chunk) { return 32 * c + CHUNK * chunk; }
    __device__ __forceinline__ void load(const nb_weight &w, int64_t row, int64_t k0, int c) {
        const int64_t k = k0 + 32 * c, e = row * w.cols + k;
        packed = make_uint4(0, 0, 0, 0);
        absmax = 0;
        if (row >= w.rows || k >= w.cols) return;
        packed = ((const uint4 *)w.data)[e >> 5];
        absmax = nf4_absmax(w.nf4, e >> nf4_shift(w.nf4.blocksize)); /* 32 values lie in one block */
    }
    /* The 8 values of a chunk as 4 registers of 2. */
    __device__ __forceinline__ void chunk(uint32_t out[4], int i, const float *level, nb_dtype dtype) const {
        const uint32_t bits = i == 0 ? packed.x : i == 1 ? packed.y : i == 2 ? packed.z : packed.w;
#pragma unroll
        for (int b = 0; b < 4; b++)
            out[b] = pack_bf16(nf4_value<bf16>(level[bits >> (8 * b + 4) & 15], absmax, dtype),
                               nf4_value<bf16>(level[bits >> 8 * b & 15], absmax, dtype));
    }
};

template <> struct share<NB_FMT_BF16> { /* k = k0 + 32 chunk + 8 c + 0..7: a row's four lanes read 64 bytes together */
    uint4 values[4];
    static __device__ __forceinline__ int k_of(int c, int chunk) { return 32 * chunk + CHUNK * c; }
    __device__ __forceinline__ void load(const nb_weight &w, int64_t row, int64_t k0, int c) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t k = k0 + k_of(c, i);
            values[i] = make_uint4(0, 0, 0, 0);
            if (row < w.rows && k < w.cols) values[i] = *(const uint4 *)((const bf16 *)w.data + row * w.cols + k);
        }
    }
    __device__ __forceinline__ void chunk(uint32_t out[4], int i, const float *, nb_dtype) const {
        out[0] = values[i].x, out[1] = values[i].y, out[2] = values[i].z, out[3] = values[i].w;
    }
};

/* NT tiles of 8 rows of x, MT tiles of 16 rows of W. K % 8 == 0 (NF4: K % 32 == 0); x and W start at 16 bytes. */
template <nb_format F, int NT, int MT> __global__ void __launch_bounds__(THREADS) few_kernel(few_arg a) {
    constexpr int ROWS = 16 * MT, PITCH = ROWS + 4; /* 4 banks to the next token: stores do not collide */
    SHARED(float, level, [16]);
    SHARED(float, sums, [WARPS][NT * 8 * PITCH]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, c = lane & 3;
    const int64_t K = a.w.cols, row0 = (int64_t)blockIdx.x * ROWS;
    if (F == NB_FMT_NF4 && threadIdx.x < 16) level[threadIdx.x] = a.w.nf4.code[threadIdx.x];
    __syncthreads();
    float acc[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) (&acc[0][0][0])[i] = 0;
    /* Rows g and g + 8 of each tile; the next span is under way while this one computes. */
    share<F> now[MT][2], next[MT][2];
#pragma unroll
    for (int m = 0; m < 2 * MT; m++) now[m / 2][m % 2].load(a.w, row0 + 8 * m + g, warp * SPAN, c);
    for (int64_t k0 = warp * SPAN; k0 < K; k0 += WARPS * SPAN) {
#pragma unroll
        for (int m = 0; m < 2 * MT; m++) next[m / 2][m % 2].load(a.w, row0 + 8 * m + g, k0 + WARPS * SPAN, c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t k = k0 + share<F>::k_of(c, i);
            uint4 x[NT];
#pragma unroll
            for (int t = 0; t < NT; t++) {
                x[t] = make_uint4(0, 0, 0, 0);
                if (8 * t + g < a.T && k < K) x[t] = *(const uint4 *)(a.x + (8 * t + g) * K + k);
            }
#pragma unroll
            for (int m = 0; m < MT; m++) {
                uint32_t up[4], down[4];
                now[m][0].chunk(up, i, level, a.w.nf4.dtype);
                now[m][1].chunk(down, i, level, a.w.nf4.dtype);
                const uint32_t left0[4] = {up[0], down[0], up[1], down[1]}, left1[4] = {up[2], down[2], up[3], down[3]};
#pragma unroll
                for (int t = 0; t < NT; t++) {
                    const uint32_t right0[2] = {x[t].x, x[t].y}, right1[2] = {x[t].z, x[t].w};
                    mma_m16n8k16_bf16(acc[m][t], left0, right0, acc[m][t]);
                    mma_m16n8k16_bf16(acc[m][t], left1, right1, acc[m][t]);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < 2 * MT; m++) now[m / 2][m % 2] = next[m / 2][m % 2];
    }
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) {
        const int m = i / (NT * 4), t = i / 4 % NT, e = i % 4;
        sums[warp][(8 * t + 2 * c + (e & 1)) * PITCH + 16 * m + g + 8 * (e >> 1)] = acc[m][t][e];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.T * ROWS; i += THREADS) {
        const int t = i / ROWS, r = i % ROWS;
        float sum = 0;
        for (int v = 0; v < WARPS; v++) sum += sums[v][t * PITCH + r];
        if (row0 + r < a.w.rows) put(a.y, a.y_f32, t * a.ldy + row0 + r, sum, a.beta);
    }
}

/* The sums of a warp's lanes, to y. */
static __device__ __forceinline__ void few_out(const few_arg &a, float (&acc)[ANY_ROWS], int t0, int64_t row) {
#pragma unroll
    for (int t = 0; t < ANY_ROWS; t++) {
        for (int step = 16; step; step >>= 1) acc[t] += __shfl_xor_sync(0xffffffffu, acc[t], step);
        if ((int)threadIdx.x % 32 == t && t0 + t < a.T) put(a.y, a.y_f32, (t0 + t) * a.ldy + row, acc[t], a.beta);
    }
}

/* T: type of x, and what values of W are rounded to. Block (n, t): 8 rows of W, 8 rows of x. */
template <class T> __global__ void __launch_bounds__(THREADS) any_kernel(few_arg a, const T *x) {
    const int64_t K = a.w.cols, row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int t0 = blockIdx.y * ANY_ROWS, lane = threadIdx.x % 32;
    if (row >= a.w.rows) return;
    float acc[ANY_ROWS] = {0};
    for (int64_t k = lane; k < K; k += 32) {
        T w;
        from_f32(w, weight_value<T>(a.w, row * K + k));
#pragma unroll
        for (int t = 0; t < ANY_ROWS; t++)
            if (t0 + t < a.T) acc[t] = fmaf(to_f32(x[(t0 + t) * K + k]), to_f32(w), acc[t]);
    }
    few_out(a, acc, t0, row);
}

/* The same for GGUF's blocks: a lane takes 8 values of k at a time, which have one scale, and x in 16-byte loads. Four blocks
 * of threads at a time: left to itself ptxas aims at more with fewer registers, and spills. */
template <class T, nb_format F> __global__ void __launch_bounds__(THREADS, 4) blocks_kernel(few_arg a, const T *x) {
    const int64_t K = a.w.cols, row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int t0 = blockIdx.y * ANY_ROWS, lane = threadIdx.x % 32;
    if (row >= a.w.rows) return;
    float acc[ANY_ROWS] = {0};
    for (int64_t k = lane * CHUNK; k < K; k += 32 * CHUNK) {
        float w[CHUNK];
        block_values<F>(w, a.w.data, row * K + k);
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            T rounded;
            from_f32(rounded, w[j]);
            w[j] = to_f32(rounded);
        }
#pragma unroll
        for (int t = 0; t < ANY_ROWS; t++) {
            if (t0 + t < a.T) {
                float v[CHUNK];
                load(v, x + (t0 + t) * K + k);
#pragma unroll
                for (int j = 0; j < CHUNK; j++) acc[t] = fmaf(v[j], w[j], acc[t]);
            }
        }
    }
    few_out(a, acc, t0, row);
}

/* By size and alignment alone, never by T. */
bool tensor_cores(const nb_dev *d, const nb_weight *w, const void *x) {
    if (d->compute != NB_BF16 || (uintptr_t)w->data % 16 || (uintptr_t)x % 16) return false;
    return (w->format == NB_FMT_NF4 && w->cols % 32 == 0 && w->nf4.blocksize % 32 == 0) ||
           (w->format == NB_FMT_BF16 && w->cols % 8 == 0);
}

template <nb_format F> void launch_few(nb_dev *d, const few_arg &a) {
    /* Every block reads all of x (from the L2 cache): 32 rows of W a block read it half as often as 16. That matters
     * where x is large beside the block's share of W, and is affordable where it leaves a block for each
     * multiprocessor. */
    const unsigned of16 = (unsigned)((a.w.rows + 15) / 16), of32 = (unsigned)((a.w.rows + 31) / 32);
    if (a.T > 8) LAUNCH((few_kernel<F, 4, 2>), of32, THREADS, 0, gpu_stream(d), a);
    else if (a.T > 2 && (int)of32 >= ((const nb_gpu *)d->impl)->sms)
        LAUNCH((few_kernel<F, 1, 2>), of32, THREADS, 0, gpu_stream(d), a);
    else LAUNCH((few_kernel<F, 1, 1>), of16, THREADS, 0, gpu_stream(d), a);
}

/* Weights that tensor cores do not take. */
template <class T> void launch_any(nb_dev *d, const few_arg &a, const void *x) {
    const dim3 grid((unsigned)((a.w.rows + WARPS - 1) / WARPS), (unsigned)((a.T + ANY_ROWS - 1) / ANY_ROWS));
#define BLOCK(F, f, size, bytes)                                                                                  \
    if (a.w.format == NB_FMT_##F && (uintptr_t)x % 16 == 0) {                                                     \
        LAUNCH((blocks_kernel<T, NB_FMT_##F>), grid, THREADS, 0, gpu_stream(d), a, (const T *)x);                 \
        return;                                                                                                   \
    }
    NB_BLOCK_FORMATS(BLOCK)
#undef BLOCK
    LAUNCH(any_kernel<T>, grid, THREADS, 0, gpu_stream(d), a, (const T *)x);
}

} /* namespace */

extern "C" bool NB_GPU(few_fits)(const nb_dev *d, const nb_weight *w, int64_t T) {
    return T <= (tensor_cores(d, w, NULL) ? MOST : ANY_ROWS);
}

extern "C" size_t NB_GPU(few_ws)(const nb_dev *, int64_t, int64_t, int64_t) { return 0; }

extern "C" nb_status NB_GPU(few_fwd)(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T, float beta) {
    NB_ASSERT(T <= MOST);
    if (T <= 0 || w->rows <= 0) return NB_OK;
    const few_arg a = {y.p, y.ld, y.dtype == NB_F32, (const bf16 *)x, *w, (int)T, beta};
    if (d->elem == NB_F32) launch_any<float>(d, a, x);
    else if (!tensor_cores(d, w, x)) launch_any<bf16>(d, a, x);
    else if (w->format == NB_FMT_NF4) launch_few<NB_FMT_NF4>(d, a);
    else launch_few<NB_FMT_BF16>(d, a);
    return gpu_launched(d, "few_fwd");
}
