/* Checks of the rows gemm, weight_fwd and weight_bwd: tests/rows.h. */
#include <math.h>
#include <stdio.h>

#include "tests/rows_weights.h"

typedef struct gemm_case {
    int64_t M, N, K;
    int64_t pad; /* elements between the end of a row and the next */
} gemm_case;

/* A matrix [rows, cols] as a product takes it: stored transposed or not, rows apart by a gap that reads as NaN. */
static nb_mat put_matrix(nb_rowtest *t, const float *v, int64_t rows, int64_t cols, int64_t pad, bool across,
                         nb_dtype dtype) {
    const int64_t h = across ? cols : rows, w = across ? rows : cols, ld = w + pad;
    float *stored = rows_draw(t, h * ld, 0, NB_F32);
    for (int64_t i = 0; i < h * ld; i++) stored[i] = NAN;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) stored[across ? c * ld + r : r * ld + c] = v[r * cols + c];
    nb_mat m = nb_mat_of(rows_put(t, stored, h * ld, dtype), ld, dtype);
    m.t = across;
    return m;
}

/* Compares and drops the gaps, which must still be NaN. */
static void compare_matrix(nb_rowtest *t, const char *what, nb_mat c, const double *want, int64_t M, int64_t N) {
    const float *got = rows_get(t, c.p, M * c.ld, c.dtype);
    float *dense = rows_draw(t, M * N, 0, NB_F32);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < c.ld; n++) {
            if (n < N) dense[m * N + n] = got[m * c.ld + n];
            else rows_expect(t, isnan(got[m * c.ld + n]), "%s: row %d is written to behind its end", what, (int)m);
        }
    rows_compare(t, what, rows_put(t, dense, M * N, NB_F32), want, M * N, NB_F32, rows_product_tolerance(c.dtype));
}

/* x[M,K], y[K,N], and sum = x y of what the device makes of them. */
typedef struct factors {
    float *x, *y;
    double *sum;
} factors;

static factors draw_factors(nb_rowtest *t, int64_t M, int64_t N, int64_t K) {
    factors f = {rows_draw(t, M * K, 1, NB_F32), rows_draw(t, K * N, 1, NB_F32), rows_doubles(t, M * N)};
    for (int64_t m = 0; m < M; m++)
        for (int64_t k = 0; k < K; k++)
            for (int64_t n = 0; n < N; n++)
                f.sum[m * N + n] += (double)rows_operand(t, f.x[m * K + k]) * rows_operand(t, f.y[k * N + n]);
    return f;
}

typedef struct how {
    bool xt, yt;
    nb_dtype x, y, c;
    float alpha, beta;
    int64_t pad;
} how;

static void product(nb_rowtest *t, const factors *f, int64_t M, int64_t N, int64_t K, how h) {
    nb_mat x = put_matrix(t, f->x, M, K, h.pad, h.xt, h.x), y = put_matrix(t, f->y, K, N, h.pad, h.yt, h.y);
    float *before = rows_draw(t, M * N, 1, NB_BF16);
    double *want = rows_doubles(t, M * N);
    char what[64];
    for (int64_t i = 0; i < M * N; i++) {
        want[i] = h.alpha * f->sum[i];
        if (h.beta == 0) before[i] = NAN; /* must not be read */
        else want[i] += (double)(h.beta * before[i]);
    }
    nb_mat c = put_matrix(t, before, M, N, h.pad, false, h.c);
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->gemm_ws(t->d, M, N, K)));
    rows_ok(t, t->d->k->gemm(t->d, c, x, y, M, N, K, h.alpha, h.beta));
    snprintf(what, sizeof what, "%s%s x %s%s to %s, beta %g", nb_dtype_name(h.x), h.xt ? "^T" : "", nb_dtype_name(h.y),
             h.yt ? "^T" : "", nb_dtype_name(h.c), (double)h.beta);
    compare_matrix(t, what, c, want, M, N);
}

/* Every transposition with every type of c, x and y; half of them add. */
static void any_product(nb_rowtest *t, const void *arg) {
    const gemm_case *g = arg;
    const nb_dtype types[2] = {NB_F32, t->d->elem};
    const factors f = draw_factors(t, g->M, g->N, g->K);
    for (int i = 0; i < 32; i++) {
        if (t->d->elem == NB_F32 && (i >> 2 & 3)) continue; /* one type alone */
        const bool add = (i ^ i >> 1 ^ i >> 2 ^ i >> 4) & 1;
        how h = {i & 1, i & 2, types[i >> 2 & 1], types[i >> 3 & 1], types[i >> 4 & 1], i & 8 ? -0.5f : 1, add, g->pad};
        product(t, &f, g->M, g->N, g->K, h);
    }
}

/* The products of an adapter of rank R over a linear layer [out, in], as autograd/op_linear.c has them. */
typedef struct adapter_case {
    int64_t T, in, out, R;
} adapter_case;

static void adapter(nb_rowtest *t, const void *arg) {
    const adapter_case *a = arg;
    const int64_t T = a->T, C = a->in, N = a->out, R = a->R;
    const nb_dtype e = t->d->elem;
    const struct {
        int64_t M, N, K;
        how h;
    } steps[] = {
        {T, R, C, {false, true, e, NB_F32, e, 1, 0, 0}},          /* xa = x A^T */
        {T, N, R, {false, true, e, NB_F32, e, 2, 1, 0}},          /* y += s xa B^T */
        {N, R, T, {true, false, e, e, NB_F32, 2, 0, 0}},          /* dB = s dy^T xa */
        {N, R, T, {true, false, e, e, NB_F32, 2, 1, 0}},
        {T, R, N, {false, false, e, NB_F32, e, 2, 0, 0}},         /* dxa = s dy B */
        {R, C, T, {true, false, e, e, NB_F32, 1, 0, 0}},          /* dA = dxa^T x */
        {R, C, T, {true, false, e, e, NB_F32, 1, 1, 0}},
        {T, C, R, {false, false, e, NB_F32, e, 1, 1, 0}},         /* dx += dxa A */
        {T, C, R, {false, false, e, NB_F32, e, 1, 0, 0}},
    };
    for (int i = 0; i < NB_LEN(steps); i++) {
        const factors f = draw_factors(t, steps[i].M, steps[i].N, steps[i].K);
        product(t, &f, steps[i].M, steps[i].N, steps[i].K, steps[i].h);
    }
}

static void same(nb_rowtest *t, const char *what, nb_mat got, nb_mat one_by_one, int64_t M, int64_t N) {
    const float *v = rows_get(t, one_by_one.p, M * N, one_by_one.dtype);
    double *want = rows_doubles(t, M * N);
    for (int64_t i = 0; i < M * N; i++) want[i] = v[i];
    rows_compare(t, what, got.p, want, M * N, got.dtype, rows_product_tolerance(got.dtype));
}

/* A layer's forward pass and its input's gradient, each by gemm_sum, against its products one after the other. */
static void sums(nb_rowtest *t, const void *arg) {
    const adapter_case *a = arg;
    const int64_t T = a->T, C = a->in, N = a->out, R = a->R;
    const nb_dtype e = t->d->elem;
    const nb_kernels *k = t->d->k;
    nb_weight w;
    rows_weight(t, &w, (weight_kind){.format = NB_FMT_BF16}, N, C);
    void *x = rows_put(t, rows_draw(t, T * C, 1, NB_BF16), T * C, e);
    void *dy = rows_put(t, rows_draw(t, T * N, 1, NB_BF16), T * N, e);
    void *xa = rows_put(t, rows_draw(t, T * R, 1, NB_BF16), T * R, e);
    float *start = rows_draw(t, T * C, 1, NB_BF16);
    const nb_mat A = nb_mat_of(rows_put(t, rows_draw(t, R * C, 1, NB_F32), R * C, NB_F32), C, NB_F32);
    const nb_mat B = nb_mat_t(rows_put(t, rows_draw(t, N * R, 1, NB_F32), N * R, NB_F32), R, NB_F32);
    const nb_mat X = nb_mat_of(x, C, e), dY = nb_mat_of(dy, N, e), XA = nb_mat_of(xa, R, e);
    const nb_mat y = nb_mat_of(rows_out(t, T * N, e), N, e), y1 = nb_mat_of(rows_out(t, T * N, e), N, e);
    const nb_mat dx = nb_mat_of(rows_put(t, start, T * C, e), C, e), dx1 = nb_mat_of(rows_put(t, start, T * C, e), C, e);
    const nb_term forward[] = {nb_term_fwd(X, &w), nb_term_of(XA, B, R, 2)};
    const nb_term backward[] = {nb_term_bwd(dY, &w), nb_term_of(XA, A, R, 1)};
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->terms_ws(t->d, forward, 2, T, N)));
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->terms_ws(t->d, backward, 2, T, C)));
    rows_ok(t, k->gemm_sum(t->d, y, forward, 2, T, N, 0));
    rows_ok(t, k->gemm_sum(t->d, dx, backward, 2, T, C, 1));
    rows_ok(t, k->weight_fwd(t->d, y1, x, &w, T, 0));
    rows_ok(t, k->gemm(t->d, y1, XA, B, T, N, R, 2, 1));
    rows_ok(t, k->weight_bwd(t->d, dx1.p, dy, &w, T, 1));
    rows_ok(t, k->gemm(t->d, dx1, XA, A, T, C, R, 1, 1));
    same(t, "forward", y, y1, T, N);
    same(t, "backward", dx, dx1, T, C);
}

static const gemm_case one = {1, 1, 1, 0}, small = {5, 7, 3, 0}, tails = {65, 129, 33, 0}, gaps = {66, 70, 65, 3},
                       aligned = {96, 136, 96, 8}, longer = {130, 70, 257, 0},
                       ends = {71, 135, 79, 1}; /* aligned rows, 7 elements in the last 16 bytes */
static const adapter_case r3 = {70, 65, 33, 3}, r8 = {40, 96, 130, 8}, r16 = {70, 200, 136, 16},
                          r64 = {70, 200, 152, 64}, r32 = {33, 130, 70, 32},
                          token = {1, 200, 136, 16}, wide = {40, 1100, 40, 8},
                          many = {1100, 72, 40, 16};
static const weight_case w_one = {1, 1, {.format = NB_FMT_F32}}, w_f32 = {65, 129, {.format = NB_FMT_F32}},
                         w_bf16 = {100, 200, {.format = NB_FMT_BF16}}, w_bf16_odd = {33, 65, {.format = NB_FMT_BF16}},
                         w_f16 = {130, 96, {.format = NB_FMT_F16}}, w_f16_odd = {7, 33, {.format = NB_FMT_F16}};

static const nb_rowcheck checks[] = {
    {"gemm/one", any_product, &one},
    {"gemm/small", any_product, &small},
    {"gemm/tails", any_product, &tails},
    {"gemm/gaps", any_product, &gaps},
    {"gemm/aligned", any_product, &aligned},
    {"gemm/longer", any_product, &longer},
    {"gemm/ends", any_product, &ends},
    {"adapter/r3", adapter, &r3},
    {"adapter/r8", adapter, &r8},
    {"adapter/r16", adapter, &r16},
    {"adapter/r32", adapter, &r32},
    {"adapter/r64", adapter, &r64},
    {"adapter/token", adapter, &token},
    {"adapter/wide", adapter, &wide},
    {"adapter/many", adapter, &many},
    {"sum/r3", sums, &r3},
    {"sum/r16", sums, &r16},
    {"sum/token", sums, &token},
    {"weight/one", rows_weight_products, &w_one},
    {"weight/f32", rows_weight_products, &w_f32},
    {"weight/bf16", rows_weight_products, &w_bf16},
    {"weight/bf16_odd", rows_weight_products, &w_bf16_odd},
    {"weight/f16", rows_weight_products, &w_f16},
    {"weight/f16_odd", rows_weight_products, &w_f16_odd},
};
const nb_rowfamily rows_products = {"products", checks, NB_LEN(checks)};
