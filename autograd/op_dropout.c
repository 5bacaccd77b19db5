/* Dropout as an operation of its own, for layers that need both what it lets through and what it does not. */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0];
    if (x->n_dims != 2) return nb_fail(NB_ESHAPE, "x has %d dimensions: dropout counts rows and columns", x->n_dims);
    nb_node_out(t, n, "dropped", x->dtype, 2, x->d[0], x->d[1]);
    nb_node_out(t, n, "rest of dropout", x->dtype, 2, x->d[0], x->d[1]);
    return NB_OK;
}

/* y = x with the mask; without one while nothing is trained. */
static nb_status drop(nb_tape *t, const nb_node *n, nb_elem *y, const nb_elem *x, float beta) {
    const nb_dropout_attr *a = NB_ATTR(n, nb_dropout_attr);
    int64_t T = n->in[0]->d[0], C = n->in[0]->d[1];
    if (!t->training || a->p <= 0) return t->dev->k->add(t->dev, y, x, NULL, T * C, beta);
    return t->dev->k->dropout(t->dev, y, x, t->batch->sample, t->batch->pos, T, C, a->p, t->seed, t->step, a->site,
                              beta);
}

/* y -= x. */
static nb_status subtract(nb_tape *t, nb_elem *y, const nb_elem *x, int64_t T, int64_t C) {
    float *minus;
    NB_TRY(nb_scratch(t, &minus, T, NB_F32));
    NB_TRY(t->dev->k->fill(t->dev, minus, NB_F32, -1, T));
    return t->dev->k->scale_rows(t->dev, y, x, minus, T, C, 1);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0];
    NB_TRY(drop(t, n, n->out[0]->data, x->data, 0));
    NB_TRY(t->dev->k->add(t->dev, n->out[1]->data, x->data, NULL, nb_tensor_size(x), 0));
    return subtract(t, n->out[1]->data, n->out[0]->data, x->d[0], x->d[1]);
}

/* dx = drop(d dropped - d rest) + d rest. */
static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_kernels *k = t->dev->k;
    const nb_tensor *x = n->in[0];
    int64_t size = nb_tensor_size(x);
    nb_elem *apart;
    if (!x->needs_grad) return NB_OK;
    NB_TRY(nb_scratch(t, &apart, size, x->dtype));
    NB_TRY(k->add(t->dev, apart, n->out[0]->grad, NULL, size, 0));
    NB_TRY(subtract(t, apart, n->out[1]->grad, x->d[0], x->d[1]));
    NB_TRY(k->add(t->dev, x->grad, n->out[1]->grad, NULL, size, n->beta[0]));
    return drop(t, n, x->grad, apart, 1);
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->in[0]);
    return (nb_cost){2 * size, 12 * size};
}

static const nb_dropout_attr some = {0.3f, 4}, most = {0.75f, 5};
static const nb_case cases[] = {
    {"some", {{11, 24}}, &some, NB_OK},
    {"most", {{9, 33}}, &most, NB_OK},
    {"a vector", {{24, 0}}, &some, NB_ESHAPE},
};

const nb_op nb_op_dropout = {"dropout", sizeof(nb_dropout_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
