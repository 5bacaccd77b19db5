/* What attention.c hands to the inner parts of simd_attention.h. */
#ifndef NB_KERNELS_CPU_ATTENTION_H
#define NB_KERNELS_CPU_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
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

/* Decoding is never rounded to bf16: each key is read for one query, and packing it would not pay. */
static inline bool nb_attention_decodes(const nb_seg *s) { return s->qn == 1 && s->kn > 1; }

/* Attention with the operands of every product rounded to bf16. fwd and bwd are called by all threads of a parallel
 * region at once, each with scratch of its own; `shared` and scratch begin at multiples of 64 bytes, and segments have
 * no keys in common. fwd leaves decoding out. */
typedef struct nb_attention_bf16 {
    size_t (*shared)(int64_t Tk, int64_t KV, int64_t D); /* bytes */
    size_t (*scratch)(int64_t D);
    void (*fwd)(const nb_attention *a, const nb_seg *segs, int64_t n_segs, int64_t Tk, void *shared, void *scratch);
    /* a->dq, dk, dv [Tk, KV, D], of which any may be NULL. */
    void (*bwd)(const nb_attention *a, float *dk, float beta_k, float *dv, float beta_v, const nb_seg *segs,
                int64_t n_segs, int64_t Tk, void *shared, void *scratch);
} nb_attention_bf16;
extern const nb_attention_bf16 nb_attention_avx512bf16; /* attention_avx512bf16.c */

#endif
