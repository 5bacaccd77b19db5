/* Gated linear unit: y = act(gate) * up (Shazeer, 2020); SwiGLU with act = silu. */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_tensor *g = n->in[0], *u = n->in[1];
    if (u && (g->n_dims != 2 || u->n_dims != 2 || g->d[0] != u->d[0] || g->d[1] != u->d[1]))
        return nb_fail(NB_ESHAPE, "gate [%lld,%lld], up [%lld,%lld]: shapes must be equal", (long long)g->d[0],
                       (long long)g->d[1], (long long)u->d[0], (long long)u->d[1]);
    nb_node_out(t, n, "glu", t->dev->elem, 2, g->d[0], g->d[1]);
    n->keep_in = 3;
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    return t->dev->k->glu_fwd(t->dev, n->out[0]->data, n->in[0]->data, n->in[1] ? n->in[1]->data : NULL,
                              nb_tensor_size(n->out[0]),
                              NB_ATTR(n, nb_glu_attr)->act);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_tensor *g = n->in[0], *u = n->in[1];
    return t->dev->k->glu_bwd(t->dev, g->needs_grad ? g->grad : NULL, n->beta[0], u && u->needs_grad ? u->grad : NULL,
                              n->beta[1], n->out[0]->grad, g->data, u ? u->data : NULL, nb_tensor_size(g),
                              NB_ATTR(n, nb_glu_attr)->act);
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->out[0]);
    return (nb_cost){8 * size, 12 * size};
}

static const nb_glu_attr silu = {NB_ACT_SILU}, gelu_tanh = {NB_ACT_GELU_TANH}, gelu_erf = {NB_ACT_GELU_ERF},
                         relu = {NB_ACT_RELU};
static const nb_case cases[] = {
    {"silu", {{3, 8}, {3, 8}}, &silu, NB_OK},
    {"silu odd", {{7, 131}, {7, 131}}, &silu, NB_OK},
    {"gelu tanh", {{4, 33}, {4, 33}}, &gelu_tanh, NB_OK},
    {"gelu erf", {{4, 33}, {4, 33}}, &gelu_erf, NB_OK},
    {"relu", {{4, 33}, {4, 33}}, &relu, NB_OK},
    {"no gate", {{4, 33}, {0}}, &gelu_tanh, NB_OK},
    {"unequal", {{3, 8}, {3, 9}}, &silu, NB_ESHAPE},
};

const nb_op nb_op_glu = {"glu", sizeof(nb_glu_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
