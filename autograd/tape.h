/* Define by run: nb_apply computes and records; nb_backward walks the record in reverse.
 *
 * - Nodes none of whose inputs needs a gradient are not recorded and keep nothing.
 * - The first writer of a gradient sets it, later ones add: nothing is zero-filled.
 * - A level per layer says which outputs are kept for the backward pass; the others are dropped after their last use in
 *   the forward pass and computed again, on demand, when backward first reads them. What backward never reads (a down
 *   projection's output) is never computed twice.
 * - No memory is allocated after planning: see plan.h. */
#ifndef NB_AUTOGRAD_TAPE_H
#define NB_AUTOGRAD_TAPE_H

#include "autograd/op.h"
#include "autograd/plan.h"
#include "core/batch.h"
#include "kernels/backend.h"

/* What the backward pass computes again of a layer: nothing; what costs little for the memory it frees (norms, q/k/v,
 * RoPE, gate/up and their product: the residual stream, attention's output and the projections behind it and behind the
 * MLP are kept); or everything between the layer's input and output. */
typedef enum nb_level { NB_LEVEL_NONE, NB_LEVEL_SMART, NB_LEVEL_FULL } nb_level;
/* The first `full` layers at NB_LEVEL_FULL, the next `smart` at NB_LEVEL_SMART, the rest at NB_LEVEL_NONE: backward
 * begins at the last layers, when what was kept of all of them is still there. */
typedef struct nb_recompute {
    int64_t full, smart;
} nb_recompute;
extern const nb_recompute nb_recompute_none, nb_recompute_smart, nb_recompute_full; /* every layer at one level */

typedef struct nb_prof_row {
    double forward_s, backward_s;
    nb_cost forward, backward;
    int64_t calls; /* forward */
} nb_prof_row;

struct nb_tape {
    nb_dev *dev;
    nb_mem_mode mode;
    nb_plan *plan;          /* PLAN: being recorded; ARENA: being followed */
    char *base;             /* ARENA: plan->peak bytes */
    bool grad;              /* record for a backward pass */
    bool training;          /* dropout is active */
    nb_recompute recompute;
    nb_level level;         /* of the layer whose nodes are being applied */
    uint64_t seed;          /* dropout's key */
    uint32_t step;
    const nb_batch *batch;  /* dropout's counters */
    nb_prof_row *prof;      /* [nb_op_count], or NULL */
    double (*clock)(void);  /* prof's, in seconds; nb_now unless set */

    nb_node *nodes;
    nb_tensor *tensors;
    int n_nodes, max_nodes, n_tensors, max_tensors;
    int32_t n_bufs, event;
    struct nb_direct *direct; /* DIRECT: every block, [n_bufs] */
    int32_t cap_direct;
};

/* max_nodes bounds the operations between two resets. */
nb_status nb_tape_open(nb_tape **out, nb_dev *dev, int max_nodes);
void nb_tape_free(nb_tape *t);
/* Forgets all nodes and activations. */
void nb_tape_reset(nb_tape *t);

/* What is applied from here on belongs to layer l; -1: to none, where everything is kept. */
void nb_tape_layer(nb_tape *t, int64_t l);
/* Keeps what node i and those after it have made, in layers of a level up to `most`. */
void nb_tape_keep(nb_tape *t, int first, nb_level most);

/* Runs an operation. in[n_in] may hold NULLs; attr is copied (op->attr_size bytes). out[] receives the outputs. */
nb_status nb_apply(nb_tape *t, const nb_op *op, nb_tensor *const *in, int n_in, const void *attr, nb_tensor **out);
/* Gradient of sum_i seed[i] * root[i] (seed NULL: every element `value`) into every leaf that needs one. */
nb_status nb_backward(nb_tape *t, nb_tensor *root, const float *seed, float value);

/* For ops. Outputs and saved tensors are declared in shape(); scratch lives until the op's function returns. */
nb_tensor *nb_node_out(nb_tape *t, nb_node *n, const char *name, nb_dtype dtype, int n_dims, int64_t d0, int64_t d1);
nb_tensor *nb_node_save(nb_tape *t, nb_node *n, const char *name, nb_dtype dtype, int n_dims, int64_t d0, int64_t d1);
nb_status nb_scratch(nb_tape *t, void *out /* T ** */, int64_t n, nb_dtype dtype);
/* Makes room in the plan and switches the tape to real memory: mode ARENA over base. */
void nb_tape_follow(nb_tape *t, nb_plan *plan, char *base);
/* DIRECT mode: NB_OK when every red zone is intact. */
nb_status nb_tape_check_red_zones(const nb_tape *t);

#endif
