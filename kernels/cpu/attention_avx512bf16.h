/* What forward and backward attention with bf16 operands share. Vectors run along lanes, the (query, head) pairs that
 * share a key/value head, numbered query by query: scores are held transposed, [keys, lanes], so that the softmax of a
 * query is a column. They come in tiles of MR keys by NR lanes (tile_avx512.h), and of a block of keys only the tiles
 * that some lane sees are computed. Blocks of keys start at multiples of KEYS from a segment's first key: a query's
 * result does not depend on the queries beside it. Exponents are of 2. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/tile_avx512bf16.h"

enum {
    LANES = NR,    /* one panel of y */
    KEYS = 8 * MR, /* a block: its scores and those of a panel of lanes, 12 KiB, leave half of the first cache free */
};
static const float log2_e = 1.44269504f, ln_2 = 0.693147181f;

NB_INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
NB_INLINE int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }
NB_INLINE int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* ---- keys and values, packed once and read by all queries ---- */

/* Rows along their channels: a segment's keys in panels [D/2][MR]. Across: channels in panels [kn/2][MR]. NULL: not
 * wanted. Each holds all key/value heads of all segments, at a place that follows from the segment's first key. */
typedef struct packed {
    int64_t rows, steps; /* Tk; pairs of channels */
    uint32_t *k, *v, *k_across, *v_across;
} packed;

NB_INLINE uint32_t *along(uint32_t *x, const packed *p, const nb_seg *s, int64_t kv) {
    return x + (kv * p->rows + s->k0) * p->steps;
}
NB_INLINE uint32_t *across(uint32_t *x, const packed *p, const nb_seg *s, int64_t kv, int64_t D) {
    return x + (kv * p->rows + s->k0) * D;
}

/* n rows of D, from key j0 on, of a segment's head. */
static void pack_along(uint32_t *out, const float *x, int64_t ld, int64_t j0, int64_t n, int64_t D) {
    for (int64_t m = 0; out && m < n; m += MR) {
        const int width = (int)smaller(MR, n - m);
        pack_rows(out + (j0 + m) * ((D + 1) / 2), width, x + m * ld, ld, width, D);
    }
}
static void pack_across(uint32_t *out, const float *x, int64_t ld, int64_t j0, int64_t n, int64_t kn, int64_t D) {
    for (int64_t c = 0; out && c < D; c += MR) {
        const int width = (int)smaller(MR, D - c);
        pack_cols(out + c * ((kn + 1) / 2) + j0 / 2 * width, width, x + c, ld, width, n);
    }
}

/* Shared out among the threads of a parallel region; nobody waits at the end. */
static void pack_segment(const nb_attention *a, const packed *p, const nb_seg *s) {
    const int64_t D = a->D, ld = a->KV * D, blocks = (s->kn + KEYS - 1) / KEYS;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < a->KV * blocks; i++) { /* head after head of the same tokens: their rows lie together */
        const int64_t kv = i % a->KV, j0 = i / a->KV * KEYS, n = smaller(KEYS, s->kn - j0);
        const float *k = a->k + (s->k0 + j0) * ld + kv * D, *v = a->v + (s->k0 + j0) * ld + kv * D;
        if (p->k) pack_along(along(p->k, p, s, kv), k, ld, j0, n, D);
        if (p->v) pack_along(along(p->v, p, s, kv), v, ld, j0, n, D);
        if (p->k_across) pack_across(across(p->k_across, p, s, kv, D), k, ld, j0, n, s->kn, D);
        if (p->v_across) pack_across(across(p->v_across, p, s, kv, D), v, ld, j0, n, s->kn, D);
    }
}

/* ---- lanes and what they see ---- */

/* Lanes of one panel. A lane sees keys lo <= key < hi; keys begin <= key < end are seen by some, all_lo <= key < all_hi
 * by all. Lanes behind the n there are repeat the last one. */
typedef struct lanes {
    int64_t n, begin, end, all_lo, all_hi;
    int64_t place[LANES]; /* token * H + head */
    int32_t lo[LANES], hi[LANES];
} lanes;

/* Lanes first.. of key/value head kv. */
static void lanes_of(lanes *l, const nb_attention *a, const nb_seg *s, int64_t kv, int64_t first) {
    const int64_t G = a->H / a->KV, shift = s->kn - s->qn + 1;
    int64_t query = first / G, head = first % G;
    l->n = smaller(LANES, s->qn * G - first);
    for (int64_t i = 0; i < LANES; i++) {
        l->place[i] = (s->q0 + query) * a->H + kv * G + head;
        l->hi[i] = (int32_t)(query + shift);
        l->lo[i] = (int32_t)(a->window > 0 ? larger(0, query + shift - a->window) : 0);
        if (i + 1 < l->n && ++head == G) query++, head = 0;
    }
    l->begin = l->lo[0], l->all_hi = l->hi[0];
    l->all_lo = l->lo[LANES - 1], l->end = l->hi[LANES - 1];
}

/* Asks memory for part `part` of `parts` of the rows of x, which may be NULL, of `panels` panels of lanes from `first`
 * on, as far as there are any: the heads of a token lie together, but tokens too far apart for the processor to see
 * what comes next. In parts, a block of keys each, since a processor goes on only while few lines are under way. */
NB_INLINE void fetch_lanes(const float *x, const nb_attention *a, const nb_seg *s, int64_t kv, int64_t first,
                           int64_t panels, int64_t part, int64_t parts) {
    const int64_t G = a->H / a->KV, end = smaller(s->qn * G, first + panels * LANES);
    const int64_t begin = first / G, rows = (end + G - 1) / G - begin;
    for (int64_t i = begin + rows * part / parts; x && i < begin + rows * (part + 1) / parts; i++) {
        const float *row = x + ((s->q0 + i) * a->H + kv * G) * a->D;
        for (int64_t c = 0; c < G * a->D; c += VEC) _mm_prefetch((const char *)(row + c), _MM_HINT_T1);
    }
}

/* The lanes' rows of x along their channels: out[D/2][LANES]. */
NB_TARGET static void pack_lanes(uint32_t *out, const float *x, const lanes *l, int64_t D) {
    for (int g = 0; g < LANES; g += VEC) {
        const float *row[VEC];
        for (int i = 0; i < VEC; i++) row[i] = x + l->place[g + i] * D;
        pack_16_rows(out + g, LANES, row, 0xffff, D);
    }
}

/* The way back: y[lane][D] = factor[lane] * x[D][lane] + beta * y. */
NB_TARGET static void scatter_lanes(float *y, float beta, const float *factor, const float *x, const lanes *l,
                                    int64_t D) {
    for (int64_t g = 0; g < l->n; g += VEC)
        for (int64_t d = 0; d < D; d += VEC) {
            const __m512 f = _mm512_loadu_ps(factor + g);
            __m512i v[VEC];
            for (int i = 0; i < VEC; i++)
                v[i] = d + i < D ? _mm512_castps_si512(_mm512_mul_ps(f, _mm512_loadu_ps(x + (d + i) * LANES + g)))
                                 : _mm512_setzero_si512();
            nb_transpose16(v);
            for (int i = 0; i < VEC && g + i < l->n; i++)
                store_sums(y + l->place[g + i] * D + d, (int)smaller(VEC, D - d), _mm512_castsi512_ps(v[i]), 1, beta);
        }
}

/* Keys from .. to-1 of the block that begins at key j0, whole tiles of those there are. No lane sees those from `end`
 * on, a whole number of pairs, which an odd number of keys is filled up to. */
typedef struct keys {
    int64_t j0, from, to, end;
    bool mask; /* not all lanes see all of them, rounded up to pairs */
} keys;

static keys keys_of(const lanes *l, const nb_seg *s, int64_t j0) {
    keys b = {.j0 = j0, .from = larger(0, l->begin - j0) / MR * MR};
    b.to = smaller(smaller(rounded_up(larger(0, l->end - j0), MR), KEYS), s->kn - j0);
    b.end = rounded_up(smaller(l->end - j0, b.to), 2);
    b.mask = j0 + b.from < l->all_lo || j0 + rounded_up(b.to, 2) > l->all_hi;
    return b;
}

/* c[LANES], rows from..to-1 of it, = alpha * x y + beta * c. The rows of x stand in panels of MR from row 0 on, each of
 * `all` steps, of which `steps` from `skip` on count; y[steps][LANES]. */
NB_INLINE void times_lanes(nb_tile *const *tiles, float *c, int64_t from, int64_t to, const uint32_t *x, int64_t all,
                           int64_t skip, const uint32_t *y, int64_t steps, float alpha, float beta) {
    for (int64_t i = from; i < to; i += MR) {
        const int64_t rows = smaller(MR, to - i);
        tiles[MR + rows - 1](steps, x + i * all + skip * rows, y, c + i * LANES, LANES, LANES, alpha, beta);
    }
}

/* ---- scores ---- */

/* 2^x with a relative error of 3e-6, 1 at 0: a least-maximum fit of degree 4 for the fraction. 0 of minus infinity. */
NB_INLINE NB_TARGET __m512 exp_2(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, 1); /* x - floor(x) */
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(0.013426686f), _mm512_set1_ps(0.052242473f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24128021f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69304484f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, x); /* p * 2^floor(x) */
}

/* What the product of a query and a key is multiplied by so that scores are exponents of 2, or with a soft cap the
 * exponents of exp(2x/cap), of which edit_scores makes the former. */
NB_INLINE float score_factor(const nb_attention *a) {
    return a->cap > 0 ? 2 * log2_e * a->scale / a->cap : log2_e * a->scale;
}

/* Caps scores [keys][LANES]; then minus infinity where a lane does not see a key. */
NB_TARGET static void edit_scores(float *s, const keys *b, const lanes *l, float cap) {
    const __m512 one = _mm512_set1_ps(1), two = _mm512_set1_ps(2), top = _mm512_set1_ps(cap * log2_e);
    for (int64_t j = b->from; j < rounded_up(b->to, 2); j++)
        for (int g = 0; g < LANES; g += VEC) {
            __m512 x = _mm512_loadu_ps(s + j * LANES + g);
            if (cap > 0) /* tanh(x) = 1 - 2 / (exp(2x) + 1) */
                x = _mm512_mul_ps(top, _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(exp_2(x), one))));
            const __m512i key = _mm512_set1_epi32((int)(b->j0 + j));
            __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_loadu_si512(l->lo + g));
            seen = _mm512_mask_cmplt_epi32_mask(seen, key, _mm512_loadu_si512(l->hi + g));
            _mm512_storeu_ps(s + j * LANES + g, _mm512_mask_blend_ps(seen, _mm512_set1_ps(-INFINITY), x));
        }
}

/* attention_avx512bf16_bwd.c; the sizes are those of the backward pass, which takes more of both. */
size_t nb_attention_bf16_shared(int64_t Tk, int64_t KV, int64_t D);
size_t nb_attention_bf16_scratch(int64_t D);
void nb_attention_bf16_bwd(const nb_attention *a, float *dk, float beta_k, float *dv, float beta_v, const nb_seg *segs,
                           int64_t n_segs, int64_t Tk, void *shared, void *scratch);
