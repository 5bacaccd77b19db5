/* What a model folder says about its vocabulary once tokens were added, roles changed, or a tied head was trained. */
#include <stdlib.h>

#include "adapters/parts.h"
#include "adapters/tokenizer_open.h"
#include "core/file.h"
#include "core/json.h"
#include "model/gguf_base.h"

static void put_id(json_t *root, const char *key, int32_t id) {
    if (id >= 0) json_object_set_new(root, key, json_integer(id));
}

static void put_eos(json_t *root, const nb_tokenizer *t) {
    int n;
    const int32_t *ids = nb_tokenizer_eos_ids(t, &n);
    if (n == 1) put_id(root, "eos_token_id", ids[0]);
    if (n < 2) return;
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    json_object_set_new(root, "eos_token_id", list);
}

static nb_status rewrite(const char *dir, const char *name, const nb_spec *s, const nb_tokenizer *t, bool untied) {
    char *path = nb_path_join(dir, name);
    json_t *root = NULL;
    nb_status st = NB_OK;
    if (!nb_file_exists(path)) goto done;
    NB_GO(st, nb_json_load(path, &root), done);
    if (s) json_object_set_new(root, "vocab_size", json_integer(s->vocab));
    if (untied) json_object_set_new(root, "tie_word_embeddings", json_false());
    if (t) {
        put_id(root, "bos_token_id", nb_tokenizer_bos(t));
        put_id(root, "pad_token_id", nb_tokenizer_pad(t));
        put_eos(root, t);
    }
    st = nb_json_save(path, root);
done:
    json_decref(root);
    free(path);
    return st;
}

nb_status nb_put_vocabulary(const nb_spec *s, const nb_tokenizer *t, bool untied, const char *dir) {
    if (t) NB_TRY(nb_tokenizer_save(t, dir));
    NB_TRY(rewrite(dir, "config.json", s, t, untied));
    return t ? rewrite(dir, "generation_config.json", NULL, t, false) : NB_OK;
}

nb_status nb_put_float(const char *dir) {
    char *path = nb_path_join(dir, "config.json");
    json_t *root = NULL;
    nb_status st = nb_json_load(path, &root);
    if (st == NB_OK) {
        json_object_del(root, "quantization_config");
        st = nb_json_save(path, root);
    }
    json_decref(root);
    free(path);
    return st;
}

nb_status nb_make_model_files(const char *gguf, const char *to) {
    nb_gguf_model m;
    nb_tokenizer *t = NULL;
    json_t *config = NULL;
    char *path = nb_path_join(to, "config.json");
    nb_status st = nb_gguf_model_open(&m, gguf);
    if (st == NB_OK) {
        st = nb_gguf_config(&config, &m);
        nb_gguf_model_close(&m);
    }
    if (st == NB_OK) st = nb_json_save(path, config);
    if (st == NB_OK) {
        st = nb_tokenizer_open(&t, gguf);
        if (st == NB_EUNSUPPORTED) st = NB_OK; /* then the run had another, which is saved */
        else if (st == NB_OK) st = nb_tokenizer_save(t, to);
    }
    if (st == NB_OK && t) st = rewrite(to, "config.json", NULL, t, false);
    nb_tokenizer_free(t);
    json_decref(config);
    free(path);
    return st;
}
