#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/family.h"

#define SEPARATE_QKV                                                                                               \
    [NB_Q] = "self_attn.q_proj", [NB_K] = "self_attn.k_proj", [NB_V] = "self_attn.v_proj", [NB_O] = "self_attn.o_proj"
#define GATED_MLP [NB_GATE] = "mlp.gate_proj", [NB_UP] = "mlp.up_proj", [NB_DOWN] = "mlp.down_proj"
#define MODEL_NAMES .embed = "model.embed_tokens", .final_norm = "model.norm", .head = "lm_head", \
    .layer = "model.layers.%lld."
#define LLAMA_NAMES MODEL_NAMES, .linear = {SEPARATE_QKV, GATED_MLP}
#define LLAMA_NORMS [NB_NORM1] = "input_layernorm", [NB_NORM2] = "post_attention_layernorm"
#define POST_NORMS [NB_POST_NORM1] = "post_attention_layernorm", [NB_POST_NORM2] = "post_feedforward_layernorm"
#define QK_NORMS [NB_Q_NORM] = "self_attn.q_norm", [NB_K_NORM] = "self_attn.k_norm"
#define GEMMA_NORMS [NB_NORM1] = "input_layernorm", [NB_NORM2] = "pre_feedforward_layernorm", POST_NORMS

/* GPT2Config.attribute_map, and what has no other name there. */
static const nb_key_name gpt2_keys[] = {
    {"n_embd", "hidden_size", true},        {"n_positions", "max_position_embeddings", true},
    {"n_head", "num_attention_heads", true}, {"n_layer", "num_hidden_layers", true},
    {"n_inner", "intermediate_size"},       {"activation_function", "hidden_act"}, {NULL},
};
#define QWEN_EXPERTS                                                                                               \
    .expert = "mlp.experts.%lld.", .expert_linear = {"gate_proj", "up_proj", "down_proj"}
#define ROUTER [NB_ROUTER] = "mlp.gate"

/* The defaults are those of the configuration classes in transformers 4.57. */
static const nb_family families[] = {
    /* Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM2 */
    {"llama", "LlamaForCausalLM", .context = 2048, .norm_eps = 1e-6, .rope_theta = 1e4, LLAMA_NAMES,
     .norm = {LLAMA_NORMS}},
    {"mistral", "MistralForCausalLM", .context = 131072, .kv_heads = 8, .window_rule = NB_WINDOW_ALL, .window = 4096,
     .norm_eps = 1e-6, .rope_theta = 1e4, .qkv_bias = NB_BIAS_NO, .o_bias = NB_BIAS_NO, .mlp_bias = NB_BIAS_NO,
     LLAMA_NAMES, .norm = {LLAMA_NORMS}},
    /* Qwen2, Qwen2.5 */
    {"qwen2", "Qwen2ForCausalLM", .context = 32768, .window_rule = NB_WINDOW_UPPER, .window = 4096, .norm_eps = 1e-6,
     .rope_theta = 1e4, .qkv_bias = NB_BIAS_YES, .o_bias = NB_BIAS_NO, .mlp_bias = NB_BIAS_NO, LLAMA_NAMES,
     .norm = {LLAMA_NORMS}},
    {"qwen3", "Qwen3ForCausalLM", .context = 32768, .head_dim = 128, .window_rule = NB_WINDOW_UPPER, .window = 4096,
     .norm_eps = 1e-6, .rope_theta = 1e4, .qk_norm = NB_QK_NORM_HEAD, .mlp_bias = NB_BIAS_NO, LLAMA_NAMES,
     .norm = {LLAMA_NORMS, QK_NORMS}},
    {"smollm3", "SmolLM3ForCausalLM", .context = 32768, .kv_heads = 4, .window_rule = NB_WINDOW_UPPER,
     .norm_eps = 1e-6, .rope_theta = 2e6, .no_rope_interval = 4, .tied = true, LLAMA_NAMES, .norm = {LLAMA_NORMS}},
    {"olmo2", "Olmo2ForCausalLM", .context = 2048, .norm_eps = 1e-5, .rope_theta = 1e4, .no_pre_norm = true,
     .post_norm = true, .qk_norm = NB_QK_NORM_FULL, .mlp_bias = NB_BIAS_NO, LLAMA_NAMES,
     .norm = {POST_NORMS, QK_NORMS}},
    {"gemma", "GemmaForCausalLM", .context = 8192, .head_dim = 256, .kv_heads = 16, .norm_eps = 1e-6, .norm_offset = 1,
     .rope_theta = 1e4, .mlp_bias = NB_BIAS_NO, .act = NB_ACT_GELU_TANH, .gelu_is_tanh = true,
     .scales_embedding = true, .tied = true, LLAMA_NAMES, .norm = {LLAMA_NORMS}},
    {"gemma2", "Gemma2ForCausalLM", .context = 8192, .head_dim = 256, .kv_heads = 4,
     .window_rule = NB_WINDOW_ALTERNATE, .window = 4096, .pattern = 2, .norm_eps = 1e-6, .norm_offset = 1,
     .post_norm = true, .rope_theta = 1e4, .mlp_bias = NB_BIAS_NO, .act = NB_ACT_GELU_TANH, .gelu_is_tanh = true,
     .attn_scalar = 256, .softcaps = true, .attn_cap = 50, .logit_cap = 30, .scales_embedding = true, .tied = true,
     LLAMA_NAMES, .norm = {GEMMA_NORMS}},
    {"gemma3_text", "Gemma3ForCausalLM", .context = 131072, .head_dim = 256, .kv_heads = 4,
     .window_rule = NB_WINDOW_ALTERNATE, .window = 4096, .pattern = 6, .norm_eps = 1e-6, .norm_offset = 1,
     .post_norm = true, .qk_norm = NB_QK_NORM_HEAD, .rope_theta = 1e6, .local_theta = 1e4, .mlp_bias = NB_BIAS_NO,
     .act = NB_ACT_GELU_TANH, .gelu_is_tanh = true, .attn_scalar = 256, .softcaps = true, .scales_embedding = true,
     .tied = true, LLAMA_NAMES, .norm = {GEMMA_NORMS, QK_NORMS}},
    /* Phi-3, Phi-3.5, Phi-4, Phi-4-mini: fused projections */
    {"phi3", "Phi3ForCausalLM", .context = 4096, .window_rule = NB_WINDOW_ALL, .norm_eps = 1e-5, .rope_theta = 1e4,
     .partial = 1, .qkv_bias = NB_BIAS_NO, .o_bias = NB_BIAS_NO, .mlp_bias = NB_BIAS_NO, MODEL_NAMES,
     .linear = {[NB_QKV] = "self_attn.qkv_proj", [NB_O] = "self_attn.o_proj", [NB_GATE_UP] = "mlp.gate_up_proj",
                [NB_DOWN] = "mlp.down_proj"},
     .norm = {LLAMA_NORMS}},
    /* Phi-1, 1.5, 2 */
    {"phi", "PhiForCausalLM", .context = 2048, .norm_kind = NB_NORM_LAYER, .eps_key = "layer_norm_eps",
     .norm_eps = 1e-5, .rope_theta = 1e4, .partial = 0.5, .parallel = true, .plain_mlp = true, .qkv_bias = NB_BIAS_YES,
     .o_bias = NB_BIAS_YES, .mlp_bias = NB_BIAS_YES, .head_bias = true, .act = NB_ACT_GELU_TANH,
     .embed = "model.embed_tokens", .final_norm = "model.final_layernorm", .head = "lm_head",
     .layer = "model.layers.%lld.",
     .linear = {[NB_Q] = "self_attn.q_proj", [NB_K] = "self_attn.k_proj", [NB_V] = "self_attn.v_proj",
                [NB_O] = "self_attn.dense", [NB_UP] = "mlp.fc1", [NB_DOWN] = "mlp.fc2"},
     .norm = {[NB_NORM1] = "input_layernorm"}},
    {"olmo", "OlmoForCausalLM", .context = 2048, .norm_kind = NB_NORM_LAYER, .bare_norm = true, .eps_key = "", .clips_qkv = true,
     .norm_eps = 1e-5, .rope_theta = 1e4, .mlp_bias = NB_BIAS_NO, LLAMA_NAMES, .norm = {LLAMA_NORMS}},
    {"mixtral", "MixtralForCausalLM", .context = 131072, .kv_heads = 8, .window_rule = NB_WINDOW_ALL, .norm_eps = 1e-5,
     .rope_theta = 1e6, .qkv_bias = NB_BIAS_NO, .o_bias = NB_BIAS_NO, .mlp_bias = NB_BIAS_NO, MODEL_NAMES,
     .linear = {SEPARATE_QKV, [NB_ROUTER] = "block_sparse_moe.gate"}, .norm = {LLAMA_NORMS}, .experts = 8, .top_k = 2,
     .experts_key = "num_local_experts", .renorm = true, .aux_coef = 0.001, .expert = "block_sparse_moe.experts.%lld.",
     .expert_linear = {"w1", "w3", "w2"}},
    /* Qwen1.5-MoE, Qwen2-MoE */
    {"qwen2_moe", "Qwen2MoeForCausalLM", .context = 32768, .kv_heads = 16, .window_rule = NB_WINDOW_IF_USED,
     .window = 4096, .norm_eps = 1e-6, .rope_theta = 1e4, .qkv_bias = NB_BIAS_QKV_KEY, .o_bias = NB_BIAS_NO,
     .mlp_bias = NB_BIAS_NO, MODEL_NAMES, .linear = {SEPARATE_QKV, GATED_MLP, ROUTER, [NB_SHARE] = "mlp.shared_expert_gate"},
     .norm = {LLAMA_NORMS}, .experts = 60, .top_k = 4, .expert_hidden = 1408,
     .expert_hidden_key = "moe_intermediate_size", .shared_hidden = 5632, .sparse_step = true, .aux_coef = 0.001,
     QWEN_EXPERTS,
     .shared_linear = {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"}},
    {"qwen3_moe", "Qwen3MoeForCausalLM", .context = 32768, .kv_heads = 4, .window_rule = NB_WINDOW_IF_USED,
     .window = 4096, .norm_eps = 1e-6, .rope_theta = 1e4, .qk_norm = NB_QK_NORM_HEAD, .mlp_bias = NB_BIAS_NO,
     MODEL_NAMES, .linear = {SEPARATE_QKV, GATED_MLP, ROUTER}, .norm = {LLAMA_NORMS, QK_NORMS}, .experts = 128,
     .top_k = 8, .expert_hidden = 768, .expert_hidden_key = "moe_intermediate_size", .sparse_step = true,
     .aux_coef = 0.001, QWEN_EXPERTS},
    {"olmoe", "OlmoeForCausalLM", .context = 4096, .norm_eps = 1e-5, .rope_theta = 1e4, .qk_norm = NB_QK_NORM_FULL,
     .clips_qkv = true, .mlp_bias = NB_BIAS_NO, MODEL_NAMES, .linear = {SEPARATE_QKV, ROUTER},
     .norm = {LLAMA_NORMS, QK_NORMS}, .experts = 64, .top_k = 8, .aux_coef = 0.01, QWEN_EXPERTS},
    /* GPT-NeoX, Pythia */
    {"gpt_neox", "GPTNeoXForCausalLM", .context = 2048, .norm_kind = NB_NORM_LAYER, .eps_key = "layer_norm_eps",
     .norm_eps = 1e-5, .rope_theta = 1e4, .theta_key = "rotary_emb_base", .partial = 0.25, .partial_key = "rotary_pct",
     .parallel = true, .parallel_key = "use_parallel_residual", .plain_mlp = true, .qkv_in_turns = true, .no_groups = true,
     .attention_bias = true, .mlp_bias = NB_BIAS_YES, .act = NB_ACT_GELU_ERF, .embed = "gpt_neox.embed_in",
     .final_norm = "gpt_neox.final_layer_norm", .head = "embed_out", .layer = "gpt_neox.layers.%lld.",
     .linear = {[NB_QKV] = "attention.query_key_value", [NB_O] = "attention.dense", [NB_UP] = "mlp.dense_h_to_4h",
                [NB_DOWN] = "mlp.dense_4h_to_h"},
     .norm = {LLAMA_NORMS}},
    {"gpt2", "GPT2LMHeadModel", .context = 1024, .no_groups = true, .norm_kind = NB_NORM_LAYER,
     .eps_key = "layer_norm_epsilon", .norm_eps = 1e-5, .plain_mlp = true, .mlp_factor = 4, .qkv_bias = NB_BIAS_YES,
     .o_bias = NB_BIAS_YES, .mlp_bias = NB_BIAS_YES, .act = NB_ACT_GELU_TANH, .tied = true, .conv1d = true,
     .score_keys = true, .init_by_depth = true, .keys = gpt2_keys, .embed = "transformer.wte",
     .positions = "transformer.wpe", .final_norm = "transformer.ln_f", .head = "lm_head",
     .layer = "transformer.h.%lld.",
     .linear = {[NB_QKV] = "attn.c_attn", [NB_O] = "attn.c_proj", [NB_UP] = "mlp.c_fc", [NB_DOWN] = "mlp.c_proj"},
     .norm = {[NB_NORM1] = "ln_1", [NB_NORM2] = "ln_2"}},
};

const nb_family *nb_family_find(const char *model_type, const char *architecture) {
    for (int i = 0; i < NB_LEN(families); i++)
        if (!strcmp(families[i].model_type, model_type) && !strcmp(families[i].architecture, architecture))
            return &families[i];
    return NULL;
}

const nb_family *nb_family_by_type(const char *model_type) {
    int i = 0;
    while (i < NB_LEN(families) && strcmp(families[i].model_type, model_type) != 0) i++;
    NB_ASSERT(i < NB_LEN(families));
    return &families[i];
}

char *nb_families_text(void) {
    nb_text t = {0};
    for (int i = 0; i < NB_LEN(families); i++)
        nb_text_printf(&t, "%s%s/%s", i ? ", " : "", families[i].architecture, families[i].model_type);
    return t.s;
}

static const nb_family *family(const nb_spec *s) {
    const nb_family *f = nb_family_find(s->family, s->architecture);
    NB_ASSERT(f);
    return f;
}

static char *in_layer(const nb_family *f, int64_t layer, const char *name) {
    char prefix[64];
    snprintf(prefix, sizeof prefix, f->layer, (long long)layer);
    return nb_asprintf("%s%s", prefix, name);
}

/* A named slot behind the layer's prefix. */
static const char *linear_of(const nb_spec *s, int64_t layer, int slot) {
    const nb_family *f = family(s);
    bool sparse = s->layer[layer].sparse, shared = sparse && s->shared_hidden > 0;
    if (slot == NB_ROUTER) return sparse ? f->linear[slot] : NULL;
    if (slot == NB_SHARE) return shared ? f->linear[slot] : NULL;
    if (sparse && slot == NB_GATE_UP) return NULL;
    if (sparse && slot >= NB_GATE) return shared ? f->shared_linear[slot - NB_GATE] : NULL;
    return f->linear[slot];
}

char *nb_spec_linear_name(const nb_spec *s, int64_t layer, int slot) {
    const nb_family *f = family(s);
    if (slot < NB_SLOTS) return linear_of(s, layer, slot) ? in_layer(f, layer, linear_of(s, layer, slot)) : NULL;
    if (!s->layer[layer].sparse) return NULL;
    char expert[64];
    snprintf(expert, sizeof expert, f->expert, (long long)((slot - NB_SLOTS) % s->experts));
    char *prefix = in_layer(f, layer, expert);
    char *name = nb_asprintf("%s%s", prefix, f->expert_linear[(slot - NB_SLOTS) / s->experts]);
    free(prefix);
    return name;
}

char *nb_spec_norm_name(const nb_spec *s, int64_t layer, nb_norm_slot slot) {
    const nb_family *f = family(s);
    return f->norm[slot] ? in_layer(f, layer, f->norm[slot]) : NULL;
}

int64_t nb_spec_norm_size(const nb_spec *s, nb_norm_slot slot) {
    if (!family(s)->norm[slot]) return 0;
    if (slot != NB_Q_NORM && slot != NB_K_NORM) return s->hidden;
    if (s->qk_norm == NB_QK_NORM_HEAD) return s->head_dim;
    return (slot == NB_Q_NORM ? s->heads : s->kv_heads) * s->head_dim;
}

void nb_spec_linear_shape(const nb_spec *s, int64_t layer, int slot, int64_t *rows, int64_t *cols) {
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, C = s->hidden;
    bool sparse = s->layer[layer].sparse, expert = slot >= NB_SLOTS;
    int64_t F = expert ? s->expert_hidden : sparse ? s->shared_hidden : s->mlp_hidden;
    bool there = expert ? sparse : linear_of(s, layer, slot) != NULL;
    if (expert) slot = NB_GATE + (slot - NB_SLOTS) / (int)s->experts;
    const int64_t shape[NB_SLOTS][2] = {
        [NB_QKV] = {q + 2 * kv, C}, [NB_Q] = {q, C},    [NB_K] = {kv, C}, [NB_V] = {kv, C},  [NB_O] = {C, q},
        [NB_GATE_UP] = {2 * F, C},  [NB_GATE] = {F, C}, [NB_UP] = {F, C}, [NB_DOWN] = {C, F},
        [NB_ROUTER] = {s->experts, C}, [NB_SHARE] = {1, C},
    };
    *rows = there ? shape[slot][0] : 0;
    *cols = there ? shape[slot][1] : 0;
}

const char *nb_spec_embed_name(const nb_spec *s) { return family(s)->embed; }
const char *nb_spec_positions_name(const nb_spec *s) { return family(s)->positions; }
const char *nb_spec_final_norm_name(const nb_spec *s) { return family(s)->final_norm; }
const char *nb_spec_head_name(const nb_spec *s) { return family(s)->head; }
