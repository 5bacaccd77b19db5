/* y = x W^T + bias + scale * (drop(x) A^T) B^T over some rows (Hu et al., 2021; as PEFT computes it), and its gradients:
 * what op_linear does with each of its weights, and op_experts with each expert's. */
#ifndef NB_AUTOGRAD_LINEAR_ROWS_H
#define NB_AUTOGRAD_LINEAR_ROWS_H

#include "autograd/ops.h"

/* The inputs of a node that belong to one weight, in this order. */
enum { NB_LINEAR_W, NB_LINEAR_BIAS, NB_LINEAR_A, NB_LINEAR_B, NB_LINEAR_INPUTS };

typedef struct nb_linear_rows {
    const nb_linear_slot *slot;
    nb_tensor *const *in;    /* [NB_LINEAR_INPUTS], NULL: absent; without W, slot->w */
    const nb_elem *x;        /* [T, C] */
    int64_t T, C;
    const uint32_t *sample;  /* [T] with dropout: its counters */
    const int32_t *pos;
    nb_elem *dropped;        /* [T, C] scratch with dropout; not between calls */
    nb_elem *xa;             /* [T, R] with an adapter: scale * drop(x) A^T, which backward reads */
    int64_t ld_xa;           /* elements between rows of xa, and of dxa */
    /* of backward: */
    nb_elem *dxa;            /* [T, R] scratch */
    const nb_elem *dy;       /* [T, N] */
    const float *beta;       /* [NB_LINEAR_INPUTS] of the trained inputs' gradients */
} nb_linear_rows;

/* Rows N of the weight. */
int64_t nb_linear_features(const nb_linear_slot *slot, nb_tensor *const *in);
/* Does the adapter's input have a mask here? */
static inline bool nb_linear_drops(const nb_tape *t, const nb_linear_slot *slot, nb_tensor *const *in) {
    return t->training && slot->dropout > 0 && in[NB_LINEAR_A];
}
/* Whether the parts fit each other and an input of `cols` columns; i numbers them in messages. */
nb_status nb_linear_check(const nb_linear_slot *slot, nb_tensor *const *in, int64_t rows, int64_t cols, int i);
double nb_linear_flops(const nb_linear_slot *slot, nb_tensor *const *in, double T, double C);

/* r->xa = scale * drop(x) A^T of n weights over the same x. Where their A's lie one behind the other in memory, and their xa
 * side by side, it is one product, and so is the gradient of the A's. */
nb_status nb_linear_rows_xa(nb_tape *t, const nb_linear_rows *r, int n);
/* y [T, N] of a weight whose xa is there. */
nb_status nb_linear_rows_fwd(nb_tape *t, const nb_linear_rows *r, nb_mat y);
/* Of n weights, at most NB_LINEAR_MOST, over the same x: dx (NULL: not wanted) with dx_beta, in one sum, and the gradients of
 * the trained inputs. No rows: what would be set becomes 0. */
enum { NB_LINEAR_MOST = NB_MAX_TERMS / 2 };
nb_status nb_linear_rows_bwd(nb_tape *t, const nb_linear_rows *r, int n, nb_elem *dx, float dx_beta);

#endif
