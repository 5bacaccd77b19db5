/* Attributes of the operations. Arrays (ids, segs, rows ...) lie on the device. Shapes: T tokens, C channels, R rank. */
#ifndef NB_AUTOGRAD_OPS_H
#define NB_AUTOGRAD_OPS_H

#include "autograd/tape.h"

#define OP(name) extern const nb_op nb_op_##name;
#include "autograd/ops.def"
#undef OP

/* x[T,C] = (W[ids] + lora_scale * A[ids] B^T) * scale. in: weight[V,C] (trained) or NULL, rows[n_rows,C] or NULL,
 * A[V,R] or NULL, B[C,R] or NULL. rows replaces the rows row_ids[] of W (added tokens trained on top of a frozen
 * embedding). A is the transpose of a linear layer's: a row a token. */
typedef struct nb_embedding_attr {
    const nb_weight *w;     /* used when in[0] is NULL */
    const int32_t *ids;     /* [n] */
    int64_t n;
    float scale, lora_scale;
    const int32_t *row_ids; /* [n_rows] ascending */
    int64_t n_rows;
} nb_embedding_attr;

/* y_i[T,N_i] = x W_i^T + bias_i + scale_i * (drop_i(x) A_i^T) B_i^T for up to three weights over one input.
 * in: x[T,C], then for each weight: W[N,C] (trained) or NULL, bias[N] or NULL, A[R,C] or NULL, B[N,R] or NULL.
 * Dropout is on the adapter's input only, with a mask of its own per site. */
typedef struct nb_linear_slot {
    const nb_weight *w;   /* frozen; used when W is NULL */
    float scale, dropout; /* lora_alpha/r or lora_alpha/sqrt(r); probability */
    uint32_t site;        /* number of the module: dropout key */
} nb_linear_slot;
typedef struct nb_linear_attr {
    int n;
    nb_linear_slot slot[3];
    bool f32_out; /* y in F32 whatever the device's elem (logits); no gradient then, but where elem is F32 */
} nb_linear_attr;

/* DoRA (Liu et al., 2024) on top of a linear layer u = x W^T + scale * x A^T B^T: y[T,N] = u * m / norm + bias + rest,
 * where norm[j] = |row j of W + scale * B A| counts as a constant in the gradient, as in PEFT. in: u[T,N],
 * rest[T,N] or NULL (with dropout: what the base makes of what it took from u's input), m[N], bias[N] or NULL. */
typedef struct nb_dora_attr {
    const nb_weight *w;
    const float *squares; /* [N] squared norms of W's rows */
    const float *A, *B;   /* [R,C], [N,R] */
    int64_t R;
    float scale;
} nb_dora_attr;

/* dropped[T,C] = x, in training with some elements 0 and the others 1 / (1 - p) times as large; rest[T,C] = x - dropped.
 * in: x; out: dropped, rest. */
typedef struct nb_dropout_attr {
    float p;
    uint32_t site;
} nb_dropout_attr;

/* y[T,C] = x * rstd(x) * (w + offset). in: x[T,C], w[C]; or w[D] with D dividing C: each group of D columns on its own. */
typedef struct nb_rmsnorm_attr {
    float eps, offset;
} nb_rmsnorm_attr;

/* y[T,C] = (x - mean(x)) * rstd(x) * w + bias. in: x[T,C], w[C], bias[C] or NULL. */
typedef struct nb_layernorm_attr {
    float eps;
} nb_layernorm_attr;

/* Rotates q[T,H*D] and k[T,KV*D] by their positions. in: q, k; out: q, k. */
typedef struct nb_rope_attr {
    const float *cos, *sin; /* [positions, rot/2] */
    const int32_t *pos;     /* [T] */
    int64_t heads, kv_heads, head_dim, rot;
} nb_rope_attr;

/* in: q[T,H*D], k[T,KV*D], v[T,KV*D]; out: o[T,H*D]. With a cache (no gradient then), k and v are first written to
 * its rows kv_rows[t] and attention reads the cache. */
typedef struct nb_attention_attr {
    const nb_seg *segs;
    int64_t n_segs, heads, kv_heads, head_dim, window;
    float scale, softcap;
    nb_elem *k_cache, *v_cache; /* [cache_rows, KV*D], or NULL */
    int64_t cache_rows;
    const int32_t *kv_rows;   /* [T] */
    double pairs;             /* of queries and the keys they see, for the cost */
} nb_attention_attr;

/* The columns of x[T, sum of widths] as up to three tensors. in: x; out: y_i[T, width[i]]. */
typedef struct nb_split_attr {
    int n;
    int64_t width[3];
    int64_t groups; /* the parts take turns in so many groups, each with its share of every width (GPT-NeoX); 0, 1: whole */
} nb_split_attr;

/* y = x within [-limit, limit]. */
typedef struct nb_clamp_attr {
    float limit;
} nb_clamp_attr;

/* y = act(gate) * up. in: gate[T,F], up[T,F] or NULL: y = act(gate). */
typedef struct nb_glu_attr {
    nb_act act;
} nb_glu_attr;

/* Mixture of experts: which k of E experts each of T tokens goes to (kernels.def, route). in: logits[T,E];
 * out: weights[T*k], tokens[T*k] and places[T*k] (I32), and with `share` the mean probability of each expert, [E]. */
typedef struct nb_route_attr {
    int64_t k;
    bool renorm, share;
    int32_t *offsets; /* [E+1] on the host: where each expert's rows begin; set by each forward pass */
} nb_route_attr;

/* Linear layers of E experts, each over its own rows of those that route made of T tokens.
 * in: x, tokens[T*k], places[T*k], weights[T*k] or NULL; then, weight by weight and expert by expert, W[N,C] (trained) or
 * NULL, NULL, A[R,C] or NULL, B[N,R] or NULL, as in nb_linear_attr.
 * Without weights: x[T,C]; out: y_i[T*k,N], of n weights: what each row's expert makes of its token.
 * With weights, n = 1: x[T*k,C]; out: y[T,N], the sum over a token's rows of weight * its expert's result. */
typedef struct nb_experts_attr {
    int n;
    int64_t experts, k;
    const nb_linear_slot *slot; /* [n * experts], as the inputs; stays good until the backward pass is done */
    const int32_t *offsets;     /* nb_route_attr's */
} nb_experts_attr;

/* y[T,C] = x * sigmoid(gate). in: x[T,C], gate[T,1]. */

/* The load-balancing loss of Switch Transformers (Fedus et al., 2021) as transformers computes it over all layers at once,
 * loss = coef * E * sum over experts of f * P: f the tokens that went there / all of them, P the mean of the probability;
 * added to every trained token's loss. in: losses[n], then share[E] of each layer with experts; out: [n]. */
typedef struct nb_balance_attr {
    float coef;
    int64_t experts, tokens;       /* E, T */
    const int32_t *const *offsets; /* [layers] nb_route_attr's */
} nb_balance_attr;

/* loss[n]: negative log-likelihood of targets[i] at row rows[i] of x[T,C] under softmax(x W^T + bias). in: x, W[V,C]
 * (trained) or NULL, rows[n_rows,C] or NULL (as in nb_embedding_attr), bias[V] or NULL, A[R,C] or NULL, B[V,R] or NULL
 * (an adapter, as in nb_linear_attr). The logits are made a few rows at a time and never exist whole. With a frozen head
 * the gradient rows d loss[i]/d x are made in the same pass, unscaled, and scaled by d(loss[i]) in backward; with a
 * trained or adapted head backward makes the logits again. */
typedef struct nb_linear_xent_attr {
    const nb_weight *w;
    const int32_t *rows, *targets; /* [n], n >= 1 */
    int64_t n;
    float softcap;
    int32_t *argmax;               /* [n] out, or NULL */
    const int32_t *row_ids;
    int64_t n_rows;
    float scale, dropout;          /* of the adapter, as in nb_linear_slot */
    uint32_t site;
} nb_linear_xent_attr;

#endif
