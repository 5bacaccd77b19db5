/* From logits to the next token. The filters run in the order of Hugging Face's generate():
 *
 *   repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw
 *
 * A draw is a pure function of (seed, sequence, position): a sequence gets the same tokens whether it runs alone or
 * among others. */
#ifndef NB_GENERATE_SAMPLER_H
#define NB_GENERATE_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"

typedef struct nb_sampling {
    double temperature;        /* 0: greedy, the most likely token (the lowest id of equals); filters are idle then */
    int64_t top_k;             /* keep the k most likely, and all that equal the k-th; 0: off */
    double top_p;              /* keep the fewest, most likely first, that have this much probability; 1: off */
    double min_p;              /* keep those at least this many times as likely as the most likely; 0: off */
    double repetition_penalty; /* logits of tokens seen before (prompt too): divided if > 0, else multiplied; 1: off */
    uint64_t seed;
} nb_sampling;

nb_sampling nb_sampling_greedy(void);
/* Every value in its range, or NB_EINPUT naming the option as the commands spell it. */
nb_status nb_sampling_check(const nb_sampling *s);

typedef struct nb_candidate {
    float logit;
    int32_t id;
} nb_candidate;

typedef struct nb_sampler { /* scratch for one vocabulary; no draw's result depends on earlier draws */
    nb_candidate *cand;     /* [vocab] */
    uint32_t *mark, stamp;  /* [vocab] token seen in this call: mark == stamp */
    int64_t vocab;
} nb_sampler;
void nb_sampler_open(nb_sampler *s, int64_t vocab);
void nb_sampler_close(nb_sampler *s);

/* The next token after history[n] of sequence number `sequence`; n is the position drawn for. logits[vocab] is
 * changed by the repetition penalty. A NaN, or nothing but -inf: NB_ENUMERIC. Ids of history outside the vocabulary
 * are passed over. Allocates nothing. */
nb_status nb_sampler_next(nb_sampler *s, const nb_sampling *o, float *logits, const int32_t *history, int64_t n,
                          uint64_t sequence, int32_t *token);

/* The most likely tokens of a row, most likely first, as the kernel top_logits finds them at rate
 * nb_sampling_rate(o). */
typedef struct nb_top {
    const float *values;
    const int32_t *ids;
    int64_t n;
    float mass;
} nb_top;
float nb_sampling_rate(const nb_sampling *o);
bool nb_sampling_of_top(const nb_sampling *o); /* may they be enough to draw from? */
/* nb_sampler_next from the most likely alone: the same token, or *sure is false, where the whole row has to be seen: more
 * than these may be drawn, a repetition penalty may reorder them, or a number is not finite. */
void nb_sampler_next_of_top(nb_sampler *s, const nb_sampling *o, const nb_top *top, int64_t n, uint64_t sequence,
                            int32_t *token, bool *sure);

/* The distribution a draw is taken from, probability[vocab], after all filters (greedy: one 1). */
nb_status nb_sampler_distribution(nb_sampler *s, const nb_sampling *o, float *logits, const int32_t *history,
                                  int64_t n, double *probability);

#endif
