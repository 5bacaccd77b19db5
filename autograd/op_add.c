/* y = x1 + x2. */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_tensor *x1 = n->in[0], *x2 = n->in[1];
    if (x1->n_dims != x2->n_dims || x1->d[0] != x2->d[0] || (x1->n_dims > 1 && x1->d[1] != x2->d[1]))
        return nb_fail(NB_ESHAPE, "[%lld,%lld] + [%lld,%lld]: shapes must be equal", (long long)x1->d[0],
                       (long long)x1->d[1], (long long)x2->d[0], (long long)x2->d[1]);
    nb_node_out(t, n, "sum", t->dev->elem, x1->n_dims, x1->d[0], x1->d[1]);
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    return t->dev->k->add(t->dev, n->out[0]->data, n->in[0]->data, n->in[1]->data, nb_tensor_size(n->out[0]), 0);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    for (int i = 0; i < 2; i++)
        if (n->in[i]->needs_grad)
            NB_TRY(t->dev->k->add(t->dev, n->in[i]->grad, n->out[0]->grad, NULL, nb_tensor_size(n->out[0]),
                                  n->beta[i]));
    return NB_OK;
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->out[0]);
    return (nb_cost){size, 12 * size};
}

static const nb_case cases[] = {
    {"small", {{3, 5}, {3, 5}}, NULL, NB_OK},
    {"long", {{7, 1031}, {7, 1031}}, NULL, NB_OK},
    {"unequal", {{3, 5}, {3, 4}}, NULL, NB_ESHAPE},
};

const nb_op nb_op_add = {"add", 0, shape, forward, backward, cost, cases, NB_LEN(cases)};
