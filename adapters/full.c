/* adapter: full. The model's own weights as f32 parameters; saved as a Hugging Face folder. */
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "model/safetensors.h"

static void count(const nb_module *m, void *arg) { *(int *)arg += m->bias ? 2 : 1; }

/* A tied head is the embedding. */
static void attach(const nb_module *m, void *arg) {
    nb_adapter *a = arg;
    if (m->weight_at == &a->model->head.weight && a->model->spec->tied) nb_adapter_tie_head(a);
    else nb_adapter_attach_whole(a, m);
}

nb_status nb_adapter_new_full(nb_adapter **out, nb_model *m) {
    int n = 0;
    nb_modules_each(m, count, &n);
    nb_adapter *a = nb_adapter_alloc(m, n);
    a->full = true;
    nb_modules_each(m, attach, a);
    nb_status st = nb_adapter_place(a, true);
    if (st == NB_OK) st = nb_adapter_fill_whole(a);
    if (st != NB_OK) {
        nb_adapter_free(a);
        return st;
    }
    nb_adapter_enable(a, true);
    *out = a;
    return NB_OK;
}

static nb_status put_param(const nb_adapter *a, nb_st_writer *w, const nb_tensor *p, nb_dtype dtype) {
    int64_t n = nb_tensor_size(p);
    float *host = nb_malloc((size_t)n * sizeof *host);
    nb_status st = nb_adapter_fetch(a, p, p->data, host);
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
    if (own) NB_GO(st, nb_put_vocabulary(a->model->spec, own, false, tmp), done);
    NB_GO(st, nb_st_write_begin(&w, path, meta), done);
    for (int i = 0; i < a->n_params && st == NB_OK; i++) {
        const nb_tensor *p = &a->params[i];
        int64_t turned[2] = {p->d[1], p->d[0]};
        st = nb_st_write_declare(w, p->name, dtype, p->n_dims, nb_adapter_is_turned(a, p) ? turned : p->d);
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
