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

typedef enum nb_rope_kind { NB_ROPE_DEFAULT, NB_ROPE_LINEAR, NB_ROPE_LLAMA3 } nb_rope_kind;

typedef struct nb_rope_spec {
    nb_rope_kind kind;
    double theta, factor, low_freq_factor, high_freq_factor;
    int64_t original_context; /* llama3: original_max_position_embeddings */
    int rot;                  /* dims rotated per head, = head_dim unless partial */
} nb_rope_spec;

typedef struct nb_spec {
    char family[24];       /* model_type: "llama", "mistral" */
    char architecture[48]; /* architectures[0]: "LlamaForCausalLM" */
    int64_t vocab, hidden, mlp_hidden, layers, heads, kv_heads, head_dim; /* V C F L H KV D */
    int64_t context;       /* max_position_embeddings */
    float norm_eps, norm_offset;
    float attn_scale;      /* head_dim^-0.5 */
    float attn_softcap, logit_softcap, embed_scale; /* 0, 0, 1 in this family */
    nb_act act;
    int64_t window;        /* sliding window of every layer, 0 = none */
    bool tied;             /* the output head is the embedding */
    bool qkv_bias, o_bias, mlp_bias;
    nb_rope_spec rope;
    nb_dtype dtype;        /* torch_dtype / dtype of the stored weights; NB_F32 when unnamed */
    int32_t bos, eos;      /* config.json's first ids, -1 when absent */
    float init_std;        /* initializer_range: weights drawn anew are normal(0, init_std) */
} nb_spec;

/* Reads DIR/config.json. Refuses by name an unknown architecture and every field that would change the result
 * and is not handled. `quantization_config` is read by model/weights.c. */
nb_status nb_spec_load(nb_spec *s, const char *dir);
/* Checks sizes against each other; called by nb_spec_load. */
nb_status nb_spec_check(const nb_spec *s, const char *where);

const char *nb_rope_kind_name(nb_rope_kind k); /* "default", "linear", "llama3" */
/* inv_freq[rot/2] of the scaling rule, in double. */
void nb_rope_inv_freq(const nb_rope_spec *r, double *inv_freq);

/* The linear layers of a block, in the order they run. A family that lacks one leaves its rows at 0. */
typedef enum nb_slot { NB_Q, NB_K, NB_V, NB_O, NB_GATE, NB_UP, NB_DOWN, NB_SLOTS } nb_slot;
typedef enum nb_norm_slot { NB_NORM1, NB_NORM2, NB_NORMS } nb_norm_slot;

/* Module path in the Hugging Face model, e.g. (l=3, NB_Q) "model.layers.3.self_attn.q_proj". Caller frees. */
char *nb_spec_linear_name(const nb_spec *s, int64_t layer, nb_slot slot);
char *nb_spec_norm_name(const nb_spec *s, int64_t layer, nb_norm_slot slot);
const char *nb_spec_embed_name(const nb_spec *s); /* "model.embed_tokens" */
const char *nb_spec_final_norm_name(const nb_spec *s);
const char *nb_spec_head_name(const nb_spec *s);  /* "lm_head" */
/* out, in of a slot; whether it has a bias [out]. */
void nb_spec_linear_shape(const nb_spec *s, nb_slot slot, int64_t *rows, int64_t *cols);
bool nb_spec_linear_bias(const nb_spec *s, nb_slot slot);
int64_t nb_spec_parameters(const nb_spec *s);

#endif
