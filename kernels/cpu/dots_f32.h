/* Dot products along the rows of a weight in f32, for the file that includes this with NB_TARGET (its function
 * attribute), VEC (floats of a vector) and
 *
 *      vec, words                                   VEC floats; VEC * 4 bytes of NF4
 *      v_zero(), v_load(p), v_fma(x, y, sum)
 *      v_sum(v)                                     of all lanes
 *      v_words(p, left), v_levels(q, words, s)      NF4 from p on, of which `left` values are there; the levels that
 *                                                   bits 4s .. 4s+3 of every 32-bit lane stand for
 *      v_scales(x, y)                               x in the lanes of the first 64 values, y in others
 *      v_decode                                     nb_weight_decode
 *
 * It makes `static const nb_dots *choose(const nb_weight *)`. */
#include <string.h>

#include "kernels/cpu/dots.h"

enum { ROWS = NB_DOTS_ROWS, RUN = 8 * VEC /* values of NF4 that are read at a time */, STRIP = 256 };

/* [K rounded up to RUN][rows]: for NF4, vector s of a run is what bits 4s .. 4s+3 of its lanes stand for. Byte b of a
 * row holds values 2b in its upper half and 2b + 1 in its lower one: lane l has, from bit 0 up, 8l + 1, 8l, 8l + 3, ... */
static void pack_by_nibbles(void *out, const float *x, int64_t ldx, int rows, int64_t K) {
    float *to = out;
    for (int64_t k = 0; k < K; k += RUN)
        for (int s = 0; s < 8; s++)
            for (int i = 0; i < rows; i++)
                for (int l = 0; l < VEC; l++) {
                    const int64_t at = k + 8 * l + (s ^ 1);
                    *to++ = at < K ? x[i * ldx + at] : 0;
                }
}

/* [K rounded up to VEC][rows] */
static void pack_in_order(void *out, const float *x, int64_t ldx, int rows, int64_t K) {
    float *to = out;
    for (int64_t k = 0; k < K; k += VEC)
        for (int i = 0; i < rows; i++)
            for (int l = 0; l < VEC; l++) *to++ = k + l < K ? x[i * ldx + k + l] : 0;
}

/* nb_nf4_absmax without a call in the loop. */
NB_INLINE NB_TARGET float scale_of(const nb_nf4 *q, int64_t block) {
    if (q->absmax) return q->absmax[block];
    return q->nested_code[q->absmax_u8[block]] * q->nested_absmax[(uint64_t)block / 256] + q->nested_offset;
}

/* sum[i] of row n of NF4 in whole blocks of 64; mr is a constant wherever this is inlined. */
NB_INLINE NB_TARGET void nf4(int mr, float sum[ROWS], const nb_product *p, int64_t n, const float *x) {
    const nb_nf4 *q = &p->y->nf4;
    const uint8_t *row = (const uint8_t *)p->y->data + n * (p->K / 2);
    const int64_t block = n * (p->K / 64);
    vec all[ROWS];
    for (int i = 0; i < mr; i++) all[i] = v_zero();
    for (int64_t k = 0; k < p->K; k += RUN, x += RUN * mr) {
        const words w = v_words(row + k / 2, p->K - k);
        const int64_t b = block + k / 64;
        const vec scale = v_scales(scale_of(q, b), scale_of(q, b + (VEC == 16 && p->K - k > 64)));
        vec part[ROWS];
        NB_UNROLL
        for (int s = 0; s < 8; s++) {
            const vec level = v_levels(q, w, s);
            NB_UNROLL
            for (int i = 0; i < mr; i++)
                part[i] = v_fma(level, v_load(x + (s * mr + i) * VEC), s ? part[i] : v_zero());
        }
        NB_UNROLL
        for (int i = 0; i < mr; i++) all[i] = v_fma(part[i], scale, all[i]);
    }
    for (int i = 0; i < mr; i++) sum[i] = v_sum(all[i]);
}

/* Of any format. */
NB_INLINE NB_TARGET void decoded(int mr, float sum[ROWS], const nb_product *p, int64_t n, const float *x) {
    _Alignas(64) float y[STRIP] = {0};
    vec all[ROWS];
    for (int i = 0; i < mr; i++) all[i] = v_zero();
    for (int64_t at = 0; at < p->K; at += STRIP) {
        const int64_t left = p->K - at < STRIP ? p->K - at : STRIP;
        v_decode(y, STRIP, p->y, n, 1, at, left);
        for (int64_t k = left; k % VEC; k++) y[k] = 0;
        for (int64_t k = 0; k < left; k += VEC, x += VEC * mr)
            NB_UNROLL
            for (int i = 0; i < mr; i++) all[i] = v_fma(v_load(y + k), v_load(x + i * VEC), all[i]);
    }
    for (int i = 0; i < mr; i++) sum[i] = v_sum(all[i]);
}

#define NB_DOT(function, mr)                                                                                           \
    NB_TARGET static void function##_##mr(float sum[ROWS][NB_DOTS_STRIP], const nb_product *p, int64_t n0, int n,      \
                                          const void *x) {                                                             \
        for (int j = 0; j < n; j++) {                                                                                  \
            float here[ROWS];                                                                                          \
            function(mr, here, p, n0 + j, x);                                                                          \
            for (int i = 0; i < mr; i++) sum[i][j] = here[i];                                                          \
        }                                                                                                              \
    }
NB_DOT(nf4, 1) NB_DOT(nf4, 2) NB_DOT(nf4, 3) NB_DOT(nf4, 4)
NB_DOT(decoded, 1) NB_DOT(decoded, 2) NB_DOT(decoded, 3) NB_DOT(decoded, 4)

static const nb_dots *choose(const nb_weight *w) {
    static const nb_dots blocks = {pack_by_nibbles, {nf4_1, nf4_2, nf4_3, nf4_4}},
                         any = {pack_in_order, {decoded_1, decoded_2, decoded_3, decoded_4}};
    const nb_nf4 *q = &w->nf4;
    if (w->format != NB_FMT_NF4 || q->blocksize != 64 || w->cols % 64) return &any;
    return q->absmax || q->nested_blocksize == 256 ? &blocks : &any;
}
