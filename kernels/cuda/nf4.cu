/* Frozen weights decoded: NF4, GGUF's blocks, f32, bf16 and f16 to bf16 or f32 (kernels/weight.h has the formats). Bound
 * by bandwidth: a thread writes 16 bytes at a time and a warp 512 in a row; its share of the packed weight is read in a
 * row as well. */
#include "kernels/cuda/nf4.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/vec.h"

namespace {

enum { THREADS = 256, GROUPS = 4 }; /* groups of 16 output bytes a thread: loads in flight before the first is used */

/* out[0..n) = elements first.. of the flattened weight. wide: groups start at whole words and `out` at 16 bytes;
 * else one element at a time. */
template <class T>
__global__ void __launch_bounds__(THREADS) nf4_kernel(T *out, nb_weight w, int64_t first, int64_t n, bool wide) {
    constexpr int V = 16 / sizeof(T); /* values of a group: one word (bf16) or half of one (f32) of packed weights */
    SHARED(float, level, [16]);       /* 16 banks: whatever the nibbles, no two lanes collide */
    if (threadIdx.x < 16) level[threadIdx.x] = w.nf4.code[threadIdx.x];
    __syncthreads();
    const int64_t i0 = (int64_t)blockIdx.x * (THREADS * GROUPS) + threadIdx.x;
    const uint8_t *packed = (const uint8_t *)w.data + first / 2;
    const int shift = nf4_shift(w.nf4.blocksize);
    uint32_t bits[GROUPS];
    float absmax[GROUPS];
    if (!wide || (blockIdx.x + 1) * (int64_t)(THREADS * GROUPS * V) > n) {
        for (int u = 0; u < GROUPS * V; u++) {
            int64_t i = (int64_t)blockIdx.x * (THREADS * GROUPS * V) + u * THREADS + threadIdx.x;
            if (i < n) from_f32(out[i], weight_value<T>(w, first + i));
        }
        return;
    }
#pragma unroll
    for (int u = 0; u < GROUPS; u++) {
        const int64_t i = i0 + u * THREADS;
        bits[u] = V == 8 ? ((const uint32_t *)packed)[i] : ((const uint16_t *)packed)[i];
        absmax[u] = nf4_absmax(w.nf4, (first + i * V) >> shift); /* a group lies in one block */
    }
#pragma unroll
    for (int u = 0; u < GROUPS; u++) {
        float v[8];
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = nf4_value<T>(level[bits[u] >> (j / 2 * 8 + (j & 1 ? 0 : 4)) & 15], absmax[u], w.nf4.dtype);
        uint4 o;
        if (V == 8) {
            o = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
        } else {
            o = make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
        }
        ((uint4 *)out)[i0 + u * THREADS] = o;
    }
}

/* Two elements in one access. */
template <class T> struct pair { /* of 16 bits */
    uint32_t word;
    static __device__ __forceinline__ float of_bits(uint32_t bits) {
        const uint16_t half = (uint16_t)bits;
        T v;
        memcpy((void *)&v, &half, sizeof v);
        return to_f32(v);
    }
    __device__ __forceinline__ float first() const { return of_bits(word); }
    __device__ __forceinline__ float second() const { return of_bits(word >> 16); }
    __device__ __forceinline__ void set(float a, float b) { word = pack_bf16(a, b); }
};
template <> struct pair<float> {
    float2 words;
    __device__ __forceinline__ float first() const { return words.x; }
    __device__ __forceinline__ float second() const { return words.y; }
    __device__ __forceinline__ void set(float a, float b) { words = make_float2(a, b); }
};

/* out[rows, cols], compact, = in with ld elements between rows. wide: every row of both starts at whole pairs. */
template <class T, class S>
__global__ void __launch_bounds__(THREADS) convert_kernel(T *out, const S *in, int64_t ld, int64_t rows, int64_t cols,
                                                          bool wide) {
    const int64_t j0 = (int64_t)blockIdx.x * (THREADS * 2 * GROUPS);
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
        T *to = out + r * cols;
        const S *from = in + r * ld;
        if (!wide || j0 + THREADS * 2 * GROUPS > cols) {
            for (int64_t j = j0 + threadIdx.x; j < cols && j < j0 + THREADS * 2 * GROUPS; j += THREADS)
                from_f32(to[j], to_f32(from[j]));
            continue;
        }
        pair<S> v[GROUPS];
#pragma unroll
        for (int u = 0; u < GROUPS; u++) v[u] = ((const pair<S> *)(from + j0))[u * THREADS + threadIdx.x];
#pragma unroll
        for (int u = 0; u < GROUPS; u++) {
            pair<T> o;
            o.set(v[u].first(), v[u].second());
            ((pair<T> *)(to + j0))[u * THREADS + threadIdx.x] = o;
        }
    }
}

template <class T, class S>
nb_status convert(nb_dev *d, void *out, const void *in, int64_t ld, int64_t rows, int64_t cols) {
    const int64_t per_block = THREADS * 2 * GROUPS;
    const bool wide = cols % 2 == 0 && (ld % 2 == 0 || rows == 1) && (uintptr_t)out % sizeof(pair<T>) == 0 &&
                      (uintptr_t)in % sizeof(pair<S>) == 0;
    dim3 grid((unsigned)((cols + per_block - 1) / per_block), (unsigned)(rows < 65535 ? rows : 65535));
    LAUNCH((convert_kernel<T, S>), grid, THREADS, 0, gpu_stream(d), (T *)out, (const S *)in, ld, rows, cols, wide);
    return gpu_launched(d, "convert");
}

/* The same of a format of blocks, whole blocks: a thread's 16 bytes of output lie in one group of 16 values. */
template <class T, nb_format F>
__global__ void __launch_bounds__(THREADS) blocks_kernel(T *out, nb_weight w, int64_t first, int64_t n) {
    constexpr int V = 16 / sizeof(T);
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    if (i >= n) return;
    float v[V];
    block_values<F>(v, w.data, first + i);
    store(out + i, v);
}

template <class T> nb_status decode_blocks(nb_dev *d, void *out, const nb_weight *w, int64_t first, int64_t n) {
    const int64_t per_block = THREADS * (16 / sizeof(T));
    const unsigned blocks = (unsigned)((n + per_block - 1) / per_block);
    NB_ASSERT(w->cols % nb_format_block(w->format) == 0 && (uintptr_t)w->data % 2 == 0 && (uintptr_t)out % 16 == 0);
#define BLOCK(F, f, size, bytes)                                                                                   \
    if (w->format == NB_FMT_##F)                                                                                   \
        LAUNCH((blocks_kernel<T, NB_FMT_##F>), blocks, THREADS, 0, gpu_stream(d), (T *)out, *w, first, n);
    NB_BLOCK_FORMATS(BLOCK)
#undef BLOCK
    return gpu_launched(d, "decode");
}

/* n elements of the flattened weight from `first` on. */
template <class T> nb_status decode(nb_dev *d, void *out, const nb_weight *w, int64_t first, int64_t n) {
    constexpr int V = 16 / sizeof(T);
    if (w->format == NB_FMT_F32) return convert<T, float>(d, out, (const float *)w->data + first, n, 1, n);
    if (w->format == NB_FMT_BF16) return convert<T, bf16>(d, out, (const bf16 *)w->data + first, n, 1, n);
    if (w->format == NB_FMT_F16) return convert<T, __half>(d, out, (const __half *)w->data + first, n, 1, n);
    if (w->format != NB_FMT_NF4) return decode_blocks<T>(d, out, w, first, n);
    const int64_t per_block = THREADS * GROUPS * V, blocks = (n + per_block - 1) / per_block;
    const bool wide = first % V == 0 && ((uintptr_t)w->data + (uintptr_t)(first / 2)) % (V / 2) == 0 &&
                      (uintptr_t)out % 16 == 0;
    NB_ASSERT(w->nf4.blocksize >= V && (w->nf4.blocksize & (w->nf4.blocksize - 1)) == 0);
    LAUNCH(nf4_kernel<T>, (unsigned)blocks, THREADS, 0, gpu_stream(d), (T *)out, *w, first, n, wide);
    return gpu_launched(d, "decode");
}

} /* namespace */

extern "C" nb_status NB_GPU(decode)(nb_dev *d, void *out, nb_dtype dtype, const nb_weight *w, int64_t row0,
                                    int64_t n_rows) {
    if (n_rows <= 0 || w->cols <= 0) return NB_OK;
    return dtype == NB_BF16 ? decode<bf16>(d, out, w, row0 * w->cols, n_rows * w->cols)
                            : decode<float>(d, out, w, row0 * w->cols, n_rows * w->cols);
}

extern "C" nb_status NB_GPU(round_matrix)(nb_dev *d, void *out, const float *in, int64_t ld, int64_t rows,
                                          int64_t cols) {
    if (rows <= 0 || cols <= 0) return NB_OK;
    if (ld == cols) return convert<bf16, float>(d, out, in, ld * rows, 1, rows * cols);
    return convert<bf16, float>(d, out, in, ld, rows, cols);
}
