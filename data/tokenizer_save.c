/* Writing a tokenizer folder: the files it was loaded from, changed only where tokens were added or roles changed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/mem.h"
#include "data/tokenizer_export.h"
#include "data/tokenizer_impl.h"

static bool any_new(const nb_tokenizer *t) {
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].is_new) return true;
    return false;
}

static json_t *flags_of(const nb_tokenizer *t, const nb_tok_added *a) {
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:b}", "content", t->entry[a->id].s, "lstrip", a->lstrip, "rstrip",
                     a->rstrip, "normalized", a->normalized, "single_word", a->single_word, "special", a->special);
}

/* added_tokens of tokenizer.json: the new ones (or all), in place of those with their ids. */
static void put_tokens(const nb_tokenizer *t, json_t *root, bool all) {
    json_t *list = json_object_get(root, "added_tokens");
    if (!json_is_array(list)) json_object_set_new(root, "added_tokens", list = json_array());
    if (all) json_array_clear(list);
    for (int i = 0; i < t->n_added; i++) {
        const nb_tok_added *a = &t->added[i];
        if (!a->is_new && !all) continue;
        for (size_t k = json_array_size(list); k-- > 0 && !all;)
            if (json_integer_value(json_object_get(json_array_get(list, k), "id")) == a->id) json_array_remove(list, k);
        json_t *v = flags_of(t, a);
        json_object_set_new(v, "id", json_integer(a->id));
        json_array_append_new(list, v);
    }
}

static void put_added(const nb_tokenizer *t, json_t *root) { put_tokens(t, root, false); }

static void put_config(const nb_tokenizer *t, json_t *root) {
    json_t *decoder = json_object_get(root, "added_tokens_decoder");
    if (!json_is_object(decoder)) json_object_set_new(root, "added_tokens_decoder", decoder = json_object());
    for (int i = 0; i < t->n_added; i++) {
        char key[16];
        if (!t->added[i].is_new) continue;
        snprintf(key, sizeof key, "%d", t->added[i].id);
        json_object_set_new(decoder, key, flags_of(t, &t->added[i]));
    }
}

static void put_roles(const nb_tokenizer *t, json_t *root) {
    for (int r = 0; r < NB_ROLES; r++)
        if (t->role_changed[r]) json_object_set_new(root, nb_tok_role_names[r], json_string(t->entry[t->role[r]].s));
}

/* Reads dir/name (or starts an empty object), lets `put` change it, writes it to `dir`. */
static nb_status rewrite(const nb_tokenizer *t, const char *from, const char *to,
                         void (*put)(const nb_tokenizer *, json_t *), void (*put_too)(const nb_tokenizer *, json_t *)) {
    json_t *root = NULL;
    if (nb_file_exists(from)) NB_TRY(nb_json_load(from, &root));
    if (!root) root = json_object();
    put(t, root);
    if (put_too) put_too(t, root);
    nb_status st = nb_json_save(to, root);
    json_decref(root);
    return st;
}

static nb_status unchanged_source(const nb_tokenizer *t) {
    nb_hex now;
    NB_TRY(nb_sha256_file(t->file, now));
    if (!strcmp(now, t->file_sha)) return NB_OK;
    return nb_fail(NB_EINPUT,
                   "%s: the file has changed since it was loaded: its tokenizer cannot be saved; put it back", t->file);
}

static nb_status save_one(const nb_tokenizer *t, const char *name, const char *dir, bool grown, bool roles) {
    bool main = !strcmp(name, t->from_model ? "tokenizer.model" : "tokenizer.json");
    char *from = main ? nb_strdup(t->file) : nb_path_join(t->dir, name), *to = nb_path_join(dir, name);
    nb_status st = NB_OK;
    if (grown && main && !t->from_model) st = rewrite(t, from, to, put_added, NULL);
    else if ((grown || roles) && !strcmp(name, "tokenizer_config.json"))
        st = rewrite(t, from, to, put_config, put_roles);
    else if (roles && !strcmp(name, "special_tokens_map.json")) st = rewrite(t, from, to, put_roles, NULL);
    /* a tokenizer.model or added_tokens.json that tokenizer.json has outgrown would contradict it */
    else if (nb_file_exists(from) && (main || !grown || !strcmp(name, "special_tokens_map.json") ||
                                      !strcmp(name, "chat_template.jinja") || t->from_model))
        st = nb_file_copy(from, to);
    free(from);
    free(to);
    return st;
}

/* A tokenizer that came from no such files. */
static nb_status save_made(const nb_tokenizer *t, const char *dir) {
    static const char *const names[2] = {"tokenizer.json", "tokenizer_config.json"};
    const char *const texts[2] = {t->made, t->made_config};
    nb_status st = NB_OK;
    for (int i = 0; i < 2 && st == NB_OK; i++) {
        char *to = nb_path_join(dir, names[i]);
        json_t *root = json_loads(texts[i], 0, NULL);
        NB_ASSERT(root);
        if (i == 0) put_added(t, root);
        else put_config(t, root), put_roles(t, root);
        st = nb_json_save(to, root);
        json_decref(root);
        free(to);
    }
    return st;
}

/* Of a list of ranks also what it stands for, which every reader of folders understands: tokenizer.json, and a
 * tokenizer_config.json if there was none. A list that tokens were added to would contradict it. */
static nb_status save_ranks(const nb_tokenizer *t, const char *dir, bool grown) {
    char *json = nb_path_join(dir, "tokenizer.json"), *config = nb_path_join(dir, "tokenizer_config.json");
    char *model = nb_path_join(dir, "tokenizer.model"), *own = nb_path_join(t->dir, "tokenizer_config.json");
    nb_token_list list;
    nb_tokenizer *same = NULL;
    json_t *root = NULL, *roles = NULL;
    nb_status st = nb_tokenizer_list(t, t->n, &list);
    if (st == NB_OK) st = nb_tokenizer_from_list(&same, &list, t->file);
    if (st == NB_OK) {
        root = json_loads(same->made, 0, NULL), roles = json_loads(same->made_config, 0, NULL);
        NB_ASSERT(root && roles);
        put_tokens(t, root, true);
        st = nb_json_save(json, root);
    }
    if (st == NB_OK && !nb_file_exists(own)) st = nb_json_save(config, roles);
    if (st == NB_OK && grown && unlink(model) < 0 && errno != ENOENT) st = nb_fail(NB_EIO, "%s: cannot be removed", model);
    json_decref(root), json_decref(roles);
    nb_tokenizer_free(same);
    nb_token_list_free(&list);
    free(json), free(config), free(model), free(own);
    return st;
}

nb_status nb_tokenizer_save(const nb_tokenizer *t, const char *dir) {
    static const char *const names[] = {"tokenizer.json",    "tokenizer.model",         "tokenizer_config.json",
                                        "added_tokens.json", "special_tokens_map.json", "vocab.json",
                                        "merges.txt",        "chat_template.jinja"};
    if (t->made) return save_made(t, dir);
    bool grown = any_new(t), roles = false;
    for (int r = 0; r < NB_ROLES; r++) roles |= t->role_changed[r];
    NB_TRY(unchanged_source(t));
    for (int i = 0; i < NB_LEN(names); i++) {
        if (t->from_model && !strcmp(names[i], "tokenizer.json")) continue; /* it was loaded as a file on purpose */
        if (t->ranks && grown && !strcmp(names[i], "tokenizer.model")) continue;
        NB_TRY(save_one(t, names[i], dir, grown, roles));
    }
    return t->ranks ? save_ranks(t, dir, grown) : NB_OK;
}
