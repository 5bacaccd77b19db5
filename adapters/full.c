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

/* Weight and bias of a norm, in the place of layer l or, behind them all, of the final one. */
static void declare_norm(nb_adapter *a, int64_t at, const char *module, int64_t n) {
    const nb_spec *s = a->model->spec;
    if (!module || s->bare_norm) return;
    a->norms[at] = nb_adapter_param(a, nb_asprintf("%s.weight", module), 1, n, 0);
    if (s->norm_kind == NB_NORM_RMS) return;
    a->norm_biases[at] = nb_adapter_param(a, nb_asprintf("%s.bias", module), 1, n, 0);
}

static void declare(nb_adapter *a) {
    const nb_spec *s = a->model->spec;
    a->embed = nb_adapter_param(a, nb_asprintf("%s.weight", nb_spec_embed_name(s)), 2, s->vocab, s->hidden);
    if (s->learned_positions)
        a->positions =
            nb_adapter_param(a, nb_asprintf("%s.weight", nb_spec_positions_name(s)), 2, s->context, s->hidden);
    a->norms = nb_calloc((size_t)(s->layers * NB_NORMS + 1), sizeof *a->norms);
    a->norm_biases = nb_calloc((size_t)(s->layers * NB_NORMS + 1), sizeof *a->norm_biases);
    for (int64_t l = 0; l < s->layers; l++)
        for (int i = 0; i < NB_NORMS; i++) {
            char *module = nb_spec_norm_name(s, l, i);
            declare_norm(a, l * NB_NORMS + i, module, nb_spec_norm_size(s, i));
            free(module);
        }
    declare_norm(a, s->layers * NB_NORMS, nb_spec_final_norm_name(s), s->hidden);
    nb_model_each_linear(a->model, true, attach_linear, a);
}

/* Every parameter starts as the base has it. */
static nb_status fill(nb_adapter *a) {
    const nb_base *b = a->model->base;
    int64_t L = b->spec.layers;
    NB_TRY(fill_from_weight(a, a->embed, &b->embed));
    if (a->positions) NB_TRY(fill_from_weight(a, a->positions, &b->positions));
    for (int64_t i = 0; i <= L * NB_NORMS; i++) {
        bool last = i == L * NB_NORMS;
        const nb_base_layer *layer = last ? NULL : &b->layer[i / NB_NORMS];
        if (a->norms[i]) NB_TRY(fill_vector(a, a->norms[i], last ? b->final_norm : layer->norm[i % NB_NORMS]));
        if (a->norm_biases[i])
            NB_TRY(fill_vector(a, a->norm_biases[i], last ? b->final_norm_bias : layer->norm_bias[i % NB_NORMS]));
    }
    for (int i = 0; i < a->n_attached; i++) {
        const struct nb_attached *at = &a->attached[i];
        NB_TRY(fill_from_weight(a, at->A, &at->lin->base->w));
        if (at->B) NB_TRY(fill_vector(a, at->B, at->lin->base->bias));
    }
    return NB_OK;
}

nb_status nb_adapter_new_full(nb_adapter **out, nb_model *m) {
    int n = 0;
    nb_model_each_linear(m, true, count_linear, &n);
    nb_adapter *a = nb_adapter_alloc(m, n + 4 + 2 * NB_NORMS * (int)m->spec->layers);
    a->full = true;
    declare(a);
    nb_status st = nb_adapter_place(a, true);
    if (st == NB_OK) st = fill(a);
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
    m->positions_trained = on ? a->positions : NULL;
    if (m->spec->tied) m->head.weight = m->embed_trained;
    for (int64_t l = 0; l < L; l++)
        for (int i = 0; i < NB_NORMS; i++) {
            m->block[l].norm_trained[i] = on ? a->norms[l * NB_NORMS + i] : NULL;
            m->block[l].norm_bias_trained[i] = on ? a->norm_biases[l * NB_NORMS + i] : NULL;
        }
    m->final_norm_trained = on ? a->norms[L * NB_NORMS] : NULL;
    m->final_norm_bias_trained = on ? a->norm_biases[L * NB_NORMS] : NULL;
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

/* Does the file have it as [in, out]? */
static bool is_turned(const nb_adapter *a, const nb_tensor *p) {
    bool linear = false;
    for (int i = 0; i < a->n_attached; i++) linear |= a->attached[i].A == p && a->attached[i].lin != &a->model->head;
    return linear && a->model->spec->stored_transposed;
}

static nb_status put_param(const nb_adapter *a, nb_st_writer *w, const nb_tensor *p, nb_dtype dtype) {
    int64_t n = nb_tensor_size(p);
    float *host = nb_malloc((size_t)n * sizeof *host);
    nb_status st = a->dev->be->get(a->dev, host, p->data, (size_t)n * sizeof *host);
    if (is_turned(a, p)) {
        float *turned = nb_malloc((size_t)n * sizeof *turned);
        nb_weight_turn(turned, &(nb_weight){.format = NB_FMT_F32, .rows = p->d[1], .cols = p->d[0], .data = host});
        free(host);
        host = turned;
    }
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
    for (int i = 0; i < a->n_params && st == NB_OK; i++) {
        const nb_tensor *p = &a->params[i];
        int64_t turned[2] = {p->d[1], p->d[0]};
        st = nb_st_write_declare(w, p->name, dtype, p->n_dims, is_turned(a, p) ? turned : p->d);
    }
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
