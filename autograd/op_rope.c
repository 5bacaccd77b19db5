/* Rotary position embedding of queries and keys (Su et al., 2021), half-rotated convention. */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_rope_attr *a = NB_ATTR(n, nb_rope_attr);
    const nb_tensor *q = n->in[0], *k = n->in[1];
    if (q->n_dims != 2 || k->n_dims != 2 || q->d[0] != k->d[0] || q->d[1] != a->heads * a->head_dim ||
        k->d[1] != a->kv_heads * a->head_dim || a->rot > a->head_dim || a->rot % 2)
        return nb_fail(NB_ESHAPE, "q [%lld,%lld], k [%lld,%lld]: want [T, %lld*%lld], [T, %lld*%lld]",
                       (long long)q->d[0], (long long)q->d[1], (long long)k->d[0], (long long)k->d[1],
                       (long long)a->heads, (long long)a->head_dim, (long long)a->kv_heads, (long long)a->head_dim);
    nb_node_out(t, n, "q", t->dev->elem, 2, q->d[0], q->d[1]);
    nb_node_out(t, n, "k", t->dev->elem, 2, k->d[0], k->d[1]);
    return NB_OK;
}

static nb_status rotate(nb_tape *t, nb_node *n, int i, nb_elem *y, const nb_elem *x, bool inverse, float beta) {
    const nb_rope_attr *a = NB_ATTR(n, nb_rope_attr);
    return t->dev->k->rope(t->dev, y, x, a->cos, a->sin, a->pos, n->in[i]->d[0], i ? a->kv_heads : a->heads,
                           a->head_dim, a->rot, inverse, beta);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    for (int i = 0; i < 2; i++) NB_TRY(rotate(t, n, i, n->out[i]->data, n->in[i]->data, false, 0));
    return NB_OK;
}

static nb_status backward(nb_tape *t, nb_node *n) {
    for (int i = 0; i < 2; i++)
        if (n->in[i]->needs_grad) NB_TRY(rotate(t, n, i, n->in[i]->grad, n->out[i]->grad, true, n->beta[i]));
    return NB_OK;
}

static nb_cost cost(const nb_node *n) {
    double size = (double)(nb_tensor_size(n->out[0]) + nb_tensor_size(n->out[1]));
    return (nb_cost){3 * size, 8 * size};
}

static const float cos_table[12] = {1, 1, 1, 0.54f, 0.995f, 0.9999f, -0.416f, 0.98f, 0.9998f, -0.99f, 0.955f, 0.9996f};
static const float sin_table[12] = {0, 0, 0, 0.84f, 0.0998f, 0.01f, 0.909f, 0.1987f, 0.02f, 0.141f, 0.2955f, 0.03f};
static const int32_t positions[5] = {0, 1, 2, 3, 0};
static const nb_rope_attr full = {cos_table, sin_table, positions, 2, 1, 6, 6};
static const nb_rope_attr partial = {cos_table, sin_table, positions, 4, 2, 10, 4};
static const nb_case cases[] = {
    {"full", {{5, 12}, {5, 6}}, &full, NB_OK},
    {"partial", {{5, 40}, {5, 20}}, &partial, NB_OK},
    {"wrong width", {{5, 12}, {5, 12}}, &full, NB_ESHAPE},
};

const nb_op nb_op_rope = {"rope", sizeof(nb_rope_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
