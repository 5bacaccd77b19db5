/* The levels of kernels/blocks.h, 16 at a time as signed bytes, in what every x86-64 processor has:
 * nb_FORMAT_levels(block, g). Included only by x86 files. */
#ifndef NB_KERNELS_CPU_LEVELS_H
#define NB_KERNELS_CPU_LEVELS_H

#include <emmintrin.h>

#include "kernels/blocks.h"

#define NB_LEVELS static inline __attribute__((always_inline))

NB_LEVELS __m128i nb_levels_load(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

/* Bits shift..shift+n-1 of every byte. */
NB_LEVELS __m128i nb_levels_bits(__m128i v, int shift, int n) {
    return _mm_and_si128(_mm_srl_epi16(v, _mm_cvtsi32_si128(shift)), _mm_set1_epi8((char)((1 << n) - 1)));
}

/* 16 in the bytes whose bit is set, of 16 bits at p. */
NB_LEVELS __m128i nb_levels_fifth(const uint8_t *p) {
    const __m128i bit = _mm_set1_epi64x((long long)0x8040201008040201ull);
    const __m128i v = _mm_unpacklo_epi64(_mm_set1_epi8((char)p[0]), _mm_set1_epi8((char)p[1]));
    return _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(v, bit), bit), _mm_set1_epi8(16));
}

NB_LEVELS __m128i nb_q4_1_levels(const uint8_t *b, int g) { return nb_levels_bits(nb_levels_load(b + 4), 4 * g, 4); }
NB_LEVELS __m128i nb_q4_0_levels(const uint8_t *b, int g) {
    return _mm_sub_epi8(nb_q4_1_levels(b - 2, g), _mm_set1_epi8(8));
}
NB_LEVELS __m128i nb_q5_1_levels(const uint8_t *b, int g) {
    return _mm_or_si128(nb_levels_bits(nb_levels_load(b + 8), 4 * g, 4), nb_levels_fifth(b + 4 + 2 * g));
}
NB_LEVELS __m128i nb_q5_0_levels(const uint8_t *b, int g) {
    return _mm_sub_epi8(nb_q5_1_levels(b - 2, g), _mm_set1_epi8(16));
}
NB_LEVELS __m128i nb_q8_0_levels(const uint8_t *b, int g) { return nb_levels_load(b + 2 + 16 * g); }
NB_LEVELS __m128i nb_q4_k_levels(const uint8_t *b, int g) {
    return nb_levels_bits(nb_levels_load(b + 16 + g / 4 * 32 + g % 2 * 16), g / 2 % 2 * 4, 4);
}
NB_LEVELS __m128i nb_q5_k_levels(const uint8_t *b, int g) {
    const __m128i fifth = nb_levels_bits(nb_levels_load(b + 16 + g % 2 * 16), g / 2, 1);
    return _mm_or_si128(nb_q4_k_levels(b + 32, g), _mm_slli_epi16(fifth, 4));
}
NB_LEVELS __m128i nb_q6_k_levels(const uint8_t *b, int g) {
    const int part = g / 8, quarter = g / 2 % 4, at = g % 2 * 16;
    const __m128i low = nb_levels_bits(nb_levels_load(b + 64 * part + quarter % 2 * 32 + at), quarter / 2 * 4, 4);
    const __m128i high = nb_levels_bits(nb_levels_load(b + 128 + 32 * part + at), 2 * quarter, 2);
    return _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), _mm_set1_epi8(32));
}

#endif
