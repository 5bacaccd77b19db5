/* Bases of random weights in real models' shapes, without a file: their speed and memory are those of the models. */
#ifndef NB_MEASURE_RANDOM_BASE_H
#define NB_MEASURE_RANDOM_BASE_H

#include "model/weights.h"

typedef struct nb_shape {
    const char *name, *title;
    int64_t layers, hidden, mlp, heads, kv_heads, head_dim, vocab;
} nb_shape;
extern const nb_shape nb_shapes[];
extern const int nb_n_shapes;
/* By name; NB_EINPUT with the list of them. */
nb_status nb_shape_find(const nb_shape **out, const char *name);

/* The linear layers in `format`: F32, BF16 or NF4 with double quantization. The embedding, which is the head too, is
 * bf16, as it would be in a file. context: longest sequence. nb_base_free frees it. */
nb_status nb_base_random(nb_base **out, const nb_shape *s, nb_format format, int64_t context);

#endif
