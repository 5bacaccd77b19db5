/* What data/ hands to model/: a flat list of T tokens in which documents stand one behind another,
 * each a segment of its own. There is no padding and no attention mask: a row of the batch, a packed
 * document and a sequence being generated are all just segments.
 *
 *      tokens   0 1 2 3 4 5 6 7 8          segs  {q0=0,qn=4,k0=0,kn=4} {q0=4,qn=5,k0=4,kn=5}
 *      pos      0 1 2 3 0 1 2 3 4
 *
 * Letters used everywhere: B batch, T tokens, C channels (hidden size), H query heads, KV key/value
 * heads, D head size, F hidden size of the MLP, V vocabulary, R rank, L layers. */
#ifndef NB_CORE_BATCH_H
#define NB_CORE_BATCH_H

#include <stdbool.h>
#include <stdint.h>

enum { NB_IGNORE = -100 }; /* target of a token that is not trained on */

/* Queries q0..q0+qn-1 attend to keys k0..k0+kn-1. Query i stands at key kn-qn+i and sees the keys up to
 * and including its own (with a window w: the last w of them). In training qn = kn; with a KV cache
 * qn <= kn and k0 counts rows of the cache. */
typedef struct nb_seg {
    int32_t q0, qn, k0, kn;
} nb_seg;

typedef struct nb_batch {
    int64_t n;               /* T, tokens */
    const int32_t *ids;      /* [T] */
    const int32_t *targets;  /* [T] the token that should follow, or NB_IGNORE; NULL when not training */
    const int32_t *pos;      /* [T] position in its document: RoPE, dropout key */
    const uint32_t *sample;  /* [T] number of its document in the data set: dropout key */
    const nb_seg *segs;      /* [n_segs], in order of q0, covering all tokens */
    int64_t n_segs;
    int64_t n_trained;       /* targets that are not NB_IGNORE */
    double pairs;            /* of queries and keys they see, for counting operations; 0: not counted */
    const int32_t *kv_rows;  /* [T] row of the KV cache each token's key and value go to; NULL without cache */
    bool answers;            /* each token was generated just now: few, in steps that wait for memory (nb_dev.dots) */
} nb_batch;

#endif
