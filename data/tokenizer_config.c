/* The files beside the tokenizer: which tokens are bos, eos, pad, unk; what ends a generated text; the chat template;
 * for tokenizer.model also the tokens added later. */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "data/tokenizer_impl.h"

/* *v NULL when there is no such file. */
static nb_status load_beside(const nb_tokenizer *t, const char *name, char **path, json_t **v) {
    *v = NULL;
    *path = nb_path_join(t->dir, name);
    if (!nb_file_exists(*path)) return NB_OK;
    NB_TRY(nb_json_load(*path, v));
    if (!json_is_object(*v)) return nb_fail(NB_EINPUT, "%s: not a JSON object", *path);
    return NB_OK;
}

static nb_status with_file(nb_tokenizer *t, const char *name,
                           nb_status (*read)(nb_tokenizer *, const json_t *, const char *)) {
    char *path;
    json_t *v;
    nb_status st = load_beside(t, name, &path, &v);
    if (st == NB_OK && v) st = read(t, v, path);
    json_decref(v);
    free(path);
    return st;
}

/* ---- roles --------------------------------------------------------------------------------------------- */

/* "bos_token": a string, or an object with the content. Only roles that are not known yet are filled in. */
static nb_status read_roles(nb_tokenizer *t, const json_t *v, const char *where) {
    for (int r = 0; r < NB_ROLES; r++) {
        const json_t *e = json_object_get(v, nb_tok_role_names[r]);
        const char *s;
        if (!e || json_is_null(e) || t->role[r] >= 0) continue;
        if (json_is_object(e)) NB_TRY(nb_tok_need_str(e, "content", &s, where));
        else NB_TRY(nb_tok_need_str(v, nb_tok_role_names[r], &s, where));
        t->role[r] = nb_tok_find_str(t, s, strlen(s));
        if (t->role[r] < 0 && *s)
            nb_warn("%s: %s \"%s\" is not in the vocabulary: ignored", where, nb_tok_role_names[r], s);
    }
    return NB_OK;
}

/* An id, or a list of them, or absent. */
static nb_status read_ids(nb_tok_list *out, const json_t *v, const char *key, const char *where) {
    const json_t *e = json_object_get(v, key);
    size_t n = json_is_array(e) ? json_array_size(e) : e && !json_is_null(e);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_array(e) ? json_array_get(e, i) : e;
        if (!json_is_integer(one) || json_integer_value(one) < 0 || json_integer_value(one) >= NB_TOK_MAX_ID)
            return nb_fail(NB_EINPUT, "%s: \"%s\" should be a token id or a list of them", where, key);
        nb_tok_list_add(out, (int32_t)json_integer_value(one));
    }
    return NB_OK;
}

static nb_status read_generation(nb_tokenizer *t, const json_t *v, const char *where) {
    return read_ids(&t->eos_ids, v, "eos_token_id", where);
}

/* config.json fills in what the tokenizer's own files leave open. */
static nb_status read_model_config(nb_tokenizer *t, const json_t *v, const char *where) {
    static const char *const keys[NB_ROLES] = {"bos_token_id", "eos_token_id", "pad_token_id", NULL};
    for (int r = 0; r < NB_ROLES && keys[r]; r++) {
        nb_tok_list ids = {0};
        bool ends = r == NB_EOS && !t->eos_ids.n;
        if (t->role[r] >= 0) continue;
        nb_status st =
            json_is_integer(json_object_get(v, keys[r])) && json_integer_value(json_object_get(v, keys[r])) < 0
                ? NB_OK /* -1 is how some files say none */
                : read_ids(&ids, v, keys[r], where);
        if (st == NB_OK && ids.n && ids.v[0] < t->n && t->entry[ids.v[0]].s) t->role[r] = ids.v[0];
        for (int i = 0; st == NB_OK && ends && i < ids.n; i++)
            nb_tok_list_add(&t->eos_ids, ids.v[i]);
        free(ids.v);
        NB_TRY(st);
    }
    return NB_OK;
}

/* ---- tokenizer_config.json ----------------------------------------------------------------------------- */

/* chat_template: one text, or a list of {name, template} of which "default" counts. */
static nb_status read_template(nb_tokenizer *t, const json_t *v, const char *where) {
    const json_t *c = json_object_get(v, "chat_template");
    const char *s = NULL, *name;
    if (json_is_array(c))
        for (size_t i = 0; i < json_array_size(c) && !s; i++) {
            NB_TRY(nb_tok_need_str(json_array_get(c, i), "name", &name, where));
            if (!strcmp(name, "default")) NB_TRY(nb_tok_need_str(json_array_get(c, i), "template", &s, where));
        }
    else NB_TRY(nb_json_str(v, "chat_template", &s, where));
    if (s) t->chat_template = nb_strdup(s);
    return NB_OK;
}

/* Only for tokenizer.model: a tokenizer.json lists its added tokens itself. */
static nb_status read_added_decoder(nb_tokenizer *t, const json_t *v, const char *where) {
    const char *key, *content;
    json_t *e;
    json_object_foreach(json_object_get(v, "added_tokens_decoder"), key, e) {
        nb_tok_added a = {0};
        char *end;
        long id = strtol(key, &end, 10);
        if (*end || end == key || id < 0 || id >= NB_TOK_MAX_ID)
            return nb_fail(NB_EINPUT, "%s: added_tokens_decoder has \"%s\" for a token id", where, key);
        NB_TRY(nb_tok_need_str(e, "content", &content, where));
        NB_TRY(nb_json_bool(e, "special", &a.special, where));
        NB_TRY(nb_json_bool(e, "normalized", &a.normalized, where));
        NB_TRY(nb_json_bool(e, "single_word", &a.single_word, where));
        NB_TRY(nb_json_bool(e, "lstrip", &a.lstrip, where));
        NB_TRY(nb_json_bool(e, "rstrip", &a.rstrip, where));
        NB_TRY(nb_tok_added_put(t, content, strlen(content), id, a));
    }
    return NB_OK;
}

static nb_status read_tokenizer_config(nb_tokenizer *t, const json_t *v, const char *where) {
    if (t->from_model) {
        /* what tokenizer_config.json says goes before what the model file says */
        for (int r = 0; r < NB_ROLES; r++)
            if (json_object_get(v, nb_tok_role_names[r])) t->role[r] = -1;
        NB_TRY(read_added_decoder(t, v, where));
    }
    NB_TRY(read_roles(t, v, where));
    return read_template(t, v, where);
}

static nb_status read_added_json(nb_tokenizer *t, const json_t *v, const char *where) {
    const char *token;
    json_t *id;
    json_object_foreach((json_t *)v, token, id) {
        if (!json_is_integer(id)) return nb_fail(NB_EINPUT, "%s: the id of \"%s\" is not an integer", where, token);
        if (nb_tok_find_str(t, token, strlen(token)) == json_integer_value(id)) continue;
        NB_TRY(nb_tok_added_put(t, token, strlen(token), json_integer_value(id), (nb_tok_added){.special = true}));
    }
    return NB_OK;
}

/* bos and eos around a text, which tokenizer.model itself leaves open: LlamaTokenizer's defaults. */
static nb_status read_add_flags(nb_tokenizer *t, const json_t *v, const char *where) {
    bool bos = true, eos = false;
    NB_TRY(nb_json_bool(v, "add_bos_token", &bos, where));
    NB_TRY(nb_json_bool(v, "add_eos_token", &eos, where));
    if (bos && t->role[NB_BOS] >= 0) nb_tok_list_add(&t->prefix, t->role[NB_BOS]);
    if (eos && t->role[NB_EOS] >= 0) nb_tok_list_add(&t->suffix, t->role[NB_EOS]);
    return NB_OK;
}

static nb_status read_jinja(nb_tokenizer *t) {
    char *path = nb_path_join(t->dir, "chat_template.jinja"), *text;
    size_t n;
    nb_status st = NB_OK;
    if (nb_file_exists(path) && (st = nb_file_read(path, &text, &n)) == NB_OK) {
        free(t->chat_template);
        t->chat_template = text;
    }
    free(path);
    return st;
}

nb_status nb_tok_load_config(nb_tokenizer *t) {
    char *path;
    json_t *config;
    if (t->from_model) NB_TRY(with_file(t, "added_tokens.json", read_added_json));
    NB_TRY(with_file(t, "tokenizer_config.json", read_tokenizer_config));
    NB_TRY(with_file(t, "special_tokens_map.json", read_roles));
    if (t->role[NB_UNK] < 0) t->role[NB_UNK] = t->bpe.unk;
    NB_TRY(with_file(t, "generation_config.json", read_generation));
    if (!t->eos_ids.n && t->role[NB_EOS] >= 0) nb_tok_list_add(&t->eos_ids, t->role[NB_EOS]);
    NB_TRY(with_file(t, "config.json", read_model_config));
    NB_TRY(read_jinja(t));
    if (!t->from_model) return NB_OK;
    nb_tok_ranks_roles(t);
    nb_status st = load_beside(t, "tokenizer_config.json", &path, &config);
    if (st == NB_OK) st = read_add_flags(t, config, path);
    json_decref(config);
    free(path);
    return st;
}
