/* RMS norm (Zhang & Sennrich 2019) and layer norm (Ba et al. 2016): the second subtracts each row's mean first.
 * A row is read from memory once: its threads keep their groups in registers from the sums to the result. Up to 32
 * threads share a short row, with several rows in a block; a long row has a block of its own. */
#include "kernels/cuda/vec.h"

namespace {

enum {
    KEEP = 2,         /* groups of a row a thread keeps: 1,024 in all (8,192 bf16); longer rows are read again */
    MOST_THREADS = 512,
    SHORT_BLOCK = 128 /* threads of a block of several rows */
};

/* A thread's groups of a row of C: group r starts at element (threadIdx.x + r * blockDim.x) * N. */
template <class T, int N> struct Row {
    const T *p;
    typename Raw<N>::type kept[KEEP];
    __device__ __forceinline__ Row(const T *row, int C) : p(row) {
#pragma unroll
        for (int r = 0; r < KEEP; r++) {
            int c = (int)(threadIdx.x + r * blockDim.x) * N;
            if (c < C) kept[r] = fetch<N>(p + c);
        }
    }
};

/* f(c, v of each row at element c) for all groups of this thread. */
template <class T, int N, class F>
__device__ __forceinline__ void each_group(int C, const Row<T, N> &x, F f) {
    const int step = (int)blockDim.x * N;
    int c = (int)threadIdx.x * N;
    float v[N];
#pragma unroll
    for (int r = 0; r < KEEP; r++, c += step)
        if (c < C) {
            decode<T>(v, x.kept[r]);
            f(c, v);
        }
    for (; c < C; c += step) {
        load(v, x.p + c);
        f(c, v);
    }
}
template <class T, int N, class F>
__device__ __forceinline__ void each_group(int C, const Row<T, N> &x, const Row<T, N> &y, F f) {
    const int step = (int)blockDim.x * N;
    int c = (int)threadIdx.x * N;
    float v[N], u[N];
#pragma unroll
    for (int r = 0; r < KEEP; r++, c += step)
        if (c < C) {
            decode<T>(v, x.kept[r]);
            decode<T>(u, y.kept[r]);
            f(c, v, u);
        }
    for (; c < C; c += step) {
        load(v, x.p + c);
        load(u, y.p + c);
        f(c, v, u);
    }
}

/* The sum of v over the blockDim.x threads of a row, in the same order for each of them. Two calls of a block take
 * different slots: some threads may still be reading the first when others write the second. */
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

__device__ __forceinline__ int64_t row_of_thread() { return (int64_t)blockIdx.x * blockDim.y + threadIdx.y; }

/* mean NULL: RMS norm. Rows past the last are computed with the others of their block, as the last, and not written. */
template <class T, int N>
__global__ void __launch_bounds__(MOST_THREADS)
norm_fwd_kernel(T *y, float *mean, float *rstd, const T *x, const float *w, const float *bias, int64_t rows, int C,
                float eps, float offset) {
    const int64_t mine = row_of_thread(), at = mine < rows ? mine : rows - 1;
    const Row<T, N> row(x + at * C, C);
    float mu = 0, sum = 0;
    if (mean) {
        each_group(C, row, [&](int, float(&v)[N]) {
            for (int k = 0; k < N; k++) sum += v[k];
        });
        mu = row_sum(sum, 0) / (float)C;
        sum = 0;
    }
    each_group(C, row, [&](int, float(&v)[N]) {
        for (int k = 0; k < N; k++) sum += (v[k] - mu) * (v[k] - mu);
    });
    const float r = 1 / sqrtf(row_sum(sum, 1) / (float)C + eps);
    if (mine >= rows) return;
    if (threadIdx.x == 0) {
        rstd[mine] = r;
        if (mean) mean[mine] = mu;
    }
    each_group(C, row, [&](int c, float(&v)[N]) {
        float wv[N], b[N];
        load(wv, w + c);
        if (bias) load(b, bias + c);
        for (int k = 0; k < N; k++) v[k] = (v[k] - mu) * r * (wv[k] + offset) + (bias ? b[k] : 0);
        store(y + mine * C + c, v);
    });
}

/* With g = dy*(w+offset) and n = (x-mean)*rstd:  dx = rstd*(g - mean(g) - n*mean(g*n)), RMS norm without mean(g). */
template <class T, int N>
__global__ void __launch_bounds__(MOST_THREADS)
norm_bwd_kernel(T *dx, float beta, const T *dy, const T *x, const float *w, const float *mean, const float *rstd,
                int64_t rows, int C, float offset) {
    const int64_t mine = row_of_thread(), at = mine < rows ? mine : rows - 1;
    const Row<T, N> row_x(x + at * C, C), row_dy(dy + at * C, C);
    const float r = rstd[at], mu = mean ? mean[at] : 0;
    float sum = 0, dot = 0;
    each_group(C, row_x, row_dy, [&](int c, float(&v)[N], float(&g)[N]) {
        float wv[N];
        load(wv, w + c);
        for (int k = 0; k < N; k++) {
            g[k] *= wv[k] + offset;
            sum += g[k];
            dot += g[k] * ((v[k] - mu) * r);
        }
    });
    dot = row_sum(dot, 0) / (float)C;
    sum = mean ? row_sum(sum, 1) / (float)C : 0;
    if (mine >= rows) return;
    each_group(C, row_x, row_dy, [&](int c, float(&v)[N], float(&g)[N]) {
        float wv[N];
        load(wv, w + c);
        for (int k = 0; k < N; k++) v[k] = r * (g[k] * (wv[k] + offset) - sum - (v[k] - mu) * r * dot);
        put(dx + mine * C + c, v, beta);
    });
}

/* Two groups a thread: up to 32 threads (a power of 2) a row with several rows a block, or a block a row. */
dim3 norm_block(int64_t groups) {
    unsigned x = 1;
    if (groups <= 32 * KEEP) {
        while (x < 32 && x < groups) x *= 2;
        return dim3(x, SHORT_BLOCK / x, 1);
    }
    int64_t threads = div_up(groups, KEEP * 32) * 32;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    return dim3((unsigned)threads, 1, 1);
}

template <class T>
nb_status norm_fwd(nb_dev *d, nb_elem *y, float *mean, float *rstd, const nb_elem *x, const float *w, const float *bias,
                   int64_t rows, int64_t C, float eps, float offset) {
    if (!rows || !C) return NB_OK;
    const int N = group_of<T>(C, y, x, w, bias);
    const dim3 block = norm_block(C / N), grid((unsigned)div_up(rows, block.y));
    auto kernel = N > 1 ? norm_fwd_kernel<T, GROUP<T>> : norm_fwd_kernel<T, 1>;
    LAUNCH(kernel, grid, block, 0, gpu_stream(d), (T *)y, mean, rstd, (const T *)x, w, bias, rows, (int)C, eps, offset);
    return gpu_launched(d, mean ? "layernorm_fwd" : "rmsnorm_fwd");
}

template <class T>
nb_status norm_bwd(nb_dev *d, nb_elem *dx, float beta, const nb_elem *dy, const nb_elem *x, const float *w,
                   const float *mean, const float *rstd, int64_t rows, int64_t C, float offset) {
    if (!rows || !C) return NB_OK;
    const int N = group_of<T>(C, dx, dy, x, w);
    const dim3 block = norm_block(C / N), grid((unsigned)div_up(rows, block.y));
    auto kernel = N > 1 ? norm_bwd_kernel<T, GROUP<T>> : norm_bwd_kernel<T, 1>;
    LAUNCH(kernel, grid, block, 0, gpu_stream(d), (T *)dx, beta, (const T *)dy, (const T *)x, w, mean, rstd, rows,
           (int)C, offset);
    return gpu_launched(d, mean ? "layernorm_bwd" : "rmsnorm_bwd");
}

} // namespace

extern "C" nb_status NB_GPU(rmsnorm_fwd)(nb_dev *d, nb_elem *y, float *rstd, const nb_elem *x, const float *w,
                                         int64_t T, int64_t C, float eps, float offset) {
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

extern "C" nb_status NB_GPU(layernorm_bwd)(nb_dev *d, nb_elem *dx, float beta_x, float *dw, float beta_w, float *dbias,
                                           float beta_b, const nb_elem *dy, const nb_elem *x, const float *w,
                                           const float *mean, const float *rstd, int64_t T, int64_t C) {
    if (dw || dbias) NB_TRY(NB_GPU(column_sums)(d, dw, beta_w, dbias, beta_b, dy, x, mean, rstd, T, C));
    return dx ? BY_ELEM(norm_bwd, d, dx, beta_x, dy, x, w, mean, rstd, T, C, 0.0f) : NB_OK;
}
