/* What the files of dot products by AVX512-BF16 share. x is packed as [K / 128][4][rows][32] bf16, zeros behind K. */
#include <string.h>

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/dots.h"

#define NB_TARGET NB_AVX512BF16
enum { ROWS = NB_DOTS_ROWS, PIECE = NB_DOTS_PIECE };
enum { COLS = 4 };     /* rows of the weight at a time: each x that is loaded serves them all */
enum { AHEAD = 2048 }; /* bytes of a row to ask memory for in advance */

NB_INLINE NB_TARGET __m512 dot(__m512 sum, __m512i x, __m512i y) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}

/* 32 values of a row as bf16; behind its end zeros. */
NB_INLINE NB_TARGET __m512i bf16_of(const float *x, int64_t left) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(nb_first16(left - 16), x + 16),
                                        _mm512_maskz_loadu_ps(nb_first16(left), x));
}

/* sum[j] = all lanes of v[j] */
NB_INLINE NB_TARGET void add_lanes(float sum[COLS], const __m512 v[COLS]) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

/* Bytes from one row of the weight to the next; of one row alone it takes COLS copies. */
NB_INLINE int64_t stride_of(int64_t bytes, int cols) { return cols == COLS ? bytes : 0; }

/* Bytes from a place in one of COLS rows to the one that is read AHEAD bytes later: behind the end of the row, COLS rows
 * on. */
NB_INLINE int64_t ahead(int64_t at, int64_t stride) { return at + AHEAD < stride ? AHEAD : AHEAD + (COLS - 1) * stride; }

/* With one row of x, rows of the weight are read one by one, as they lie behind each other: a stream that memory delivers
 * half as fast again as COLS rows at once. With more, x is what would be read too often. */
NB_INLINE int rows_at_once(int mr) { return mr == 1 ? 1 : COLS; }

/* Asks memory for what is read later: of a stream twice, that many bytes in advance, for the second cache and the first. */
enum { FAR = 8192, NEAR = 1024 };
NB_INLINE NB_TARGET void ask_ahead(const void *at, int mr, int64_t in_row, int64_t stride) {
    if (rows_at_once(mr) == 1) _mm_prefetch((const char *)at + FAR, _MM_HINT_T1);
    _mm_prefetch((const char *)at + (rows_at_once(mr) == 1 ? NEAR : ahead(in_row, stride)), _MM_HINT_T0);
}

/* The nb_dot of a call `function`, which leaves in here[mr][cols] the products with rows n0 + j .. of the weight, COLS
 * of them or 1; `before` comes first. mr is a constant wherever such a function is inlined. */
#define NB_DOT(name, mr, before, function)                                                                             \
    NB_TARGET static void name(float sum[ROWS][NB_DOTS_STRIP], const nb_product *p, int64_t n0, int n,                 \
                               const void *x) {                                                                        \
        before;                                                                                                        \
        for (int j = 0, cols; j < n; j += cols) {                                                                      \
            float here[ROWS][COLS];                                                                                    \
            cols = n - j >= COLS ? COLS : 1;                                                                           \
            function;                                                                                                  \
            for (int i = 0; i < mr; i++) memcpy(sum[i] + j, here[i], (size_t)cols * sizeof(float));                    \
        }                                                                                                              \
    }
