/* Weights trained whole: all of a model's (adapter: full), or those of some modules beside an adapter (PEFT's
 * modules_to_save). Each is an f32 parameter that takes the base's place in the graph. */
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/mem.h"

typedef struct walk {
    nb_model *model;
    void (*fn)(const nb_module *, void *);
    void *arg;
} walk;

static void visit_vectors(const walk *w, const char *path, const float *weight, const float *bias, int64_t n,
                          nb_tensor **weight_at, nb_tensor **bias_at) {
    nb_module m = {path, NULL, false, weight, bias, n, weight_at, bias_at};
    w->fn(&m, w->arg);
}

static void visit_linear(nb_linear *lin, int64_t layer, void *arg) {
    const walk *w = arg;
    bool head = layer < 0;
    const nb_weight *from = head ? nb_base_stored_head(w->model->base) : &lin->base->w;
    nb_module m = {lin->base->name, from, !head && w->model->spec->stored_transposed, NULL, lin->base->bias, from->rows,
                   &lin->weight, &lin->bias_trained};
    w->fn(&m, w->arg);
}

static void visit_table(const walk *w, const char *path, const nb_weight *table, nb_tensor **weight_at) {
    nb_module m = {path, table, false, NULL, NULL, 0, weight_at, NULL};
    w->fn(&m, w->arg);
}

static void visit_norms(const walk *w) {
    nb_model *m = w->model;
    const nb_spec *s = m->spec;
    for (int64_t l = 0; l < s->layers; l++)
        for (int i = 0; i < NB_NORMS; i++) {
            const nb_base_layer *b = &m->base->layer[l];
            char *path = nb_spec_norm_name(s, l, i);
            if (path)
                visit_vectors(w, path, b->norm[i], b->norm_bias[i], nb_spec_norm_size(s, i),
                              &m->block[l].norm_trained[i], &m->block[l].norm_bias_trained[i]);
            free(path);
        }
    visit_vectors(w, nb_spec_final_norm_name(s), m->base->final_norm, m->base->final_norm_bias, s->hidden,
                  &m->final_norm_trained, &m->final_norm_bias_trained);
}

void nb_modules_each(nb_model *m, void (*fn)(const nb_module *, void *), void *arg) {
    const nb_spec *s = m->spec;
    walk w = {m, fn, arg};
    visit_table(&w, nb_spec_embed_name(s), &m->base->embed, &m->embed_trained);
    if (s->learned_positions) visit_table(&w, nb_spec_positions_name(s), &m->base->positions, &m->positions_trained);
    if (!s->bare_norm) visit_norms(&w);
    nb_model_each_linear(m, true, visit_linear, &w);
}

/* ---- names ---- */

static bool ends_with(const char *s, size_t n, const char *end) {
    size_t m = strlen(end);
    return n >= m && !strncmp(s + n - m, end, m);
}

bool nb_saves_module(char *const *keys, int n, const char *path, bool *used) {
    bool yes = false;
    for (const char *end = path; *end; end++) {
        if (end[1] && end[1] != '.') continue; /* path is a module up to here */
        for (int i = 0; i < n; i++)
            if (ends_with(path, (size_t)(end + 1 - path), keys[i])) {
                yes = true;
                if (used) used[i] = true;
            }
    }
    return yes;
}

/* ---- parameters ---- */

static void put_whole(nb_adapter *a, nb_tensor *p, nb_tensor **place, const nb_weight *matrix, bool turned,
                      const float *vector) {
    NB_GROW(a->whole, a->n_whole, a->cap_whole);
    a->whole[a->n_whole++] = (struct nb_whole){p, place, matrix, vector};
    a->turned[p - a->params] |= turned; /* GPT-2's files have weights as [in, out] */
}

void nb_adapter_attach_whole(nb_adapter *a, const nb_module *m) {
    const char *before = a->full ? "" : NB_PEFT_PREFIX;
    char *weight = nb_asprintf("%s%s.weight", before, m->path);
    nb_tensor *p = m->matrix ? nb_adapter_param(a, weight, 2, m->matrix->rows, m->matrix->cols)
                             : nb_adapter_param(a, weight, 1, m->n, 0);
    put_whole(a, p, m->weight_at, m->matrix, m->turned, m->vector);
    if (!m->bias) return;
    p = nb_adapter_param(a, nb_asprintf("%s%s.bias", before, m->path), 1, m->n, 0);
    put_whole(a, p, m->bias_at, NULL, false, m->bias);
}

void nb_adapter_tie_head(nb_adapter *a) {
    nb_model *m = a->model;
    nb_tensor *embed = NULL;
    for (int i = 0; i < a->n_whole; i++)
        if (a->whole[i].place == &m->embed_trained) embed = a->whole[i].param;
    if (embed) put_whole(a, embed, &m->head.weight, NULL, false, NULL);
}

static nb_status fill_matrix(nb_adapter *a, nb_tensor *p, const nb_weight *w) {
    enum { ROWS = 256 };
    float *host = nb_malloc((size_t)(ROWS * w->cols) * sizeof *host);
    nb_status st = NB_OK;
    for (int64_t i = 0; i < w->rows && st == NB_OK; i += ROWS) {
        int64_t m = w->rows - i < ROWS ? w->rows - i : ROWS;
        nb_weight_decode(host, w->cols, w, i, m, 0, w->cols);
        st = a->dev->be->put(a->dev, (float *)p->data + i * w->cols, host, (size_t)(m * w->cols) * sizeof *host);
    }
    free(host);
    return st;
}

nb_status nb_adapter_fill_whole(nb_adapter *a) {
    for (int i = 0; i < a->n_whole; i++) {
        const struct nb_whole *w = &a->whole[i];
        if (w->matrix) NB_TRY(fill_matrix(a, w->param, w->matrix));
        else if (w->vector)
            NB_TRY(a->dev->be->put(a->dev, w->param->data, w->vector, (size_t)w->param->d[0] * sizeof(float)));
    }
    return NB_OK;
}

const nb_tensor *nb_adapter_whole_at(const nb_adapter *a, nb_tensor *const *place) {
    for (int i = 0; i < a->n_whole; i++)
        if (a->whole[i].place == place) return a->whole[i].param;
    return NULL;
}

void nb_adapter_enable_whole(nb_adapter *a, bool on) {
    for (int i = 0; i < a->n_whole; i++) *a->whole[i].place = on ? a->whole[i].param : NULL;
}
