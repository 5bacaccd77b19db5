/* Attention over segments, windows, caps, groups of heads and caches, against double precision; and that what a segment
 * gives does not depend on what else is in the batch. */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "tests/reference.h"
#include "tests/rows_data.h"

typedef struct attention_case {
    int64_t H, KV, D, window;
    float cap, beta, range; /* range of q and k: wide ones make sharp softmaxes */
    nb_seg segs[6];         /* up to the first without queries */
} attention_case;

/* A batch on the host: its segments and what stands in their rows. */
typedef struct batch {
    const nb_seg *segs;
    int64_t n_segs, Tq, Tk;
    const float *q, *k, *v, *d_o;
} batch;

/* The same on the device. */
typedef struct tensors {
    void *q, *k, *v, *d_o, *segs, *o, *dq, *dk, *dv;
    float *lse;
} tensors;

static float scale_of(const attention_case *c) { return 1 / sqrtf((float)c->D); }

static batch batch_of(nb_rowtest *t, const attention_case *c, const nb_seg *segs, int64_t n_segs) {
    batch b = {.segs = segs, .n_segs = n_segs};
    for (int64_t i = 0; i < n_segs; i++) {
        b.Tq = segs[i].q0 + segs[i].qn;
        if (segs[i].k0 + segs[i].kn > b.Tk) b.Tk = segs[i].k0 + segs[i].kn;
    }
    int64_t nq = b.Tq * c->H * c->D, nk = b.Tk * c->KV * c->D;
    nb_dtype e = t->d->compute; /* inputs that rounding leaves as they are */
    b.q = rows_draw(t, nq, (double)c->range, e), b.k = rows_draw(t, nk, (double)c->range, e);
    b.v = rows_draw(t, nk, 1, e), b.d_o = rows_draw(t, nq, 1, e);
    return b;
}

static batch batch_of_case(nb_rowtest *t, const attention_case *c) {
    int64_t n = 0;
    while (n < NB_LEN(c->segs) && c->segs[n].qn) n++;
    return batch_of(t, c, c->segs, n);
}

static tensors put(nb_rowtest *t, const attention_case *c, const batch *b) {
    int64_t nq = b->Tq * c->H * c->D, nk = b->Tk * c->KV * c->D;
    nb_dtype e = t->d->elem;
    tensors x = {.q = rows_put(t, b->q, nq, e), .k = rows_put(t, b->k, nk, e), .v = rows_put(t, b->v, nk, e),
                 .d_o = rows_put(t, b->d_o, nq, e), .o = rows_out(t, nq, e), .lse = rows_out(t, b->Tq * c->H, NB_F32),
                 .dq = rows_out(t, nq, e), .dk = rows_out(t, nk, e), .dv = rows_out(t, nk, e)};
    x.segs = rows_put_bytes(t, b->segs, sizeof *b->segs * (size_t)b->n_segs);
    if (t->d->be->attention_ws)
        rows_ok(t, nb_dev_reserve(t->d, t->d->be->attention_ws(t->d, b->Tq, b->Tk, c->H, c->KV, c->D)));
    return x;
}

static void forward(nb_rowtest *t, const attention_case *c, const batch *b, const tensors *x, void *o, float *lse) {
    rows_ok(t, t->d->k->attention_fwd(t->d, o, lse, x->q, x->k, x->v, x->segs, b->n_segs, b->Tq, b->Tk, c->H, c->KV,
                                      c->D, scale_of(c), c->cap, c->window));
}

static void backward(nb_rowtest *t, const attention_case *c, const batch *b, const tensors *x, void *dq, void *dk,
                     void *dv, float beta) {
    rows_ok(t, t->d->k->attention_bwd(t->d, dq, beta, dk, beta, dv, beta, x->d_o, x->q, x->k, x->v, x->o, x->lse,
                                      x->segs, b->n_segs, b->Tq, b->Tk, c->H, c->KV, c->D, scale_of(c), c->cap,
                                      c->window));
}

/* Are n elements of x the same bits as those of y? */
static void expect_same(nb_rowtest *t, const char *what, const void *x, const void *y, int64_t n, nb_dtype dtype) {
    const float *a = rows_get(t, x, n, dtype), *b = rows_get(t, y, n, dtype);
    rows_expect(t, !memcmp(a, b, sizeof *a * (size_t)n), "%s differs", what);
}

static double *doubles(nb_rowtest *t, const float *x, int64_t n) {
    double *y = rows_doubles(t, n);
    for (int64_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

/* A batch, its rows in double precision, and what comes of them. */
typedef struct wanted {
    ref_attention a;
    double *q, *k, *v, *o, *lse;
} wanted;

static wanted wanted_of(nb_rowtest *t, const attention_case *c, const batch *b) {
    int64_t nq = b->Tq * c->H * c->D, nk = b->Tk * c->KV * c->D;
    wanted w = {.a = {.segs = b->segs, .n_segs = b->n_segs, .H = c->H, .KV = c->KV, .D = c->D, .window = c->window,
                      .scale = (double)scale_of(c), .cap = (double)c->cap},
                .q = doubles(t, b->q, nq), .k = doubles(t, b->k, nk), .v = doubles(t, b->v, nk),
                .o = rows_doubles(t, nq), .lse = rows_doubles(t, b->Tq * c->H)};
    ref_attention_fwd(w.o, w.lse, w.q, w.k, w.v, &w.a);
    return w;
}

static void forward_agrees(nb_rowtest *t, const attention_case *c, const batch *b, const tensors *x, const wanted *w) {
    int64_t nq = b->Tq * c->H * c->D;
    nb_dtype e = t->d->elem;
    void *bare = rows_out(t, nq, e);
    forward(t, c, b, x, x->o, x->lse);
    forward(t, c, b, x, bare, NULL);
    rows_compare(t, "o", x->o, w->o, nq, e, rows_tolerance(t, e));
    rows_compare(t, "lse", x->lse, w->lse, b->Tq * c->H, NB_F32, 1e-5);
    expect_same(t, "o without lse", bare, x->o, nq, e);
}

static void decode(nb_rowtest *t, const void *arg) {
    const attention_case *c = arg;
    const batch b = batch_of_case(t, c);
    tensors x = put(t, c, &b);
    wanted w = wanted_of(t, c, &b);
    forward_agrees(t, c, &b, &x, &w);
}

static void attention(nb_rowtest *t, const void *arg) {
    const attention_case *c = arg;
    const batch b = batch_of_case(t, c);
    tensors x = put(t, c, &b);
    wanted w = wanted_of(t, c, &b);
    int64_t nq = b.Tq * c->H * c->D, nk = b.Tk * c->KV * c->D;
    nb_dtype e = t->d->elem;
    double *dq = rows_doubles(t, nq), *dk = rows_doubles(t, nk), *dv = rows_doubles(t, nk);
    ref_attention_bwd(dq, dk, dv, doubles(t, b.d_o, nq), w.q, w.k, w.v, &w.a);
    /* Of bf16: p, its gradient and o (in the sum of do * o) are rounded on the way. */
    double tol = t->d->compute == NB_BF16 ? 1e-2 : rows_tolerance(t, e);

    forward_agrees(t, c, &b, &x, &w);
    backward(t, c, &b, &x, x.dq, x.dk, x.dv, 0);
    rows_compare(t, "dq", x.dq, dq, nq, e, tol);
    rows_compare(t, "dk", x.dk, dk, nk, e, tol);
    rows_compare(t, "dv", x.dv, dv, nk, e, tol);
    if (c->beta == 0) return;
    void *more_q = rows_target(t, dq, nq, e, c->beta), *more_k = rows_target(t, dk, nk, e, c->beta);
    void *more_v = rows_target(t, dv, nk, e, c->beta);
    backward(t, c, &b, &x, more_q, more_k, more_v, c->beta);
    rows_compare(t, "dq added", more_q, dq, nq, e, tol);
    rows_compare(t, "dk added", more_k, dk, nk, e, tol);
    rows_compare(t, "dv added", more_v, dv, nk, e, tol);
}

/* Each gradient alone is what it is among the others. */
static void one_gradient(nb_rowtest *t, const void *arg) {
    const attention_case *c = arg;
    const batch b = batch_of_case(t, c);
    tensors x = put(t, c, &b), y = put(t, c, &b);
    int64_t nq = b.Tq * c->H * c->D, nk = b.Tk * c->KV * c->D;
    forward(t, c, &b, &x, x.o, x.lse);
    backward(t, c, &b, &x, x.dq, x.dk, x.dv, 0);
    backward(t, c, &b, &x, y.dq, NULL, NULL, 0);
    backward(t, c, &b, &x, NULL, y.dk, NULL, 0);
    backward(t, c, &b, &x, NULL, NULL, y.dv, 0);
    backward(t, c, &b, &x, NULL, NULL, NULL, 0);
    expect_same(t, "dq alone", y.dq, x.dq, nq, t->d->elem);
    expect_same(t, "dk alone", y.dk, x.dk, nk, t->d->elem);
    expect_same(t, "dv alone", y.dv, x.dv, nk, t->d->elem);
}

/* Row `from` on of a matrix with so many columns, on the device. */
static void *row_at(void *p, int64_t row, int64_t columns, nb_dtype dtype) {
    return (char *)p + row * columns * (int64_t)nb_dtype_size(dtype);
}

static void expect_same_segment(nb_rowtest *t, const attention_case *c, const char *what, const tensors *x,
                                const nb_seg *s, const tensors *y, const nb_seg *r) {
    char name[64];
    const int64_t q = c->H * c->D, k = c->KV * c->D;
    const nb_dtype e = t->d->elem;
    const struct part {
        const char *name;
        void *x, *y;
        int64_t from_x, from_y, rows, columns;
        nb_dtype dtype;
    } parts[] = {
        {"o", x->o, y->o, s->q0, r->q0, s->qn, q, e},     {"lse", x->lse, y->lse, s->q0, r->q0, s->qn, c->H, NB_F32},
        {"dq", x->dq, y->dq, s->q0, r->q0, s->qn, q, e},  {"dk", x->dk, y->dk, s->k0, r->k0, s->kn, k, e},
        {"dv", x->dv, y->dv, s->k0, r->k0, s->kn, k, e},
    };
    for (int i = 0; i < (s->qn == s->kn ? NB_LEN(parts) : 2); i++) {
        const struct part *p = &parts[i];
        snprintf(name, sizeof name, "%s of a segment %s", p->name, what);
        expect_same(t, name, row_at(p->x, p->from_x, p->columns, p->dtype),
                    row_at(p->y, p->from_y, p->columns, p->dtype), p->rows * p->columns, p->dtype);
    }
}

/* Rows `from` of x become rows `to` of y, n rows. */
static void copy_rows(const float *y, int64_t to, const float *x, int64_t from, int64_t n, int64_t columns) {
    memcpy((float *)(uintptr_t)y + to * columns, x + from * columns, sizeof *x * (size_t)(n * columns));
}

/* A segment in a batch, the same alone, and the same among other segments at another place. */
static void packed(nb_rowtest *t, const void *arg) {
    const attention_case *c = arg;
    const nb_seg *s = &c->segs[1];
    const nb_seg alone[] = {{0, s->qn, 0, s->kn}};
    const nb_seg documents[] = {{0, 3, 0, 3}, {3, 1, 3, 1}, {4, s->qn, 4, s->kn}};
    const nb_seg queries[] = {{0, 1, 0, 13}, {1, 1, 13, 1}, {2, s->qn, 14, s->kn}};
    const nb_seg *moved = s->qn > 1 ? documents : queries;
    const batch batches[] = {batch_of_case(t, c), batch_of(t, c, alone, 1), batch_of(t, c, moved, 3)};
    const nb_seg *places[] = {s, &alone[0], &moved[2]};
    tensors x[3];
    for (int i = 0; i < 3; i++) {
        const batch *b = &batches[i], *from = &batches[0];
        const nb_seg *p = places[i];
        if (i > 0) {
            copy_rows(b->q, p->q0, from->q, s->q0, s->qn, c->H * c->D);
            copy_rows(b->d_o, p->q0, from->d_o, s->q0, s->qn, c->H * c->D);
            copy_rows(b->k, p->k0, from->k, s->k0, s->kn, c->KV * c->D);
            copy_rows(b->v, p->k0, from->v, s->k0, s->kn, c->KV * c->D);
        }
        x[i] = put(t, c, b);
        forward(t, c, b, &x[i], x[i].o, x[i].lse);
        if (s->qn == s->kn) backward(t, c, b, &x[i], x[i].dq, x[i].dk, x[i].dv, 0);
    }
    expect_same_segment(t, c, "alone", &x[1], places[1], &x[0], s);
    expect_same_segment(t, c, "elsewhere", &x[2], places[2], &x[0], s);
}

/* More sequences in a step of generation than a launch takes at a time, each against a cache of its own length. */
static void many_sequences(nb_rowtest *t, const void *arg) {
    const attention_case *c = arg;
    enum { N = 37 };
    nb_seg segs[N];
    int32_t rows = 0;
    for (int i = 0; i < N; i++) {
        segs[i] = (nb_seg){i, 1, rows, 1 + i * 7 % 50};
        rows += segs[i].kn + 3; /* room for what is to come */
    }
    const batch b = batch_of(t, c, segs, N);
    tensors x = put(t, c, &b);
    wanted w = wanted_of(t, c, &b);
    forward_agrees(t, c, &b, &x, &w);
}

#define CASE(name, ...) static const attention_case name = {__VA_ARGS__}
CASE(one_token, 1, 1, 64, 0, 0, 1, 1, {{0, 1, 0, 1}});
CASE(documents, 4, 1, 64, 0, 0, 1, 4, {{0, 64, 0, 64}, {64, 33, 64, 33}, {97, 1, 97, 1}, {98, 6, 98, 6}});
CASE(two_tiles, 1, 1, 64, 0, 0, 0, 1, {{0, 150, 0, 150}});
CASE(capped, 2, 1, 80, 0, 20, 0, 6, {{0, 70, 0, 70}, {70, 7, 70, 7}});
CASE(windowed, 1, 1, 96, 37, 0, 0, 1, {{0, 140, 0, 140}});
CASE(heads_of_128, 2, 1, 128, 0, 0, 1, 1, {{0, 35, 0, 35}, {35, 66, 35, 66}});
CASE(heads_of_256, 1, 1, 256, 0, 0, 1, 1, {{0, 66, 0, 66}});
CASE(gemma, 2, 1, 256, 20, 30, 0, 4, {{0, 5, 0, 5}, {5, 30, 5, 30}});
CASE(odd_size, 6, 2, 20, 0, 0, 1, 1, {{0, 17, 0, 17}, {17, 3, 17, 3}, {20, 35, 20, 35}});
CASE(odd_everything, 3, 3, 33, 7, 5, 0, 3, {{0, 20, 0, 20}, {20, 21, 20, 21}});
CASE(self_only, 2, 1, 64, 1, 0, 0, 1, {{0, 20, 0, 20}});
CASE(chunk_of_prompt, 2, 1, 64, 0, 0, 0, 1, {{0, 40, 49, 111}, {40, 9, 0, 49}}); /* keys in another order */
CASE(chunk_windowed, 2, 1, 128, 30, 0, 0, 1, {{0, 33, 0, 100}});
CASE(decode_long, 9, 3, 64, 0, 0, 0, 1, {{0, 1, 0, 300}});
CASE(decode_batch, 8, 2, 48, 0, 30, 0, 3, {{0, 1, 0, 70}, {1, 1, 70, 1}, {2, 1, 71, 129}});
CASE(decode_window, 2, 1, 256, 100, 0, 0, 1, {{0, 1, 0, 257}});
CASE(decode_shared, 17, 1, 128, 0, 0, 0, 1, {{0, 1, 0, 70}}); /* more heads share a key than a block takes */
CASE(decode_20, 4, 2, 20, 0, 0, 0, 1, {{0, 1, 0, 90}, {1, 1, 90, 66}});
CASE(pack_64, 2, 1, 64, 0, 0, 0, 1, {{0, 45, 0, 45}, {45, 68, 45, 68}, {113, 9, 113, 9}});
CASE(pack_128, 1, 1, 128, 0, 0, 0, 1, {{0, 20, 0, 20}, {20, 35, 20, 35}, {55, 5, 55, 5}});
CASE(pack_window, 1, 1, 96, 24, 0, 0, 1, {{0, 17, 0, 17}, {17, 66, 17, 66}, {83, 3, 83, 3}});
CASE(pack_20, 2, 1, 20, 0, 0, 0, 1, {{0, 30, 0, 30}, {30, 37, 30, 37}, {67, 2, 67, 2}});
CASE(pack_decode, 2, 1, 64, 0, 0, 0, 1, {{0, 1, 0, 80}, {1, 1, 80, 150}, {2, 1, 230, 7}});
CASE(one_64, 2, 1, 64, 0, 0, 0, 1, {{0, 30, 0, 30}});
CASE(one_256, 1, 1, 256, 0, 0, 0, 1, {{0, 20, 0, 20}});
CASE(one_20, 2, 1, 20, 0, 0, 0, 1, {{0, 20, 0, 20}});
CASE(many, 4, 2, 64, 0, 0, 0, 1, {{0}});

#define CHECK(run, name) {#run "/" #name, run, &name}
static const nb_rowcheck checks[] = {
    CHECK(attention, one_token),       CHECK(attention, documents),     CHECK(attention, two_tiles),
    CHECK(attention, capped),          CHECK(attention, windowed),      CHECK(attention, heads_of_128),
    CHECK(attention, heads_of_256),    CHECK(attention, gemma),         CHECK(attention, odd_size),
    CHECK(attention, odd_everything),  CHECK(attention, self_only),     CHECK(attention, chunk_of_prompt),
    CHECK(attention, chunk_windowed),  CHECK(decode, decode_long),   CHECK(decode, decode_batch),
    CHECK(decode, decode_window),   CHECK(decode, decode_shared), CHECK(decode, decode_20),
    CHECK(one_gradient, one_64),       CHECK(one_gradient, one_256),    CHECK(one_gradient, one_20),
    CHECK(packed, pack_64),            CHECK(packed, pack_128),         CHECK(packed, pack_window),
    CHECK(packed, pack_20),            CHECK(packed, pack_decode),      CHECK(many_sequences, many),
};
const nb_rowfamily rows_attention = {"attention", checks, NB_LEN(checks)};
