/* Which layers get an adapter, its parameters in one flat buffer, and switching it off and on. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"

/* ---- parameters ---- */

enum { PARAM_ALIGN = 64 }; /* floats: every parameter starts on a 256-byte boundary */

static int64_t room_of(const nb_tensor *p) { return (nb_tensor_size(p) + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN; }

nb_tensor *nb_adapter_param(nb_adapter *a, char *name, int n_dims, int64_t d0, int64_t d1) {
    NB_ASSERT(a->n_params < a->cap_params); /* tensors are pointed to: the array never moves */
    nb_tensor *p = &a->params[a->n_params++];
    *p = nb_leaf(name, NULL, NULL, n_dims, d0, d1);
    a->n += room_of(p);
    return p;
}

nb_adapter *nb_adapter_alloc(nb_model *m, int max_params) {
    nb_adapter *a = NB_NEW(nb_adapter);
    a->model = m;
    a->dev = m->dev;
    a->cap_params = max_params;
    a->params = nb_calloc((size_t)max_params, sizeof *a->params);
    a->turned = nb_calloc((size_t)max_params, sizeof *a->turned);
    a->attached = nb_calloc((size_t)max_params, sizeof *a->attached);
    return a;
}

static nb_status place_row_ids(nb_adapter *a) {
    size_t bytes = (size_t)a->rows.n * sizeof *a->rows.ids;
    a->rows.ids_on_device = a->rows.ids;
    if (!a->rows.n || a->dev->be->host_memory) return NB_OK;
    NB_TRY(a->dev->be->alloc(a->dev, (void **)&a->rows.ids_on_device, bytes, "the adapter's token ids"));
    return a->dev->be->put(a->dev, a->rows.ids_on_device, a->rows.ids, bytes);
}

/* The A's of linear layers come first, in the layers' order, so that those over one input lie one behind the other and one
 * product makes x A^T of them all (autograd/linear_rows.h). */
static void lay_out(nb_adapter *a, bool trainable) {
    bool *first = nb_calloc((size_t)a->n_params + 1, sizeof *first);
    int64_t at = 0;
    for (int i = 0; i < a->n_attached; i++)
        if (a->attached[i].lin) first[a->attached[i].A - a->params] = true;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < a->n_params; i++) {
            nb_tensor *p = &a->params[i];
            if (first[i] != (pass == 0)) continue;
            p->data = a->data + at;
            p->grad = trainable ? a->grad + at : NULL;
            p->needs_grad = trainable;
            at += room_of(p);
        }
    free(first);
}

nb_status nb_adapter_place(nb_adapter *a, bool trainable) {
    size_t bytes = (size_t)a->n * sizeof(float);
    NB_TRY(a->dev->be->alloc(a->dev, (void **)&a->data, bytes, "the adapter"));
    if (trainable) NB_TRY(a->dev->be->alloc(a->dev, (void **)&a->grad, bytes, "the adapter's gradients"));
    NB_TRY(place_row_ids(a));
    lay_out(a, trainable);
    return NB_OK;
}

/* ---- choosing layers ---- */

typedef struct chooser {
    const nb_model *m;
    const nb_lora_options *o;
    pcre2_code *re;
    pcre2_match_data *match;
    nb_linear **chosen;
    int n, cap;
    bool *used; /* per target */
} chooser;

static bool ends_with_module(const char *path, const char *target) {
    size_t n = strlen(path), m = strlen(target);
    return n >= m && !strcmp(path + n - m, target) && (n == m || path[n - m - 1] == '.');
}

static bool is_in_layers(const nb_lora_options *o, int64_t layer) {
    bool in = !o->layers;
    for (int i = 0; i < o->n_layers && !in; i++) in = o->layers[i] == layer;
    return in;
}

/* lin NULL: the embedding. layer -1: in none. */
static void choose_module(chooser *c, const char *path, nb_linear *lin, int64_t layer) {
    const nb_lora_options *o = c->o;
    bool yes = false;
    if (!is_in_layers(o, layer)) return;
    if (o->pattern) {
        yes = pcre2_match(c->re, (PCRE2_SPTR)path, strlen(path), 0, 0, c->match, NULL) >= 0;
    } else if (o->n_targets) {
        for (int i = 0; i < o->n_targets; i++)
            if (ends_with_module(path, o->targets[i])) yes = c->used[i] = true;
    } else {
        /* all-linear: every linear layer but the output head, as PEFT, and but a mixture's routers, which are named if
         * they are wanted */
        yes = layer >= 0 && !nb_spec_stays_float((int)(lin - c->m->block[layer].lin));
    }
    if (!yes || nb_saves_module(o->save, o->n_save, path, NULL)) return;
    NB_GROW(c->chosen, c->n, c->cap);
    c->chosen[c->n++] = lin;
}

static void choose(nb_linear *lin, int64_t layer, void *arg) { choose_module(arg, lin->base->name, lin, layer); }

static nb_status compile_pattern(chooser *c) {
    int err;
    PCRE2_SIZE at;
    c->re = pcre2_compile((PCRE2_SPTR)c->o->pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_ENDANCHORED, &err,
                          &at, NULL);
    if (!c->re) {
        PCRE2_UCHAR why[128];
        pcre2_get_error_message(err, why, sizeof why);
        return nb_fail(NB_EINPUT, "lora_target_modules: \"%s\" is not a regular expression (at character %zu: %s)",
                       c->o->pattern, (size_t)at + 1, (const char *)why);
    }
    c->match = pcre2_match_data_create_from_pattern(c->re, NULL);
    return NB_OK;
}

static nb_status choose_layers(nb_model *m, chooser *c) {
    const nb_lora_options *o = c->o;
    if (o->pattern) NB_TRY(compile_pattern(c));
    c->used = nb_calloc((size_t)o->n_targets + 1, sizeof *c->used);
    choose_module(c, nb_spec_embed_name(m->spec), NULL, -1);
    nb_model_each_linear(m, true, choose, c);
    for (int i = 0; i < o->n_targets; i++)
        if (!c->used[i])
            return nb_fail(NB_EINPUT, "lora_target_modules: nothing is called \"%s\"; names look like \"%s\", \"%s\"",
                           o->targets[i], m->block[0].lin[NB_O].base->name, nb_spec_embed_name(m->spec));
    if (!c->n)
        return nb_fail(NB_EINPUT, "lora_target_modules \"%s\" matches no linear layer; names look like \"%s\"",
                       o->pattern ? o->pattern : "", m->block[0].lin[NB_O].base->name);
    return NB_OK;
}

static void free_chooser(chooser *c) {
    pcre2_match_data_free(c->match);
    pcre2_code_free(c->re);
    free(c->chosen);
    free(c->used);
}

/* ---- attaching ---- */

static double lora_scale(double alpha, int64_t r, bool rslora) {
    return rslora ? alpha / sqrt((double)r) : alpha / (double)r;
}

static int by_text(const void *x, const void *y) { return strcmp(*(char *const *)x, *(char *const *)y); }

static const char *last_of(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

/* Modules of the model, by the last component of their names. */
typedef struct census {
    const char **names;
    int *there, *adapted; /* of each name: modules, and those with an adapter */
    int n, cap;
} census;

static int entry(census *c, const char *path) {
    const char *name = last_of(path);
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->names[i], name)) return i;
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 32;
        c->names = nb_realloc(c->names, (size_t)c->cap, sizeof *c->names);
        c->there = nb_realloc(c->there, (size_t)c->cap, sizeof *c->there);
        c->adapted = nb_realloc(c->adapted, (size_t)c->cap, sizeof *c->adapted);
    }
    c->names[c->n] = name;
    c->there[c->n] = c->adapted[c->n] = 0;
    return c->n++;
}

static void count_module(nb_linear *lin, int64_t layer, void *arg) {
    census *c = arg;
    (void)layer;
    int k = entry(c, lin->base->name); /* may move the arrays */
    c->there[k]++;
}

/* target_modules as PEFT wants them: the last component where every module of that name is adapted, else whole
 * paths. */
static void name_targets(nb_adapter *a) {
    census c = {0};
    nb_model_each_linear(a->model, true, count_module, &c);
    int k = entry(&c, nb_spec_embed_name(a->model->spec));
    c.there[k]++;
    for (int i = 0; i < a->n_attached; i++) {
        k = entry(&c, a->attached[i].module);
        c.adapted[k]++;
    }
    a->targets = nb_calloc((size_t)a->n_attached + 1, sizeof *a->targets);
    for (k = 0; k < c.n; k++)
        if (c.adapted[k] && c.adapted[k] == c.there[k]) a->targets[a->n_targets++] = nb_strdup(c.names[k]);
    for (int i = 0; i < a->n_attached; i++) {
        k = entry(&c, a->attached[i].module);
        if (c.adapted[k] != c.there[k]) a->targets[a->n_targets++] = nb_strdup(a->attached[i].module);
    }
    qsort(a->targets, (size_t)a->n_targets, sizeof *a->targets, by_text);
    free(c.names), free(c.there), free(c.adapted);
}

void nb_adapter_attach_lora(nb_adapter *a, nb_linear *lin, int64_t r, double alpha) {
    const nb_weight *w = lin ? &lin->base->w : &a->model->base->embed;
    const char *module = lin ? lin->base->name : nb_spec_embed_name(a->model->spec);
    struct nb_attached *at = &a->attached[a->n_attached++];
    *at = (struct nb_attached){.module = module, .lin = lin, .r = r, .alpha = alpha,
                               .scale = (float)lora_scale(alpha, r, a->rslora)};
    if (!lin) {
        at->A = nb_adapter_param(a, nb_asprintf(NB_PEFT_PREFIX "%s.lora_embedding_A", module), 2, w->rows, r);
        at->B = nb_adapter_param(a, nb_asprintf(NB_PEFT_PREFIX "%s.lora_embedding_B", module), 2, w->cols, r);
        a->turned[at->A - a->params] = true; /* looked up by token */
        return;
    }
    at->A = nb_adapter_param(a, nb_asprintf(NB_PEFT_PREFIX "%s.lora_A.weight", module), 2, r, w->cols);
    at->B = nb_adapter_param(a, nb_asprintf(NB_PEFT_PREFIX "%s.lora_B.weight", module), 2, w->rows, r);
    if (a->dora)
        at->magnitude =
            nb_adapter_param(a, nb_asprintf(NB_PEFT_PREFIX "%s.lora_magnitude_vector", module), 1, w->rows, 0);
}

void nb_adapter_attach_rows(nb_adapter *a, const int32_t *ids, int64_t n) {
    nb_model *m = a->model;
    a->rows = (nb_token_rows){.n = n, .ids = nb_malloc((size_t)n * sizeof *ids)};
    memcpy(a->rows.ids, ids, (size_t)n * sizeof *ids);
    const char *suffix = "token_adapter.trainable_tokens_delta";
    a->rows.embed = nb_adapter_param(a, nb_asprintf(NB_PEFT_PREFIX "%s.%s", nb_spec_embed_name(m->spec), suffix), 2,
                                     n, m->spec->hidden);
    a->rows.head = m->spec->tied
                       ? a->rows.embed
                       : nb_adapter_param(a, nb_asprintf(NB_PEFT_PREFIX "%s.%s", nb_spec_head_name(m->spec), suffix),
                                          2, n, m->spec->hidden);
}

/* New rows start as the mean of all rows, as transformers' resize_token_embeddings. */
static void mean_row(const nb_weight *w, float *out) {
    double *sum = nb_calloc((size_t)w->cols, sizeof *sum);
    float *row = nb_malloc((size_t)w->cols * sizeof *row);
    for (int64_t i = 0; i < w->rows; i++) {
        nb_weight_decode(row, w->cols, w, i, 1, 0, w->cols);
        for (int64_t c = 0; c < w->cols; c++) sum[c] += row[c];
    }
    for (int64_t c = 0; c < w->cols; c++) out[c] = (float)(sum[c] / (double)w->rows);
    free(sum);
    free(row);
}

static nb_status init_rows(nb_adapter *a) {
    const nb_weight *source[2] = {&a->model->base->embed, nb_base_stored_head(a->model->base)};
    nb_tensor *rows[2] = {a->rows.embed, a->rows.head};
    for (int k = 0; k < (a->model->spec->tied ? 1 : 2) && a->rows.n; k++) {
        int64_t C = rows[k]->d[1];
        float *mean = nb_malloc((size_t)C * sizeof *mean);
        mean_row(source[k], mean);
        for (int64_t i = 0; i < a->rows.n; i++)
            NB_TRY(a->dev->be->put(a->dev, (float *)rows[k]->data + i * C, mean, (size_t)C * sizeof *mean));
        free(mean);
    }
    return NB_OK;
}

/* As PEFT: A ~ uniform(-1/sqrt(in), 1/sqrt(in)) = kaiming_uniform(a = sqrt 5), B = 0; of the embedding A = 0 and
 * B ~ normal(0, 1). Memory is zeroed: what is left out is 0. */
static nb_status init_lora(nb_adapter *a, const struct nb_attached *at, uint64_t seed) {
    nb_tensor *p = at->lin ? at->A : at->B;
    nb_hex digest;
    nb_sha256_of(p->name, strlen(p->name), digest);
    digest[16] = 0; /* the first 64 bits name the tensor */
    nb_rng rng = nb_rng_open(seed, NB_RNG_INIT, strtoull(digest, NULL, 16));
    double bound = 1.0 / sqrt((double)p->d[1]);
    int64_t n = nb_tensor_size(p);
    float *host = nb_malloc((size_t)n * sizeof *host);
    for (int64_t i = 0; i < n; i++)
        host[i] = (float)(at->lin ? (2 * nb_rng_uniform(&rng) - 1) * bound : nb_rng_normal(&rng));
    nb_status st = a->dev->be->put(a->dev, p->data, host, (size_t)n * sizeof *host);
    free(host);
    return st;
}

static nb_status all_used(const nb_pairs *m, const char *what, const bool *used) {
    for (int i = 0; m && i < m->n; i++)
        if (!used[i])
            return nb_fail(NB_EINPUT, "%s: \"%s\" is first for no module that gets an adapter", what, m->name[i]);
    return NB_OK;
}

static nb_status attach_chosen(nb_adapter *a, const chooser *c) {
    const nb_lora_options *o = c->o;
    bool *ranks = nb_calloc(o->ranks ? (size_t)o->ranks->n + 1 : 1, sizeof *ranks),
         *alphas = nb_calloc(o->alphas ? (size_t)o->alphas->n + 1 : 1, sizeof *alphas);
    nb_status st = NB_OK;
    for (int i = 0; i < c->n; i++) {
        double r = (double)o->r, alpha = o->alpha;
        const char *path = c->chosen[i] ? c->chosen[i]->base->name : nb_spec_embed_name(a->model->spec);
        NB_GO(st, nb_pattern_find(o->ranks, "rank_pattern", path, &r, ranks), done);
        NB_GO(st, nb_pattern_find(o->alphas, "alpha_pattern", path, &alpha, alphas), done);
        nb_adapter_attach_lora(a, c->chosen[i], (int64_t)r, alpha);
    }
    NB_GO(st, all_used(o->ranks, "rank_pattern", ranks), done);
    st = all_used(o->alphas, "alpha_pattern", alphas);
done:
    free(ranks), free(alphas);
    return st;
}

typedef struct saver {
    nb_adapter *a;
    bool *used;
} saver;

static void save_module(const nb_module *m, void *arg) {
    saver *s = arg;
    nb_adapter *a = s->a;
    bool follows = a->tie && a->model->spec->tied && m->weight_at == &a->model->head.weight;
    if (nb_saves_module(a->saved, a->n_saved, m->path, s->used) && !follows) nb_adapter_attach_whole(a, m);
    if (follows) nb_adapter_tie_head(a);
}

static void count_params(const nb_module *m, void *arg) { *(int *)arg += m->bias ? 2 : 1; }

/* Modules trained whole beside the adapter. */
static nb_status attach_saved(nb_adapter *a, const nb_lora_options *o) {
    a->n_saved = o->n_save;
    a->tie = o->tie;
    a->saved = nb_calloc((size_t)o->n_save + 1, sizeof *a->saved);
    for (int i = 0; i < o->n_save; i++) a->saved[i] = nb_strdup(o->save[i]);
    saver s = {a, nb_calloc((size_t)o->n_save + 1, sizeof *s.used)};
    nb_modules_each(a->model, save_module, &s);
    nb_status st = NB_OK;
    for (int i = 0; i < o->n_save && st == NB_OK; i++)
        if (!s.used[i])
            st = nb_fail(NB_EINPUT, "lora_modules_to_save: no module's name ends with \"%s\"; names look like \"%s\", "
                         "\"%s\"", o->save[i], nb_spec_embed_name(a->model->spec), nb_spec_head_name(a->model->spec));
    free(s.used);
    return st;
}

static nb_status attach_all(nb_adapter *a, const chooser *c) {
    const nb_lora_options *o = c->o;
    NB_TRY(attach_chosen(a, c));
    NB_TRY(attach_saved(a, o));
    bool both = nb_adapter_whole_at(a, &a->model->embed_trained) && nb_adapter_whole_at(a, &a->model->head.weight);
    if (o->n_token_ids && !both) nb_adapter_attach_rows(a, o->token_ids, o->n_token_ids);
    NB_TRY(nb_adapter_check_parts(a));
    NB_TRY(nb_adapter_place(a, true));
    for (int i = 0; i < a->n_attached; i++) NB_TRY(init_lora(a, &a->attached[i], o->seed));
    if (a->dora) NB_TRY(nb_dora_open(a, true));
    NB_TRY(init_rows(a));
    return nb_adapter_fill_whole(a);
}

nb_status nb_adapter_new(nb_adapter **out, nb_model *m, const nb_lora_options *o) {
    chooser c = {.m = m, .o = o};
    nb_adapter *a = NULL;
    nb_status st = choose_layers(m, &c);
    if (st == NB_OK) {
        int saved = 0;
        if (o->n_save) nb_modules_each(m, count_params, &saved);
        a = nb_adapter_alloc(m, 3 * c.n + 2 + saved);
        a->r = o->r;
        a->alpha = o->alpha;
        a->dropout = o->dropout;
        a->rslora = o->rslora;
        a->dora = o->dora;
        st = attach_all(a, &c);
    }
    free_chooser(&c);
    if (st != NB_OK) {
        nb_adapter_free(a);
        return st;
    }
    if (nb_adapter_unties(a))
        nb_info("%s and %s, which are one here, come apart: one is trained without the other",
                nb_spec_embed_name(m->spec), nb_spec_head_name(m->spec));
    name_targets(a);
    nb_adapter_enable(a, true);
    *out = a;
    return NB_OK;
}

int64_t nb_adapter_largest_rank(const nb_adapter *a) {
    int64_t r = a->r;
    for (int i = 0; i < a->n_attached; i++) r = a->attached[i].r > r ? a->attached[i].r : r;
    return r;
}

bool nb_adapter_embeds(const nb_adapter *a, const nb_tensor *p) {
    bool yes = p == nb_adapter_whole_at(a, &a->model->embed_trained) ||
               (a->rows.n && (p == a->rows.embed || p == a->rows.head));
    for (int i = 0; i < a->n_attached; i++) yes |= !a->attached[i].lin && a->attached[i].A == p;
    return yes;
}

static const struct nb_attached *attached_to(const nb_adapter *a, const nb_linear *lin) {
    for (int i = 0; i < a->n_attached; i++)
        if (a->attached[i].lin == lin) return &a->attached[i];
    return NULL;
}

nb_status nb_adapter_check_parts(const nb_adapter *a) {
    nb_model *m = a->model;
    const char *embed = nb_spec_embed_name(m->spec), *head = nb_spec_head_name(m->spec);
    bool ends = attached_to(a, NULL) || attached_to(a, &m->head);
    bool whole = nb_adapter_whole_at(a, &m->embed_trained) || nb_adapter_whole_at(a, &m->head.weight);
    if (a->tie && m->spec->tied && (ends || (a->n_saved && !nb_adapter_whole_at(a, &m->embed_trained))))
        return nb_fail(NB_EUNSUPPORTED,
                       "ensure_weight_tying: %s follows %s where that is trained whole, which it is not here; an adapter "
                       "on one of them leaves the other alone",
                       head, embed);
    if (a->dora && ends)
        return nb_fail(NB_EUNSUPPORTED, "DoRA on %s or %s is not in this version: leave them out of the target modules",
                       embed, head);
    if (a->rows.n && (ends || whole))
        return nb_fail(NB_EUNSUPPORTED,
                       "added tokens are trained as rows of their own of %s and %s, or with both saved whole "
                       "(lora_modules_to_save), not with a part of that or with an adapter on them",
                       embed, head);
    return NB_OK;
}

bool nb_adapter_unties(const nb_adapter *a) {
    nb_model *m = a->model;
    const nb_tensor *embed = nb_adapter_whole_at(a, &m->embed_trained), *head = nb_adapter_whole_at(a, &m->head.weight);
    return m->spec->tied && (attached_to(a, NULL) || attached_to(a, &m->head) || embed != head);
}

static void enable_attached(const struct nb_attached *at, nb_model *m, double dropout, bool on) {
    if (!at->lin) {
        m->embed_lora = (nb_embedding_lora){on ? at->A : NULL, on ? at->B : NULL, at->scale};
        return;
    }
    at->lin->lora_A = on ? at->A : NULL;
    at->lin->lora_B = on ? at->B : NULL;
    at->lin->magnitude = on ? at->magnitude : NULL;
    at->lin->squares = at->squares;
    at->lin->scale = at->scale;
    at->lin->dropout = (float)dropout;
}

void nb_adapter_enable(nb_adapter *a, bool on) {
    for (int i = 0; i < a->n_attached; i++) enable_attached(&a->attached[i], a->model, a->dropout, on);
    nb_adapter_enable_whole(a, on);
    a->model->rows = on ? a->rows : (nb_token_rows){0};
    a->enabled = on;
    a->model->changes++;
}

void nb_adapter_finish_load(nb_adapter *a) {
    name_targets(a);
    nb_adapter_enable(a, true);
}

void nb_adapter_free(nb_adapter *a) {
    if (!a) return;
    if (a->enabled) nb_adapter_enable(a, false);
    size_t bytes = (size_t)a->n * sizeof(float);
    if (a->data) a->dev->be->free(a->dev, a->data, bytes);
    if (a->grad) a->dev->be->free(a->dev, a->grad, bytes);
    for (int i = 0; i < a->n_attached; i++)
        if (a->attached[i].squares)
            a->dev->be->free(a->dev, a->attached[i].squares, (size_t)a->attached[i].magnitude->d[0] * sizeof(float));
    for (int i = 0; i < a->n_saved; i++) free(a->saved[i]);
    free(a->saved);
    for (int i = 0; i < a->n_params; i++) free((char *)(uintptr_t)a->params[i].name);
    for (int i = 0; i < a->n_targets; i++) free(a->targets[i]);
    free(a->targets);
    free(a->params);
    free(a->turned);
    free(a->attached);
    free(a->whole);
    if (a->rows.ids_on_device && a->rows.ids_on_device != a->rows.ids)
        a->dev->be->free(a->dev, a->rows.ids_on_device, (size_t)a->rows.n * sizeof *a->rows.ids);
    free(a->rows.ids);
    json_decref(a->manifest);
    free(a);
}
