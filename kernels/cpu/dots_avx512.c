/* Dot products along the rows of a weight in f32 with AVX-512. */
#if defined(__x86_64__)
#include "kernels/cpu/avx512.h"

#define NB_TARGET NB_AVX512
#define VEC 16
#define v_decode nb_weight_decode_avx512
typedef __m512 vec;
typedef __m512i words;

NB_INLINE NB_TARGET vec v_zero(void) { return _mm512_setzero_ps(); }
NB_INLINE NB_TARGET vec v_load(const float *p) { return _mm512_loadu_ps(p); }
NB_INLINE NB_TARGET vec v_fma(vec x, vec y, vec sum) { return _mm512_fmadd_ps(x, y, sum); }
NB_INLINE NB_TARGET float v_sum(vec v) { return _mm512_reduce_add_ps(v); }

/* 128 values, or the last 64. */
NB_INLINE NB_TARGET words v_words(const uint8_t *p, int64_t left) {
    return _mm512_maskz_loadu_epi8(left < 128 ? 0xffffffffu : ~0ull, p);
}

/* Four bits of a lane choose one of 16 levels; what is above them does not count. */
NB_INLINE NB_TARGET vec v_levels(const nb_nf4 *q, words w, int s) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(w, 4 * (unsigned)s), _mm512_loadu_ps(q->code));
}

NB_INLINE NB_TARGET vec v_scales(float x, float y) {
    return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(x), _mm512_set1_ps(y));
}

#include "kernels/cpu/dots_f32.h"

const nb_dots *nb_dots_avx512(const nb_weight *w) { return choose(w); }
#else
typedef int nb_not_x86;
#endif
