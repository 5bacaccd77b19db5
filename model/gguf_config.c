/* GGUF's keys as the config.json that transformers would have: model/spec.c reads it, and a merged folder gets it. The
 * defaults are those of llama.cpp's loader (llama-model.cpp). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/family.h"
#include "model/gguf_base.h"
#include "model/gguf_map.h"

typedef struct reader {
    const nb_gguf_model *m;
    const nb_gguf *g; /* the part with the keys */
    const char *where;
    const nb_gguf_family *a;
    const nb_family *f;
    json_t *c;        /* config.json */
    bool *used;       /* [g->n_keys] */
    int64_t layers, hidden, heads, head_dim, context;
} reader;

/* ---- keys ---- */

/* "ARCH.NAME", marked as read; NULL when absent. */
static const nb_gguf_key *find(reader *r, const char *name) {
    char *full = nb_asprintf("%s.%s", r->a->name, name);
    const nb_gguf_key *k = nb_gguf_find_key(r->g, full);
    if (k) r->used[k - r->g->keys] = true;
    free(full);
    return k;
}

static nb_status wrong(const reader *r, const nb_gguf_key *k, const char *want) {
    return nb_fail(NB_EUNSUPPORTED, "%s: key \"%s\" is %s; %s is wanted", r->where, k->name,
                   k->kind == NB_GGUF_KARRAY ? "a list" : k->kind == NB_GGUF_KSTR ? "text" : "another kind of number",
                   want);
}

/* Absent: *out stays. */
static nb_status whole(reader *r, const char *name, int64_t *out) {
    const nb_gguf_key *k = find(r, name);
    return !k || nb_gguf_int(r->g, k->name, out) ? NB_OK : wrong(r, k, "a whole number");
}

static nb_status real(reader *r, const char *name, double *out) {
    const nb_gguf_key *k = find(r, name);
    int64_t i;
    if (!k || nb_gguf_real(r->g, k->name, out)) return NB_OK;
    if (!nb_gguf_int(r->g, k->name, &i)) return wrong(r, k, "a number");
    *out = (double)i;
    return NB_OK;
}

static void put_int(reader *r, const char *name, int64_t v) { json_object_set_new(r->c, name, json_integer(v)); }

/* Not finite: JSON has no such number, and no setting may be one. */
static nb_status put_real(json_t *to, const char *name, double v, const reader *r) {
    if (!isfinite(v)) return nb_fail(NB_EINPUT, "%s: the value for \"%s\" is not finite", r->where, name);
    json_object_set_new(to, name, json_real(v));
    return NB_OK;
}

static bool has_tensor(const reader *r, const char *name) { return nb_gguf_model_tensor(r->m, name) != NULL; }

/* Keys of the architecture that nothing asked for must say nothing: 0, false, empty. */
static nb_status refuse_unread(const reader *r) {
    size_t n = strlen(r->a->name);
    for (int64_t i = 0; i < r->g->n_keys; i++) {
        const nb_gguf_key *k = &r->g->keys[i];
        double d = 0;
        int64_t v = 0;
        if (r->used[i] || strncmp(k->name, r->a->name, n) != 0 || k->name[n] != '.') continue;
        if ((nb_gguf_int(r->g, k->name, &v) && v == 0) || (nb_gguf_real(r->g, k->name, &d) && d == 0)) continue;
        if ((k->kind == NB_GGUF_KSTR || k->kind == NB_GGUF_KARRAY) && k->n == 0) continue;
        return nb_fail(NB_EUNSUPPORTED, "%s: key \"%s\" may change the model's mathematics and nibble does not know it",
                       r->where, k->name);
    }
    return NB_OK;
}

/* ---- sizes ---- */

static nb_status read_sizes(reader *r) {
    int64_t v[NB_GGUF_SIZES];
    for (int i = 0; i < NB_GGUF_SIZES; i++) {
        v[i] = -1;
        NB_TRY(whole(r, nb_gguf_sizes[i].key, &v[i]));
    }
    const nb_gguf_tensor *embed = nb_gguf_model_tensor(r->m, "token_embd.weight");
    if (!embed) return nb_fail(NB_EINPUT, "%s: has no tensor \"token_embd.weight\": this is no whole model", r->where);
    r->layers = v[0], r->context = v[1], r->hidden = v[2], r->heads = v[4], r->head_dim = v[6];
    if (v[5] < 0) v[5] = v[4]; /* as many key/value heads as heads */
    if (r->head_dim < 0) r->head_dim = v[6] = r->heads > 0 && r->hidden > 0 ? r->hidden / r->heads : 0;
    if (v[7] >= 0 && v[7] != r->head_dim)
        return nb_fail(NB_EUNSUPPORTED, "%s: %s.attention.value_length %lld is not key_length %lld", r->where,
                       r->a->name, (long long)v[7], (long long)r->head_dim);
    for (int i = 0; i < NB_GGUF_SIZES; i++) {
        if (!nb_gguf_sizes[i].config) continue;
        if (v[i] < 1) return nb_fail(NB_EINPUT, "%s: has no \"%s.%s\"", r->where, r->a->name, nb_gguf_sizes[i].key);
        put_int(r, nb_gguf_sizes[i].config, v[i]);
    }
    put_int(r, "vocab_size", embed->ne[1]);
    return NB_OK;
}

/* Every layer has so many experts: before room is made for what the keys say. */
static nb_status check_experts(const reader *r, int64_t n) {
    char name[64];
    for (int64_t l = 0; l < r->layers; l++) {
        snprintf(name, sizeof name, "blk.%lld.ffn_gate_exps.weight", (long long)l);
        const nb_gguf_tensor *t = nb_gguf_model_tensor(r->m, name);
        if (!t) return nb_fail(NB_EINPUT, "%s: has no tensor \"%s\"", r->where, name);
        if (t->ne[2] != n)
            return nb_fail(NB_ESHAPE, "%s: tensor \"%s\" has %lld experts, %s.expert_count is %lld", r->where, name,
                           (long long)t->ne[2], r->a->name, (long long)n);
    }
    return NB_OK;
}

/* Experts: their sizes where config.json has keys for them; else they have those of a dense MLP. */
static nb_status read_experts(reader *r) {
    int64_t n = 0, used = 0, ff = json_integer_value(json_object_get(r->c, "intermediate_size"));
    if (!r->a->experts) return NB_OK;
    NB_TRY(whole(r, "expert_count", &n));
    NB_TRY(whole(r, "expert_used_count", &used));
    if (n < 1 || used < 1)
        return nb_fail(NB_EINPUT, "%s: has no \"%s.%s\"", r->where, r->a->name, n < 1 ? "expert_count"
                                                                                    : "expert_used_count");
    NB_TRY(check_experts(r, n));
    int64_t hidden = ff / used, shared = ff;
    put_int(r, r->f->experts_key ? r->f->experts_key : "num_experts", n);
    put_int(r, "num_experts_per_tok", used);
    if (!r->f->renorm) json_object_set_new(r->c, "norm_topk_prob", json_boolean(r->a->renorm));
    if (r->f->expert_hidden_key) {
        NB_TRY(whole(r, "expert_feed_forward_length", &hidden));
        put_int(r, r->f->expert_hidden_key, hidden);
    }
    if (!r->f->shared_hidden) return NB_OK;
    NB_TRY(whole(r, "expert_shared_feed_forward_length", &shared));
    put_int(r, "shared_expert_intermediate_size", shared);
    return NB_OK;
}

/* ---- rotary positions ---- */

/* Values of a vector tensor of rot / 2 numbers above 0. */
static nb_status read_factors(const reader *r, const char *name, int64_t rot, float *out) {
    const nb_gguf_tensor *t = nb_gguf_model_tensor(r->m, name);
    if (t->type != NB_GGUF_F32 || t->n_dims != 1 || t->ne[0] != rot / 2)
        return nb_fail(NB_EINPUT, "%s: tensor \"%s\" is not %lld numbers in f32", r->where, name, (long long)rot / 2);
    nb_gguf_decode(t->type, out, t->data, rot / 2);
    for (int64_t i = 0; i < rot / 2; i++)
        if (!(out[i] > 0) || !isfinite(out[i]))
            return nb_fail(NB_EINPUT, "%s: value %lld of \"%s\" is not above 0", r->where, (long long)i, name);
    return NB_OK;
}

/* Are these the factors that Llama 3's rule gives? The file has no other trace of it. */
static bool is_llama3(const nb_rope_spec *rule, const float *factors) {
    double plain[NB_MAX_ROT / 2], scaled[NB_MAX_ROT / 2];
    nb_rope_spec without = *rule;
    without.kind = NB_ROPE_DEFAULT;
    nb_rope_inv_freq(&without, 1, plain);
    nb_rope_inv_freq(rule, 1, scaled);
    for (int i = 0; i < rule->rot / 2; i++)
        if (!(fabs(plain[i] / scaled[i] - (double)factors[i]) <= 1e-6 * (double)factors[i])) return false;
    return true;
}

static json_t *number_list(const float *x, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_real((double)x[i]));
    return list;
}

/* The factor of each pair of dims: Llama 3's rule where it fits, for some power of two as the first context, else the
 * list itself, which longrope says without a rule. */
static nb_status put_factors(reader *r, int64_t rot, double theta) {
    float x[NB_MAX_ROT / 2];
    NB_TRY(read_factors(r, "rope_freqs.weight", rot, x));
    nb_rope_spec rule = {.kind = NB_ROPE_LLAMA3, .theta = theta, .low_freq_factor = 1, .high_freq_factor = 4,
                         .factor = (double)x[rot / 2 - 1], .rot = (int)rot};
    for (int k = 0; k < 18; k++) {
        rule.original_context = k ? 8 << k : 8192; /* as it always is, first */
        if (rule.factor <= 1 || !is_llama3(&rule, x)) continue;
        json_object_set_new(r->c, "rope_scaling", json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3",
                            "factor", rule.factor, "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                            "original_max_position_embeddings", (json_int_t)rule.original_context));
        return NB_OK;
    }
    json_object_set_new(r->c, "rope_scaling", json_pack("{s:s, s:o, s:o, s:f, s:f}", "rope_type", "longrope",
                        "short_factor", number_list(x, rot / 2), "long_factor", number_list(x, rot / 2), "factor", 1.0,
                        "attention_factor", 1.0));
    return NB_OK;
}

static nb_status put_longrope(reader *r, int64_t rot, int64_t original, double attention) {
    float x[2][NB_MAX_ROT / 2];
    NB_TRY(read_factors(r, "rope_factors_short.weight", rot, x[0]));
    if (!has_tensor(r, "rope_factors_long.weight"))
        return nb_fail(NB_EINPUT, "%s: has no tensor \"rope_factors_long.weight\"", r->where);
    NB_TRY(read_factors(r, "rope_factors_long.weight", rot, x[1]));
    json_t *s = json_pack("{s:s, s:o, s:o}", "type", "longrope", "short_factor", number_list(x[0], rot / 2),
                          "long_factor", number_list(x[1], rot / 2));
    json_object_set_new(r->c, "rope_scaling", s);
    put_int(r, "original_max_position_embeddings", original);
    double ratio = (double)r->context / (double)original;
    double rule = ratio <= 1 ? 1 : sqrt(1 + log(ratio) / log((double)original));
    return fabs(attention - rule) <= 1e-6 * rule ? NB_OK : put_real(s, "attention_factor", attention, r);
}

/* yarn's own temperature is a rule of both; attn_factor comes on top. */
static nb_status put_scaling(reader *r, const char *kind, double factor, int64_t original, double attention) {
    bool yarn = !strcmp(kind, "yarn");
    double fast = 32, slow = 1, temperature = factor <= 1 ? 1 : 1 + 0.1 * log(factor);
    if (!yarn && strcmp(kind, "linear") != 0)
        return nb_fail(NB_EUNSUPPORTED, "%s: %s.rope.scaling.type \"%.40s\" is not supported", r->where, r->a->name,
                       kind);
    json_t *s = json_pack("{s:s}", "rope_type", kind);
    json_object_set_new(r->c, "rope_scaling", s);
    NB_TRY(put_real(s, "factor", factor, r));
    if (!yarn && attention != 1)
        return nb_fail(NB_EUNSUPPORTED, "%s: %s.rope.scaling.attn_factor is not supported here", r->where, r->a->name);
    if (!yarn) return NB_OK;
    json_object_set_new(s, "original_max_position_embeddings", json_integer(original));
    if (attention != 1) NB_TRY(put_real(s, "attention_factor", attention * temperature, r));
    NB_TRY(real(r, "rope.scaling.yarn_beta_fast", &fast));
    NB_TRY(real(r, "rope.scaling.yarn_beta_slow", &slow));
    NB_TRY(put_real(s, "beta_fast", fast, r));
    return put_real(s, "beta_slow", slow, r);
}

static nb_status read_rope(reader *r) {
    int64_t rot = r->head_dim, original = r->context;
    double theta = 1e4, factor = 1, attention = 1, partial;
    const nb_gguf_key *type = find(r, "rope.scaling.type");
    char *kind = type ? nb_gguf_str(r->g, type->name) : NULL;
    NB_TRY(whole(r, "rope.dimension_count", &rot));
    NB_TRY(real(r, "rope.freq_base", &theta));
    NB_TRY(real(r, "rope.scale_linear", &factor)); /* the name that factor once had */
    NB_TRY(real(r, "rope.scaling.factor", &factor));
    NB_TRY(real(r, "rope.scaling.attn_factor", &attention));
    NB_TRY(whole(r, "rope.scaling.original_context_length", &original));
    find(r, "rope.scaling.finetuned");
    if (rot < 2 || rot > r->head_dim || rot > NB_MAX_ROT || rot % 2 || original < 1) {
        free(kind);
        return nb_fail(NB_EINPUT, "%s: %s.rope: %lld dims of %lld, first context %lld: impossible", r->where,
                       r->a->name, (long long)rot, (long long)r->head_dim, (long long)original);
    }
    nb_status st = put_real(r->c, r->f->theta_key ? r->f->theta_key : "rope_theta", theta, r);
    partial = (double)rot / (double)r->head_dim;
    if ((int64_t)((double)r->head_dim * partial) < rot) partial = nextafter(partial, 2);
    if (st == NB_OK && (r->f->partial > 0 || rot != r->head_dim))
        st = put_real(r->c, r->f->partial_key ? r->f->partial_key : "partial_rotary_factor", partial, r);
    bool scaled = (kind && strcmp(kind, "none") != 0 && strcmp(kind, "longrope") != 0) || (!kind && factor != 1);
    if (st != NB_OK) scaled = false;
    else if (has_tensor(r, "rope_factors_short.weight")) st = put_longrope(r, rot, original, attention);
    else if (has_tensor(r, "rope_freqs.weight")) st = put_factors(r, rot, theta);
    else if (scaled) st = put_scaling(r, kind ? kind : "linear", factor, original, attention);
    free(kind);
    return st;
}

/* ---- the rest ---- */

static nb_status read_norm(reader *r) {
    double eps = 0;
    bool rms = r->f->norm_kind == NB_NORM_RMS;
    const char *key = rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
    const char *config = r->f->eps_key ? r->f->eps_key : "rms_norm_eps";
    NB_TRY(real(r, key, &eps));
    if (!(eps > 0)) return nb_fail(NB_EINPUT, "%s: has no \"%s.%s\"", r->where, r->a->name, key);
    if (*config) return put_real(r->c, config, eps, r);
    return fabs(eps - r->f->norm_eps) <= 1e-6 * eps ? NB_OK
           : nb_fail(NB_EUNSUPPORTED, "%s: %s.%s %g: %s has %g", r->where, r->a->name, key, eps, r->f->architecture,
                     r->f->norm_eps);
}

/* Which layers have the window: by the rule of the architecture, or a number or list that says so. */
static nb_status read_pattern(reader *r) {
    const nb_gguf_key *k = find(r, "attention.sliding_window_pattern");
    int64_t every = r->a->pattern;
    if (k && k->kind == NB_GGUF_KARRAY && k->of == NB_GGUF_KBOOL) {
        if (k->n != (uint64_t)r->layers)
            return nb_fail(NB_EINPUT, "%s: \"%s\" has %llu entries for %lld layers", r->where, k->name,
                           (unsigned long long)k->n, (long long)r->layers);
        json_t *types = json_array();
        for (uint64_t i = 0; i < k->n; i++)
            json_array_append_new(types, json_string(k->data[i] ? "sliding_attention" : "full_attention"));
        json_object_set_new(r->c, "layer_types", types);
        return NB_OK;
    }
    NB_TRY(whole(r, "attention.sliding_window_pattern", &every));
    if (r->a->pattern) put_int(r, "sliding_window_pattern", every);
    return NB_OK;
}

/* llama.cpp reads the key only for some; in others it must not mean anything. */
static nb_status read_window(reader *r) {
    int64_t window = 0;
    NB_TRY(whole(r, "attention.sliding_window", &window));
    if (r->a->window_key && window > 0) put_int(r, "sliding_window", window);
    else if (r->f->window_rule != NB_WINDOW_NONE) json_object_set_new(r->c, "sliding_window", json_null());
    if (!r->a->window_key && window > 0 && window < r->context)
        return nb_fail(NB_EUNSUPPORTED, "%s: %s.attention.sliding_window %lld: llama.cpp ignores it and nibble does "
                       "not know for which layers it is meant", r->where, r->a->name, (long long)window);
    return r->a->window_key ? read_pattern(r) : NB_OK;
}

static nb_status read_scores(reader *r) {
    static const char *const caps[2][2] = {{"attn_logit_softcapping", "attn_logit_softcapping"},
                                           {"final_logit_softcapping", "final_logit_softcapping"}};
    double v, clip = 0;
    for (int i = 0; i < 2 && r->f->softcaps; i++) {
        v = -1;
        NB_TRY(real(r, caps[i][0], &v));
        if (v >= 0) NB_TRY(put_real(r->c, caps[i][1], v, r));
    }
    if (r->f->attn_scalar > 0)
        NB_TRY(put_real(r->c, "query_pre_attn_scalar",
                        nb_gguf_attn_scalar(r->a, r->layers, r->hidden, r->heads, r->head_dim), r));
    if (r->f->local_theta > 0) {
        v = r->f->local_theta;
        NB_TRY(real(r, "rope.freq_base_swa", &v));
        NB_TRY(put_real(r->c, "rope_local_base_freq", v, r));
    }
    if (!r->f->clips_qkv) return NB_OK;
    NB_TRY(real(r, "attention.clamp_kqv", &clip));
    return put_real(r->c, "clip_qkv", clip, r);
}

/* Biases are where the first layer has them; the head is the embedding where there is none, or a copy of it. */
static void read_shape(reader *r) {
    const nb_gguf_tensor *embed = nb_gguf_model_tensor(r->m, "token_embd.weight");
    const nb_gguf_tensor *head = nb_gguf_model_tensor(r->m, "output.weight");
    bool tied = !head || (head->type == embed->type && head->bytes == embed->bytes &&
                          !memcmp(head->data, embed->data, embed->bytes));
    bool qkv_bias = has_tensor(r, "blk.0.attn_q.bias") || has_tensor(r, "blk.0.attn_qkv.bias");
    json_object_set_new(r->c, "tie_word_embeddings", json_boolean(tied));
    if (r->f->qkv_bias == NB_BIAS_KEY)
        json_object_set_new(r->c, "attention_bias", json_boolean(qkv_bias));
    if (r->f->qkv_bias == NB_BIAS_QKV_KEY) json_object_set_new(r->c, "qkv_bias", json_boolean(qkv_bias));
    if (r->f->mlp_bias == NB_BIAS_KEY)
        json_object_set_new(r->c, "mlp_bias", json_boolean(has_tensor(r, "blk.0.ffn_up.bias")));
    const char *dtype = embed->type == NB_GGUF_F32 ? "float32" : embed->type == NB_GGUF_F16 ? "float16" : "bfloat16";
    json_object_set_new(r->c, "torch_dtype", json_string(dtype));
}

/* Are attention and MLP side by side? */
static nb_status read_parallel(reader *r) {
    int64_t parallel = -1;
    if (!r->a->parallel_key) return NB_OK;
    NB_TRY(whole(r, "use_parallel_residual", &parallel));
    if (parallel < 0) return nb_fail(NB_EINPUT, "%s: has no \"%s.use_parallel_residual\"", r->where, r->a->name);
    json_object_set_new(r->c, r->f->parallel_key, json_boolean(parallel));
    return NB_OK;
}

static void read_ids(reader *r) {
    static const char *const ids[][2] = {{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                         {"tokenizer.ggml.eos_token_id", "eos_token_id"},
                                         {"tokenizer.ggml.padding_token_id", "pad_token_id"}};
    int64_t id;
    for (int i = 0; i < NB_LEN(ids); i++) {
        if (nb_gguf_int(r->g, ids[i][0], &id) && id >= 0 && id <= INT32_MAX) put_int(r, ids[i][1], id);
        else json_object_set_new(r->c, ids[i][1], json_null()); /* a configuration class would fill in its own */
    }
}

/* The family's own names of keys; what its configuration class cannot say has to be as it always is. */
static nb_status rename_keys(reader *r) {
    static const char *const implied[2] = {"num_key_value_heads", "head_dim"};
    const int64_t want[2] = {r->heads, r->hidden / r->heads};
    for (int i = 0; i < 2 && r->f->no_groups; i++) {
        if (json_integer_value(json_object_get(r->c, implied[i])) != want[i])
            return nb_fail(NB_EUNSUPPORTED, "%s: %s of %s is always %lld", r->where, implied[i], r->f->architecture,
                           (long long)want[i]);
        json_object_del(r->c, implied[i]);
    }
    for (const nb_key_name *k = r->f->keys; k && k->own; k++) {
        json_t *v = json_object_get(r->c, k->usual);
        if (v) json_object_set(r->c, k->own, v);
        json_object_del(r->c, k->usual);
    }
    return NB_OK;
}

static nb_status read_all(reader *r) {
    json_object_set_new(r->c, "model_type", json_string(r->a->family));
    json_object_set_new(r->c, "architectures", json_pack("[s]", r->f->architecture));
    NB_TRY(read_sizes(r));
    NB_TRY(read_experts(r));
    NB_TRY(read_parallel(r));
    if (!r->f->positions) NB_TRY(read_rope(r));
    NB_TRY(read_norm(r));
    NB_TRY(read_window(r));
    NB_TRY(read_scores(r));
    read_shape(r);
    read_ids(r);
    NB_TRY(rename_keys(r));
    return refuse_unread(r);
}

/* The architecture's row, and what transformers knows it as. */
static nb_status read_family(reader *r) {
    char *arch = nb_gguf_str(r->g, "general.architecture"), *type = nb_gguf_str(r->g, "general.type");
    char *known = nb_gguf_families_text();
    char *count = nb_asprintf("%s.expert_count", arch ? arch : "");
    int64_t experts = 0;
    nb_status st = NB_OK;
    nb_gguf_int(r->g, count, &experts);
    r->a = arch ? nb_gguf_family_find(arch, experts != 0) : NULL;
    if (type && strcmp(type, "model") != 0)
        st = nb_fail(NB_EINPUT, "%s: is \"%.40s\", not a model", r->where, type);
    else if (!r->a)
        st = nb_fail(NB_EUNSUPPORTED, "%s: architecture \"%.60s\" is not supported (supported in GGUF: %s)", r->where,
                     arch ? arch : "(none)", known);
    else r->f = nb_family_by_type(r->a->family);
    free(arch), free(type), free(known), free(count);
    return st;
}

nb_status nb_gguf_config(json_t **out, const nb_gguf_model *m) {
    reader r = {.m = m, .g = &m->part[0], .where = m->part[0].map.path};
    *out = NULL;
    NB_TRY(read_family(&r));
    r.c = json_object();
    r.used = nb_calloc((size_t)r.g->n_keys + 1, sizeof *r.used);
    nb_status st = read_all(&r);
    free(r.used);
    if (st == NB_OK) *out = r.c;
    else json_decref(r.c);
    return st;
}
