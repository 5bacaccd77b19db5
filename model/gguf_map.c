/* Names and keys as llama.cpp's convert_hf_to_gguf.py writes them. */
#include "model/gguf_map.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "core/mem.h"
#include "model/family.h"

/* A name stands for its first row when a file is read: Mistral without a window computes what Llama does. */
static const nb_gguf_family families[] = {
    {"llama", "llama", .interleaved = true, .biases = true, .any_rope = true},
    {"mistral", "llama", .interleaved = true, .biases = true, .any_rope = true},
    {"mixtral", "llama", .interleaved = true, .biases = true, .any_rope = true, .experts = true, .renorm = true},
    {"qwen2", "qwen2", .biases = true},
    {"qwen3", "qwen3"},
    {"gemma", "gemma", .act = NB_ACT_GELU_TANH, .tied = true},
    {"gemma2", "gemma2", .act = NB_ACT_GELU_TANH, .pattern = 2, .window_key = true, .scale_layers = 46,
     .tied = true},
    {"gemma3_text", "gemma3", .act = NB_ACT_GELU_TANH, .pattern = 6, .window_key = true, .scale_layers = 62},
    {"phi3", "phi3", .window_key = true, .any_rope = true},
    {"phi", "phi2", .biases = true, .act = NB_ACT_GELU_TANH},
    {"olmo", "olmo", .interleaved = true, .clips = true},
    {"olmo2", "olmo2"},
    {"smollm3", "smollm3", .interleaved = true, .no_rope = 4},
    {"gpt2", "gpt2", .biases = true, .act = NB_ACT_GELU_TANH},
    {"gpt_neox", "gptneox", .biases = true, .all_biases = true, .act = NB_ACT_GELU_TANH, .any_gelu = true,
     .own_head = true, .parallel_key = true},
    {"qwen2_moe", "qwen2moe", .biases = true, .own_head = true, .square = true, .experts = true},
    {"qwen3_moe", "qwen3moe", .experts = true, .renorm = true},
    {"olmoe", "olmoe", .own_head = true, .square = true, .no_groups = true, .experts = true},
};

const nb_gguf_family *nb_gguf_family_of(const nb_spec *s) {
    for (int i = 0; i < NB_LEN(families); i++)
        if (!strcmp(families[i].family, s->family)) return &families[i];
    return NULL;
}

const nb_gguf_family *nb_gguf_family_find(const char *arch, bool experts) {
    const nb_gguf_family *first = NULL;
    for (int i = 0; i < NB_LEN(families); i++) {
        if (strcmp(families[i].name, arch) != 0) continue;
        if (families[i].experts == experts) return &families[i];
        if (!first) first = &families[i];
    }
    return first;
}

char *nb_gguf_families_text(void) {
    nb_text t = {0};
    for (int i = 0; i < NB_LEN(families); i++)
        if (!i || strcmp(families[i].name, families[i - 1].name) != 0)
            nb_text_printf(&t, "%s%s", i ? ", " : "", families[i].name);
    return t.s;
}

/* ---- what can be said ---- */

double nb_gguf_attn_scalar(const nb_gguf_family *a, int64_t layers, int64_t hidden, int64_t heads, int64_t head_dim) {
    return a->scale_layers == layers ? (double)hidden / (double)heads : (double)head_dim;
}

static bool scale_is_known(const nb_spec *s, const nb_gguf_family *a) {
    double want = 1 / sqrt(nb_gguf_attn_scalar(a, s->layers, s->hidden, s->heads, s->head_dim));
    return fabs(s->attn_scale - want) <= 1e-6 * want && !s->scale_by_layer;
}

static nb_status check_layers(const nb_spec *s, const nb_gguf_family *a, const char *where) {
    for (int64_t l = 0; l < s->layers; l++) {
        bool rope = !s->learned_positions && (!a->no_rope || (l + 1) % a->no_rope != 0);
        bool window = s->window && a->pattern && (l + 1) % a->pattern != 0;
        if (rope != (s->layer[l].rope >= 0))
            return nb_fail(NB_EUNSUPPORTED, "%s: layer %lld %s positions, which llama.cpp's %s cannot be told",
                           where, (long long)l, rope ? "has no" : "has", a->name);
        if (a->pattern && window != (s->layer[l].window != 0))
            return nb_fail(NB_EUNSUPPORTED, "%s: layer %lld %s a sliding window, which llama.cpp's %s cannot be told",
                           where, (long long)l, window ? "has not" : "has", a->name);
    }
    if (!a->pattern && s->window && s->window < s->context)
        nb_warn("%s: llama.cpp has no sliding window for %s: beyond %lld tokens it computes something else", where,
                a->name, (long long)s->window);
    return NB_OK;
}

static nb_status check_rope(const nb_spec *s, const nb_gguf_family *a, const char *where) {
    const nb_rope_spec *r = &s->rope[0];
    const char *problem = NULL;
    if (r->kind == NB_ROPE_DYNAMIC || (r->kind == NB_ROPE_LLAMA3 && !(a->any_rope && a->interleaved)) ||
        (r->kind == NB_ROPE_LONGROPE && !(a->any_rope && !a->interleaved)))
        problem = "this kind of scaling";
    if (r->kind == NB_ROPE_YARN &&
        (!r->truncate || r->beta_fast != 32 || r->beta_slow != 1 ||
         fabs(r->attention - (r->factor <= 1 ? 1 : 1 + 0.1 * log(r->factor))) > 1e-6))
        problem = "yarn with an attention factor, betas or truncation of its own";
    if (!strcmp(a->name, "gemma3") && s->rope[1].theta != 1e4) problem = "a rope_local_base_freq other than 10000";
    if (!problem) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s: rope scaling \"%s\": llama.cpp's %s cannot be told %s", where,
                   nb_rope_kind_name(r->kind), a->name, problem);
}

static nb_status check_experts(const nb_spec *s, const nb_gguf_family *a, const char *where) {
    for (int64_t l = 0; l < s->layers && a->experts; l++)
        if (!s->layer[l].sparse)
            return nb_fail(NB_EUNSUPPORTED, "%s: decoder_sparse_step, mlp_only_layers: layer %lld has no experts, "
                           "which llama.cpp's %s cannot be told", where, (long long)l, a->name);
    if (a->experts && s->renorm_topk != a->renorm)
        return nb_fail(NB_EUNSUPPORTED, "%s: norm_topk_prob: llama.cpp's %s %s the weights of the chosen experts by "
                       "their sum", where, a->name, a->renorm ? "always divides" : "never divides");
    return NB_OK;
}

/* Shapes and parts that llama.cpp's graph takes for granted. */
static nb_status check_shape(const nb_spec *s, const nb_gguf_family *a, const char *where) {
    const char *problem = NULL;
    if (a->tied && !s->tied) problem = "tie_word_embeddings: no output head of its own";
    if (a->square && s->heads * s->head_dim != s->hidden) problem = "head_dim: queries as wide as hidden_size";
    if (a->no_groups && s->kv_heads != s->heads) problem = "num_key_value_heads: as many as heads";
    if (a->all_biases && !(s->qkv_bias && s->o_bias)) problem = "attention_bias: biases everywhere";
    if (s->clip_qkv > 0 && !a->clips) problem = "clip_qkv: no limit for q, k and v";
    if (!problem) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s: %s is what llama.cpp's %s has", where, problem, a->name);
}

nb_status nb_gguf_check(const nb_spec *s, const char *where) {
    const nb_gguf_family *a = nb_gguf_family_of(s);
    if (!a) return nb_fail(NB_EUNSUPPORTED, "%s: %s cannot be written as GGUF", where, s->architecture);
    if (a->any_gelu && s->act == NB_ACT_GELU_ERF)
        nb_info("%s: llama.cpp's %s computes GELU in its tanh form, which differs by up to 0.0005", where, a->name);
    else if (s->act != a->act)
        return nb_fail(NB_EUNSUPPORTED, "%s: hidden_act: llama.cpp's %s has another activation", where, a->name);
    if (!scale_is_known(s, a))
        return nb_fail(NB_EUNSUPPORTED, "%s: %s: llama.cpp's %s scales attention by head_dim^-0.5", where,
                       s->learned_positions ? "scale_attn_weights, scale_attn_by_inverse_layer_idx"
                                            : "query_pre_attn_scalar", a->name);
    NB_TRY(check_shape(s, a, where));
    NB_TRY(check_experts(s, a, where));
    NB_TRY(check_rope(s, a, where));
    return check_layers(s, a, where);
}

/* ---- keys ---- */

const nb_gguf_size nb_gguf_sizes[NB_GGUF_SIZES] = {
    {"block_count", "num_hidden_layers", offsetof(nb_spec, layers)},
    {"context_length", "max_position_embeddings", offsetof(nb_spec, context)},
    {"embedding_length", "hidden_size", offsetof(nb_spec, hidden)},
    {"feed_forward_length", "intermediate_size", offsetof(nb_spec, mlp_hidden)},
    {"attention.head_count", "num_attention_heads", offsetof(nb_spec, heads)},
    {"attention.head_count_kv", "num_key_value_heads", offsetof(nb_spec, kv_heads)},
    {"attention.key_length", "head_dim", offsetof(nb_spec, head_dim)},
    {"attention.value_length", NULL, offsetof(nb_spec, head_dim)},
    {"vocab_size", NULL, offsetof(nb_spec, vocab)},
};

typedef struct keys {
    nb_gguf_writer *w;
    const char *arch;
    char name[96];
} keys;

static const char *key(keys *k, const char *name) {
    snprintf(k->name, sizeof k->name, "%s.%s", k->arch, name);
    return k->name;
}
static void put_int(keys *k, const char *name, int64_t v) { nb_gguf_put_u32(k->w, key(k, name), (uint32_t)v); }
static void put_real(keys *k, const char *name, double v) { nb_gguf_put_f32(k->w, key(k, name), (float)v); }

static void put_rope(keys *k, const nb_spec *s) {
    const nb_rope_spec *r = &s->rope[0];
    bool phi3 = !strcmp(k->arch, "phi3");
    put_int(k, "rope.dimension_count", r->rot);
    put_real(k, "rope.freq_base", r->theta);
    if (r->kind == NB_ROPE_LINEAR || r->kind == NB_ROPE_YARN) {
        nb_gguf_put_str(k->w, key(k, "rope.scaling.type"), nb_rope_kind_name(r->kind));
        put_real(k, "rope.scaling.factor", r->factor);
    }
    if (r->kind == NB_ROPE_LONGROPE) put_real(k, "rope.scaling.attn_factor", r->attention);
    if (r->kind == NB_ROPE_YARN || phi3)
        put_int(k, "rope.scaling.original_context_length", r->original_context ? r->original_context : s->context);
}

static void put_experts(keys *k, const nb_spec *s) {
    put_int(k, "expert_count", s->experts);
    put_int(k, "expert_used_count", s->top_k);
    if (nb_family_by_type(s->family)->expert_hidden_key)
        put_int(k, "expert_feed_forward_length", s->expert_hidden);
    if (s->shared_hidden) put_int(k, "expert_shared_feed_forward_length", s->shared_hidden);
}

void nb_gguf_put_spec(nb_gguf_writer *w, const nb_spec *s) {
    const nb_gguf_family *a = nb_gguf_family_of(s);
    NB_ASSERT(a);
    keys k = {.w = w, .arch = a->name};
    for (int i = 0; i < NB_GGUF_SIZES; i++) {
        const nb_gguf_size *z = &nb_gguf_sizes[i];
        put_int(&k, z->key, *(const int64_t *)((const char *)s + z->at));
    }
    put_real(&k, s->norm_kind == NB_NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
             s->norm_eps);
    if (s->clip_qkv > 0) put_real(&k, "attention.clamp_kqv", s->clip_qkv);
    if (a->parallel_key) nb_gguf_put_bool(w, key(&k, "use_parallel_residual"), s->parallel);
    if (a->experts) put_experts(&k, s);
    if (a->window_key) put_int(&k, "attention.sliding_window", s->window);
    if (s->attn_softcap > 0) put_real(&k, "attn_logit_softcapping", s->attn_softcap);
    if (s->logit_softcap > 0) put_real(&k, "final_logit_softcapping", s->logit_softcap);
    if (!s->learned_positions) put_rope(&k, s);
}

/* ---- names and orders of tensors ---- */

void nb_gguf_linear_name(const nb_spec *s, int64_t layer, int slot, char name[NB_GGUF_NAME]) {
    static const char *const names[NB_SLOTS] = {
        [NB_QKV] = "attn_qkv", [NB_Q] = "attn_q", [NB_K] = "attn_k", [NB_V] = "attn_v", [NB_O] = "attn_output",
        [NB_ROUTER] = "ffn_gate_inp", [NB_SHARE] = "ffn_gate_inp_shexp", [NB_GATE_UP] = "ffn_up",
        [NB_GATE] = "ffn_gate", [NB_UP] = "ffn_up", [NB_DOWN] = "ffn_down",
    };
    bool expert = slot >= NB_SLOTS, shared = !expert && slot >= NB_GATE && s->layer[layer].sparse;
    if (expert) slot = NB_GATE + (slot - NB_SLOTS) / (int)s->experts;
    snprintf(name, NB_GGUF_NAME, "blk.%lld.%s%s", (long long)layer, names[slot],
             expert ? "_exps" : shared ? "_shexp" : "");
}

void nb_gguf_norm_name(int64_t layer, nb_norm_slot slot, char name[NB_GGUF_NAME]) {
    static const char *const names[NB_NORMS] = {
        [NB_NORM1] = "attn_norm", [NB_POST_NORM1] = "post_attention_norm", [NB_NORM2] = "ffn_norm",
        [NB_POST_NORM2] = "post_ffw_norm", [NB_Q_NORM] = "attn_q_norm", [NB_K_NORM] = "attn_k_norm",
    };
    snprintf(name, NB_GGUF_NAME, "blk.%lld.%s", (long long)layer, names[slot]);
}

/* Where neighbouring dims are rotated together, the halves of each head are interleaved; q, k, v of one head after
 * another (GPT-NeoX) become all of q, all of k, all of v. */
nb_gguf_order nb_gguf_order_of(const nb_spec *s, int slot) {
    if (slot == NB_QKV && s->qkv_in_turns)
        return (nb_gguf_order){.outer = 1, .n = 3, .m = s->heads, .inner = s->head_dim};
    if (!nb_gguf_family_of(s)->interleaved || (slot != NB_Q && slot != NB_K)) return (nb_gguf_order){0};
    return (nb_gguf_order){.outer = slot == NB_Q ? s->heads : s->kv_heads, .n = s->head_dim / 2, .m = 2, .inner = 1};
}

int64_t nb_gguf_row(int64_t r, const nb_gguf_order *o) {
    if (!o->n) return r;
    int64_t block = r / o->inner, k = r % o->inner, j = block % o->m, i = block / o->m % o->n, head = block / o->m / o->n;
    return ((head * o->m + j) * o->n + i) * o->inner + k;
}
