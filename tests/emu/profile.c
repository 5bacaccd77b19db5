/* Runs the rows where a step of training and a token of generation spend their time, with shapes like a model's (aligned,
 * whole tiles), once each on the emulator under its checker. With EMU_PROFILE=FILE the checker writes there what every
 * access of memory costs, which tests/test_cuda_check.sh holds against the least possible. Results are compared elsewhere
 * (tests/rows_*.c). */
#include <stdio.h>

#include "core/status.h"
#include "tests/rows_weights.h"

static void *in(nb_rowtest *t, int64_t n) { return rows_put(t, rows_draw(t, n, 1, t->d->elem), n, t->d->elem); }
static float *in_f32(nb_rowtest *t, int64_t n) { return rows_put(t, rows_draw(t, n, 1, NB_F32), n, NB_F32); }
static void *out(nb_rowtest *t, int64_t n) { return rows_out(t, n, t->d->elem); }
static float *out_f32(nb_rowtest *t, int64_t n) { return rows_out(t, n, NB_F32); }
static int32_t *ids(nb_rowtest *t, int64_t n, int64_t below) {
    return rows_put_bytes(t, rows_draw_ids(t, n, below), sizeof(int32_t) * (size_t)n);
}
static void reserve(nb_rowtest *t, size_t bytes) { rows_ok(t, nb_dev_reserve(t->d, bytes)); }

static void norms(nb_rowtest *t, const void *arg) {
    (void)arg;
    enum { T = 64, C = 2048 };
    nb_dev *d = t->d;
    float *w = in_f32(t, C), *rstd = out_f32(t, T), *mean = out_f32(t, T), *dw = out_f32(t, C), *db = out_f32(t, C);
    void *x = in(t, T * C), *dy = in(t, T * C), *y = out(t, T * C), *dx = out(t, T * C);
    reserve(t, d->be->rows_ws(d, T, C));
    rows_ok(t, d->k->rmsnorm_fwd(d, y, rstd, x, w, T, C, 1e-6f, 0));
    rows_ok(t, d->k->rmsnorm_bwd(d, dx, 0, dw, 0, dy, x, w, rstd, T, C, 0));
    rows_ok(t, d->k->layernorm_fwd(d, y, mean, rstd, x, w, w, T, C, 1e-6f));
    rows_ok(t, d->k->layernorm_bwd(d, dx, 0, dw, 0, db, 0, dy, x, w, mean, rstd, T, C));
}

static void elementwise(nb_rowtest *t, const void *arg) {
    (void)arg;
    enum { T = 16, C = 2048, H = 32, D = 64 };
    nb_dev *d = t->d;
    void *x = in(t, T * C), *x2 = in(t, T * C), *x3 = in(t, T * C), *y = out(t, T * C), *y2 = out(t, T * C);
    float *cosines = in_f32(t, T * D / 2), *sines = in_f32(t, T * D / 2);
    int32_t *pos = ids(t, T, T);
    rows_ok(t, d->k->rope(d, y, x, cosines, sines, pos, T, H, D, D, false, 0));
    rows_ok(t, d->k->glu_fwd(d, y, x, x2, T * C, NB_ACT_SILU));
    rows_ok(t, d->k->glu_bwd(d, y, 0, y2, 0, x, x2, x3, T * C, NB_ACT_SILU));
    rows_ok(t, d->k->add(d, y, x, x2, T * C, 0));
    rows_ok(t, d->k->dropout(d, y, x, (const uint32_t *)pos, pos, T, C, 0.1f, 1, 2, 3, 0));
}

static void attention(nb_rowtest *t, const void *arg) {
    const int64_t D = *(const int *)arg, H = 4, KV = 2, T = 256, past = 1024;
    nb_dev *d = t->d;
    const nb_seg whole = {0, (int32_t)T, 0, (int32_t)T}, token = {0, 1, 0, (int32_t)past};
    const nb_seg *segs = rows_put_bytes(t, &whole, sizeof whole), *last = rows_put_bytes(t, &token, sizeof token);
    void *q = in(t, T * H * D), *k = in(t, past * KV * D), *v = in(t, past * KV * D), *d_o = in(t, T * H * D);
    void *o = out(t, T * H * D), *dq = out(t, T * H * D), *dk = out(t, T * KV * D), *dv = out(t, T * KV * D);
    float *lse = out_f32(t, T * H);
    const float scale = 0.125f;
    reserve(t, d->be->attention_ws(d, T, T, H, KV, D));
    rows_ok(t, d->k->attention_fwd(d, o, lse, q, k, v, segs, 1, T, T, H, KV, D, scale, 0, 0));
    rows_ok(t, d->k->attention_bwd(d, dq, 0, dk, 0, dv, 0, d_o, q, k, v, o, lse, segs, 1, T, T, H, KV, D, scale, 0, 0));
    reserve(t, d->be->attention_ws(d, 1, past, H, KV, D));
    rows_ok(t, d->k->attention_fwd(d, o, NULL, q, k, v, last, 1, 1, past, H, KV, D, scale, 0, 0));
}

static void products(nb_rowtest *t, const void *arg) {
    (void)arg;
    enum { T = 128, N = 256, K = 512, R = 16 };
    nb_dev *d = t->d;
    const nb_dtype e = d->elem;
    const weight_kind nf4 = {NB_FMT_NF4, 64, true, NB_BF16}, bf16 = {.format = NB_FMT_BF16};
    nb_weight w, v;
    rows_weight(t, &w, nf4, N, K);
    rows_weight(t, &v, bf16, N, K);
    void *x = in(t, T * K), *dy = in(t, T * N), *y = out(t, T * N), *dx = out(t, T * K), *h = out(t, T * R);
    float *a = in_f32(t, R * K), *b = in_f32(t, N * R), *da = out_f32(t, R * K), *db = out_f32(t, N * R);
    size_t need = d->be->gemm_ws(d, T, N, K), more = d->be->weight_ws(d, &w, T);
    reserve(t, need > more ? need : more);
    rows_ok(t, d->k->weight_fwd(d, nb_mat_of(y, N, e), x, &w, T, 0));
    rows_ok(t, d->k->weight_bwd(d, dx, dy, &w, T, 0));
    rows_ok(t, d->k->weight_fwd(d, nb_mat_of(y, N, e), x, &v, T, 0));
    rows_ok(t, nb_dev_set_gemm(d, "fused"));
    rows_ok(t, d->k->weight_fwd(d, nb_mat_of(y, N, e), x, &w, T, 0));
    rows_ok(t, d->k->weight_bwd(d, dx, dy, &w, T, 0));
    rows_ok(t, nb_dev_set_gemm(d, "mma"));
    for (int few = 1; few <= 4; few += 3) { /* generation */
        rows_ok(t, d->k->weight_fwd(d, nb_mat_of(y, N, e), x, &w, few, 0));
        rows_ok(t, d->k->weight_fwd(d, nb_mat_of(y, N, e), x, &v, few, 0));
    }
    /* an adapter, forward and backward: h = x A^T, y += h B^T; dB = dy^T h, dh = dy B, dA = dh^T x, dx += dh A */
    rows_ok(t, d->k->gemm(d, nb_mat_of(h, R, e), nb_mat_of(x, K, e), nb_mat_t(a, K, NB_F32), T, R, K, 1, 0));
    rows_ok(t, d->k->gemm(d, nb_mat_of(y, N, e), nb_mat_of(h, R, e), nb_mat_t(b, R, NB_F32), T, N, R, 2, 1));
    rows_ok(t, d->k->gemm(d, nb_mat_of(db, R, NB_F32), nb_mat_t(dy, N, e), nb_mat_of(h, R, e), N, R, T, 2, 0));
    rows_ok(t, d->k->gemm(d, nb_mat_of(h, R, e), nb_mat_of(dy, N, e), nb_mat_of(b, R, NB_F32), T, R, N, 2, 0));
    rows_ok(t, d->k->gemm(d, nb_mat_of(da, K, NB_F32), nb_mat_t(h, R, e), nb_mat_of(x, K, e), R, K, T, 1, 0));
    rows_ok(t, d->k->gemm(d, nb_mat_of(dx, K, e), nb_mat_of(h, R, e), nb_mat_of(a, K, NB_F32), T, K, R, 1, 1));
}

static void ends(nb_rowtest *t, const void *arg) { /* of the model, and the optimizer */
    (void)arg;
    enum { T = 16, V = 4096, C = 1024, N = 8192 };
    nb_dev *d = t->d;
    const nb_update step = {.sum_squares = 1, .bias1 = 0.1, .bias2 = 0.001, .lr = 1e-3f, .max_norm = 1};
    nb_update *u = rows_put_bytes(t, &step, sizeof step);
    const weight_kind bf16 = {.format = NB_FMT_BF16};
    nb_weight table;
    rows_weight(t, &table, bf16, 512, C);
    rows_ok(t, d->k->embedding_fwd(d, out(t, T * C), &table, ids(t, T, 512), T, 1));
    rows_ok(t, d->k->xent(d, out_f32(t, T), out_f32(t, T), NULL, out(t, T * V), in_f32(t, T * V), ids(t, T, V), T, V, 0));
    reserve(t, d->be->rows_ws(d, 1, N));
    rows_ok(t, d->k->sum_squares(d, u, in_f32(t, N), N));
    rows_ok(t, d->k->adamw(d, in_f32(t, N), in_f32(t, N), in_f32(t, N), in_f32(t, N), N, u, 0.9f, 0.999f, 1e-8f, 0));
    void *m = rows_put_bytes(t, rows_draw_ids(t, N / 4, INT32_MAX), N);
    void *v = rows_put_bytes(t, rows_draw_ids(t, N / 4, INT32_MAX), N);
    rows_ok(t, d->k->adamw8(d, in_f32(t, N), m, v, in_f32(t, N / 256), in_f32(t, N / 256), in_f32(t, N), N, u, 0.9f, 0.999f,
                            1e-8f, 0));
}

int main(void) {
    static const int sizes[] = {64, 128};
    static const nb_rowcheck checks[] = {
        {"norms", norms, NULL},           {"elementwise", elementwise, NULL}, {"attention/64", attention, &sizes[0]},
        {"attention/128", attention, &sizes[1]}, {"products", products, NULL}, {"ends", ends, NULL},
    };
    nb_dev *d;
    int failed = 0;
    if (nb_dev_open(&d, "emu", NB_BF16) != NB_OK) {
        fprintf(stderr, "%s\n", nb_message());
        return 1;
    }
    for (int i = 0; i < NB_LEN(checks); i++) {
        nb_rowtest t;
        if (rows_run(&t, d, &checks[i], 1)) continue;
        fprintf(stderr, "%s: %s\n", checks[i].name, t.why);
        failed = 1;
    }
    nb_dev_close(d);
    return failed;
}
