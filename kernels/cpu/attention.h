/* What attention.c hands to the inner parts of simd_attention.h. */
#ifndef NB_KERNELS_CPU_ATTENTION_H
#define NB_KERNELS_CPU_ATTENTION_H

#include <stdint.h>

#include "core/batch.h"

enum {
    NB_LANES = 64, /* a block of queries: (query, head) pairs that share their keys, one a lane */
    NB_KEYS = 64   /* a block of keys */
};

typedef struct nb_attention {
    int64_t H, KV, D, Dp, window; /* Dp: D rounded up to a whole number of vectors of any width */
    float scale, cap;
    const float *q, *k, *v;
    float *o, *lse;                     /* forward: outputs (lse may be NULL) */
    const float *d_o, *o_in, *lse_in;   /* backward */
    float *dq, beta_q;                  /* dq NULL: not wanted */
} nb_attention;

/* Heads h0..h0+g-1, which share key/value head kv, of queries i0..i0+n-1 of a segment; backward: all of its queries. */
typedef struct nb_attention_block {
    const nb_seg *seg;
    int64_t kv, h0, g, i0, n;
    float *dk, *dv; /* backward: this block's partial sums, [kn, Dp], zeroed and filled by it; NULL: not wanted */
} nb_attention_block;

/* Floats of scratch a thread needs. */
static inline int64_t nb_attention_scratch(int64_t D, int64_t Dp) {
    return NB_LANES * (3 * D + 2 * Dp + 2 * NB_KEYS + 4);
}

#endif
