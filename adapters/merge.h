/* Base + adapter as one model folder, shard by shard, in f32 with one rounding at the end. */
#ifndef NB_ADAPTERS_MERGE_H
#define NB_ADAPTERS_MERGE_H

#include "adapters/session.h"

typedef enum nb_merge_mode {
    NB_MERGE_ORIGINAL,      /* into the weights as the base folder stores them */
    NB_MERGE_NF4_ROUNDTRIP, /* into the NF4-rounded weights: what a QLoRA adapter saw in training */
    NB_MERGE_REQUANT        /* as ORIGINAL, then quantized again */
} nb_merge_mode;

/* How far the merged folder's logits are from base + adapter, over every position of a probe text. */
typedef struct nb_drift {
    double mean_kl, max_kl;  /* nats, KL(base + adapter || merged) */
    double max_abs;          /* largest difference of a log-probability among tokens of at least 1 % */
    double same_argmax;      /* share of positions with the same most likely token */
    int64_t positions;
} nb_drift;

/* s: base + adapter, opened as for generation. out: a folder that does not exist or is empty; appears whole.
 * A base stored in 4 bits is refused: it has no float tensors to merge into. */
nb_status nb_merge(nb_session *s, const char *out, nb_merge_mode mode);
/* probe NULL: a built-in paragraph. The merged folder is loaded as it is stored. */
nb_status nb_merge_drift(nb_drift *d, nb_session *s, const char *merged, const char *probe);

#endif
