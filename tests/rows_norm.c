/* RMS norm, layer norm and sums over rows against double precision. */
#include "core/mem.h"
#include "tests/reference.h"
#include "tests/rows_data.h"

typedef struct norm_case {
    int64_t T, C;
    float beta, offset;
} norm_case;

/* x and rstd as a forward pass leaves them; mean NULL: RMS norm. */
static float *saved_rstd(nb_rowtest *t, float **mean, const double *x, const norm_case *s) {
    float *r = rows_draw(t, s->T, 1, NB_F32), *m = rows_draw(t, s->T, 1, NB_F32);
    for (int64_t i = 0; i < s->T; i++) {
        double mu = 0, sum = 0;
        for (int64_t c = 0; mean && c < s->C; c++) mu += x[i * s->C + c] / (double)s->C;
        for (int64_t c = 0; c < s->C; c++) sum += (x[i * s->C + c] - mu) * (x[i * s->C + c] - mu);
        m[i] = (float)mu;
        r[i] = (float)(1 / sqrt(sum / (double)s->C + 1e-5));
    }
    if (mean) *mean = rows_put(t, m, s->T, NB_F32);
    return rows_put(t, r, s->T, NB_F32);
}

static void rmsnorm_fwd(nb_rowtest *t, const void *arg) {
    const norm_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t T = s->T, n = T * s->C;
    rows_tensor x = rows_input(t, n, 2, e), w = rows_input(t, s->C, 1, NB_F32);
    double *y = rows_doubles(t, n), *r = rows_doubles(t, T);
    ref_rmsnorm_fwd(y, r, x.v, w.v, T, s->C, 1e-5, s->offset);
    void *got = rows_out(t, n, e);
    float *rstd = rows_out(t, T, NB_F32);
    rows_ok(t, t->d->k->rmsnorm_fwd(t->d, got, rstd, x.p, w.p, T, s->C, 1e-5f, s->offset));
    rows_compare(t, "y", got, y, n, e, rows_rounding(e));
    rows_compare(t, "rstd", rstd, r, T, NB_F32, rows_rounding(NB_F32));
}

static void rmsnorm_bwd(nb_rowtest *t, const void *arg) {
    const norm_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t T = s->T, C = s->C, n = T * C;
    rows_tensor x = rows_input(t, n, 2, e), w = rows_input(t, C, 1, NB_F32), dy = rows_input(t, n, 1, e);
    double *dx = rows_doubles(t, n), *dw = rows_doubles(t, C), *dx1 = rows_doubles(t, n), *dw1 = rows_doubles(t, C);
    float *rstd = saved_rstd(t, NULL, x.v, s);
    ref_rmsnorm_bwd(dx, dw, dy.v, x.v, w.v, T, C, 1e-5, s->offset);
    ref_rmsnorm_bwd(dx1, dw1, dy.v, x.v, w.v, T, C, 1e-5, s->offset);
    void *got_x = rows_target(t, dx, n, e, s->beta), *got_x1 = rows_out(t, n, e);
    float *got_w = rows_target(t, dw, C, NB_F32, s->beta), *got_w1 = rows_out(t, C, NB_F32);
    const nb_kernels *k = t->d->k;
    rows_reserve(t, T, C);
    rows_ok(t, k->rmsnorm_bwd(t->d, got_x, s->beta, got_w, s->beta, dy.p, x.p, w.p, rstd, T, C, s->offset));
    rows_ok(t, k->rmsnorm_bwd(t->d, got_x1, 0, NULL, 0, dy.p, x.p, w.p, rstd, T, C, s->offset));
    rows_ok(t, k->rmsnorm_bwd(t->d, NULL, 0, got_w1, 0, dy.p, x.p, w.p, rstd, T, C, s->offset));
    rows_compare(t, "dw", got_w, dw, C, NB_F32, rows_rounding(NB_F32));
    if (C > 1) { /* all cancels in a row of one: nothing but rounding is left */
        rows_compare(t, "dx", got_x, dx, n, e, rows_rounding(e));
        rows_compare(t, "dx alone", got_x1, dx1, n, e, rows_rounding(e));
    }
    rows_compare(t, "dw alone", got_w1, dw1, C, NB_F32, rows_rounding(NB_F32));
}

/* x far from 0, so that a variance computed as E[x^2] - E[x]^2 would show. */
static rows_tensor off_centre(nb_rowtest *t, int64_t n) {
    float *x = rows_draw(t, n, 1, NB_F32);
    nb_dtype e = t->d->elem;
    rows_tensor r = {NULL, rows_doubles(t, n)};
    for (int64_t i = 0; i < n; i++) {
        x[i] += 8;
        if (e == NB_BF16) x[i] = nb_round_bf16(x[i]);
        r.v[i] = x[i];
    }
    r.p = rows_put(t, x, n, e);
    return r;
}

static void layernorm_fwd(nb_rowtest *t, const void *arg) {
    const norm_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t T = s->T, C = s->C, n = T * C;
    rows_tensor x = off_centre(t, n), w = rows_input(t, C, 1, NB_F32), b = rows_input(t, C, 1, NB_F32);
    double *y = rows_doubles(t, n), *m = rows_doubles(t, T), *r = rows_doubles(t, T), *y1 = rows_doubles(t, n);
    ref_layernorm_fwd(y1, m, r, x.v, w.v, NULL, T, C, 1e-5);
    ref_layernorm_fwd(y, m, r, x.v, w.v, b.v, T, C, 1e-5);
    void *got = rows_out(t, n, e), *got1 = rows_out(t, n, e);
    float *mean = rows_out(t, T, NB_F32), *rstd = rows_out(t, T, NB_F32);
    rows_ok(t, t->d->k->layernorm_fwd(t->d, got1, mean, rstd, x.p, w.p, NULL, T, C, 1e-5f));
    rows_ok(t, t->d->k->layernorm_fwd(t->d, got, mean, rstd, x.p, w.p, b.p, T, C, 1e-5f));
    double tol = e == NB_BF16 ? rows_rounding(e) : 1e-5; /* x - mean cancels three bits */
    rows_compare(t, "y", got, y, n, e, tol);
    rows_compare(t, "y without bias", got1, y1, n, e, tol);
    rows_compare(t, "mean", mean, m, T, NB_F32, rows_rounding(NB_F32));
    rows_compare(t, "rstd", rstd, r, T, NB_F32, 1e-5);
}

static void layernorm_bwd(nb_rowtest *t, const void *arg) {
    const norm_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t T = s->T, C = s->C, n = T * C;
    rows_tensor x = rows_input(t, n, 2, e), w = rows_input(t, C, 1, NB_F32), dy = rows_input(t, n, 1, e);
    double *dx = rows_doubles(t, n), *dw = rows_doubles(t, C), *db = rows_doubles(t, C);
    double *dw1 = rows_doubles(t, C), *db1 = rows_doubles(t, C), *dx1 = rows_doubles(t, n);
    float *mean, *rstd = saved_rstd(t, &mean, x.v, s);
    ref_layernorm_bwd(dx, dw, db, dy.v, x.v, w.v, T, C, 1e-5);
    ref_layernorm_bwd(dx1, dw1, db1, dy.v, x.v, w.v, T, C, 1e-5);
    void *got_x = rows_target(t, dx, n, e, s->beta), *got_x1 = rows_out(t, n, e);
    float *got_w = rows_target(t, dw, C, NB_F32, s->beta), *got_b = rows_target(t, db, C, NB_F32, s->beta);
    float *got_w1 = rows_out(t, C, NB_F32), *got_b1 = rows_out(t, C, NB_F32);
    const nb_kernels *k = t->d->k;
    rows_reserve(t, T, C);
    rows_ok(t, k->layernorm_bwd(t->d, got_x, s->beta, got_w, s->beta, got_b, s->beta, dy.p, x.p, w.p, mean, rstd, T,
                                C));
    rows_ok(t, k->layernorm_bwd(t->d, got_x1, 0, NULL, 0, NULL, 0, dy.p, x.p, w.p, mean, rstd, T, C));
    rows_ok(t, k->layernorm_bwd(t->d, NULL, 0, got_w1, 0, NULL, 0, dy.p, x.p, w.p, mean, rstd, T, C));
    rows_ok(t, k->layernorm_bwd(t->d, NULL, 0, NULL, 0, got_b1, 0, dy.p, x.p, w.p, mean, rstd, T, C));
    rows_compare(t, "dx", got_x, dx, n, e, rows_rounding(e));
    rows_compare(t, "dx alone", got_x1, dx1, n, e, rows_rounding(e));
    rows_compare(t, "dw", got_w, dw, C, NB_F32, 2 * rows_rounding(NB_F32));
    rows_compare(t, "db", got_b, db, C, NB_F32, rows_rounding(NB_F32));
    rows_compare(t, "dw alone", got_w1, dw1, C, NB_F32, 2 * rows_rounding(NB_F32));
    rows_compare(t, "db alone", got_b1, db1, C, NB_F32, rows_rounding(NB_F32));
}

static void bias(nb_rowtest *t, const void *arg) {
    const norm_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t T = s->T, C = s->C, n = T * C;
    rows_tensor b = rows_input(t, C, 1, NB_F32), dy = rows_input(t, n, 1, e);
    double *y = rows_doubles(t, n), *db = rows_doubles(t, C);
    for (int64_t i = 0; i < n; i++) y[i] = b.v[i % C], db[i % C] += dy.v[i];
    void *got = rows_target(t, y, n, e, 1);
    float *got_b = rows_target(t, db, C, NB_F32, s->beta);
    rows_reserve(t, T, C);
    rows_ok(t, t->d->k->bias_fwd(t->d, got, e, b.p, T, C));
    rows_ok(t, t->d->k->bias_bwd(t->d, got_b, dy.p, T, C, s->beta));
    rows_compare(t, "y", got, y, n, e, rows_rounding(e));
    rows_compare(t, "dbias", got_b, db, C, NB_F32, rows_rounding(NB_F32));
}

/* One element; odd; a head of a query norm, with rows that leave a block unfilled; a model's; longer than registers
 * keep; more rows than a part of a sum has, and than all parts have. */
static const norm_case one = {1, 1, 0, 0}, odd = {7, 129, 1, 0}, head = {45, 128, 1, 0}, model = {5, 2048, 1, 1},
                       wide = {2, 3080, 0, 0}, huge = {1, 20488, 1, 0}, tall = {300, 96, 0, 0},
                       column = {5000, 24, 1, 0}, narrow = {67, 3, 0.5f, 1};
#define SHAPES(row)                                                                                               \
    {#row "/one", row, &one}, {#row "/odd", row, &odd}, {#row "/head", row, &head}, {#row "/model", row, &model}, \
    {#row "/wide", row, &wide}, {#row "/huge", row, &huge}, {#row "/tall", row, &tall},                           \
    {#row "/column", row, &column}, {#row "/narrow", row, &narrow}
static const nb_rowcheck checks[] = {SHAPES(rmsnorm_fwd),   SHAPES(rmsnorm_bwd), SHAPES(layernorm_fwd),
                                     SHAPES(layernorm_bwd), SHAPES(bias)};
const nb_rowfamily rows_norm = {"norm", checks, NB_LEN(checks)};
