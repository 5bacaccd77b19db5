/* How long a prompt takes to be read, and a token to be generated, through the runners that generation uses; greedy,
 * one sequence. */
#ifndef NB_MEASURE_DECODE_H
#define NB_MEASURE_DECODE_H

#include "model/transformer.h"

typedef struct nb_decode {
    int64_t tokens;      /* of the prompt; generated */
    int64_t runs;        /* that count: the first, which touches fresh memory, does not */
    double best, median; /* seconds a run */
    double flops, bytes; /* of a run: products and attention; weights, keys and values read */
} nb_decode;

/* A prompt of so many random tokens in one pass, with the logits of its last. */
nb_status nb_decode_prompt(nb_model *m, int64_t tokens, double seconds, nb_decode *out);
/* So many tokens one after another, each the likeliest after those before, from one random token on. */
nb_status nb_decode_generate(nb_model *m, int64_t tokens, double seconds, nb_decode *out);

#endif
