/* y = (x - mean) * rstd * w + bias, row by row, rstd = 1/sqrt(variance + eps) (Ba, Kiros & Hinton, 2016). */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0], *w = n->in[1], *bias = n->n_in > 2 ? n->in[2] : NULL;
    if (x->n_dims != 2 || w->n_dims != 1 || w->d[0] != x->d[1])
        return nb_fail(NB_ESHAPE, "x [%lld,%lld], w [%lld]: w must have x's columns", (long long)x->d[0],
                       (long long)x->d[1], (long long)w->d[0]);
    if (bias && (bias->n_dims != 1 || bias->d[0] != x->d[1]))
        return nb_fail(NB_ESHAPE, "x [%lld,%lld], bias [%lld]: bias must have x's columns", (long long)x->d[0],
                       (long long)x->d[1], (long long)bias->d[0]);
    nb_node_out(t, n, "norm", t->dev->elem, 2, x->d[0], x->d[1]);
    nb_node_save(t, n, "mean", NB_F32, 1, x->d[0], 0);
    nb_node_save(t, n, "rstd", NB_F32, 1, x->d[0], 0);
    n->keep_in = 3;
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0], *bias = n->n_in > 2 ? n->in[2] : NULL;
    return t->dev->k->layernorm_fwd(t->dev, n->out[0]->data, n->saved[0]->data, n->saved[1]->data, x->data,
                                    n->in[1]->data, bias ? bias->data : NULL, x->d[0], x->d[1],
                                    NB_ATTR(n, nb_layernorm_attr)->eps);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0], *w = n->in[1], *bias = n->n_in > 2 ? n->in[2] : NULL;
    return t->dev->k->layernorm_bwd(t->dev, x->needs_grad ? x->grad : NULL, n->beta[0], w->needs_grad ? w->grad : NULL,
                                    n->beta[1], bias && bias->needs_grad ? bias->grad : NULL, n->beta[2],
                                    n->out[0]->grad, x->data, w->data, n->saved[0]->data, n->saved[1]->data, x->d[0],
                                    x->d[1]);
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->out[0]);
    return (nb_cost){8 * size, 8 * size};
}

static const nb_layernorm_attr plain = {1e-5f};
static const nb_case cases[] = {
    {"small", {{3, 8}, {8}, {8}}, &plain, NB_OK},
    {"odd", {{7, 129}, {129}, {129}}, &plain, NB_OK},
    {"many rows", {{300, 64}, {64}, {64}}, &plain, NB_OK},
    {"no bias", {{5, 48}, {48}}, &plain, NB_OK},
    {"w too short", {{4, 8}, {7}, {8}}, &plain, NB_ESHAPE},
    {"bias too long", {{4, 8}, {8}, {9}}, &plain, NB_ESHAPE},
};

const nb_op nb_op_layernorm = {"layernorm", sizeof(nb_layernorm_attr), shape, forward, backward, cost, cases,
                               NB_LEN(cases)};
