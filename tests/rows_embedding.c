/* The embedding, the rows that replace some of its own, and columns of logits, against double precision. */
#include "core/mem.h"
#include "tests/rows_data.h"
#include "tests/rows_weights.h"

typedef struct embedding_case {
    int64_t V, C, T;
    int64_t below; /* ids are below it: many of each kind when it is small */
    float scale, beta;
} embedding_case;

static void forward(nb_rowtest *t, const void *arg) {
    const embedding_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t C = s->C, size = s->V * C, n = s->T * C;
    int32_t *ids = rows_draw_ids(t, s->T, s->below), *at = rows_put_ints(t, ids, s->T);
    for (nb_format f = NB_FMT_F32; f <= NB_FMT_F16; f++) {
        float *w = rows_draw(t, size, 1, NB_F32);
        uint16_t *half = (uint16_t *)(void *)rows_doubles(t, size);
        double *y = rows_doubles(t, n);
        for (int64_t i = 0; i < size; i++) {
            if (f == NB_FMT_BF16) w[i] = nb_round_bf16(w[i]);
            half[i] = nb_f32_to_f16(w[i]);
            if (f == NB_FMT_F16) w[i] = nb_f16_to_f32(half[i]);
        }
        for (int64_t i = 0; i < n; i++) y[i] = (double)w[ids[i / C] * C + i % C] * (double)s->scale;
        nb_weight weight = {.format = f, .rows = s->V, .cols = C};
        weight.data = f == NB_FMT_F16 ? rows_put_bytes(t, half, (size_t)size * sizeof *half)
                                      : rows_put(t, w, size, f == NB_FMT_BF16 ? NB_BF16 : NB_F32);
        void *got = rows_out(t, n, e);
        rows_ok(t, t->d->k->embedding_fwd(t->d, got, &weight, at, s->T, s->scale));
        rows_compare(t, nb_format_name(f), got, y, n, e, rows_rounding(e));
    }
}

/* Formats that hold more than one value at a time: whole rows of blocks. */
static void forward_blocks(nb_rowtest *t, const void *arg) {
    const embedding_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t n = s->T * s->C;
    int32_t *ids = rows_draw_ids(t, s->T, s->below), *at = rows_put_ints(t, ids, s->T);
    for (nb_format f = NB_FMT_NF4; f < NB_FMT_COUNT; f++) {
        nb_weight weight;
        float *w = rows_weight(t, &weight, (weight_kind){f, 64, true, NB_BF16}, s->V, s->C);
        double *y = rows_doubles(t, n);
        for (int64_t i = 0; i < n; i++) y[i] = (double)w[ids[i / s->C] * s->C + i % s->C] * (double)s->scale;
        void *got = rows_out(t, n, e);
        rows_ok(t, t->d->k->embedding_fwd(t->d, got, &weight, at, s->T, s->scale));
        rows_compare(t, nb_format_name(f), got, y, n, e, rows_rounding(e));
    }
}

static void backward(nb_rowtest *t, const void *arg) {
    const embedding_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t C = s->C, size = s->V * C, n = s->T * C;
    int32_t *ids = rows_draw_ids(t, s->T, s->below), *at = rows_put_ints(t, ids, s->T);
    rows_tensor dy = rows_input(t, n, 1, e);
    double *dw = rows_doubles(t, size);
    for (int64_t i = 0; i < n; i++) dw[ids[i / C] * C + i % C] += dy.v[i] * (double)s->scale;
    float *got = rows_target(t, dw, size, NB_F32, s->beta);
    rows_reserve(t, s->T, C);
    rows_ok(t, t->d->k->embedding_bwd(t->d, got, dy.p, at, s->T, s->V, C, s->scale, s->beta));
    rows_compare(t, "dw", got, dw, size, NB_F32, 2 * rows_rounding(NB_F32));
}

/* Sums are in the order of the tokens: float by float, the same bits. Sizes that cancel show any other order. */
static void in_order(nb_rowtest *t, const void *arg) {
    const embedding_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t C = s->C, size = s->V * C, n = s->T * C;
    int32_t *ids = rows_draw_ids(t, s->T, s->below);
    int32_t *at = rows_put_ints(t, ids, s->T);
    float *x = rows_draw(t, n, 1, NB_F32), *sum = rows_draw(t, size, 1, NB_F32);
    double *want = rows_doubles(t, size);
    for (int64_t i = 0; i < n; i++) {
        x[i] *= (float)(1 << nb_rng_below(&t->rng, 20));
        if (e == NB_BF16) x[i] = nb_round_bf16(x[i]);
    }
    float *dw = rows_put(t, sum, size, NB_F32);
    for (int64_t i = 0; i < n; i++) sum[ids[i / C] * C + i % C] += x[i];
    for (int64_t i = 0; i < size; i++) want[i] = sum[i];
    void *dy = rows_put(t, x, n, e);
    rows_reserve(t, s->T, C);
    rows_ok(t, t->d->k->embedding_bwd(t->d, dw, dy, at, s->T, s->V, C, 1, 1));
    rows_compare(t, "dw", dw, want, size, NB_F32, ROWS_EXACT);
}

typedef struct replace_case {
    int64_t n_rows, C, T;
    float scale, beta;
} replace_case;

static void replace(nb_rowtest *t, const void *arg) {
    const replace_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t C = s->C, n = s->T * C, R = s->n_rows, size = R * C;
    int32_t *row_ids = rows_draw_ids(t, R, 2), *ids = rows_draw_ids(t, s->T, 3 * R + 2);
    for (int64_t j = 0; j < R; j++) row_ids[j] += (int32_t)(3 * j); /* ascending, with gaps; some never occur */
    rows_tensor rows = rows_input(t, size, 1, NB_F32), y = rows_input(t, n, 1, e), dy = rows_input(t, n, 1, e);
    double *drows = rows_doubles(t, size);
    for (int64_t i = 0; i < s->T; i++)
        for (int64_t j = 0; j < R; j++)
            for (int64_t c = 0; row_ids[j] == ids[i] && c < C; c++) {
                y.v[i * C + c] = rows.v[j * C + c] * (double)s->scale;
                drows[j * C + c] += dy.v[i * C + c] * (double)s->scale;
            }
    float *got = rows_target(t, drows, size, NB_F32, s->beta);
    int32_t *at = rows_put_ints(t, ids, s->T), *of = rows_put_ints(t, row_ids, R);
    rows_reserve(t, s->T, C);
    rows_ok(t, t->d->k->replace_rows_fwd(t->d, y.p, rows.p, at, s->T, of, R, C, s->scale));
    rows_ok(t, t->d->k->replace_rows_bwd(t->d, got, dy.p, at, s->T, of, R, C, s->scale, s->beta));
    rows_compare(t, "y", y.p, y.v, n, e, rows_rounding(e));
    rows_compare(t, "drows", got, drows, size, NB_F32, 2 * rows_rounding(NB_F32));
}

typedef struct columns_case {
    int64_t m, V, n;
} columns_case;

static void columns(nb_rowtest *t, const void *arg) {
    const columns_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t size = s->m * s->V, few = s->m * s->n;
    int32_t *column = rows_draw_ids(t, s->n, s->V / s->n);
    for (int64_t j = 0; j < s->n; j++) column[j] += (int32_t)(j * (s->V / s->n));
    int32_t *at = rows_put_ints(t, column, s->n);
    rows_tensor x = rows_input(t, few, 1, NB_F32), logits = rows_input(t, size, 1, NB_F32);
    rows_tensor grad = rows_input(t, size, 1, e);
    double *taken = rows_doubles(t, few);
    for (int64_t i = 0; i < few; i++) {
        int64_t j = i / s->n * s->V + column[i % s->n];
        logits.v[j] = x.v[i];
        taken[i] = grad.v[j];
        grad.v[j] = 0;
    }
    void *got = rows_out(t, few, e);
    rows_ok(t, t->d->k->put_columns(t->d, logits.p, x.p, at, s->m, s->V, s->n));
    rows_ok(t, t->d->k->take_columns(t->d, got, grad.p, at, s->m, s->V, s->n));
    rows_compare(t, "logits", logits.p, logits.v, size, NB_F32, ROWS_EXACT);
    rows_compare(t, "taken", got, taken, few, e, ROWS_EXACT);
    rows_compare(t, "what is left", grad.p, grad.v, size, e, ROWS_EXACT);
}

static const embedding_case blocks = {30, 256, 50, 30, 1.5f, 0};
static const embedding_case one = {1, 1, 1, 1, 1, 0}, odd = {10, 33, 100, 10, 1, 1}, many = {1000, 64, 333, 1000, 8, 0},
                            half = {65, 5, 7, 65, 0.5f, 0.5f}, runs = {50, 129, 700, 3, 1, 0},
                            model = {300, 2048, 40, 300, 1, 1};
static const replace_case r_one = {1, 1, 1, 1, 0}, r_odd = {3, 129, 50, 4.5f, 1}, r_many = {40, 72, 300, 1, 0},
                          r_model = {2, 2048, 20, 1, 1};
static const columns_case c_one = {1, 1, 1}, c_odd = {7, 101, 3}, c_many = {40, 1000, 30};
#define SHAPES(name, row)                                                                                             \
    {name "/one", row, &one}, {name "/odd", row, &odd}, {name "/many", row, &many}, {name "/half", row, &half},       \
    {name "/runs", row, &runs}, {name "/model", row, &model}
static const nb_rowcheck checks[] = {
    {"embedding_fwd/blocks", forward_blocks, &blocks},
    SHAPES("embedding_fwd", forward), SHAPES("embedding_bwd", backward),
    {"embedding_bwd/order", in_order, &runs},
    {"embedding_bwd/order of many", in_order, &odd},
    {"replace_rows/one", replace, &r_one},
    {"replace_rows/odd", replace, &r_odd},
    {"replace_rows/many", replace, &r_many},
    {"replace_rows/model", replace, &r_model},
    {"columns/one", columns, &c_one},
    {"columns/odd", columns, &c_odd},
    {"columns/many", columns, &c_many},
};
const nb_rowfamily rows_embedding = {"embedding", checks, NB_LEN(checks)};
