/* Checks of quantized weights (kernels/weight.h) in the rows weight_fwd and weight_bwd: tests/rows.h. */
#include "kernels/blocks.h"
#include "tests/rows_weights.h"

static void decoded(nb_rowtest *t, const char *what, int64_t n, int64_t k, float got, float want) {
    rows_expect(t, got == want, "%s: [%d,%d] is %.9g, wanted %.9g", what, (int)n, (int)k, got, want);
}

/* What a row decodes is nb_weight_decode's, bit for bit: products with rows of the identity are the weight itself. */
static void decodes(nb_rowtest *t, const void *arg) {
    const weight_case *c = arg;
    const int64_t N = c->rows, K = c->cols;
    nb_weight w;
    float *values = rows_weight(t, &w, c->kind, N, K);
    float *x = rows_draw(t, K * K, 0, NB_F32), *dy = rows_draw(t, N * N, 0, NB_F32);
    for (int64_t k = 0; k < K; k++) x[k * K + k] = 1;
    for (int64_t n = 0; n < N; n++) dy[n * N + n] = 1;
    void *dev_x = rows_put(t, x, K * K, t->d->elem), *dev_dy = rows_put(t, dy, N * N, t->d->elem);
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->weight_ws(t->d, &w, N > K ? N : K)));
    /* all rows of the identity at once, and the last few of them alone: another path of some devices */
    const int64_t few = K < 5 ? K : 5;
    void *y = rows_out(t, K * N, NB_F32), *last = rows_out(t, few * N, NB_F32), *dx = rows_out(t, N * K, t->d->elem);
    rows_ok(t, t->d->k->weight_fwd(t->d, nb_mat_of(y, N, NB_F32), dev_x, &w, K, 0));
    const char *from = (const char *)dev_x + (K - few) * K * nb_dtype_size(t->d->elem);
    rows_ok(t, t->d->k->weight_fwd(t->d, nb_mat_of(last, N, NB_F32), from, &w, few, 0));
    rows_ok(t, t->d->k->weight_bwd(t->d, dx, dev_dy, &w, N, 0));
    const float *got_y = rows_get(t, y, K * N, NB_F32), *got_last = rows_get(t, last, few * N, NB_F32);
    const float *got_dx = rows_get(t, dx, N * K, t->d->elem);
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            float want = rows_operand(t, values[n * K + k]);
            decoded(t, "y", n, k, got_y[k * N + n], want);
            decoded(t, "dx", n, k, got_dx[n * K + k], want);
            if (k >= K - few) decoded(t, "few rows", n, k, got_last[(k - (K - few)) * N + n], want);
        }
}

/* A row of y has the same bits whether it is computed alone or beside others: generation in batches. */
static void same_for_any_rows(nb_rowtest *t, const void *arg) {
    enum { MOST = 8 };
    const weight_case *c = arg;
    const int64_t N = c->rows, K = c->cols;
    const size_t size = (size_t)nb_dtype_size(t->d->elem);
    nb_weight w;
    rows_weight(t, &w, c->kind, N, K);
    const char *x = rows_put(t, rows_draw(t, MOST * K, 1, t->d->elem), MOST * K, t->d->elem);
    const float *all = NULL;
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->weight_ws(t->d, &w, MOST)));
    for (int64_t T = MOST; T >= 1; T--) {
        void *y = rows_out(t, T * N, NB_F32);
        rows_ok(t, t->d->k->weight_fwd(t->d, nb_mat_of(y, N, NB_F32), x, &w, T, 0));
        const float *got = rows_get(t, y, T * N, NB_F32);
        if (!all) all = got;
        rows_expect(t, !memcmp(all, got, sizeof *got * (size_t)(T * N)), "rows of %d differ from rows of 8", (int)T);
    }
    for (int64_t i = 0; i < MOST; i++) { /* each alone */
        void *y = rows_out(t, N, NB_F32);
        rows_ok(t, t->d->k->weight_fwd(t->d, nb_mat_of(y, N, NB_F32), x + (size_t)(i * K) * size, &w, 1, 0));
        const float *got = rows_get(t, y, N, NB_F32);
        rows_expect(t, !memcmp(all + i * N, got, sizeof *got * (size_t)N), "row %d alone differs from it beside others",
                    (int)i);
    }
}

/* Decoded inside the product, where the device can. */
static void fused(nb_rowtest *t, const void *arg) {
    bool has = nb_dev_set_gemm(t->d, "fused") == NB_OK;
    rows_weight_products(t, arg);
    decodes(t, arg);
    if (has) rows_ok(t, nb_dev_set_gemm(t->d, NULL));
}

#define NF4(size, nested, dtype) {NB_FMT_NF4, size, nested, dtype}
static const weight_case one = {1, 1, NF4(64, false, NB_BF16)}, odd = {7, 33, NF4(64, true, NB_BF16)},
                         straddling = {33, 129, NF4(64, true, NB_F16)},
                         short_last = {70, 100, NF4(4096, false, NB_F32)},
                         small_blocks = {40, 160, NF4(32, true, NB_BF16)},
                         large_blocks = {65, 192, NF4(1024, true, NB_F16)},
                         many_blocks = {90, 256, NF4(64, true, NB_BF16)}, of_f32 = {64, 96, NF4(128, false, NB_F32)},
                         unrounded = {64, 100, NF4(64, true, NB_F32)}, /* every bit of a scale shows */
                         long_row = {50, 2080, NF4(64, true, NB_BF16)}, long_odd = {9, 1031, NF4(64, true, NB_BF16)},
                         tall = {4232, 64, NF4(64, true, NB_BF16)},
                         bf16 = {40, 1064, {.format = NB_FMT_BF16}}, f16 = {40, 264, {.format = NB_FMT_F16}};

/* GGUF's formats: two blocks of 256 a row, or 32's odd number of blocks. */
#define BLOCKS(F, f, size, bytes) \
    static const weight_case f = {9, size == 256 ? 512 : 224, {.format = NB_FMT_##F}};
NB_BLOCK_FORMATS(BLOCKS)
#undef BLOCKS

static const nb_rowcheck checks[] = {
#define BLOCKS(F, f, size, bytes) \
    {"decode/" #f, decodes, &f}, {"any_rows/" #f, same_for_any_rows, &f},
    NB_BLOCK_FORMATS(BLOCKS)
#undef BLOCKS
    {"decode/one", decodes, &one},
    {"decode/odd", decodes, &odd},
    {"decode/straddling", decodes, &straddling},
    {"decode/short_last", decodes, &short_last},
    {"decode/small_blocks", decodes, &small_blocks},
    {"decode/large_blocks", decodes, &large_blocks},
    {"decode/many_blocks", decodes, &many_blocks},
    {"decode/of_f32", decodes, &of_f32},
    {"decode/unrounded", decodes, &unrounded},
    {"products/q8_0", rows_weight_products, &q8_0},
    {"products/q4_k", rows_weight_products, &q4_k},
    {"products/q6_k", rows_weight_products, &q6_k},
    {"products/one", rows_weight_products, &one},
    {"products/odd", rows_weight_products, &odd},
    {"products/straddling", rows_weight_products, &straddling},
    {"products/small_blocks", rows_weight_products, &small_blocks},
    {"products/many_blocks", rows_weight_products, &many_blocks},
    {"products/of_f32", rows_weight_products, &of_f32},
    {"fused/of_f32", fused, &of_f32},
    {"fused/small_blocks", fused, &small_blocks},
    {"fused/large_blocks", fused, &large_blocks},
    {"fused/odd", fused, &odd},
    {"any_rows/long", same_for_any_rows, &long_row},
    {"any_rows/odd", same_for_any_rows, &long_odd},
    {"any_rows/tall", same_for_any_rows, &tall},
    {"any_rows/small_blocks", same_for_any_rows, &small_blocks},
    {"any_rows/bf16", same_for_any_rows, &bf16},
    {"any_rows/f16", same_for_any_rows, &f16},
};
const nb_rowfamily rows_nf4 = {"nf4", checks, NB_LEN(checks)};
