/* Which tensors a GGUF file has, and where their values come from. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/gguf_map.h"
#include "model/weights.h"

typedef struct maker {
    nb_gguf_plan *p;
    const nb_spec *s;
    const nb_gguf_family *a;
    const nb_st *st;
    bool *used; /* [st->n_tensors] */
} maker;

nb_gguf_item *nb_gguf_plan_add(nb_gguf_plan *p, const char *name, int n_dims, int64_t rows, int64_t cols,
                               int64_t experts) {
    NB_GROW(p->items, p->n, p->cap);
    nb_gguf_item *it = &p->items[p->n++];
    *it = (nb_gguf_item){.n_dims = n_dims, .rows = n_dims == 3 ? rows * experts : rows, .cols = cols};
    if (n_dims == 3) it->experts = experts;
    snprintf(it->name, sizeof it->name, "%s", name);
    return it;
}

void nb_gguf_item_shape(const nb_gguf_item *it, int64_t ne[3]) {
    ne[0] = it->n_dims == 1 ? it->rows : it->cols;
    ne[1] = it->n_dims == 1 ? 1 : it->n_dims == 2 ? it->rows : it->rows / it->experts;
    ne[2] = it->n_dims == 3 ? it->experts : 1;
}

/* HF's MODULE.SUFFIX of this shape, d1 0: a vector. *out NULL: there is none, and there need not be. */
static nb_status source(maker *m, const char *module, const char *suffix, int64_t d0, int64_t d1, bool may_lack,
                        const nb_st_tensor **out) {
    char *from = nb_asprintf("%s.%s", module, suffix);
    const nb_st_tensor *t = *out = nb_st_find(m->st, from);
    nb_status st = NB_OK;
    if (!t && !may_lack) st = nb_fail(NB_EINPUT, "%s: there is no tensor \"%s\"", m->st->files[0].path, from);
    if (t && t->dtype != NB_F32 && t->dtype != NB_BF16 && t->dtype != NB_F16)
        st = nb_fail(NB_EUNSUPPORTED, "%s is stored as %s: only float weights can be exported. For a base in 4 bits, "
                     "export the model it was quantized from", from, nb_dtype_name(t->dtype));
    else if (t && (t->n_dims != (d1 ? 2 : 1) || t->d[0] != d0 || (d1 && t->d[1] != d1)))
        st = nb_fail(NB_EINPUT, "%s does not have the shape that config.json says", from);
    else if (t)
        m->used[t - m->st->tensors] = true;
    free(from);
    return st;
}

/* The file's NAME.SUFFIX, made of `experts` tensors of HF, or of one. */
static nb_gguf_item *add(maker *m, const char *name, const char *suffix, int n_dims, int64_t rows, int64_t cols,
                         int64_t experts) {
    char *full = nb_asprintf("%s.%s", name, suffix);
    nb_gguf_item *it = nb_gguf_plan_add(m->p, full, n_dims, rows, cols, experts);
    it->from = nb_calloc((size_t)(n_dims == 3 ? experts : 1), sizeof *it->from);
    it->part = nb_gguf_part_of(full, m->s->layers, m->s->experts, m->s->tied && !m->a->own_head);
    free(full);
    return it;
}

static nb_status vector(maker *m, const char *module, const char *name, const char *suffix, int64_t n, bool may_lack,
                        nb_gguf_item **out) {
    const nb_st_tensor *t;
    *out = NULL;
    NB_TRY(source(m, module, suffix, n, 0, may_lack, &t));
    if (!t) return NB_OK;
    *out = add(m, name, suffix, 1, n, 1, 0);
    (*out)->from[0] = t;
    return NB_OK;
}

static nb_status matrix(maker *m, const char *module, const char *name, int64_t rows, int64_t cols,
                        nb_gguf_order order) {
    const nb_st_tensor *t;
    bool turned = m->s->stored_transposed && !strncmp(name, "blk.", 4);
    NB_TRY(source(m, module, "weight", turned ? cols : rows, turned ? rows : cols, false, &t));
    nb_gguf_item *it = add(m, name, "weight", 2, rows, cols, 0);
    it->from[0] = t, it->turned = turned, it->order = order;
    return NB_OK;
}

static nb_status norm(maker *m, const char *module, const char *name, int64_t n) {
    nb_gguf_item *it;
    NB_TRY(vector(m, module, name, "weight", n, false, &it));
    it->add = m->s->norm_offset;
    return vector(m, module, name, "bias", n, m->s->norm_kind == NB_NORM_RMS, &it);
}

static nb_status linear(maker *m, const char *module, const char *name, int64_t rows, int64_t cols,
                        nb_gguf_order order) {
    nb_gguf_item *it;
    NB_TRY(matrix(m, module, name, rows, cols, order));
    NB_TRY(vector(m, module, name, "bias", rows, true, &it));
    if (!it) return NB_OK;
    it->order = order;
    if (m->a->biases) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s.bias: llama.cpp's %s has no such bias", module, m->a->name);
}

/* The share of the shared expert: one row, which the file has as a vector. */
static nb_status share(maker *m, const char *module, const char *name) {
    const nb_st_tensor *t;
    NB_TRY(source(m, module, "weight", 1, m->s->hidden, false, &t));
    add(m, name, "weight", 1, m->s->hidden, 1, 0)->from[0] = t;
    return NB_OK;
}

/* All experts of a kind, from the slot of the first. */
static nb_status experts(maker *m, int64_t l, int first) {
    int64_t rows, cols;
    char name[NB_GGUF_NAME];
    nb_status st = NB_OK;
    nb_spec_linear_shape(m->s, l, first, &rows, &cols);
    nb_gguf_linear_name(m->s, l, first, name);
    nb_gguf_item *it = add(m, name, "weight", 3, rows, cols, m->s->experts);
    for (int64_t e = 0; e < m->s->experts && st == NB_OK; e++) {
        char *module = nb_spec_linear_name(m->s, l, first + (int)e);
        st = source(m, module, "weight", rows, cols, false, &it->from[e]);
        free(module);
    }
    return st;
}

static nb_status layer(maker *m, int64_t l) {
    char name[NB_GGUF_NAME];
    for (nb_norm_slot k = 0; k < NB_NORMS; k++) {
        char *module = nb_spec_norm_name(m->s, l, k);
        nb_status st = NB_OK;
        nb_gguf_norm_name(l, k, name);
        if (module && !m->s->bare_norm) st = norm(m, module, name, nb_spec_norm_size(m->s, k));
        free(module);
        NB_TRY(st);
    }
    for (int k = 0; k < NB_SLOTS; k++) {
        int64_t rows, cols;
        char *module = nb_spec_linear_name(m->s, l, k);
        nb_status st = NB_OK;
        nb_spec_linear_shape(m->s, l, k, &rows, &cols);
        nb_gguf_linear_name(m->s, l, k, name);
        if (module) st = k == NB_SHARE ? share(m, module, name)
                                       : linear(m, module, name, rows, cols, nb_gguf_order_of(m->s, k));
        free(module);
        NB_TRY(st);
    }
    for (int k = NB_SLOTS; k < nb_spec_slots(m->s) && m->s->layer[l].sparse; k += (int)m->s->experts)
        NB_TRY(experts(m, l, k));
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
        nb_gguf_item *it = nb_gguf_plan_add(p, "rope_freqs.weight", 1, n, 1, 0);
        it->values = nb_calloc((size_t)n, sizeof *it->values);
        for (int i = 0; i < n; i++) it->values[i] = (float)(plain[i] / scaled[i]);
    }
    for (int k = 0; k < 2 && r->kind == NB_ROPE_LONGROPE; k++) {
        const char *name = k ? "rope_factors_long.weight" : "rope_factors_short.weight";
        nb_gguf_item *it = nb_gguf_plan_add(p, name, 1, n, 1, 0);
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
                       m->st->files[m->st->tensors[i].shard].path, name, m->a->name);
    }
    return NB_OK;
}

static nb_status make(maker *m) {
    const nb_spec *s = m->s;
    const nb_gguf_order as_they_are = {0};
    const char *embed = nb_spec_embed_name(s), *head = s->tied ? embed : nb_spec_head_name(s);
    add_rope(m->p, s);
    NB_TRY(matrix(m, embed, "token_embd", s->vocab, s->hidden, as_they_are));
    if (s->learned_positions)
        NB_TRY(matrix(m, nb_spec_positions_name(s), "position_embd", s->context, s->hidden, as_they_are));
    for (int64_t l = 0; l < s->layers; l++) NB_TRY(layer(m, l));
    if (!s->bare_norm) NB_TRY(norm(m, nb_spec_final_norm_name(s), "output_norm", s->hidden));
    if (!s->tied || m->a->own_head) NB_TRY(linear(m, head, "output", s->vocab, s->hidden, as_they_are));
    return check_unused(m);
}

nb_status nb_gguf_plan_make(nb_gguf_plan *p, const nb_spec *s, const nb_st *st) {
    *p = (nb_gguf_plan){0};
    maker m = {p, s, nb_gguf_family_of(s), st, nb_calloc((size_t)st->n_tensors + 1, sizeof *m.used)};
    nb_status ok = make(&m);
    free(m.used);
    if (ok != NB_OK) nb_gguf_plan_free(p);
    return ok;
}

void nb_gguf_plan_free(nb_gguf_plan *p) {
    for (int i = 0; i < p->n; i++) free(p->items[i].values), free(p->items[i].from);
    free(p->items);
    *p = (nb_gguf_plan){0};
}

/* Rows of a tensor of HF's, in the file's order. */
static void read_rows(const nb_gguf_item *it, const nb_st_tensor *t, float *out, int64_t first, int64_t n) {
    if (it->turned) nb_st_read_columns_f32(t, out, first, n);
    else if (!it->order.n) nb_st_read_f32(t, out, first * it->cols, n * it->cols);
    else
        for (int64_t i = 0; i < n; i++)
            nb_st_read_f32(t, out + i * it->cols, nb_gguf_row(first + i, &it->order) * it->cols, it->cols);
}

void nb_gguf_item_read(const nb_gguf_item *it, float *out, int64_t first, int64_t n) {
    int64_t each = it->n_dims == 3 ? it->rows / it->experts : it->rows;
    if (it->values) memcpy(out, it->values + first * it->cols, (size_t)(n * it->cols) * sizeof *out);
    for (int64_t i = 0, some; !it->values && i < n; i += some) {
        int64_t at = (first + i) % each;
        some = n - i < each - at ? n - i : each - at;
        read_rows(it, it->from[(first + i) / each], out + i * it->cols, at, some);
    }
    if (it->add != 0)
        for (int64_t i = 0; i < n * it->cols; i++) out[i] += it->add;
}
