/* Activations, additions, fills, dropout, rotations and rows by index against double precision. */
#include "core/mem.h"
#include "tests/reference.h"
#include "tests/rows_data.h"

/* n elements that begin `skip` elements behind an aligned address. */
typedef struct flat_case {
    int64_t n, skip;
    float beta, range;
    nb_act act;
} flat_case;

static void glu(nb_rowtest *t, const void *arg) {
    const flat_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t n = s->n;
    rows_tensor g = rows_input_at(t, s->skip, n, s->range, e), u = rows_input_at(t, s->skip, n, 1, e);
    rows_tensor dy = rows_input_at(t, s->skip, n, 1, e);
    double *y = rows_doubles(t, n), *dg = rows_doubles(t, n), *du = rows_doubles(t, n);
    double *dg1 = rows_doubles(t, n), *du1 = rows_doubles(t, n);
    ref_glu_fwd(y, g.v, u.v, n, s->act);
    ref_glu_bwd(dg, du, dy.v, g.v, u.v, n, s->act);
    ref_glu_bwd(dg1, du1, dy.v, g.v, u.v, n, s->act);
    void *got = rows_target_at(t, s->skip, y, n, e, 0), *got_g1 = rows_out(t, n, e), *got_u1 = rows_out(t, n, e);
    void *got_g = rows_target_at(t, s->skip, dg, n, e, s->beta), *got_u = rows_target_at(t, s->skip, du, n, e, s->beta);
    const nb_kernels *k = t->d->k;
    rows_ok(t, k->glu_fwd(t->d, got, g.p, u.p, n, s->act));
    rows_ok(t, k->glu_bwd(t->d, got_g, s->beta, got_u, s->beta, dy.p, g.p, u.p, n, s->act));
    rows_ok(t, k->glu_bwd(t->d, got_g1, 0, NULL, 0, dy.p, g.p, u.p, n, s->act));
    rows_ok(t, k->glu_bwd(t->d, NULL, 0, got_u1, 0, dy.p, g.p, u.p, n, s->act));
    rows_compare(t, "y", got, y, n, e, rows_rounding(e));
    rows_compare(t, "dgate", got_g, dg, n, e, rows_rounding(e));
    rows_compare(t, "dup", got_u, du, n, e, rows_rounding(e));
    rows_compare(t, "dgate alone", got_g1, dg1, n, e, rows_rounding(e));
    rows_compare(t, "dup alone", got_u1, du1, n, e, rows_rounding(e));
}

static void add(nb_rowtest *t, const void *arg) {
    const flat_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t n = s->n;
    rows_tensor x1 = rows_input_at(t, s->skip, n, 1, e), x2 = rows_input_at(t, s->skip, n, 1, e);
    double *sum = rows_doubles(t, n), *copy = rows_doubles(t, n), *in_place = rows_doubles(t, n);
    for (int64_t i = 0; i < n; i++) sum[i] = in_place[i] = x1.v[i] + x2.v[i], copy[i] = x1.v[i];
    void *got = rows_target_at(t, s->skip, sum, n, e, s->beta);
    void *got_copy = rows_target_at(t, s->skip, copy, n, e, s->beta);
    rows_ok(t, t->d->k->add(t->d, got, x1.p, x2.p, n, s->beta));
    rows_ok(t, t->d->k->add(t->d, got_copy, x1.p, NULL, n, s->beta));
    rows_ok(t, t->d->k->add(t->d, x2.p, x1.p, x2.p, n, 0));
    rows_compare(t, "x1 + x2", got, sum, n, e, rows_rounding(e));
    rows_compare(t, "x1", got_copy, copy, n, e, s->beta == 0 ? ROWS_EXACT : rows_rounding(e));
    rows_compare(t, "x1 + x2 in the place of x2", x2.p, in_place, n, e, rows_rounding(e));
}

static void fill(nb_rowtest *t, const void *arg) {
    const flat_case *s = arg;
    double *want = rows_doubles(t, s->n);
    for (int64_t i = 0; i < s->n; i++) want[i] = 0.25;
    void *x = rows_target_at(t, s->skip, want, s->n, t->d->elem, 0);
    float *f = rows_target_at(t, s->skip, want, s->n, NB_F32, 0);
    rows_ok(t, t->d->k->fill(t->d, x, t->d->elem, 0.25f, s->n));
    rows_ok(t, t->d->k->fill(t->d, f, NB_F32, 0.25f, s->n));
    rows_compare(t, "elements", x, want, s->n, t->d->elem, ROWS_EXACT);
    rows_compare(t, "floats", f, want, s->n, NB_F32, ROWS_EXACT);
}

static void softcap(nb_rowtest *t, const void *arg) {
    const flat_case *s = arg;
    rows_tensor x = rows_input_at(t, s->skip, s->n, s->range, NB_F32);
    for (int64_t i = 0; i < s->n; i++) x.v[i] = 3 * tanh(x.v[i] / 3);
    rows_ok(t, t->d->k->softcap(t->d, x.p, s->n, 3));
    rows_compare(t, "x", x.p, x.v, s->n, NB_F32, rows_rounding(NB_F32));
}

typedef struct dropout_case {
    int64_t T, C, skip;
    float p, beta;
} dropout_case;

/* The mask is exactly that of core/rng.h, and the same when the rows come in two calls. */
static void dropout(nb_rowtest *t, const void *arg) {
    const dropout_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t T = s->T, C = s->C, n = T * C, cut = T / 2, size = nb_dtype_size(e);
    const uint64_t seed = 0x123456789abcdefull;
    rows_tensor x = rows_input_at(t, s->skip, n, 1, e);
    int32_t *sample = rows_draw_ids(t, T, 1 << 30), *pos = rows_draw_ids(t, T, 9000);
    double *y = rows_doubles(t, n), *parts = rows_doubles(t, n);
    for (int64_t i = 0; i < n; i++)
        parts[i] = y[i] = x.v[i] * ref_dropout_factor((uint32_t)sample[i / C], pos[i / C], i % C, s->p, seed, 17, 5);
    uint32_t *samples = (uint32_t *)rows_put_ints(t, sample, T);
    int32_t *positions = rows_put_ints(t, pos, T);
    char *got = rows_target_at(t, s->skip, y, n, e, s->beta), *got_parts = rows_out(t, n, e);
    const nb_kernels *k = t->d->k;
    rows_ok(t, k->dropout(t->d, got, x.p, samples, positions, T, C, s->p, seed, 17, 5, s->beta));
    rows_ok(t, k->dropout(t->d, got_parts + cut * C * size, (char *)x.p + cut * C * size, samples + cut,
                          positions + cut, T - cut, C, s->p, seed, 17, 5, 0));
    rows_ok(t, k->dropout(t->d, got_parts, x.p, samples, positions, cut, C, s->p, seed, 17, 5, 0));
    rows_compare(t, "y", got, y, n, e, rows_rounding(e));
    rows_compare(t, "y in two calls", got_parts, parts, n, e, rows_rounding(e));
    const float *z = rows_get(t, got_parts, n, e);
    for (int64_t i = 0; i < n; i++)
        rows_expect(t, (z[i] == 0) == (parts[i] == 0), "mask differs at row %lld, column %lld", (long long)(i / C),
                    (long long)(i % C));
}

typedef struct rope_case {
    int64_t T, heads, D, rot;
    float beta;
} rope_case;

static void rope(nb_rowtest *t, const void *arg) {
    enum { POSITIONS = 40 };
    const rope_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t n = s->T * s->heads * s->D, table = POSITIONS * (s->rot / 2);
    int32_t *pos = rows_draw_ids(t, s->T, POSITIONS);
    int32_t *positions = rows_put_ints(t, pos, s->T);
    rows_tensor c = rows_input(t, table, 1, NB_F32), v = rows_input(t, table, 1, NB_F32);
    for (int inverse = 0; inverse < 2; inverse++) {
        rows_tensor x = rows_input(t, n, 1, e);
        double *y = rows_doubles(t, n), *in_place = rows_doubles(t, n);
        ref_rope(y, x.v, c.v, v.v, pos, s->T, s->heads, s->D, s->rot, inverse);
        ref_rope(in_place, x.v, c.v, v.v, pos, s->T, s->heads, s->D, s->rot, inverse);
        void *got = rows_target(t, y, n, e, s->beta);
        rows_ok(t, t->d->k->rope(t->d, got, x.p, c.p, v.p, positions, s->T, s->heads, s->D, s->rot, inverse, s->beta));
        rows_ok(t, t->d->k->rope(t->d, x.p, x.p, c.p, v.p, positions, s->T, s->heads, s->D, s->rot, inverse, 0));
        rows_compare(t, inverse ? "y, turned back" : "y", got, y, n, e, rows_rounding(e));
        rows_compare(t, "in place", x.p, in_place, n, e, rows_rounding(e));
    }
}

typedef struct index_case {
    int64_t n, rows, C; /* n of `rows` rows of C are meant */
    float beta;
} index_case;

/* n different numbers below `rows`, in no order. */
static int32_t *draw_places(nb_rowtest *t, int64_t n, int64_t rows) {
    int64_t *all = (int64_t *)(void *)rows_doubles(t, rows);
    int32_t *out = rows_draw_ids(t, n, rows);
    for (int64_t i = 0; i < rows; i++) all[i] = i;
    nb_rng_shuffle(&t->rng, all, rows);
    for (int64_t i = 0; i < n; i++) out[i] = (int32_t)all[i];
    return out;
}

static void rows_by_index(nb_rowtest *t, const void *arg) {
    const index_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t C = s->C, n = s->n, few = n * C, many = s->rows * C;
    rows_tensor table = rows_input(t, many, 1, e), x = rows_input(t, few, 1, e), scale = rows_input(t, n, 2, NB_F32);
    int32_t *index = draw_places(t, n, s->rows), *at = rows_put_ints(t, index, n);
    double *gathered = rows_doubles(t, few), *scaled = rows_doubles(t, few), *in_place = rows_doubles(t, few);
    double *scattered = rows_doubles(t, many), *plain = rows_doubles(t, many);
    for (int64_t i = 0; i < few; i++) {
        gathered[i] = table.v[index[i / C] * C + i % C];
        scaled[i] = in_place[i] = x.v[i] * scale.v[i / C];
    }
    /* Rows that are not meant stay: their places are poisoned or hold what they held. */
    void *got_gathered = rows_out(t, few, e), *got_scaled = rows_target(t, scaled, few, e, s->beta);
    rows_tensor before = rows_input(t, many, 1, e), before1 = rows_input(t, many, 1, e);
    for (int64_t i = 0; i < many; i++) scattered[i] = before.v[i], plain[i] = before1.v[i];
    for (int64_t i = 0; i < few; i++) {
        int64_t j = index[i / C] * C + i % C;
        scattered[j] = x.v[i] * scale.v[i / C] + (double)s->beta * before.v[j];
        plain[j] = x.v[i] + (double)s->beta * before1.v[j];
    }
    const nb_kernels *k = t->d->k;
    rows_ok(t, k->gather_rows(t->d, got_gathered, table.p, at, n, C));
    rows_ok(t, k->scatter_rows(t->d, before.p, x.p, at, scale.p, n, C, s->beta));
    rows_ok(t, k->scatter_rows(t->d, before1.p, x.p, at, NULL, n, C, s->beta));
    rows_ok(t, k->scale_rows(t->d, got_scaled, x.p, scale.p, n, C, s->beta));
    rows_ok(t, k->scale_rows(t->d, x.p, x.p, scale.p, n, C, 0));
    rows_compare(t, "gathered", got_gathered, gathered, few, e, ROWS_EXACT);
    rows_compare(t, "scattered", before.p, scattered, many, e, rows_rounding(e));
    rows_compare(t, "scattered, not scaled", before1.p, plain, many, e, rows_rounding(e));
    rows_compare(t, "scaled", got_scaled, scaled, few, e, rows_rounding(e));
    rows_compare(t, "scaled in place", x.p, in_place, few, e, rows_rounding(e));
}

/* Rows of C inside longer ones; what stands between them stays. */
typedef struct part_case {
    int64_t T, C, ldy, ldx;
    float beta;
} part_case;

static void copy_rows(nb_rowtest *t, const void *arg) {
    const part_case *s = arg;
    nb_dtype e = t->d->elem;
    rows_tensor x = rows_input(t, s->T * s->ldx, 1, e), y = rows_input(t, s->T * s->ldy, 1, e);
    int64_t skip = s->ldy - s->C; /* the last columns of y, as the second half of a fused projection */
    for (int64_t i = 0; i < s->T * s->C; i++) {
        double *to = &y.v[i / s->C * s->ldy + skip + i % s->C];
        *to = x.v[i / s->C * s->ldx + i % s->C] + (double)s->beta * *to;
    }
    char *at = (char *)y.p + skip * nb_dtype_size(e);
    rows_ok(t, t->d->k->copy_rows(t->d, at, s->ldy, x.p, s->ldx, s->T, s->C, s->beta));
    rows_compare(t, "y", y.p, y.v, s->T * s->ldy, e, s->beta == 0 ? ROWS_EXACT : rows_rounding(e));
}

/* One; a few; off alignment; several blocks of whole vectors, with gates far out on either side. */
#define FLAT(a)                                                                            \
    static const flat_case one_##a = {1, 0, 0, 4, NB_ACT_##a}, tail_##a = {13, 0, 1, 4, NB_ACT_##a}, \
                           moved_##a = {1003, 3, 1, 4, NB_ACT_##a}, long_##a = {20008, 0, 0, 120, NB_ACT_##a}
FLAT(SILU);
FLAT(GELU_TANH);
FLAT(GELU_ERF);
FLAT(RELU);
#define GLU(a) \
    {"glu/" #a " one", glu, &one_##a}, {"glu/" #a " tail", glu, &tail_##a}, {"glu/" #a " moved", glu, &moved_##a}, \
    {"glu/" #a " long", glu, &long_##a}
static const flat_case half = {4096, 0, 0.5f, 1, NB_ACT_SILU};
#define SIZES(row)                                                                                                  \
    {#row "/one", row, &one_SILU}, {#row "/tail", row, &tail_SILU}, {#row "/moved", row, &moved_SILU},              \
    {#row "/long", row, &long_SILU}, {#row "/half", row, &half}
static const dropout_case drop_one = {1, 1, 0, 0, 0}, drop_none = {10, 33, 0, 0, 1}, drop_few = {200, 64, 0, 0.1f, 0},
                          drop_half = {50, 577, 1, 0.5f, 1}, drop_wide = {9, 2056, 0, 0.05f, 0};
static const rope_case turn_small = {3, 1, 4, 2, 0}, turn_llama = {21, 3, 64, 64, 1}, turn_part = {10, 2, 80, 32, 0},
                       turn_odd = {5, 3, 22, 10, 1}, turn_none = {4, 2, 16, 0, 0}, turn_many = {3, 40, 128, 128, 0};
static const part_case p_one = {1, 1, 1, 1, 0}, p_odd = {7, 19, 40, 23, 1}, p_half = {5, 512, 1024, 512, 0},
                       p_moved = {6, 16, 24, 19, 0}, p_model = {3, 2048, 2560, 4096, 1};
static const index_case few = {1, 1, 1, 0}, odd = {7, 19, 129, 1}, model = {5, 9, 2048, 0}, tall = {300, 301, 24, 1};
static const index_case narrow = {1, 4, 3, 0.5f};

/* n rows of C; DoRA's scales for C rows of a weight with `rows` columns and rank n. */
static void columns(nb_rowtest *t, const void *arg) {
    const index_case *s = arg;
    nb_dtype e = t->d->elem;
    int64_t R = s->n, N = s->C, K = s->rows, n = R * N;
    const double by = 0.75;
    rows_tensor x = rows_input(t, n, 1, e), k = rows_input(t, N, 1, NB_F32), b = rows_input(t, n, 1, NB_F32);
    double *y = rows_doubles(t, n), *scale = rows_doubles(t, N), *inverse = rows_doubles(t, N);
    float *A = rows_draw(t, R * K, 1, NB_F32), *W = rows_draw(t, N * K, 1, NB_F32);
    float *squares = rows_draw(t, N, 1, NB_F32), *aw = rows_draw(t, n, 1, NB_F32), *bg = rows_draw(t, n, 1, NB_F32);
    for (int64_t i = 0; i < n; i++) y[i] = x.v[i] * k.v[i % N];
    for (int64_t j = 0; j < N; j++) {
        double norm = 0, own = 0;
        for (int64_t c = 0; c < K; c++) {
            double v = (double)W[j * K + c];
            own += v * v;
            for (int64_t r = 0; r < R; r++) v += by * b.v[j * R + r] * (double)A[r * K + c];
            norm += v * v;
        }
        for (int64_t r = 0; r < R; r++) {
            double dot = 0, g = 0;
            for (int64_t c = 0; c < K; c++) dot += (double)A[r * K + c] * (double)W[j * K + c];
            for (int64_t q = 0; q < R; q++)
                for (int64_t c = 0; c < K; c++)
                    g += b.v[j * R + q] * (double)A[q * K + c] * (double)A[r * K + c];
            aw[r * N + j] = (float)dot, bg[j * R + r] = (float)g;
        }
        squares[j] = (float)own;
        inverse[j] = 1 / sqrt(norm), scale[j] = k.v[j] / sqrt(norm);
    }
    void *got = rows_target(t, y, n, e, s->beta);
    float *got_scale = rows_out(t, N, NB_F32), *got_inverse = rows_out(t, N, NB_F32);
    rows_ok(t, t->d->k->scale_columns(t->d, got, x.p, k.p, R, N, s->beta));
    rows_ok(t, t->d->k->dora_scale(t->d, got_scale, got_inverse, k.p, rows_put(t, squares, N, NB_F32), b.p,
                                   rows_put(t, aw, n, NB_F32), rows_put(t, bg, n, NB_F32), N, R, (float)by));
    rows_compare(t, "scaled columns", got, y, n, e, rows_rounding(e));
    rows_compare(t, "scale", got_scale, scale, N, NB_F32, 1e-4);
    rows_compare(t, "inverse", got_inverse, inverse, N, NB_F32, 1e-4);
}

static const index_case dora_odd = {7, 40, 129, 1}, dora_model = {8, 64, 512, 0};
static const nb_rowcheck checks[] = {
    {"columns/narrow", columns, &narrow}, {"columns/odd", columns, &dora_odd}, {"columns/model", columns, &dora_model},
    GLU(SILU), GLU(GELU_TANH), GLU(GELU_ERF), GLU(RELU), SIZES(add), SIZES(fill), SIZES(softcap),
    {"dropout/one", dropout, &drop_one},
    {"dropout/none", dropout, &drop_none},
    {"dropout/few", dropout, &drop_few},
    {"dropout/half", dropout, &drop_half},
    {"dropout/wide", dropout, &drop_wide},
    {"rope/small", rope, &turn_small},
    {"rope/llama", rope, &turn_llama},
    {"rope/part of the head", rope, &turn_part},
    {"rope/odd", rope, &turn_odd},
    {"rope/nothing", rope, &turn_none},
    {"rope/many heads", rope, &turn_many},
    {"rows/one", rows_by_index, &few},
    {"rows/odd", rows_by_index, &odd},
    {"rows/model", rows_by_index, &model},
    {"rows/tall", rows_by_index, &tall},
    {"copy_rows/one", copy_rows, &p_one},
    {"copy_rows/odd", copy_rows, &p_odd},
    {"copy_rows/half", copy_rows, &p_half},
    {"copy_rows/moved", copy_rows, &p_moved},
    {"copy_rows/model", copy_rows, &p_model},
};
const nb_rowfamily rows_elementwise = {"elementwise", checks, NB_LEN(checks)};
