/* The parts a weight is made of, to be copied one after another into a block: resident.c and shared.c. */
#ifndef NB_MODEL_PIECES_H
#define NB_MODEL_PIECES_H

#include "kernels/backend.h"

typedef struct nb_pieces {
    nb_dev *dev;   /* NULL: only count */
    char *to;      /* where bytes are copied to; NULL: nowhere */
    char *address; /* where pointers will point: `to`, or a stand-in for where it will be one day */
    size_t at;     /* so far */
    nb_status st;
} nb_pieces;

void nb_pieces_floats(nb_pieces *k, const float **p, int64_t n);
void nb_pieces_weight(nb_pieces *k, nb_weight *w);
/* Moves a weight's pointers by so many bytes. */
void nb_pieces_rebase(nb_weight *w, ptrdiff_t by);

#endif
