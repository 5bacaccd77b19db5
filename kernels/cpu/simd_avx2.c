/* The inner parts with AVX2 and FMA, 8 floats at a time. Only this file is compiled for these instructions, by
 * pragma, so that no other code can come to use them on a processor without. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define NB_VW 8
#define NB_TILE_VECTORS 2
#define NB_SIMD nb_simd_avx2
#define NB_SIMD_NAME "avx2"
#include "kernels/cpu/simd_rows.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
