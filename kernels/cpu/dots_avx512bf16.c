/* Dot products along the rows of a weight by AVX512-BF16: x is rounded to bf16, and so are the weight's values, except
 * those in blocks: their levels are exact in bf16, and a scale, in f32, multiplies the sum of those it belongs to. */
#if defined(__x86_64__)
#include "kernels/cpu/dots_avx512bf16.h"

NB_TARGET static void pack_in_order(void *out, const float *x, int64_t ldx, int rows, int64_t K) {
    __m512i *to = out;
    for (int64_t k = 0; k < (K + PIECE - 1) / PIECE * PIECE; k += 32)
        for (int i = 0; i < rows; i++) _mm512_store_si512(to++, bf16_of(x + i * ldx + k, K - k));
}

/* Adds all of the rows from j0 on: bf16 or f32, K of each, `stride` bytes apart. */
NB_INLINE NB_TARGET void plain_rows(__m512 all[ROWS][COLS], int mr, nb_format f, int j0, const char *data, int64_t stride,
                                    int64_t K, const __m512i *x) {
    const int64_t size = f == NB_FMT_F32 ? 4 : 2;
    for (int64_t k = 0; k < K; k += 32, x += mr)
        NB_UNROLL
        for (int j = j0; j < j0 + rows_at_once(mr); j++) {
            const char *at = data + j * stride + k * size;
            const __m512i y =
                f == NB_FMT_F32 ? bf16_of((const float *)at, K - k) : _mm512_maskz_loadu_epi16(nb_first32(K - k), at);
            ask_ahead(at, mr, k * size, stride);
            NB_UNROLL
            for (int i = 0; i < mr; i++) all[i][j] = dot(all[i][j], y, x[i]);
        }
}

NB_INLINE NB_TARGET void plain(int mr, nb_format f, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                               const __m512i *x) {
    const int64_t row_bytes = p->y->cols * (f == NB_FMT_F32 ? 4 : 2), stride = stride_of(row_bytes, cols);
    const char *data = (const char *)p->y->data + n0 * row_bytes;
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    if (rows_at_once(mr) == COLS) plain_rows(all, mr, f, 0, data, stride, p->K, x);
    else
        NB_UNROLL
        for (int j = 0; j < COLS; j++) plain_rows(all, mr, f, j, data, stride, p->K, x);
    for (int i = 0; i < mr; i++) add_lanes(sum[i], all[i]);
}

/* 32 signed bytes as bf16, which holds them exactly. */
NB_INLINE NB_TARGET __m512i bf16_of_bytes(__m256i v) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(v)));
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(v, 1))), low);
}

/* Q8_0, as an output head in int8 is held: a scale in f16 and 32 signed bytes. */
NB_INLINE NB_TARGET void q8_0(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                              const __m512i *x) {
    enum { BYTES = 34 };
    const int64_t row_bytes = p->K / 32 * BYTES, stride = stride_of(row_bytes, cols);
    const uint8_t *data = (const uint8_t *)p->y->data + n0 * row_bytes;
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    for (int64_t at = 0; at < row_bytes; at += BYTES, x += mr)
        NB_UNROLL
        for (int j = 0; j < COLS; j++) {
            const uint8_t *b = data + j * stride + at;
            int16_t half;
            memcpy(&half, b, sizeof half);
            const __m512 scale = _mm512_cvtph_ps(_mm256_set1_epi16(half));
            const __m512i y = bf16_of_bytes(_mm256_loadu_si256((const __m256i *)(b + 2)));
            _mm_prefetch((const char *)b + ahead(at, stride), _MM_HINT_T0);
            NB_UNROLL
            for (int i = 0; i < mr; i++)
                all[i][j] = _mm512_fmadd_ps(dot(_mm512_setzero_ps(), y, x[i]), scale, all[i][j]);
        }
    for (int i = 0; i < mr; i++) add_lanes(sum[i], all[i]);
}

/* GGUF's other blocks: scale * (sum of level * x) - minus * (sum of x), each of 16 or 32 values. */
NB_INLINE NB_TARGET void blocks(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                                const __m512i *x) {
    enum { RUN = 256 };
    const nb_format f = p->y->format;
    const bool fine = f == NB_FMT_Q6_K;
    const bool minus = f == NB_FMT_Q4_1 || f == NB_FMT_Q5_1 || f == NB_FMT_Q4_K || f == NB_FMT_Q5_K;
    nb_blocks_reader *read = nb_blocks_reader_avx512(f);
    const int64_t row_bytes = nb_format_bytes(f, p->K), stride = stride_of(row_bytes, cols);
    const int64_t run_bytes = nb_format_bytes(f, RUN);
    const uint8_t *data = (const uint8_t *)p->y->data + n0 * row_bytes;
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p->K; k += RUN, x += RUN / 32 * mr) {
        const int units = p->K - k < RUN ? (int)(p->K - k) / 32 : RUN / 32;
        for (int j = 0; j < COLS; j++) {
            const uint8_t *at = data + j * stride + k / RUN * run_bytes;
            nb_blocks_run run;
            __m512 here[ROWS];
            for (int i = 0; i < mr; i++) here[i] = all[i][j];
            for (int line = 0; line < run_bytes; line += 64)
                _mm_prefetch((const char *)at + ahead(k / RUN * run_bytes, stride) + line, _MM_HINT_T0);
            read(&run, at, units);
            for (int u = 0; u < units; u++) {
                const __m512i y = bf16_of_bytes(((const __m256i *)run.level)[u]);
                const __m512 scale = fine ? _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(run.scale[2 * u]),
                                                                 _mm512_set1_ps(run.scale[2 * u + 1]))
                                          : _mm512_set1_ps(run.scale[u]);
                NB_UNROLL
                for (int i = 0; i < mr; i++) {
                    const __m512i xi = x[u * mr + i];
                    here[i] = _mm512_fmadd_ps(dot(_mm512_setzero_ps(), y, xi), scale, here[i]);
                    if (minus)
                        here[i] = _mm512_fnmadd_ps(dot(_mm512_setzero_ps(), ones, xi), _mm512_set1_ps(run.scale[8 + u]),
                                                   here[i]);
                }
            }
            for (int i = 0; i < mr; i++) all[i][j] = here[i];
        }
    }
    for (int i = 0; i < mr; i++) add_lanes(sum[i], all[i]);
}

/* Any format, decoded a piece at a time. */
NB_INLINE NB_TARGET void decoded(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                                 const __m512i *x) {
    enum { STRIP = 256 };
    _Alignas(64) float spare[COLS][STRIP] = {{0}};
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    for (int64_t at = 0; at < p->K; at += STRIP) {
        const int64_t n = p->K - at < STRIP ? p->K - at : STRIP;
        nb_weight_decode_avx512(spare[0], STRIP, p->y, n0, cols, at, n);
        for (int64_t k = 0; k < n; k += 32, x += mr)
            for (int j = 0; j < COLS; j++) {
                const __m512i y = bf16_of(spare[j] + k, n - k);
                for (int i = 0; i < mr; i++) all[i][j] = dot(all[i][j], y, x[i]);
            }
    }
    for (int i = 0; i < mr; i++) add_lanes(sum[i], all[i]);
}

#define NB_FORMATS(mr)                                                                                                 \
    NB_DOT(bf16_##mr, mr, , plain(mr, NB_FMT_BF16, here, p, n0 + j, cols, x))                                          \
    NB_DOT(f32_##mr, mr, , plain(mr, NB_FMT_F32, here, p, n0 + j, cols, x))                                            \
    NB_DOT(q8_0_##mr, mr, , q8_0(mr, here, p, n0 + j, cols, x))                                                        \
    NB_DOT(blocks_##mr, mr, , blocks(mr, here, p, n0 + j, cols, x))                                                    \
    NB_DOT(any_##mr, mr, , decoded(mr, here, p, n0 + j, cols, x))
NB_FORMATS(1) NB_FORMATS(2) NB_FORMATS(3) NB_FORMATS(4)

const nb_dots *nb_dots_avx512bf16(const nb_weight *w) {
    static const nb_dots bf16 = {pack_in_order, {bf16_1, bf16_2, bf16_3, bf16_4}},
                         f32 = {pack_in_order, {f32_1, f32_2, f32_3, f32_4}},
                         bytes = {pack_in_order, {q8_0_1, q8_0_2, q8_0_3, q8_0_4}},
                         in_blocks = {pack_in_order, {blocks_1, blocks_2, blocks_3, blocks_4}},
                         any = {pack_in_order, {any_1, any_2, any_3, any_4}};
    const nb_dots *nf4 = nb_dots_nf4_avx512bf16(w);
    if (nf4) return nf4;
    if (w->format > NB_FMT_NF4) return w->format == NB_FMT_Q8_0 ? &bytes : &in_blocks;
    return w->format == NB_FMT_BF16 ? &bf16 : w->format == NB_FMT_F32 ? &f32 : &any;
}
#else
typedef int nb_not_x86;
#endif
