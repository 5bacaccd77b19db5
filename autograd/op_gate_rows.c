/* Rows scaled by a sigmoid: the shared expert of Qwen2-MoE, which every token goes to in part. */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0], *gate = n->in[1];
    if (gate->d[0] != x->d[0] || gate->d[1] != 1)
        return nb_fail(NB_ESHAPE, "x [%lld,%lld], gate [%lld,%lld]: one column for as many rows", (long long)x->d[0],
                       (long long)x->d[1], (long long)gate->d[0], (long long)gate->d[1]);
    nb_node_out(t, n, "gated", t->dev->elem, 2, x->d[0], x->d[1]);
    n->keep_in = 3;
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_tensor *x = n->in[0];
    float *by;
    NB_TRY(nb_scratch(t, &by, x->d[0], NB_F32));
    NB_TRY(t->dev->k->sigmoid_fwd(t->dev, by, n->in[1]->data, x->d[0]));
    return t->dev->k->scale_rows(t->dev, n->out[0]->data, x->data, by, x->d[0], x->d[1], 0);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_kernels *k = t->dev->k;
    const nb_tensor *x = n->in[0], *gate = n->in[1];
    const nb_elem *dy = n->out[0]->grad;
    int64_t T = x->d[0], C = x->d[1];
    float *by, *dby;
    NB_TRY(nb_scratch(t, &by, T, NB_F32));
    NB_TRY(nb_scratch(t, &dby, T, NB_F32));
    NB_TRY(k->sigmoid_fwd(t->dev, by, gate->data, T));
    if (x->needs_grad) NB_TRY(k->scale_rows(t->dev, x->grad, dy, by, T, C, n->beta[0]));
    if (!gate->needs_grad) return NB_OK;
    NB_TRY(k->row_dots(t->dev, dby, dy, x->data, T, C, 0));
    return k->sigmoid_bwd(t->dev, gate->grad, n->beta[1], dby, by, T);
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->out[0]);
    return (nb_cost){size, 8 * size};
}

static const nb_case cases[] = {
    {"small", {{5, 8}, {5, 1}}, NULL, NB_OK},
    {"odd", {{7, 33}, {7, 1}}, NULL, NB_OK},
    {"two columns", {{5, 8}, {5, 2}}, NULL, NB_ESHAPE},
};

const nb_op nb_op_gate_rows = {"gate_rows", 0, shape, forward, backward, cost, cases, NB_LEN(cases)};
