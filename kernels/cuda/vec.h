/* For kernels that memory bandwidth bounds: a thread takes a group of elements at a time, 16 bytes of activations and
 * the floats that go with them. Groups are read and written in 16-byte accesses where size and alignment of rows allow
 * it (`wide`), else element by element; both in one kernel, so any shape runs. */
#ifndef NB_KERNELS_CUDA_VEC_H
#define NB_KERNELS_CUDA_VEC_H

#include "kernels/cuda/cuda.h"

/* Elements of a group. */
template <class T> constexpr int GROUP = 16 / (int)sizeof(T);

static __device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }

/* A group of T as it lies in memory: the first `left` elements at p, zeros behind them. */
template <class T> static __device__ __forceinline__ uint4 fetch(const T *p, int64_t left, bool wide) {
    if (wide && left >= GROUP<T>) return *(const uint4 *)p;
    T e[GROUP<T>];
    uint4 u;
#pragma unroll
    for (int k = 0; k < GROUP<T>; k++)
        if (k < left) e[k] = p[k];
        else from_f32(e[k], 0.0f);
    memcpy((void *)&u, e, 16);
    return u;
}

template <class T> static __device__ __forceinline__ void decode(float (&v)[GROUP<T>], const uint4 &u) {
    T e[GROUP<T>];
    memcpy(e, &u, 16);
#pragma unroll
    for (int k = 0; k < GROUP<T>; k++) v[k] = to_f32(e[k]);
}

/* The first `left` of N elements at p as floats, zeros behind them. p of any type: parameters and weights, too. */
template <int N, class S> static __device__ __forceinline__ void load(float (&v)[N], const S *p, int64_t left, bool wide) {
    constexpr int BYTES = N * (int)sizeof(S);
    static_assert(BYTES == 8 || BYTES % 16 == 0, "whole vectors");
    S e[N];
    if (!wide || left < N) {
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = k < left ? to_f32(p[k]) : 0.0f;
        return;
    }
    if (BYTES == 8) {
        uint2 u = *(const uint2 *)p;
        memcpy(e, &u, 8);
    }
#pragma unroll
    for (int i = 0; i < BYTES / 16; i++) {
        uint4 u = ((const uint4 *)p)[i];
        memcpy((char *)e + 16 * i, &u, 16);
    }
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = to_f32(e[k]);
}

static __device__ __forceinline__ void store_wide(float *p, const float (&v)[4]) {
    *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
}
static __device__ __forceinline__ void store_wide(float *p, const float (&v)[8]) {
    ((float4 *)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4 *)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
static __device__ __forceinline__ void store_wide(bf16 *p, const float (&v)[8]) {
    *(uint4 *)p = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

/* p[k] = v[k] for the first `left` of N elements. */
template <int N, class T>
static __device__ __forceinline__ void store(T *p, const float (&v)[N], int64_t left, bool wide) {
    if (wide && left >= N) {
        store_wide(p, v);
        return;
    }
#pragma unroll
    for (int k = 0; k < N; k++)
        if (k < left) from_f32(p[k], v[k]);
}

/* p[k] = v[k] + beta * p[k]; beta 0 does not read. */
template <int N, class T>
static __device__ __forceinline__ void put(T *p, float (&v)[N], float beta, int64_t left, bool wide) {
    if (beta != 0) {
        float old[N];
        load(old, p, left, wide);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] += beta * old[k];
    }
    store(p, v, left, wide);
}

/* ---- host side ---- */

/* fn<T>(d, ...) for the type of d's activations. */
#define BY_ELEM(fn, d, ...) ((d)->elem == NB_BF16 ? fn<bf16>(d, __VA_ARGS__) : fn<float>(d, __VA_ARGS__))

/* May rows of C elements of T at these addresses (NULL: not there) be read in 16-byte accesses? */
template <class T, class... P> static inline bool all_wide(int64_t C, const P *...p) {
    return C % GROUP<T> == 0 && (((uintptr_t)p % 16 == 0) && ...);
}
static inline int64_t div_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

/* Blocks of `per_block` for n pieces of work. Kernels go on with a stride of the grid where that is not enough. */
static inline unsigned grid_for(int64_t n, int64_t per_block) {
    int64_t blocks = div_up(n, per_block);
    return (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20);
}

/* A block over rows of `groups`, for kernels without barriers: x along a row in evenly filled rounds, y over rows. */
static inline dim3 block_for_rows(int64_t groups) {
    const int64_t threads = 256, rounds = div_up(groups, threads);
    int64_t x = div_up(groups, rounds);
    if (x > 8 && x % 8) x += 8 - x % 8; /* rounds begin on lines of 128 bytes */
    return dim3((unsigned)x, (unsigned)(threads / x), 1);
}
/* The rows and groups of a thread in such a block. */
#define FOR_ROWS(row, rows) \
    for (int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; row < (rows); row += (int64_t)gridDim.x * blockDim.y)
#define FOR_GROUPS(c, T, C) \
    for (int64_t c = (int64_t)threadIdx.x * GROUP<T>; c < (C); c += (int64_t)blockDim.x * GROUP<T>)

/* out_w[C] = sum over rows of dy * (x - mean) * rstd + beta_w * out_w (mean NULL: 0) and out_b[C] = sum over rows of dy
 * + beta_b * out_b, each unless NULL, always in the same order. dy, x [T,C] of d->elem; takes d->ws. */
extern "C" nb_status NB_GPU(column_sums)(nb_dev *d, float *out_w, float beta_w, float *out_b, float beta_b,
                                         const nb_elem *dy, const nb_elem *x, const float *mean, const float *rstd,
                                         int64_t T, int64_t C);

#endif
