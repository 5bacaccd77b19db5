/* A tensor: shape, data (f32 or bf16) and (if anything upstream is trained) a gradient. It owns nothing: activations
 * live in the tape's arena, parameters in flat buffers of their owner. */
#ifndef NB_AUTOGRAD_TENSOR_H
#define NB_AUTOGRAD_TENSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dtype.h"

struct nb_node;

typedef struct nb_tensor {
    const char *name;          /* module path for parameters, role for activations; borrowed */
    int n_dims;
    int64_t d[3];              /* row-major, d[n_dims-1] contiguous */
    nb_dtype dtype;            /* of data and grad: parameters F32, activations the device's elem */
    void *data, *grad;         /* on the device; grad NULL: frozen, or not reached yet */
    bool needs_grad;           /* it, or something it was computed from, is trained */
    bool grad_written;         /* grad holds a sum: the next writer adds. Parameters: cleared once per step */
    struct nb_node *producer;  /* NULL: a leaf (parameter or constant) */
    int32_t buf, grad_buf;     /* plan entries, -1 for leaves */
} nb_tensor;

static inline int64_t nb_tensor_size(const nb_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->d[i];
    return n;
}

/* A pointer to element i. */
static inline void *nb_elem_at(const void *p, int64_t i, nb_dtype dtype) {
    return (char *)(uintptr_t)p + i * nb_dtype_size(dtype);
}

/* A parameter (F32) over memory of the caller's. grad NULL = frozen. */
static inline nb_tensor nb_leaf(const char *name, float *data, float *grad, int n_dims, int64_t d0, int64_t d1) {
    return (nb_tensor){.name = name, .n_dims = n_dims, .d = {d0, d1}, .data = data, .grad = grad,
                       .needs_grad = grad != 0, .buf = -1, .grad_buf = -1};
}

#endif
