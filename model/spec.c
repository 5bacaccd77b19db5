#include "model/spec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/family.h"

/* Keys of other families' configs that change the result. A value that means "off" (absent, null, false, 0, empty)
 * or the neutral one passes; any other is refused. */
static const struct {
    const char *key;
    double neutral;
} refused[] = {
    {"clip_qkv", 0},           {"logit_scale", 1},        {"logits_scaling", 1},     {"embedding_multiplier", 1},
    {"residual_multiplier", 1}, {"attention_multiplier", 0}, {"use_qk_norm", 0},      {"qk_layernorm", 0},
    {"attn_logit_softcapping", 0}, {"final_logit_softcapping", 0}, {"query_pre_attn_scalar", 0},
    {"partial_rotary_factor", 1}, {"rotary_pct", 1},      {"no_rope_layers", 0},     {"num_experts", 1},
    {"num_local_experts", 1},  {"n_routed_experts", 1},   {"attention_chunk_size", 0}, {"qkv_bias", 0},
    {"lm_head_bias", 0},       {"use_parallel_residual", 0}, {"parallel_attn", 0},   {"scale_emb", 1},
    {"scale_depth", 0},        {"dim_model_base", 0},     {"use_mup", 0},            {"alibi", 0},
    {"logits_soft_cap", 0},    {"kv_lora_rank", 0},       {"norm_after", 0},
};

static const struct {
    const char *name;
    nb_act act;
} acts[] = {
    {"silu", NB_ACT_SILU},           {"swish", NB_ACT_SILU},         {"gelu_pytorch_tanh", NB_ACT_GELU_TANH},
    {"gelu_new", NB_ACT_GELU_TANH},  {"gelu", NB_ACT_GELU_ERF},      {"relu", NB_ACT_RELU},
};

static const struct {
    const char *name;
    nb_rope_kind kind;
} rope_kinds[] = {{"default", NB_ROPE_DEFAULT}, {"linear", NB_ROPE_LINEAR}, {"llama3", NB_ROPE_LLAMA3}};

const char *nb_rope_kind_name(nb_rope_kind k) { return rope_kinds[k].name; }

static bool is_off(const json_t *v, double neutral) {
    if (!v || json_is_null(v) || json_is_false(v)) return true;
    if (json_is_number(v)) return json_number_value(v) == 0 || json_number_value(v) == neutral;
    if (json_is_string(v)) return !*json_string_value(v);
    return (json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v));
}

static nb_status refuse_unknown_maths(const json_t *c, const char *where) {
    for (int i = 0; i < NB_LEN(refused); i++) {
        const json_t *v = json_object_get(c, refused[i].key);
        if (is_off(v, refused[i].neutral)) continue;
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

/* An integer key that must be there. */
static nb_status need_int(const json_t *c, const char *key, int64_t *out, const char *where) {
    const json_t *v = json_object_get(c, key);
    if (!v || json_is_null(v)) return nb_fail(NB_EINPUT, "%s: has no \"%s\"", where, key);
    return nb_json_int(c, key, out, where);
}

static nb_status read_sizes(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    NB_TRY(need_int(c, "vocab_size", &s->vocab, where));
    NB_TRY(need_int(c, "hidden_size", &s->hidden, where));
    NB_TRY(need_int(c, "intermediate_size", &s->mlp_hidden, where));
    NB_TRY(need_int(c, "num_hidden_layers", &s->layers, where));
    NB_TRY(need_int(c, "num_attention_heads", &s->heads, where));
    bool absent = !json_object_get(c, "num_key_value_heads");
    s->kv_heads = absent && f->kv_heads ? f->kv_heads : s->heads;
    NB_TRY(nb_json_int(c, "num_key_value_heads", &s->kv_heads, where));
    NB_TRY(nb_json_int(c, "head_dim", &s->head_dim, where));
    if (!s->head_dim) {
        if (s->heads <= 0 || s->hidden % s->heads)
            return nb_fail(NB_EINPUT, "%s: hidden_size %lld cannot be divided among num_attention_heads %lld, and "
                           "there is no head_dim", where, (long long)s->hidden, (long long)s->heads);
        s->head_dim = s->hidden / s->heads;
    }
    s->context = f->context;
    NB_TRY(nb_json_int(c, "max_position_embeddings", &s->context, where));
    const json_t *w = json_object_get(c, "sliding_window");
    s->window = !w ? f->window : 0; /* null: none */
    NB_TRY(nb_json_int(c, "sliding_window", &s->window, where));
    if (!f->has_window && s->window && s->window < s->context)
        return nb_fail(NB_EUNSUPPORTED, "%s: sliding_window %lld has no meaning for %s; set it to null", where,
                       (long long)s->window, f->architecture);
    if (!f->has_window) s->window = 0;
    return NB_OK;
}

/* `layer_types` may only repeat what the family does anyway: all layers alike. */
static nb_status read_layer_types(const nb_spec *s, const json_t *c, const char *where) {
    const json_t *types = json_object_get(c, "layer_types");
    const char *want = s->window ? "sliding_attention" : "full_attention";
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *t = json_string_value(json_array_get(types, i));
        if (!t || strcmp(t, want) != 0)
            return nb_fail(NB_EUNSUPPORTED, "%s: layer_types[%zu] is %.60s; nibble has all layers of this architecture "
                           "as \"%s\"", where, i, t ? t : "not text", want);
    }
    return NB_OK;
}

static nb_status rope_need(const json_t *d, const char *key, double *out, const char *kind, const char *where) {
    *out = 0;
    NB_TRY(nb_json_real(d, key, out, where));
    if (!(*out > 0) || !isfinite(*out))
        return nb_fail(NB_EINPUT, "%s: rope scaling \"%s\" needs a \"%s\" above 0", where, kind, key);
    return NB_OK;
}

static nb_status read_rope_scaling(nb_spec *s, const json_t *c, const json_t *d, const char *where) {
    const char *kind = "default";
    NB_TRY(nb_json_str(d, "type", &kind, where));
    NB_TRY(nb_json_str(d, "rope_type", &kind, where));
    int k = 0;
    while (k < NB_LEN(rope_kinds) && strcmp(kind, rope_kinds[k].name) != 0) k++;
    if (k == NB_LEN(rope_kinds))
        return nb_fail(NB_EUNSUPPORTED, "%s: rope scaling \"%.60s\" is not supported (supported: default, linear, "
                       "llama3)", where, kind);
    s->rope.kind = rope_kinds[k].kind;
    if (s->rope.kind == NB_ROPE_DEFAULT) return NB_OK;
    NB_TRY(rope_need(d, "factor", &s->rope.factor, kind, where));
    if (s->rope.kind != NB_ROPE_LLAMA3) return NB_OK;
    NB_TRY(rope_need(d, "low_freq_factor", &s->rope.low_freq_factor, kind, where));
    NB_TRY(rope_need(d, "high_freq_factor", &s->rope.high_freq_factor, kind, where));
    if (!(s->rope.high_freq_factor > s->rope.low_freq_factor))
        return nb_fail(NB_EINPUT, "%s: rope scaling: high_freq_factor must be above low_freq_factor", where);
    s->rope.original_context = s->context;
    NB_TRY(nb_json_int(d, "original_max_position_embeddings", &s->rope.original_context, where));
    return nb_json_int(c, "original_max_position_embeddings", &s->rope.original_context, where);
}

static nb_status read_rope(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    const json_t *d = either(c, "rope_parameters", "rope_scaling");
    s->rope = (nb_rope_spec){.theta = f->rope_theta, .factor = 1, .rot = (int)s->head_dim};
    NB_TRY(nb_json_real(c, "rope_theta", &s->rope.theta, where));
    if (!d || json_is_null(d)) return NB_OK;
    if (!json_is_object(d))
        return nb_fail(NB_EINPUT, "%s: rope scaling should be an object, not %s", where, nb_json_type(d));
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)d, key, v) if (json_is_object(v))
        return nb_fail(NB_EUNSUPPORTED, "%s: rope parameters that differ between layers (\"%.60s\") are not supported",
                       where, key);
    NB_TRY(nb_json_real(d, "rope_theta", &s->rope.theta, where));
    if (!is_off(json_object_get(d, "partial_rotary_factor"), 1))
        return nb_fail(NB_EUNSUPPORTED, "%s: partial_rotary_factor is not supported for %s", where, f->architecture);
    return read_rope_scaling(s, c, d, where);
}

static nb_status read_act(nb_spec *s, const json_t *c, const char *where) {
    const json_t *v = either(c, "hidden_act", "hidden_activation");
    if (!v || json_is_null(v)) return NB_OK; /* NB_ACT_SILU, every family's default */
    const char *name = json_string_value(v);
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

static nb_status read_config(nb_spec *s, const json_t *c, const char *where) {
    const nb_family *f;
    bool attention_bias = false;
    double eps, std = 0.02, dropout = 0;
    if (!json_is_object(c)) return nb_fail(NB_EINPUT, "%s: should be a JSON object, not %s", where, nb_json_type(c));
    NB_TRY(read_family(s, &f, c, where));
    NB_TRY(refuse_unknown_maths(c, where));
    NB_TRY(read_sizes(s, f, c, where));
    NB_TRY(read_layer_types(s, c, where));
    eps = f->norm_eps;
    s->tied = f->tied;
    s->embed_scale = 1;
    NB_TRY(nb_json_real(c, "rms_norm_eps", &eps, where));
    NB_TRY(nb_json_real(c, "initializer_range", &std, where));
    NB_TRY(nb_json_real(c, "attention_dropout", &dropout, where));
    NB_TRY(nb_json_bool(c, "tie_word_embeddings", &s->tied, where));
    NB_TRY(nb_json_bool(c, "attention_bias", &attention_bias, where));
    NB_TRY(nb_json_bool(c, "mlp_bias", &s->mlp_bias, where));
    s->qkv_bias = s->o_bias = attention_bias;
    s->norm_eps = (float)eps;
    s->init_std = (float)std;
    if (dropout != 0) nb_warn("%s: attention_dropout %g is not applied", where, dropout);
    NB_TRY(read_act(s, c, where));
    NB_TRY(read_rope(s, f, c, where));
    NB_TRY(read_dtype(s, c, where));
    s->bos = first_id(c, "bos_token_id");
    s->eos = first_id(c, "eos_token_id");
    NB_TRY(nb_spec_check(s, where));
    s->attn_scale = (float)(1 / sqrt((double)s->head_dim));
    return NB_OK;
}

nb_status nb_spec_load(nb_spec *s, const char *dir) {
    *s = (nb_spec){0};
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
        {"intermediate_size", s->mlp_hidden, 1 << 22}, {"num_hidden_layers", s->layers, 4096},
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
    if (s->window < 0) return nb_fail(NB_EINPUT, "%s: sliding_window %lld is negative", where, (long long)s->window);
    if (!(s->norm_eps >= 0 && s->norm_eps < 1))
        return nb_fail(NB_EINPUT, "%s: rms_norm_eps %g is not between 0 and 1", where, (double)s->norm_eps);
    if (!(s->init_std >= 0 && s->init_std < 100))
        return nb_fail(NB_EINPUT, "%s: initializer_range %g is not between 0 and 100", where, (double)s->init_std);
    if (!(s->rope.theta > 0) || !isfinite(s->rope.theta))
        return nb_fail(NB_EINPUT, "%s: rope_theta %g is not above 0", where, s->rope.theta);
    if (s->rope.kind == NB_ROPE_LLAMA3 && s->rope.original_context < 1)
        return nb_fail(NB_EINPUT, "%s: original_max_position_embeddings %lld is not above 0", where,
                       (long long)s->rope.original_context);
    return NB_OK;
}

/* llama3 leaves short wavelengths alone, divides long ones by the factor, and goes over smoothly in between. */
static double llama3_freq(const nb_rope_spec *r, double inv) {
    double wavelength = 2 * 3.14159265358979323846 / inv, context = (double)r->original_context;
    if (wavelength < context / r->high_freq_factor) return inv;
    if (wavelength > context / r->low_freq_factor) return inv / r->factor;
    double t = (context / wavelength - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (1 - t) * inv / r->factor + t * inv;
}

void nb_rope_inv_freq(const nb_rope_spec *r, double *inv_freq) {
    for (int j = 0; j < r->rot / 2; j++) {
        double inv = pow(r->theta, -2.0 * j / r->rot);
        inv_freq[j] = r->kind == NB_ROPE_LINEAR   ? inv / r->factor
                      : r->kind == NB_ROPE_LLAMA3 ? llama3_freq(r, inv)
                                                  : inv;
    }
}

void nb_spec_linear_shape(const nb_spec *s, nb_slot slot, int64_t *rows, int64_t *cols) {
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, C = s->hidden, F = s->mlp_hidden;
    const int64_t shape[NB_SLOTS][2] = {[NB_Q] = {q, C},    [NB_K] = {kv, C}, [NB_V] = {kv, C},  [NB_O] = {C, q},
                                        [NB_GATE] = {F, C}, [NB_UP] = {F, C}, [NB_DOWN] = {C, F}};
    *rows = shape[slot][0];
    *cols = shape[slot][1];
}

bool nb_spec_linear_bias(const nb_spec *s, nb_slot slot) {
    return slot <= NB_V ? s->qkv_bias : slot == NB_O ? s->o_bias : s->mlp_bias;
}

int64_t nb_spec_parameters(const nb_spec *s) {
    int64_t layer = NB_NORMS * s->hidden, rows, cols;
    for (nb_slot k = 0; k < NB_SLOTS; k++) {
        nb_spec_linear_shape(s, k, &rows, &cols);
        layer += rows * cols + (nb_spec_linear_bias(s, k) ? rows : 0);
    }
    return (s->tied ? 1 : 2) * s->vocab * s->hidden + s->layers * layer + s->hidden;
}
