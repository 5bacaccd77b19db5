/* One row per model family: the strings that select it, the defaults of its configuration class in transformers
 * (config files are saved as differences to them) and the names of its modules. Data only. */
#ifndef NB_MODEL_FAMILY_H
#define NB_MODEL_FAMILY_H

#include "model/spec.h"

typedef struct nb_family {
    const char *model_type, *architecture;
    int64_t context;     /* max_position_embeddings */
    int64_t kv_heads;    /* num_key_value_heads when the key is absent; 0: as many as heads (null always means that) */
    bool has_window;     /* reads sliding_window; */
    int64_t window;      /* its value when the key is absent */
    double norm_eps, rope_theta;
    bool tied;
    const char *embed, *final_norm, *head;
    const char *layer;   /* printf pattern of a layer's prefix, with the layer as long long */
    const char *linear[NB_SLOTS], *norm[NB_NORMS]; /* behind the prefix */
} nb_family;

/* NULL: not one of ours. */
const nb_family *nb_family_find(const char *model_type, const char *architecture);
char *nb_families_text(void); /* all of them, for messages; caller frees */

#endif
