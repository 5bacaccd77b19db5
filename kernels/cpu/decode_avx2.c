/* Panels of any weight format in f32 with AVX2; f16 by the plain decoder. */
#if defined(__x86_64__)
#include <string.h>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/levels.h"


NB_INLINE NB_AVX2 void store8(float *to, __m128i level, __m256 scale, __m256 minus) {
    __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(level));
    _mm256_storeu_ps(to, _mm256_sub_ps(_mm256_mul_ps(v, scale), minus));
}

/* Values first.. of the flattened matrix, n of them. A group that is wanted in part is copied from the whole. */
#define DECODER(F, f, size, bytes)                                                                                   \
    NB_AVX2 static void decode_##f(float *out, const nb_weight *w, int64_t first, int64_t n) {                          \
        for (int64_t e = first, end = first + n; e < end;) {                                                         \
            const uint8_t *b = (const uint8_t *)w->data + e / size * bytes;                                          \
            const int g = (int)(e % size) / 16, at = (int)(e % 16);                                                  \
            const int64_t some = end - e < 16 - at ? end - e : 16 - at;                                              \
            const nb_block_scale s = nb_##f##_scale(b, g);                                                           \
            const __m256 scale = _mm256_set1_ps(s.scale), minus = _mm256_set1_ps(s.minus);                           \
            const __m128i level = nb_##f##_levels(b, g);                                                             \
            float part[16], *to = some < 16 ? part : out;                                                            \
            store8(to, level, scale, minus);                                                                         \
            store8(to + 8, _mm_unpackhi_epi64(level, level), scale, minus);                                          \
            if (to == part) memcpy(out, part + at, (size_t)some * sizeof *out);                                      \
            out += some, e += some;                                                                                  \
        }                                                                                                            \
    }
NB_BLOCK_FORMATS(DECODER)
#undef DECODER

NB_AVX2 static void decode_bf16(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint16_t *p = (const uint16_t *)w->data + first;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + i)));
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)));
    }
    for (; i < n; i++) out[i] = nb_bf16_to_f32(p[i]);
}

/* 8 of a block's levels, rounded as the weight's dtype wants it. */
NB_INLINE NB_AVX2 __m256 levels8(const nb_nf4 *q, int first, __m256 absmax) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(q->code + first), absmax);
    if (q->dtype == NB_BF16) return nb_round_bf16_avx2(v);
    if (q->dtype == NB_F16) {
        float one[8];
        _mm256_storeu_ps(one, v);
        for (int i = 0; i < 8; i++) one[i] = nb_f16_to_f32(nb_f32_to_f16(one[i]));
        v = _mm256_loadu_ps(one);
    }
    return v;
}

/* A block's 16 levels are two registers: a nibble's upper bit picks one of them, its lower three a lane. */
NB_INLINE NB_AVX2 __m256 level_at(__m256i nibble, __m256 low, __m256 high) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, nibble), _mm256_permutevar8x32_ps(high, nibble),
                            _mm256_castsi256_ps(_mm256_slli_epi32(nibble, 28)));
}

/* 16 values at a time; where fewer are wanted they are copied from the whole. */
NB_AVX2 static void decode_nf4(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint8_t *bytes = w->data;
    const nb_nf4 *q = &w->nf4;
    for (int64_t e = first, end = first + n; e < end;) {
        const int64_t block = e / q->blocksize, stop = (block + 1) * q->blocksize < end ? (block + 1) * q->blocksize : end;
        const __m256 absmax = _mm256_set1_ps(nb_nf4_absmax(q, block));
        const __m256 low = levels8(q, 0, absmax), high = levels8(q, 8, absmax);
        while (e < stop) {
            const int at = (int)(e & 1); /* the second value of its byte */
            const int64_t some = stop - e < 16 - at ? stop - e : 16 - at;
            __m128i b = _mm_setzero_si128();
            if (at + some > 14) b = _mm_loadl_epi64((const __m128i *)(bytes + e / 2));
            else memcpy(&b, bytes + e / 2, (size_t)(at + some + 1) / 2);
            b = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(b, 4), _mm_set1_epi8(15)),
                                  _mm_and_si128(b, _mm_set1_epi8(15)));
            float part[16], *to = some < 16 ? part : out;
            _mm256_storeu_ps(to, level_at(_mm256_cvtepu8_epi32(b), low, high));
            _mm256_storeu_ps(to + 8, level_at(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(b, b)), low, high));
            if (to == part) memcpy(out, part + at, (size_t)some * sizeof *out);
            out += some, e += some;
        }
    }
}

void nb_weight_decode_avx2(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                           int64_t n_cols) {
    static void (*const run[NB_FMT_COUNT])(float *, const nb_weight *, int64_t, int64_t) = {
#define ROW(F, f, size, bytes) [NB_FMT_##F] = decode_##f,
        NB_BLOCK_FORMATS(ROW)
#undef ROW
        [NB_FMT_BF16] = decode_bf16,
        [NB_FMT_NF4] = decode_nf4,
    };
    if (!run[w->format]) nb_weight_decode(out, ld, w, row0, n_rows, col0, n_cols);
    else
        for (int64_t r = 0; r < n_rows; r++) run[w->format](out + r * ld, w, (row0 + r) * w->cols + col0, n_cols);
}
#else
typedef int nb_not_x86;
#endif
