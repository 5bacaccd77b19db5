/* What the AVX2 kernels share, and the AVX-512 kernels with them. Included only by their files. */
#ifndef NB_KERNELS_CPU_AVX2_H
#define NB_KERNELS_CPU_AVX2_H

#include <immintrin.h>

#include "kernels/weight.h"

/* These files are compiled for any x86-64 processor; only the functions so marked use AVX2 and FMA, and run only where
 * nb_cpu_get() found them. */
#define NB_AVX2 __attribute__((target("avx2,fma")))
#define NB_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define NB_UNROLL _Pragma("unroll")
#else
#define NB_UNROLL _Pragma("GCC unroll 16")
#endif

/* Rounds to bf16 and back, to nearest even; NaN stays NaN. */
NB_INLINE NB_AVX2 __m256 nb_round_bf16_avx2(__m256 f) {
    __m256i u = _mm256_castps_si256(f), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 quiet = _mm256_or_ps(f, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
    __m256 v = _mm256_blendv_ps(_mm256_castsi256_ps(r), quiet, _mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)));
}

/* nb_weight_decode with AVX2 (decode_avx2.c). */
void nb_weight_decode_avx2(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                           int64_t n_cols);

#endif
