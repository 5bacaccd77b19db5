/* The cpu attention kernels against tests/reference.h, over segments, windows, caps, groups of heads and caches. */
#include "core/mem.h"
#include "tests/guarded.h"
#include "tests/reference.h"

typedef struct attention_case {
    int64_t H, KV, D, window;
    float cap, beta, range; /* range of q and k: wide ones make sharp softmaxes */
    nb_seg segs[5];
} attention_case;

static const attention_case cases[] = {
    {1, 1, 1, 0, 0, 0, 1, {{0, 1, 0, 1}, {1, 2, 1, 2}}},
    {2, 1, 8, 0, 0, 0, 1, {{0, 5, 0, 5}}},
    {2, 2, 16, 0, 0, 1, 1, {{0, 1, 0, 1}, {1, 17, 1, 17}, {18, 3, 18, 3}}},
    {9, 3, 64, 0, 0, 0, 1, {{0, 130, 0, 130}}},
    {4, 1, 64, 0, 0, 0.5f, 4, {{0, 64, 0, 64}, {64, 65, 64, 65}, {129, 1, 129, 1}}},
    {3, 3, 32, 0, 0, 1, 1, {{0, 200, 0, 200}}},
    {2, 1, 96, 37, 0, 0, 1, {{0, 150, 0, 150}}},
    {4, 2, 128, 64, 0, 0, 1, {{0, 70, 0, 70}, {70, 129, 70, 129}}},
    {2, 2, 33, 1, 0, 0, 1, {{0, 20, 0, 20}}},
    {6, 2, 80, 0, 20, 0, 6, {{0, 90, 0, 90}, {90, 7, 90, 7}}},
    {4, 4, 20, 50, 5, 1, 3, {{0, 131, 0, 131}}},
    {8, 8, 12, 0, 0, 0, 1, {{0, 3, 0, 3}, {3, 2, 3, 2}, {5, 40, 5, 40}, {45, 1, 45, 1}}},
    {9, 3, 64, 0, 0, 0, 1, {{0, 1, 0, 300}}},                     /* decoding */
    {8, 2, 48, 0, 30, 0, 3, {{0, 1, 0, 70}, {1, 1, 100, 1}, {2, 1, 130, 129}}},
    {4, 4, 64, 100, 0, 0, 1, {{0, 1, 0, 257}, {1, 3, 300, 140}}},
    {4, 2, 64, 0, 0, 0, 1, {{0, 40, 0, 111}, {40, 9, 120, 200}}}, /* a chunk of prompt on a cache */
    {71, 1, 16, 0, 0, 0, 1, {{0, 19, 0, 19}}},                    /* more heads than lanes */
    {2, 1, 256, 0, 0, 0, 1, {{0, 66, 0, 66}}},
};

/* Rounded operands: whole blocks of keys and panels of lanes, and one more or less. */
static const attention_case rounded[] = {
    {3, 1, 64, 0, 0, 0, 1, {{0, 293, 0, 293}}},
    {3, 1, 64, 0, 0, 1, 2, {{0, 96, 0, 96}, {96, 97, 96, 97}, {193, 95, 193, 95}, {288, 1, 288, 1}}},
    {7, 1, 80, 100, 0, 0, 1, {{0, 211, 0, 211}}},
    {4, 4, 96, 13, 0, 0.5f, 1, {{0, 257, 0, 257}, {257, 12, 257, 12}}},
    {8, 1, 128, 0, 30, 0, 4, {{0, 140, 0, 140}, {140, 5, 140, 5}}},
    {2, 1, 256, 50, 10, 0, 3, {{0, 129, 0, 129}}},
    {20, 1, 17, 0, 0, 0, 1, {{0, 31, 0, 31}, {31, 70, 31, 70}}},
    {4, 2, 64, 0, 0, 0, 1, {{0, 130, 0, 430}, {130, 2, 430, 99}}},
    {3, 3, 64, 192, 0, 0, 1, {{0, 290, 0, 290}}},
};

typedef struct attention_data {
    int64_t n_segs, nq, nk; /* elements of q and of k */
    nb_dev dev;
    float *q, *k, *v, *o, *lse, *d_o, *dq, *dk, *dv;
} attention_data;

static int64_t rows_of_queries(const attention_case *c) {
    int64_t n = 0;
    for (int b = 0; b < NB_LEN(c->segs) && c->segs[b].qn; b++) n = c->segs[b].q0 + c->segs[b].qn;
    return n;
}

static int64_t rows_of_keys(const attention_case *c) {
    int64_t n = 0;
    for (int b = 0; b < NB_LEN(c->segs) && c->segs[b].qn; b++)
        if (c->segs[b].k0 + c->segs[b].kn > n) n = c->segs[b].k0 + c->segs[b].kn;
    return n;
}

/* Of bf16, numbers that rounding leaves as they are. */
static float *drawn(int64_t n, float range, nb_dtype compute) {
    float *x = input(n, -range, range);
    for (int64_t i = 0; compute == NB_BF16 && i < n; i++) x[i] = nb_round_bf16(x[i]);
    return x;
}

static attention_data attention_inputs(const attention_case *c, nb_dtype compute) {
    attention_data a = {.nq = rows_of_queries(c) * c->H * c->D, .nk = rows_of_keys(c) * c->KV * c->D};
    a.dev.compute = compute;
    while (a.n_segs < NB_LEN(c->segs) && c->segs[a.n_segs].qn) a.n_segs++;
    a.dev.ws_size = nb_cpu_attention_ws(&a.dev, rows_of_queries(c), rows_of_keys(c), c->H, c->KV, c->D);
    a.q = drawn(a.nq, c->range, compute), a.k = drawn(a.nk, c->range, compute), a.v = drawn(a.nk, 1, compute);
    a.d_o = drawn(a.nq, 1, compute), a.o = output(a.nq, 0), a.lse = output(rows_of_queries(c) * c->H, 0);
    a.dq = output(a.nq, c->beta), a.dk = output(a.nk, c->beta), a.dv = output(a.nk, c->beta);
    /* The scratch sits between red zones too, and starts as NaN. Its start is aligned, as a device's is. */
    float *ws = output((int64_t)(a.dev.ws_size / sizeof(float)) + NB_ALIGN, 0);
    a.dev.ws = (void *)(((uintptr_t)ws + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN);
    return a;
}

static void forward(attention_data *a, const attention_case *c) {
    float scale = 1 / sqrtf((float)c->D);
    assert_ok(nb_cpu_attention_fwd(&a->dev, a->o, a->lse, a->q, a->k, a->v, c->segs, a->n_segs,
                                   rows_of_queries(c), rows_of_keys(c), c->H, c->KV, c->D, scale, c->cap, c->window));
}

static void backward(attention_data *a, const attention_case *c, float *dq, float *dk, float *dv, float beta) {
    float scale = 1 / sqrtf((float)c->D);
    assert_ok(nb_cpu_attention_bwd(&a->dev, dq, beta, dk, beta, dv, beta, a->d_o, a->q, a->k, a->v, a->o, a->lse,
                                   c->segs, a->n_segs, rows_of_queries(c), rows_of_keys(c), c->H, c->KV, c->D, scale, c->cap, c->window));
}

static void agrees(const attention_case *c, nb_dtype compute) {
    attention_data a = attention_inputs(c, compute);
    const bool bf16 = compute == NB_BF16;
    double *q = doubles(a.q, a.nq), *k = doubles(a.k, a.nk), *v = doubles(a.v, a.nk), *d_o = doubles(a.d_o, a.nq);
    double *o = doubles(NULL, a.nq), *lse = doubles(NULL, a.nq), *dq = doubles(NULL, a.nq);
    double *dk = doubles(NULL, a.nk), *dv = doubles(NULL, a.nk);
    /* Rows of keys outside every segment keep what they hold; where that is NaN, the test puts numbers. */
    for (int64_t i = 0; c->beta == 0 && i < a.nk; i++) {
        bool covered = false;
        for (int64_t b = 0; b < a.n_segs; b++) {
            int64_t row = i / (c->KV * c->D) - c->segs[b].k0;
            covered |= row >= 0 && row < c->segs[b].kn;
        }
        if (!covered) a.dk[i] = 3, a.dv[i] = 4, dk[i] = 3, dv[i] = 4;
    }
    double *dq0 = doubles(c->beta != 0 ? a.dq : NULL, a.nq), *dk0 = doubles(c->beta != 0 ? a.dk : NULL, a.nk);
    double *dv0 = doubles(c->beta != 0 ? a.dv : NULL, a.nk);
    ref_attention ref = {c->segs, a.n_segs, c->H, c->KV, c->D, c->window, (double)(1 / sqrtf((float)c->D)), c->cap};
    ref_attention_fwd(o, lse, q, k, v, &ref);
    ref_attention_bwd(dq, dk, dv, d_o, q, k, v, &ref);
    forward(&a, c);
    backward(&a, c, a.dq, a.dk, a.dv, c->beta);
    check_output("o", a.o, o, 0, NULL, a.nq, bf16 ? 3e-3 : 3e-6);
    check_output("lse", a.lse, lse, 0, NULL, rows_of_queries(c) * c->H, bf16 ? 1e-5 : 2e-6);
    check_output("dq", a.dq, dq, c->beta, dq0, a.nq, bf16 ? 6e-3 : 1e-5);
    check_output("dk", a.dk, dk, c->beta, dk0, a.nk, bf16 ? 6e-3 : 1e-5);
    check_output("dv", a.dv, dv, c->beta, dv0, a.nk, bf16 ? 6e-3 : 1e-5);
    /* Every gradient alone is the same gradient, and an output without lse the same output. */
    if (c->beta != 0) return;
    float *alone[3] = {output(a.nq, 0), output(a.nk, 0), output(a.nk, 0)}, *whole[3] = {a.dq, a.dk, a.dv};
    memcpy(alone[1], a.dk, sizeof(float) * (size_t)a.nk), memcpy(alone[2], a.dv, sizeof(float) * (size_t)a.nk);
    for (int i = 0; i < 3; i++)
        backward(&a, c, i == 0 ? alone[0] : NULL, i == 1 ? alone[1] : NULL, i == 2 ? alone[2] : NULL, 0);
    for (int i = 0; i < 3; i++) assert_memory_equal(alone[i], whole[i], sizeof(float) * (size_t)(i ? a.nk : a.nq));
    float *o_first = a.o, *lse_first = a.lse;
    a.o = output(a.nq, 0), a.lse = NULL;
    forward(&a, c);
    a.lse = lse_first;
    assert_memory_equal(a.o, o_first, sizeof(float) * (size_t)a.nq);
}

/* Rounded operands are multiplied by one instruction set. */
static bool widest(void) {
    int n = 0;
    while (nb_simd_name(n + 1)) n++;
    return !strcmp(nb_simd_get()->name, nb_simd_name(n));
}

static void in_f32(const void *shape) { agrees(shape, NB_F32); }
static void in_bf16(const void *shape) {
    if (widest()) agrees(shape, NB_BF16);
}

static void test_attention(void **state) {
    (void)state;
    RUN_CASES(in_f32, cases);
    RUN_CASES(in_bf16, cases);
    RUN_CASES(in_bf16, rounded);
}

/* Changing every number of one document leaves the bits of the others alone, outputs and gradients. */
static void perturb(const attention_case *c, nb_dtype compute) {
    attention_data a = attention_inputs(c, compute), b = a;
    if (c->segs[0].qn != c->segs[0].kn || a.n_segs < 2) return;
    forward(&a, c);
    backward(&a, c, a.dq, a.dk, a.dv, 0);
    b.o = output(a.nq, 0), b.lse = output(rows_of_queries(c) * c->H, 0);
    b.dq = output(a.nq, 0), b.dk = output(a.nk, 0), b.dv = output(a.nk, 0);
    for (int64_t changed = 0; changed < a.n_segs; changed++) {
        const nb_seg *s = c->segs + changed;
        int64_t qrow = c->H * c->D, krow = c->KV * c->D;
        for (int64_t i = s->q0 * qrow; i < (s->q0 + s->qn) * qrow; i++)
            b.q[i] = test_random(-9, 9), b.d_o[i] = test_random(-9, 9);
        for (int64_t i = s->k0 * krow; i < (s->k0 + s->kn) * krow; i++) b.k[i] = test_random(-9, 9), b.v[i] = NAN;
        forward(&b, c);
        backward(&b, c, b.dq, b.dk, b.dv, 0);
        for (int64_t other = changed + 1; other < a.n_segs; other++) {
            /* those before were changed in an earlier turn */
            const nb_seg *t = c->segs + other;
            size_t nq = sizeof(float) * (size_t)(t->qn * qrow), nk = sizeof(float) * (size_t)(t->kn * krow);
            assert_memory_equal(a.o + t->q0 * qrow, b.o + t->q0 * qrow, nq);
            assert_memory_equal(a.lse + t->q0 * c->H, b.lse + t->q0 * c->H, sizeof(float) * (size_t)(t->qn * c->H));
            assert_memory_equal(a.dq + t->q0 * qrow, b.dq + t->q0 * qrow, nq);
            assert_memory_equal(a.dk + t->k0 * krow, b.dk + t->k0 * krow, nk);
            assert_memory_equal(a.dv + t->k0 * krow, b.dv + t->k0 * krow, nk);
        }
        for (int64_t i = s->q0 * qrow; i < (s->q0 + s->qn) * qrow; i++) assert_true(isnan(b.o[i])); /* never hidden */
    }
}

static void perturb_in_f32(const void *shape) { perturb(shape, NB_F32); }
static void perturb_in_bf16(const void *shape) {
    if (widest()) perturb(shape, NB_BF16);
}

static void test_documents_do_not_see_each_other(void **state) {
    (void)state;
    RUN_CASES(perturb_in_f32, cases);
    RUN_CASES(perturb_in_bf16, cases);
    RUN_CASES(perturb_in_bf16, rounded);
}

typedef struct numeric {
    double *q, *k, *v, *r, *o;
    int64_t nq;
    ref_attention ref;
} numeric;

static double numeric_loss(void *ctx) {
    numeric *n = ctx;
    double sum = 0;
    ref_attention_fwd(n->o, NULL, n->q, n->k, n->v, &n->ref);
    for (int64_t i = 0; i < n->nq; i++) sum += n->o[i] * n->r[i];
    return sum;
}

static void numeric_case(const void *shape) {
    const attention_case *c = shape;
    attention_data a = attention_inputs(c, NB_F32);
    numeric n = {doubles(a.q, a.nq), doubles(a.k, a.nk), doubles(a.v, a.nk), doubles(a.d_o, a.nq), doubles(NULL, a.nq),
                 a.nq, {c->segs, a.n_segs, c->H, c->KV, c->D, c->window, 0.6, c->cap}};
    double *got[3] = {doubles(NULL, a.nq), doubles(NULL, a.nk), doubles(NULL, a.nk)}, *num = doubles(NULL, a.nq + a.nk);
    ref_attention_bwd(got[0], got[1], got[2], n.r, n.q, n.k, n.v, &n.ref);
    for (int i = 0; i < 3; i++) {
        int64_t size = i ? a.nk : a.nq;
        ref_numeric_gradient(num, i == 0 ? n.q : i == 1 ? n.k : n.v, size, numeric_loss, &n);
        for (int64_t j = 0; j < size; j++) assert_close(got[i][j], num[j], 1e-8);
    }
}

static void test_reference_gradients(void **state) {
    (void)state;
    static const attention_case small[] = {
        {4, 2, 3, 0, 0, 0, 1, {{0, 4, 0, 4}, {4, 3, 4, 3}}},
        {2, 1, 2, 2, 1.5f, 0, 1, {{0, 5, 0, 5}}},
        {2, 2, 2, 0, 0, 0, 1, {{0, 2, 0, 6}}},
    };
    RUN_CASES(numeric_case, small);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_gradients),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_documents_do_not_see_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
