/* AdamW over an adapter's flat buffers, with the gradient's norm, clipping and the finite check before it. */
#ifndef NB_TRAIN_OPTIMIZER_H
#define NB_TRAIN_OPTIMIZER_H

#include "adapters/adapter.h"

typedef struct nb_optimizer {
    nb_adapter *adapter;
    float *m, *v; /* [adapter->n] each, on the device */
    double beta1, beta2, epsilon, weight_decay, max_grad_norm; /* max_grad_norm 0: no clipping */
} nb_optimizer;

nb_status nb_optimizer_open(nb_optimizer *o, nb_adapter *a);
void nb_optimizer_close(nb_optimizer *o);
/* Before the first micro-batch of a step: gradients count as unwritten. */
void nb_optimizer_begin(nb_optimizer *o);
/* After the last: gradients nothing wrote become zero, and *norm is the whole gradient's (NaN or infinity when it is
 * not finite; then nothing may be updated). */
nb_status nb_optimizer_norm(nb_optimizer *o, double *norm);
/* The update; step counts from 1. Vectors (norm weights, biases) do not decay, as in transformers' Trainer. */
nb_status nb_optimizer_update(nb_optimizer *o, int64_t step, double rate, double norm);

#endif
