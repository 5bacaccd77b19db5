/* Several linear layers over one input, each with its optional low-rank adapter (Hu et al., 2021; as PEFT computes it):
 * y = x W^T + bias + scale * (drop(x) A^T) B^T. Weights are frozen (any format) or trained (f32). */
#include "autograd/ops.h"

enum { WEIGHT, BIAS, LORA_A, LORA_B };

/* Matrices: m as it is stored, mt transposed. */
static nb_mat m(const void *p, int64_t ld, nb_dtype dtype) { return nb_mat_of(p, ld, dtype); }
static nb_mat mt(const void *p, int64_t ld, nb_dtype dtype) { return nb_mat_t(p, ld, dtype); }
static nb_tensor *input(const nb_node *n, int slot, int which) { return n->in[1 + 4 * slot + which]; }
static void *grad_of(const nb_tensor *x) { return x && x->needs_grad ? x->grad : NULL; }

static int64_t out_features(const nb_node *n, int i) {
    const nb_tensor *w = input(n, i, WEIGHT);
    return w ? w->d[0] : NB_ATTR(n, nb_linear_attr)->slot[i].w->rows;
}

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_linear_attr *a = NB_ATTR(n, nb_linear_attr);
    const nb_tensor *x = n->in[0];
    NB_ASSERT(a->n >= 1 && a->n <= 3 && n->n_in == 1 + 4 * a->n);
    NB_ASSERT(!a->f32_out || !n->needs_grad || t->dev->elem == NB_F32);
    for (int i = 0; i < a->n; i++) {
        const nb_tensor *w = input(n, i, WEIGHT), *bias = input(n, i, BIAS), *A = input(n, i, LORA_A),
                        *B = input(n, i, LORA_B);
        int64_t cols = w ? w->d[1] : a->slot[i].w->cols, rows = out_features(n, i);
        if (cols != x->d[1])
            return nb_fail(NB_ESHAPE, "x [%lld,%lld], weight %d [%lld,%lld]: columns must be equal", (long long)x->d[0],
                           (long long)x->d[1], i, (long long)rows, (long long)cols);
        if (bias && bias->d[0] != rows)
            return nb_fail(NB_ESHAPE, "bias %d has %lld of %lld rows", i, (long long)bias->d[0], (long long)rows);
        if (!A != !B || (A && (A->d[1] != cols || B->d[0] != rows || A->d[0] != B->d[1])))
            return nb_fail(NB_ESHAPE, "adapter %d does not fit a [%lld,%lld] weight", i, (long long)rows,
                           (long long)cols);
        nb_node_out(t, n, "linear", a->f32_out ? NB_F32 : t->dev->elem, 2, x->d[0], rows);
        if (A && n->needs_grad) nb_node_save(t, n, "xa", t->dev->elem, 2, x->d[0], A->d[0]);
        if ((A && A->needs_grad) || (w && w->needs_grad)) n->keep_in |= 1;
    }
    return NB_OK;
}

/* The adapter's input: x, or x with this site's mask in scratch. */
static nb_status adapter_input(nb_tape *t, const nb_node *n, const nb_linear_slot *s, const nb_elem **out) {
    const nb_tensor *x = n->in[0];
    *out = x->data;
    if (!t->training || s->dropout <= 0) return NB_OK;
    nb_elem *dropped;
    NB_TRY(nb_scratch(t, &dropped, nb_tensor_size(x), x->dtype));
    *out = dropped;
    return t->dev->k->dropout(t->dev, dropped, x->data, t->batch->sample, t->batch->pos, x->d[0], x->d[1], s->dropout,
                              t->seed, t->step, s->site, 0);
}

static nb_status frozen_fwd(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T) {
    nb_weight here;
    NB_TRY(nb_weight_acquire(w, &here));
    return d->k->weight_fwd(d, y, x, &here, T, 0);
}

static nb_status frozen_bwd(nb_dev *d, nb_elem *dx, const nb_elem *dy, const nb_weight *w, int64_t T, float beta) {
    nb_weight here;
    NB_TRY(nb_weight_acquire(w, &here));
    return d->k->weight_bwd(d, dx, dy, &here, T, beta);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_linear_attr *a = NB_ATTR(n, nb_linear_attr);
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *x = n->in[0];
    int64_t T = x->d[0], C = x->d[1];
    int saved = 0;
    for (int i = 0; i < a->n; i++) {
        const nb_linear_slot *s = &a->slot[i];
        const nb_tensor *w = input(n, i, WEIGHT), *bias = input(n, i, BIAS), *A = input(n, i, LORA_A),
                        *B = input(n, i, LORA_B);
        nb_mat y = m(n->out[i]->data, n->out[i]->d[1], n->out[i]->dtype);
        int64_t N = out_features(n, i);
        if (w) NB_TRY(k->gemm(t->dev, y, m(x->data, C, e), mt(w->data, C, NB_F32), T, N, C, 1, 0));
        else NB_TRY(frozen_fwd(t->dev, y, x->data, s->w, T));
        if (bias) NB_TRY(k->bias_fwd(t->dev, y.p, y.dtype, bias->data, T, N));
        if (!A) continue;
        int64_t R = A->d[0];
        const nb_elem *xin;
        nb_elem *xa;
        NB_TRY(adapter_input(t, n, s, &xin));
        if (n->n_saved > saved) xa = n->saved[saved++]->data;
        else NB_TRY(nb_scratch(t, &xa, T * R, e));
        NB_TRY(k->gemm(t->dev, m(xa, R, e), m(xin, C, e), mt(A->data, C, NB_F32), T, R, C, 1, 0));
        NB_TRY(k->gemm(t->dev, y, m(xa, R, e), mt(B->data, R, NB_F32), T, N, R, s->scale, 1));
    }
    return NB_OK;
}

/* Gradients of one adapter; adds to dx when wanted. */
static nb_status adapter_backward(nb_tape *t, nb_node *n, int i, const nb_elem *xa, nb_elem *dx,
                                  float *dx_beta) {
    const nb_linear_slot *s = &NB_ATTR(n, nb_linear_attr)->slot[i];
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *x = n->in[0], *A = input(n, i, LORA_A), *B = input(n, i, LORA_B);
    const nb_elem *dy = n->out[i]->grad;
    int64_t T = x->d[0], C = x->d[1], R = A->d[0], N = B->d[0];
    if (grad_of(B))
        NB_TRY(k->gemm(t->dev, m(B->grad, R, NB_F32), mt(dy, N, e), m(xa, R, e), N, R, T, s->scale,
                       n->beta[1 + 4 * i + LORA_B]));
    if (!grad_of(A) && !dx) return NB_OK;
    nb_elem *dxa;
    NB_TRY(nb_scratch(t, &dxa, T * R, e));
    NB_TRY(k->gemm(t->dev, m(dxa, R, e), m(dy, N, e), m(B->data, R, NB_F32), T, R, N, s->scale, 0));
    if (grad_of(A)) {
        const nb_elem *xin;
        NB_TRY(adapter_input(t, n, s, &xin));
        NB_TRY(k->gemm(t->dev, m(A->grad, C, NB_F32), mt(dxa, R, e), m(xin, C, e), R, C, T, 1,
                       n->beta[1 + 4 * i + LORA_A]));
    }
    if (!dx) return NB_OK;
    if (!t->training || s->dropout <= 0) {
        NB_TRY(k->gemm(t->dev, m(dx, C, e), m(dxa, R, e), m(A->data, C, NB_F32), T, C, R, 1, *dx_beta));
    } else {
        nb_elem *through;
        NB_TRY(nb_scratch(t, &through, T * C, e));
        NB_TRY(k->gemm(t->dev, m(through, C, e), m(dxa, R, e), m(A->data, C, NB_F32), T, C, R, 1, 0));
        NB_TRY(k->dropout(t->dev, dx, through, t->batch->sample, t->batch->pos, T, C, s->dropout, t->seed, t->step,
                          s->site, *dx_beta));
    }
    *dx_beta = 1;
    return NB_OK;
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_linear_attr *a = NB_ATTR(n, nb_linear_attr);
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    const nb_tensor *x = n->in[0];
    nb_elem *dx = grad_of(n->in[0]);
    float dx_beta = n->beta[0];
    int64_t T = x->d[0], C = x->d[1];
    int saved = 0;
    for (int i = 0; i < a->n; i++) {
        const nb_tensor *w = input(n, i, WEIGHT), *bias = input(n, i, BIAS);
        const nb_elem *dy = n->out[i]->grad;
        int64_t N = out_features(n, i);
        if (dx) {
            if (w) NB_TRY(k->gemm(t->dev, m(dx, C, e), m(dy, N, e), m(w->data, C, NB_F32), T, C, N, 1, dx_beta));
            else NB_TRY(frozen_bwd(t->dev, dx, dy, a->slot[i].w, T, dx_beta));
            dx_beta = 1;
        }
        if (grad_of(w))
            NB_TRY(k->gemm(t->dev, m(w->grad, C, NB_F32), mt(dy, N, e), m(x->data, C, e), N, C, T, 1,
                           n->beta[1 + 4 * i + WEIGHT]));
        if (grad_of(bias)) NB_TRY(k->bias_bwd(t->dev, bias->grad, dy, T, N, n->beta[1 + 4 * i + BIAS]));
        if (input(n, i, LORA_A)) NB_TRY(adapter_backward(t, n, i, n->saved[saved++]->data, dx, &dx_beta));
    }
    return NB_OK;
}

static nb_cost cost(const nb_node *n) {
    const nb_linear_attr *a = NB_ATTR(n, nb_linear_attr);
    double T = (double)n->in[0]->d[0], C = (double)n->in[0]->d[1];
    nb_cost c = {0, 4 * T * C};
    for (int i = 0; i < a->n; i++) {
        double N = (double)out_features(n, i), R = input(n, i, LORA_A) ? (double)input(n, i, LORA_A)->d[0] : 0;
        c.flops += 2 * T * N * C + 2 * T * R * (N + C);
        c.bytes += 4 * T * N + (a->slot[i].w ? (double)nb_weight_bytes(a->slot[i].w) : 4 * N * C) + 4 * R * (N + C);
    }
    return c;
}

static const nb_linear_attr one = {1, {{NULL, 2.0f, 0, 1}}}, two = {2, {{NULL, 2.0f, 0, 1}, {NULL, 0.5f, 0, 2}}};
static const nb_linear_attr dropped = {1, {{NULL, 1.5f, 0.3f, 7}}};
static const nb_case cases[] = {
    {"weight", {{5, 7}, {4, 7}, {0}, {0}, {0}}, &one, NB_OK},
    {"bias", {{5, 7}, {4, 7}, {4}, {0}, {0}}, &one, NB_OK},
    {"adapter", {{9, 33}, {17, 33}, {0}, {3, 33}, {17, 3}}, &one, NB_OK},
    {"two weights, one adapter", {{9, 16}, {12, 16}, {12}, {4, 16}, {12, 4}, {7, 16}, {0}, {0}, {0}}, &two, NB_OK},
    {"two adapters", {{6, 40}, {24, 40}, {0}, {2, 40}, {24, 2}, {9, 40}, {0}, {5, 40}, {9, 5}}, &two, NB_OK},
    {"dropout", {{11, 24}, {8, 24}, {0}, {4, 24}, {8, 4}}, &dropped, NB_OK},
    {"columns differ", {{5, 7}, {4, 8}, {0}, {0}, {0}}, &one, NB_ESHAPE},
    {"half an adapter", {{5, 7}, {4, 7}, {0}, {2, 7}, {0}}, &one, NB_ESHAPE},
    {"ranks differ", {{5, 7}, {4, 7}, {0}, {2, 7}, {4, 3}}, &one, NB_ESHAPE},
};

const nb_op nb_op_linear = {"linear", sizeof(nb_linear_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
