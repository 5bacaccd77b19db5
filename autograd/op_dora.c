/* DoRA: the output of a linear layer with its adapter, column by column brought to a trained magnitude. The norms of
 * W + s B A are found without making that matrix: |W_j + s B_j A|^2 = |W_j|^2 + 2 s B_j (A W^T)_j + s^2 B_j A A^T B_j^T,
 * one product of R rows with W, which costs what R more tokens would. */
#include "autograd/ops.h"

enum { U, REST, MAGNITUDE, BIAS };

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_dora_attr *a = NB_ATTR(n, nb_dora_attr);
    const nb_tensor *u = n->in[U], *magnitude = n->in[MAGNITUDE], *bias = n->in[BIAS], *rest = n->in[REST];
    int64_t N = a->w->rows;
    if (u->d[1] != N || magnitude->d[0] != N || (bias && bias->d[0] != N) ||
        (rest && (rest->d[0] != u->d[0] || rest->d[1] != N)))
        return nb_fail(NB_ESHAPE, "u [%lld,%lld], %lld magnitudes, a weight of %lld rows", (long long)u->d[0],
                       (long long)u->d[1], (long long)magnitude->d[0], (long long)N);
    nb_node_out(t, n, "dora", t->dev->elem, 2, u->d[0], N);
    if (!n->needs_grad) return NB_OK;
    nb_node_save(t, n, "scale", NB_F32, 1, N, 0);
    nb_node_save(t, n, "inverse norm", NB_F32, 1, N, 0);
    if (magnitude->needs_grad) n->keep_in |= 1u << U;
    return NB_OK;
}

static nb_status find_scale(nb_tape *t, const nb_node *n, float *scale, float *inverse) {
    const nb_dora_attr *a = NB_ATTR(n, nb_dora_attr);
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    int64_t N = a->w->rows, C = a->w->cols, R = a->R;
    nb_elem *A;
    float *aw, *aa, *bg;
    nb_weight here;
    NB_TRY(nb_scratch(t, &A, R * C, e));
    NB_TRY(nb_scratch(t, &aw, R * N, NB_F32));
    NB_TRY(nb_scratch(t, &aa, R * R, NB_F32));
    NB_TRY(nb_scratch(t, &bg, N * R, NB_F32));
    NB_TRY(k->fill(t->dev, A, e, 0, R * C));
    NB_TRY(k->bias_fwd(t->dev, A, e, a->A, 1, R * C)); /* A as the device's activations are */
    NB_TRY(nb_weight_acquire(a->w, &here));
    NB_TRY(k->weight_fwd(t->dev, nb_mat_of(aw, N, NB_F32), A, &here, R, 0));
    NB_TRY(k->gemm(t->dev, nb_mat_of(aa, R, NB_F32), nb_mat_of(a->A, C, NB_F32), nb_mat_t(a->A, C, NB_F32), R, R, C, 1,
                   0));
    NB_TRY(k->gemm(t->dev, nb_mat_of(bg, R, NB_F32), nb_mat_of(a->B, R, NB_F32), nb_mat_of(aa, R, NB_F32), N, R, R, 1,
                   0));
    return k->dora_scale(t->dev, scale, inverse, n->in[MAGNITUDE]->data, a->squares, a->B, aw, bg, N, R, a->scale);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_kernels *k = t->dev->k;
    const nb_tensor *u = n->in[U], *bias = n->in[BIAS], *rest = n->in[REST];
    int64_t T = u->d[0], N = u->d[1];
    float *scale, *inverse;
    if (n->n_saved) {
        scale = n->saved[0]->data, inverse = n->saved[1]->data;
    } else {
        NB_TRY(nb_scratch(t, &scale, N, NB_F32));
        NB_TRY(nb_scratch(t, &inverse, N, NB_F32));
    }
    NB_TRY(find_scale(t, n, scale, inverse));
    NB_TRY(k->scale_columns(t->dev, n->out[0]->data, u->data, scale, T, N, 0));
    if (rest) NB_TRY(k->add(t->dev, n->out[0]->data, rest->data, NULL, T * N, 1));
    return bias ? k->bias_fwd(t->dev, n->out[0]->data, t->dev->elem, bias->data, T, N) : NB_OK;
}

/* dm[j] = sum over t of dy[t,j] u[t,j] / norm[j]: the gradient of a norm's weight, with a reciprocal deviation of 1. */
static nb_status magnitude_gradient(nb_tape *t, nb_node *n) {
    const nb_kernels *k = t->dev->k;
    const nb_tensor *u = n->in[U], *magnitude = n->in[MAGNITUDE];
    int64_t T = u->d[0], N = u->d[1];
    nb_elem *scaled;
    float *one;
    NB_TRY(nb_scratch(t, &scaled, T * N, t->dev->elem));
    NB_TRY(nb_scratch(t, &one, T, NB_F32));
    NB_TRY(k->fill(t->dev, one, NB_F32, 1, T));
    NB_TRY(k->scale_columns(t->dev, scaled, n->out[0]->grad, n->saved[1]->data, T, N, 0));
    return k->rmsnorm_bwd(t->dev, NULL, 0, magnitude->grad, n->beta[MAGNITUDE], scaled, u->data, magnitude->data, one, T,
                          N, 0);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_kernels *k = t->dev->k;
    const nb_tensor *u = n->in[U], *magnitude = n->in[MAGNITUDE], *bias = n->in[BIAS], *rest = n->in[REST];
    const nb_elem *dy = n->out[0]->grad;
    int64_t T = u->d[0], N = u->d[1];
    if (u->needs_grad && u->grad)
        NB_TRY(k->scale_columns(t->dev, u->grad, dy, n->saved[0]->data, T, N, n->beta[U]));
    if (rest && rest->needs_grad && rest->grad) NB_TRY(k->add(t->dev, rest->grad, dy, NULL, T * N, n->beta[REST]));
    if (magnitude->needs_grad && magnitude->grad) NB_TRY(magnitude_gradient(t, n));
    if (bias && bias->needs_grad && bias->grad)
        NB_TRY(k->bias_bwd(t->dev, bias->grad, dy, T, N, n->beta[BIAS]));
    return NB_OK;
}

static nb_cost cost(const nb_node *n) {
    const nb_dora_attr *a = NB_ATTR(n, nb_dora_attr);
    double T = (double)n->in[U]->d[0], N = (double)a->w->rows, C = (double)a->w->cols, R = (double)a->R;
    return (nb_cost){2 * R * (N * C + R * (N + C)) + T * N,
                     8 * T * N + (double)nb_weight_bytes(a->w) + 4 * R * (3 * N + C)};
}

static const float w[3 * 4] = {1, 2, 0, -1, 0.5f, 0.25f, 1, -2, 3, 0, -1, 1}, squares[3] = {6, 5.3125f, 11};
static const float lora_A[2 * 4] = {0.5f, -0.25f, 1, 0.125f, -1, 0.75f, 0.5f, 0.25f},
                   lora_B[3 * 2] = {1, -0.5f, 0.25f, 2, -1, 0.5f};
static const nb_weight weight = {.format = NB_FMT_F32, .rows = 3, .cols = 4, .data = w};
static const nb_dora_attr attr = {&weight, squares, lora_A, lora_B, 2, 0.5f};
static const nb_case cases[] = {
    {"plain", {{5, 3}, {0}, {3, 0}, {0}}, &attr, NB_OK},
    {"with a bias", {{7, 3}, {0}, {3, 0}, {3, 0}}, &attr, NB_OK},
    {"with a rest", {{5, 3}, {5, 3}, {3, 0}, {3, 0}}, &attr, NB_OK},
    {"another rest", {{5, 3}, {4, 3}, {3, 0}, {0}}, &attr, NB_ESHAPE},
    {"other rows", {{5, 3}, {0}, {4, 0}, {0}}, &attr, NB_ESHAPE},
};

const nb_op nb_op_dora = {"dora", sizeof(nb_dora_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
