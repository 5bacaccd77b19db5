/* Dot products along rows of NF4 by AVX512-BF16: the sixteen levels and x are rounded to bf16, and a block's scale, in
 * f32, multiplies the block's sum. */
#if defined(__x86_64__)
#include "kernels/cpu/dots_avx512bf16.h"

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

/* Scales of NF4 that are quantized themselves: what each byte stands for in the last GROUPS groups of 256 blocks that
 * were wanted. A group is long (16384 values), so that this takes less time than scaling every block's byte. */
enum { GROUP = 256, GROUPS = 8 };
typedef struct nf4_scales {
    float of[GROUPS * GROUP]; /* group g's from g % GROUPS * GROUP on */
    int64_t next;             /* groups before this one are there */
} nf4_scales;

NB_INLINE NB_TARGET void need_scales(nf4_scales *s, const nb_nf4 *q, int64_t block) {
    for (; s->next * GROUP <= block; s->next++) {
        const __m512 scale = _mm512_set1_ps(q->nested_absmax[s->next]), offset = _mm512_set1_ps(q->nested_offset);
        float *of = s->of + s->next % GROUPS * GROUP;
        for (int i = 0; i < GROUP; i += 16)
            _mm512_storeu_ps(of + i,
                             _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(q->nested_code + i), scale), offset));
    }
}

/* Scale of a block, among those needed. */
NB_INLINE NB_TARGET __m512 scale_of(const nb_nf4 *q, const nf4_scales *s, bool nested, uint64_t b) {
    return _mm512_set1_ps(nested ? s->of[(b & (GROUPS - 1) * GROUP) + q->absmax_u8[b]] : q->absmax[b]);
}

/* Where COLS rows of NF4 are read. */
typedef struct nf4_rows {
    const nb_nf4 *q;
    const nf4_scales *scales;
    __m512i table; /* 16 levels in bf16, twice: five bits of a 16-bit lane choose one, and no lane needs a mask */
    const uint8_t *data;
    int64_t stride;          /* bytes of a row, */
    uint64_t block, blocks;  /* and its blocks */
} nf4_rows;

/* Adds 128 values of the rows from j0 on, from k on; `half`: their last 64. */
NB_INLINE NB_TARGET void nf4_piece(__m512 all[ROWS][COLS], const nf4_rows *r, int mr, bool nested, bool half, int j0,
                                   int64_t k, const __m512i *x) {
    NB_UNROLL
    for (int j = j0; j < j0 + rows_at_once(mr); j++) {
        const uint8_t *at = r->data + j * r->stride + k / 2;
        const uint64_t b = r->block + (uint64_t)j * r->blocks + (uint64_t)k / 64;
        const __m512i v =
            half ? _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)at)) : _mm512_loadu_si512(at);
        const __m512 scale = _mm512_mask_blend_ps(0xff00, scale_of(r->q, r->scales, nested, b),
                                                  scale_of(r->q, r->scales, nested, half ? b : b + 1));
        __m512 part[ROWS];
        ask_ahead(at, mr, k / 2, r->stride);
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
NB_INLINE NB_TARGET void nf4(int mr, bool nested, nf4_scales *scales, float sum[ROWS][COLS], const nb_product *p,
                             int64_t n0, int cols, const __m512i *x) {
    const nb_nf4 q = p->y->nf4;
    const __m512 level = _mm512_loadu_ps(q.code);
    const nf4_rows r = {.q = &q, .scales = scales, .table = (__m512i)_mm512_cvtne2ps_pbh(level, level),
                        .data = (const uint8_t *)p->y->data + n0 * (p->K / 2), .stride = stride_of(p->K / 2, cols),
                        .block = (uint64_t)(n0 * (p->K / 64)), .blocks = (uint64_t)stride_of(p->K / 64, cols)};
    const int64_t whole = p->K / PIECE * PIECE;
    if (nested) need_scales(scales, &q, (n0 + cols) * (p->K / 64) - 1);
    __m512 all[ROWS][COLS];
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < mr; i++) all[i][j] = _mm512_setzero_ps();
    NB_UNROLL
    for (int j = 0; j < COLS; j += rows_at_once(mr)) {
        const __m512i *at = x;
        for (int64_t k = 0; k < whole; k += PIECE, at += 4 * mr) nf4_piece(all, &r, mr, nested, false, j, k, at);
        if (whole < p->K) nf4_piece(all, &r, mr, nested, true, j, whole, at);
    }
    for (int i = 0; i < mr; i++) add_lanes(sum[i], all[i]);
}

#define NB_NF4(mr)                                                                                                    \
    NB_DOT(plain_##mr, mr, , nf4(mr, false, NULL, here, p, n0 + j, cols, x))                                           \
    NB_DOT(nested_##mr, mr, nf4_scales scales; scales.next = n0 * (p->K / 64) / GROUP,                                 \
           nf4(mr, true, &scales, here, p, n0 + j, cols, x))
NB_NF4(1) NB_NF4(2) NB_NF4(3) NB_NF4(4)

const nb_dots *nb_dots_nf4_avx512bf16(const nb_weight *w) {
    static const nb_dots plain = {pack_by_nibbles, {plain_1, plain_2, plain_3, plain_4}},
                         nested = {pack_by_nibbles, {nested_1, nested_2, nested_3, nested_4}};
    const nb_nf4 *q = &w->nf4;
    if (w->format != NB_FMT_NF4 || q->blocksize != 64 || w->cols % 64) return NULL;
    if (q->absmax) return &plain;
    return q->nested_blocksize == GROUP && COLS * (w->cols / 64) <= (GROUPS - 1) * GROUP ? &nested : NULL;
}
#else
typedef int nb_not_x86;
#endif
