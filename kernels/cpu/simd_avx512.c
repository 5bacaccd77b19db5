/* The inner parts with AVX-512, 16 floats at a time. Only this file is compiled for these instructions, by
 * pragma, so that no other code can come to use them on a processor without. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define NB_VW 16
#define NB_TILE_VECTORS 4
#define NB_SIMD nb_simd_avx512
#define NB_SIMD_NAME "avx512"
#include "kernels/cpu/simd_rows.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
