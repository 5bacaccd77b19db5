/* Names and keys as llama.cpp's convert_hf_to_gguf.py writes them. */
#include "model/gguf_map.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "core/mem.h"
#include "model/weights.h"

/* A name stands for its first row when a file is read: Mistral without a window computes what Llama does. */
static const nb_gguf_family families[] = {
    {"llama", "llama", .interleaved = true, .biases = true, .any_rope = true},
    {"mistral", "llama", .interleaved = true, .biases = true, .any_rope = true},
    {"qwen2", "qwen2", .biases = true},
    {"qwen3", "qwen3"},
    {"gemma", "gemma", .act = NB_ACT_GELU_TANH, .tied = true},
    {"gemma2", "gemma2", .act = NB_ACT_GELU_TANH, .pattern = 2, .window_key = true, .scale_layers = 46,
     .tied = true},
    {"gemma3_text", "gemma3", .act = NB_ACT_GELU_TANH, .pattern = 6, .window_key = true, .scale_layers = 62},
    {"phi3", "phi3", .window_key = true, .any_rope = true},
    {"phi", "phi2", .biases = true, .act = NB_ACT_GELU_TANH},
    {"olmo", "olmo", .interleaved = true},
    {"olmo2", "olmo2"},
    {"smollm3", "smollm3", .interleaved = true, .no_rope = 4},
    {"gpt2", "gpt2", .biases = true, .act = NB_ACT_GELU_TANH},
};

static const nb_gguf_family *arch_of(const nb_spec *s) {
    for (int i = 0; i < NB_LEN(families); i++)
        if (!strcmp(families[i].family, s->family)) return &families[i];
    return NULL;
}

const nb_gguf_family *nb_gguf_family_find(const char *arch) {
    for (int i = 0; i < NB_LEN(families); i++)
        if (!strcmp(families[i].name, arch)) return &families[i];
    return NULL;
}

char *nb_gguf_families_text(void) {
    nb_text t = {0};
    for (int i = 0; i < NB_LEN(families); i++)
        if (!i || strcmp(families[i].name, families[i - 1].name) != 0)
            nb_text_printf(&t, "%s%s", i ? ", " : "", families[i].name);
    return t.s;
}

const char *nb_gguf_arch(const nb_spec *s) { return arch_of(s) ? arch_of(s)->name : NULL; }

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

nb_status nb_gguf_check(const nb_spec *s, const char *where) {
    const nb_gguf_family *a = arch_of(s);
    if (!a) return nb_fail(NB_EUNSUPPORTED, "%s: %s cannot be written as GGUF", where, s->architecture);
    if (s->act != a->act)
        return nb_fail(NB_EUNSUPPORTED, "%s: hidden_act: llama.cpp's %s has another activation", where, a->name);
    if (!scale_is_known(s, a))
        return nb_fail(NB_EUNSUPPORTED, "%s: %s: llama.cpp's %s scales attention by head_dim^-0.5", where,
                       s->learned_positions ? "scale_attn_weights, scale_attn_by_inverse_layer_idx"
                                            : "query_pre_attn_scalar", a->name);
    if (a->tied && !s->tied)
        return nb_fail(NB_EUNSUPPORTED, "%s: tie_word_embeddings: llama.cpp's %s has no output head of its own", where,
                       a->name);
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

void nb_gguf_put_spec(nb_gguf_writer *w, const nb_spec *s) {
    const nb_gguf_family *a = arch_of(s);
    NB_ASSERT(a);
    keys k = {.w = w, .arch = a->name};
    for (int i = 0; i < NB_GGUF_SIZES; i++) {
        const nb_gguf_size *z = &nb_gguf_sizes[i];
        put_int(&k, z->key, *(const int64_t *)((const char *)s + z->at));
    }
    put_real(&k, s->norm_kind == NB_NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
             s->norm_eps);
    if (s->clip_qkv > 0) put_real(&k, "attention.clamp_kqv", s->clip_qkv);
    if (a->window_key) put_int(&k, "attention.sliding_window", s->window);
    if (s->attn_softcap > 0) put_real(&k, "attn_logit_softcapping", s->attn_softcap);
    if (s->logit_softcap > 0) put_real(&k, "final_logit_softcapping", s->logit_softcap);
    if (!s->learned_positions) put_rope(&k, s);
}

/* ---- tensors ---- */

const char *const nb_gguf_linear_names[NB_SLOTS] = {
    [NB_QKV] = "attn_qkv", [NB_Q] = "attn_q", [NB_K] = "attn_k", [NB_V] = "attn_v", [NB_O] = "attn_output",
    [NB_GATE_UP] = "ffn_up", [NB_GATE] = "ffn_gate", [NB_UP] = "ffn_up", [NB_DOWN] = "ffn_down",
};
const char *const nb_gguf_norm_names[NB_NORMS] = {
    [NB_NORM1] = "attn_norm", [NB_POST_NORM1] = "post_attention_norm", [NB_NORM2] = "ffn_norm",
    [NB_POST_NORM2] = "post_ffw_norm", [NB_Q_NORM] = "attn_q_norm", [NB_K_NORM] = "attn_k_norm",
};

int64_t nb_gguf_heads(const nb_spec *s, nb_slot slot) {
    if (!arch_of(s)->interleaved) return 0;
    return slot == NB_Q ? s->heads : slot == NB_K ? s->kv_heads : 0;
}

int64_t nb_gguf_row(int64_t r, int64_t rows, int64_t heads) {
    if (!heads) return r;
    int64_t D = rows / heads, head = r / D, j = r % D / 2, t = r % 2;
    return head * D + t * (D / 2) + j;
}

bool nb_gguf_linear(const nb_spec *s, const char *module, char *name, int64_t *heads) {
    *heads = 0;
    if (!strcmp(module, nb_spec_head_name(s))) return strcpy(name, "output"), true;
    for (int64_t l = 0; l < s->layers; l++)
        for (int k = 0; k < NB_SLOTS; k++) {
            char *path = nb_spec_linear_name(s, l, k);
            bool same = path && !strcmp(path, module);
            free(path);
            if (!same) continue;
            snprintf(name, NB_GGUF_MAX_NAME + 1, "blk.%lld.%s", (long long)l, nb_gguf_linear_names[k]);
            *heads = nb_gguf_heads(s, k);
            return true;
        }
    return false;
}

typedef struct maker {
    nb_gguf_plan *p;
    const nb_spec *s;
    const nb_st *st;
    bool *used; /* [st->n_tensors] */
} maker;

static nb_gguf_item *add_item(nb_gguf_plan *p, const char *name, int n_dims, int64_t rows, int64_t cols) {
    NB_GROW(p->items, p->n, p->cap);
    nb_gguf_item *it = &p->items[p->n++];
    *it = (nb_gguf_item){.n_dims = n_dims, .rows = rows, .cols = cols};
    snprintf(it->name, sizeof it->name, "%s", name);
    return it;
}

static const char positions[] = "position_embd";

/* HF's MODULE.weight (or .bias) as NAME.weight; cols 0: a vector. Absent is an error unless it may be. */
static nb_status take(maker *m, const char *module, const char *name, const char *suffix, int64_t rows, int64_t cols,
                      bool may_lack, nb_gguf_item **out) {
    char *from = nb_asprintf("%s.%s", module, suffix), *to = nb_asprintf("%s.%s", name, suffix);
    const nb_st_tensor *t = nb_st_find(m->st, from);
    bool turned = cols && m->s->stored_transposed && !strncmp(name, "blk.", 4);
    int64_t d0 = turned ? cols : rows, d1 = turned ? rows : cols;
    nb_status st = NB_OK;
    *out = NULL;
    if (!t && !may_lack) st = nb_fail(NB_EINPUT, "%s: there is no tensor \"%s\"", m->st->files[0].path, from);
    if (t && t->dtype != NB_F32 && t->dtype != NB_BF16 && t->dtype != NB_F16)
        st = nb_fail(NB_EUNSUPPORTED, "%s is stored as %s: only float weights can be exported. For a base in 4 bits, "
                     "export the model it was quantized from", from, nb_dtype_name(t->dtype));
    else if (t && (t->n_dims != (cols ? 2 : 1) || t->d[0] != d0 || (cols && t->d[1] != d1)))
        st = nb_fail(NB_EINPUT, "%s does not have the shape that config.json says", from);
    if (t && st == NB_OK) {
        m->used[t - m->st->tensors] = true;
        *out = add_item(m->p, to, cols ? 2 : 1, rows, cols ? cols : 1);
        (*out)->from = t;
        (*out)->turned = turned;
    }
    free(from), free(to);
    return st;
}

static nb_status take_norm(maker *m, const char *module, const char *name, int64_t n) {
    nb_gguf_item *it;
    NB_TRY(take(m, module, name, "weight", n, 0, false, &it));
    it->add = m->s->norm_offset;
    return take(m, module, name, "bias", n, 0, m->s->norm_kind == NB_NORM_RMS, &it);
}

static nb_status take_linear(maker *m, const char *module, const char *name, int64_t rows, int64_t cols,
                             int64_t heads) {
    nb_gguf_item *it;
    NB_TRY(take(m, module, name, "weight", rows, cols, false, &it));
    it->heads = heads;
    NB_TRY(take(m, module, name, "bias", rows, 0, true, &it));
    if (!it) return NB_OK;
    it->heads = heads;
    if (arch_of(m->s)->biases) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s.bias: llama.cpp's %s has no such bias", module, nb_gguf_arch(m->s));
}

static nb_status take_layer(maker *m, int64_t l) {
    char name[64];
    for (int k = 0; k < NB_NORMS; k++) {
        char *module = nb_spec_norm_name(m->s, l, k);
        nb_status st = NB_OK;
        snprintf(name, sizeof name, "blk.%lld.%s", (long long)l, nb_gguf_norm_names[k]);
        if (module && !m->s->bare_norm) st = take_norm(m, module, name, nb_spec_norm_size(m->s, k));
        free(module);
        NB_TRY(st);
    }
    for (int k = 0; k < NB_SLOTS; k++) {
        int64_t rows, cols;
        char *module = nb_spec_linear_name(m->s, l, k);
        nb_status st = NB_OK;
        nb_spec_linear_shape(m->s, l, k, &rows, &cols);
        snprintf(name, sizeof name, "blk.%lld.%s", (long long)l, nb_gguf_linear_names[k]);
        if (module) st = take_linear(m, module, name, rows, cols, nb_gguf_heads(m->s, k));
        free(module);
        NB_TRY(st);
    }
    return NB_OK;
}

/* llama.cpp divides the frequency of each pair of dims by a factor. */
static void add_rope(nb_gguf_plan *p, const nb_spec *s) {
    const nb_rope_spec *r = &s->rope[0];
    int n = r->rot / 2;
    if (r->kind == NB_ROPE_LLAMA3) {
        double plain[NB_MAX_ROT / 2], scaled[NB_MAX_ROT / 2];
        nb_rope_spec without = *r;
        without.kind = NB_ROPE_DEFAULT;
        nb_rope_inv_freq(&without, s->context, plain);
        nb_rope_inv_freq(r, s->context, scaled);
        nb_gguf_item *it = add_item(p, "rope_freqs.weight", 1, n, 1);
        it->values = nb_calloc((size_t)n, sizeof *it->values);
        for (int i = 0; i < n; i++) it->values[i] = (float)(plain[i] / scaled[i]);
    }
    for (int k = 0; k < 2 && r->kind == NB_ROPE_LONGROPE; k++) {
        nb_gguf_item *it = add_item(p, k ? "rope_factors_long.weight" : "rope_factors_short.weight", 1, n, 1);
        it->values = nb_calloc((size_t)n, sizeof *it->values);
        memcpy(it->values, r->factors[k], (size_t)n * sizeof *it->values);
    }
}

/* What transformers does not read either may be left out: derived tables, and the copy of a tied head. */
static nb_status check_unused(const maker *m) {
    for (int i = 0; i < m->st->n_tensors; i++) {
        const char *name = m->st->tensors[i].name;
        size_t head = strlen(nb_spec_head_name(m->s));
        bool of_head = !strncmp(name, nb_spec_head_name(m->s), head) && !strcmp(name + head, ".weight");
        if (m->used[i] || nb_base_is_derived(&m->st->tensors[i]) || (of_head && m->s->tied)) continue;
        return nb_fail(NB_EUNSUPPORTED, "%s: \"%s\" has no place in GGUF's %s",
                       m->st->files[m->st->tensors[i].shard].path, name, nb_gguf_arch(m->s));
    }
    return NB_OK;
}

nb_status nb_gguf_plan_make(nb_gguf_plan *p, const nb_spec *s, const nb_st *st) {
    nb_gguf_item *it;
    *p = (nb_gguf_plan){0};
    maker m = {p, s, st, nb_calloc((size_t)st->n_tensors + 1, sizeof *m.used)};
    nb_status ok;
    add_rope(p, s);
    NB_GO(ok, take(&m, nb_spec_embed_name(s), "token_embd", "weight", s->vocab, s->hidden, false, &it), done);
    if (s->learned_positions)
        NB_GO(ok, take(&m, nb_spec_positions_name(s), positions, "weight", s->context, s->hidden, false, &it), done);
    for (int64_t l = 0; l < s->layers; l++) NB_GO(ok, take_layer(&m, l), done);
    if (!s->bare_norm) NB_GO(ok, take_norm(&m, nb_spec_final_norm_name(s), "output_norm", s->hidden), done);
    if (!s->tied) NB_GO(ok, take_linear(&m, nb_spec_head_name(s), "output", s->vocab, s->hidden, 0), done);
    for (int i = 0; i < p->n; i++) p->items[i].part = nb_gguf_part_of(p->items[i].name, s->layers, s->tied);
    ok = check_unused(&m);
done:
    free(m.used);
    if (ok != NB_OK) nb_gguf_plan_free(p);
    return ok;
}

void nb_gguf_plan_free(nb_gguf_plan *p) {
    for (int i = 0; i < p->n; i++) free(p->items[i].values);
    free(p->items);
    *p = (nb_gguf_plan){0};
}

void nb_gguf_item_read(const nb_gguf_item *it, float *out, int64_t first, int64_t n) {
    if (it->values) memcpy(out, it->values + first * it->cols, (size_t)(n * it->cols) * sizeof *out);
    else if (it->turned) nb_st_read_columns_f32(it->from, out, first, n);
    else if (!it->heads) nb_st_read_f32(it->from, out, first * it->cols, n * it->cols);
    else
        for (int64_t i = 0; i < n; i++)
            nb_st_read_f32(it->from, out + i * it->cols, nb_gguf_row(first + i, it->rows, it->heads) * it->cols,
                           it->cols);
    if (it->add != 0)
        for (int64_t i = 0; i < n * it->cols; i++) out[i] += it->add;
}
