/* Mixture of experts: which tokens go where, and what comes back.
 *
 * A warp owns a token's row of logits, a lane every 32nd expert. The rows for the experts are then put in order by one
 * block an expert, which reads all choices twice: to count those before its own, and to number its own in order of tokens. */
#include "kernels/cuda/vec.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int MAX_E = 1024, MAX_K = 32, EACH = MAX_E / 32;
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

/* A lane's probabilities of a row, 0 behind E; returns log of the sum of exp(x). N: its experts, rounded up. */
template <int N, class T> __device__ __forceinline__ float softmax(float (&p)[N], const T *x, int E) {
    const int lane = threadIdx.x % 32;
    float best = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int e = i * 32 + lane;
        p[i] = e < E ? to_f32(x[e]) : -INFINITY;
        best = fmaxf(best, p[i]);
    }
    best = warp_max(best);
#pragma unroll
    for (int i = 0; i < N; i++) sum += p[i] = i * 32 + lane < E ? expf(p[i] - best) : 0;
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < N; i++) p[i] /= sum;
    return best + logf(sum);
}

#define FOR_TOKENS(t, T) \
    for (int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; t < (T); t += (int64_t)gridDim.x * WARPS)

/* choices[T,k], and by_choice[T,k] the weights in the same order. */
template <int N, class T>
__global__ void __launch_bounds__(THREADS) choose_kernel(int32_t *choices, float *by_choice, const T *logits,
                                                         int64_t tokens, int E, int k, bool renorm) {
    const int lane = threadIdx.x % 32;
    FOR_TOKENS(t, tokens) {
        float p[N], mine = 0, sum = 0;
        int chosen = 0;
        softmax(p, logits + t * E, E);
        uint32_t taken = 0; /* bit i: the lane's i-th expert */
        for (int j = 0; j < k; j++) {
            /* NaN counts as smallest: what is left to choose is 0 or more */
            float best = -2;
            int at = MAX_E;
#pragma unroll
            for (int i = 0; i < N; i++) {
                float v = isnan(p[i]) ? -1 : p[i];
                if (i * 32 + lane < E && !(taken >> i & 1) && v > best) best = v, at = i * 32 + lane;
            }
            for (int step = 16; step > 0; step /= 2) {
                float v = __shfl_xor_sync(ALL, best, step);
                int e = __shfl_xor_sync(ALL, at, step);
                if (v > best || (v == best && e < at)) best = v, at = e;
            }
            float weight = 0;
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i == at / 32) weight = p[i];
            weight = __shfl_sync(ALL, weight, at % 32);
            if (lane == at % 32) taken |= 1u << at / 32;
            if (lane == j) chosen = at, mine = weight;
            sum += weight;
        }
        if (lane < k) {
            choices[t * k + lane] = chosen;
            by_choice[t * k + lane] = renorm ? mine / sum : mine;
        }
    }
}

__device__ __forceinline__ int block_sum(int *of_warp, int x) {
    x = __reduce_add_sync(ALL, x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < WARPS; w++) x += of_warp[w];
    return x;
}

/* Block e: expert e's rows. n = T*k choices. */
__global__ void __launch_bounds__(THREADS)
order_kernel(float *weights, int32_t *tokens, int32_t *places, int32_t *offsets, const int32_t *choices,
             const float *by_choice, int n, int E, int k) {
    SHARED(int, of_warp, [WARPS]);
    const int e = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int before = 0, own = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) before += choices[i] < e, own += choices[i] == e;
    before = block_sum(of_warp, before);
    own = block_sum(of_warp, own);
    if (threadIdx.x == 0) {
        offsets[e] = before;
        if (e == E - 1) offsets[E] = before + own;
    }
    for (int i0 = 0; i0 < n; i0 += THREADS) {
        const int i = i0 + (int)threadIdx.x;
        const bool here = i < n && choices[i] == e;
        const uint32_t which = __ballot_sync(ALL, here);
        __syncthreads(); /* the counts of the last round are used */
        if (lane == 0) of_warp[warp] = __popc(which);
        __syncthreads();
        int place = before + __popc(which & ((1u << lane) - 1)), all = 0;
        for (int w = 0; w < WARPS; w++) {
            if (w < warp) place += of_warp[w];
            all += of_warp[w];
        }
        before += all;
        if (!here) continue; /* the next barrier is a whole round away: every thread comes to it */
        places[i] = place;
        tokens[place] = i / k;
        weights[place] = by_choice[i];
    }
}

template <int N, class T>
__global__ void __launch_bounds__(THREADS)
route_bwd_kernel(T *dlogits, float beta, const float *dweights, const float *dshare, const T *logits,
                 const int32_t *choices, const int32_t *places, int64_t tokens, int E, int k, bool renorm) {
    const int lane = threadIdx.x % 32;
    FOR_TOKENS(t, tokens) {
        float p[N], dp[N];
        softmax(p, logits + t * E, E);
        /* lane j has choice j */
        const int choice = lane < k ? choices[t * k + lane] : 0;
        const float dw = lane < k ? dweights[places[t * k + lane]] : 0;
        float weight = 0, sum = 1, mean = 0;
        for (int j = 0; j < k; j++) {
            const int at = __shfl_sync(ALL, choice, j);
            float v = 0;
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i == at / 32) v = p[i];
            v = __shfl_sync(ALL, v, at % 32);
            if (lane == j) weight = v;
        }
        if (renorm) {
            sum = warp_sum(weight);
            mean = warp_sum(dw * weight / sum);
        }
        const float through = (dw - mean) / sum;
        float all = 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int e = i * 32 + lane;
            dp[i] = dshare && e < E ? dshare[e] / (float)tokens : 0;
        }
        for (int j = 0; j < k; j++) {
            const int at = __shfl_sync(ALL, choice, j);
            const float v = __shfl_sync(ALL, through, j);
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i * 32 + lane == at) dp[i] += v;
        }
#pragma unroll
        for (int i = 0; i < N; i++) all += p[i] * dp[i];
        all = warp_sum(all);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int e = i * 32 + lane;
            if (e >= E) continue;
            float v[1] = {p[i] * (dp[i] - all)};
            put(dlogits + t * E + e, v, beta);
        }
    }
}

template <int N, class T>
__global__ void __launch_bounds__(THREADS) lse_kernel(float *lse, const T *logits, int64_t tokens, int E) {
    FOR_TOKENS(t, tokens) {
        float p[N], sum = softmax(p, logits + t * E, E);
        if (threadIdx.x % 32 == 0) lse[t] = sum;
    }
}

/* Block e: a thread adds every THREADS-th token in order, then the threads' sums are added in a tree. */
template <class T>
__global__ void __launch_bounds__(THREADS) share_kernel(float *share, const float *lse, const T *logits, int64_t tokens,
                                                        int E) {
    SHARED(float, of_warp, [WARPS]);
    float sum = 0;
    for (int64_t t = threadIdx.x; t < tokens; t += THREADS) sum += expf(to_f32(logits[t * E + blockIdx.x]) - lse[t]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < WARPS; w++) sum += of_warp[w];
    share[blockIdx.x] = sum / (float)tokens;
}

/* The smallest N that holds E experts, as a constant. */
#define BY_EXPERTS(kernel, T, E) ((E) <= 64 ? kernel<2, T> : (E) <= 256 ? kernel<8, T> : kernel<EACH, T>)

template <class T>
nb_status route(nb_dev *d, float *weights, int32_t *tokens, int32_t *places, int32_t *choices, int32_t *offsets,
                const nb_elem *logits, int64_t rows, int64_t E, int64_t k, bool renorm) {
    NB_ASSERT(k >= 1 && k <= E && k <= MAX_K && E <= MAX_E && rows * k < INT32_MAX);
    float *by_choice = (float *)gpu_ws(d, (size_t)(rows * k) * sizeof(float));
    auto kernel = BY_EXPERTS(choose_kernel, T, E);
    LAUNCH(kernel, grid_for(rows, WARPS), THREADS, 0, gpu_stream(d), choices, by_choice, (const T *)logits, rows, (int)E,
           (int)k, renorm);
    NB_TRY(gpu_launched(d, "route"));
    LAUNCH(order_kernel, (unsigned)E, THREADS, 0, gpu_stream(d), weights, tokens, places, offsets, choices, by_choice,
           (int)(rows * k), (int)E, (int)k);
    return gpu_launched(d, "the order of the experts' rows");
}

template <class T>
nb_status route_bwd(nb_dev *d, nb_elem *dlogits, float beta, const float *dweights, const float *dshare,
                    const nb_elem *logits, const int32_t *choices, const int32_t *places, int64_t rows, int64_t E,
                    int64_t k, bool renorm) {
    if (!rows) return NB_OK;
    auto kernel = BY_EXPERTS(route_bwd_kernel, T, E);
    LAUNCH(kernel, grid_for(rows, WARPS), THREADS, 0, gpu_stream(d), (T *)dlogits, beta, dweights, dshare,
           (const T *)logits, choices, places, rows, (int)E, (int)k, renorm);
    return gpu_launched(d, "route_bwd");
}

template <class T>
nb_status route_share(nb_dev *d, float *share, float *lse, const nb_elem *logits, int64_t rows, int64_t E) {
    auto kernel = BY_EXPERTS(lse_kernel, T, E);
    LAUNCH(kernel, grid_for(rows, WARPS), THREADS, 0, gpu_stream(d), lse, (const T *)logits, rows, (int)E);
    NB_TRY(gpu_launched(d, "route_share"));
    LAUNCH(share_kernel<T>, (unsigned)E, THREADS, 0, gpu_stream(d), share, lse, (const T *)logits, rows, (int)E);
    return gpu_launched(d, "route_share");
}

template <class T, int N>
__global__ void sum_rows_kernel(T *y, const T *x, const int32_t *index, int64_t tokens, int k, int64_t C, float beta) {
    FOR_ROWS(t, tokens) {
        FOR_GROUPS(c, N, C) {
            float sum[N] = {0};
            for (int j = 0; j < k; j++) {
                float v[N];
                load(v, x + index[t * k + j] * C + c);
                for (int i = 0; i < N; i++) sum[i] += v[i];
            }
            put(y + t * C + c, sum, beta);
        }
    }
}

template <class T>
nb_status sum_rows(nb_dev *d, nb_elem *y, const nb_elem *x, const int32_t *index, int64_t rows, int64_t k, int64_t C,
                   float beta) {
    if (!rows || !C) return NB_OK;
    const int N = group_of<T>(C, y, x);
    const dim3 block = block_for_rows(C / N);
    auto kernel = N > 1 ? sum_rows_kernel<T, GROUP<T>> : sum_rows_kernel<T, 1>;
    LAUNCH(kernel, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, (const T *)x, index, rows, (int)k, C, beta);
    return gpu_launched(d, "sum_rows");
}

template <class T>
__global__ void __launch_bounds__(THREADS) row_dots_kernel(float *y, const T *x1, const T *x2, int64_t rows, int64_t C,
                                                           float beta) {
    FOR_TOKENS(t, rows) {
        float sum = 0;
        for (int64_t c = threadIdx.x % 32; c < C; c += 32) sum += to_f32(x1[t * C + c]) * to_f32(x2[t * C + c]);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) y[t] = beta != 0 ? sum + beta * y[t] : sum;
    }
}

template <class T>
nb_status row_dots(nb_dev *d, float *y, const nb_elem *x1, const nb_elem *x2, int64_t rows, int64_t C, float beta) {
    if (!rows) return NB_OK;
    LAUNCH(row_dots_kernel<T>, grid_for(rows, WARPS), THREADS, 0, gpu_stream(d), y, (const T *)x1, (const T *)x2, rows,
           C, beta);
    return gpu_launched(d, "row_dots");
}

__global__ void words_kernel(uint32_t *y, const uint32_t *x, const int32_t *index, int64_t n) {
    FOR_FLAT(i, 1, n) y[i] = x[index[i]];
}

template <class T> __global__ void sigmoid_kernel(float *y, const T *x, int64_t n) {
    FOR_FLAT(i, 1, n) y[i] = 1 / (1 + expf(-to_f32(x[i])));
}

template <class T> __global__ void sigmoid_bwd_kernel(T *dx, float beta, const float *dy, const float *y, int64_t n) {
    FOR_FLAT(i, 1, n) {
        float v[1] = {dy[i] * y[i] * (1 - y[i])};
        put(dx + i, v, beta);
    }
}

template <class T> nb_status sigmoid_fwd(nb_dev *d, float *y, const nb_elem *x, int64_t n) {
    if (!n) return NB_OK;
    LAUNCH(sigmoid_kernel<T>, grid_for(n, THREADS), THREADS, 0, gpu_stream(d), y, (const T *)x, n);
    return gpu_launched(d, "sigmoid_fwd");
}

template <class T>
nb_status sigmoid_bwd(nb_dev *d, nb_elem *dx, float beta, const float *dy, const float *y, int64_t n) {
    if (!n) return NB_OK;
    LAUNCH(sigmoid_bwd_kernel<T>, grid_for(n, THREADS), THREADS, 0, gpu_stream(d), (T *)dx, beta, dy, y, n);
    return gpu_launched(d, "sigmoid_bwd");
}

} // namespace

extern "C" nb_status NB_GPU(route)(nb_dev *d, float *weights, int32_t *tokens, int32_t *places, int32_t *choices,
                                   int32_t *offsets, const nb_elem *logits, int64_t T, int64_t E, int64_t k,
                                   bool renorm) {
    return BY_ELEM(route, d, weights, tokens, places, choices, offsets, logits, T, E, k, renorm);
}

extern "C" nb_status NB_GPU(route_bwd)(nb_dev *d, nb_elem *dlogits, float beta, const float *dweights,
                                       const float *dshare, const nb_elem *logits, const int32_t *choices,
                                       const int32_t *places, int64_t T, int64_t E, int64_t k, bool renorm) {
    return BY_ELEM(route_bwd, d, dlogits, beta, dweights, dshare, logits, choices, places, T, E, k, renorm);
}

extern "C" nb_status NB_GPU(route_share)(nb_dev *d, float *share, float *lse, const nb_elem *logits, int64_t T,
                                         int64_t E) {
    return BY_ELEM(route_share, d, share, lse, logits, T, E);
}

extern "C" nb_status NB_GPU(sum_rows)(nb_dev *d, nb_elem *y, const nb_elem *x, const int32_t *index, int64_t T,
                                      int64_t k, int64_t C, float beta) {
    return BY_ELEM(sum_rows, d, y, x, index, T, k, C, beta);
}

extern "C" nb_status NB_GPU(row_dots)(nb_dev *d, float *y, const nb_elem *x1, const nb_elem *x2, int64_t T, int64_t C,
                                      float beta) {
    return BY_ELEM(row_dots, d, y, x1, x2, T, C, beta);
}

extern "C" nb_status NB_GPU(gather_words)(nb_dev *d, uint32_t *y, const uint32_t *x, const int32_t *index, int64_t n) {
    if (!n) return NB_OK;
    LAUNCH(words_kernel, grid_for(n, THREADS), THREADS, 0, gpu_stream(d), y, x, index, n);
    return gpu_launched(d, "gather_words");
}

extern "C" nb_status NB_GPU(sigmoid_fwd)(nb_dev *d, float *y, const nb_elem *x, int64_t n) {
    return BY_ELEM(sigmoid_fwd, d, y, x, n);
}

extern "C" nb_status NB_GPU(sigmoid_bwd)(nb_dev *d, nb_elem *dx, float beta, const float *dy, const float *y, int64_t n) {
    return BY_ELEM(sigmoid_bwd, d, dx, beta, dy, y, n);
}
