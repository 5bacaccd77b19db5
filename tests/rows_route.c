/* Checks of the rows of a mixture of experts: tests/rows.h. */
#include <math.h>
#include <string.h>

#include "core/mem.h"
#include "tests/rows_data.h"

typedef struct route_case {
    int64_t T, E, k;
    bool renorm, ties, share; /* ties: logits of few values; share: route_bwd gets a dshare */
    float beta;
} route_case;

static void softmax(double *p, const double *x, int64_t E) {
    double max = x[0], sum = 0;
    for (int64_t e = 1; e < E; e++) max = fmax(max, x[e]);
    for (int64_t e = 0; e < E; e++) sum += p[e] = exp(x[e] - max);
    for (int64_t e = 0; e < E; e++) p[e] /= sum;
}

/* How many experts are chosen before expert e. */
static int64_t ahead_of(const double *x, int64_t E, int64_t e) {
    int64_t n = 0;
    for (int64_t f = 0; f < E; f++) n += x[f] > x[e] || (x[f] == x[e] && f < e);
    return n;
}

typedef struct routed {
    double *p, *weights;                           /* [T,E], [T*k] */
    int32_t *tokens, *places, *choices, *offsets;
} routed;

static routed reference(nb_rowtest *t, const route_case *c, const double *x) {
    int64_t T = c->T, E = c->E, k = c->k, row = 0;
    routed r = {rows_doubles(t, T * E), rows_doubles(t, T * k), rows_draw_ids(t, T * k, 1), rows_draw_ids(t, T * k, 1),
                rows_draw_ids(t, T * k, 1), rows_draw_ids(t, E + 1, 1)};
    for (int64_t i = 0; i < T; i++) {
        softmax(r.p + i * E, x + i * E, E);
        for (int64_t e = 0; e < E; e++)
            if (ahead_of(x + i * E, E, e) < k) r.choices[i * k + ahead_of(x + i * E, E, e)] = (int32_t)e;
    }
    for (int64_t e = 0; e < E; e++) {
        r.offsets[e] = (int32_t)row;
        for (int64_t i = 0; i < T * k; i++) {
            if (r.choices[i] != e) continue;
            double sum = 0;
            for (int64_t j = i / k * k; j < i / k * k + k; j++) sum += r.p[i / k * E + r.choices[j]];
            r.weights[row] = r.p[i / k * E + e] / (c->renorm ? sum : 1);
            r.tokens[row] = (int32_t)(i / k);
            r.places[i] = (int32_t)row++;
        }
    }
    r.offsets[E] = (int32_t)row;
    return r;
}

static rows_tensor draw_logits(nb_rowtest *t, const route_case *c) {
    nb_dtype e = t->d->elem;
    float *x = rows_draw(t, c->T * c->E, 4, e);
    for (int64_t i = 0; i < c->T * c->E && c->ties; i++) x[i] = rintf(x[i]);
    rows_tensor r = {rows_put(t, x, c->T * c->E, e), rows_doubles(t, c->T * c->E)};
    for (int64_t i = 0; i < c->T * c->E; i++) r.v[i] = x[i];
    return r;
}

static void same_ints(nb_rowtest *t, const char *what, const int32_t *got, const int32_t *want, int64_t n) {
    const int32_t *x = rows_get_ints(t, got, n);
    for (int64_t i = 0; i < n; i++)
        rows_expect(t, x[i] == want[i], "%s[%lld] = %d, wanted %d", what, (long long)i, x[i], want[i]);
}

static void route(nb_rowtest *t, const void *arg) {
    const route_case *c = arg;
    int64_t n = c->T * c->k;
    rows_tensor x = draw_logits(t, c);
    routed r = reference(t, c, x.v);
    float *weights = rows_out(t, n, NB_F32);
    int32_t *tokens = rows_out(t, n, NB_I32), *places = rows_out(t, n, NB_I32), *choices = rows_out(t, n, NB_I32),
            *offsets = rows_out(t, c->E + 1, NB_I32);
    rows_reserve(t, n, 1);
    rows_ok(t, t->d->k->route(t->d, weights, tokens, places, choices, offsets, x.p, c->T, c->E, c->k, c->renorm));
    same_ints(t, "choices", choices, r.choices, n);
    same_ints(t, "offsets", offsets, r.offsets, c->E + 1);
    same_ints(t, "tokens", tokens, r.tokens, n);
    same_ints(t, "places", places, r.places, n);
    rows_compare(t, "weights", weights, r.weights, n, NB_F32, 2e-6);
}

/* NaN logits choose no expert twice and none that does not exist. */
static void route_nan(nb_rowtest *t, const void *arg) {
    const route_case *c = arg;
    int64_t T = c->T, E = c->E, k = c->k, n = T * k;
    float *x = rows_draw(t, T * E, 4, t->d->elem);
    for (int64_t i = 0; i < T * E; i++)
        if (i % 3 || i / E == 1) x[i] = NAN;
    void *logits = rows_put(t, x, T * E, t->d->elem);
    float *weights = rows_out(t, n, NB_F32);
    int32_t *tokens = rows_out(t, n, NB_I32), *places = rows_out(t, n, NB_I32), *choices = rows_out(t, n, NB_I32),
            *offsets = rows_out(t, E + 1, NB_I32);
    rows_reserve(t, n, 1);
    rows_ok(t, t->d->k->route(t->d, weights, tokens, places, choices, offsets, logits, T, E, k, c->renorm));
    int32_t *got = rows_get_ints(t, choices, n), *at = rows_get_ints(t, places, n), *of = rows_get_ints(t, tokens, n);
    for (int64_t i = 0; i < n; i++) {
        rows_expect(t, got[i] >= 0 && got[i] < E && at[i] >= 0 && at[i] < n, "choice %d at %d", got[i], at[i]);
        if (at[i] >= 0 && at[i] < n) rows_expect(t, of[at[i]] == i / k, "row %d is token %d's", at[i], of[at[i]]);
        for (int64_t j = i / k * k; j < i; j++) rows_expect(t, got[j] != got[i], "expert %d twice", got[i]);
    }
}

static void route_bwd(nb_rowtest *t, const void *arg) {
    const route_case *c = arg;
    int64_t T = c->T, E = c->E, k = c->k, n = T * k;
    nb_dtype elem = t->d->elem;
    rows_tensor x = draw_logits(t, c), dw = rows_input(t, n, 1, NB_F32), ds = rows_input(t, E, 3, NB_F32);
    routed r = reference(t, c, x.v);
    double *want = rows_doubles(t, T * E), *dp = rows_doubles(t, E);
    for (int64_t i = 0; i < T; i++) {
        const double *p = r.p + i * E;
        double sum = 0, mean = 0, all = 0;
        for (int64_t e = 0; e < E; e++) dp[e] = c->share ? ds.v[e] / (double)T : 0;
        for (int64_t j = i * k; j < i * k + k; j++) sum += p[r.choices[j]];
        for (int64_t j = i * k; j < i * k + k; j++) mean += dw.v[r.places[j]] * p[r.choices[j]] / sum;
        for (int64_t j = i * k; j < i * k + k; j++)
            dp[r.choices[j]] += c->renorm ? (dw.v[r.places[j]] - mean) / sum : dw.v[r.places[j]];
        for (int64_t e = 0; e < E; e++) all += p[e] * dp[e];
        for (int64_t e = 0; e < E; e++) want[i * E + e] = p[e] * (dp[e] - all);
    }
    void *dx = rows_target(t, want, T * E, elem, c->beta);
    rows_ok(t, t->d->k->route_bwd(t->d, dx, c->beta, dw.p, c->share ? ds.p : NULL, x.p,
                                  rows_put_ints(t, r.choices, n), rows_put_ints(t, r.places, n), T, E, k, c->renorm));
    rows_compare(t, "dlogits", dx, want, T * E, elem, elem == NB_BF16 ? 4e-3 : 1e-5);
}

static void route_share(nb_rowtest *t, const void *arg) {
    const route_case *c = arg;
    rows_tensor x = draw_logits(t, c);
    routed r = reference(t, c, x.v);
    double *want = rows_doubles(t, c->E);
    for (int64_t i = 0; i < c->T * c->E; i++) want[i % c->E] += r.p[i] / (double)c->T;
    float *share = rows_out(t, c->E, NB_F32), *lse = rows_out(t, c->T, NB_F32);
    rows_ok(t, t->d->k->route_share(t->d, share, lse, x.p, c->T, c->E));
    rows_compare(t, "share", share, want, c->E, NB_F32, 5e-6);
}

static const route_case few = {37, 8, 2, true, false, true, 0}, middle = {301, 60, 4, false, false, false, 1},
                        many = {130, 128, 8, true, false, false, 0}, most = {3, 1000, 32, true, false, true, 1},
                        all = {5, 3, 3, true, false, true, 0}, ties = {64, 9, 3, false, true, true, 1},
                        one = {1, 5, 1, true, false, false, 0};

/* ---- what comes back ---- */

typedef struct size_case {
    int64_t T, C, k;
    float beta;
} size_case;

static void sum_rows(nb_rowtest *t, const void *arg) {
    const size_case *c = arg;
    nb_dtype e = t->d->elem;
    rows_tensor x = rows_input(t, c->T * c->k * c->C, 1, e);
    int32_t *index = rows_draw_ids(t, c->T * c->k, c->T * c->k);
    double *want = rows_doubles(t, c->T * c->C);
    for (int64_t i = 0; i < c->T * c->k; i++)
        for (int64_t j = 0; j < c->C; j++) want[i / c->k * c->C + j] += x.v[index[i] * c->C + j];
    void *y = rows_target(t, want, c->T * c->C, e, c->beta);
    rows_ok(t, t->d->k->sum_rows(t->d, y, x.p, rows_put_ints(t, index, c->T * c->k), c->T, c->k, c->C, c->beta));
    rows_compare(t, "y", y, want, c->T * c->C, e, rows_rounding(e));
}

static void row_dots(nb_rowtest *t, const void *arg) {
    const size_case *c = arg;
    nb_dtype e = t->d->elem;
    rows_tensor x = rows_input(t, c->T * c->C, 1, e), y = rows_input(t, c->T * c->C, 1, e);
    double *want = rows_doubles(t, c->T);
    for (int64_t i = 0; i < c->T * c->C; i++) want[i / c->C] += x.v[i] * y.v[i];
    float *got = rows_target(t, want, c->T, NB_F32, c->beta);
    rows_ok(t, t->d->k->row_dots(t->d, got, x.p, y.p, c->T, c->C, c->beta));
    rows_compare(t, "dots", got, want, c->T, NB_F32, 5e-6);
}

static void gather_words(nb_rowtest *t, const void *arg) {
    const size_case *c = arg;
    int32_t *x = rows_draw_ids(t, c->T, INT32_MAX), *index = rows_draw_ids(t, c->C, c->T),
            *want = rows_draw_ids(t, c->C, 1);
    x[0] = 0x7f81ff81; /* no number in any floating-point type */
    for (int64_t i = 0; i < c->C; i++) want[i] = x[index[i]];
    void *y = rows_out(t, c->C, NB_I32);
    rows_ok(t, t->d->k->gather_words(t->d, y, (uint32_t *)rows_put_ints(t, x, c->T), rows_put_ints(t, index, c->C), c->C));
    same_ints(t, "words", y, want, c->C);
}

static void sigmoid(nb_rowtest *t, const void *arg) {
    const size_case *c = arg;
    nb_dtype e = t->d->elem;
    rows_tensor x = rows_input(t, c->T, 20, e), dy = rows_input(t, c->T, 1, NB_F32);
    double *want = rows_doubles(t, c->T), *dx = rows_doubles(t, c->T);
    for (int64_t i = 0; i < c->T; i++) {
        want[i] = 1 / (1 + exp(-x.v[i]));
        dx[i] = dy.v[i] * want[i] * (1 - want[i]);
    }
    float *y = rows_out(t, c->T, NB_F32);
    void *got = rows_target(t, dx, c->T, e, c->beta);
    rows_ok(t, t->d->k->sigmoid_fwd(t->d, y, x.p, c->T));
    rows_ok(t, t->d->k->sigmoid_bwd(t->d, got, c->beta, dy.p, y, c->T));
    rows_compare(t, "y", y, want, c->T, NB_F32, 2e-6);
    rows_compare(t, "dx", got, dx, c->T, e, e == NB_BF16 ? 4e-3 : 5e-6);
}

static const size_case wide = {33, 512, 2, 0}, odd = {7, 131, 3, 1}, single = {1, 1, 1, 0}, tall = {700, 8, 8, 1};

static const nb_rowcheck checks[] = {
    {"route/few", route, &few},           {"route/middle", route, &middle},         {"route/many", route, &many},
    {"route/most", route, &most},         {"route/all", route, &all},               {"route/ties", route, &ties},
    {"route/one", route, &one},           {"route/nan", route_nan, &middle},        {"route/nan_renorm", route_nan, &few},
    {"route_bwd/few", route_bwd, &few},   {"route_bwd/middle", route_bwd, &middle}, {"route_bwd/many", route_bwd, &many},
    {"route_bwd/most", route_bwd, &most}, {"route_bwd/all", route_bwd, &all},       {"route_bwd/ties", route_bwd, &ties},
    {"route_share/few", route_share, &few}, {"route_share/middle", route_share, &middle},
    {"route_share/most", route_share, &most}, {"sum_rows/wide", sum_rows, &wide},   {"sum_rows/odd", sum_rows, &odd},
    {"sum_rows/one", sum_rows, &single},  {"sum_rows/tall", sum_rows, &tall},       {"row_dots/wide", row_dots, &wide},
    {"row_dots/odd", row_dots, &odd},     {"row_dots/one", row_dots, &single},      {"gather_words/odd", gather_words, &odd},
    {"gather_words/tall", gather_words, &tall}, {"sigmoid/wide", sigmoid, &wide},   {"sigmoid/tall", sigmoid, &tall},
};
const nb_rowfamily rows_route = {"route", checks, NB_LEN(checks)};
