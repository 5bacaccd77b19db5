/* Every cpu kernel but the products and attention, against tests/reference.h. */
#include "tests/guarded.h"
#include "tests/reference.h"

static nb_dev dev; /* these kernels take nothing from it */

typedef struct size_case {
    int64_t T, C;
    float beta, offset;
} size_case;

static const size_case sizes[] = {
    {1, 1, 0, 0}, {1, 7, 0, 1},   {3, 64, 1, 0},   {17, 33, 0.5f, 1}, {130, 257, 0, 0},
    {300, 16, 1, 1}, {2, 1000, 0, 0}, {129, 576, 1, 0}, {5, 4099, 0, 1},
};

static void rmsnorm_case(const void *shape) {
    const size_case *s = shape;
    int64_t T = s->T, C = s->C, n = T * C;
    float *x = input(n, -2, 2), *w = input(C, -1, 1), *dy = input(n, -1, 1), *y = output(n, 0), *rstd = output(T, 0);
    float *dx = output(n, s->beta), *dw = output(C, s->beta), *dx_alone = output(n, 0), *dw_alone = output(C, 0);
    double *dx0 = doubles(s->beta != 0 ? dx : NULL, n), *dw0 = doubles(s->beta != 0 ? dw : NULL, C);
    double *X = doubles(x, n), *W = doubles(w, C), *DY = doubles(dy, n), *Y = doubles(NULL, n), *R = doubles(NULL, T);
    double *DX = doubles(NULL, n), *DW = doubles(NULL, C);
    ref_rmsnorm_fwd(Y, R, X, W, T, C, 1e-5, s->offset);
    ref_rmsnorm_bwd(DX, DW, DY, X, W, T, C, 1e-5, s->offset);
    assert_ok(nb_cpu_rmsnorm_fwd(&dev, y, rstd, x, w, T, C, 1e-5f, s->offset));
    assert_ok(nb_cpu_rmsnorm_bwd(&dev, dx, s->beta, dw, s->beta, dy, x, w, rstd, T, C, s->offset));
    assert_ok(nb_cpu_rmsnorm_bwd(&dev, dx_alone, 0, NULL, 0, dy, x, w, rstd, T, C, s->offset));
    assert_ok(nb_cpu_rmsnorm_bwd(&dev, NULL, 0, dw_alone, 0, dy, x, w, rstd, T, C, s->offset));
    check_output("y", y, Y, 0, NULL, n, 1e-6);
    check_output("rstd", rstd, R, 0, NULL, T, 1e-6);
    /* A row of one element loses its whole gradient but for eps: only rounding is left to compare. */
    double tol = C == 1 ? 0.2 : 2e-6;
    check_output("dx", dx, DX, s->beta, dx0, n, tol);
    check_output("dw", dw, DW, s->beta, dw0, C, 2e-6);
    check_output("dx alone", dx_alone, DX, 0, NULL, n, tol);
    check_output("dw alone", dw_alone, DW, 0, NULL, C, 2e-6);
    /* A row by itself is the same row. */
    float *last = output(C, 0), *last_dx = output(C, 0), r;
    assert_ok(nb_cpu_rmsnorm_fwd(&dev, last, &r, x + n - C, w, 1, C, 1e-5f, s->offset));
    assert_ok(nb_cpu_rmsnorm_bwd(&dev, last_dx, 0, NULL, 0, dy + n - C, x + n - C, w, &r, 1, C, s->offset));
    assert_memory_equal(last, y + n - C, sizeof(float) * (size_t)C);
    assert_memory_equal(last_dx, dx_alone + n - C, sizeof(float) * (size_t)C);
}

static void test_rmsnorm(void **state) {
    (void)state;
    RUN_CASES(rmsnorm_case, sizes);
}

typedef struct rope_case {
    int64_t T, heads, D, rot;
    float beta;
} rope_case;

static void rope_case_run(const void *shape) {
    const rope_case *s = shape;
    int64_t n = s->T * s->heads * s->D, positions = 50, table = positions * s->rot / 2;
    float *x = input(n, -1, 1), *cosine = input(table, -1, 1), *sine = input(table, -1, 1), *y = output(n, s->beta);
    float *back = output(n, s->beta);
    double *y0 = doubles(s->beta != 0 ? y : NULL, n), *back0 = doubles(s->beta != 0 ? back : NULL, n);
    double *X = doubles(x, n), *Y = doubles(NULL, n), *B = doubles(NULL, n);
    double *CO = doubles(cosine, table), *SI = doubles(sine, table);
    int32_t pos[64];
    for (int64_t t = 0; t < s->T; t++) pos[t] = (int32_t)nb_rng_below(&guarded.rng, 50);
    ref_rope(Y, X, CO, SI, pos, s->T, s->heads, s->D, s->rot, false);
    ref_rope(B, X, CO, SI, pos, s->T, s->heads, s->D, s->rot, true);
    assert_ok(nb_cpu_rope(&dev, y, x, cosine, sine, pos, s->T, s->heads, s->D, s->rot, false, s->beta));
    assert_ok(nb_cpu_rope(&dev, back, x, cosine, sine, pos, s->T, s->heads, s->D, s->rot, true, s->beta));
    check_output("y", y, Y, s->beta, y0, n, 1e-6);
    check_output("inverse", back, B, s->beta, back0, n, 1e-6);
    assert_ok(nb_cpu_rope(&dev, x, x, cosine, sine, pos, s->T, s->heads, s->D, s->rot, false, 0));
    check_output("in place", x, Y, 0, NULL, n, 1e-6);
    /* The inverse is the transpose: <rope(x), z> = <x, inverse(z)>. */
    double lhs = 0, rhs = 0, *Z = doubles(NULL, n), *IZ = doubles(NULL, n);
    for (int64_t i = 0; i < n; i++) Z[i] = test_random(-1, 1);
    ref_rope(IZ, Z, CO, SI, pos, s->T, s->heads, s->D, s->rot, true);
    for (int64_t i = 0; i < n; i++) lhs += Y[i] * Z[i], rhs += X[i] * IZ[i];
    assert_close(lhs, rhs, 1e-9 * (double)n);
}

static void test_rope(void **state) {
    (void)state;
    static const rope_case cases[] = {
        {1, 1, 2, 2, 0}, {7, 3, 64, 64, 0}, {33, 2, 10, 6, 1}, {5, 1, 80, 32, 0.5f}, {64, 4, 128, 128, 1}};
    RUN_CASES(rope_case_run, cases);
}

typedef struct glu_case {
    int64_t n;
    float beta, range;
    nb_act act;
} glu_case;

static void glu_case_run(const void *shape) {
    const glu_case *s = shape;
    int64_t n = s->n;
    float *gate = input(n, -s->range, s->range), *up = input(n, -2, 2), *dy = input(n, -1, 1), *y = output(n, 0);
    float *dg = output(n, s->beta), *du = output(n, s->beta), *dg1 = output(n, 0), *du1 = output(n, 0);
    double *dg0 = doubles(s->beta != 0 ? dg : NULL, n), *du0 = doubles(s->beta != 0 ? du : NULL, n);
    double *G = doubles(gate, n), *U = doubles(up, n), *DY = doubles(dy, n), *Y = doubles(NULL, n);
    double *DG = doubles(NULL, n), *DU = doubles(NULL, n);
    ref_glu_fwd(Y, G, U, n, s->act);
    ref_glu_bwd(DG, DU, DY, G, U, n, s->act);
    assert_ok(nb_cpu_glu_fwd(&dev, y, gate, up, n, s->act));
    assert_ok(nb_cpu_glu_bwd(&dev, dg, s->beta, du, s->beta, dy, gate, up, n, s->act));
    assert_ok(nb_cpu_glu_bwd(&dev, dg1, 0, NULL, 0, dy, gate, up, n, s->act));
    assert_ok(nb_cpu_glu_bwd(&dev, NULL, 0, du1, 0, dy, gate, up, n, s->act));
    check_output("y", y, Y, 0, NULL, n, 1e-6);
    check_output("dgate", dg, DG, s->beta, dg0, n, 1e-6);
    check_output("dup", du, DU, s->beta, du0, n, 1e-6);
    check_output("dgate alone", dg1, DG, 0, NULL, n, 1e-6);
    check_output("dup alone", du1, DU, 0, NULL, n, 1e-6);
    /* An element is the same wherever it stands. */
    int64_t at = n / 3, m = n - at;
    float *part = output(m, 0);
    assert_ok(nb_cpu_glu_fwd(&dev, part, gate + at, up + at, m, s->act));
    assert_memory_equal(part, y + at, sizeof(float) * (size_t)m);
}

static void test_glu(void **state) {
    (void)state;
    static const int64_t n[] = {1, 13, 1000, 70001};
    for (int act = NB_ACT_SILU; act <= NB_ACT_RELU; act++)
        for (int i = 0; i < NB_LEN(n); i++) {
            glu_case c[] = {{n[i], i == 1 ? 1 : 0, 4, (nb_act)act}, {n[i], 0.5f, 120, (nb_act)act}};
            RUN_CASES(glu_case_run, c);
        }
}

static void elementwise_case(const void *shape) {
    const size_case *s = shape;
    int64_t T = s->T, C = s->C, n = T * C;
    float *x1 = input(n, -1, 1), *x2 = input(n, -1, 1), *bias = input(C, -1, 1), *k = input(T, -2, 2);
    float *sum = output(n, s->beta), *copy = output(n, s->beta), *db = output(C, s->beta), *rows = output(n, s->beta);
    float *scattered = output(n, s->beta), *plain = output(n, s->beta), *gathered = output(n, 0),
          *filled = output(n, 0);
    double *sum0 = doubles(s->beta != 0 ? sum : NULL, n), *copy0 = doubles(s->beta != 0 ? copy : NULL, n);
    double *db0 = doubles(s->beta != 0 ? db : NULL, C), *rows0 = doubles(s->beta != 0 ? rows : NULL, n);
    double *scattered0 = doubles(s->beta != 0 ? scattered : NULL, n), *plain0 = doubles(s->beta != 0 ? plain : NULL, n);
    double *X1 = doubles(x1, n), *SUM = doubles(NULL, n), *BIASED = doubles(NULL, n), *DB = doubles(NULL, C);
    double *ROWS = doubles(NULL, n), *SCATTERED = doubles(NULL, n), *PLAIN = doubles(NULL, n),
           *GATHERED = doubles(NULL, n);
    double *FILLED = doubles(NULL, n);
    int32_t index[512];
    for (int64_t t = 0; t < T; t++) index[t] = (int32_t)(T - 1 - t);
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++) {
            int64_t i = t * C + c, j = (T - 1 - t) * C + c;
            SUM[i] = X1[i] + x2[i], BIASED[i] = X1[i] + bias[c], DB[c] += X1[i], ROWS[i] = X1[i] * k[t];
            SCATTERED[j] = X1[i] * k[t], PLAIN[j] = X1[i], GATHERED[i] = X1[j], FILLED[i] = 0.25;
        }
    assert_ok(nb_cpu_add(&dev, sum, x1, x2, n, s->beta));
    assert_ok(nb_cpu_add(&dev, copy, x1, NULL, n, s->beta));
    assert_ok(nb_cpu_bias_bwd(&dev, db, x1, T, C, s->beta));
    assert_ok(nb_cpu_scale_rows(&dev, rows, x1, k, T, C, s->beta));
    assert_ok(nb_cpu_scatter_rows(&dev, scattered, x1, index, k, T, C, s->beta));
    assert_ok(nb_cpu_scatter_rows(&dev, plain, x1, index, NULL, T, C, s->beta));
    assert_ok(nb_cpu_gather_rows(&dev, gathered, x1, index, T, C));
    assert_ok(nb_cpu_fill(&dev, filled, NB_F32, 0.25f, n));
    check_output("add", sum, SUM, s->beta, sum0, n, 1e-6);
    check_output("copy", copy, X1, s->beta, copy0, n, 1e-6);
    check_output("bias_bwd", db, DB, s->beta, db0, C, 2e-6);
    check_output("scale_rows", rows, ROWS, s->beta, rows0, n, 1e-6);
    check_output("scatter_rows", scattered, SCATTERED, s->beta, scattered0, n, 1e-6);
    check_output("scatter_rows unscaled", plain, PLAIN, s->beta, plain0, n, 1e-6);
    check_output("gather_rows", gathered, GATHERED, 0, NULL, n, 0);
    check_output("fill", filled, FILLED, 0, NULL, n, 0);
    nb_update u;
    double want = 0;
    assert_ok(nb_cpu_sum_squares(&dev, &u, x1, n));
    const double squares = u.sum_squares;
    for (int64_t i = 0; i < n; i++) want += X1[i] * X1[i];
    assert_close(squares, want, 1e-12 * want);
    float low = (float)squares, high = (float)(squares - (double)low);
    double parts[] = {low, high};
    check_output("sum_squares", (float[]){low, high}, parts, 0, NULL, 2, 1e-7);
    assert_ok(nb_cpu_scale_rows(&dev, x2, x2, k, T, C, 0)); /* in place */
    assert_ok(nb_cpu_bias_fwd(&dev, x1, NB_F32, bias, T, C));
    check_output("bias_fwd", x1, BIASED, 0, NULL, n, 1e-6);
}

static void test_elementwise(void **state) {
    (void)state;
    RUN_CASES(elementwise_case, sizes);
}

typedef struct embedding_case {
    int64_t V, C, T;
    float scale, beta;
} embedding_case;

static void embedding_case_run(const void *shape) {
    const embedding_case *s = shape;
    int64_t V = s->V, C = s->C, T = s->T;
    float *w = input(V * C, -1, 1), *dy = input(T * C, -1, 1), *y = output(T * C, 0), *dw = output(V * C, s->beta);
    double *dw0 = doubles(s->beta != 0 ? dw : NULL, V * C), *Y = doubles(NULL, T * C), *DW = doubles(NULL, V * C);
    int32_t *ids = malloc(sizeof *ids * (size_t)T);
    for (int64_t t = 0; t < T; t++) {
        ids[t] = (int32_t)(t % 3 ? nb_rng_below(&guarded.rng, (uint64_t)V) : (uint64_t)V - 1);
        for (int64_t c = 0; c < C; c++) {
            Y[t * C + c] = (double)w[ids[t] * C + c] * s->scale;
            DW[ids[t] * C + c] += (double)dy[t * C + c] * s->scale;
        }
    }
    nb_weight weight = {.format = NB_FMT_F32, .rows = V, .cols = C, .data = w};
    assert_ok(nb_cpu_embedding_fwd(&dev, y, &weight, ids, T, s->scale));
    assert_ok(nb_cpu_embedding_bwd(&dev, dw, dy, ids, T, V, C, s->scale, s->beta));
    free(ids);
    check_output("y", y, Y, 0, NULL, T * C, 1e-6);
    check_output("dw", dw, DW, s->beta, dw0, V * C, 2e-6);
}

static void test_embedding(void **state) {
    (void)state;
    static const embedding_case cases[] = {{1, 1, 1, 1, 0}, {10, 33, 100, 1, 1}, {1000, 64, 333, 8, 0},
                                           {65, 5, 7, 0.5f, 0.25f}};
    RUN_CASES(embedding_case_run, cases);
}

typedef struct xent_case {
    int64_t n, V;
    float cap, range;
} xent_case;

static void xent_case_run(const void *shape) {
    const xent_case *s = shape;
    int64_t n = s->n, V = s->V;
    float *x = input(n * V, -s->range, s->range), *keep = input(n * V, 0, 1), *loss = output(n, 0), *lse = output(n, 0);
    float *only = output(n, 0), *arg_f = output(n, 0);
    double *X = doubles(x, n * V), *DX = doubles(NULL, n * V), *L = doubles(NULL, n), *Z = doubles(NULL, n),
           *A = doubles(NULL, n);
    int32_t target[64], arg[64], want[64];
    memcpy(keep, x, sizeof(float) * (size_t)(n * V));
    for (int64_t i = 0; i < n; i++) target[i] = (int32_t)nb_rng_below(&guarded.rng, (uint64_t)V);
    ref_xent(L, Z, want, DX, X, target, n, V, s->cap);
    assert_ok(nb_cpu_xent(&dev, only, NULL, NULL, NULL, x, target, n, V, s->cap));
    assert_memory_equal(x, keep, sizeof(float) * (size_t)(n * V));
    assert_ok(nb_cpu_xent(&dev, loss, lse, arg, x, x, target, n, V, s->cap));
    for (int64_t i = 0; i < n; i++) arg_f[i] = (float)arg[i], A[i] = want[i];
    double tol = V == 1 ? 1 : 2e-6; /* with one class everything is 0 but for rounding */
    if (V > 1) check_output("loss", loss, L, 0, NULL, n, 2e-6), check_output("only", only, L, 0, NULL, n, 2e-6);
    check_output("lse", lse, Z, 0, NULL, n, 2e-6);
    /* cap*tanh saturates in float before it does in double: ties there are real. */
    if (!(s->cap > 0 && s->range > s->cap)) check_output("argmax", arg_f, A, 0, NULL, n, 0);
    for (int64_t i = 0; V == 1 && i < n; i++) assert_close(loss[i], 0, 1e-5);
    if (V > 1) check_output("dx", x, DX, 0, NULL, n * V, tol);
}

static void test_xent(void **state) {
    (void)state;
    static const xent_case cases[] = {{1, 1, 0, 5}, {3, 2, 0, 1}, {5, 100, 0, 90}, {2, 4099, 0, 8},
                                      {7, 513, 30, 60}, {4, 50, 50, 3}, {1, 50257, 0, 15}, {3, 31, 0, 2000}};
    RUN_CASES(xent_case_run, cases);
    float tie[] = {1, 3, 2, 3, 3}, nan_row[40] = {0}, loss;
    int32_t target = 0, arg;
    nb_threads_set(1);
    assert_ok(nb_cpu_xent(&dev, &loss, NULL, &arg, NULL, tie, &target, 1, 5, 0));
    assert_int_equal(arg, 1); /* lowest index */
    for (int i = 0; i < 40; i++) {
        nan_row[i] = NAN;
        assert_ok(nb_cpu_xent(&dev, &loss, NULL, &arg, NULL, nan_row, &target, 1, 40, 0));
        assert_true(isnan(loss)); /* never hidden */
        nan_row[i] = 0;
    }
}

typedef struct dropout_case {
    int64_t T, C;
    float p, beta;
} dropout_case;

static void dropout_case_run(const void *shape) {
    const dropout_case *s = shape;
    int64_t T = s->T, C = s->C, n = T * C;
    float *x = input(n, 1, 2), *y = output(n, s->beta), *part = output(n, s->beta);
    double *y0 = doubles(s->beta != 0 ? y : NULL, n), *Y = doubles(NULL, n);
    uint32_t sample[512];
    int32_t pos[512];
    memcpy(part, y, sizeof(float) * (size_t)n);
    for (int64_t t = 0; t < T; t++) sample[t] = (uint32_t)(t / 3) * 2654435761u, pos[t] = (int32_t)(t % 7);
    for (int64_t i = 0; i < n; i++)
        Y[i] = x[i] * ref_dropout_factor(sample[i / C], pos[i / C], i % C, s->p, 0x123456789abcdefull, 17, 5);
    assert_ok(nb_cpu_dropout(&dev, y, x, sample, pos, T, C, s->p, 0x123456789abcdefull, 17, 5, s->beta));
    check_output("y", y, Y, s->beta, y0, n, 1e-6);
    int64_t cut = T / 2; /* the same rows in two calls */
    assert_ok(nb_cpu_dropout(&dev, part + cut * C, x + cut * C, sample + cut, pos + cut, T - cut, C, s->p,
                             0x123456789abcdefull, 17, 5, s->beta));
    assert_ok(nb_cpu_dropout(&dev, part, x, sample, pos, cut, C, s->p, 0x123456789abcdefull, 17, 5, s->beta));
    assert_memory_equal(part, y, sizeof(float) * (size_t)n);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) kept += Y[i] != 0;
    double sd = sqrt((double)n * s->p * (1 - (double)s->p));
    assert_close((double)kept, (double)n * (1 - (double)s->p), 5 * sd + 1e-9);
}

static void test_dropout(void **state) {
    (void)state;
    static const dropout_case cases[] = {
        {1, 1, 0, 0}, {10, 33, 0, 0}, {200, 64, 0.1f, 0}, {50, 577, 0.5f, 1}, {33, 1030, 0.05f, 0.5f}};
    RUN_CASES(dropout_case_run, cases);
}

typedef struct adamw_case {
    int64_t n;
    float lr, wd, g_scale, size;
} adamw_case;

/* An update whose gradient has norm 1 and is clipped to g_scale. */
static const nb_update *update(nb_update *u, float lr, int step, float g_scale) {
    *u = (nb_update){.sum_squares = 1, .bias1 = 1 - pow((double)0.9f, step), .bias2 = 1 - pow((double)0.999f, step),
                     .lr = lr, .max_norm = g_scale < 1 ? g_scale * (1 + 1e-6f) : 0};
    return u;
}

static void adamw_case_run(const void *shape) {
    const adamw_case *s = shape;
    int64_t n = s->n;
    float *p = input(n, -1, 1), *m = input(n, 0, 0), *v = input(n, 0, 0);
    double *P = doubles(p, n), *M = doubles(m, n), *V = doubles(v, n);
    for (int step = 1; step <= 10; step++) {
        float *g = input(n, -s->size, s->size);
        double *G = doubles(g, n);
        nb_update u;
        assert_ok(nb_cpu_adamw(&dev, p, m, v, g, n, update(&u, s->lr, step, s->g_scale), 0.9f, 0.999f, 1e-8f, s->wd));
        ref_adamw(P, M, V, G, n, s->lr, 0.9f, 0.999f, 1e-8f, s->wd, step, s->g_scale);
    }
    check_output("p", p, P, 0, NULL, n, 1e-6);
    check_output("m", m, M, 0, NULL, n, 2e-6);
    check_output("v", v, V, 0, NULL, n, 2e-6);
}

static void test_adamw(void **state) {
    (void)state;
    static const adamw_case cases[] = {{1, 1e-3f, 0, 1, 1}, {1000, 2e-4f, 0.1f, 0.3f, 10},
                                       {4097, 1e-2f, 0.01f, 1, 1e-5f}};
    RUN_CASES(adamw_case_run, cases);
    /* The first step moves by lr * sign(g), whatever the size of g. */
    float p = 1, m = 0, v = 0, g = -123;
    nb_update u;
    assert_ok(nb_cpu_adamw(&dev, &p, &m, &v, &g, 1, update(&u, 0.5f, 1, 1), 0.9f, 0.999f, 1e-8f, 0));
    assert_close(p, 1.5, 1e-6);
    /* A gradient that is not finite changes nothing. */
    u.sum_squares = INFINITY;
    assert_ok(nb_cpu_adamw(&dev, &p, &m, &v, &g, 1, &u, 0.9f, 0.999f, 1e-8f, 0));
    assert_close(p, 1.5, 1e-6);
}

/* exp and tanh over all their range, and at its ends. */
static void test_exp_and_tanh(void **state) {
    (void)state;
    static float x[4096], y[4096], t[4096];
    for (int isa = 0; nb_simd_name(isa); isa++) {
        double worst = 0, worst_tanh = 0;
        assert_true(nb_simd_set(nb_simd_name(isa)));
        for (int part = 0; part < 200; part++) {
            for (int i = 0; i < 4096; i++) x[i] = -87.3f + 176.0f * ((float)(part * 4096 + i) / (200 * 4096));
            if (part % 2) for (int i = 0; i < 4096; i++) x[i] *= 0.03f; /* where most arguments are */
            nb_simd_get()->exp(y, x, 4096);
            nb_simd_get()->tanh(t, x, 4096);
            for (int i = 0; i < 4096; i++) {
                double e = fabs(y[i] / exp((double)x[i]) - 1), et = x[i] != 0 ? fabs(t[i] / tanh((double)x[i]) - 1) : 0;
                if (!(e <= worst)) worst = e;
                if (!(et <= worst_tanh)) worst_tanh = et;
            }
        }
        print_message("%s: exp within %.2g, tanh within %.2g relative\n", nb_simd_get()->name, worst, worst_tanh);
        assert_true(worst <= 2.4e-7 && worst_tanh <= 3e-7);
        float ends[] = {-INFINITY, -1e30f, -200, 0, 200, INFINITY, NAN, -0.0f}, out[8];
        nb_simd_get()->exp(out, ends, 8);
        for (int i = 0; i < 3; i++) assert_true(out[i] == 0);
        assert_true(out[3] == 1 && out[7] == 1 && isinf(out[4]) && isinf(out[5]) && isnan(out[6]));
        nb_simd_get()->tanh(out, ends, 8);
        assert_true(out[0] == -1 && out[2] == -1 && out[3] == 0 && out[4] == 1 && out[5] == 1 && isnan(out[6]));
    }
    assert_false(nb_simd_set("abacus"));
}

/* The references' own gradients against central differences of sum(out * r). */
typedef struct numeric {
    double *x, *w, *r, *out, *spare;
    int which;
} numeric;

enum { NT = 3, NC = 7 };

static double numeric_loss(void *ctx) {
    numeric *n = ctx;
    double sum = 0;
    int32_t target[NT] = {2, 0, 6};
    int64_t count = NT * NC;
    if (n->which < 2) ref_rmsnorm_fwd(n->out, n->spare, n->x, n->w, NT, NC, 1e-5, n->which);
    else if (n->which < 6) ref_glu_fwd(n->out, n->x, n->w, count, (nb_act)(n->which - 2));
    else ref_xent(n->out, NULL, NULL, NULL, n->x, target, count = NT, NC, n->which == 6 ? 0 : 2), count = NT;
    for (int64_t i = 0; i < count; i++) sum += n->out[i] * (n->which < 6 ? n->r[i] : 1);
    return sum;
}

static void numeric_case(const void *shape) {
    numeric c = {.which = *(const int *)shape};
    int64_t n = NT * NC, nw = c.which < 2 ? NC : n;
    int32_t target[NT] = {2, 0, 6};
    c.x = doubles(input(n, 0.1, 2), n), c.w = doubles(input(n, -1, 1), n), c.r = doubles(input(n, -1, 1), n);
    for (int64_t i = 0; i < n; i += 2) c.x[i] = -c.x[i]; /* away from relu's corner */
    c.out = doubles(NULL, n), c.spare = doubles(NULL, n);
    double *dx = doubles(NULL, n), *dw = doubles(NULL, n), *num = doubles(NULL, n);
    if (c.which < 2) ref_rmsnorm_bwd(dx, dw, c.r, c.x, c.w, NT, NC, 1e-5, c.which);
    else if (c.which < 6) ref_glu_bwd(dx, dw, c.r, c.x, c.w, n, (nb_act)(c.which - 2));
    else ref_xent(c.out, NULL, NULL, dx, c.x, target, NT, NC, c.which == 6 ? 0 : 2);
    ref_numeric_gradient(num, c.x, n, numeric_loss, &c);
    for (int64_t i = 0; i < n; i++) assert_close(dx[i], num[i], 1e-8);
    ref_numeric_gradient(num, c.w, nw, numeric_loss, &c);
    for (int64_t i = 0; i < nw; i++) assert_close(dw[i], num[i], 1e-8);
}

static void test_reference_gradients(void **state) {
    (void)state;
    static const int which[] = {0, 1, 2, 3, 4, 5, 6, 7};
    RUN_CASES(numeric_case, which);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_and_tanh),
        cmocka_unit_test(test_reference_gradients), cmocka_unit_test(test_rmsnorm), cmocka_unit_test(test_rope),
        cmocka_unit_test(test_glu), cmocka_unit_test(test_elementwise), cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_xent), cmocka_unit_test(test_dropout), cmocka_unit_test(test_adamw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
