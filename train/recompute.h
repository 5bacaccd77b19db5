/* gradient_checkpointing: how much every layer computes again in the backward pass. The results are the same bits either
 * way; `auto` looks for the fastest choice that fits the memory. */
#ifndef NB_TRAIN_RECOMPUTE_H
#define NB_TRAIN_RECOMPUTE_H

#include "train/run.h"

/* Least recomputed FLOPs first, among the choices whose activations and kernel scratch fit `room` bytes, by a few plans
 * on the null device; where nothing fits, the least bytes. */
nb_status nb_recompute_search(nb_model *m, int64_t tokens, double room, nb_recompute *out);
/* What the configuration asks for, for micro-batches of so many tokens. Everything else that the run holds in memory
 * is there by now. With several processes: the same on all of them. */
nb_status nb_recompute_choose(const nb_run *r, int64_t tokens, nb_recompute *out);
/* "layers 1-4 whole, 5-10 in part, 11-16 not"; "all layers in part". */
void nb_recompute_text(nb_recompute c, int64_t layers, nb_text *out);

#endif
