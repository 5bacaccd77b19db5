/* AdamW over an adapter's flat buffers, with the gradient's norm, clipping and the finite check before it. Its
 * moments are f32, or with eight_bits one byte each (kernels/state8.h); then, as in bitsandbytes and transformers'
 * Trainer, small parameters and embeddings keep f32 moments.
 *
 * With several ranks each has all parameters and, after their sum, all gradients, so that they stay the same
 * everywhere. The state may be shared out (ZeRO stage 1, Rajbhandari et al., 2020): a rank then holds that of one
 * contiguous part of the parameters, whole blocks of 8-bit state, updates this part, and hears the rest from the
 * others. Same result, bit for bit. */
#ifndef NB_TRAIN_OPTIMIZER_H
#define NB_TRAIN_OPTIMIZER_H

#include "adapters/adapter.h"
#include "kernels/comm.h"

/* Of the state on the device; those a run has no use for are empty. */
enum { NB_STATE_M, NB_STATE_V, NB_STATE_M8, NB_STATE_V8, NB_STATE_M_SCALE, NB_STATE_V_SCALE, NB_STATE_COUNT };
typedef struct nb_state_buffer {
    const char *name; /* in a checkpoint */
    nb_dtype dtype;
    int64_t n;            /* elements held here */
    int64_t whole, first; /* of all ranks together, and the place of ours among them; n and 0 unless shared out */
    void *p;
} nb_state_buffer;

/* Neighbouring parameters that are updated in one call. */
typedef struct nb_update_run {
    int64_t at, n;  /* elements of the adapter's flat buffers */
    int64_t state;  /* where its moments begin in M and V, or in M8 and V8 */
    int64_t scales; /* where its scales begin in M_SCALE and V_SCALE */
    bool decays, eight_bits, boosted; /* boosted: B matrices of LoRA+ */
} nb_update_run;

typedef struct nb_optimizer {
    nb_adapter *adapter;
    nb_comm *comm;     /* borrowed; NULL: one process */
    bool shared;       /* the state is shared out over the ranks */
    int64_t *parts;    /* [ranks + 1] where in the flat buffers the parts begin; NULL unless shared */
    nb_state_buffer state[NB_STATE_COUNT];
    nb_update_run *runs; /* of our part */
    int n_runs;
    nb_update *update; /* [2] on the device, the second for boosted runs: norm and clipping never wait for the host */
    double b_ratio;    /* LoRA+ (Hayou et al., 2024): learning rate of B over that of A; 1: plain */
    double beta1, beta2, epsilon, weight_decay, max_grad_norm; /* max_grad_norm 0: no clipping */
} nb_optimizer;

nb_status nb_optimizer_open(nb_optimizer *o, nb_adapter *a, bool eight_bits, double b_ratio, nb_comm *comm,
                            bool shared);
void nb_optimizer_close(nb_optimizer *o);
size_t nb_optimizer_bytes(const nb_optimizer *o); /* of the state held here */
size_t nb_optimizer_whole_bytes(const nb_optimizer *o); /* of all ranks' together */
/* Before the first micro-batch of a step: gradients count as unwritten. */
void nb_optimizer_begin(nb_optimizer *o);
/* After the last: gradients nothing wrote become zero, ranks add theirs up, the whole gradient's norm is found and
 * clipped, and the weights are updated. step counts from 1. *norm is the norm before clipping; when it is NaN or
 * infinite nothing was updated. Vectors (norm weights, biases) do not decay, as in transformers' Trainer. */
nb_status nb_optimizer_step(nb_optimizer *o, int64_t step, double rate, double *norm);

#endif
