/* Candidates sit in a heap, most likely at the root, so that top-k and top-p sort only as far as they keep. */
#include "generate/sampler.h"

#include <math.h>
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
    bool sure; /* a slightly different total would leave the same */
} kept;

#define ROUNDING 1e-4 /* of a total that was added up elsewhere, in f32: far more than there can be */

static double weight(const nb_sampling *o, double max, float logit) { return exp((logit - max) / o->temperature); }

/* top-k, then top-p over what it left. total: the weight of all, with what is not among the n candidates, roughly;
 * below 0: add it up. */
static kept sorted_filters(nb_sampler *s, const nb_sampling *o, int64_t n, double max, double total) {
    nb_candidate *c = s->cand;
    int64_t heap = n;
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(c, n, i);
    if (o->top_k && o->top_k < n) {
        total = 0;
        for (int64_t k = 0; k < o->top_k; k++) total += weight(o, max, pop(c, &heap).logit);
        for (float last = c[heap].logit; heap > 0 && c[0].logit == last;) total += weight(o, max, pop(c, &heap).logit);
    } else {
        if (total < 0) {
            total = 0;
            for (int64_t i = 0; i < n; i++) total += weight(o, max, c[i].logit);
        }
        if (o->top_p >= 1) return (kept){0, n, max, total, true};
    }
    if (o->top_p >= 1) return (kept){heap, n - heap, max, total, true};
    kept k = {n, 0, max, 0, true};
    double last = 0;
    while (k.first > 0 && (k.n == 0 || k.mass < o->top_p * total)) {
        /* c[heap..n) is sorted; more is popped if needed */
        if (k.first == heap) pop(c, &heap);
        k.first--, k.n++;
        k.mass += last = weight(o, max, c[k.first].logit);
    }
    const double border = o->top_p * total;
    k.sure = k.mass >= border * (1 + ROUNDING) && k.mass - last < border * (1 - ROUNDING);
    return k;
}

/* All filters over cand[0..m), which is in order of id; `total` as above. */
static kept filter_candidates(nb_sampler *s, const nb_sampling *o, int64_t m, double max, double total) {
    kept out = {0, m, max, 0, true};
    if ((o->top_k && o->top_k < m) || o->top_p < 1) {
        out = sorted_filters(s, o, m, max, total);
    } else {
        for (int64_t i = 0; i < m; i++) out.mass += weight(o, max, s->cand[i].logit);
    }
    if (o->min_p > 0) { /* relative to the most likely, whose weight is 1 */
        int64_t left = 0;
        double mass = 0;
        for (int64_t i = out.first; i < out.first + out.n; i++) {
            double w = weight(o, max, s->cand[i].logit);
            if (w < o->min_p) continue;
            s->cand[out.first + left++] = s->cand[i];
            mass += w;
        }
        out.n = left, out.mass = mass;
    }
    return out;
}

/* The first of the greatest; -1 where one is not a finite number. Lanes are the compiler's vectors. */
static int64_t likeliest(const float *x, int64_t n) {
    enum { LANES = 32 };
    float best[LANES], sum[LANES] = {0}, most;
    for (int i = 0; i < LANES; i++) best[i] = -INFINITY;
    for (int64_t v = 0; v < n; v += LANES)
        for (int i = 0; i < (n - v < LANES ? (int)(n - v) : LANES); i++) {
            best[i] = x[v + i] > best[i] ? x[v + i] : best[i];
            sum[i] += 0 * x[v + i]; /* 0, or NaN once there was one or an infinity */
        }
    most = best[0];
    for (int i = 0; i < LANES; i++) {
        if (sum[i] != 0) return -1;
        if (best[i] > most) most = best[i];
    }
    int64_t at = 0;
    while (at < n && x[at] != most) at++;
    return at < n ? at : -1;
}

static nb_status filter(nb_sampler *s, const nb_sampling *o, float *logits, const int32_t *history, int64_t n,
                        kept *out) {
    if (o->repetition_penalty != 1) penalize(s, o->repetition_penalty, logits, history, n);
    int64_t best = o->temperature == 0 ? likeliest(logits, s->vocab) : -1, m = 0;
    if (best >= 0) {
        s->cand[0] = (nb_candidate){logits[best], (int32_t)best};
        *out = (kept){0, 1, logits[best], 1, true};
        return NB_OK;
    }
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
        *out = (kept){0, 1, logits[best], 1, true};
        return NB_OK;
    }
    *out = filter_candidates(s, o, m, logits[best], -1);
    return NB_OK;
}

static int32_t draw(const nb_sampler *s, const nb_sampling *o, kept k, int64_t n, uint64_t sequence) {
    const nb_candidate *c = s->cand + k.first;
    int32_t token = c[0].id;
    if (k.n == 1) return token;
    nb_rng r = nb_rng_open(o->seed, NB_RNG_SAMPLE, sequence << 32 | (uint32_t)n);
    double left = nb_rng_uniform(&r) * k.mass;
    for (int64_t i = 0; i < k.n; i++) { /* rounding may leave a rest: the last candidate with weight takes it */
        double w = weight(o, k.max, c[i].logit);
        if (w > 0) token = c[i].id;
        if ((left -= w) < 0) break;
    }
    return token;
}

nb_status nb_sampler_next(nb_sampler *s, const nb_sampling *o, float *logits, const int32_t *history, int64_t n,
                          uint64_t sequence, int32_t *token) {
    kept k;
    NB_TRY(filter(s, o, logits, history, n, &k));
    *token = draw(s, o, k, n, sequence);
    return NB_OK;
}

/* ---- from the most likely alone ---- */

float nb_sampling_rate(const nb_sampling *o) { return o->temperature > 0 ? (float)(1 / o->temperature) : 1; }

bool nb_sampling_of_top(const nb_sampling *o) {
    bool narrows = o->temperature == 0 || o->top_k > 0 || o->top_p < 1 || o->min_p > 0;
    return narrows && o->repetition_penalty == 1;
}

static int by_id(const void *x, const void *y) {
    const nb_candidate *p = x, *q = y;
    return (p->id > q->id) - (p->id < q->id);
}

/* Is everything that top-k and min-p leave among the candidates? */
static bool has_all(const nb_sampler *s, const nb_sampling *o, const nb_top *top) {
    const float last = top->values[top->n - 1];
    if (top->n == s->vocab || last == -INFINITY) return true;
    if (o->top_k) return o->top_k < top->n && last < top->values[o->top_k - 1]; /* what equals the k-th stays as well */
    return o->top_p >= 1 && o->min_p > 0 && weight(o, top->values[0], last) < o->min_p;
}

void nb_sampler_next_of_top(nb_sampler *s, const nb_sampling *o, const nb_top *top, int64_t n, uint64_t sequence,
                            int32_t *token, bool *sure) {
    *sure = nb_sampling_of_top(o) && isfinite(top->mass);
    *token = top->ids[0];
    if (!*sure || o->temperature == 0) return;
    const bool all = has_all(s, o, top);
    *sure = all || (!o->top_k && o->top_p < 1);
    if (!*sure) return;
    int64_t m = 0;
    for (; m < top->n && top->values[m] > -INFINITY; m++) s->cand[m] = (nb_candidate){top->values[m], top->ids[m]};
    qsort(s->cand, (size_t)m, sizeof *s->cand, by_id);
    const kept k = filter_candidates(s, o, m, top->values[0], all ? -1 : (double)top->mass);
    *sure = all || k.sure;
    if (*sure) *token = draw(s, o, k, n, sequence);
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
