/* The most likely tokens of rows of logits, so that generation fetches these few and not whole rows.
 *
 * A block owns a row, a thread every THREADS-th of its 16-byte vectors. Logits become keys, distinct and ordered as the
 * result is: by value, then by lower id. First every thread finds its largest key. K of those are at least the K-th
 * largest of them, so nothing smaller can belong to the result; a second read collects what is not smaller (hardly more
 * than K in rows of any usual kind) and sorts it. Rows made so that it does not fit are searched key by key. */
#include "kernels/cuda/cuda.h"

namespace {

typedef unsigned long long key_t64;

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr int MAX_K = 256;
constexpr int ROOM = 4096; /* keys that are collected, at most: 32 KiB */

/* Larger for larger logits, and of equal ones for the lower id. No logit has key 0. (NaN sorts anywhere: there is no mass
 * then.) */
__device__ __forceinline__ key_t64 key_of(float x, int id) {
    uint32_t u = __float_as_uint(x == 0 ? 0 : x);
    u = u >> 31 ? ~u : u | 0x80000000u;
    return (key_t64)u << 32 | (uint32_t)~id;
}
__device__ __forceinline__ float logit_of(key_t64 key) {
    uint32_t u = (uint32_t)(key >> 32);
    return __uint_as_float(u >> 31 ? u & 0x7fffffffu : ~u);
}
__device__ __forceinline__ int id_of(key_t64 key) { return (int)~(uint32_t)key; }

/* Calls f(logit, id) for this thread's part of the row, ids ascending: single elements up to the first vector and
 * behind the last, as V may be odd. */
template <class F> __device__ __forceinline__ void each(const float *x, int V, F f) {
    int head = (int)(-(uintptr_t)x / sizeof(float) & 3), me = threadIdx.x;
    if (head > V) head = V;
    const int n4 = (V - head) / 4, end = head + 4 * n4;
    if (me < head) f(x[me], me);
#pragma unroll 4
    for (int i = me; i < n4; i += THREADS) {
        float4 v = ((const float4 *)(x + head))[i];
        int at = head + 4 * i;
        f(v.x, at), f(v.y, at + 1), f(v.z, at + 2), f(v.w, at + 3);
    }
    if (me < V - end) f(x[end + me], end + me);
}

/* Descending; n is a power of two. Batcher's bitonic sorter (1968). */
__device__ __forceinline__ void sort(key_t64 *keys, int n) {
    for (int size = 2; size <= n; size *= 2)
        for (int stride = size / 2; stride > 0; stride /= 2) {
            for (int i = threadIdx.x; i < n / 2; i += THREADS) {
                int lo = 2 * i - (i & (stride - 1)), hi = lo + stride;
                key_t64 x = keys[lo], y = keys[hi];
                if ((x < y) == ((lo & size) == 0)) keys[lo] = y, keys[hi] = x;
            }
            __syncthreads();
        }
}

/* Every thread gets the block's. `one` has WARPS elements; a barrier stands between its last use and this. */
__device__ __forceinline__ key_t64 largest_of_block(key_t64 *one, key_t64 x) {
    for (int warps = 2; warps > 0; warps--) { /* over the warp's lanes, then over the warps */
        for (int step = 16; step > 0; step /= 2) {
            key_t64 y = __shfl_xor_sync(0xffffffffu, x, step);
            if (y > x) x = y;
        }
        if (warps == 1) return x;
        if (threadIdx.x % 32 == 0) one[threadIdx.x / 32] = x;
        __syncthreads();
        x = one[threadIdx.x % 32];
    }
    return x;
}

__device__ __forceinline__ float added_over_block(float *one, float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    if (threadIdx.x % 32 == 0) one[threadIdx.x / 32] = x;
    __syncthreads();
    x = one[threadIdx.x % 32];
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__global__ void __launch_bounds__(THREADS)
top_kernel(float *values, int32_t *ids, float *mass, const float *logits, int V, int K, float rate) {
    SHARED(key_t64, keys, [ROOM]);
    SHARED(key_t64, of_warp, [WARPS]);
    SHARED(float, part, [WARPS]);
    SHARED(int, found, [1]);
    const float *x = logits + (int64_t)blockIdx.x * V;
    float *value = values + (int64_t)blockIdx.x * K;
    int32_t *id = ids + (int64_t)blockIdx.x * K;
    const int me = threadIdx.x;

    key_t64 mine = 0;
    each(x, V, [&](float logit, int at) {
        key_t64 k = key_of(logit, at);
        if (k > mine) mine = k;
    });
    keys[me] = mine;
    if (me == 0) found[0] = 0;
    __syncthreads();
    sort(keys, THREADS);
    const key_t64 bound = keys[K - 1]; /* 0 where fewer than K threads have logits: then all are collected */
    const float best = logit_of(keys[0]);
    __syncthreads();

    float sum = 0;
    each(x, V, [&](float logit, int at) {
        sum += expf((logit - best) * rate);
        key_t64 k = key_of(logit, at);
        if (k < bound) return;
        int slot = atomicAdd(&found[0], 1);
        if (slot < ROOM) keys[slot] = k;
    });
    sum = added_over_block(part, sum);
    if (me == 0) mass[blockIdx.x] = sum;
    const int n = found[0];

    if (n <= ROOM) {
        int sorted = K;
        while (sorted & (sorted - 1)) sorted += sorted & -sorted; /* the next power of two */
        while (sorted < n) sorted *= 2;
        for (int i = n + me; i < sorted; i += THREADS) keys[i] = 0;
        __syncthreads();
        sort(keys, sorted);
        if (me < K) value[me] = logit_of(keys[me]), id[me] = id_of(keys[me]);
        return;
    }
    key_t64 last = ~(key_t64)0;
    for (int i = 0; i < K; i++) {
        mine = 0;
        each(x, V, [&](float logit, int at) {
            key_t64 k = key_of(logit, at);
            if (k < last && k > mine) mine = k;
        });
        __syncthreads();
        last = largest_of_block(of_warp, mine);
        if (me == 0) value[i] = logit_of(last), id[i] = id_of(last);
    }
}

} // namespace

extern "C" nb_status NB_GPU(top_logits)(nb_dev *d, float *values, int32_t *ids, float *mass, const float *logits,
                                        int64_t n, int64_t V, int64_t K, float rate) {
    NB_ASSERT(K >= 1 && K <= MAX_K && K <= V && V < INT32_MAX / 2);
    if (n == 0) return NB_OK;
    LAUNCH(top_kernel, (unsigned)n, THREADS, 0, gpu_stream(d), values, ids, mass, logits, (int)V, (int)K, rate);
    return gpu_launched(d, "top_logits");
}
