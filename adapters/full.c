/* adapter: full. The model's own weights as f32 parameters; saved as a Hugging Face folder. */
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "model/safetensors.h"

static void count_linear(nb_linear *lin, int64_t layer, void *arg) {
    (void)layer;
    *(int *)arg += lin->base->bias ? 2 : 1;
}

static void attach_linear(nb_linear *lin, int64_t layer, void *arg) {
    (void)layer;
    nb_adapter *a = arg;
    if (lin == &a->model->head && a->model->spec->tied) return;
    const nb_weight *w = &lin->base->w;
    nb_tensor *W = nb_adapter_param(a, nb_asprintf("%s.weight", lin->base->name), 2, w->rows, w->cols), *bias = NULL;
    if (lin->base->bias) bias = nb_adapter_param(a, nb_asprintf("%s.bias", lin->base->name), 1, w->rows, 0);
    a->attached[a->n_attached++] = (struct nb_attached){.lin = lin, .A = W, .B = bias};
}

static nb_status fill_from_weight(nb_adapter *a, nb_tensor *p, const nb_weight *w) {
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

static nb_status fill_vector(nb_adapter *a, nb_tensor *p, const float *v) {
    return a->dev->be->put(a->dev, p->data, v, (size_t)p->d[0] * sizeof(float));
}

nb_status nb_adapter_new_full(nb_adapter **out, nb_model *m) {
    int n = 0;
    if (m->spec->norm_kind == NB_NORM_LAYER)
        return nb_fail(NB_EUNSUPPORTED, "adapter: full does not train models with layer norms (%s): use lora or qlora",
                       m->spec->architecture);
    nb_model_each_linear(m, true, count_linear, &n);
    nb_adapter *a = nb_adapter_alloc(m, n + 2 + NB_NORMS * (int)m->spec->layers);
    a->full = true;
    const nb_spec *s = m->spec;
    a->embed = nb_adapter_param(a, nb_asprintf("%s.weight", nb_spec_embed_name(s)), 2, s->vocab, s->hidden);
    a->norms = nb_calloc((size_t)(s->layers * NB_NORMS + 1), sizeof *a->norms);
    for (int64_t l = 0; l < s->layers; l++)
        for (int i = 0; i < NB_NORMS; i++) {
            char *path = nb_spec_norm_name(s, l, i);
            if (path)
                a->norms[l * NB_NORMS + i] =
                    nb_adapter_param(a, nb_asprintf("%s.weight", path), 1, nb_spec_norm_size(s, i), 0);
            free(path);
        }
    a->norms[s->layers * NB_NORMS] =
        nb_adapter_param(a, nb_asprintf("%s.weight", nb_spec_final_norm_name(s)), 1, s->hidden, 0);
    nb_model_each_linear(m, true, attach_linear, a);
    nb_status st = nb_adapter_place(a, true);
    if (st == NB_OK) st = fill_from_weight(a, a->embed, &m->base->embed);
    for (int64_t l = 0; l < s->layers && st == NB_OK; l++)
        for (int i = 0; i < NB_NORMS && st == NB_OK; i++)
            if (a->norms[l * NB_NORMS + i])
                st = fill_vector(a, a->norms[l * NB_NORMS + i], m->base->layer[l].norm[i]);
    if (st == NB_OK) st = fill_vector(a, a->norms[s->layers * NB_NORMS], m->base->final_norm);
    for (int i = 0; i < a->n_attached && st == NB_OK; i++) {
        const struct nb_attached *at = &a->attached[i];
        st = fill_from_weight(a, at->A, &at->lin->base->w);
        if (st == NB_OK && at->B) st = fill_vector(a, at->B, at->lin->base->bias);
    }
    if (st != NB_OK) {
        nb_adapter_free(a);
        return st;
    }
    nb_adapter_enable(a, true);
    *out = a;
    return NB_OK;
}

static void enable_full(nb_adapter *a, bool on) {
    nb_model *m = a->model;
    int64_t L = m->spec->layers;
    m->embed_trained = on ? a->embed : NULL;
    if (m->spec->tied) m->head.weight = m->embed_trained;
    for (int64_t l = 0; l < L; l++)
        for (int i = 0; i < NB_NORMS; i++) m->block[l].norm_trained[i] = on ? a->norms[l * NB_NORMS + i] : NULL;
    m->final_norm_trained = on ? a->norms[L * NB_NORMS] : NULL;
    for (int i = 0; i < a->n_attached; i++) {
        struct nb_attached *at = &a->attached[i];
        at->lin->weight = on ? at->A : NULL;
        at->lin->bias_trained = on ? at->B : NULL;
    }
}

static void enable_lora(nb_adapter *a, bool on) {
    for (int i = 0; i < a->n_attached; i++) {
        struct nb_attached *at = &a->attached[i];
        at->lin->lora_A = on ? at->A : NULL;
        at->lin->lora_B = on ? at->B : NULL;
        at->lin->magnitude = on ? at->magnitude : NULL;
        at->lin->squares = at->squares;
        at->lin->scale = at->scale;
        at->lin->dropout = (float)a->dropout;
    }
    a->model->rows = on ? a->rows : (nb_token_rows){0};
}

void nb_adapter_enable(nb_adapter *a, bool on) {
    (a->full ? enable_full : enable_lora)(a, on);
    a->enabled = on;
    a->model->changes++;
}

/* ---- saving a whole model ---- */

static nb_status put_param(const nb_adapter *a, nb_st_writer *w, const nb_tensor *p, nb_dtype dtype) {
    int64_t n = nb_tensor_size(p);
    float *host = nb_malloc((size_t)n * sizeof *host);
    nb_status st = a->dev->be->get(a->dev, host, p->data, (size_t)n * sizeof *host);
    if (dtype != NB_F32) {
        uint16_t *half = (uint16_t *)(void *)host; /* narrowed in place, front to back */
        for (int64_t i = 0; i < n; i++) {
            uint16_t h = dtype == NB_BF16 ? nb_f32_to_bf16(host[i]) : nb_f32_to_f16(host[i]);
            memcpy(&half[i], &h, sizeof h);
        }
    }
    if (st == NB_OK) st = nb_st_write_data(w, p->name, host, (size_t)(n * nb_dtype_size(dtype)));
    free(host);
    return st;
}

nb_status nb_adapter_save_full(const nb_adapter *a, const char *dir, nb_dtype dtype, const nb_tokenizer *own) {
    char *tmp = nb_asprintf("%s.tmp", dir), *path = nb_path_join(tmp, "model.safetensors");
    json_t *meta = json_pack("{s:s}", "format", "pt");
    nb_st_writer *w = NULL;
    nb_status st;
    NB_GO(st, nb_remove_tree(tmp), done);
    NB_GO(st, nb_mkdirs(tmp), done);
    NB_GO(st, nb_copy_model_files(a->model->base->dir, tmp), done);
    if (own) NB_GO(st, nb_put_vocabulary(a->model->spec, own, tmp), done);
    NB_GO(st, nb_st_write_begin(&w, path, meta), done);
    for (int i = 0; i < a->n_params && st == NB_OK; i++)
        st = nb_st_write_declare(w, a->params[i].name, dtype, a->params[i].n_dims, a->params[i].d);
    for (int i = 0; i < a->n_params && st == NB_OK; i++) st = put_param(a, w, &a->params[i], dtype);
    if (st != NB_OK) nb_st_write_abort(w);
    else st = nb_st_write_end(w);
    if (st == NB_OK) st = nb_replace_dir(tmp, dir);
done:
    if (st != NB_OK) nb_remove_tree(tmp);
    json_decref(meta);
    free(path);
    free(tmp);
    return st;
}
