/* The base's weights where products read them: on a device with memory of its own a copy made once, on the others the
 * base's own (mapped) memory. */
#ifndef NB_MODEL_RESIDENT_H
#define NB_MODEL_RESIDENT_H

#include "kernels/backend.h"
#include "model/shared.h"
#include "model/weights.h"

typedef struct nb_resident_layer {
    nb_weight *w;       /* [nb_spec_slots] */
    const float **bias; /* [nb_spec_slots], NULL: none */
    const float *norm[NB_NORMS], *norm_bias[NB_NORMS];
} nb_resident_layer;

typedef struct nb_resident {
    nb_weight embed, head; /* one copy when tied */
    nb_weight positions;   /* rows 0: not learned */
    const float *head_bias, *final_norm, *final_norm_bias;
    nb_resident_layer *layer; /* [layers] over */
    nb_weight *w;             /* [layers * nb_spec_slots] and */
    const float **bias;
    nb_dev *dev;
    char *block;  /* the copy; NULL where host memory serves */
    size_t bytes;
    nb_shared *shared; /* the layers' weights, when ranks share them out; else NULL */
} nb_resident;

/* Descriptors with device pointers. The base must outlive it. comm: its ranks share the layers out; NULL: all are here. */
nb_status nb_resident_open(nb_resident *r, const nb_base *base, nb_dev *dev, nb_comm *comm);
void nb_resident_close(nb_resident *r);
/* Bytes the copy takes on a device with memory of its own; no more than what the base's bytes are. */
size_t nb_resident_bytes(const nb_base *base);
/* Bytes of weights held here, in mapped files too. */
size_t nb_resident_held(const nb_resident *r, const nb_base *base);

#endif
