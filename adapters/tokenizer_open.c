#include "adapters/tokenizer_open.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/mem.h"
#include "data/tokenizer_export.h"
#include "model/gguf_base.h"

static int32_t id_key(const nb_gguf *g, const char *name, int32_t absent) {
    int64_t id;
    char *key = nb_asprintf("tokenizer.ggml.%s_token_id", name);
    if (!nb_gguf_int(g, key, &id)) id = absent;
    free(key);
    return id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
}

static bool flag_key(const nb_gguf *g, const char *name, bool absent) {
    int64_t v = absent;
    char *key = nb_asprintf("tokenizer.ggml.%s", name);
    nb_gguf_int(g, key, &v);
    free(key);
    return v != 0;
}

/* llama.cpp goes by the model's name here: files have no key for it. */
static bool is_phi3(const nb_gguf *g) {
    char *name = nb_gguf_str(g, "general.name");
    for (char *p = name; p && *p; p++) *p = *p >= 'A' && *p <= 'Z' ? (char)(*p + 32) : *p;
    bool is = name && (strstr(name, "phi-3") || strstr(name, "phi3"));
    free(name);
    return is;
}

/* The lists; what is there is as long as the list of tokens. */
static nb_status read_lists(nb_token_list *l, const nb_gguf *g) {
    int64_t scores = -1, types = -1;
    if (!nb_gguf_strs(g, "tokenizer.ggml.tokens", &l->token, &l->n) || !l->n)
        return nb_fail(NB_EINPUT, "%s: has no list of tokens (tokenizer.ggml.tokens): name a tokenizer.json with "
                       "`tokenizer`", g->map.path);
    nb_gguf_f32s(g, "tokenizer.ggml.scores", &l->score, &scores);
    nb_gguf_i32s(g, "tokenizer.ggml.token_type", &l->type, &types);
    if (!nb_gguf_strs(g, "tokenizer.ggml.merges", &l->merge, &l->n_merges)) l->merge = NULL, l->n_merges = 0;
    if ((l->score && scores != l->n) || (l->type && types != l->n))
        return nb_fail(NB_EINPUT, "%s: %lld tokens with %lld scores and %lld types", g->map.path, (long long)l->n,
                       (long long)scores, (long long)types);
    return NB_OK;
}

/* Keys that change ids and that no list says. */
static nb_status refuse_keys(const nb_gguf *g) {
    static const char *const keys[] = {"remove_extra_whitespaces", "precompiled_charsmap", "escape_whitespaces"};
    static const bool neutral[] = {false, false, true};
    for (int i = 0; i < NB_LEN(keys); i++) {
        char *key = nb_asprintf("tokenizer.ggml.%s", keys[i]);
        const nb_gguf_key *k = nb_gguf_find_key(g, key);
        int64_t v = neutral[i];
        if (k && !nb_gguf_int(g, key, &v)) v = k->n ? !neutral[i] : neutral[i];
        free(key);
        if ((v != 0) != neutral[i])
            return nb_fail(NB_EUNSUPPORTED, "%s: tokenizer.ggml.%s is not supported: name a tokenizer.json with "
                           "`tokenizer`", g->map.path, keys[i]);
    }
    return NB_OK;
}

/* With llama.cpp's defaults (llama-vocab.cpp). */
static nb_status from_gguf(nb_tokenizer **out, const nb_gguf *g) {
    nb_token_list l = {0};
    char *model = nb_gguf_str(g, "tokenizer.ggml.model"), *pre = nb_gguf_str(g, "tokenizer.ggml.pre");
    char *template = nb_gguf_str(g, "tokenizer.chat_template");
    bool spm = model && !strcmp(model, "llama");
    int32_t ends[2];
    l.model = model ? model : "(none)", l.pre = pre ? pre : "(none)";
    l.bos = id_key(g, "bos", spm ? 1 : -1), l.eos = id_key(g, "eos", spm ? 2 : -1);
    l.unk = id_key(g, "unknown", spm ? 0 : -1), l.pad = id_key(g, "padding", -1);
    ends[0] = id_key(g, "eot", -1), ends[1] = id_key(g, "eom", -1);
    l.ends = ends, l.n_ends = NB_LEN(ends);
    l.add_bos = flag_key(g, "add_bos_token", nb_token_list_adds_bos(l.model, l.pre));
    l.add_eos = flag_key(g, "add_eos_token", false);
    l.space_prefix = spm && flag_key(g, "add_space_prefix", true);
    l.strips_right = spm && is_phi3(g);
    l.chat_template = template;
    nb_status st = read_lists(&l, g);
    if (st == NB_OK) st = refuse_keys(g);
    if (st == NB_OK) st = nb_tokenizer_from_list(out, &l, g->map.path);
    nb_token_list_free(&l);
    free(model), free(pre), free(template);
    return st;
}

nb_status nb_tokenizer_open(nb_tokenizer **out, const char *path) {
    char *json = nb_path_join(path, "tokenizer.json"), *spm = nb_path_join(path, "tokenizer.model"), *file = NULL;
    nb_status st = NB_OK;
    nb_gguf g;
    *out = NULL;
    if (nb_gguf_is(path)) file = nb_strdup(path);
    else if (nb_is_dir(path) && !nb_file_exists(json) && !nb_file_exists(spm)) st = nb_gguf_in_dir(path, &file);
    free(json), free(spm);
    if (st == NB_OK && !file) return nb_tokenizer_load(out, path);
    if (st == NB_OK) st = nb_gguf_open(&g, file);
    if (st == NB_OK) {
        st = from_gguf(out, &g);
        nb_gguf_close(&g);
    }
    free(file);
    return st;
}
