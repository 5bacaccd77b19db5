/* Checks of the row top_logits: tests/rows.h. */
#include <math.h>
#include <stdlib.h>

#include "tests/rows.h"

enum kind { PLAIN, TIES, SAME, MASKED, HUGE_LOGITS, STRIPE };

typedef struct top_case {
    int64_t n, V, K;
    enum kind kind;
    float rate;
} top_case;

typedef struct pair {
    float logit;
    int32_t id;
} pair;

static int by_rank(const void *x, const void *y) {
    const pair *p = x, *q = y;
    return p->logit != q->logit ? (p->logit < q->logit ? 1 : -1) : (p->id > q->id) - (p->id < q->id);
}

static float *draw_logits(nb_rowtest *t, const top_case *c) {
    float *x = rows_draw(t, c->n * c->V, c->kind == HUGE_LOGITS ? 1e4 : 8, NB_F32);
    for (int64_t i = 0; i < c->n * c->V; i++) {
        if (c->kind == TIES) x[i] = rintf(x[i]);
        if (c->kind == SAME) x[i] = i % 3 ? -0.0f : 0.0f;
        if (c->kind == MASKED && i % c->V != c->V / 2) x[i] = i % 5 ? -INFINITY : x[i] - 100;
        if (c->kind == STRIPE && i % c->V / 4 % 1024 < 240) x[i] += 100; /* the largest belong to few threads */
    }
    return x;
}

static void top(nb_rowtest *t, const void *arg) {
    const top_case *c = arg;
    const int64_t n = c->n, V = c->V, K = c->K;
    float *x = draw_logits(t, c), *logits = rows_put(t, x, n * V, NB_F32), *values = rows_out(t, n * K, NB_F32),
          *mass = rows_out(t, n, NB_F32);
    int32_t *ids = rows_out(t, n * K, NB_I32);
    rows_ok(t, t->d->k->top_logits(t->d, values, ids, mass, logits, n, V, K, c->rate));
    const float *got = rows_get(t, values, n * K, NB_F32), *got_mass = rows_get(t, mass, n, NB_F32);
    const int32_t *got_ids = rows_get_ints(t, ids, n * K);
    pair *row = (pair *)(void *)rows_doubles(t, V);
    for (int64_t i = 0; i < n; i++) {
        double want = 0;
        for (int64_t v = 0; v < V; v++) row[v] = (pair){x[i * V + v], (int32_t)v};
        qsort(row, (size_t)V, sizeof *row, by_rank);
        for (int64_t v = V - 1; v >= 0; v--) want += exp(((double)row[v].logit - row[0].logit) * (double)c->rate);
        for (int64_t k = 0; k < K; k++)
            rows_expect(t, got[i * K + k] == row[k].logit && got_ids[i * K + k] == row[k].id,
                        "row %lld, place %lld: logit %.9g of %d, wanted %.9g of %d", (long long)i, (long long)k,
                        (double)got[i * K + k], got_ids[i * K + k], (double)row[k].logit, row[k].id);
        rows_expect(t, fabs(got_mass[i] - want) <= 1e-5 * want, "row %lld: mass %.9g, wanted %.9g", (long long)i,
                    (double)got_mass[i], want);
    }
}

/* What cannot be drawn from has no mass. */
static void no_mass(nb_rowtest *t, const void *arg) {
    (void)arg;
    enum { N = 4, V = 2001, K = 8 };
    float *x = rows_draw(t, N * V, 5, NB_F32);
    x[1500] = NAN;
    x[V + 77] = INFINITY;
    for (int i = 0; i < V; i++) x[2 * V + i] = -INFINITY;
    float *logits = rows_put(t, x, N * V, NB_F32), *values = rows_out(t, N * K, NB_F32), *mass = rows_out(t, N, NB_F32);
    int32_t *ids = rows_out(t, N * K, NB_I32);
    rows_ok(t, t->d->k->top_logits(t->d, values, ids, mass, logits, N, V, K, 1));
    const float *got = rows_get(t, mass, N, NB_F32);
    for (int i = 0; i < 3; i++) rows_expect(t, isnan(got[i]), "row %d has a mass of %g", i, (double)got[i]);
    rows_expect(t, isfinite(got[3]), "the row behind has no mass");
}

static const top_case tiny = {2, 5, 5, PLAIN, 1}, odd = {5, 1001, 40, PLAIN, 1.25f}, one = {3, 4099, 1, PLAIN, 1},
                      wide = {2, 128256, 256, PLAIN, 0.5f}, ties = {3, 9001, 50, TIES, 1},
                      same = {2, 30011, 256, SAME, 1}, masked = {3, 7003, 64, MASKED, 1},
                      huge_logits = {2, 5001, 100, HUGE_LOGITS, 1e-3f}, stripe = {1, 32771, 250, STRIPE, 1},
                      thin_stripe = {1, 8191, 250, STRIPE, 1}, most = {1, 257, 256, PLAIN, 1};
static const nb_rowcheck checks[] = {
    {"top_logits/tiny", top, &tiny},     {"top_logits/odd", top, &odd},
    {"top_logits/one", top, &one},       {"top_logits/wide", top, &wide},
    {"top_logits/ties", top, &ties},     {"top_logits/same", top, &same},
    {"top_logits/masked", top, &masked}, {"top_logits/huge", top, &huge_logits},
    {"top_logits/stripe", top, &stripe}, {"top_logits/thin_stripe", top, &thin_stripe},
    {"top_logits/most", top, &most},     {"top_logits/no_mass", no_mass, NULL},
};
const nb_rowfamily rows_sampling = {"sampling", checks, NB_LEN(checks)};
