/* One row per model family: the strings that select it, the defaults of its configuration class in transformers
 * (config files are saved as differences to them) and the names of its modules. Data only. */
#ifndef NB_MODEL_FAMILY_H
#define NB_MODEL_FAMILY_H

#include <jansson.h>

#include "model/spec.h"

/* Which layers have the sliding window, unless layer_types says so layer by layer. */
typedef enum nb_window_rule {
    NB_WINDOW_NONE,      /* the key has no meaning */
    NB_WINDOW_ALL,       /* every layer */
    NB_WINDOW_UPPER,     /* use_sliding_window: layers from max_window_layers on (Qwen) */
    NB_WINDOW_IF_USED,   /* use_sliding_window: every layer (Qwen's mixtures of experts) */
    NB_WINDOW_ALTERNATE, /* all but every pattern-th layer (Gemma 2, 3) */
} nb_window_rule;
/* Biases: as attention_bias and mlp_bias say, or by the family, or as qkv_bias says, which is true when absent. */
typedef enum nb_bias_rule { NB_BIAS_KEY, NB_BIAS_NO, NB_BIAS_YES, NB_BIAS_QKV_KEY } nb_bias_rule;

typedef struct nb_family {
    const char *model_type, *architecture;
    int64_t context;     /* max_position_embeddings */
    int64_t head_dim;    /* when the key is absent or null; 0: hidden_size / heads */
    int64_t kv_heads;    /* num_key_value_heads when the key is absent; 0: as many as heads (null always means that) */
    bool no_groups;      /* every head has keys and values of its own: num_key_value_heads has no meaning */
    nb_window_rule window_rule;
    int64_t window;      /* sliding_window when the key is absent */
    int64_t pattern;     /* ALTERNATE: every so manyth layer sees everything */
    nb_norm_kind norm_kind;
    bool bare_norm;      /* LAYER: norms without weights or biases in the file (OLMo) */
    bool no_pre_norm, post_norm, parallel, plain_mlp;
    bool qkv_in_turns;   /* the rows of QKV are q, k, v of the first head, of the second, ... (GPT-NeoX) */
    bool conv1d;         /* linear weights of blocks are [in, out] in the files (GPT-2) */
    bool score_keys;     /* reads scale_attn_weights, scale_attn_by_inverse_layer_idx */
    bool init_by_depth;  /* nb_spec.init_by_depth */
    int mlp_factor;      /* intermediate_size / hidden_size when the key is absent or null; 0: it must be there */
    const char *parallel_key; /* ... unless this key is false */
    nb_qk_norm qk_norm;
    bool clips_qkv;      /* reads clip_qkv */
    const char *eps_key, *partial_key, *theta_key; /* NULL: "rms_norm_eps", "partial_rotary_factor", "rope_theta" */
    double norm_eps, norm_offset, rope_theta;
    double local_theta;  /* layers with a window have RoPE of their own, unscaled, with rope_local_base_freq or this */
    double partial;      /* partial_rotary_factor when absent; 0: the key is refused */
    int64_t no_rope_interval; /* every so manyth layer has no RoPE, unless no_rope_layers says so; 0: all have */
    nb_bias_rule qkv_bias, o_bias, mlp_bias;
    bool attention_bias; /* the key's value when absent */
    bool head_bias;
    nb_act act;          /* when the key is absent or null */
    bool gelu_is_tanh;   /* "gelu" in the file means the tanh form: what the weights were trained with (Gemma) */
    double attn_scalar;  /* query_pre_attn_scalar when absent; 0: the key is refused */
    bool softcaps;       /* reads attn_logit_softcapping, final_logit_softcapping; absent: */
    double attn_cap, logit_cap;
    bool scales_embedding; /* by sqrt(hidden_size) */
    bool tied;
    const char *embed, *positions, *final_norm, *head; /* positions: learned ones; NULL: RoPE */
    const char *layer;   /* printf pattern of a layer's prefix, with the layer as long long */
    const char *linear[NB_SLOTS], *norm[NB_NORMS]; /* behind the prefix; NULL: there is none */
    const struct nb_key_name *keys; /* names of its own for keys; NULL, or up to one without names */
    /* Mixture of experts, in every layer but those that the configuration leaves dense; 0: not one. */
    int64_t experts, top_k, expert_hidden;
    const char *experts_key, *expert_hidden_key; /* NULL: "num_experts"; "intermediate_size" */
    int64_t shared_hidden;   /* shared_expert_intermediate_size when absent; 0: there is no such expert */
    bool sparse_step;        /* reads decoder_sparse_step, mlp_only_layers */
    bool renorm;             /* the weights are always divided by their sum; else as norm_topk_prob says */
    double aux_coef;         /* router_aux_loss_coef when absent */
    const char *expert;      /* printf pattern of an expert's prefix behind the layer's, with its number as long long */
    const char *expert_linear[3], *shared_linear[3]; /* gate, up, down: behind the expert's prefix; behind the layer's */
} nb_family;

/* A key under the name it has in most families, `usual`, is called `own` here; `either`: the usual name counts too. */
typedef struct nb_key_name {
    const char *own, *usual;
    bool either;
} nb_key_name;

/* rope.c: s->rope and the layers' use of it, from config.json. */
nb_status nb_spec_read_rope(nb_spec *s, const nb_family *f, const json_t *c, const char *where);
/* NULL: not one of ours. */
const nb_family *nb_family_find(const char *model_type, const char *architecture);
const nb_family *nb_family_by_type(const char *model_type); /* the first of that type; it is one of ours */
char *nb_families_text(void); /* all of them, for messages; caller frees */

#endif
