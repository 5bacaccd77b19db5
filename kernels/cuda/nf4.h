/* One value of a frozen weight, in kernels: the definition that kernels/weight.c has for the CPU, bit for bit.
 * A kernel takes the host's descriptor nb_weight (or its nb_nf4) by value; what it points to lies on the device. */
#ifndef NB_KERNELS_CUDA_NF4_H
#define NB_KERNELS_CUDA_NF4_H

#include "kernels/cuda/cuda.h"

#include "kernels/blocks.h" /* in the language of kernels */

/* log2 of a block size, which is a power of two. */
static __device__ __forceinline__ int nf4_shift(int32_t blocksize) { return __popc((unsigned)blocksize - 1); }

/* Scale of block b. With double quantization a product and a sum, each rounded: never one fused multiply-add. */
static __device__ __forceinline__ float nf4_absmax(const nb_nf4 &q, int64_t b) {
    if (q.absmax) return q.absmax[b];
    int64_t nested = q.nested_blocksize == 256 ? b >> 8 : b / q.nested_blocksize;
    return __fadd_rn(__fmul_rn(q.nested_code[q.absmax_u8[b]], q.nested_absmax[nested]), q.nested_offset);
}

/* A level times its block's scale, as the weight's own type held it; T: where it goes. bf16 rounds to itself there. */
template <class T> static __device__ __forceinline__ float nf4_value(float level, float absmax, nb_dtype dtype) {
    float v = __fmul_rn(level, absmax);
    if (dtype == NB_F16) return __half2float(__float2half(v));
    return dtype == NB_BF16 && sizeof(T) == 4 ? __bfloat162float(__float2bfloat16(v)) : v;
}

/* GGUF's formats of blocks for templates: block<F>::scale, ::level, and values and bytes of a block. */
template <nb_format F> struct block;
#define BLOCK(F, f, size, size_bytes)                                                       \
    template <> struct block<NB_FMT_##F> {                                                  \
        enum { VALUES = size, BYTES = size_bytes };                                         \
        NB_BLOCK_FN nb_block_scale scale(const uint8_t *b, int g) { return nb_##f##_scale(b, g); } \
        NB_BLOCK_FN int level(const uint8_t *b, int g, int j) { return nb_##f##_level(b, g, j); } \
    };
NB_BLOCK_FORMATS(BLOCK)
#undef BLOCK

/* v[k] = element e + k of the flattened matrix; they lie in one group of 16. */
template <nb_format F, int N>
static __device__ __forceinline__ void block_values(float (&v)[N], const void *data, int64_t e) {
    const uint8_t *b = (const uint8_t *)data + e / block<F>::VALUES * block<F>::BYTES;
    const int at = (int)(e % block<F>::VALUES), g = at / NB_BLOCK_GROUP, j = at % NB_BLOCK_GROUP;
    const nb_block_scale s = block<F>::scale(b, g);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = nb_block_value(s, block<F>::level(b, g, j + k));
}

/* Element e of the flattened matrix, for an output or operand of type T: a bf16 result still has to be rounded. */
template <class T> static __device__ __forceinline__ float weight_value(const nb_weight &w, int64_t e) {
    if (w.format == NB_FMT_F32) return ((const float *)w.data)[e];
    if (w.format == NB_FMT_BF16) return __bfloat162float(((const bf16 *)w.data)[e]);
    if (w.format == NB_FMT_F16) return __half2float(((const __half *)w.data)[e]);
#define BLOCK(F, f, size, bytes)                   \
    if (w.format == NB_FMT_##F) {                  \
        float v[1];                                \
        block_values<NB_FMT_##F>(v, w.data, e);    \
        return v[0];                               \
    }
    NB_BLOCK_FORMATS(BLOCK)
#undef BLOCK
    int byte = ((const uint8_t *)w.data)[e >> 1];
    float absmax = nf4_absmax(w.nf4, e >> nf4_shift(w.nf4.blocksize));
    return nf4_value<T>(w.nf4.code[e & 1 ? byte & 15 : byte >> 4], absmax, w.nf4.dtype);
}

#endif
