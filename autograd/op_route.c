/* Which experts a token goes to, and with what weight: softmax over all experts, then the k most likely. The gradient goes
 * through the weights; the choice itself has none. What was chosen is kept, so that nothing is routed twice. */
#include "autograd/ops.h"

enum { MAX_EXPERTS = 1024, MAX_CHOICES = 32 }; /* the kernel's */

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_route_attr *a = NB_ATTR(n, nb_route_attr);
    const nb_tensor *x = n->in[0];
    int64_t T = x->d[0], E = x->d[1];
    if (a->k < 1 || a->k > E || a->k > MAX_CHOICES || E > MAX_EXPERTS)
        return nb_fail(NB_ESHAPE, "%lld of %lld experts: at most %d of %d", (long long)a->k, (long long)E, MAX_CHOICES,
                       MAX_EXPERTS);
    nb_node_out(t, n, "weights", NB_F32, 1, T * a->k, 0);
    nb_node_out(t, n, "tokens", NB_I32, 1, T * a->k, 0);
    nb_node_out(t, n, "places", NB_I32, 1, T * a->k, 0);
    if (a->share) nb_node_out(t, n, "share", NB_F32, 1, E, 0);
    if (n->needs_grad) nb_node_save(t, n, "choices", NB_I32, 1, T * a->k, 0);
    n->keep_in = 1;
    n->keep_out = 4;
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_route_attr *a = NB_ATTR(n, nb_route_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *x = n->in[0];
    int64_t T = x->d[0], E = x->d[1];
    int32_t *choices, *offsets;
    float *lse;
    NB_TRY(nb_scratch(t, &offsets, E + 1, NB_I32));
    if (n->n_saved) choices = n->saved[0]->data;
    else NB_TRY(nb_scratch(t, &choices, T * a->k, NB_I32));
    NB_TRY(k->route(t->dev, n->out[0]->data, n->out[1]->data, n->out[2]->data, choices, offsets, x->data, T, E, a->k,
                    a->renorm));
    if (a->share) {
        NB_TRY(nb_scratch(t, &lse, T, NB_F32));
        NB_TRY(k->route_share(t->dev, n->out[3]->data, lse, x->data, T, E));
    }
    return t->dev->be->get(t->dev, a->offsets, offsets, (size_t)(E + 1) * sizeof *offsets);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_route_attr *a = NB_ATTR(n, nb_route_attr);
    const nb_tensor *x = n->in[0];
    return t->dev->k->route_bwd(t->dev, x->grad, n->beta[0], n->out[0]->grad, a->share ? n->out[3]->grad : NULL,
                                x->data, n->saved[0]->data, n->out[2]->data, x->d[0], x->d[1], a->k, a->renorm);
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->in[0]);
    return (nb_cost){5 * size, 4 * size};
}

static int32_t room[8];
static const nb_route_attr two = {.k = 2, .offsets = room}, renormed = {.k = 2, .renorm = true, .offsets = room},
                           all = {.k = 5, .renorm = true, .offsets = room},
                           share = {.k = 2, .share = true, .offsets = room}, many = {.k = 7, .offsets = room};
static const nb_case cases[] = {
    {"two", {{9, 5}}, &two, NB_OK},
    {"renormed", {{13, 7}}, &renormed, NB_OK},
    {"all", {{4, 5}}, &all, NB_OK},
    {"share", {{11, 6}}, &share, NB_OK},
    {"too many", {{4, 5}}, &many, NB_ESHAPE},
};

const nb_op nb_op_route = {"route", sizeof(nb_route_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
