/* y = x * rstd * (w + offset), rstd = 1/sqrt(mean(x^2) + eps) (Zhang & Sennrich, 2019). */
#include "autograd/ops.h"

/* With fewer weights than columns every group of columns (a head) is normed on its own: rows of w's length. */
static int64_t rows_of(const nb_node *n) { return nb_tensor_size(n->in[0]) / n->in[1]->d[0]; }

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0], *w = n->in[1];
    if (x->n_dims != 2 || w->n_dims != 1 || w->d[0] < 1 || x->d[1] % w->d[0])
        return nb_fail(NB_ESHAPE, "x [%lld,%lld], w [%lld]: w must have x's columns, or divide them", (long long)x->d[0],
                       (long long)x->d[1], (long long)w->d[0]);
    nb_node_out(t, n, "norm", t->dev->elem, 2, x->d[0], x->d[1]);
    nb_node_save(t, n, "rstd", NB_F32, 1, rows_of(n), 0);
    n->keep_in = 3;
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_rmsnorm_attr *a = NB_ATTR(n, nb_rmsnorm_attr);
    const nb_tensor *x = n->in[0];
    return t->dev->k->rmsnorm_fwd(t->dev, n->out[0]->data, n->saved[0]->data, x->data, n->in[1]->data, rows_of(n), n->in[1]->d[0],
                                  a->eps, a->offset);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_rmsnorm_attr *a = NB_ATTR(n, nb_rmsnorm_attr);
    const nb_tensor *x = n->in[0], *w = n->in[1];
    return t->dev->k->rmsnorm_bwd(t->dev, x->needs_grad ? x->grad : NULL, n->beta[0], w->needs_grad ? w->grad : NULL,
                                  n->beta[1], n->out[0]->grad, x->data, w->data, n->saved[0]->data, rows_of(n), w->d[0],
                                  a->offset);
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->out[0]);
    return (nb_cost){4 * size, 8 * size};
}

static const nb_rmsnorm_attr plain = {1e-5f, 0}, gemma = {1e-6f, 1};
static const nb_case cases[] = {
    {"small", {{3, 8}, {8}}, &plain, NB_OK},
    {"odd", {{7, 129}, {129}}, &plain, NB_OK},
    {"many rows", {{300, 64}, {64}}, &plain, NB_OK},
    {"offset", {{5, 48}, {48}}, &gemma, NB_OK},
    {"by heads", {{6, 48}, {16}}, &plain, NB_OK},
    {"w too short", {{4, 8}, {7}}, &plain, NB_ESHAPE},
};

const nb_op nb_op_rmsnorm = {"rmsnorm", sizeof(nb_rmsnorm_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
