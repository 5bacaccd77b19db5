/* Checks of the row xent: tests/rows.h. */
#include <math.h>
#include <string.h>

#include "tests/reference.h"
#include "tests/rows.h"

enum kind { PLAIN, HUGE_LOGITS, MASKED, TIES };

typedef struct xent_case {
    int64_t n, V;
    float cap;
    enum kind kind;
    bool alone;   /* only the loss is wanted */
    bool beside;  /* the logits begin one row further on than dlogits: odd V aligns them differently */
    bool target_first;
} xent_case;

static float *draw_logits(nb_rowtest *t, const xent_case *c, const int32_t *target) {
    int64_t n = c->n, V = c->V;
    float *x = rows_draw(t, n * V, c->kind == HUGE_LOGITS ? 1e4 : 6, NB_F32);
    for (int64_t i = 0; i < n * V; i++) {
        bool is_target = i % V == target[i / V];
        if (c->kind == MASKED && i % 3 && !is_target) x[i] = i % 3 == 1 ? -INFINITY : -3e38f;
        if (c->kind == TIES) x[i] = rintf(x[i] / 4);
    }
    return x;
}

static void xent(nb_rowtest *t, const void *arg) {
    const xent_case *c = arg;
    const int64_t n = c->n, V = c->V;
    const nb_dtype elem = t->d->elem;
    const double tol_grad = elem == NB_BF16 ? 6e-3 : 2e-5;
    int32_t *target = rows_draw_ids(t, n, V), *want_arg = rows_draw_ids(t, n, V);
    if (c->target_first) target[0] = 0, target[n - 1] = (int32_t)V - 1;
    float *x = draw_logits(t, c, target);
    double *x64 = rows_doubles(t, n * V), *want_loss = rows_doubles(t, n), *want_lse = rows_doubles(t, n),
           *want = rows_doubles(t, n * V);
    for (int64_t i = 0; i < n * V; i++) x64[i] = x[i];
    ref_xent(want_loss, want_lse, want_arg, want, x64, target, n, V, c->cap);

    const int64_t skip = c->beside ? V : 0; /* a row of zeros in front */
    float *image = rows_draw(t, skip + n * V, 0, NB_F32);
    memcpy(image + skip, x, (size_t)(n * V) * sizeof *x);
    float *logits = rows_put(t, image, skip + n * V, NB_F32), *loss = rows_out(t, n, NB_F32);
    float *lse = c->alone ? NULL : rows_out(t, n, NB_F32);
    int32_t *argmax = c->alone ? NULL : rows_out(t, n, NB_I32);
    void *dx = c->alone ? NULL : rows_out(t, n * V, elem);
    int32_t *device_target = rows_put_bytes(t, target, (size_t)n * sizeof *target);
    rows_ok(t, t->d->k->xent(t->d, loss, lse, argmax, dx, logits + skip, device_target, n, V, c->cap));
    /* the loss is the difference of numbers as large as the logits */
    const double top = c->kind == HUGE_LOGITS ? 1e4 : 1;
    float *got_loss = rows_get(t, loss, n, NB_F32);
    for (int64_t i = 0; i < n; i++)
        rows_expect(t, fabs(got_loss[i] - want_loss[i]) <= 2e-6 * (top + fabs(want_loss[i])),
                    "loss[%lld] = %.9g, wanted %.9g", (long long)i, (double)got_loss[i], want_loss[i]);
    rows_compare(t, "loss", loss, want_loss, n, NB_F32, 2e-5);
    if (c->alone) return;
    rows_compare(t, "lse", lse, want_lse, n, NB_F32, 2e-5);
    rows_compare(t, "dlogits", dx, want, n * V, elem, tol_grad);
    int32_t *got_arg = rows_get_ints(t, argmax, n);
    for (int64_t i = 0; i < n && c->cap == 0; i++) /* the cap may make equals of different logits */
        rows_expect(t, got_arg[i] == want_arg[i], "argmax[%lld] = %d, wanted %d", (long long)i, got_arg[i],
                    want_arg[i]);
    if (elem != NB_F32) return;
    float *place = (float *)rows_put(t, image, skip + n * V, NB_F32) + skip;
    rows_ok(t, t->d->k->xent(t->d, loss, lse, argmax, place, place, device_target, n, V, c->cap));
    rows_compare(t, "dlogits in the logits' place", place, want, n * V, NB_F32, tol_grad);
    rows_compare(t, "loss of that", loss, want_loss, n, NB_F32, 2e-5);
}

/* A logit that is no number makes its row's loss none, and leaves the other rows alone. */
static void nan_row(nb_rowtest *t, const void *arg) {
    (void)arg;
    enum { N = 3, V = 700 };
    float *x = rows_draw(t, N * V, 5, NB_F32);
    int32_t target[N] = {1, 2, 3};
    double x64[N * V], want[N];
    for (int i = 0; i < N * V; i++) x64[i] = x[i];
    ref_xent(want, NULL, NULL, NULL, x64, target, N, V, 0);
    x[V + 300] = NAN;
    float *logits = rows_put(t, x, N * V, NB_F32), *loss = rows_out(t, N, NB_F32);
    int32_t *device_target = rows_put_bytes(t, target, sizeof target);
    rows_ok(t, t->d->k->xent(t->d, loss, NULL, NULL, NULL, logits, device_target, N, V, 0));
    rows_expect(t, isnan(rows_get(t, loss, N, NB_F32)[1]), "the loss of a row with a NaN is a number");
    rows_compare(t, "row before", loss, want, 1, NB_F32, 2e-5);
    rows_compare(t, "row after", loss + 2, want + 2, 1, NB_F32, 2e-5);
}

static const xent_case tiny = {.n = 5, .V = 3}, odd = {.n = 7, .V = 1001}, even = {.n = 4, .V = 4096},
                       beside = {.n = 5, .V = 2047, .beside = true}, edges = {.n = 2, .V = 515, .target_first = true},
                       wide = {.n = 2, .V = 128256}, loss_only = {.n = 3, .V = 32001, .alone = true},
                       capped = {.n = 3, .V = 777, .cap = 3},
                       capped_huge = {.n = 2, .V = 1030, .cap = 30, .kind = HUGE_LOGITS},
                       huge_logits = {.n = 3, .V = 5001, .kind = HUGE_LOGITS},
                       masked = {.n = 3, .V = 9001, .kind = MASKED},
                       ties = {.n = 6, .V = 6007, .kind = TIES}, one_token = {.n = 2, .V = 1};
static const nb_rowcheck checks[] = {
    {"xent/tiny", xent, &tiny},         {"xent/odd", xent, &odd},           {"xent/even", xent, &even},
    {"xent/beside", xent, &beside},     {"xent/edges", xent, &edges},       {"xent/wide", xent, &wide},
    {"xent/loss", xent, &loss_only},    {"xent/capped", xent, &capped},     {"xent/capped_huge", xent, &capped_huge},
    {"xent/huge", xent, &huge_logits},  {"xent/masked", xent, &masked},     {"xent/ties", xent, &ties},
    {"xent/one", xent, &one_token},     {"xent/nan", nan_row, NULL},
};
const nb_rowfamily rows_loss = {"loss", checks, NB_LEN(checks)};
