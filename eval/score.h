/* The model's loss on every token of one text: `nibble score`, and the drift that a merge reports. */
#ifndef NB_EVAL_SCORE_H
#define NB_EVAL_SCORE_H

#include "model/transformer.h"

typedef struct nb_score {
    float *nll;      /* [n-1]: negative log-likelihood of ids[i+1] after ids[0..i] */
    int32_t *argmax; /* [n]: most likely next token after ids[0..i] */
    int64_t n;
    double loss;     /* mean of nll */
} nb_score;

/* n >= 2, n <= the model's positions. */
nb_status nb_score_ids(nb_score *s, nb_model *m, nb_arena *arena, const int32_t *ids, int64_t n);
void nb_score_free(nb_score *s);

#endif
