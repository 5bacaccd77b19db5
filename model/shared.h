/* The frozen base shared out by layers (ZeRO stage 3, for weights that never change): rank l % size keeps the linear
 * weights of layer l, and sends them to all others whenever products are about to read them. What a rank holds
 * besides is two slots of a layer's size. Norms, biases, embedding and head are small or never used by layer: every
 * rank has them.
 *
 * Every rank must use the layers in the same order, as ranks do that run the same graph on batches of their own. */
#ifndef NB_MODEL_SHARED_H
#define NB_MODEL_SHARED_H

#include "kernels/comm.h"
#include "model/spec.h"

typedef struct nb_shared_layer {
    nb_home home; /* first: a weight's home is its layer */
    struct nb_shared *shared;
    char *own;    /* its weights one after another; NULL: another rank's */
    size_t bytes;
    int slot;     /* that holds it on the other ranks; -1: none */
} nb_shared_layer;

typedef struct nb_shared {
    nb_comm *comm; /* borrowed */
    nb_dev *dev;
    nb_shared_layer *layer; /* [layers] */
    int64_t layers;
    char *block, *slot[2];  /* our layers; one of each two that come by */
    size_t block_bytes, slot_bytes;
    int next;               /* slot to be filled */
    bool asleep;            /* plans are being made: nothing is sent */
} nb_shared;

/* Takes over the weights w[layers][slots]: copies ours, and gives all of them a home. */
nb_status nb_shared_open(nb_shared **out, nb_weight *w, int64_t layers, int slots, nb_dev *dev, nb_comm *comm);
void nb_shared_close(nb_shared *s);
size_t nb_shared_bytes(const nb_shared *s); /* held here */

#endif
