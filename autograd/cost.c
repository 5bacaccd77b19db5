/* What a backward pass costs: products by the gradients that are wanted, the rest twice its forward pass. */
#include "autograd/ops.h"

/* dX, and of an adapter y += (x A^T) B^T: dB, d(x A^T), dA and its share of dX. Inputs stand in fours behind x. */
static nb_cost of_linear(const nb_node *n) {
    const nb_linear_attr *a = NB_ATTR(n, nb_linear_attr);
    const nb_tensor *x = n->in[0];
    const double T = (double)x->d[0], C = (double)x->d[1];
    nb_cost c = {0, (x->needs_grad ? 8 : 4) * T * C};
    for (int i = 0; i < a->n; i++) {
        const nb_tensor *W = n->in[1 + 4 * i], *A = n->in[3 + 4 * i];
        const double N = (double)n->out[i]->d[1], R = A ? (double)A->d[0] : 0;
        const double products = (x->needs_grad ? 1 : 0) + (W && W->needs_grad ? 1 : 0);
        c.flops += 2 * T * N * C * products + 4 * T * R * N + (x->needs_grad ? 4 : 2) * T * R * C;
        c.bytes += 4 * T * N + (W ? 4 * N * C : (double)nb_weight_bytes(a->slot[i].w)) * products + 8 * R * (N + C);
    }
    return c;
}

/* A frozen head's gradient was made in the forward pass; a trained one makes the logits again, dX and dW. */
static nb_cost of_linear_xent(const nb_node *n, nb_cost forward) {
    const double size = (double)NB_ATTR(n, nb_linear_xent_attr)->n * (double)n->in[0]->d[1];
    return n->n_saved ? (nb_cost){size, 8 * size} : (nb_cost){3 * forward.flops, 3 * forward.bytes};
}

nb_cost nb_backward_cost(const nb_node *n) {
    const nb_cost forward = n->op->cost(n);
    if (n->op == &nb_op_linear) return of_linear(n);
    if (n->op == &nb_op_linear_xent) return of_linear_xent(n, forward);
    if (n->op == &nb_op_attention) return (nb_cost){2.5 * forward.flops, 2 * forward.bytes}; /* 5 products for 2 */
    return (nb_cost){2 * forward.flops, 2 * forward.bytes};
}
