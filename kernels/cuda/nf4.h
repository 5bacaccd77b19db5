/* One value of a frozen weight, in kernels: the definition that kernels/weight.c has for the CPU, bit for bit.
 * A kernel takes the host's descriptor nb_weight (or its nb_nf4) by value; what it points to lies on the device. */
#ifndef NB_KERNELS_CUDA_NF4_H
#define NB_KERNELS_CUDA_NF4_H

#include "kernels/cuda/cuda.h"

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

/* Element e of the flattened matrix, for an output or operand of type T: a bf16 result still has to be rounded. */
template <class T> static __device__ __forceinline__ float weight_value(const nb_weight &w, int64_t e) {
    if (w.format == NB_FMT_F32) return ((const float *)w.data)[e];
    if (w.format == NB_FMT_BF16) return __bfloat162float(((const bf16 *)w.data)[e]);
    if (w.format == NB_FMT_F16) return __half2float(((const __half *)w.data)[e]);
    int byte = ((const uint8_t *)w.data)[e >> 1];
    float absmax = nf4_absmax(w.nf4, e >> nf4_shift(w.nf4.blocksize));
    return nf4_value<T>(w.nf4.code[e & 1 ? byte & 15 : byte >> 4], absmax, w.nf4.dtype);
}

#endif
