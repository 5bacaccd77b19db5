/* Rotary positions: what config.json says of them, and the frequencies that follow. Formulas as transformers'
 * modeling_rope_utils computes them: linear, dynamic (NTK), YaRN (Peng et al., 2023), LongRoPE (Ding et al., 2024), llama3. */
#include <math.h>
#include <string.h>

#include "core/json.h"
#include "model/family.h"

static const double pi = 3.14159265358979323846;

static const struct {
    const char *name;
    nb_rope_kind kind;
} rope_kinds[] = {
    {"default", NB_ROPE_DEFAULT}, {"linear", NB_ROPE_LINEAR}, {"llama3", NB_ROPE_LLAMA3}, {"dynamic", NB_ROPE_DYNAMIC},
    {"yarn", NB_ROPE_YARN},       {"longrope", NB_ROPE_LONGROPE}, {"su", NB_ROPE_LONGROPE},
};

const char *nb_rope_kind_name(nb_rope_kind k) { return rope_kinds[k].name; }

/* ---- reading ---- */

static nb_status need(const json_t *d, const char *key, double *out, const char *kind, const char *where) {
    *out = 0;
    NB_TRY(nb_json_real(d, key, out, where));
    if (!(*out > 0) || !isfinite(*out))
        return nb_fail(NB_EINPUT, "%s: rope scaling \"%s\" needs a \"%s\" above 0", where, kind, key);
    return NB_OK;
}

static nb_status read_llama3(nb_rope_spec *r, const json_t *d, const char *where) {
    NB_TRY(need(d, "low_freq_factor", &r->low_freq_factor, "llama3", where));
    NB_TRY(need(d, "high_freq_factor", &r->high_freq_factor, "llama3", where));
    if (!(r->high_freq_factor > r->low_freq_factor))
        return nb_fail(NB_EINPUT, "%s: rope scaling: high_freq_factor must be above low_freq_factor", where);
    return NB_OK;
}

/* The temperature of YaRN's softmax, as a factor of cos and sin. */
static double mscale(double factor, double m) { return factor <= 1 ? 1 : 0.1 * m * log(factor) + 1; }

static nb_status read_yarn(nb_rope_spec *r, const json_t *d, const char *where) {
    double m = 0, all = 0, attention = 0;
    r->beta_fast = 32, r->beta_slow = 1, r->truncate = true;
    NB_TRY(nb_json_real(d, "beta_fast", &r->beta_fast, where));
    NB_TRY(nb_json_real(d, "beta_slow", &r->beta_slow, where));
    NB_TRY(nb_json_bool(d, "truncate", &r->truncate, where));
    NB_TRY(nb_json_real(d, "mscale", &m, where));
    NB_TRY(nb_json_real(d, "mscale_all_dim", &all, where));
    NB_TRY(nb_json_real(d, "attention_factor", &attention, where));
    if (!(r->beta_fast > r->beta_slow) || !(r->beta_slow > 0))
        return nb_fail(NB_EINPUT, "%s: rope scaling \"yarn\": beta_fast %g must be above beta_slow %g, both above 0", where,
                       r->beta_fast, r->beta_slow);
    r->attention = attention > 0 ? attention : m != 0 && all != 0 ? mscale(r->factor, m) / mscale(r->factor, all)
                                                                  : mscale(r->factor, 1);
    return NB_OK;
}

static nb_status read_longrope(nb_rope_spec *r, const json_t *d, int64_t context, const char *where) {
    static const char *const keys[2] = {"short_factor", "long_factor"};
    double attention = 0, factor = (double)context / (double)r->original_context;
    for (int k = 0; k < 2; k++) {
        const json_t *list = json_object_get(d, keys[k]);
        if (!json_is_array(list) || json_array_size(list) != (size_t)(r->rot / 2))
            return nb_fail(NB_EINPUT, "%s: rope scaling \"longrope\": %s should be a list of %d numbers", where, keys[k],
                           r->rot / 2);
        for (int j = 0; j < r->rot / 2; j++) {
            double v = json_number_value(json_array_get(list, (size_t)j));
            if (!(v > 0) || !isfinite(v))
                return nb_fail(NB_EINPUT, "%s: rope scaling: %s[%d] is not above 0", where, keys[k], j);
            r->factors[k][j] = (float)v;
        }
    }
    NB_TRY(nb_json_real(d, "factor", &factor, where));
    NB_TRY(nb_json_real(d, "attention_factor", &attention, where));
    r->factor = factor;
    r->attention = attention > 0 ? attention
                   : factor <= 1 ? 1
                                 : sqrt(1 + log(factor) / log((double)r->original_context));
    return NB_OK;
}

static nb_status read_kind(nb_rope_spec *r, const nb_family *f, const json_t *d, const char **kind, const char *where) {
    *kind = "default";
    NB_TRY(nb_json_str(d, "type", kind, where));
    NB_TRY(nb_json_str(d, "rope_type", kind, where));
    int k = 0;
    while (k < NB_LEN(rope_kinds) && strcmp(*kind, rope_kinds[k].name) != 0) k++;
    if (k == NB_LEN(rope_kinds))
        return nb_fail(NB_EUNSUPPORTED, "%s: rope scaling \"%.60s\" is not supported (supported: default, linear, dynamic, "
                       "llama3, yarn, longrope)", where, *kind);
    r->kind = rope_kinds[k].kind;
    /* Phi-3's first files say yarn and mean longrope. */
    if (!strcmp(f->model_type, "phi3") && r->kind == NB_ROPE_YARN) r->kind = NB_ROPE_LONGROPE;
    return NB_OK;
}

/* One set of parameters: config.json's, or those of a kind of layers. */
static nb_status read_one(nb_rope_spec *r, const nb_spec *s, const nb_family *f, const json_t *c, const json_t *d,
                          const char *where) {
    const char *kind;
    NB_TRY(nb_json_real(d, "rope_theta", &r->theta, where));
    NB_TRY(read_kind(r, f, d, &kind, where));
    if (r->kind == NB_ROPE_DEFAULT) return NB_OK;
    r->original_context = s->context;
    NB_TRY(nb_json_int(d, "original_max_position_embeddings", &r->original_context, where));
    if (r->kind != NB_ROPE_DYNAMIC) NB_TRY(nb_json_int(c, "original_max_position_embeddings", &r->original_context, where));
    if (r->original_context < 1)
        return nb_fail(NB_EINPUT, "%s: original_max_position_embeddings %lld is not above 0", where,
                       (long long)r->original_context);
    if (r->kind == NB_ROPE_LONGROPE) return read_longrope(r, d, s->context, where);
    NB_TRY(need(d, "factor", &r->factor, kind, where));
    if (r->kind == NB_ROPE_LLAMA3) return read_llama3(r, d, where);
    return r->kind == NB_ROPE_YARN ? read_yarn(r, d, where) : NB_OK;
}

static nb_status read_partial(nb_spec *s, const nb_family *f, const json_t *c, const json_t *d, const char *where) {
    double partial = f->partial > 0 ? f->partial : 1;
    NB_TRY(nb_json_real(c, f->partial_key ? f->partial_key : "partial_rotary_factor", &partial, where));
    if (json_is_object(d)) NB_TRY(nb_json_real(d, "partial_rotary_factor", &partial, where));
    if (partial != 1 && !(f->partial > 0))
        return nb_fail(NB_EUNSUPPORTED, "%s: partial_rotary_factor is not supported for %s", where, f->architecture);
    int rot = (int)((double)s->head_dim * partial);
    if (!(partial > 0 && partial <= 1) || rot < 2 || rot % 2 || rot > NB_MAX_ROT)
        return nb_fail(NB_EINPUT, "%s: partial_rotary_factor %g of head_dim %lld gives %d rotated dims; 2 to %d, an even "
                       "number, is possible", where, partial, (long long)s->head_dim, rot, NB_MAX_ROT);
    s->rope[0].rot = rot;
    return NB_OK;
}

/* no_rope_layers[i] is 1 where layer i has positions. */
static nb_status read_no_rope(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    int64_t every = f->no_rope_interval;
    const json_t *list = json_object_get(c, "no_rope_layers");
    NB_TRY(nb_json_int(c, "no_rope_layer_interval", &every, where));
    if (json_is_array(list) && json_array_size(list) != (size_t)s->layers)
        return nb_fail(NB_EINPUT, "%s: no_rope_layers has %zu entries for %lld layers", where, json_array_size(list),
                       (long long)s->layers);
    for (int64_t l = 0; l < s->layers; l++) {
        bool has = json_is_array(list) ? json_integer_value(json_array_get(list, (size_t)l)) != 0
                                       : every < 1 || (l + 1) % every != 0;
        if (!has) s->layer[l].rope = -1;
    }
    return NB_OK;
}

nb_status nb_spec_read_rope(nb_spec *s, const nb_family *f, const json_t *c, const char *where) {
    const json_t *d = json_object_get(c, "rope_parameters"), *local = NULL;
    if (!d || json_is_null(d)) d = json_object_get(c, "rope_scaling");
    if (d && json_is_null(d)) d = NULL;
    if (d && !json_is_object(d))
        return nb_fail(NB_EINPUT, "%s: rope scaling should be an object, not %s", where, nb_json_type(d));
    nb_rope_spec *r = &s->rope[0];
    *r = (nb_rope_spec){.theta = f->rope_theta, .factor = 1, .attention = 1, .rot = (int)s->head_dim};
    NB_TRY(nb_json_real(c, f->theta_key ? f->theta_key : "rope_theta", &r->theta, where));
    if (json_is_object(json_object_get(d, "full_attention"))) { /* by kinds of layers */
        local = json_object_get(d, "sliding_attention");
        d = json_object_get(d, "full_attention");
        if (!(f->local_theta > 0) || json_object_size(json_object_get(c, "rope_parameters")) > 2)
            return nb_fail(NB_EUNSUPPORTED, "%s: rope parameters that differ between layers (\"full_attention\", ...) are "
                           "not supported for %s", where, f->architecture);
    }
    NB_TRY(read_partial(s, f, c, d, where));
    s->rope[1] = *r;
    if (d) NB_TRY(read_one(r, s, f, c, d, where));
    if (f->local_theta > 0) {
        s->rope[1].theta = f->local_theta;
        NB_TRY(nb_json_real(c, "rope_local_base_freq", &s->rope[1].theta, where));
        if (local) NB_TRY(read_one(&s->rope[1], s, f, c, local, where));
        for (int64_t l = 0; l < s->layers; l++) s->layer[l].rope = s->layer[l].window ? 1 : 0;
    }
    if (f->no_rope_interval) NB_TRY(read_no_rope(s, f, c, where));
    for (int i = 0; i < 2; i++)
        if (!(s->rope[i].theta > 0) || !isfinite(s->rope[i].theta))
            return nb_fail(NB_EINPUT, "%s: rope_theta %g is not above 0", where, s->rope[i].theta);
    return NB_OK;
}

/* ---- frequencies ---- */

/* llama3 leaves short wavelengths alone, divides long ones by the factor, and goes over smoothly in between. */
static double llama3_freq(const nb_rope_spec *r, double inv) {
    double wavelength = 2 * pi / inv, context = (double)r->original_context;
    if (wavelength < context / r->high_freq_factor) return inv;
    if (wavelength > context / r->low_freq_factor) return inv / r->factor;
    double t = (context / wavelength - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (1 - t) * inv / r->factor + t * inv;
}

/* The dim whose wavelength fits `turns` times into the original context. */
static double yarn_dim(const nb_rope_spec *r, double turns) {
    return r->rot * log((double)r->original_context / (turns * 2 * pi)) / (2 * log(r->theta));
}

/* Dims below the ramp keep their frequency, those above it have it divided by the factor. */
static double yarn_freq(const nb_rope_spec *r, double inv, int j) {
    double low = yarn_dim(r, r->beta_fast), high = yarn_dim(r, r->beta_slow);
    if (r->truncate) low = floor(low), high = ceil(high);
    if (low < 0) low = 0;
    if (high > r->rot - 1) high = r->rot - 1;
    if (low == high) high += 0.001;
    double ramp = (j - low) / (high - low);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return inv / r->factor * ramp + inv * (1 - ramp);
}

/* Beyond the context it was trained for, the base grows with the length. */
static double dynamic_theta(const nb_rope_spec *r, int64_t length) {
    double context = (double)r->original_context, n = (double)length > context ? (double)length : context;
    return r->theta * pow(r->factor * n / context - (r->factor - 1), (double)r->rot / (r->rot - 2));
}

void nb_rope_inv_freq(const nb_rope_spec *r, int64_t length, double *inv_freq) {
    double theta = r->kind == NB_ROPE_DYNAMIC && r->rot > 2 ? dynamic_theta(r, length) : r->theta;
    const float *factors = r->factors[length > r->original_context];
    for (int j = 0; j < r->rot / 2; j++) {
        double inv = pow(theta, -2.0 * j / r->rot);
        inv_freq[j] = r->kind == NB_ROPE_LINEAR     ? inv / r->factor
                      : r->kind == NB_ROPE_LLAMA3   ? llama3_freq(r, inv)
                      : r->kind == NB_ROPE_YARN     ? yarn_freq(r, inv, j)
                      : r->kind == NB_ROPE_LONGROPE ? inv / (double)factors[j]
                                                    : inv;
    }
}
