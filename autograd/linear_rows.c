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
                           r->C, r->slot->scale, 0);
}

/* x W^T, or dy W, of the weight: frozen or trained. */
static nb_status weight_term(const nb_linear_rows *r, bool forward, nb_dtype e, nb_weight *here, nb_term *out) {
    const nb_tensor *w = r->in[W];
    int64_t C = r->C, N = nb_linear_features(r->slot, r->in);
    nb_mat x = forward ? m(r->x, C, e) : m(r->dy, N, e);
    if (w) {
        *out = forward ? nb_term_of(x, mt(w->data, C, NB_F32), C, 1) : nb_term_of(x, m(w->data, C, NB_F32), N, 1);
        return NB_OK;
    }
    NB_TRY(nb_weight_acquire(r->slot->w, here));
    *out = forward ? nb_term_fwd(x, here) : nb_term_bwd(x, here);
    return NB_OK;
}

nb_status nb_linear_rows_fwd(nb_tape *t, const nb_linear_rows *r, nb_mat y) {
    const nb_dtype e = t->dev->elem;
    const nb_tensor *bias = r->in[BIAS], *B = r->in[LORA_B];
    int64_t N = nb_linear_features(r->slot, r->in);
    nb_weight here;
    nb_term terms[2];
    int n = 1;
    NB_TRY(weight_term(r, true, e, &here, &terms[0]));
    if (B) {
        int64_t R = B->d[1];
        NB_TRY(nb_linear_rows_xa(t, r));
        terms[n++] = nb_term_of(m(r->xa, R, e), mt(B->data, R, NB_F32), R, 1);
    }
    NB_TRY(t->dev->k->gemm_sum(t->dev, y, terms, n, r->T, N, 0));
    return bias ? t->dev->k->bias_fwd(t->dev, y.p, y.dtype, bias->data, r->T, N) : NB_OK;
}

/* Gradients of A and B; r->dxa = scale * dy B, which dx wants too. */
static nb_status adapter_bwd(nb_tape *t, const nb_linear_rows *r, bool dx) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *A = r->in[LORA_A], *B = r->in[LORA_B];
    int64_t T = r->T, C = r->C, R = A->d[0], N = B->d[0];
    if (grad_of(B))
        NB_TRY(k->gemm(t->dev, m(B->grad, R, NB_F32), mt(r->dy, N, e), m(r->xa, R, e), N, R, T, 1, r->beta[LORA_B]));
    if (!grad_of(A) && !dx) return NB_OK;
    NB_TRY(k->gemm(t->dev, m(r->dxa, R, e), m(r->dy, N, e), m(B->data, R, NB_F32), T, R, N, r->slot->scale, 0));
    if (!grad_of(A)) return NB_OK;
    const nb_elem *xin;
    NB_TRY(adapter_input(t, r, &xin));
    return k->gemm(t->dev, m(A->grad, C, NB_F32), mt(r->dxa, R, e), m(xin, C, e), R, C, T, 1, r->beta[LORA_A]);
}

/* dx += the mask on dxa A. */
static nb_status through_mask(nb_tape *t, const nb_linear_rows *r, nb_elem *dx) {
    const nb_dtype e = t->dev->elem;
    int64_t R = r->in[LORA_A]->d[0];
    NB_TRY(t->dev->k->gemm(t->dev, m(r->dropped, r->C, e), m(r->dxa, R, e), m(r->in[LORA_A]->data, r->C, NB_F32), r->T,
                           r->C, R, 1, 0));
    return t->dev->k->dropout(t->dev, dx, r->dropped, r->sample, r->pos, r->T, r->C, r->slot->dropout, t->seed, t->step,
                              r->slot->site, 1);
}

static nb_status input_bwd(nb_tape *t, const nb_linear_rows *r, int n, nb_elem *dx, float dx_beta) {
    const nb_dtype e = t->dev->elem;
    nb_weight here[NB_LINEAR_MOST];
    nb_term terms[NB_MAX_TERMS];
    int n_terms = 0;
    NB_ASSERT(n >= 1 && n <= NB_LINEAR_MOST);
    for (int i = 0; i < n; i++) {
        const nb_tensor *A = r[i].in[LORA_A];
        NB_TRY(weight_term(&r[i], false, e, &here[i], &terms[n_terms++]));
        if (A && !nb_linear_drops(t, r[i].slot, r[i].in))
            terms[n_terms++] = nb_term_of(m(r[i].dxa, A->d[0], e), m(A->data, r->C, NB_F32), A->d[0], 1);
    }
    NB_TRY(t->dev->k->gemm_sum(t->dev, m(dx, r->C, e), terms, n_terms, r->T, r->C, dx_beta));
    for (int i = 0; i < n; i++)
        if (nb_linear_drops(t, r[i].slot, r[i].in)) NB_TRY(through_mask(t, &r[i], dx));
    return NB_OK;
}

static nb_status no_rows(nb_tape *t, const nb_linear_rows *r) {
    for (int i = 0; i < NB_LINEAR_INPUTS; i++)
        if (grad_of(r->in[i]) && r->beta[i] == 0)
            NB_TRY(t->dev->k->fill(t->dev, r->in[i]->grad, NB_F32, 0, nb_tensor_size(r->in[i])));
    return NB_OK;
}

static nb_status trained_bwd(nb_tape *t, const nb_linear_rows *r, bool dx) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *w = r->in[W], *bias = r->in[BIAS];
    int64_t T = r->T, C = r->C, N = nb_linear_features(r->slot, r->in);
    if (!T) return no_rows(t, r);
    if (grad_of(w))
        NB_TRY(k->gemm(t->dev, m(w->grad, C, NB_F32), mt(r->dy, N, e), m(r->x, C, e), N, C, T, 1, r->beta[W]));
    if (grad_of(bias)) NB_TRY(k->bias_bwd(t->dev, bias->grad, r->dy, T, N, r->beta[BIAS]));
    return r->in[LORA_A] ? adapter_bwd(t, r, dx) : NB_OK;
}

nb_status nb_linear_rows_bwd(nb_tape *t, const nb_linear_rows *r, int n, nb_elem *dx, float dx_beta) {
    for (int i = 0; i < n; i++) NB_TRY(trained_bwd(t, &r[i], dx != NULL));
    return dx && r->T ? input_bwd(t, r, n, dx, dx_beta) : NB_OK;
}
