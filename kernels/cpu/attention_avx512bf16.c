/* Flash-style attention (Dao et al. 2022) with bf16 operands of its products, forward: attention_avx512bf16.h says how
 * scores lie. Softmax, its maxima and all sums are f32. */
#include "kernels/cpu/attention.h"
#if defined(__x86_64__)
#include "kernels/cpu/attention_avx512bf16.h"

enum { RUN = 4 }; /* panels of lanes a task goes through: each asks for what the next will need */

/* What numerators are relative to follows a lane's largest score only when that is 2^8 times larger: then sums are
 * scaled down. Rounding is relative, so that it does not matter how large numerators are. */
static const float rise = 8;

NB_TILE_TABLE(tiles, 0);

/* One panel of lanes: its queries, what it has summed up, and one block of keys. */
typedef struct panel {
    uint32_t *q, *p; /* [D/2][LANES]; numerators [KEYS/2][LANES] */
    float *o, *s;    /* [D][LANES]; scores [KEYS][LANES] */
    float top[LANES], sum[LANES], keep[LANES];
} panel;

/* 16 lanes from `g` on of a block: scores become numerators, packed as pairs of keys. Not 0 if a lane's top rose: then
 * what was summed up before must shrink by keep. */
NB_INLINE NB_TARGET int softmax_column(panel *w, const keys *b, int g) {
    const __m512 before = _mm512_loadu_ps(w->top + g);
    __m512 best = before, next = before, sum0 = _mm512_setzero_ps(), sum1 = sum0;
    for (int64_t j = b->from; j < b->end; j += 2) {
        best = _mm512_max_ps(_mm512_loadu_ps(w->s + j * LANES + g), best);
        next = _mm512_max_ps(_mm512_loadu_ps(w->s + (j + 1) * LANES + g), next);
    }
    best = _mm512_max_ps(best, next);
    const __mmask16 rose = _mm512_cmp_ps_mask(best, _mm512_add_ps(before, _mm512_set1_ps(rise)), _CMP_GT_OQ);
    const __m512 top = _mm512_mask_blend_ps(rose, before, best);
    for (int64_t j = b->from; j < b->end; j += 2) {
        const __m512 first = exp_2(_mm512_sub_ps(_mm512_loadu_ps(w->s + j * LANES + g), top));
        const __m512 second = exp_2(_mm512_sub_ps(_mm512_loadu_ps(w->s + (j + 1) * LANES + g), top));
        sum0 = _mm512_add_ps(sum0, first), sum1 = _mm512_add_ps(sum1, second);
        _mm512_storeu_si512(w->p + j / 2 * LANES + g, interleave_halves((__m512i)_mm512_cvtne2ps_pbh(second, first)));
    }
    const __m512 keep = exp_2(_mm512_sub_ps(before, top)), sum = _mm512_add_ps(sum0, sum1);
    _mm512_storeu_ps(w->sum + g, _mm512_fmadd_ps(_mm512_loadu_ps(w->sum + g), keep, sum));
    _mm512_storeu_ps(w->top + g, top);
    _mm512_storeu_ps(w->keep + g, keep);
    return rose;
}

/* rows[n][LANES] *= factor[LANES] */
NB_TARGET static void scale_lanes(float *rows, const float *factor, int64_t n) {
    const __m512 low = _mm512_loadu_ps(factor), high = _mm512_loadu_ps(factor + VEC);
    for (int64_t i = 0; i < n; i++, rows += LANES) {
        _mm512_storeu_ps(rows, _mm512_mul_ps(_mm512_loadu_ps(rows), low));
        _mm512_storeu_ps(rows + VEC, _mm512_mul_ps(_mm512_loadu_ps(rows + VEC), high));
    }
}

NB_TARGET static void forward_lanes(const nb_attention *a, const packed *x, const nb_seg *s, int64_t kv, int64_t first,
                                    float *scratch) {
    const int64_t D = a->D, steps = x->steps, pairs = (s->kn + 1) / 2;
    const uint32_t *k = along(x->k, x, s, kv), *v = across(x->v_across, x, s, kv, D);
    panel w = {.q = (uint32_t *)scratch, .p = (uint32_t *)scratch + LANES * steps};
    w.o = scratch + LANES * (steps + KEYS / 2), w.s = w.o + LANES * D;
    lanes l;
    lanes_of(&l, a, s, kv, first);
    pack_lanes(w.q, a->q, &l, D);
    for (int i = 0; i < LANES; i++) w.top[i] = -3e38f, w.sum[i] = 0;
    const int64_t first_block = l.begin / KEYS, blocks = (l.end + KEYS - 1) / KEYS - first_block;
    for (int64_t n = 0; n < blocks; n++) {
        const int64_t j0 = (first_block + n) * KEYS;
        const keys b = keys_of(&l, s, j0);
        fetch_lanes(a->o, a, s, kv, first, 1, n, blocks);
        fetch_lanes(a->q, a, s, kv, first + LANES, 1, n, blocks);
        times_lanes(tiles, w.s, b.from, b.to, k + j0 * steps, steps, 0, w.q, steps, score_factor(a), 0);
        if (b.mask || a->cap > 0) edit_scores(w.s, &b, &l, a->cap);
        const bool rose = (softmax_column(&w, &b, 0) | softmax_column(&w, &b, VEC)) != 0;
        if (rose && n > 0) scale_lanes(w.o, w.keep, D);
        times_lanes(tiles, w.o, 0, D, v, pairs, (j0 + b.from) / 2, w.p + b.from / 2 * LANES, (b.end - b.from) / 2, 1,
                    n > 0 ? 1 : 0);
    }
    for (int64_t i = 0; a->lse && i < l.n; i++) a->lse[l.place[i]] = w.top[i] * ln_2 + logf(w.sum[i]);
    for (int i = 0; i < LANES; i++) w.sum[i] = 1 / w.sum[i];
    scatter_lanes(a->o, 0, w.sum, w.o, &l, D);
}

static void forward(const nb_attention *a, const nb_seg *segs, int64_t n_segs, int64_t Tk, void *shared,
                    void *scratch) {
    packed x = {.rows = Tk, .steps = (a->D + 1) / 2, .k = shared};
    x.v_across = x.k + a->KV * Tk * x.steps;
    for (int64_t b = 0; b < n_segs; b++)
        if (!nb_attention_decodes(segs + b)) pack_segment(a, &x, segs + b);
#pragma omp barrier
    for (int64_t b = 0; b < n_segs; b++) {
        const nb_seg *s = segs + b;
        const int64_t lanes_all = s->qn * (a->H / a->KV), runs = (lanes_all + RUN * LANES - 1) / (RUN * LANES);
        if (nb_attention_decodes(s)) continue;
#pragma omp for schedule(dynamic) nowait
        for (int64_t n = 0; n < a->KV * runs; n++) { /* head by head, the runs with most keys first */
            const int64_t first = (runs - 1 - n % runs) * RUN * LANES, end = smaller(lanes_all, first + RUN * LANES);
            for (int64_t i = first; i < end; i += LANES) forward_lanes(a, &x, s, n / runs, i, scratch);
        }
    }
}

const nb_attention_bf16 nb_attention_avx512bf16 = {nb_attention_bf16_shared, nb_attention_bf16_scratch, forward,
                                                   nb_attention_bf16_bwd};
#else
typedef int nb_not_x86;
#endif
