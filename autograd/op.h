/* Operations: one file each (op_<name>.c: attributes, shape, forward, backward, cost, cases), one row in ops.def. */
#ifndef NB_AUTOGRAD_OP_H
#define NB_AUTOGRAD_OP_H

#include <stddef.h>

#include "autograd/tensor.h"
#include "core/status.h"

typedef struct nb_node nb_node;
typedef struct nb_tape nb_tape;

typedef struct nb_cost {
    double flops, bytes; /* of one forward pass; bytes read and written with every tensor touched once */
} nb_cost;

/* A row of tests/test_ops.c: input shapes, attributes, and what should come of it. An input whose d[0] is 0 is
 * absent (NULL). */
typedef struct nb_case {
    const char *name;
    int64_t in[32][2];  /* {rows, cols}; cols 0: a vector */
    const void *attr;
    nb_status expect;   /* NB_OK, or the error of the shape check */
    uint32_t frozen;    /* bit i: in[i] takes no gradient in this case */
    const int32_t *const *ints; /* [4] values of those of the first inputs that are I32; NULL: none is */
} nb_case;

typedef struct nb_op {
    const char *name;
    size_t attr_size;
    /* Every check of shapes; declares outputs and saved tensors and what backward will read. */
    nb_status (*shape)(nb_tape *t, nb_node *n);
    nb_status (*forward)(nb_tape *t, nb_node *n);
    /* Writes in[i]->grad with beta n->beta[i] wherever it is not NULL, from out[]->grad. */
    nb_status (*backward)(nb_tape *t, nb_node *n);
    nb_cost (*cost)(const nb_node *n);
    const nb_case *cases;
    int n_cases;
} nb_op;

enum { NB_MAX_OUT = 4, NB_MAX_SAVED = 3, NB_MAX_ATTR = 256 };

struct nb_node {
    const nb_op *op;
    int op_index, n_in, n_out, n_saved;
    nb_tensor **in;  /* [n_in], NULL: absent; owned by the tape, as beta */
    float *beta;     /* [n_in] backward: 0 sets in[i]->grad, 1 adds */
    int cap_in;
    nb_tensor *out[NB_MAX_OUT], *saved[NB_MAX_SAVED];
    uint32_t keep_in, keep_out; /* bit i: backward reads in[i]->data (i < 32: activations stand first), out[i]->data */
    bool needs_grad, keep, live;
    _Alignas(16) char attr[NB_MAX_ATTR];
};

#define NB_ATTR(n, type) ((const type *)(const void *)(n)->attr)

/* Of one backward pass of a node, by which gradients it makes. */
nb_cost nb_backward_cost(const nb_node *n);

extern const nb_op *const nb_ops[];
extern const int nb_op_count;

#endif
