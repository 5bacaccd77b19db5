/* Candidates sit in a heap, most likely at the root, so that top-k and top-p sort only as far as they keep. */
#include "generate/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/rng.h"

nb_sampling nb_sampling_greedy(void) { return (nb_sampling){.top_p = 1, .repetition_penalty = 1}; }

nb_status nb_sampling_check(const nb_sampling *s) {
    if (!(s->temperature >= 0 && s->temperature <= 1000))
        return nb_fail(NB_EINPUT, "temperature %g: give a number from 0 (always the most likely token) to 1000",
                       s->temperature);
    if (s->top_k < 0) return nb_fail(NB_EINPUT, "top-k %lld: give 1 or more, or 0 for all", (long long)s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return nb_fail(NB_EINPUT, "top-p %g: give a number above 0 up to 1", s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1)) return nb_fail(NB_EINPUT, "min-p %g: give a number from 0 to 1", s->min_p);
    if (!(s->repetition_penalty > 0 && s->repetition_penalty <= 1000))
        return nb_fail(NB_EINPUT, "repetition-penalty %g: give a number above 0 (1 changes nothing)",
                       s->repetition_penalty);
    return NB_OK;
}

void nb_sampler_open(nb_sampler *s, int64_t vocab) {
    *s = (nb_sampler){.vocab = vocab};
    s->cand = nb_calloc((size_t)vocab, sizeof *s->cand);
    s->mark = nb_calloc((size_t)vocab, sizeof *s->mark);
}

void nb_sampler_close(nb_sampler *s) {
    free(s->cand);
    free(s->mark);
    *s = (nb_sampler){0};
}

static void penalize(nb_sampler *s, double penalty, float *logits, const int32_t *history, int64_t n) {
    if (!++s->stamp) memset(s->mark, 0, (size_t)s->vocab * sizeof *s->mark), s->stamp = 1;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= s->vocab || s->mark[id] == s->stamp) continue;
        s->mark[id] = s->stamp;
        logits[id] = (float)(logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty);
    }
}

static bool before(nb_candidate x, nb_candidate y) { return x.logit > y.logit || (x.logit == y.logit && x.id < y.id); }

static void sift(nb_candidate *c, int64_t n, int64_t i) {
    nb_candidate v = c[i];
    for (int64_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && before(c[k + 1], c[k])) k++;
        if (!before(c[k], v)) break;
        c[i] = c[k];
    }
    c[i] = v;
}

/* Pops the heap c[0..*n) once; the popped candidate is stored behind it, so c[all-1], c[all-2], ... are in order. */
static nb_candidate pop(nb_candidate *c, int64_t *n) {
    nb_candidate top = c[0];
    c[0] = c[--*n];
    sift(c, *n, 0);
    c[*n] = top;
    return top;
}

/* What is left to draw from: cand[first..first+n), with weights exp((logit - max) / temperature) adding to mass. */
typedef struct kept {
    int64_t first, n;
    double max, mass;
} kept;

static double weight(const nb_sampling *o, double max, float logit) { return exp((logit - max) / o->temperature); }

/* top-k, then top-p over what it left. */
static kept sorted_filters(nb_sampler *s, const nb_sampling *o, int64_t n, double max) {
    nb_candidate *c = s->cand;
    int64_t heap = n;
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(c, n, i);
    double total = 0;
    if (o->top_k && o->top_k < n) {
        for (int64_t k = 0; k < o->top_k; k++) total += weight(o, max, pop(c, &heap).logit);
        for (float last = c[heap].logit; heap > 0 && c[0].logit == last;) total += weight(o, max, pop(c, &heap).logit);
    } else {
        for (int64_t i = 0; i < n; i++) total += weight(o, max, c[i].logit);
        if (o->top_p >= 1) return (kept){0, n, max, total};
    }
    if (o->top_p >= 1) return (kept){heap, n - heap, max, total};
    kept k = {n, 0, max, 0};
    while (k.first > 0 && (k.n == 0 || k.mass < o->top_p * total)) {
        /* c[heap..n) is sorted; more is popped if needed */
        if (k.first == heap) pop(c, &heap);
        k.first--, k.n++;
        k.mass += weight(o, max, c[k.first].logit);
    }
    return k;
}

static nb_status filter(nb_sampler *s, const nb_sampling *o, float *logits, const int32_t *history, int64_t n,
                        kept *out) {
    if (o->repetition_penalty != 1) penalize(s, o->repetition_penalty, logits, history, n);
    int64_t best = -1, m = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        float x = logits[i];
        if (isnan(x)) return nb_fail(NB_ENUMERIC, "the model's logit of token %lld is not a number: the weights or "
                                     "the adapter are damaged; try --dtype f32", (long long)i);
        if (x == -INFINITY) continue;
        if (best < 0 || x > logits[best]) best = i;
        s->cand[m++] = (nb_candidate){x, (int32_t)i};
    }
    if (best < 0 || logits[best] == INFINITY)
        return nb_fail(NB_ENUMERIC, "the model's logits are infinite: the weights or the adapter are damaged; try "
                       "--dtype f32");
    if (o->temperature == 0) {
        s->cand[0] = (nb_candidate){logits[best], (int32_t)best};
        *out = (kept){0, 1, logits[best], 1};
        return NB_OK;
    }
    double max = logits[best];
    if ((o->top_k && o->top_k < m) || o->top_p < 1) {
        *out = sorted_filters(s, o, m, max);
    } else {
        *out = (kept){0, m, max, 0};
        for (int64_t i = 0; i < m; i++) out->mass += weight(o, max, s->cand[i].logit);
    }
    if (o->min_p > 0) { /* relative to the most likely, whose weight is 1 */
        int64_t left = 0;
        double mass = 0;
        for (int64_t i = out->first; i < out->first + out->n; i++) {
            double w = weight(o, max, s->cand[i].logit);
            if (w < o->min_p) continue;
            s->cand[out->first + left++] = s->cand[i];
            mass += w;
        }
        out->n = left, out->mass = mass;
    }
    return NB_OK;
}

nb_status nb_sampler_next(nb_sampler *s, const nb_sampling *o, float *logits, const int32_t *history, int64_t n,
                          uint64_t sequence, int32_t *token) {
    kept k;
    NB_TRY(filter(s, o, logits, history, n, &k));
    const nb_candidate *c = s->cand + k.first;
    *token = c[0].id;
    if (k.n == 1) return NB_OK;
    nb_rng r = nb_rng_open(o->seed, NB_RNG_SAMPLE, sequence << 32 | (uint32_t)n);
    double left = nb_rng_uniform(&r) * k.mass;
    for (int64_t i = 0; i < k.n; i++) { /* rounding may leave a rest: the last candidate with weight takes it */
        double w = weight(o, k.max, c[i].logit);
        if (w > 0) *token = c[i].id;
        if ((left -= w) < 0) break;
    }
    return NB_OK;
}

nb_status nb_sampler_distribution(nb_sampler *s, const nb_sampling *o, float *logits, const int32_t *history,
                                  int64_t n, double *probability) {
    kept k;
    NB_TRY(filter(s, o, logits, history, n, &k));
    for (int64_t i = 0; i < s->vocab; i++) probability[i] = 0;
    const nb_candidate *c = s->cand + k.first;
    for (int64_t i = 0; i < k.n; i++)
        probability[c[i].id] = k.n == 1 ? 1 : weight(o, k.max, c[i].logit) / k.mass;
    return NB_OK;
}
