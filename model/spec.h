/* What a Hugging Face config.json says about a decoder-only transformer, as the options of one parametric
 * graph (model/transformer.c). A family is a reader that fills this struct and a table of tensor names; the
 * graph has no family code. Source: transformers' configuration classes; see docs/design.md. */
#ifndef NB_MODEL_SPEC_H
#define NB_MODEL_SPEC_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/status.h"
#include "kernels/backend.h"

typedef enum nb_rope_kind {
    NB_ROPE_DEFAULT, NB_ROPE_LINEAR, NB_ROPE_LLAMA3, NB_ROPE_DYNAMIC, NB_ROPE_YARN, NB_ROPE_LONGROPE
} nb_rope_kind;
enum { NB_MAX_ROT = 512, NB_MAX_LAYERS = 512 };

typedef struct nb_rope_spec {
    nb_rope_kind kind;
    double theta, factor, low_freq_factor, high_freq_factor;
    double beta_fast, beta_slow; /* yarn */
    double attention;            /* yarn, longrope: cos and sin are multiplied by it; 1 elsewhere */
    bool truncate;               /* yarn: the ramp begins and ends at whole dims */
    int64_t original_context;    /* llama3, yarn, longrope: original_max_position_embeddings */
    int rot;                     /* dims rotated per head, = head_dim unless partial */
    float factors[2][NB_MAX_ROT / 2]; /* longrope: short_factor, long_factor */
} nb_rope_spec;

typedef enum nb_norm_kind { NB_NORM_RMS, NB_NORM_LAYER } nb_norm_kind;
/* Norms of queries and keys: none; over each head (Qwen3, Gemma 3); over all heads at once (OLMo 2). */
typedef enum nb_qk_norm { NB_QK_NORM_NONE, NB_QK_NORM_HEAD, NB_QK_NORM_FULL } nb_qk_norm;

typedef struct nb_layer_spec {
    int8_t rope;    /* index into nb_spec.rope; -1: this layer has no positions (NoPE) */
    bool sparse;    /* its MLP is a mixture of experts */
    int32_t window; /* sliding window, 0 = none */
} nb_layer_spec;

typedef struct nb_spec {
    char family[24];       /* model_type: "llama", "mistral" */
    char architecture[48]; /* architectures[0]: "LlamaForCausalLM" */
    int64_t vocab, hidden, mlp_hidden, layers, heads, kv_heads, head_dim; /* V C F L H KV D */
    int64_t context;       /* max_position_embeddings */
    float norm_eps, norm_offset;
    float attn_scale;      /* head_dim^-0.5 */
    float attn_softcap, logit_softcap, embed_scale; /* 0, 0, 1 in this family */
    nb_act act;
    nb_norm_kind norm_kind;
    bool pre_norm, post_norm; /* norms before, and after, attention and MLP */
    bool parallel;         /* attention and MLP read the same norm; both are added to the residual at once */
    nb_qk_norm qk_norm;
    float clip_qkv;        /* q, k, v are kept within so much; 0: no */
    int64_t window;        /* size of the sliding window of the layers that have one (layer[]), 0 = none has */
    bool tied;             /* the output head is the embedding */
    bool qkv_bias, o_bias, mlp_bias, head_bias;
    bool plain_mlp;        /* down(act(up x)): no gate */
    int64_t experts, top_k, expert_hidden; /* of the sparse layers: E, of which a token goes to k, their F; 0: no such layers */
    int64_t shared_hidden; /* F of the expert that every token goes to as well, 0: none */
    bool renorm_topk;      /* the k weights are divided by their sum */
    float aux_coef;        /* of the load-balancing loss in training, 0: none */
    bool bare_norm;        /* norms without weights */
    bool qkv_in_turns;     /* rows of QKV: q, k, v head by head */
    bool learned_positions; /* no RoPE: each position has a vector, added to the token's; none beyond the context */
    bool stored_transposed; /* the files have the blocks' linear weights as [in, out] (GPT-2's Conv1D) */
    bool scale_by_layer;   /* scores are divided by the layer's number, from 1 */
    bool init_by_depth;    /* weights drawn anew: those into the residual have init_std / sqrt(2 layers) */
    nb_rope_spec rope[2];  /* of all layers; [1]: of the layers with a window where those have their own (Gemma 3) */
    nb_layer_spec layer[NB_MAX_LAYERS];
    nb_dtype dtype;        /* torch_dtype / dtype of the stored weights; NB_F32 when unnamed */
    int32_t bos, eos;      /* config.json's first ids, -1 when absent */
    float init_std;        /* initializer_range: weights drawn anew are normal(0, init_std) */
} nb_spec;

/* Reads DIR/config.json, or the keys of a GGUF model. Refuses by name an unknown architecture and every field that
 * would change the result and is not handled. `quantization_config` is read by model/weights.c. */
nb_status nb_spec_load(nb_spec *s, const char *dir);
/* Checks sizes against each other; called by nb_spec_load. */
nb_status nb_spec_check(const nb_spec *s, const char *where);

const char *nb_rope_kind_name(nb_rope_kind k); /* "default", "linear", "llama3", "dynamic", "yarn", "longrope" */
/* inv_freq[rot/2] of the scaling rule, in double, for sequences of at most `length` tokens (dynamic and longrope have
 * other frequencies for long ones; a run keeps to one set). */
void nb_rope_inv_freq(const nb_rope_spec *r, int64_t length, double *inv_freq);

/* The linear layers of a block, in the order they run. A family that lacks one leaves its rows at 0: those with fused
 * projections (Phi-3) have QKV and GATE_UP in the place of Q, K, V and GATE, UP, their rows in that order. A sparse layer
 * has a ROUTER; GATE, UP, DOWN are there its shared expert, of which SHARE says how much a token takes; and behind the
 * named slots stand the experts: all their gates, all their ups, all their downs. */
typedef enum nb_slot {
    NB_QKV, NB_Q, NB_K, NB_V, NB_O, NB_ROUTER, NB_SHARE, NB_GATE_UP, NB_GATE, NB_UP, NB_DOWN, NB_SLOTS
} nb_slot;
enum { NB_MAX_EXPERTS = 1024, NB_MAX_TOP_K = 32 };
/* Slots of a layer: those above, then its experts' gates, then their ups, then their downs. */
static inline int nb_spec_slots(const nb_spec *s) { return NB_SLOTS + 3 * (int)s->experts; }
/* Never quantized: small, and a rounding there sends tokens elsewhere. */
static inline bool nb_spec_stays_float(int slot) { return slot == NB_ROUTER || slot == NB_SHARE; }
/* The norms of a block: before attention, after it, before the MLP, after it; of queries, of keys. */
typedef enum nb_norm_slot {
    NB_NORM1, NB_POST_NORM1, NB_NORM2, NB_POST_NORM2, NB_Q_NORM, NB_K_NORM, NB_NORMS
} nb_norm_slot;

/* Module path in the Hugging Face model, e.g. (l=3, NB_Q) "model.layers.3.self_attn.q_proj"; NULL: the family
 * has no such module. Caller frees. */
char *nb_spec_linear_name(const nb_spec *s, int64_t layer, int slot);
char *nb_spec_norm_name(const nb_spec *s, int64_t layer, nb_norm_slot slot);
const char *nb_spec_embed_name(const nb_spec *s); /* "model.embed_tokens" */
const char *nb_spec_positions_name(const nb_spec *s); /* "transformer.wpe"; NULL: positions are not learned */
const char *nb_spec_final_norm_name(const nb_spec *s);
const char *nb_spec_head_name(const nb_spec *s);  /* "lm_head" */
/* Channels of a norm; 0: the family has no such norm. */
int64_t nb_spec_norm_size(const nb_spec *s, nb_norm_slot slot);
/* out, in of a slot (0, 0: the layer has none); whether it has a bias [out]. */
void nb_spec_linear_shape(const nb_spec *s, int64_t layer, int slot, int64_t *rows, int64_t *cols);
bool nb_spec_linear_bias(const nb_spec *s, int slot);
int64_t nb_spec_parameters(const nb_spec *s);
int64_t nb_spec_active_parameters(const nb_spec *s); /* those a token meets: of a sparse layer k experts */

#endif
