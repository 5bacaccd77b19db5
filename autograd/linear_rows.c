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

/* Weights r[0] .. r[k-1], k <= n, whose A's are one matrix, of *R rows; at least the first. `gradients`: these lie alike. */
static int alike(const nb_tape *t, const nb_linear_rows *r, int n, bool gradients, int64_t *R) {
    const nb_tensor *first = r->in[LORA_A];
    int k = 1;
    *R = first->d[0];
    for (; k < n; k++) {
        const nb_tensor *A = r[k].in[LORA_A];
        if (!A || nb_linear_drops(t, r->slot, r->in) || nb_linear_drops(t, r[k].slot, r[k].in)) break;
        if ((float *)A->data != (float *)first->data + *R * r->C || r[k].slot->scale != r->slot->scale) break;
        if (r[k].xa != nb_elem_at(r->xa, *R, t->dev->elem) || r[k].ld_xa != r->ld_xa) break;
        if (gradients && (grad_of(A) != (void *)((float *)first->grad + *R * r->C) ||
                          r[k].beta[LORA_A] != r->beta[LORA_A])) break;
        *R += A->d[0];
    }
    return k;
}

nb_status nb_linear_rows_xa(nb_tape *t, const nb_linear_rows *r, int n) {
    const nb_dtype e = t->dev->elem;
    int64_t R;
    for (int i = 0, k; i < n; i += k) {
        const nb_elem *xin;
        const nb_tensor *A = r[i].in[LORA_A];
        k = 1;
        if (!A) continue;
        k = alike(t, &r[i], n - i, false, &R);
        NB_TRY(adapter_input(t, &r[i], &xin));
        NB_TRY(t->dev->k->gemm(t->dev, m(r[i].xa, r[i].ld_xa, e), m(xin, r[i].C, e), mt(A->data, r[i].C, NB_F32), r[i].T, R,
                               r[i].C, r[i].slot->scale, 0));
    }
    return NB_OK;
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
        terms[n++] = nb_term_of(m(r->xa, r->ld_xa, e), mt(B->data, R, NB_F32), R, 1);
    }
    NB_TRY(t->dev->k->gemm_sum(t->dev, y, terms, n, r->T, N, 0));
    return bias ? t->dev->k->bias_fwd(t->dev, y.p, y.dtype, bias->data, r->T, N) : NB_OK;
}

/* The gradient of B; r->dxa = scale * dy B, which A's gradient and dx want. */
static nb_status adapter_bwd(nb_tape *t, const nb_linear_rows *r, bool dx) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *A = r->in[LORA_A], *B = r->in[LORA_B];
    int64_t T = r->T, R = A->d[0], N = B->d[0];
    if (grad_of(B))
        NB_TRY(k->gemm(t->dev, m(B->grad, R, NB_F32), mt(r->dy, N, e), m(r->xa, r->ld_xa, e), N, R, T, 1, r->beta[LORA_B]));
    if (!grad_of(A) && !dx) return NB_OK;
    return k->gemm(t->dev, m(r->dxa, r->ld_xa, e), m(r->dy, N, e), m(B->data, R, NB_F32), T, R, N, r->slot->scale, 0);
}

/* The gradients of the A's, from what adapter_bwd left. */
static nb_status a_bwd(nb_tape *t, const nb_linear_rows *r, int n) {
    const nb_dtype e = t->dev->elem;
    int64_t R;
    for (int i = 0, k; i < n; i += k) {
        const nb_elem *xin;
        const nb_tensor *A = r[i].in[LORA_A];
        k = 1;
        if (!grad_of(A)) continue;
        k = alike(t, &r[i], n - i, true, &R);
        NB_TRY(adapter_input(t, &r[i], &xin));
        NB_TRY(t->dev->k->gemm(t->dev, m(A->grad, r[i].C, NB_F32), mt(r[i].dxa, r[i].ld_xa, e), m(xin, r[i].C, e), R, r[i].C,
                               r[i].T, 1, r[i].beta[LORA_A]));
    }
    return NB_OK;
}

/* dx += the mask on dxa A. */
static nb_status through_mask(nb_tape *t, const nb_linear_rows *r, nb_elem *dx) {
    const nb_dtype e = t->dev->elem;
    int64_t R = r->in[LORA_A]->d[0];
    NB_TRY(t->dev->k->gemm(t->dev, m(r->dropped, r->C, e), m(r->dxa, r->ld_xa, e), m(r->in[LORA_A]->data, r->C, NB_F32), r->T,
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
            terms[n_terms++] = nb_term_of(m(r[i].dxa, r[i].ld_xa, e), m(A->data, r->C, NB_F32), A->d[0], 1);
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
    if (r->T) NB_TRY(a_bwd(t, r, n));
    return dx && r->T ? input_bwd(t, r, n, dx, dx_beta) : NB_OK;
}
