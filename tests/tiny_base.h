/* Tiny model folders made by the tests themselves: random weights under any config. */
#ifndef NB_TESTS_TINY_BASE_H
#define NB_TESTS_TINY_BASE_H

#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "tests/test.h"

#define TINY_LLAMA                                                                                             \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 40, "              \
    "\"hidden_size\": 24, \"intermediate_size\": 36, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "   \
    "\"num_key_value_heads\": 2, \"head_dim\": 6, \"rms_norm_eps\": 1e-5, \"torch_dtype\": \"bfloat16\", "     \
    "\"tie_word_embeddings\": true, \"max_position_embeddings\": 64, \"bos_token_id\": 1, \"eos_token_id\": 2"

static inline void tiny_declare(nb_st_writer *w, json_t *names, const char *module, const char *what, nb_dtype dt,
                                int64_t d0, int64_t d1) {
    char *name = nb_asprintf("%s.%s", module, what);
    int64_t d[2] = {d0, d1};
    assert_ok(nb_st_write_declare(w, name, dt, d1 ? 2 : 1, d));
    json_object_set_new(names, name, json_integer(d0 * (d1 ? d1 : 1)));
    free(name);
}

/* Writes the values of every declared tensor: normal(0, 1), from `seed` and the order of declaration. */
static inline void tiny_fill(nb_st_writer *w, const json_t *names, nb_dtype dt, uint64_t seed) {
    const char *name;
    json_t *count;
    uint64_t index = 0;
    json_object_foreach((json_t *)(uintptr_t)names, name, count) {
        int64_t n = json_integer_value(count);
        nb_rng r = nb_rng_open(seed, NB_RNG_TEST, index++);
        void *data = nb_malloc((size_t)n * 4);
        for (int64_t i = 0; i < n; i++) {
            float x = (float)nb_rng_normal(&r);
            if (dt == NB_F32) ((float *)data)[i] = x;
            else ((uint16_t *)data)[i] = dt == NB_BF16 ? nb_f32_to_bf16(x) : nb_f32_to_f16(x);
        }
        assert_ok(nb_st_write_data(w, name, data, (size_t)n * (size_t)nb_dtype_size(dt)));
        free(data);
    }
}

/* A fresh folder NAME under the test's temporary one with this config.json and weights that match it, held in the
 * config's dtype. Caller frees the path. */
static inline char *tiny_base(const char *name, const char *config, uint64_t seed) {
    char *dir = nb_path_join(nb_test_tmp(), name), *cfg = nb_path_join(dir, "config.json");
    char *file = nb_path_join(dir, "model.safetensors");
    nb_spec s;
    nb_st_writer *w;
    int64_t rows, cols;
    assert_ok(nb_remove_tree(dir));
    assert_ok(nb_mkdirs(dir));
    assert_ok(nb_file_write(cfg, config, strlen(config)));
    assert_ok(nb_spec_load(&s, dir));
    json_t *meta = json_pack("{s:s}", "format", "pt"), *names = json_object();
    assert_ok(nb_st_write_begin(&w, file, meta));
    tiny_declare(w, names, nb_spec_embed_name(&s), "weight", s.dtype, s.vocab, s.hidden);
    tiny_declare(w, names, nb_spec_final_norm_name(&s), "weight", s.dtype, s.hidden, 0);
    if (!s.tied) tiny_declare(w, names, nb_spec_head_name(&s), "weight", s.dtype, s.vocab, s.hidden);
    for (int64_t l = 0; l < s.layers; l++) {
        for (nb_norm_slot k = 0; k < NB_NORMS; k++) {
            char *module = nb_spec_norm_name(&s, l, k);
            if (module) tiny_declare(w, names, module, "weight", s.dtype, nb_spec_norm_size(&s, k), 0);
            free(module);
        }
        for (int k = 0; k < nb_spec_slots(&s); k++) {
            char *module = nb_spec_linear_name(&s, l, k);
            nb_spec_linear_shape(&s, l, k, &rows, &cols);
            if (rows) tiny_declare(w, names, module, "weight", s.dtype, rows, cols);
            if (rows && nb_spec_linear_bias(&s, k)) tiny_declare(w, names, module, "bias", s.dtype, rows, 0);
            free(module);
        }
    }
    tiny_fill(w, names, s.dtype, seed);
    assert_ok(nb_st_write_end(w));
    json_decref(meta);
    json_decref(names);
    free(cfg);
    free(file);
    return dir;
}

/* ---- comparing and damaging ---- */

/* The values of all linear layers, one behind another. Caller frees. */
static inline float *values(const nb_base *b, int64_t *n) {
    *n = 0;
    for (int64_t l = 0; l < b->spec.layers; l++)
        for (int k = 0; k < nb_spec_slots(&b->spec); k++) *n += b->layer[l].lin[k].w.rows * b->layer[l].lin[k].w.cols;
    float *x = nb_malloc((size_t)*n * sizeof *x), *at = x;
    for (int64_t l = 0; l < b->spec.layers; l++)
        for (int k = 0; k < nb_spec_slots(&b->spec); k++) {
            const nb_weight *w = &b->layer[l].lin[k].w;
            if (!w->rows) continue;
            nb_weight_decode(at, w->cols, w, 0, w->rows, 0, w->cols);
            at += w->rows * w->cols;
        }
    return x;
}

static inline void assert_same_values(const nb_base *x, const nb_base *y) {
    int64_t n, m;
    float *v = values(x, &n), *w = values(y, &m);
    assert_int_equal(n, m);
    assert_memory_equal(v, w, (size_t)n * sizeof *v);
    free(v);
    free(w);
}

static inline void overwrite(const char *path, int64_t at, const char *text) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, at, SEEK_SET);
    fputs(text, f);
    fclose(f);
}

typedef struct load_args {
    const char *dir, *out;
    nb_base_options o;
    nb_base *b;
    nb_status st;
} load_args;

static inline void load_it(void *arg) {
    load_args *a = arg;
    a->st = nb_base_load(&a->b, a->dir, &a->o);
}

/* Copies DIR's model.safetensors through `edit`, which may change a tensor's declaration and data; an empty name
 * drops it. */
typedef struct copied {
    char name[256];
    nb_dtype dtype;
    int n_dims;
    int64_t d[8];
    char *data;
    size_t bytes;
} copied;

static inline void rewrite(const char *dir, void (*edit)(copied *t, const void *arg), const void *arg) {
    char *path = nb_path_join(dir, "model.safetensors");
    nb_st s;
    nb_st_writer *w;
    assert_ok(nb_st_open_file(&s, path));
    assert_ok(nb_st_write_begin(&w, path, NULL));
    copied *all = nb_calloc((size_t)s.n_tensors, sizeof *all);
    for (int i = 0; i < s.n_tensors; i++) {
        const nb_st_tensor *t = &s.tensors[i];
        copied *c = &all[i];
        snprintf(c->name, sizeof c->name, "%s", t->name);
        c->dtype = t->dtype, c->n_dims = t->n_dims, c->bytes = t->bytes;
        memcpy(c->d, t->d, sizeof c->d);
        c->data = nb_malloc(t->bytes + 4096);
        memcpy(c->data, t->data, t->bytes);
        edit(c, arg);
        if (c->name[0]) assert_ok(nb_st_write_declare(w, c->name, c->dtype, c->n_dims, c->d));
    }
    for (int i = 0; i < s.n_tensors; i++) {
        if (all[i].name[0]) assert_ok(nb_st_write_data(w, all[i].name, all[i].data, all[i].bytes));
        free(all[i].data);
    }
    assert_ok(nb_st_write_end(w));
    nb_st_close(&s);
    free(all);
    free(path);
}

#define TARGET "model.layers.1.mlp.up_proj.weight"

typedef struct change {
    const char *tensor; /* which */
    const char *rename; /* "" drops it */
    int64_t d0, d1;     /* new shape, bytes follow */
    int dtype;          /* 0: as it is, else dtype + 1 */
    const char *text;   /* new contents */
    nb_status status;
    const char *message;
} change;

static inline void apply(copied *t, const void *arg) {
    const change *c = arg;
    if (strcmp(t->name, c->tensor) != 0) return;
    if (c->rename) snprintf(t->name, sizeof t->name, "%s", c->rename);
    if (c->dtype) t->dtype = (nb_dtype)(c->dtype - 1);
    if (c->d0) {
        t->d[0] = c->d0, t->d[1] = c->d1, t->n_dims = c->d1 ? 2 : 1;
        t->bytes = (size_t)(c->d0 * (c->d1 ? c->d1 : 1)) * (size_t)nb_dtype_size(t->dtype);
    }
    if (c->text) {
        memset(t->data, ' ', t->bytes);
        memcpy(t->data, c->text, strlen(c->text));
    }
}

#endif
