/* Columns of one tensor as tensors of their own: the parts of a fused projection. */
#include "autograd/ops.h"

static int64_t groups_of(const nb_node *n) {
    int64_t g = NB_ATTR(n, nb_split_attr)->groups;
    return g > 1 ? g : 1;
}

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_split_attr *a = NB_ATTR(n, nb_split_attr);
    const nb_tensor *x = n->in[0];
    int64_t sum = 0;
    NB_ASSERT(a->n >= 1 && a->n <= 3);
    for (int i = 0; i < a->n; i++) {
        NB_ASSERT(a->width[i] % groups_of(n) == 0);
        sum += a->width[i];
    }
    if (x->n_dims != 2 || x->d[1] != sum)
        return nb_fail(NB_ESHAPE, "x [%lld,%lld] is split into %lld columns", (long long)x->d[0], (long long)x->d[1],
                       (long long)sum);
    for (int i = 0; i < a->n; i++) nb_node_out(t, n, "part", t->dev->elem, 2, x->d[0], a->width[i]);
    return NB_OK;
}

/* Part i between x, whose groups are `width` elements apart, and its own tensor. */
static nb_status move(nb_tape *t, const nb_node *n, bool back) {
    const nb_tensor *x = n->in[0];
    int64_t groups = groups_of(n), rows = x->d[0] * groups, width = x->d[1] / groups;
    for (int64_t i = 0, at = 0; i < n->n_out; i++) {
        const nb_tensor *y = n->out[i];
        int64_t part = y->d[1] / groups;
        if (back) NB_TRY(t->dev->k->copy_rows(t->dev, nb_elem_at(x->grad, at, x->dtype), width, y->grad, part, rows, part,
                                              n->beta[0]));
        else NB_TRY(t->dev->k->copy_rows(t->dev, y->data, part, nb_elem_at(x->data, at, x->dtype), width, rows, part, 0));
        at += part;
    }
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) { return move(t, n, false); }
static nb_status backward(nb_tape *t, nb_node *n) { return move(t, n, true); }

static nb_cost cost(const nb_node *n) { return (nb_cost){0, 8.0 * (double)nb_tensor_size(n->in[0])}; }

static const nb_split_attr three = {3, {8, 4, 4}}, two = {2, {5, 6}}, turns = {3, {6, 6, 6}, 2};
static const nb_case cases[] = {
    {"three", {{5, 16}}, &three, NB_OK},
    {"odd", {{7, 11}}, &two, NB_OK},
    {"in turns", {{5, 18}}, &turns, NB_OK},
    {"wrong width", {{5, 15}}, &three, NB_ESHAPE},
};

const nb_op nb_op_split = {"split", sizeof(nb_split_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
