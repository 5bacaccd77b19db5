#include "adapters/export.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/tokenizer_open.h"
#include "core/log.h"
#include "core/mem.h"
#include "data/tokenizer_export.h"

enum { CHUNK = 1 << 20 }; /* values read, encoded and compared at a time */

/* ---- tensors: written, and read back ---- */

static int64_t rows_at_once(const nb_gguf_item *it) { return it->cols >= CHUNK ? 1 : CHUNK / it->cols; }

static nb_status write_item(nb_gguf_writer *w, const nb_gguf_item *it, nb_gguf_type type) {
    int64_t step = rows_at_once(it);
    if (step > it->rows) step = it->rows;
    float *x = nb_malloc((size_t)(step * it->cols) * sizeof *x);
    uint8_t *bytes = nb_malloc(nb_gguf_bytes(type, step * it->cols));
    nb_status st = NB_OK;
    for (int64_t i = 0; i < it->rows && st == NB_OK; i += step) {
        int64_t n = it->rows - i < step ? it->rows - i : step;
        nb_gguf_item_read(it, x, i, n);
        nb_gguf_encode(type, bytes, x, n * it->cols);
        st = nb_gguf_write_data(w, bytes, nb_gguf_bytes(type, n * it->cols));
    }
    free(x), free(bytes);
    return st;
}

/* How far a stored value may be from x: half a step of the type. Q8_0's step is `scale`, itself rounded to f16. */
static double allowed(nb_gguf_type type, double x, double scale) {
    switch (type) {
    case NB_GGUF_F16: return fabs(x) / 2048 + 0x1p-25;
    case NB_GGUF_BF16: return fabs(x) / 256 + 0x1p-134;
    case NB_GGUF_Q8_0: return 0.5001 * scale + 127 * (scale / 2048 + 0x1p-25);
    default: return 0;
    }
}

static double block_scale(const float *x, int64_t i) {
    double max = 0;
    for (int k = 0; k < NB_GGUF_BLOCK; k++) max = fmax(max, fabs(x[i / NB_GGUF_BLOCK * NB_GGUF_BLOCK + k]));
    return max / 127;
}

/* The worst that a block of these types may come to, as norms: one value at the end of the range, all others between
 * two levels. 0: not these. */
static double worst_block(nb_gguf_type type) {
    switch (type) {
    case NB_GGUF_Q4_0: case NB_GGUF_Q4_K: return 0.36;
    case NB_GGUF_Q5_0: case NB_GGUF_Q5_1: case NB_GGUF_Q5_K: return 0.19;
    case NB_GGUF_Q6_K: return 0.07;
    default: return 0;
    }
}

static nb_status compare_blocks(const nb_gguf_tensor *t, const float *want, const float *got, int64_t n, int64_t at) {
    const int block = nb_format_block(nb_gguf_type_format(t->type));
    for (int64_t i = 0; i < n; i += block) {
        double error = 0, size = 0;
        for (int64_t j = i; j < i + block; j++) {
            error += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
            size += (double)want[j] * want[j];
        }
        if (sqrt(error) <= worst_block(t->type) * sqrt(size) + 0x1p-13 * sqrt(block)) continue; /* subnormal scales */
        return nb_fail(NB_ENUMERIC, "%s: values %lld.. read back from %s with an error of %.3g of their norm; nothing "
                       "was written", t->name, (long long)(at + i), nb_gguf_type_name(t->type), sqrt(error / size));
    }
    return NB_OK;
}

static nb_status compare(const nb_gguf_tensor *t, const float *want, const float *got, int64_t n, int64_t at) {
    double scale = 0;
    if (worst_block(t->type) > 0) return compare_blocks(t, want, got, n, at);
    for (int64_t i = 0; i < n; i++) {
        if (t->type == NB_GGUF_Q8_0 && i % NB_GGUF_BLOCK == 0) scale = block_scale(want, i);
        if (fabs((double)got[i] - want[i]) <= allowed(t->type, want[i], scale)) continue;
        return nb_fail(NB_ENUMERIC, "%s: value %lld is %g and reads back from %s as %g; nothing was written", t->name,
                       (long long)(at + i), want[i], nb_gguf_type_name(t->type), got[i]);
    }
    return NB_OK;
}

static nb_status verify_item(const nb_gguf *g, const nb_gguf_item *it, nb_gguf_type type) {
    const nb_gguf_tensor *t = nb_gguf_find_tensor(g, it->name);
    int64_t ne[3];
    nb_gguf_item_shape(it, ne);
    if (!t || t->type != type || t->n_dims != it->n_dims || memcmp(t->ne, ne, sizeof ne) != 0)
        return nb_fail(NB_EIO, "%s: \"%s\" does not read back as it was written", g->map.path, it->name);
    int64_t step = rows_at_once(it);
    if (step > it->rows) step = it->rows;
    float *x = nb_malloc((size_t)(step * it->cols) * sizeof *x), *y = nb_malloc((size_t)(step * it->cols) * sizeof *y);
    nb_status st = NB_OK;
    for (int64_t i = 0; i < it->rows && st == NB_OK; i += step) {
        int64_t n = it->rows - i < step ? it->rows - i : step;
        nb_gguf_item_read(it, x, i, n);
        nb_gguf_decode(type, y, t->data + nb_gguf_bytes(type, i * it->cols), n * it->cols);
        st = compare(t, x, y, n * it->cols, i * it->cols);
    }
    free(x), free(y);
    return st;
}

static nb_status verify(const char *path, const nb_gguf_plan *p, const nb_gguf_mix *mix, int64_t *verified) {
    nb_gguf g;
    NB_TRY(nb_gguf_open(&g, path));
    nb_status st = NB_OK;
    if (g.n_tensors != p->n)
        st = nb_fail(NB_EIO, "%s: %lld tensors read back of %d written", path, (long long)g.n_tensors, p->n);
    for (int i = 0; i < p->n && st == NB_OK; i++)
        st = verify_item(&g, &p->items[i], nb_gguf_item_type(&p->items[i], mix));
    if (st == NB_OK) *verified = p->n;
    nb_gguf_close(&g);
    return st;
}

/* The planned tensors behind the keys that w has, checked, and only then given their name. */
static nb_status finish(nb_gguf_writer *w, const nb_gguf_plan *p, const nb_gguf_mix *mix, const char *part,
                        const char *out, bool check, nb_export_report *r) {
    nb_status st = NB_OK;
    nb_progress bar;
    *r = (nb_export_report){.tensors = p->n};
    for (int i = 0; i < p->n && st == NB_OK; i++) {
        const nb_gguf_item *it = &p->items[i];
        int64_t ne[3];
        nb_gguf_item_shape(it, ne);
        nb_gguf_type t = nb_gguf_item_type(it, mix);
        r->bytes += (int64_t)nb_gguf_bytes(t, it->rows * it->cols);
        st = nb_gguf_write_declare(w, it->name, t, it->n_dims, ne);
    }
    nb_progress_begin(&bar, "export", (double)r->bytes / 1e6, "MB");
    double done = 0;
    for (int i = 0; i < p->n && st == NB_OK; i++) {
        const nb_gguf_item *it = &p->items[i];
        nb_gguf_type t = nb_gguf_item_type(it, mix);
        st = write_item(w, it, t);
        nb_progress_set(&bar, done += (double)nb_gguf_bytes(t, it->rows * it->cols) / 1e6, NULL);
    }
    nb_progress_end(&bar);
    if (st != NB_OK) {
        nb_gguf_write_abort(w);
        return st;
    }
    st = nb_gguf_write_end(w);
    if (st == NB_OK && check) st = verify(part, p, mix, &r->verified);
    if (st == NB_OK && rename(part, out))
        st = nb_fail(NB_EIO, "%s: cannot be renamed to %s: %s", part, out, strerror(errno));
    if (st != NB_OK) remove(part);
    return st;
}

static nb_status begin(nb_gguf_writer **w, const char *out, char **part) {
    *part = NULL;
    if (nb_file_exists(out)) return nb_fail(NB_EINPUT, "%s: exists; nothing was written. Name another file", out);
    *part = nb_asprintf("%s.part", out);
    return nb_gguf_write_begin(w, *part);
}

/* ---- a model ---- */

static void put_id(nb_gguf_writer *w, const char *key, int32_t id) {
    if (id >= 0) nb_gguf_put_u32(w, key, (uint32_t)id);
}

static void put_tokenizer(nb_gguf_writer *w, const nb_tokenizer *t, const nb_token_list *l) {
    const char *template = nb_tokenizer_chat_template(t);
    nb_gguf_put_str(w, "tokenizer.ggml.model", l->model);
    nb_gguf_put_str(w, "tokenizer.ggml.pre", l->pre);
    nb_gguf_put_strs(w, "tokenizer.ggml.tokens", (const char *const *)l->token, l->n);
    if (l->score) nb_gguf_put_f32s(w, "tokenizer.ggml.scores", l->score, l->n);
    nb_gguf_put_i32s(w, "tokenizer.ggml.token_type", l->type, l->n);
    if (l->merge) nb_gguf_put_strs(w, "tokenizer.ggml.merges", (const char *const *)l->merge, l->n_merges);
    put_id(w, "tokenizer.ggml.bos_token_id", nb_tokenizer_bos(t));
    put_id(w, "tokenizer.ggml.eos_token_id", nb_tokenizer_eos(t));
    put_id(w, "tokenizer.ggml.unknown_token_id", nb_tokenizer_unk(t));
    put_id(w, "tokenizer.ggml.padding_token_id", nb_tokenizer_pad(t));
    nb_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", nb_tokenizer_adds_bos(t));
    nb_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", nb_tokenizer_adds_eos(t));
    if (l->score) nb_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", l->space_prefix);
    if (template) nb_gguf_put_str(w, "tokenizer.chat_template", template);
}

static void put_general(nb_gguf_writer *w, const char *arch, const char *kind, const char *name) {
    nb_gguf_put_str(w, "general.architecture", arch);
    nb_gguf_put_str(w, "general.type", kind);
    nb_gguf_put_str(w, "general.name", name);
    nb_gguf_put_u32(w, "general.quantization_version", 2);
}

static const nb_gguf_mix *stored(const nb_st *st, const nb_spec *s) {
    char *embed = nb_asprintf("%s.weight", nb_spec_embed_name(s));
    const nb_st_tensor *t = nb_st_find(st, embed);
    free(embed);
    return nb_gguf_mix_find(t && t->dtype == NB_BF16 ? "bf16" : t && t->dtype == NB_F16 ? "f16" : "f32");
}

typedef struct source { /* what a model's file is made of */
    nb_spec spec;
    nb_st st;
    nb_tokenizer *tokenizer;
    nb_token_list tokens;
    nb_gguf_plan plan;
} source;

static nb_status open_source(source *m, const char *dir) {
    char *config = nb_path_join(dir, "config.json");
    nb_status st = nb_spec_load(&m->spec, dir);
    if (st == NB_OK) st = nb_gguf_check(&m->spec, config);
    free(config);
    if (st == NB_OK) st = nb_base_open_files(&m->st, &m->spec, dir);
    if (st == NB_OK) st = nb_gguf_plan_make(&m->plan, &m->spec, &m->st);
    if (st == NB_OK) st = nb_tokenizer_open(&m->tokenizer, dir);
    return st == NB_OK ? nb_tokenizer_list(m->tokenizer, m->spec.vocab, &m->tokens) : st;
}

static void close_source(source *m) {
    nb_gguf_plan_free(&m->plan);
    nb_token_list_free(&m->tokens);
    nb_tokenizer_free(m->tokenizer);
    nb_st_close(&m->st);
    free(m);
}

nb_status nb_export_gguf(const char *dir, const char *name, const char *out, const nb_gguf_mix *mix, bool check,
                         nb_export_report *r) {
    source *m = NB_NEW(source);
    nb_gguf_writer *w;
    char *part = NULL;
    nb_status st = open_source(m, dir);
    if (st == NB_OK) st = begin(&w, out, &part);
    if (st == NB_OK) {
        if (!mix) mix = stored(&m->st, &m->spec);
        put_general(w, nb_gguf_family_of(&m->spec)->name, "model", name);
        nb_gguf_put_u32(w, "general.file_type", mix->file_type);
        nb_gguf_put_spec(w, &m->spec);
        put_tokenizer(w, m->tokenizer, &m->tokens);
        st = finish(w, &m->plan, mix, part, out, check, r);
    }
    free(part);
    close_source(m);
    return st;
}

/* ---- an adapter ---- */

/* Where an adapter of a module goes: all experts of a kind are one item, of the largest rank among them. */
typedef struct place {
    char name[NB_GGUF_NAME];
    nb_gguf_order order;
    int64_t experts, expert; /* 0: an item of its own */
    int64_t first;           /* ... else the number of the first expert's layer in the model */
} place;

typedef struct lora_plan {
    nb_gguf_plan *p;
    const nb_adapter *a;
    const float *data; /* the adapter's, in host memory */
    double alpha;      /* of the file */
    int64_t *rank;     /* [layers * slots] of the items of experts, at their first one */
    int *item;         /* likewise: the number of lora_a, + 1; lora_b is the next; 0: not yet */
} lora_plan;

static nb_status place_of(place *k, const nb_adapter *a, const struct nb_attached *at) {
    const nb_spec *s = a->model->spec;
    const nb_base *b = a->model->base;
    bool head = at->lin && at->lin->base == &b->head;
    *k = (place){0};
    snprintf(k->name, sizeof k->name, "%s", head ? "output" : "token_embd");
    if ((!at->lin || head) && s->tied)
        return nb_fail(NB_EUNSUPPORTED, "%s is embedding and output head in one here: llama.cpp has no adapter for that; "
                       "merge instead", at->module);
    if (!at->lin || head) return NB_OK;
    int64_t i = at->lin->base - b->layer[0].lin;
    int slots = nb_spec_slots(s), slot = (int)(i % slots);
    NB_ASSERT(i >= 0 && i < s->layers * slots);
    nb_gguf_linear_name(s, i / slots, slot, k->name);
    k->order = nb_gguf_order_of(s, slot);
    if (slot < NB_SLOTS) return NB_OK;
    k->experts = s->experts, k->expert = (slot - NB_SLOTS) % s->experts, k->first = i - k->expert;
    return NB_OK;
}

/* lora_a of a module, [rows of A, cols of A] or [rank, cols] of each expert; lora_b is behind it. Zeros. */
static nb_gguf_item *items_of(const lora_plan *l, const place *k, const struct nb_attached *at) {
    const nb_tensor *of[2] = {at->A, at->B};
    char name[NB_GGUF_MAX_NAME + 1];
    if (k->experts && l->item[k->first]) return &l->p->items[l->item[k->first] - 1];
    for (int b = 0; b < 2; b++) {
        int64_t rows = of[b]->d[0], cols = of[b]->d[1];
        if (k->experts) *(b ? &cols : &rows) = l->rank[k->first];
        snprintf(name, sizeof name, "%.48s.weight.lora_%c", k->name, "ab"[b]);
        nb_gguf_item *it = nb_gguf_plan_add(l->p, name, k->experts ? 3 : 2, rows, cols, k->experts);
        it->values = nb_calloc((size_t)(it->rows * cols), sizeof *it->values);
    }
    if (k->experts) l->item[k->first] = l->p->n - 1;
    return &l->p->items[l->p->n - 2];
}

/* A as PEFT has it; B times what the file's one alpha / r lacks, its rows in the order of the weight's. Of the embedding
 * llama.cpp looks A up by token and multiplies with B: a row a token, as it lies in memory. */
static void plan_module(const lora_plan *l, const place *k, const struct nb_attached *at) {
    double factor = at->scale * (double)(k->experts ? l->rank[k->first] : at->r) / l->alpha;
    nb_gguf_item *it = items_of(l, k, at);
    if (fabs(factor - 1) < 1e-6) factor = 1;
    for (int b = 0; b < 2; b++) {
        const nb_tensor *from = b ? at->B : at->A;
        const float *x = l->data + ((const float *)from->data - l->a->data);
        int64_t each = it[b].rows / (k->experts ? k->experts : 1), cols = from->d[1];
        float *to = it[b].values + k->expert * each * it[b].cols;
        for (int64_t i = 0; i < from->d[0]; i++)
            for (int64_t j = 0; j < cols; j++)
                to[i * it[b].cols + j] =
                    b ? (float)(x[nb_gguf_row(i, &k->order) * cols + j] * factor) : x[i * cols + j];
    }
}

static nb_status plan_adapter(lora_plan *l) {
    const nb_adapter *a = l->a;
    place *k = nb_calloc((size_t)a->n_attached + 1, sizeof *k);
    size_t layers = (size_t)(a->model->spec->layers * nb_spec_slots(a->model->spec));
    nb_status st = NB_OK;
    l->rank = nb_calloc(layers, sizeof *l->rank);
    l->item = nb_calloc(layers, sizeof *l->item);
    for (int i = 0; i < a->n_attached && st == NB_OK; i++) {
        st = place_of(&k[i], a, &a->attached[i]);
        int64_t *rank = &l->rank[k[i].first];
        if (k[i].experts && a->attached[i].r > *rank) *rank = a->attached[i].r;
    }
    for (int i = 0; i < a->n_attached && st == NB_OK; i++) plan_module(l, &k[i], &a->attached[i]);
    free(k), free(l->rank), free(l->item);
    return st;
}

nb_status nb_export_gguf_lora(const nb_session *s, const char *name, const char *out, bool check, nb_export_report *r) {
    const nb_adapter *a = s->adapter;
    const nb_spec *spec = s->model->spec;
    nb_gguf_plan p = {0};
    nb_gguf_writer *w;
    char *part = NULL;
    if (!a) return nb_fail(NB_EINPUT, "--adapter DIR is needed");
    if (a->n_whole || a->rows.n)
        return nb_fail(NB_EUNSUPPORTED, "an adapter with %s cannot be a GGUF adapter: export the merged model "
                       "(--format gguf)", a->rows.n ? "added tokens" : "modules trained whole");
    if (a->dora)
        return nb_fail(NB_EUNSUPPORTED, "a DoRA adapter cannot be a GGUF adapter: export the merged model "
                       "(--format gguf)");
    NB_TRY(nb_gguf_check(spec, s->base->dir));
    float *data = nb_malloc((size_t)a->n * sizeof *data);
    double alpha = a->n_attached ? a->attached[0].scale * (double)a->attached[0].r : a->alpha;
    nb_status st = s->dev->be->get(s->dev, data, a->data, (size_t)a->n * sizeof *data);
    if (st == NB_OK) st = plan_adapter(&(lora_plan){.p = &p, .a = a, .data = data, .alpha = alpha});
    if (st == NB_OK) st = begin(&w, out, &part);
    if (st == NB_OK) {
        put_general(w, nb_gguf_family_of(spec)->name, "adapter", name);
        nb_gguf_put_str(w, "adapter.type", "lora");
        nb_gguf_put_f32(w, "adapter.lora.alpha", (float)alpha);
        st = finish(w, &p, nb_gguf_mix_find("f32"), part, out, check, r);
    }
    free(part);
    free(data);
    nb_gguf_plan_free(&p);
    return st;
}

/* ---- safetensors ---- */

static nb_status same(const nb_st_tensor *t, const nb_st *other) {
    const nb_st_tensor *u = nb_st_find(other, t->name);
    if (u && u->n_dims == t->n_dims && !memcmp(u->d, t->d, (size_t)t->n_dims * sizeof *t->d) && u->dtype == t->dtype &&
        !memcmp(u->data, t->data, t->bytes))
        return NB_OK;
    return nb_fail(NB_EIO, "%s: \"%s\" does not read back as it was written", other->files[0].path, t->name);
}

nb_status nb_export_same_tensors(const char *dir, const char *other, const char *stem, int64_t *n) {
    nb_st a, b;
    NB_TRY(nb_st_open_dir(&a, dir, stem));
    nb_status st = nb_st_open_dir(&b, other, stem);
    if (st == NB_OK && a.n_tensors != b.n_tensors)
        st = nb_fail(NB_EIO, "%s: has %d tensors, %s %d", other, b.n_tensors, dir, a.n_tensors);
    for (int i = 0; st == NB_OK && i < a.n_tensors; i++) st = same(&a.tensors[i], &b);
    *n = a.n_tensors;
    nb_st_close(&a);
    nb_st_close(&b);
    return st;
}
