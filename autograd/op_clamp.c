/* y = x within [-limit, limit], as torch.clamp: no gradient where it was cut. */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0];
    if (!(NB_ATTR(n, nb_clamp_attr)->limit > 0)) return nb_fail(NB_ESHAPE, "the limit is not above 0");
    nb_node_out(t, n, "clamped", t->dev->elem, x->n_dims, x->d[0], x->d[1]);
    n->keep_in = 1;
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    return t->dev->k->clamp_fwd(t->dev, n->out[0]->data, n->in[0]->data, nb_tensor_size(n->in[0]),
                                NB_ATTR(n, nb_clamp_attr)->limit);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    return t->dev->k->clamp_bwd(t->dev, n->in[0]->grad, n->beta[0], n->out[0]->grad, n->in[0]->data,
                                nb_tensor_size(n->in[0]), NB_ATTR(n, nb_clamp_attr)->limit);
}

static nb_cost cost(const nb_node *n) { return (nb_cost){0, 8.0 * (double)nb_tensor_size(n->in[0])}; }

static const nb_clamp_attr half = {0.5f}, none = {0};
static const nb_case cases[] = {
    {"half", {{5, 16}}, &half, NB_OK},
    {"odd", {{7, 33}}, &half, NB_OK},
    {"no limit", {{5, 16}}, &none, NB_ESHAPE},
};

const nb_op nb_op_clamp = {"clamp", sizeof(nb_clamp_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
