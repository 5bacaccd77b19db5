/* GGUF's formats of blocks with AVX-512: in f32 for any product, 16 rows at a time for those that take columns, and row
 * by row for those that generate. */
#if defined(__x86_64__)
#include <string.h>

#include "kernels/cpu/avx512.h"

#define NB_BLOCK_FN NB_INLINE NB_AVX512
NB_INLINE NB_AVX512 float nb_block_f16(const uint8_t *p) {
    return _mm_cvtss_f32(_mm_maskz_cvtph_ps(1, _mm_cvtsi32_si128(p[0] | p[1] << 8)));
}
#include "kernels/cpu/levels.h"

/* 16 levels as values. */
NB_INLINE NB_AVX512 __m512 values(__m128i level, nb_block_scale s) {
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(level)), _mm512_set1_ps(s.scale));
    return _mm512_sub_ps(v, _mm512_set1_ps(s.minus));
}

/* A format decoded: values first.. of the flattened matrix, n of them. */
#define DECODER(F, f, size, bytes)                                                                                   \
    NB_AVX512 static void decode_##f(float *out, const nb_weight *w, int64_t first, int64_t n) {                     \
        for (int64_t e = first - first % 16, end = first + n; e < end; e += 16) {                                    \
            const uint8_t *b = (const uint8_t *)w->data + e / size * bytes;                                          \
            const int g = (int)(e % size) / 16;                                                                      \
            const __mmask16 m = nb_first16(end - e) & (uint16_t)(e < first ? 0xffffu << (first - e) : 0xffffu);      \
            _mm512_mask_storeu_ps(out + (e - first), m, values(nb_##f##_levels(b, g), nb_##f##_scale(b, g)));        \
        }                                                                                                            \
    }
NB_BLOCK_FORMATS(DECODER)
#undef DECODER

/* ---- 16 rows at a time ---- */

NB_INLINE NB_AVX512 __m512i both(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
NB_INLINE NB_AVX512 __m256i load32(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
NB_INLINE NB_AVX512 __m512i load64(const uint8_t *p) { return _mm512_loadu_si512(p); }
NB_INLINE NB_AVX512 __m512i mask_bytes(__m512i v, int bits) {
    return _mm512_and_si512(v, _mm512_set1_epi8((char)((1 << bits) - 1)));
}

/* The 8 scales and minima of a block of Q4_K or Q5_K: bytes as kernels/blocks.h has them, to 16 floats. */
NB_INLINE NB_AVX512 __m512 k_scales(const uint8_t *b) {
    uint32_t word[3], out[4];
    memcpy(word, b + 4, sizeof word);
    out[0] = word[0] & 0x3f3f3f3fu, out[1] = (word[2] & 0x0f0f0f0fu) | (word[0] >> 6 & 0x03030303u) << 4;
    out[2] = word[1] & 0x3f3f3f3fu, out[3] = (word[2] >> 4 & 0x0f0f0f0fu) | (word[1] >> 6 & 0x03030303u) << 4;
    const __m512 bytes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)out)));
    return _mm512_mul_ps(bytes, _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(nb_block_f16(b)),
                                                     _mm512_set1_ps(nb_block_f16(b + 2))));
}

/* 64 values of chunk c from the nibbles of one block. */
NB_INLINE NB_AVX512 __m512i k_nibbles(const uint8_t *nibbles, int c) {
    const __m256i v = load32(nibbles + 32 * c);
    return mask_bytes(both(v, _mm256_srli_epi16(v, 4)), 4);
}

/* row_FORMAT: levels of 256 values of a row, and its scales as nb_gathered has them in a lane. */
NB_INLINE NB_AVX512 __m512 row_q4_k(__m512i level[4], const uint8_t *b, int units) {
    (void)units; /* 8: a block */
    for (int c = 0; c < 4; c++) level[c] = k_nibbles(b + 16, c);
    return k_scales(b);
}

NB_INLINE NB_AVX512 __m512 row_q5_k(__m512i level[4], const uint8_t *b, int units) {
    (void)units; /* 8: a block */
    const __m256i v = load32(b + 16);
    for (int c = 0; c < 4; c++) {
        const __m512i bits = both(_mm256_srl_epi16(v, _mm_cvtsi32_si128(2 * c)),
                                  _mm256_srl_epi16(v, _mm_cvtsi32_si128(2 * c + 1)));
        level[c] = _mm512_or_si512(k_nibbles(b + 48, c), _mm512_slli_epi16(mask_bytes(bits, 1), 4));
    }
    return k_scales(b);
}

NB_INLINE NB_AVX512 __m512 row_q6_k(__m512i level[4], const uint8_t *b, int units) {
    (void)units; /* 8: a block */
    for (int c = 0; c < 4; c++) {
        const __m256i pairs = load32(b + 128 + c / 2 * 32);
        const __m512i low = _mm512_srl_epi16(load64(b + c / 2 * 64), _mm_cvtsi32_si128(c % 2 * 4));
        const __m512i high = both(_mm256_srl_epi16(pairs, _mm_cvtsi32_si128(c % 2 * 4)),
                                  _mm256_srl_epi16(pairs, _mm_cvtsi32_si128(c % 2 * 4 + 2)));
        const __m512i v = _mm512_or_si512(mask_bytes(low, 4), _mm512_slli_epi16(mask_bytes(high, 2), 4));
        level[c] = _mm512_sub_epi8(v, _mm512_set1_epi8(32));
    }
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(b + 192)))),
                         _mm512_set1_ps(nb_block_f16(b + 208)));
}

/* The same of a format whose blocks have 32 values. */
#define ROW_OF_UNITS(f, bytes)                                                                                       \
    NB_INLINE NB_AVX512 __m512 row_##f(__m512i level[4], const uint8_t *b, int units) {                              \
        float scale[16];                                                                                             \
        __m256i unit[8];                                                                                             \
        for (int i = 0; i < 8; i++) {                                                                                \
            const uint8_t *p = b + (i < units ? i : 0) * bytes;                                                      \
            const nb_block_scale s = nb_##f##_scale(p, 0);                                                           \
            unit[i] = _mm256_set_m128i(nb_##f##_levels(p, 1), nb_##f##_levels(p, 0));                                \
            scale[i] = s.scale, scale[8 + i] = s.minus;                                                              \
        }                                                                                                            \
        for (int c = 0; c < 4; c++) level[c] = both(unit[2 * c], unit[2 * c + 1]);                                   \
        return _mm512_loadu_ps(scale);                                                                               \
    }
ROW_OF_UNITS(q4_0, 18) ROW_OF_UNITS(q4_1, 20) ROW_OF_UNITS(q5_0, 22) ROW_OF_UNITS(q5_1, 24) ROW_OF_UNITS(q8_0, 34)

enum { AHEAD = 768 }; /* bytes of a row to ask memory for in advance; behind its end, 16 rows on */

#define GATHERER(F, f, size, bytes)                                                                                  \
    NB_AVX512 static void gather_##f(nb_gathered *to, const uint8_t *data, int64_t row_bytes, int rows, int64_t at,  \
                                     int units) {                                                                    \
        __m512i scale[16];                                                                                           \
        const int64_t next = at + AHEAD < row_bytes ? at + AHEAD : at + AHEAD + 15 * row_bytes;                      \
        for (int i = 0; i < 16; i++) {                                                                               \
            const uint8_t *row = data + (i < rows ? i : rows - 1) * row_bytes;                                       \
            __m512i level[4];                                                                                        \
            for (int line = 0; line < 256 / size * bytes; line += 64)                                                \
                _mm_prefetch((const char *)row + next + line, _MM_HINT_T0);                                          \
            scale[i] = _mm512_castps_si512(row_##f(level, row + at, units));                                         \
            for (int c = 0; c < 4; c++) to->level[c][i] = level[c];                                                  \
        }                                                                                                            \
        for (int c = 0; c < 4; c++) nb_transpose16(to->level[c]);                                                    \
        nb_transpose16(scale);                                                                                       \
        for (int i = 0; i < 16; i++) to->scale[i] = _mm512_castsi512_ps(scale[i]);                                   \
        to->fine = NB_FMT_##F == NB_FMT_Q6_K;                                                                        \
    }
NB_BLOCK_FORMATS(GATHERER)
#undef GATHERER

/* ---- one row ---- */

#define READER(F, f, size, bytes)                                                                                    \
    NB_AVX512 static void read_##f(nb_blocks_run *to, const uint8_t *b, int units) {                                 \
        _mm512_store_ps(to->scale, row_##f(to->level, b, units));                                                    \
    }
NB_BLOCK_FORMATS(READER)
#undef READER

nb_blocks_reader *nb_blocks_reader_avx512(nb_format f) {
    static nb_blocks_reader *const read[NB_FMT_COUNT] = {
#define ROW(F, f, size, bytes) [NB_FMT_##F] = read_##f,
        NB_BLOCK_FORMATS(ROW)
#undef ROW
    };
    return read[f];
}

void nb_blocks_decode_avx512(float *out, const nb_weight *w, int64_t first, int64_t n) {
    static void (*const run[NB_FMT_COUNT])(float *, const nb_weight *, int64_t, int64_t) = {
#define ROW(F, f, size, bytes) [NB_FMT_##F] = decode_##f,
        NB_BLOCK_FORMATS(ROW)
#undef ROW
    };
    run[w->format](out, w, first, n);
}

void nb_blocks_gather_avx512(nb_gathered *to, const nb_weight *w, int64_t row0, int rows, int64_t k, int units) {
    static void (*const run[NB_FMT_COUNT])(nb_gathered *, const uint8_t *, int64_t, int, int64_t, int) = {
#define ROW(F, f, size, bytes) [NB_FMT_##F] = gather_##f,
        NB_BLOCK_FORMATS(ROW)
#undef ROW
    };
    const int64_t row_bytes = nb_format_bytes(w->format, w->cols);
    run[w->format](to, (const uint8_t *)w->data + row0 * row_bytes, row_bytes, rows, nb_format_bytes(w->format, k),
                   units);
}
#else
typedef int nb_not_x86;
#endif
