/* A base from GGUF: finding its files, and their tensors in the form products read them, as they are stored. */
#include "model/gguf_base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/base.h"
#include "model/gguf_map.h"

/* ---- files ---- */

bool nb_gguf_is(const char *path) {
    char magic[4];
    if (nb_is_dir(path)) return false;
    FILE *f = fopen(path, "rb");
    bool is = f && fread(magic, 1, sizeof magic, f) == sizeof magic && !memcmp(magic, "GGUF", sizeof magic);
    if (f) fclose(f);
    return is;
}

/* "NAME-00002-of-00005.gguf": 2 of 5. false: the name says nothing of parts. */
static bool split_name(const char *path, int *no, int *count) {
    enum { TAIL = 20 }; /* "-00002-of-00005.gguf" */
    size_t n = strlen(path);
    const char *tail = path + n - TAIL;
    int end = 0;
    return n > TAIL && sscanf(tail, "-%5d-of-%5d.gguf%n", no, count, &end) == 2 && end == TAIL && *count >= 1 &&
           *no >= 1 && *no <= *count;
}

nb_status nb_gguf_parts(const char *path, char ***paths, int *n) {
    int no = 1, count = 1;
    bool split = split_name(path, &no, &count);
    *n = 0;
    if (split && no != 1)
        return nb_fail(NB_EINPUT, "%s: is part %d of %d: give the first, which describes the model", path, no, count);
    *paths = nb_calloc((size_t)count, sizeof **paths);
    (*paths)[(*n)++] = nb_strdup(path);
    for (int i = 2; i <= count; i++) {
        char *p = nb_strdup(path), number[6];
        snprintf(number, sizeof number, "%05d", i % 100000);
        memcpy(p + strlen(p) - 19, number, 5);
        (*paths)[(*n)++] = p;
    }
    return NB_OK;
}

nb_status nb_gguf_in_dir(const char *dir, char **file) {
    char **names;
    int n, models = 0, no, count;
    *file = NULL;
    NB_TRY(nb_list_dir(dir, &names, &n));
    for (int i = 0; i < n; i++) {
        bool later = split_name(names[i], &no, &count) && no > 1;
        if (!strcmp(nb_path_ext(names[i]), ".gguf") && !later && ++models == 1) *file = nb_path_join(dir, names[i]);
        free(names[i]);
    }
    free(names);
    if (models < 2) return NB_OK;
    free(*file);
    *file = NULL;
    return nb_fail(NB_EINPUT, "%s: has %d GGUF models: name the file that is meant", dir, models);
}

/* What the first part says of their number, where the parts say so at all. */
static nb_status check_parts(const nb_gguf_model *m) {
    int64_t count = m->n, no;
    nb_gguf_int(&m->part[0], "split.count", &count);
    if (count == 0) count = 1;
    if (count != m->n)
        return nb_fail(NB_EINPUT, "%s: is one of %lld parts; they want to be named NAME-00001-of-%05lld.gguf and so on",
                       m->part[0].map.path, (long long)count, (long long)count);
    for (int i = 0; i < m->n; i++)
        if (nb_gguf_int(&m->part[i], "split.no", &no) && no != i)
            return nb_fail(NB_EINPUT, "%s: says it is part %lld, its name says %d", m->part[i].map.path,
                           (long long)no + 1, i + 1);
    for (int i = 1; i < m->n; i++)
        for (int64_t k = 0; k < m->part[i].n_tensors; k++)
            for (int j = 0; j < i; j++)
                if (nb_gguf_find_tensor(&m->part[j], m->part[i].tensors[k].name))
                    return nb_fail(NB_EINPUT, "%s: tensor \"%s\" is in %s too", m->part[i].map.path,
                                   m->part[i].tensors[k].name, m->part[j].map.path);
    return NB_OK;
}

nb_status nb_gguf_model_open(nb_gguf_model *m, const char *path) {
    char **paths;
    int n;
    *m = (nb_gguf_model){0};
    NB_TRY(nb_gguf_parts(path, &paths, &n));
    m->part = nb_calloc((size_t)n, sizeof *m->part);
    nb_status st = NB_OK;
    for (int i = 0; i < n; i++) {
        if (st == NB_OK) st = nb_gguf_open(&m->part[i], paths[i]);
        if (st == NB_OK) m->n++;
        free(paths[i]);
    }
    free(paths);
    if (st == NB_OK) st = check_parts(m);
    if (st != NB_OK) nb_gguf_model_close(m);
    return st;
}

void nb_gguf_model_close(nb_gguf_model *m) {
    for (int i = 0; i < m->n; i++) nb_gguf_close(&m->part[i]);
    free(m->part);
    *m = (nb_gguf_model){0};
}

const nb_gguf_tensor *nb_gguf_model_tensor(const nb_gguf_model *m, const char *name) {
    const nb_gguf_tensor *t = NULL;
    for (int i = 0; i < m->n && !t; i++) t = nb_gguf_find_tensor(&m->part[i], name);
    return t;
}

/* ---- tensors ---- */

typedef struct loader {
    nb_base *b;
    const nb_gguf_model *m;
    bool **used; /* [m->n][n_tensors] */
} loader;

static const nb_gguf_order as_they_are;

/* A tensor of this shape: cols 0: a vector; experts above 1: so many matrices. */
static nb_status find(loader *l, const char *name, int64_t rows, int64_t cols, int64_t experts,
                      const nb_gguf_tensor **out) {
    const nb_gguf_tensor *t = *out = nb_gguf_model_tensor(l->m, name);
    if (!t) return nb_fail(NB_EINPUT, "%s: has no tensor \"%s\"", l->b->dir, name);
    for (int i = 0; i < l->m->n; i++) {
        const nb_gguf *g = &l->m->part[i];
        if (g->n_tensors && t >= g->tensors && t < g->tensors + g->n_tensors) l->used[i][t - g->tensors] = true;
    }
    int64_t ne0 = cols ? cols : rows, ne1 = cols ? rows : 1;
    if (t->ne[0] == ne0 && t->ne[1] == ne1 && t->ne[2] == experts && t->ne[3] == 1) return NB_OK;
    return nb_fail(NB_ESHAPE, "%s: tensor \"%s\" has shape [%lld, %lld, %lld, %lld], its keys say [%lld, %lld, %lld]",
                   l->b->dir, name, (long long)t->ne[3], (long long)t->ne[2], (long long)t->ne[1], (long long)t->ne[0],
                   (long long)experts, (long long)ne1, (long long)ne0);
}

/* NAME.SUFFIX as n numbers, in Hugging Face's order. may_lack: zeros when there is none. */
static nb_status vector(loader *l, const float **out, const char *name, const char *suffix, int64_t n,
                        nb_gguf_order order, float less, bool may_lack) {
    char *full = nb_asprintf("%s.%s", name, suffix);
    const nb_gguf_tensor *t;
    float *x, *stored = NULL;
    nb_status st = nb_base_buffer(l->b, (void **)&x, (size_t)n * sizeof *x, full);
    *out = x;
    if (st == NB_OK && !(may_lack && !nb_gguf_model_tensor(l->m, full))) {
        NB_GO(st, find(l, full, n, 0, 1, &t), done);
        if (t->type != NB_GGUF_F32 && t->type != NB_GGUF_F16 && t->type != NB_GGUF_BF16)
            NB_GO(st, nb_fail(NB_EUNSUPPORTED, "%s: vector \"%s\" is stored in blocks", l->b->dir, full), done);
        stored = nb_malloc((size_t)n * sizeof *stored);
        nb_gguf_decode(t->type, stored, t->data, n);
        for (int64_t i = 0; i < n; i++) x[nb_gguf_row(i, &order)] = stored[i] - less;
    }
done:
    free(stored);
    free(full);
    return st;
}

/* Rows first..first+rows of a tensor (its experts one behind the other), whole rows of its format; where they are in
 * another order than HF's, a copy. */
static nb_status rows_of(loader *l, nb_weight *w, const nb_gguf_tensor *t, int64_t first, int64_t rows,
                         nb_gguf_order order) {
    int64_t cols = t->ne[0];
    size_t row = nb_gguf_bytes(t->type, cols);
    const uint8_t *data = t->data + (size_t)first * row;
    if (order.n) {
        uint8_t *copy;
        NB_TRY(nb_base_buffer(l->b, (void **)&copy, (size_t)rows * row, t->name));
        for (int64_t i = 0; i < rows; i++)
            memcpy(copy + (size_t)nb_gguf_row(i, &order) * row, data + (size_t)i * row, row);
        data = copy;
    }
    *w = (nb_weight){.format = nb_gguf_type_format(t->type), .rows = rows, .cols = cols, .data = data};
    return NB_OK;
}

static nb_status matrix(loader *l, nb_weight *w, const char *name, int64_t rows, int64_t cols, nb_gguf_order order) {
    char *full = nb_asprintf("%s.weight", name);
    const nb_gguf_tensor *t;
    nb_status st = find(l, full, rows, cols, 1, &t);
    free(full);
    return st == NB_OK ? rows_of(l, w, t, 0, rows, order) : st;
}

static nb_status norm(loader *l, const float **weight, const float **bias, const char *name, int64_t n) {
    const nb_spec *s = &l->b->spec;
    if (s->bare_norm) return nb_base_ones(l->b, weight, n);
    NB_TRY(vector(l, weight, name, "weight", n, as_they_are, s->norm_offset, false));
    return s->norm_kind == NB_NORM_LAYER ? vector(l, bias, name, "bias", n, as_they_are, 0, false) : NB_OK;
}

/* q, k and v may lie in one tensor where the model has three. */
static nb_status fused(loader *l, nb_base_linear *lin, int64_t layer, nb_slot k, bool *done) {
    const nb_spec *s = &l->b->spec;
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, all = q + 2 * kv;
    int64_t first = k == NB_Q ? 0 : k == NB_K ? q : q + kv, rows = k == NB_Q ? q : kv;
    const nb_gguf_order order = nb_gguf_order_of(s, k);
    char name[NB_GGUF_NAME];
    const nb_gguf_tensor *t;
    snprintf(name, sizeof name, "blk.%lld.attn_qkv.weight", (long long)layer);
    *done = (k == NB_Q || k == NB_K || k == NB_V) && nb_gguf_model_tensor(l->m, name);
    if (!*done) return NB_OK;
    NB_TRY(find(l, name, all, s->hidden, 1, &t));
    NB_TRY(rows_of(l, &lin->w, t, first, rows, order));
    if (!nb_spec_linear_bias(s, k)) return NB_OK;
    const float *bias;
    snprintf(name, sizeof name, "blk.%lld.attn_qkv", (long long)layer);
    NB_TRY(vector(l, &bias, name, "bias", all, as_they_are, 0, false));
    float *own;
    NB_TRY(nb_base_buffer(l->b, (void **)&own, (size_t)rows * sizeof *own, name));
    for (int64_t i = 0; i < rows; i++) own[nb_gguf_row(i, &order)] = bias[first + i];
    lin->bias = own;
    return NB_OK;
}

/* All experts of a kind, from the slot of the first: slices of one tensor. */
static nb_status experts(loader *l, int64_t layer, int first) {
    const nb_spec *s = &l->b->spec;
    nb_base_linear *lin = l->b->layer[layer].lin + first;
    const nb_gguf_tensor *t;
    int64_t rows, cols;
    char name[NB_GGUF_NAME];
    nb_spec_linear_shape(s, layer, first, &rows, &cols);
    nb_gguf_linear_name(s, layer, first, name);
    char *full = nb_asprintf("%s.weight", name);
    nb_status st = find(l, full, rows, cols, s->experts, &t);
    for (int64_t e = 0; e < s->experts && st == NB_OK; e++) st = rows_of(l, &lin[e].w, t, e * rows, rows, as_they_are);
    free(full);
    return st;
}

static nb_status load_layer(loader *l, int64_t layer) {
    const nb_spec *s = &l->b->spec;
    nb_base_layer *y = &l->b->layer[layer];
    char name[NB_GGUF_NAME];
    for (nb_norm_slot k = 0; k < NB_NORMS; k++) {
        nb_gguf_norm_name(layer, k, name);
        if (nb_spec_norm_size(s, k)) NB_TRY(norm(l, &y->norm[k], &y->norm_bias[k], name, nb_spec_norm_size(s, k)));
    }
    for (nb_slot k = 0; k < NB_SLOTS; k++) {
        int64_t rows, cols;
        bool done;
        nb_spec_linear_shape(s, layer, k, &rows, &cols);
        if (!rows) continue;
        NB_TRY(fused(l, &y->lin[k], layer, k, &done));
        if (done) continue;
        nb_gguf_linear_name(s, layer, k, name);
        NB_TRY(matrix(l, &y->lin[k].w, name, rows, cols, nb_gguf_order_of(s, k)));
        if (nb_spec_linear_bias(s, k))
            NB_TRY(vector(l, &y->lin[k].bias, name, "bias", rows, nb_gguf_order_of(s, k), 0, true));
    }
    for (int k = NB_SLOTS; k < nb_spec_slots(s) && s->layer[layer].sparse; k += (int)s->experts)
        NB_TRY(experts(l, layer, k));
    return NB_OK;
}

/* A tensor that nothing asked for is part of another mathematics. The factors of rope are read with the keys,
 * and some files have a tied head twice. */
static nb_status refuse_unused(const loader *l) {
    for (int i = 0; i < l->m->n; i++)
        for (int64_t k = 0; k < l->m->part[i].n_tensors; k++) {
            const char *name = l->m->part[i].tensors[k].name;
            bool known = !strncmp(name, "rope_f", 6) || (l->b->spec.tied && !strcmp(name, "output.weight"));
            if (!l->used[i][k] && !known)
                return nb_fail(NB_EUNSUPPORTED, "%s: tensor \"%s\" has no place in this architecture",
                               l->m->part[i].map.path, name);
        }
    return NB_OK;
}

static nb_status load_all(loader *l) {
    nb_base *b = l->b;
    const nb_spec *s = &b->spec;
    NB_TRY(matrix(l, &b->embed, "token_embd", s->vocab, s->hidden, as_they_are));
    if (s->learned_positions) NB_TRY(matrix(l, &b->positions, "position_embd", s->context, s->hidden, as_they_are));
    if (s->tied) b->head.w = b->embed;
    else NB_TRY(matrix(l, &b->head.w, "output", s->vocab, s->hidden, as_they_are));
    if (s->head_bias) NB_TRY(vector(l, &b->head.bias, "output", "bias", s->vocab, as_they_are, 0, false));
    NB_TRY(norm(l, &b->final_norm, &b->final_norm_bias, "output_norm", s->hidden));
    for (int64_t k = 0; k < s->layers; k++) NB_TRY(load_layer(l, k));
    for (int64_t k = 0; k < s->layers * nb_spec_slots(s); k++)
        b->in_blocks |= nb_format_block(b->layer[0].lin[k].w.format) > 1;
    return refuse_unused(l);
}

nb_status nb_base_load_gguf(nb_base *b) {
    nb_gguf_model *m = b->store->gguf = NB_NEW(nb_gguf_model);
    NB_TRY(nb_gguf_model_open(m, b->dir));
    loader l = {.b = b, .m = m, .used = nb_calloc((size_t)m->n, sizeof *l.used)};
    for (int i = 0; i < m->n; i++) l.used[i] = nb_calloc((size_t)m->part[i].n_tensors + 1, sizeof **l.used);
    nb_status st = load_all(&l);
    for (int i = 0; i < m->n; i++) free(l.used[i]);
    free(l.used);
    return st;
}
