/* Dot products along the rows of a weight by AVX512-BF16: x is rounded to bf16, and so are the weight's values, except
 * that of NF4 the sixteen levels are rounded, and a block's scale, in f32, multiplies the block's sum. */
#include "kernels/cpu/dots.h"
#if defined(__x86_64__)
#include <string.h>

#include "kernels/cpu/avx512.h"

#define NB_TARGET NB_AVX512BF16
enum { ROWS = NB_DOTS_ROWS, PIECE = NB_DOTS_PIECE };
enum { COLS = 4 }; /* rows of the weight at a time: each x that is loaded serves them all */
enum { AHEAD = 4096 }; /* bytes of the weight to ask memory for in advance: rows follow each other */

NB_INLINE NB_TARGET __m512 dot(__m512 sum, __m512i x, __m512i y) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}

/* ---- x: [K / 128][4][rows][32] bf16, zeros behind K ---- */

/* 32 values of a row as bf16; behind its end zeros. */
NB_INLINE NB_TARGET __m512i bf16_of(const float *x, int64_t left) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(nb_first16(left - 16), x + 16),
                                        _mm512_maskz_loadu_ps(nb_first16(left), x));
}

NB_TARGET static void pack_in_order(void *out, const float *x, int64_t ldx, int rows, int64_t K) {
    __m512i *to = out;
    for (int64_t k = 0; k < (K + PIECE - 1) / PIECE * PIECE; k += 32)
        for (int i = 0; i < rows; i++) _mm512_store_si512(to++, bf16_of(x + i * ldx + k, K - k));
}

/* For NF4. 64 bytes of a row are 128 values, of which byte b holds 2b in its upper half and 2b + 1 in its lower one:
 * 16-bit lane l of them holds, from bit 0 up, values 4l + 1, 4l, 4l + 3, 4l + 2. Vector j of a piece is what the lanes'
 * bits 4j .. 4j+3 stand for. */
NB_TARGET static void pack_by_nibbles(void *out, const float *x, int64_t ldx, int rows, int64_t K) {
    static const int at[4] = {1, 0, 3, 2};
    __m512i *to = out;
    uint16_t first[32];
    for (int l = 0; l < 32; l++) first[l] = (uint16_t)(4 * l % 64);
    const __m512i every4th = _mm512_loadu_si512(first);
    for (int64_t k = 0; k < K; k += PIECE, to += 4 * rows)
        for (int i = 0; i < rows; i++) {
            const float *row = x + i * ldx + k;
            __m512i v[4];
            for (int j = 0; j < 4; j++) v[j] = bf16_of(row + 32 * j, K - k - 32 * j);
            for (int j = 0; j < 4; j++) {
                const __m512i lane = _mm512_add_epi16(every4th, _mm512_set1_epi16((short)at[j]));
                const __m512i low = _mm512_permutex2var_epi16(v[0], lane, v[1]);
                const __m512i high = _mm512_permutex2var_epi16(v[2], lane, v[3]);
                _mm512_store_si512(to + j * rows + i, _mm512_mask_blend_epi16(0xffff0000u, low, high));
            }
        }
}

/* ---- the sums ---- */

/* sum[j] = all lanes of v[j] */
NB_INLINE NB_TARGET void add_lanes(float sum[COLS], const __m512 v[COLS]) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

/* The functions below take `cols` rows of the weight from n0 on, COLS or 1, and mr rows of x, a constant wherever they are
 * inlined. */

/* Bytes from one row of the weight to the next; of one row alone there are COLS copies. */
NB_INLINE int64_t stride_of(int64_t bytes, int cols) { return cols == COLS ? bytes : 0; }

/* Scales of blocks b (lanes 0..7) and c (8..15). */
NB_INLINE NB_TARGET __m512 two_scales(const nb_nf4 *q, bool nested, uint64_t b, uint64_t c) {
    const __mmask16 upper = 0xff00;
    if (!nested) return _mm512_mask_blend_ps(upper, _mm512_set1_ps(q->absmax[b]), _mm512_set1_ps(q->absmax[c]));
    __m512 code = _mm512_mask_blend_ps(upper, _mm512_set1_ps(q->nested_code[q->absmax_u8[b]]),
                                       _mm512_set1_ps(q->nested_code[q->absmax_u8[c]]));
    __m512 scale = _mm512_mask_blend_ps(upper, _mm512_set1_ps(q->nested_absmax[b / 256]),
                                        _mm512_set1_ps(q->nested_absmax[c / 256]));
    return _mm512_add_ps(_mm512_mul_ps(code, scale), _mm512_set1_ps(q->nested_offset));
}

/* Where four rows of NF4 are read. */
typedef struct nf4_rows {
    const nb_nf4 *q;
    __m512i table; /* 16 levels in bf16, twice: five bits of a 16-bit lane choose one, and no lane needs a mask */
    const uint8_t *data;
    int64_t stride;          /* bytes of a row, */
    uint64_t block, blocks;  /* and its blocks */
} nf4_rows;

/* Adds 128 values of each row, from k on; `half`: its last 64. */
NB_INLINE NB_TARGET void nf4_piece(__m512 all[ROWS][COLS], const nf4_rows *r, int mr, bool nested, bool half, int64_t k,
                                   const __m512i *x) {
    NB_UNROLL
    for (int j = 0; j < COLS; j++) {
        const uint8_t *at = r->data + j * r->stride + k / 2;
        const uint64_t b = r->block + (uint64_t)j * r->blocks + (uint64_t)k / 64;
        const __m512i v =
            half ? _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)at)) : _mm512_loadu_si512(at);
        const __m512 scale = two_scales(r->q, nested, b, half ? b : b + 1);
        __m512 part[ROWS];
        _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
        NB_UNROLL
        for (int s = 0; s < 4; s++) {
            const __m512i y = _mm512_permutexvar_epi16(s ? _mm512_srli_epi16(v, 4 * (unsigned)s) : v, r->table);
            NB_UNROLL
            for (int i = 0; i < mr; i++) part[i] = dot(s ? part[i] : _mm512_setzero_ps(), y, x[s * mr + i]);
        }
        NB_UNROLL
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_fmadd_ps(part[i], scale, all[i][j]);
    }
}

/* NF4 in rows of whole blocks of 64. */
NB_INLINE NB_TARGET void nf4(int mr, bool nested, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                             const __m512i *x) {
    const nb_nf4 q = p->y->nf4;
    const __m512 level = _mm512_loadu_ps(q.code);
    const nf4_rows r = {.q = &q, .table = (__m512i)_mm512_cvtne2ps_pbh(level, level),
                        .data = (const uint8_t *)p->y->data + n0 * (p->K / 2), .stride = stride_of(p->K / 2, cols),
                        .block = (uint64_t)(n0 * (p->K / 64)), .blocks = (uint64_t)stride_of(p->K / 64, cols)};
    const int64_t whole = p->K / PIECE * PIECE;
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < whole; k += PIECE, x += 4 * mr) nf4_piece(all, &r, mr, nested, false, k, x);
    if (whole < p->K) nf4_piece(all, &r, mr, nested, true, whole, x);
    for (int i = 0; i < mr; i++) add_lanes(sum[i], all[i]);
}

/* Rows of bf16 or f32. */
NB_INLINE NB_TARGET void plain(int mr, nb_format f, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                               const __m512i *x) {
    const int64_t size = f == NB_FMT_F32 ? 4 : 2, stride = stride_of(p->y->cols * size, cols);
    const char *data = (const char *)p->y->data + n0 * p->y->cols * size;
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p->K; k += 32, x += mr)
        NB_UNROLL
        for (int j = 0; j < COLS; j++) {
            const char *at = data + j * stride + k * size;
            const __m512i y = f == NB_FMT_F32 ? bf16_of((const float *)at, p->K - k)
                                              : _mm512_maskz_loadu_epi16(nb_first32(p->K - k), at);
            _mm_prefetch(at + AHEAD, _MM_HINT_T0);
            NB_UNROLL
            for (int i = 0; i < mr; i++) all[i][j] = dot(all[i][j], y, x[i]);
        }
    for (int i = 0; i < mr; i++) add_lanes(sum[i], all[i]);
}

/* 32 signed bytes as bf16, which holds them exactly. */
NB_INLINE NB_TARGET __m512i bf16_of_bytes(__m256i v) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(v)));
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(v, 1))), low);
}

/* GGUF's blocks: scale * (sum of level * x) - minus * (sum of x), each of 16 or 32 values. */
NB_INLINE NB_TARGET void blocks(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                                const __m512i *x) {
    enum { RUN = 256 };
    const nb_format f = p->y->format;
    const bool fine = f == NB_FMT_Q6_K;
    const bool minus = f == NB_FMT_Q4_1 || f == NB_FMT_Q5_1 || f == NB_FMT_Q4_K || f == NB_FMT_Q5_K;
    nb_blocks_reader *read = nb_blocks_reader_avx512(f);
    const int64_t row_bytes = nb_format_bytes(f, p->K), run_bytes = nb_format_bytes(f, RUN);
    const uint8_t *data = (const uint8_t *)p->y->data + n0 * row_bytes;
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p->K; k += RUN, x += RUN / 32 * mr) {
        const int units = p->K - k < RUN ? (int)(p->K - k) / 32 : RUN / 32;
        for (int j = 0; j < COLS; j++) {
            const uint8_t *at = data + j * stride_of(row_bytes, cols) + k / RUN * run_bytes;
            nb_blocks_run run;
            __m512 here[ROWS];
            for (int i = 0; i < mr; i++) here[i] = all[i][j];
            for (int line = 0; line < run_bytes; line += 64) _mm_prefetch((const char *)at + AHEAD + line, _MM_HINT_T0);
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

NB_INLINE NB_TARGET void nf4_nested(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                                    const __m512i *x) {
    nf4(mr, true, sum, p, n0, cols, x);
}

NB_INLINE NB_TARGET void nf4_plain(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                                   const __m512i *x) {
    nf4(mr, false, sum, p, n0, cols, x);
}

NB_INLINE NB_TARGET void rows_bf16(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                                   const __m512i *x) {
    plain(mr, NB_FMT_BF16, sum, p, n0, cols, x);
}

NB_INLINE NB_TARGET void rows_f32(int mr, float sum[ROWS][COLS], const nb_product *p, int64_t n0, int cols,
                                  const __m512i *x) {
    plain(mr, NB_FMT_F32, sum, p, n0, cols, x);
}

#define NB_DOT(function, mr)                                                                                          \
    NB_TARGET static void function##_##mr(float sum[ROWS][NB_DOTS_STRIP], const nb_product *p, int64_t n0, int n,     \
                                          const void *x) {                                                            \
        for (int j = 0, cols; j < n; j += cols) {                                                                     \
            float here[ROWS][COLS];                                                                                   \
            cols = n - j >= COLS ? COLS : 1;                                                                          \
            function(mr, here, p, n0 + j, cols, x);                                                                   \
            for (int i = 0; i < mr; i++) memcpy(sum[i] + j, here[i], (size_t)cols * sizeof(float));                   \
        }                                                                                                             \
    }
#define NB_DOTS(name, function, packed)                                                                               \
    NB_DOT(function, 1) NB_DOT(function, 2) NB_DOT(function, 3) NB_DOT(function, 4)                                   \
    static const nb_dots name = {packed, {function##_1, function##_2, function##_3, function##_4}};
NB_DOTS(of_nf4, nf4_plain, pack_by_nibbles)
NB_DOTS(of_nested_nf4, nf4_nested, pack_by_nibbles)
NB_DOTS(of_bf16, rows_bf16, pack_in_order)
NB_DOTS(of_f32, rows_f32, pack_in_order)
NB_DOTS(of_blocks, blocks, pack_in_order)
NB_DOTS(of_any, decoded, pack_in_order)

const nb_dots *nb_dots_avx512bf16(const nb_weight *w) {
    const nb_nf4 *q = &w->nf4;
    if (w->format == NB_FMT_NF4 && q->blocksize == 64 && w->cols % 64 == 0) {
        if (q->absmax) return &of_nf4;
        if (q->nested_blocksize == 256) return &of_nested_nf4;
    }
    if (w->format > NB_FMT_NF4) return &of_blocks;
    return w->format == NB_FMT_BF16 ? &of_bf16 : w->format == NB_FMT_F32 ? &of_f32 : &of_any;
}
#else
typedef int nb_not_x86;
#endif
