/* RMS norm (Zhang & Sennrich 2019) and layer norm (Ba et al. 2016): the second subtracts each row's mean first.
 * A row is read from memory once: its threads keep their groups in registers from the sums to the result. Up to 32
 * threads share a short row, with several rows in a block; a long row has a block of its own. */
#include "kernels/cuda/vec.h"

namespace {

enum {
    KEEP = 4,         /* groups of a row a thread keeps; rows with more are read again */
    MOST_THREADS = 512,
    SHORT_BLOCK = 128 /* threads of a block of several rows */
};

/* A thread's groups of a row: group r starts at element (threadIdx.x + r * blockDim.x) * GROUP. */
template <class T> struct Row {
    const T *p;
    int64_t C;
    bool wide;
    uint4 kept[KEEP];
    __device__ __forceinline__ Row(const T *row, int64_t n, bool w) : p(row), C(n), wide(w) {
#pragma unroll
        for (int r = 0; r < KEEP; r++) {
            int64_t c = ((int64_t)threadIdx.x + r * (int64_t)blockDim.x) * GROUP<T>;
            if (c < C) kept[r] = fetch(p + c, C - c, wide);
        }
    }
};

/* f(c, group of each row at element c) for all groups of this thread. */
template <class T, class F, class... Rows>
__device__ __forceinline__ void each_group(F f, const Row<T> &first, const Rows &...more) {
    const int64_t C = first.C, step = (int64_t)blockDim.x * GROUP<T>;
    int64_t c = (int64_t)threadIdx.x * GROUP<T>;
#pragma unroll
    for (int r = 0; r < KEEP; r++, c += step)
        if (c < C) f(c, first.kept[r], more.kept[r]...);
    for (; c < C; c += step) f(c, fetch(first.p + c, C - c, first.wide), fetch(more.p + c, C - c, more.wide)...);
}

/* The sum of v over the blockDim.x threads of a row, in the same order for each of them. Calls between which a thread
 * of the block may still be reading take another slot. */
__device__ __forceinline__ float row_sum(float v, int slot) {
    const int width = blockDim.x < 32 ? (int)blockDim.x : 32, warps = (int)blockDim.x / 32;
    SHARED(float, part, [2][MOST_THREADS / 32]);
    for (int k = width / 2; k; k /= 2) v += __shfl_xor_sync(0xffffffffu, v, k);
    if (warps < 2) return v;
    if (threadIdx.x % 32 == 0) part[slot][threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < warps; i++) v += part[slot][i];
    return v;
}

/* Rows past the last one are computed with the others of their block, as the last, and not written. */
__device__ __forceinline__ int64_t row_of_thread() { return (int64_t)blockIdx.x * blockDim.y + threadIdx.y; }

template <class T, bool CENTER>
__global__ void __launch_bounds__(MOST_THREADS)
norm_fwd_kernel(T *y, float *mean, float *rstd, const T *x, const float *w, const float *bias, int64_t rows, int64_t C,
                float eps, float offset, bool wide) {
    constexpr int N = GROUP<T>;
    int64_t mine = row_of_thread(), at = mine < rows ? mine : rows - 1;
    Row<T> row(x + at * C, C, wide);
    float mu = 0, sum = 0;
    if (CENTER) {
        each_group<T>([&](int64_t, const uint4 &group) {
            float v[N];
            decode<T>(v, group);
            for (int k = 0; k < N; k++) sum += v[k]; /* zeros behind the row's end */
        }, row);
        mu = row_sum(sum, 0) / (float)C;
        sum = 0;
    }
    each_group<T>([&](int64_t c, const uint4 &group) {
        float v[N];
        decode<T>(v, group);
        for (int k = 0; k < N; k++) sum += !CENTER ? v[k] * v[k] : k < C - c ? (v[k] - mu) * (v[k] - mu) : 0;
    }, row);
    float r = 1 / sqrtf(row_sum(sum, 1) / (float)C + eps);
    if (mine >= rows) return;
    if (threadIdx.x == 0) {
        rstd[mine] = r;
        if (CENTER) mean[mine] = mu;
    }
    each_group<T>([&](int64_t c, const uint4 &group) {
        float v[N], wv[N], b[N];
        decode<T>(v, group);
        load(wv, w + c, C - c, wide);
        if (bias) load(b, bias + c, C - c, wide);
        for (int k = 0; k < N; k++) v[k] = (v[k] - mu) * r * (wv[k] + offset) + (bias ? b[k] : 0);
        store(y + mine * C + c, v, C - c, wide);
    }, row);
}

/* With g = dy*(w+offset) and n = (x-mean)*rstd:  dx = rstd*(g - mean(g) - n*mean(g*n)), RMS norm without mean(g). */
template <class T, bool CENTER>
__global__ void __launch_bounds__(MOST_THREADS)
norm_bwd_kernel(T *dx, float beta, const T *dy, const T *x, const float *w, const float *mean, const float *rstd,
                int64_t rows, int64_t C, float offset, bool wide) {
    constexpr int N = GROUP<T>;
    int64_t mine = row_of_thread(), at = mine < rows ? mine : rows - 1;
    Row<T> row_x(x + at * C, C, wide), row_dy(dy + at * C, C, wide);
    float r = rstd[at], mu = CENTER ? mean[at] : 0, sum = 0, dot = 0;
    each_group<T>([&](int64_t c, const uint4 &group_x, const uint4 &group_dy) {
        float v[N], g[N], wv[N];
        decode<T>(v, group_x);
        decode<T>(g, group_dy); /* zeros behind the row's end */
        load(wv, w + c, C - c, wide);
        for (int k = 0; k < N; k++) {
            g[k] *= wv[k] + offset;
            sum += g[k];
            dot += g[k] * ((v[k] - mu) * r);
        }
    }, row_x, row_dy);
    dot = row_sum(dot, 0) / (float)C;
    sum = CENTER ? row_sum(sum, 1) / (float)C : 0;
    if (mine >= rows) return;
    each_group<T>([&](int64_t c, const uint4 &group_x, const uint4 &group_dy) {
        float v[N], g[N], wv[N];
        decode<T>(v, group_x);
        decode<T>(g, group_dy);
        load(wv, w + c, C - c, wide);
        for (int k = 0; k < N; k++) v[k] = r * (g[k] * (wv[k] + offset) - sum - (v[k] - mu) * r * dot);
        put(dx + mine * C + c, v, beta, C - c, wide);
    }, row_x, row_dy);
}

/* About two groups a thread: up to 32 threads (a power of 2) a row with several rows a block, or a block a row. */
dim3 norm_block(int64_t groups) {
    unsigned x = 1;
    if (groups <= 32 * KEEP) {
        while (x < 32 && x < groups) x *= 2;
        return dim3(x, SHORT_BLOCK / x, 1);
    }
    int64_t threads = div_up(groups, 2 * 32) * 32;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    return dim3((unsigned)threads, 1, 1);
}

/* mean NULL: RMS norm. */
template <class T>
nb_status norm_fwd(nb_dev *d, nb_elem *y, float *mean, float *rstd, const nb_elem *x, const float *w, const float *bias,
                   int64_t rows, int64_t C, float eps, float offset) {
    if (!rows || !C) return NB_OK;
    auto kernel = mean ? norm_fwd_kernel<T, true> : norm_fwd_kernel<T, false>;
    dim3 block = norm_block(div_up(C, GROUP<T>)), grid((unsigned)div_up(rows, block.y));
    LAUNCH(kernel, grid, block, 0, gpu_stream(d), (T *)y, mean, rstd, (const T *)x, w, bias, rows, C, eps, offset,
           all_wide<T>(C, y, x, w, bias));
    return gpu_launched(d, mean ? "layernorm_fwd" : "rmsnorm_fwd");
}

template <class T>
nb_status norm_bwd(nb_dev *d, nb_elem *dx, float beta, const nb_elem *dy, const nb_elem *x, const float *w,
                   const float *mean, const float *rstd, int64_t rows, int64_t C, float offset) {
    if (!rows || !C) return NB_OK;
    auto kernel = mean ? norm_bwd_kernel<T, true> : norm_bwd_kernel<T, false>;
    dim3 block = norm_block(div_up(C, GROUP<T>)), grid((unsigned)div_up(rows, block.y));
    LAUNCH(kernel, grid, block, 0, gpu_stream(d), (T *)dx, beta, (const T *)dy, (const T *)x, w, mean, rstd, rows, C,
           offset, all_wide<T>(C, dx, dy, x, w));
    return gpu_launched(d, mean ? "layernorm_bwd" : "rmsnorm_bwd");
}

} // namespace

extern "C" nb_status NB_GPU(rmsnorm_fwd)(nb_dev *d, nb_elem *y, float *rstd, const nb_elem *x, const float *w, int64_t T,
                                         int64_t C, float eps, float offset) {
    return BY_ELEM(norm_fwd, d, y, NULL, rstd, x, w, NULL, T, C, eps, offset);
}

extern "C" nb_status NB_GPU(rmsnorm_bwd)(nb_dev *d, nb_elem *dx, float beta_x, float *dw, float beta_w,
                                         const nb_elem *dy, const nb_elem *x, const float *w, const float *rstd,
                                         int64_t T, int64_t C, float offset) {
    if (dw) NB_TRY(NB_GPU(column_sums)(d, dw, beta_w, NULL, 0, dy, x, NULL, rstd, T, C));
    return dx ? BY_ELEM(norm_bwd, d, dx, beta_x, dy, x, w, NULL, rstd, T, C, offset) : NB_OK;
}

extern "C" nb_status NB_GPU(layernorm_fwd)(nb_dev *d, nb_elem *y, float *mean, float *rstd, const nb_elem *x,
                                           const float *w, const float *bias, int64_t T, int64_t C, float eps) {
    return BY_ELEM(norm_fwd, d, y, mean, rstd, x, w, bias, T, C, eps, 0.0f);
}

extern "C" nb_status NB_GPU(layernorm_bwd)(nb_dev *d, nb_elem *dx, float beta_x, float *dw, float beta_w, float *db,
                                           float beta_b, const nb_elem *dy, const nb_elem *x, const float *w,
                                           const float *mean, const float *rstd, int64_t T, int64_t C) {
    if (dw || db) NB_TRY(NB_GPU(column_sums)(d, dw, beta_w, db, beta_b, dy, x, mean, rstd, T, C));
    return dx ? BY_ELEM(norm_bwd, d, dx, beta_x, dy, x, w, mean, rstd, T, C, 0.0f) : NB_OK;
}
