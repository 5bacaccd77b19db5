/* Every product variant, format and direction against sums in double. */
#include <omp.h>

#include "core/cpu.h"
#include "core/dtype.h"
#include "core/mem.h"
#include "core/rng.h"
#include "kernels/backend.h"
#include "kernels/cpu/gemm.h"
#include "model/gguf.h"
#include "tests/test.h"

enum { ZONE = 64 };             /* floats of red zone around every output */
static const float red = -12345.5f;

typedef struct guarded { float *all, *p; int64_t n; } guarded;

static guarded guarded_new(int64_t n) {
    guarded g = {nb_calloc((size_t)n + 2 * ZONE, sizeof(float)), NULL, n};
    for (int64_t i = 0; i < n + 2 * ZONE; i++) g.all[i] = red;
    g.p = g.all + ZONE;
    return g;
}

static void guarded_free(guarded *g) {
    for (int i = 0; i < ZONE; i++)
        if (g->all[i] != red || g->all[ZONE + g->n + i] != red) fail_msg("the red zone of an output was written to");
    free(g->all);
}

static void randomize(float *x, int64_t n, uint64_t seed) {
    nb_rng r = nb_rng_open(seed, NB_RNG_TEST, 0);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(nb_rng_uniform(&r) * 2 - 1);
}

/* Reserves exactly the scratch asked for, with a red zone behind it. */
static unsigned char *limit_ws(nb_dev *d, int64_t M, int64_t N, int64_t K) {
    size_t need = d->be->gemm_ws(d, M, N, K);
    assert_ok(nb_dev_reserve(d, need + 4096));
    d->ws_size = need;
    unsigned char *behind = (unsigned char *)d->ws + need;
    memset(behind, 0xA5, 4096);
    return behind;
}

static void check_ws(nb_dev *d, const unsigned char *behind, size_t reserved) {
    for (int i = 0; i < 4096; i++)
        if (behind[i] != 0xA5) fail_msg("%s overran its scratch by %d bytes", d->gemm, i + 1);
    d->ws_size = reserved;
}

typedef struct weight_case { nb_weight w; void *data, *absmax, *u8, *nested; } weight_case;

static const struct { const char *name; nb_format f; bool nested; nb_dtype dtype; } kinds[] = {
    {"f32", NB_FMT_F32, false, NB_F32},         {"bf16", NB_FMT_BF16, false, NB_BF16},
    {"f16", NB_FMT_F16, false, NB_F16},         {"nf4", NB_FMT_NF4, false, NB_BF16},
    {"nf4 nested", NB_FMT_NF4, true, NB_BF16},  {"nf4 of f16", NB_FMT_NF4, true, NB_F16},
    {"nf4 of f32", NB_FMT_NF4, false, NB_F32},  {"q8_0", NB_FMT_Q8_0, false, NB_F32},
    {"q4_k", NB_FMT_Q4_K, false, NB_F32},
};

static weight_case weight_new(int kind, int64_t rows, int64_t cols, uint64_t seed) {
    int64_t n = rows * cols, blocks = (n + 63) / 64;
    weight_case c = {.w = {.format = kinds[kind].f, .rows = rows, .cols = cols}};
    float *x = nb_calloc((size_t)n, sizeof *x);
    randomize(x, n, seed);
    if (kinds[kind].f == NB_FMT_F32) c.data = x;
    else if (kinds[kind].f > NB_FMT_NF4) {
        nb_gguf_type t;
        assert_true(nb_gguf_type_find(nb_format_name(kinds[kind].f), &t));
        c.data = nb_malloc(nb_gguf_bytes(t, n));
        nb_gguf_encode(t, c.data, x, n);
        free(x);
    } else if (kinds[kind].f == NB_FMT_NF4) {
        c.data = nb_malloc((size_t)(n + 1) / 2);
        c.absmax = nb_calloc((size_t)blocks, sizeof(float));
        nb_nf4_quantize(c.data, c.absmax, x, NB_F32, n);
        c.w.nf4 = (nb_nf4){.code = nb_nf4_code, .absmax = c.absmax, .blocksize = 64, .nested_blocksize = 256,
                           .dtype = kinds[kind].dtype};
        if (kinds[kind].nested) {
            c.u8 = nb_malloc((size_t)blocks);
            c.nested = nb_calloc((size_t)(blocks + 255) / 256, sizeof(float));
            nb_nf4_quantize_absmax(c.u8, c.nested, &c.w.nf4.nested_offset, c.absmax, blocks);
            c.w.nf4.absmax = NULL;
            c.w.nf4.absmax_u8 = c.u8;
            c.w.nf4.nested_absmax = c.nested;
            c.w.nf4.nested_code = nb_dynamic_code;
        }
        free(x);
    } else {
        uint16_t *h = c.data = nb_calloc((size_t)n, sizeof *h);
        for (int64_t i = 0; i < n; i++)
            h[i] = kinds[kind].f == NB_FMT_BF16 ? nb_f32_to_bf16(x[i]) : nb_f32_to_f16(x[i]);
        free(x);
    }
    c.w.data = c.data;
    return c;
}

static void weight_free(weight_case *c) { free(c->data), free(c->absmax), free(c->u8), free(c->nested); }

static float operand(const nb_dev *d, float v) { return d->compute == NB_BF16 ? nb_round_bf16(v) : v; }

/* want[M,N] = alpha x y + beta c in double, from strided views. */
static void reference(const nb_dev *d, float *want, const float *x, int64_t xm, int64_t xk, const float *y, int64_t yk,
                      int64_t yn, int64_t M, int64_t N, int64_t K, double alpha, double beta, const float *c,
                      int64_t ldc) {
    double *sum = nb_calloc((size_t)N + 1, sizeof *sum);
    for (int64_t m = 0; m < M; m++) {
        memset(sum, 0, (size_t)N * sizeof *sum);
        for (int64_t k = 0; k < K; k++)
            for (int64_t n = 0; n < N; n++)
                sum[n] += (double)operand(d, x[m * xm + k * xk]) * operand(d, y[k * yk + n * yn]);
        for (int64_t n = 0; n < N; n++)
            want[m * N + n] = (float)(alpha * sum[n] + (beta != 0 ? beta * c[m * ldc + n] : 0));
    }
    free(sum);
}

static void compare(const nb_dev *d, const char *what, const float *got, int64_t ld, const float *want, int64_t M,
                    int64_t N, int64_t K) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            /* |terms| <= 1 (and c), a random walk of roundings: far below this bound, far above a wrong term */
            double tol = 2e-6 * (8 + sqrt((double)K)), diff = fabs((double)got[m * ld + n] - want[m * N + n]);
            if (!(diff <= tol))
                fail_msg("%s, %s, %s, %lldx%lldx%lld: [%lld,%lld] is %.9g, want %.9g", what, d->gemm,
                         nb_dtype_name(d->compute), (long long)M, (long long)N, (long long)K, (long long)m,
                         (long long)n, got[m * ld + n], want[m * N + n]);
        }
}

/* Calls f for every variant, compute type and this machine's support; dots: as in steps that generate. */
static void each_variant(void (*f)(nb_dev *d), bool dots) {
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (const nb_gemm_impl *const *v = nb_gemm_impls; *v; v++) {
            nb_dev *d;
            assert_ok(nb_dev_open(&d, "cpu", bf16 ? NB_BF16 : NB_F32));
            if (nb_dev_set_gemm(d, (*v)->name) == NB_OK) {
                assert_string_equal(d->gemm, (*v)->name);
                d->dots = dots;
                f(d);
            }
            nb_dev_close(d);
        }
}

static const int64_t shapes[][3] = {
    {1, 1, 1},     {1, 2, 3},     {2, 1, 5},     {3, 33, 7},   {12, 32, 64},  {13, 31, 65},
    {11, 48, 129}, {16, 64, 128}, {5, 100, 130}, {37, 16, 70}, {64, 17, 256}, {23, 65, 315},
    {1, 96, 1100}, {50, 3, 1030}, {25, 90, 192}, {7, 64, 0},
};

static void dense_cases(nb_dev *d) {
    static const struct { bool tx, ty; float alpha, beta; } how[] = {
        {false, false, 1, 0}, {false, true, 1, 0}, {true, false, 1, 1}, {true, true, -0.5f, 0}, {false, true, 2, 0.25f},
    };
    for (int s = 0; s < NB_LEN(shapes); s++)
        for (int h = 0; h < NB_LEN(how); h++) {
            int64_t M = shapes[s][0], N = shapes[s][1], K = shapes[s][2], pad = h;
            bool tx = how[h].tx, ty = how[h].ty;
            int64_t ldx = (tx ? M : K) + pad, ldy = (ty ? K : N) + pad, ldc = N + pad;
            guarded x = guarded_new((tx ? K : M) * ldx + 1), y = guarded_new((ty ? N : K) * ldy + 1),
                    c = guarded_new(M * ldc);
            float *want = nb_calloc((size_t)(M * N), sizeof *want);
            randomize(x.p, x.n, 1), randomize(y.p, y.n, 2), randomize(c.p, c.n, 3);
            if (how[h].beta == 0) for (int64_t i = 0; i < c.n; i++) c.p[i] = NAN; /* beta 0 must not read */
            for (int64_t m = 0; m < M; m++) for (int64_t i = N; i < ldc; i++) c.p[m * ldc + i] = red;
            reference(d, want, x.p, tx ? 1 : ldx, tx ? ldx : 1, y.p, ty ? 1 : ldy, ty ? ldy : 1, M, N, K, how[h].alpha,
                      how[h].beta, c.p, ldc);
            size_t reserved = d->ws_size;
            unsigned char *behind = limit_ws(d, M, N, K);
            if (d->ws_size + 4096 > reserved) reserved = d->ws_size + 4096;
            nb_mat X = nb_mat_of(x.p, ldx, NB_F32), Y = nb_mat_of(y.p, ldy, NB_F32);
            X.t = tx, Y.t = ty;
            assert_ok(d->k->gemm(d, nb_mat_of(c.p, ldc, NB_F32), X, Y, M, N, K, how[h].alpha, how[h].beta));
            check_ws(d, behind, reserved);
            compare(d, "gemm", c.p, ldc, want, M, N, K);
            for (int64_t m = 0; m < M; m++)
                for (int64_t i = N; i < ldc; i++)
                    if (c.p[m * ldc + i] != red) fail_msg("%s wrote between rows", d->gemm);
            free(want);
            guarded_free(&x), guarded_free(&y), guarded_free(&c);
        }
}

static void test_dense(void **state) {
    (void)state;
    each_variant(dense_cases, false);
    each_variant(dense_cases, true);
}

static void one_weight(nb_dev *d, int kind, int64_t T, int64_t N, int64_t K, bool fwd, float beta) {
    if (K % nb_format_block(kinds[kind].f)) return;
    weight_case w = weight_new(kind, N, K, 7);
    float *dense = nb_calloc((size_t)(N * K), sizeof *dense);
    nb_weight_decode(dense, K, &w.w, 0, N, 0, K);
    int64_t in = fwd ? K : N, out = fwd ? N : K;
    guarded x = guarded_new(T * in), c = guarded_new(T * out);
    float *want = nb_calloc((size_t)(T * out), sizeof *want);
    randomize(x.p, x.n, 4), randomize(c.p, c.n, 5);
    if (beta == 0) for (int64_t i = 0; i < c.n; i++) c.p[i] = NAN;
    reference(d, want, x.p, in, 1, dense, fwd ? 1 : K, fwd ? K : 1, T, out, in, 1, beta, c.p, out);
    size_t reserved = d->ws_size;
    unsigned char *behind = limit_ws(d, T, out, in);
    if (d->ws_size + 4096 > reserved) reserved = d->ws_size + 4096;
    if (fwd) assert_ok(d->k->weight_fwd(d, nb_mat_of(c.p, N, NB_F32), x.p, &w.w, T, beta));
    else assert_ok(d->k->weight_bwd(d, c.p, x.p, &w.w, T, beta));
    check_ws(d, behind, reserved);
    char what[64];
    snprintf(what, sizeof what, "%s %s", kinds[kind].name, fwd ? "fwd" : "bwd");
    compare(d, what, c.p, out, want, T, out, in);
    free(want), free(dense);
    guarded_free(&x), guarded_free(&c);
    weight_free(&w);
}

static void weight_cases(nb_dev *d) {
    static const int64_t more[][3] = {{9, 64, 128},  {12, 96, 256}, {1, 32, 1280},
                                      {4, 2176, 64}, {3, 34, 192},  {2, 40, 320},
                                      {3, 33, 2304}};
    for (int kind = 0; kind < NB_LEN(kinds); kind++)
        for (int fwd = 0; fwd < 2; fwd++) {
            for (int s = (kind + fwd) % 2; s < NB_LEN(shapes); s += 2) /* each format takes every other shape */
                if (shapes[s][2] > 0)
                    one_weight(d, kind, shapes[s][0], shapes[s][1], shapes[s][2], fwd, s % 4 < 2 ? 1 : 0);
            for (int s = 0; s < NB_LEN(more); s++)
                one_weight(d, kind, more[s][0], more[s][1], more[s][2], fwd, s % 2 ? 0 : 0.5f);
        }
}

static void test_weights(void **state) {
    (void)state;
    each_variant(weight_cases, false);
}

static nb_status product(nb_dev *d, bool fwd, float *y, const float *x, const nb_weight *w, int64_t T) {
    return fwd ? d->k->weight_fwd(d, nb_mat_of(y, w->rows, NB_F32), x, w, T, 0) : d->k->weight_bwd(d, y, x, w, T, 0);
}

/* Value [n, k] of a weight in a product that generates: of NF4 in whole blocks the level alone may be rounded, of GGUF's
 * blocks nothing. */
static double value_of(const nb_dev *d, const nb_weight *w, int64_t n, int64_t k) {
    const int64_t e = n * w->cols + k;
    const bool unscaled = !strcmp(d->gemm, "avx512bf16"), f32 = d->compute == NB_F32 && !strncmp(d->gemm, "avx", 3);
    float v;
    if ((unscaled || f32) && w->format == NB_FMT_NF4 && w->cols % 64 == 0) {
        const uint8_t byte = ((const uint8_t *)w->data)[e / 2];
        return (double)operand(d, w->nf4.code[e % 2 ? byte & 15 : byte >> 4]) * nb_nf4_absmax(&w->nf4, e / 64);
    }
    nb_weight_decode(&v, 1, w, n, 1, k, 1);
    return unscaled && w->format > NB_FMT_NF4 ? v : operand(d, v);
}

/* nb_dev.dots: few rows and many, columns that are no multiple of anything, rows that end within a piece. */
static void dots_cases(nb_dev *d) {
    static const int64_t heights[] = {1, 2, 3, 4, 5, 8};
    static const int64_t sizes[][2] = {{33, 64}, {4, 128}, {18, 192}, {7, 576}, {66, 70}, {3, 1}, {1, 1280}, {35, 256},
                                       {2, 2048}, {5, 416}, {40, 4096}};
    enum { ALL = NB_LEN(heights) * NB_LEN(sizes) };
    for (int i = 0; i < NB_LEN(kinds) * ALL; i++) {
        const int kind = i / ALL;
        const int64_t T = heights[i % NB_LEN(heights)], *size = sizes[i / NB_LEN(heights) % NB_LEN(sizes)];
        const int64_t N = size[0], K = size[1];
        const float beta = i % 3 ? 0 : 0.5f;
        if (K % nb_format_block(kinds[kind].f) || (K == 4096 && (!kinds[kind].nested || T > 2))) continue;
        weight_case w = weight_new(kind, N, K, 17);
        guarded x = guarded_new(T * K), c = guarded_new(T * N);
        float *want = nb_calloc((size_t)(T * N), sizeof *want);
        randomize(x.p, x.n, 18), randomize(c.p, c.n, 19);
        for (int64_t n = 0; n < N; n++) {
            double *y = nb_calloc((size_t)K, sizeof *y);
            for (int64_t k = 0; k < K; k++) y[k] = value_of(d, &w.w, n, k);
            for (int64_t m = 0; m < T; m++) {
                double sum = beta != 0 ? (double)beta * c.p[m * N + n] : 0;
                for (int64_t k = 0; k < K; k++) sum += y[k] * operand(d, x.p[m * K + k]);
                want[m * N + n] = (float)sum;
            }
            free(y);
        }
        if (beta == 0) for (int64_t k = 0; k < c.n; k++) c.p[k] = NAN; /* beta 0 must not read */
        size_t reserved = d->ws_size;
        unsigned char *behind = limit_ws(d, T, N, K);
        if (d->ws_size + 4096 > reserved) reserved = d->ws_size + 4096;
        assert_ok(d->k->weight_fwd(d, nb_mat_of(c.p, N, NB_F32), x.p, &w.w, T, beta));
        check_ws(d, behind, reserved);
        compare(d, kinds[kind].name, c.p, N, want, T, N, K);
        free(want);
        guarded_free(&x), guarded_free(&c);
        weight_free(&w);
    }
}

static void test_dots(void **state) {
    (void)state;
    each_variant(dots_cases, true);
}

/* Row i of a product of T rows is bit-equal to the same row alone, for any number of threads. */
static void row_cases(nb_dev *d) {
    static const int64_t sizes[][2] = {{64, 256}, {33, 70}, {100, 2304}, {16, 640}, {17, 1280}};
    static const int heights[] = {1, 2, 3, 4, 5, 11, 12, 16, 29, 70};
    enum { T = 70 };
    int threads = nb_threads();
    if (d->gemm_impl == &nb_gemm_naive) return; /* each of its elements is a loop of its own */
    for (int kind = 0; kind < NB_LEN(kinds); kind++)
        for (int s = 0; s < NB_LEN(sizes) * 2; s++) {
            int64_t N = sizes[s / 2][0], K = sizes[s / 2][1];
            bool fwd = s % 2;
            if (K % nb_format_block(kinds[kind].f)) continue;
            int64_t in = fwd ? K : N, out = fwd ? N : K;
            weight_case w = weight_new(kind, N, K, 11);
            float *x = nb_calloc(T * (size_t)in, sizeof *x), *all = nb_calloc(T * (size_t)out, sizeof *all),
                  *row = nb_calloc(T * (size_t)out, sizeof *row);
            randomize(x, T * in, 12);
            nb_threads_set(1);
            assert_ok(nb_dev_reserve(d, d->be->gemm_ws(d, T, out, in)));
            assert_ok(product(d, fwd, all, x, &w.w, T));
            for (int n_threads = 1; n_threads <= 3; n_threads++) {
                nb_threads_set(n_threads);
                assert_ok(nb_dev_reserve(d, d->be->gemm_ws(d, T, out, in)));
                for (int i = 0; i < NB_LEN(heights); i++) {
                    int n = heights[i];
                    int first = (n * 7) % (T - n + 1);
                    assert_ok(product(d, fwd, row, x + first * in, &w.w, n));
                    if (memcmp(row, all + first * out, (size_t)(n * out) * sizeof *row))
                        fail_msg("%s, %s, %s %s: rows %d..%d differ from the same rows of %d (%d threads)", d->gemm,
                                 nb_dtype_name(d->compute), kinds[kind].name, fwd ? "fwd" : "bwd", first, first + n - 1,
                                 T, n_threads);
                }
            }
            nb_threads_set(threads);
            free(x), free(all), free(row);
            weight_free(&w);
        }
}

static void test_rows_independent(void **state) {
    (void)state;
    each_variant(row_cases, false);
    each_variant(row_cases, true);
}

/* gemm_sum against its terms one by one: frozen weights in any format, dense factors lying either way, of few and many
 * steps (more than a group takes), factors that part a group and factors that do not. */
static void sum_cases(nb_dev *d) {
    static const int64_t depths[][NB_MAX_TERMS] = {{64, 16}, {70, 3, 33}, {2048, 512, 512, 16, 8, 16}, {1100},
                                                   {1, 1, 1, 1, 1, 1, 1, 1}, {9, 1089, 128, 1033, 5}};
    static const int64_t heights[] = {1, 4, 5, 29, 70}, N = 66;
    for (int s = 0; s < NB_LEN(depths) * NB_LEN(heights); s++) {
        const int64_t *K = depths[s / NB_LEN(heights)], M = heights[s % NB_LEN(heights)];
        nb_term terms[NB_MAX_TERMS];
        weight_case w[NB_MAX_TERMS] = {0};
        float *x[NB_MAX_TERMS], *y[NB_MAX_TERMS];
        int n = 0;
        guarded c = guarded_new(M * N), want = guarded_new(M * N);
        randomize(c.p, c.n, 3);
        memcpy(want.p, c.p, (size_t)c.n * sizeof *c.p);
        for (; n < NB_MAX_TERMS && K[n]; n++) {
            const bool xt = n % 3 == 1 && !d->dots, yt = (s + n) % 2 || d->dots; /* dots: all along k */
            x[n] = nb_calloc((size_t)(M * K[n]), sizeof(float)), y[n] = nb_calloc((size_t)(N * K[n]), sizeof(float));
            randomize(x[n], M * K[n], 20 + (uint64_t)n), randomize(y[n], N * K[n], 30 + (uint64_t)n);
            nb_mat X = nb_mat_of(x[n], K[n], NB_F32), Y = yt ? nb_mat_t(y[n], K[n], NB_F32) : nb_mat_of(y[n], N, NB_F32);
            const int kind = (s + n / 2) % NB_LEN(kinds);
            if (n % 2 == 0 && (yt ? K[n] : N) % nb_format_block(kinds[kind].f) == 0) {
                w[n] = weight_new(kind, yt ? N : K[n], yt ? K[n] : N, 40 + (uint64_t)n);
                terms[n] = yt ? nb_term_fwd(X, &w[n].w) : nb_term_bwd(X, &w[n].w);
            } else terms[n] = nb_term_of(xt ? nb_mat_t(x[n], M, NB_F32) : X, Y, K[n], s % 3 ? 1 : 0.75f);
        }
        const float first = s % 2 ? 0 : 0.5f;
        for (int i = 0; i < n; i++) {
            assert_ok(nb_dev_reserve(d, d->be->terms_ws(d, &terms[i], 1, M, N)));
            assert_ok(d->k->gemm_sum(d, nb_mat_of(want.p, N, NB_F32), &terms[i], 1, M, N, i ? 1 : first));
        }
        size_t need = d->be->terms_ws(d, terms, n, M, N), reserved;
        assert_ok(nb_dev_reserve(d, need + 4096));
        reserved = d->ws_size, d->ws_size = need;
        memset((char *)d->ws + need, 0xA5, 4096);
        assert_ok(d->k->gemm_sum(d, nb_mat_of(c.p, N, NB_F32), terms, n, M, N, first));
        check_ws(d, (unsigned char *)d->ws + need, reserved);
        int64_t all = 0;
        for (int i = 0; i < n; i++) all += K[i];
        compare(d, "sum", c.p, N, want.p, M, N, all);
        for (int i = 0; i < n; i++) free(x[i]), free(y[i]), weight_free(&w[i]);
        guarded_free(&c), guarded_free(&want);
    }
}

/* Rows of a base's product with its adapter's are bit-equal alone and among others, for any number of threads. */
static void sum_row_cases(nb_dev *d) {
    static const int64_t sizes[][2] = {{64, 256}, {48, 1088}, {33, 70}};
    static const int heights[] = {1, 2, 3, 4, 5, 12, 29};
    enum { T = 40, R = 5 };
    int threads = nb_threads();
    if (d->gemm_impl == &nb_gemm_naive) return;
    for (int s = 0; s < NB_LEN(sizes) * NB_LEN(kinds); s++) {
        int64_t N = sizes[s / NB_LEN(kinds)][0], K = sizes[s / NB_LEN(kinds)][1];
        if (K % nb_format_block(kinds[s % NB_LEN(kinds)].f)) continue;
        weight_case w = weight_new(s % NB_LEN(kinds), N, K, 11);
        float *x = nb_calloc((size_t)(T * K), sizeof *x), xa[T * R], *B = nb_calloc((size_t)(N * R), sizeof *B),
              *all = nb_calloc((size_t)(T * N), sizeof *all), *row = nb_calloc((size_t)(T * N), sizeof *row);
        randomize(x, T * K, 12), randomize(xa, T * R, 13), randomize(B, N * R, 14);
        for (int i = -1; i < 3 * NB_LEN(heights); i++) {
            const int n = i < 0 ? T : heights[i / 3], first = (n * 7) % (T - n + 1);
            const nb_term terms[] = {nb_term_fwd(nb_mat_of(x + first * K, K, NB_F32), &w.w),
                                     nb_term_of(nb_mat_of(xa + first * R, R, NB_F32), nb_mat_t(B, R, NB_F32), R, 1)};
            nb_threads_set(i < 0 ? 1 : i % 3 + 1);
            assert_ok(nb_dev_reserve(d, d->be->terms_ws(d, terms, 2, n, N)));
            assert_ok(d->k->gemm_sum(d, nb_mat_of(i < 0 ? all : row, N, NB_F32), terms, 2, n, N, 0));
            if (i >= 0 && memcmp(row, all + first * N, (size_t)(n * N) * sizeof *row))
                fail_msg("%s, %s, %s: rows %d..%d of a sum differ from the same rows of %d (%d threads)", d->gemm,
                         nb_dtype_name(d->compute), kinds[s % NB_LEN(kinds)].name, first, first + n - 1, T, i % 3 + 1);
        }
        nb_threads_set(threads);
        free(x), free(B), free(all), free(row);
        weight_free(&w);
    }
}

static void test_sums(void **state) {
    (void)state;
    for (int dots = 0; dots < 2; dots++) each_variant(sum_cases, dots), each_variant(sum_row_cases, dots);
}

static void test_errors(void **state) {
    (void)state;
    nb_dev *d, *null;
    assert_fails(nb_dev_open(&d, "quantum", NB_F32), NB_EUNSUPPORTED, "quantum");
    assert_fails(nb_dev_open(&d, "cpu", NB_F16), NB_EUNSUPPORTED, "float16");
    assert_ok(nb_dev_open(&d, "cpu", NB_F32));
    assert_fails(nb_dev_set_gemm(d, "abacus"), NB_EUNSUPPORTED, "abacus");
    assert_fails(nb_dev_set_gemm(d, "avx512bf16"), NB_EUNSUPPORTED, "avx512bf16");
    assert_ok(nb_dev_set_gemm(d, "openblas"));
    float x[4] = {1, 2, 3, 4}, c[4];
    const nb_mat none = {0}, X = nb_mat_of(x, 2, NB_F32);
    assert_fails(d->k->gemm(d, nb_mat_of(c, 2, NB_F32), X, X, 2, 2, 2, 1, 0), NB_ENOMEM, "scratch");
    assert_ok(nb_dev_open_null(&null, d));
    assert_ok(null->k->gemm(null, none, none, none, 100, 200, 300, 1, 0));
    assert_int_equal(null->ws_need, d->be->gemm_ws(d, 100, 200, 300));
    assert_ok(null->k->sum_squares(null, NULL, NULL, 10));
    assert_int_equal(null->launches, 2);
    nb_dev_close(null);
    nb_dev_close(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_dots),
        cmocka_unit_test(test_rows_independent),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
