/* Dot products along the rows of a weight in f32 with AVX2 and FMA. */
#if defined(__x86_64__)
#include "kernels/cpu/avx2.h"

#define NB_TARGET NB_AVX2
#define VEC 8
#define v_decode nb_weight_decode_avx2
typedef __m256 vec;
typedef __m256i words;

NB_INLINE NB_TARGET vec v_zero(void) { return _mm256_setzero_ps(); }
NB_INLINE NB_TARGET vec v_load(const float *p) { return _mm256_loadu_ps(p); }
NB_INLINE NB_TARGET vec v_fma(vec x, vec y, vec sum) { return _mm256_fmadd_ps(x, y, sum); }
NB_INLINE NB_TARGET float v_sum(vec v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* 64 values: rows are whole blocks. */
NB_INLINE NB_TARGET words v_words(const uint8_t *p, int64_t left) {
    (void)left;
    return _mm256_loadu_si256((const __m256i *)p);
}

/* Three bits of a lane choose among eight levels, the fourth, shifted to the lane's end, between the two eights. */
NB_INLINE NB_TARGET vec v_levels(const nb_nf4 *q, words w, int s) {
    const __m256i index = _mm256_srli_epi32(w, 4 * s);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(q->code), index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(q->code + 8), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(w, 28 - 4 * s)));
}

NB_INLINE NB_TARGET vec v_scales(float x, float y) {
    (void)y;
    return _mm256_set1_ps(x);
}

#include "kernels/cpu/dots_f32.h"

const nb_dots *nb_dots_avx2(const nb_weight *w) { return choose(w); }
#else
typedef int nb_not_x86;
#endif
