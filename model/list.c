/* What a base holds: what its formats are, and the same as the tensors of a Hugging Face folder. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/base.h"

static bool is_weight_of(const char *tensor, const char *module) {
    size_t n = strlen(module);
    return !strncmp(tensor, module, n) && !strcmp(tensor + n, ".weight");
}

const nb_weight *nb_base_matrix(const nb_base *b, const char *tensor) {
    if (is_weight_of(tensor, nb_spec_embed_name(&b->spec))) return &b->embed;
    if (b->positions.rows && is_weight_of(tensor, nb_spec_positions_name(&b->spec))) return &b->positions;
    if (is_weight_of(tensor, b->head.name)) return nb_base_stored_head(b);
    int64_t i = nb_names_find_weight(&b->store->linear, tensor);
    return i >= 0 && b->layer[0].lin[i].w.rows ? &b->layer[0].lin[i].w : NULL;
}

static void add(nb_st *s, int *cap, const char *module, const char *what, nb_st_tensor t) {
    NB_GROW(s->tensors, s->n_tensors, *cap);
    t.name = nb_asprintf("%s.%s", module, what);
    t.bytes = (size_t)(t.d[0] * (t.n_dims == 2 ? t.d[1] : 1) * nb_dtype_size(t.dtype));
    s->tensors[s->n_tensors++] = t;
}

static void add_vector(nb_st *s, int *cap, const char *module, const char *what, const float *x, int64_t n) {
    if (x) add(s, cap, module, what, (nb_st_tensor){.dtype = NB_F32, .n_dims = 1, .d = {n}, .data = x});
}

static void add_linear(nb_st *s, int *cap, const nb_base_linear *lin, bool turned) {
    const nb_weight *w = &lin->w;
    nb_st_tensor t = {.dtype = NB_BF16, .n_dims = 2, .d = {turned ? w->cols : w->rows, turned ? w->rows : w->cols}};
    if (w->format == NB_FMT_NF4) t.dtype = w->nf4.dtype;
    if (w->format <= NB_FMT_F16) t.dtype = (nb_dtype)w->format;
    if (w->format <= NB_FMT_F16 && !turned) t.data = w->data;
    add(s, cap, lin->name, "weight", t);
    add_vector(s, cap, lin->name, "bias", lin->bias, w->rows);
}

static int by_name(const void *x, const void *y) {
    return strcmp(((const nb_st_tensor *)x)->name, ((const nb_st_tensor *)y)->name);
}

void nb_base_list(const nb_base *b, nb_st *s) {
    const nb_spec *spec = &b->spec;
    int cap = 0;
    nb_base_linear embed = {.name = (char *)(uintptr_t)nb_spec_embed_name(spec), .w = b->embed};
    *s = (nb_st){.files = nb_calloc(1, sizeof *s->files), .n_files = 1};
    s->files[0].path = nb_strdup("model.safetensors");
    add_linear(s, &cap, &embed, false);
    if (spec->learned_positions) {
        nb_base_linear positions = {.name = (char *)(uintptr_t)nb_spec_positions_name(spec), .w = b->positions};
        add_linear(s, &cap, &positions, false);
    }
    if (!spec->tied) add_linear(s, &cap, &b->head, false);
    if (!spec->bare_norm) {
        add_vector(s, &cap, nb_spec_final_norm_name(spec), "weight", b->final_norm, spec->hidden);
        add_vector(s, &cap, nb_spec_final_norm_name(spec), "bias", b->final_norm_bias, spec->hidden);
    }
    for (int64_t l = 0; l < spec->layers; l++) {
        const nb_base_layer *y = &b->layer[l];
        for (nb_norm_slot k = 0; k < NB_NORMS && !spec->bare_norm; k++) {
            char *module = nb_spec_norm_name(spec, l, k);
            if (!module) continue;
            add_vector(s, &cap, module, "weight", y->norm[k], nb_spec_norm_size(spec, k));
            add_vector(s, &cap, module, "bias", y->norm_bias[k], nb_spec_norm_size(spec, k));
            free(module);
        }
        for (int k = 0; k < nb_spec_slots(spec); k++)
            if (y->lin[k].w.rows) add_linear(s, &cap, &y->lin[k], spec->stored_transposed);
    }
    qsort(s->tensors, (size_t)s->n_tensors, sizeof *s->tensors, by_name);
}

const char *nb_base_format(const nb_base *b) {
    double size[NB_FMT_COUNT] = {0};
    nb_format most = NB_FMT_F32;
    for (int64_t i = 0; i < b->spec.layers * nb_spec_slots(&b->spec); i++) {
        const nb_weight *w = &b->layer[0].lin[i].w;
        size[w->format] += (double)w->rows * (double)w->cols;
    }
    for (nb_format f = 0; f < NB_FMT_COUNT; f++)
        if (size[f] > size[most]) most = f;
    return nb_format_name(most);
}
