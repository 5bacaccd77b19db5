#include "model/spec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/family.h"
#include "model/gguf_base.h"

/* Keys of other families' configs that change the result. A value that means "off" (absent, null, false, 0, empty)
 * or the neutral one passes; any other is refused. */
static const struct {
    const char *key;
    double neutral;
} refused[] = {
    {"clip_qkv", 0},           {"logit_scale", 1},        {"logits_scaling", 1},     {"embedding_multiplier", 1},
    {"residual_multiplier", 1}, {"attention_multiplier", 0}, {"use_qk_norm", 0},      {"qk_layernorm", 0},
    {"attn_logit_softcapping", 0}, {"final_logit_softcapping", 0}, {"query_pre_attn_scalar", 0},
    {"rotary_pct", 1},         {"no_rope_layers", 0},     {"num_experts", 1},       {"use_bidirectional_attention", 0},
    {"num_local_experts", 1},  {"n_routed_experts", 1},   {"attention_chunk_size", 0}, {"qkv_bias", 0},
    {"lm_head_bias", 0},       {"use_parallel_residual", 0}, {"parallel_attn", 0},   {"scale_emb", 1},
    {"scale_depth", 0},        {"dim_model_base", 0},     {"use_mup", 0},            {"alibi", 0},
    {"logits_soft_cap", 0},    {"kv_lora_rank", 0},       {"norm_after", 0},        {"add_cross_attention", 0},
    {"scale_attn_by_inverse_layer_idx", 0}, {"pruned_heads", 0}, {"router_jitter_noise", 0},
};

static const struct {
    const char *name;
    nb_act act;
} acts[] = {
    {"silu", NB_ACT_SILU},           {"swish", NB_ACT_SILU},         {"gelu_pytorch_tanh", NB_ACT_GELU_TANH},
    {"gelu_new", NB_ACT_GELU_TANH},  {"gelu", NB_ACT_GELU_ERF},      {"relu", NB_ACT_RELU},
};

static bool is_off(const json_t *v, double neutral) {
    if (!v || json_is_null(v) || json_is_false(v)) return true;
    if (json_is_number(v)) return json_number_value(v) == 0 || json_number_value(v) == neutral;
    if (json_is_string(v)) return !*json_string_value(v);
    return (json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v));
}

static const char *experts_key(const nb_family *f) { return f->experts_key ? f->experts_key : "num_experts"; }

/* Does this family read the key? */
static bool reads(const nb_family *f, const char *key) {
    if (!strcmp(key, "query_pre_attn_scalar")) return f->attn_scalar > 0;
    if (!strcmp(key, "clip_qkv")) return f->clips_qkv;
    if (!strcmp(key, "qkv_bias")) return f->qkv_bias == NB_BIAS_QKV_KEY;
    if (f->experts && !strcmp(key, experts_key(f))) return true;
    if (!strcmp(key, "no_rope_layers")) return f->no_rope_interval > 0;
    if (!strcmp(key, "rotary_pct")) return f->partial_key && !strcmp(f->partial_key, key);
    if (!strcmp(key, "use_parallel_residual")) return f->parallel_key && !strcmp(f->parallel_key, key);
    if (!strcmp(key, "scale_attn_by_inverse_layer_idx")) return f->score_keys;
    return f->softcaps && strstr(key, "logit_softcapping");
}

static nb_status refuse_unknown_maths(const json_t *c, const nb_family *f, const char *where) {
    for (int i = 0; i < NB_LEN(refused); i++) {
        const json_t *v = json_object_get(c, refused[i].key);
        if (is_off(v, refused[i].neutral) || reads(f, refused[i].key)) continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        nb_status st = nb_fail(NB_EUNSUPPORTED, "%s: \"%s\": %.60s changes the model's mathematics and nibble does not "
                               "implement it for this architecture", where, refused[i].key, text ? text : "?");
        free(text);
        return st;
    }
    return NB_OK;
}

/* The first of two spellings that is there and not null. */
static const json_t *either(const json_t *c, const char *key, const char *other) {
    const json_t *v = json_object_get(c, key);
    return v && !json_is_null(v) ? v : json_object_get(c, other);
}

static nb_status refuse_family(const char *type, const char *arch, const char *where) {
    char *known = nb_families_text();
    const char *q = arch ? "\"" : "", *p = type ? "\"" : "";
    nb_status st = nb_fail(NB_EUNSUPPORTED, "%s: architectures[0] %s%.80s%s with model_type %s%.80s%s is not supported "
                           "(supported: %s)", where, q, arch ? arch : "(none)", q, p, type ? type : "(none)", p, known);
    free(known);
    return st;
}

static nb_status read_family(nb_spec *s, const nb_family **f, const json_t *c, const char *where) {
    const char *type = json_string_value(json_object_get(c, "model_type"));
    const char *arch = json_string_value(json_array_get(json_object_get(c, "architectures"), 0));
    *f = type && arch ? nb_family_find(type, arch) : NULL;
    if (!*f)
        return refuse_family(type, arch, where);
    snprintf(s->family, sizeof s->family, "%s", (*f)->model_type);
    snprintf(s->architecture, sizeof s->architecture, "%s", (*f)->architecture);
    return NB_OK;
}

/* The configuration under the usual names of its keys. */
static void use_usual_names(json_t *c, const nb_family *f) {
    for (const nb_key_name *k = f->keys; k && k->own; k++) {
        json_t *v = json_object_get(c, k->own);
        if (k->either && json_object_get(c, k->usual)) continue;
        if (v) json_object_set(c, k->usual, v);
        else json_object_del(c, k->usual);
    }
}

/* An integer key that must be there. */
static nb_status need_int(const json_t *c, const char *key, int64_t *out, const char *where) {
    const json_t *v = json_object_get(c, key);
    if (!v || json_is_null(v)) return nb_fail(NB_EINPUT, "%s: has no \"%s\"", where, key);
    return nb_json_int(c, key, out, where);
}

static nb_status read_sizes(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    NB_TRY(need_int(c, "vocab_size", &s->vocab, where));
    NB_TRY(need_int(c, "hidden_size", &s->hidden, where));
    const json_t *mlp = json_object_get(c, "intermediate_size");
    if (f->mlp_factor && (!mlp || json_is_null(mlp)))
        s->mlp_hidden = f->mlp_factor * (s->hidden < INT32_MAX ? s->hidden : INT32_MAX);
    else NB_TRY(need_int(c, "intermediate_size", &s->mlp_hidden, where));
    NB_TRY(need_int(c, "num_hidden_layers", &s->layers, where));
    NB_TRY(need_int(c, "num_attention_heads", &s->heads, where));
    bool absent = !json_object_get(c, "num_key_value_heads");
    s->kv_heads = absent && f->kv_heads ? f->kv_heads : s->heads;
    if (!f->no_groups) NB_TRY(nb_json_int(c, "num_key_value_heads", &s->kv_heads, where));
    NB_TRY(nb_json_int(c, "head_dim", &s->head_dim, where));
    if (!s->head_dim) s->head_dim = f->head_dim;
    if (!s->head_dim) {
        if (s->heads <= 0 || s->hidden % s->heads)
            return nb_fail(NB_EINPUT, "%s: hidden_size %lld cannot be divided among num_attention_heads %lld, and "
                           "there is no head_dim", where, (long long)s->hidden, (long long)s->heads);
        s->head_dim = s->hidden / s->heads;
    }
    s->context = f->context;
    NB_TRY(nb_json_int(c, "max_position_embeddings", &s->context, where));
    if (s->layers > NB_MAX_LAYERS)
        return nb_fail(NB_EINPUT, "%s: \"num_hidden_layers\" is %lld; 1 to %d is possible", where, (long long)s->layers,
                       NB_MAX_LAYERS);
    return NB_OK;
}

/* Which layers see only a window; layer_types, where the file has them, says so layer by layer. */
static nb_status read_windows(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    const json_t *w = json_object_get(c, "sliding_window"), *types = json_object_get(c, "layer_types");
    int64_t upper = s->layers, pattern = f->pattern;
    bool use = f->window_rule != NB_WINDOW_UPPER && f->window_rule != NB_WINDOW_IF_USED;
    s->window = !w ? f->window : 0; /* null: none */
    NB_TRY(nb_json_int(c, "sliding_window", &s->window, where));
    NB_TRY(nb_json_bool(c, "use_sliding_window", &use, where));
    NB_TRY(nb_json_int(c, "max_window_layers", &upper, where));
    NB_TRY(nb_json_int(c, "sliding_window_pattern", &pattern, where));
    NB_TRY(nb_json_int(c, "_sliding_window_pattern", &pattern, where));
    if (f->window_rule == NB_WINDOW_NONE && s->window && s->window < s->context)
        return nb_fail(NB_EUNSUPPORTED, "%s: sliding_window %lld has no meaning for %s; set it to null", where,
                       (long long)s->window, f->architecture);
    if (s->window < 0 || s->window > INT32_MAX)
        return nb_fail(NB_EINPUT, "%s: sliding_window %lld is not possible", where, (long long)s->window);
    if (f->window_rule == NB_WINDOW_NONE || !use) s->window = 0;
    if (json_is_array(types) && json_array_size(types) != (size_t)s->layers)
        return nb_fail(NB_EINPUT, "%s: layer_types has %zu entries for %lld layers", where, json_array_size(types),
                       (long long)s->layers);
    bool any = false;
    for (int64_t l = 0; l < s->layers; l++) {
        bool has = f->window_rule == NB_WINDOW_ALL || f->window_rule == NB_WINDOW_IF_USED ||
                   (f->window_rule == NB_WINDOW_UPPER && l >= upper) ||
                   (f->window_rule == NB_WINDOW_ALTERNATE && pattern > 0 && (l + 1) % pattern != 0);
        const char *t = json_string_value(json_array_get(types, (size_t)l));
        if (json_is_array(types)) {
            has = t && !strcmp(t, "sliding_attention");
            if (!t || (!has && strcmp(t, "full_attention") != 0) || (has && !s->window))
                return nb_fail(NB_EUNSUPPORTED, "%s: layer_types[%lld] is %.60s, which %s cannot have here", where,
                               (long long)l, t ? t : "not text", f->architecture);
        }
        s->layer[l].window = has ? (int32_t)s->window : 0;
        any |= has && s->window;
    }
    if (!any) s->window = 0;
    return NB_OK;
}

static nb_status read_act(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    /* Gemma has both keys; hidden_activation is the one that counts. */
    const json_t *v = f->gelu_is_tanh ? either(c, "hidden_activation", "hidden_act")
                                      : either(c, "hidden_act", "hidden_activation");
    s->act = f->act;
    if (!v || json_is_null(v)) return NB_OK;
    const char *name = json_string_value(v);
    if (f->gelu_is_tanh && name && !strcmp(name, "gelu")) return NB_OK;
    for (int i = 0; name && i < NB_LEN(acts); i++)
        if (!strcmp(name, acts[i].name)) {
            s->act = acts[i].act;
            return NB_OK;
        }
    return nb_fail(NB_EUNSUPPORTED, "%s: hidden_act \"%.60s\" is not supported", where, name ? name : "?");
}

static nb_status read_dtype(nb_spec *s, const json_t *c, const char *where) {
    const json_t *v = either(c, "dtype", "torch_dtype");
    s->dtype = NB_F32;
    if (!v || json_is_null(v)) return NB_OK;
    const char *name = json_is_string(v) ? json_string_value(v) : "?";
    for (nb_dtype dt = NB_F32; dt <= NB_F16; dt++)
        if (!strcmp(name, nb_dtype_name(dt))) {
            s->dtype = dt;
            return NB_OK;
        }
    return nb_fail(NB_EUNSUPPORTED, "%s: dtype \"%.60s\" is not float32, bfloat16 or float16", where, name);
}

static int32_t first_id(const json_t *c, const char *key) {
    const json_t *v = json_object_get(c, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    return json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= INT32_MAX
               ? (int32_t)json_integer_value(v) : -1;
}

static bool bias_by(nb_bias_rule rule, bool key) { return rule == NB_BIAS_KEY ? key : rule == NB_BIAS_YES; }

/* Dropout that the base was made with: fine-tuning has that of its adapter. */
static nb_status warn_dropout(const json_t *c, const char *where) {
    static const char *const keys[] = {"attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop",
                                       "resid_pdrop"};
    nb_text list = {0};
    nb_status st = NB_OK;
    for (int i = 0; i < NB_LEN(keys) && st == NB_OK; i++) {
        double p = 0;
        st = nb_json_real(c, keys[i], &p, where);
        if (p != 0) nb_text_printf(&list, "%s%s %g", list.n ? ", " : "", keys[i], p);
    }
    if (list.n && st == NB_OK) nb_warn("%s: %s: not applied", where, list.s);
    nb_text_free(&list);
    return st;
}

static nb_status read_flags(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    bool attention_bias = f->attention_bias, mlp_bias = false, qkv_bias = true;
    double eps = f->norm_eps, std = 0.02;
    s->tied = f->tied;
    NB_TRY(nb_json_real(c, f->eps_key ? f->eps_key : "rms_norm_eps", &eps, where)); /* "": no key */
    NB_TRY(nb_json_real(c, "initializer_range", &std, where));
    NB_TRY(nb_json_bool(c, "tie_word_embeddings", &s->tied, where));
    NB_TRY(nb_json_bool(c, "attention_bias", &attention_bias, where));
    NB_TRY(nb_json_bool(c, "mlp_bias", &mlp_bias, where));
    if (f->qkv_bias == NB_BIAS_QKV_KEY) NB_TRY(nb_json_bool(c, "qkv_bias", &qkv_bias, where));
    s->qkv_bias = f->qkv_bias == NB_BIAS_QKV_KEY ? qkv_bias : bias_by(f->qkv_bias, attention_bias);
    s->o_bias = bias_by(f->o_bias, attention_bias);
    s->mlp_bias = bias_by(f->mlp_bias, mlp_bias);
    s->head_bias = f->head_bias;
    s->norm_kind = f->norm_kind;
    s->norm_eps = (float)eps;
    s->norm_offset = (float)f->norm_offset;
    s->pre_norm = !f->no_pre_norm;
    s->post_norm = f->post_norm;
    s->parallel = f->parallel;
    if (f->parallel_key) NB_TRY(nb_json_bool(c, f->parallel_key, &s->parallel, where));
    s->bare_norm = f->bare_norm;
    s->qkv_in_turns = f->qkv_in_turns;
    s->learned_positions = f->positions != NULL;
    s->stored_transposed = f->conv1d;
    s->init_by_depth = f->init_by_depth;
    s->plain_mlp = f->plain_mlp;
    s->qk_norm = f->qk_norm;
    s->init_std = (float)std;
    s->embed_scale = f->scales_embedding ? (float)sqrt((double)s->hidden) : 1;
    if (f->clips_qkv) {
        double clip = 0;
        NB_TRY(nb_json_real(c, "clip_qkv", &clip, where));
        if (!(clip >= 0) || !isfinite(clip)) return nb_fail(NB_EINPUT, "%s: clip_qkv %g is not possible", where, clip);
        s->clip_qkv = (float)clip;
    }
    return warn_dropout(c, where);
}

/* Which layers are sparse: all, or every so manyth, but for those that are said to be dense. */
static nb_status read_sparse_layers(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    const json_t *dense = json_object_get(c, "mlp_only_layers");
    int64_t step = 1;
    if (f->sparse_step) NB_TRY(nb_json_int(c, "decoder_sparse_step", &step, where));
    if (step < 1) return nb_fail(NB_EINPUT, "%s: decoder_sparse_step %lld is not possible", where, (long long)step);
    for (int64_t l = 0; l < s->layers; l++) s->layer[l].sparse = s->experts && (l + 1) % step == 0;
    for (size_t i = 0; f->sparse_step && i < json_array_size(dense); i++) {
        const json_t *v = json_array_get(dense, i);
        json_int_t l = json_integer_value(v);
        if (!json_is_integer(v))
            return nb_fail(NB_EINPUT, "%s: mlp_only_layers[%zu] is not the number of a layer", where, i);
        if (l >= 0 && l < s->layers) s->layer[l].sparse = false;
    }
    return NB_OK;
}

/* The experts; their loss counts in training when the model would return it (output_router_logits). */
static nb_status read_experts(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    const char *key = experts_key(f), *hidden = f->expert_hidden_key ? f->expert_hidden_key : "intermediate_size";
    double coef = f->aux_coef;
    bool wanted = false;
    if (!f->experts) return NB_OK;
    s->experts = f->experts, s->top_k = f->top_k, s->expert_hidden = f->expert_hidden;
    s->shared_hidden = f->shared_hidden, s->renorm_topk = f->renorm;
    NB_TRY(nb_json_int(c, key, &s->experts, where));
    NB_TRY(nb_json_int(c, "num_experts_per_tok", &s->top_k, where));
    NB_TRY(nb_json_int(c, hidden, &s->expert_hidden, where));
    if (f->shared_hidden) NB_TRY(nb_json_int(c, "shared_expert_intermediate_size", &s->shared_hidden, where));
    if (!f->renorm) NB_TRY(nb_json_bool(c, "norm_topk_prob", &s->renorm_topk, where));
    NB_TRY(nb_json_bool(c, "output_router_logits", &wanted, where));
    NB_TRY(nb_json_real(c, "router_aux_loss_coef", &coef, where));
    if (!(coef >= 0) || !isfinite(coef))
        return nb_fail(NB_EINPUT, "%s: router_aux_loss_coef %g is not possible", where, coef);
    s->aux_coef = wanted ? (float)coef : 0;
    const struct {
        const char *key;
        int64_t v, min, max;
    } sizes[] = {{key, s->experts, f->sparse_step ? 0 : 1, NB_MAX_EXPERTS},
                 {"num_experts_per_tok", s->top_k, 1, s->experts && s->experts < NB_MAX_TOP_K ? s->experts : NB_MAX_TOP_K},
                 {hidden, s->expert_hidden, 1, 1 << 22},
                 {"shared_expert_intermediate_size", s->shared_hidden, f->shared_hidden ? 1 : 0, 1 << 22}};
    for (int i = 0; i < NB_LEN(sizes); i++)
        if (sizes[i].v < sizes[i].min || sizes[i].v > sizes[i].max)
            return nb_fail(NB_EINPUT, "%s: \"%s\" is %lld; %lld to %lld is possible", where, sizes[i].key,
                           (long long)sizes[i].v, (long long)sizes[i].min, (long long)sizes[i].max);
    return read_sparse_layers(s, f, c, where);
}

/* Scale and soft caps of attention, and the logits' cap. */
static nb_status read_scores(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    double scalar = f->attn_scalar > 0 ? f->attn_scalar : (double)s->head_dim, caps[2] = {f->attn_cap, f->logit_cap};
    bool scaled = true;
    static const char *const keys[2] = {"attn_logit_softcapping", "final_logit_softcapping"};
    if (f->attn_scalar > 0) NB_TRY(nb_json_real(c, "query_pre_attn_scalar", &scalar, where));
    for (int i = 0; i < 2 && f->softcaps; i++) {
        const json_t *v = json_object_get(c, keys[i]);
        if (v && json_is_null(v)) caps[i] = 0;
        else NB_TRY(nb_json_real(c, keys[i], &caps[i], where));
        if (!(caps[i] >= 0) || !isfinite(caps[i]))
            return nb_fail(NB_EINPUT, "%s: %s %g is not possible", where, keys[i], caps[i]);
    }
    if (!(scalar > 0) || !isfinite(scalar))
        return nb_fail(NB_EINPUT, "%s: query_pre_attn_scalar %g is not above 0", where, scalar);
    if (f->score_keys) {
        NB_TRY(nb_json_bool(c, "scale_attn_weights", &scaled, where));
        NB_TRY(nb_json_bool(c, "scale_attn_by_inverse_layer_idx", &s->scale_by_layer, where));
    }
    s->attn_scale = scaled ? (float)(1 / sqrt(scalar)) : 1;
    s->attn_softcap = (float)caps[0];
    s->logit_softcap = (float)caps[1];
    return NB_OK;
}

static nb_status read_config(nb_spec *s, json_t *c, const char *where) {
    const nb_family *f;
    if (!json_is_object(c)) return nb_fail(NB_EINPUT, "%s: should be a JSON object, not %s", where, nb_json_type(c));
    NB_TRY(read_family(s, &f, c, where));
    use_usual_names(c, f);
    NB_TRY(refuse_unknown_maths(c, f, where));
    NB_TRY(read_sizes(s, f, c, where));
    NB_TRY(read_windows(s, f, c, where));
    NB_TRY(read_flags(s, f, c, where));
    NB_TRY(read_experts(s, f, c, where));
    NB_TRY(read_act(s, f, c, where));
    NB_TRY(read_dtype(s, c, where));
    s->bos = first_id(c, "bos_token_id");
    s->eos = first_id(c, "eos_token_id");
    NB_TRY(nb_spec_check(s, where));
    NB_TRY(read_scores(s, f, c, where));
    for (int64_t l = 0; l < s->layers && s->learned_positions; l++) s->layer[l].rope = -1;
    return s->learned_positions ? NB_OK : nb_spec_read_rope(s, f, c, where);
}

static nb_status load_gguf(nb_spec *s, const char *path) {
    nb_gguf_model m;
    json_t *c = NULL;
    NB_TRY(nb_gguf_model_open(&m, path));
    nb_status st = nb_gguf_config(&c, &m);
    if (st == NB_OK) st = read_config(s, c, path);
    json_decref(c);
    nb_gguf_model_close(&m);
    return st;
}

nb_status nb_spec_load(nb_spec *s, const char *dir) {
    *s = (nb_spec){0};
    if (nb_gguf_is(dir)) return load_gguf(s, dir);
    char *path = nb_path_join(dir, "config.json");
    json_t *c = NULL;
    nb_status st = !nb_is_dir(dir) ? nb_fail(NB_EINPUT, "%s: is not a model folder", dir)
                   : !nb_file_exists(path)
                       ? nb_fail(NB_EINPUT, "%s: has no config.json; a Hugging Face model folder is wanted", dir)
                       : nb_json_load(path, &c);
    if (st == NB_OK) st = read_config(s, c, path);
    json_decref(c);
    free(path);
    return st;
}

nb_status nb_spec_check(const nb_spec *s, const char *where) {
    /* Limits far above any real model, and low enough that no product of sizes overflows. */
    const struct {
        const char *key;
        int64_t v, max;
    } sizes[] = {
        {"vocab_size", s->vocab, 1 << 24},         {"hidden_size", s->hidden, 1 << 20},
        {"intermediate_size", s->mlp_hidden, 1 << 22}, {"num_hidden_layers", s->layers, NB_MAX_LAYERS},
        {"num_attention_heads", s->heads, 1 << 14}, {"num_key_value_heads", s->kv_heads, 1 << 14},
        {"head_dim", s->head_dim, 1 << 13},        {"max_position_embeddings", s->context, 1 << 28},
    };
    for (int i = 0; i < NB_LEN(sizes); i++)
        if (sizes[i].v < 1 || sizes[i].v > sizes[i].max)
            return nb_fail(NB_EINPUT, "%s: \"%s\" is %lld; 1 to %lld is possible", where, sizes[i].key,
                           (long long)sizes[i].v, (long long)sizes[i].max);
    if (s->heads % s->kv_heads)
        return nb_fail(NB_EINPUT, "%s: num_attention_heads %lld is no multiple of num_key_value_heads %lld", where,
                       (long long)s->heads, (long long)s->kv_heads);
    if (s->head_dim % 2)
        return nb_fail(NB_EINPUT, "%s: head_dim %lld is odd; rotary positions need pairs", where,
                       (long long)s->head_dim);
    if (!(s->norm_eps >= 0 && s->norm_eps < 1))
        return nb_fail(NB_EINPUT, "%s: rms_norm_eps %g is not between 0 and 1", where, (double)s->norm_eps);
    if (!(s->init_std >= 0 && s->init_std < 100))
        return nb_fail(NB_EINPUT, "%s: initializer_range %g is not between 0 and 100", where, (double)s->init_std);
    return NB_OK;
}

bool nb_spec_linear_bias(const nb_spec *s, int slot) {
    if (nb_spec_stays_float(slot)) return false;
    return slot <= NB_V ? s->qkv_bias : slot == NB_O ? s->o_bias : s->mlp_bias;
}

/* With so many of the experts. */
static int64_t parameters(const nb_spec *s, int64_t experts) {
    int64_t vectors = s->bare_norm ? 0 : s->norm_kind == NB_NORM_LAYER ? 2 : 1, n = (s->tied ? 1 : 2) * s->vocab * s->hidden, rows, cols;
    if (s->learned_positions) n += s->context * s->hidden;
    for (nb_norm_slot k = 0; k < NB_NORMS; k++) n += s->layers * vectors * nb_spec_norm_size(s, k);
    for (int64_t l = 0; l < s->layers; l++)
        for (int k = 0; k < nb_spec_slots(s); k++) {
            if (k >= NB_SLOTS && (k - NB_SLOTS) % s->experts >= experts) continue;
            nb_spec_linear_shape(s, l, k, &rows, &cols);
            n += rows * cols + (nb_spec_linear_bias(s, k) ? rows : 0);
        }
    return n + vectors * s->hidden + (s->head_bias ? s->vocab : 0);
}

int64_t nb_spec_parameters(const nb_spec *s) { return parameters(s, s->experts); }
int64_t nb_spec_active_parameters(const nb_spec *s) { return parameters(s, s->top_k); }
