/* AdamW over an adapter's flat buffers, with the gradient's norm, clipping and the finite check before it. */
#ifndef NB_TRAIN_OPTIMIZER_H
#define NB_TRAIN_OPTIMIZER_H

#include "adapters/adapter.h"

typedef struct nb_optimizer {
    nb_adapter *adapter;
    float *m, *v; /* [adapter->n] each, on the device */
    nb_update *update; /* on the device: norm and clipping never wait for the host */
    double beta1, beta2, epsilon, weight_decay, max_grad_norm; /* max_grad_norm 0: no clipping */
} nb_optimizer;

nb_status nb_optimizer_open(nb_optimizer *o, nb_adapter *a);
void nb_optimizer_close(nb_optimizer *o);
/* Before the first micro-batch of a step: gradients count as unwritten. */
void nb_optimizer_begin(nb_optimizer *o);
/* After the last: gradients nothing wrote become zero, the whole gradient's norm is found and clipped, and the weights
 * are updated. step counts from 1. *norm is the norm before clipping; when it is NaN or infinite nothing was updated.
 * Vectors (norm weights, biases) do not decay, as in transformers' Trainer. */
nb_status nb_optimizer_step(nb_optimizer *o, int64_t step, double rate, double *norm);

#endif
