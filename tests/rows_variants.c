/* Checks of the products' variants (nb_dev_set_gemm): operands of both types, stored either way, with room between rows, and
 * frozen weights in every format. A variant that this device lacks is checked as the device's own choice: tests/rows.h. */
#include <string.h>

#include "core/mem.h"
#include "tests/rows.h"

static void choose(nb_rowtest *t, const char *variant) {
    if (nb_dev_set_gemm(t->d, variant) != NB_OK) rows_ok(t, nb_dev_set_gemm(t->d, NULL));
}

/* What a product sees of an operand. */
static double operand(const nb_rowtest *t, float x) { return t->d->compute == NB_BF16 ? nb_round_bf16(x) : x; }

/* want[M, ldc] = alpha * op(x) op(y) + beta * want */
static void reference(const nb_rowtest *t, double *want, int64_t ldc, const float *x, int64_t ldx, bool tx, const float *y,
                      int64_t ldy, bool ty, int64_t M, int64_t N, int64_t K, double alpha, double beta) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += operand(t, x[tx ? k * ldx + m : m * ldx + k]) * operand(t, y[ty ? n * ldy + k : k * ldy + n]);
            want[m * ldc + n] = alpha * sum + (beta != 0 ? beta * want[m * ldc + n] : 0);
        }
}

static double *doubles_of(nb_rowtest *t, const float *x, int64_t n) {
    double *out = rows_doubles(t, n);
    for (int64_t i = 0; i < n; i++) out[i] = x[i];
    return out;
}

/* ---- gemm ---- */

typedef struct gemm_case {
    const char *variant;
    int64_t M, N, K;
    bool tx, ty, x_f32, y_f32, c_f32;
    float alpha, beta;
} gemm_case;

static void gemm(nb_rowtest *t, const void *arg) {
    const gemm_case *g = arg;
    const nb_dtype e = t->d->elem, xt = g->x_f32 ? NB_F32 : e, yt = g->y_f32 ? NB_F32 : e, ct = g->c_f32 ? NB_F32 : e;
    choose(t, g->variant);
    int64_t ldx = (g->tx ? g->M : g->K) + 3, ldy = (g->ty ? g->K : g->N) + 5, ldc = g->N + (g->beta != 0 ? 2 : 0);
    int64_t nx = (g->tx ? g->K : g->M) * ldx, ny = (g->ty ? g->N : g->K) * ldy, nc = g->M * ldc;
    float *x = rows_draw(t, nx, 1, xt), *y = rows_draw(t, ny, 1, yt), *c = rows_draw(t, nc, 1, ct);
    double *want = doubles_of(t, c, nc);
    reference(t, want, ldc, x, ldx, g->tx, y, ldy, g->ty, g->M, g->N, g->K, (double)g->alpha, (double)g->beta);
    nb_mat mx = {.p = rows_put(t, x, nx, xt), .ld = ldx, .dtype = xt, .t = g->tx};
    nb_mat my = {.p = rows_put(t, y, ny, yt), .ld = ldy, .dtype = yt, .t = g->ty};
    nb_mat mc = {.p = g->beta != 0 ? rows_put(t, c, nc, ct) : rows_out(t, nc, ct), .ld = ldc, .dtype = ct};
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->gemm_ws(t->d, g->M, g->N, g->K)));
    rows_ok(t, t->d->k->gemm(t->d, mc, mx, my, g->M, g->N, g->K, g->alpha, g->beta));
    rows_compare(t, "c", mc.p, want, nc, ct, rows_tolerance(t, ct));
}

/* The last two are rounded to bf16 in more than one panel, in the emulator. */
#define GEMM_CASES(V, variant)                                                                            \
    static const gemm_case V##_nn = {variant, 70, 33, 50, false, false, false, false, false, 1, 0};       \
    static const gemm_case V##_nt = {variant, 5, 129, 130, false, true, false, false, true, 0.5f, 1};     \
    static const gemm_case V##_tn = {variant, 66, 72, 19, true, false, false, true, true, 1, 0};          \
    static const gemm_case V##_tt = {variant, 17, 16, 65, true, true, true, false, false, 2, 1};          \
    static const gemm_case V##_f32 = {variant, 16, 80, 24, false, true, true, true, false, 1, 0};         \
    static const gemm_case V##_x_panels = {variant, 4100, 2, 257, true, true, true, false, true, 1, 0};  \
    static const gemm_case V##_y_panels = {variant, 2, 4100, 257, false, false, false, true, true, 1, 1}
GEMM_CASES(blas, "cublas-alone");
GEMM_CASES(mma, "mma-alone");
GEMM_CASES(own, "mma");

/* ---- frozen weights ---- */

typedef struct weight_case {
    const char *variant;
    nb_format format;
    int64_t T, N, K;
    bool y_f32;
} weight_case;

/* A weight of this format, its pieces on the device, and its values as f32. */
static nb_weight draw_weight(nb_rowtest *t, const weight_case *c, float **values) {
    int64_t n = c->N * c->K;
    nb_weight w = {.format = c->format, .rows = c->N, .cols = c->K};
    float *drawn = rows_draw(t, n, 1, NB_F32);
    *values = rows_draw(t, n, 0, NB_F32);
    if (c->format == NB_FMT_NF4) {
        int64_t blocks = (n + 63) / 64;
        uint8_t *packed = (uint8_t *)rows_draw_ids(t, (n + 7) / 8, 1);
        float *absmax = rows_draw(t, blocks, 0, NB_F32);
        nb_nf4_quantize(packed, absmax, drawn, NB_F32, n);
        w.nf4 = (nb_nf4){.code = nb_nf4_code, .absmax = absmax, .blocksize = 64, .dtype = NB_BF16};
        w.data = packed;
        nb_weight_decode(*values, c->K, &w, 0, c->N, 0, c->K);
        w.nf4.code = rows_put(t, nb_nf4_code, 16, NB_F32);
        w.nf4.absmax = rows_put(t, absmax, blocks, NB_F32);
        w.data = rows_put_bytes(t, packed, (size_t)((n + 1) / 2));
        return w;
    }
    uint16_t *half = (uint16_t *)rows_draw_ids(t, (n + 1) / 2, 1);
    for (int64_t i = 0; i < n; i++) half[i] = c->format == NB_FMT_F16 ? nb_f32_to_f16(drawn[i]) : nb_f32_to_bf16(drawn[i]);
    w.data = c->format == NB_FMT_F32 ? (const void *)drawn : half;
    nb_weight_decode(*values, c->K, &w, 0, c->N, 0, c->K);
    w.data = rows_put_bytes(t, w.data, (size_t)nb_weight_bytes(&w));
    return w;
}

static void weight(nb_rowtest *t, const void *arg) {
    const weight_case *c = arg;
    const nb_dtype e = t->d->elem, yt = c->y_f32 ? NB_F32 : e;
    choose(t, c->variant);
    float *values, *x = rows_draw(t, c->T * c->K, 1, e), *dy = rows_draw(t, c->T * c->N, 1, e);
    nb_weight w = draw_weight(t, c, &values);
    double *y = rows_doubles(t, c->T * c->N), *dx = doubles_of(t, x, c->T * c->K);
    reference(t, y, c->N, x, c->K, false, values, c->K, true, c->T, c->N, c->K, 1, 0);
    reference(t, dx, c->K, dy, c->N, false, values, c->K, false, c->T, c->K, c->N, 1, 1);
    void *x_there = rows_put(t, x, c->T * c->K, e), *y_there = rows_out(t, c->T * c->N, yt);
    void *dx_there = rows_put(t, x, c->T * c->K, e);
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->weight_ws(t->d, &w, c->T)));
    rows_ok(t, t->d->k->weight_fwd(t->d, nb_mat_of(y_there, c->N, yt), x_there, &w, c->T, 0));
    rows_ok(t, t->d->k->weight_bwd(t->d, dx_there, rows_put(t, dy, c->T * c->N, e), &w, c->T, 1));
    rows_compare(t, "y", y_there, y, c->T * c->N, yt, rows_tolerance(t, yt));
    rows_compare(t, "dx", dx_there, dx, c->T * c->K, e, rows_tolerance(t, e));
}

#define WEIGHT_CASES(V, variant)                                                            \
    static const weight_case V##_w_f32 = {variant, NB_FMT_F32, 3, 40, 66, false};           \
    static const weight_case V##_w_bf16 = {variant, NB_FMT_BF16, 70, 33, 48, true};         \
    static const weight_case V##_w_f16 = {variant, NB_FMT_F16, 9, 65, 31, false};           \
    static const weight_case V##_w_nf4 = {variant, NB_FMT_NF4, 12, 50, 70, false};          \
    static const weight_case V##_w_nf4_few = {variant, NB_FMT_NF4, 2, 50, 96, true}
WEIGHT_CASES(blas, "cublas-alone");
WEIGHT_CASES(mma, "mma-alone");
WEIGHT_CASES(own, "mma");

#define ALL(V, label)                                                                                             \
    {"gemm/" label "/nn", gemm, &V##_nn}, {"gemm/" label "/nt", gemm, &V##_nt}, {"gemm/" label "/tn", gemm, &V##_tn}, \
        {"gemm/" label "/tt", gemm, &V##_tt}, {"gemm/" label "/f32", gemm, &V##_f32},                                 \
        {"gemm/" label "/x_panels", gemm, &V##_x_panels}, {"gemm/" label "/y_panels", gemm, &V##_y_panels},           \
        {"weight/" label "/f32", weight, &V##_w_f32}, {"weight/" label "/bf16", weight, &V##_w_bf16},                 \
        {"weight/" label "/f16", weight, &V##_w_f16}, {"weight/" label "/nf4", weight, &V##_w_nf4},                   \
    {"weight/" label "/nf4_few", weight, &V##_w_nf4_few}
static const nb_rowcheck checks[] = {ALL(blas, "cublas-alone"), ALL(mma, "mma-alone"), ALL(own, "mma")};
const nb_rowfamily rows_variants = {"variants", checks, NB_LEN(checks)};
