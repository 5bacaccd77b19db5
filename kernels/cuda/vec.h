/* For kernels that memory bandwidth bounds. They are templates over T, the type of activations, and N, the elements a
 * thread takes at a time: GROUP<T>, read and written in 16-byte accesses, where size and alignment of the rows allow
 * it, else 1. A row is always whole groups, so that no kernel has a tail. */
#ifndef NB_KERNELS_CUDA_VEC_H
#define NB_KERNELS_CUDA_VEC_H

#include "kernels/cuda/cuda.h"

/* Elements of T in 16 bytes. */
template <class T> constexpr int GROUP = 16 / (int)sizeof(T);

static __device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }

/* A group of activations as a register holds it longest: in their own type. */
template <int N> struct Raw {
    typedef uint4 type;
};
template <> struct Raw<1> {
    typedef float type;
};
template <int N, class T> static __device__ __forceinline__ typename Raw<N>::type fetch(const T *p) {
    if constexpr (N == 1) return to_f32(*p);
    else return *(const uint4 *)p;
}
template <class T, int N>
static __device__ __forceinline__ void decode(float (&v)[N], const typename Raw<N>::type &raw) {
    if constexpr (N == 1) {
        v[0] = raw;
    } else {
        T e[N];
        memcpy(e, &raw, 16);
        for (int k = 0; k < N; k++) v[k] = to_f32(e[k]);
    }
}

/* v[k] = p[k], from any type: parameters and weights as well, which take more or less than 16 bytes. */
template <int N, class S> static __device__ __forceinline__ void load(float (&v)[N], const S *p) {
    constexpr int BYTES = N * (int)sizeof(S);
    S e[N];
    if constexpr (N == 1) {
        e[0] = *p;
    } else if constexpr (BYTES == 8) {
        uint2 u = *(const uint2 *)p;
        memcpy(e, &u, 8);
    } else {
        static_assert(BYTES % 16 == 0, "whole vectors");
        for (int i = 0; i < BYTES / 16; i++) {
            uint4 u = ((const uint4 *)p)[i];
            memcpy((char *)e + 16 * i, &u, 16);
        }
    }
    for (int k = 0; k < N; k++) v[k] = to_f32(e[k]);
}

/* p[k] = v[k]. */
static __device__ __forceinline__ void store(float *p, const float (&v)[1]) { *p = v[0]; }
static __device__ __forceinline__ void store(bf16 *p, const float (&v)[1]) { from_f32(*p, v[0]); }
static __device__ __forceinline__ void store(float *p, const float (&v)[4]) {
    *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
}
static __device__ __forceinline__ void store(float *p, const float (&v)[8]) {
    ((float4 *)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4 *)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
static __device__ __forceinline__ void store(bf16 *p, const float (&v)[8]) {
    *(uint4 *)p =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

/* p[k] = v[k] + beta * p[k]; beta 0 does not read. */
template <int N, class T> static __device__ __forceinline__ void put(T *p, float (&v)[N], float beta) {
    if (beta != 0) {
        float old[N];
        load(old, p);
        for (int k = 0; k < N; k++) v[k] += beta * old[k];
    }
    store(p, v);
}

/* The rows and the groups of a row that a thread takes in a block of block_for_rows. */
#define FOR_ROWS(row, rows)                                                              \
    for (int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; row < (rows);     \
         row += (int64_t)gridDim.x * blockDim.y)
#define FOR_GROUPS(c, N, C) for (int64_t c = (int64_t)threadIdx.x * N; c < (C); c += (int64_t)blockDim.x * N)
/* The groups of n elements without rows. */
#define FOR_FLAT(i, N, n)                                                                \
    for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N; i < (n);      \
         i += (int64_t)gridDim.x * blockDim.x * N)

/* ---- host side ---- */

/* fn<T>(d, ...) for the type of d's activations. */
#define BY_ELEM(fn, d, ...) ((d)->elem == NB_BF16 ? fn<bf16>(d, __VA_ARGS__) : fn<float>(d, __VA_ARGS__))

/* N for rows of C elements of T at these addresses (NULL: not there). */
template <class T, class... P> static inline int group_of(int64_t C, const P *...p) {
    return C % GROUP<T> == 0 && (((uintptr_t)p % 16 == 0) && ...) ? GROUP<T> : 1;
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

/* out_w[C] = sum over rows of dy * (x - mean) * rstd + beta_w * out_w (mean NULL: 0) and out_b[C] = sum over rows of dy
 * + beta_b * out_b, each unless NULL, always in the same order. dy, x [T,C] of d->elem; takes d->ws. */
extern "C" nb_status NB_GPU(column_sums)(nb_dev *d, float *out_w, float beta_w, float *out_b, float beta_b,
                                         const nb_elem *dy, const nb_elem *x, const float *mean, const float *rstd,
                                         int64_t T, int64_t C);

#endif
