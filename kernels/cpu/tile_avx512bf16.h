/* What the products and attention share where AVX512-BF16 multiplies: the tile of tile_avx512.h, and f32 rows packed as
 * steps, pairs of bf16 that follow each other along k. */
#define NB_TARGET NB_AVX512BF16
#define NB_STEP(sum, x, y) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(y))
#include "kernels/cpu/tile_avx512.h"

/* 16 rows of 32 bf16 as pairs -> 16 steps of 16 rows, at most `steps` of them. */
NB_INLINE NB_TARGET void store_steps(uint32_t *out, int width, __m512i v[16], __mmask16 lanes, int64_t steps) {
    nb_transpose16(v);
    for (int i = 0; i < 16 && i < steps; i++) _mm512_mask_storeu_epi32(out + i * width, lanes, v[i]);
}

/* 16 f32 rows that lie along k: out[k/2][width], of which `lanes` are stored, = pairs of row[r][k]. An odd end is
 * paired with zero. */
NB_INLINE NB_TARGET void pack_16_rows(uint32_t *out, int width, const float *const row[16], __mmask16 lanes,
                                      int64_t kc) {
    for (int64_t k = 0; k < kc; k += 32) {
        __m512i v[16];
        __mmask16 low = nb_first16(kc - k), high = nb_first16(kc - k - 16);
        for (int i = 0; i < 16; i++)
            v[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, row[i] + k + 16),
                                                _mm512_maskz_loadu_ps(low, row[i] + k));
        store_steps(out + k / 2 * width, width, v, lanes, (kc - k + 1) / 2);
    }
}

/* The same of rows src[r]; those behind the last of a panel repeat it, since nobody looks at what comes of them. */
NB_TARGET static void pack_rows(uint32_t *out, int width, const float *src, int64_t ld, int rows, int64_t kc) {
    for (int g = 0; g < width; g += 16) {
        const float *row[16];
        for (int i = 0; i < 16; i++) row[i] = src + (g + i < rows ? g + i : rows - 1) * ld;
        pack_16_rows(out + g, width, row, nb_first16(width - g), kc);
    }
}

/* Interleaves the 16 bf16 in the lower half of `v` with the 16 in its upper half. */
NB_INLINE NB_TARGET __m512i interleave_halves(__m512i v) {
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(order), v);
}

/* One step of up to 16 columns, of which `lanes` are stored: pairs first[c], second[c]. */
NB_INLINE NB_TARGET void pack_pair(uint32_t *out, __mmask16 lanes, __m512 first, __m512 second) {
    _mm512_mask_storeu_epi32(out, lanes, interleave_halves((__m512i)_mm512_cvtne2ps_pbh(second, first)));
}

/* f32 rows that lie across k: out[k/2][width] = pairs src[k][c], src[k+1][c]. */
NB_TARGET static void pack_cols(uint32_t *out, int width, const float *src, int64_t ld, int cols, int64_t kc) {
    for (int64_t k = 0; k < kc; k += 2)
        for (int g = 0; g < width; g += 16) {
            __mmask16 in = nb_first16(cols - g);
            const float *row = src + k * ld + g;
            _mm_prefetch((const char *)(row + NR), _MM_HINT_T0); /* the next panel's: rows are pages apart */
            _mm_prefetch((const char *)(row + ld + NR), _MM_HINT_T0);
            pack_pair(out + k / 2 * width + g, nb_first16(width - g), _mm512_maskz_loadu_ps(in, row),
                      _mm512_maskz_loadu_ps(k + 1 < kc ? in : 0, row + ld));
        }
}
