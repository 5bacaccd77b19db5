#include "autograd/linear_rows.h"

enum { W = NB_LINEAR_W, BIAS = NB_LINEAR_BIAS, LORA_A = NB_LINEAR_A, LORA_B = NB_LINEAR_B };

/* Matrices: m as it is stored, mt transposed. */
static nb_mat m(const void *p, int64_t ld, nb_dtype dtype) { return nb_mat_of(p, ld, dtype); }
static nb_mat mt(const void *p, int64_t ld, nb_dtype dtype) { return nb_mat_t(p, ld, dtype); }
static void *grad_of(const nb_tensor *x) { return x && x->needs_grad ? x->grad : NULL; }

int64_t nb_linear_features(const nb_linear_slot *slot, nb_tensor *const *in) {
    return in[W] ? in[W]->d[0] : slot->w->rows;
}

nb_status nb_linear_check(const nb_linear_slot *slot, nb_tensor *const *in, int64_t rows, int64_t cols, int i) {
    const nb_tensor *w = in[W], *bias = in[BIAS], *A = in[LORA_A], *B = in[LORA_B];
    int64_t C = w ? w->d[1] : slot->w->cols, N = nb_linear_features(slot, in);
    if (C != cols)
        return nb_fail(NB_ESHAPE, "x [%lld,%lld], weight %d [%lld,%lld]: columns must be equal", (long long)rows,
                       (long long)cols, i, (long long)N, (long long)C);
    if (bias && bias->d[0] != N)
        return nb_fail(NB_ESHAPE, "bias %d has %lld of %lld rows", i, (long long)bias->d[0], (long long)N);
    if (!A != !B || (A && (A->d[1] != C || B->d[0] != N || A->d[0] != B->d[1])))
        return nb_fail(NB_ESHAPE, "adapter %d does not fit a [%lld,%lld] weight", i, (long long)N, (long long)C);
    return NB_OK;
}

double nb_linear_flops(const nb_linear_slot *slot, nb_tensor *const *in, double T, double C) {
    double N = (double)nb_linear_features(slot, in), R = in[LORA_A] ? (double)in[LORA_A]->d[0] : 0;
    return 2 * T * N * C + 2 * T * R * (N + C);
}

/* The adapter's input: x, or x with this site's mask in r->dropped. */
static nb_status adapter_input(nb_tape *t, const nb_linear_rows *r, const nb_elem **out) {
    *out = r->x;
    if (!nb_linear_drops(t, r->slot, r->in)) return NB_OK;
    *out = r->dropped;
    return t->dev->k->dropout(t->dev, r->dropped, r->x, r->sample, r->pos, r->T, r->C, r->slot->dropout, t->seed,
                              t->step, r->slot->site, 0);
}

nb_status nb_linear_rows_xa(nb_tape *t, const nb_linear_rows *r) {
    const nb_dtype e = t->dev->elem;
    const nb_tensor *A = r->in[LORA_A];
    const nb_elem *xin;
    NB_TRY(adapter_input(t, r, &xin));
    return t->dev->k->gemm(t->dev, m(r->xa, A->d[0], e), m(xin, r->C, e), mt(A->data, r->C, NB_F32), r->T, A->d[0],
                           r->C, 1, 0);
}

nb_status nb_linear_rows_fwd(nb_tape *t, const nb_linear_rows *r, nb_mat y) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *w = r->in[W], *bias = r->in[BIAS], *B = r->in[LORA_B];
    int64_t N = nb_linear_features(r->slot, r->in);
    if (w) {
        NB_TRY(k->gemm(t->dev, y, m(r->x, r->C, e), mt(w->data, r->C, NB_F32), r->T, N, r->C, 1, 0));
    } else {
        nb_weight here;
        NB_TRY(nb_weight_acquire(r->slot->w, &here));
        NB_TRY(k->weight_fwd(t->dev, y, r->x, &here, r->T, 0));
    }
    if (bias) NB_TRY(k->bias_fwd(t->dev, y.p, y.dtype, bias->data, r->T, N));
    if (!r->in[LORA_A]) return NB_OK;
    NB_TRY(nb_linear_rows_xa(t, r));
    int64_t R = B->d[1];
    return k->gemm(t->dev, y, m(r->xa, R, e), mt(B->data, R, NB_F32), r->T, N, R, r->slot->scale, 1);
}

/* Gradients of the adapter; adds to dx when wanted. */
static nb_status adapter_bwd(nb_tape *t, const nb_linear_rows *r, nb_elem *dx, float dx_beta, const float *beta,
                             const nb_elem *dy) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *A = r->in[LORA_A], *B = r->in[LORA_B];
    int64_t T = r->T, C = r->C, R = A->d[0], N = B->d[0];
    if (grad_of(B))
        NB_TRY(k->gemm(t->dev, m(B->grad, R, NB_F32), mt(dy, N, e), m(r->xa, R, e), N, R, T, r->slot->scale,
                       beta[LORA_B]));
    if (!grad_of(A) && !dx) return NB_OK;
    NB_TRY(k->gemm(t->dev, m(r->dxa, R, e), m(dy, N, e), m(B->data, R, NB_F32), T, R, N, r->slot->scale, 0));
    if (grad_of(A)) {
        const nb_elem *xin;
        NB_TRY(adapter_input(t, r, &xin));
        NB_TRY(k->gemm(t->dev, m(A->grad, C, NB_F32), mt(r->dxa, R, e), m(xin, C, e), R, C, T, 1, beta[LORA_A]));
    }
    if (!dx) return NB_OK;
    nb_mat a = m(A->data, C, NB_F32), d = m(r->dxa, R, e);
    if (!nb_linear_drops(t, r->slot, r->in)) return k->gemm(t->dev, m(dx, C, e), d, a, T, C, R, 1, dx_beta);
    NB_TRY(k->gemm(t->dev, m(r->dropped, C, e), d, a, T, C, R, 1, 0));
    return k->dropout(t->dev, dx, r->dropped, r->sample, r->pos, T, C, r->slot->dropout, t->seed, t->step,
                      r->slot->site, dx_beta);
}

static nb_status no_rows(nb_tape *t, const nb_linear_rows *r, const float *beta) {
    for (int i = 0; i < NB_LINEAR_INPUTS; i++)
        if (grad_of(r->in[i]) && beta[i] == 0)
            NB_TRY(t->dev->k->fill(t->dev, r->in[i]->grad, NB_F32, 0, nb_tensor_size(r->in[i])));
    return NB_OK;
}

nb_status nb_linear_rows_bwd(nb_tape *t, const nb_linear_rows *r, nb_elem *dx, float dx_beta, const float *beta,
                             const nb_elem *dy) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *w = r->in[W], *bias = r->in[BIAS];
    int64_t T = r->T, C = r->C, N = nb_linear_features(r->slot, r->in);
    if (!T) return no_rows(t, r, beta);
    if (dx && w) {
        NB_TRY(k->gemm(t->dev, m(dx, C, e), m(dy, N, e), m(w->data, C, NB_F32), T, C, N, 1, dx_beta));
    } else if (dx) {
        nb_weight here;
        NB_TRY(nb_weight_acquire(r->slot->w, &here));
        NB_TRY(k->weight_bwd(t->dev, dx, dy, &here, T, dx_beta));
    }
    if (grad_of(w))
        NB_TRY(k->gemm(t->dev, m(w->grad, C, NB_F32), mt(dy, N, e), m(r->x, C, e), N, C, T, 1, beta[W]));
    if (grad_of(bias)) NB_TRY(k->bias_bwd(t->dev, bias->grad, dy, T, N, beta[BIAS]));
    return r->in[LORA_A] ? adapter_bwd(t, r, dx, 1, beta, dy) : NB_OK;
}
