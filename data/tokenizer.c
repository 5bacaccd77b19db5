/* The tokenizer's own data: strings and ids, special roles, loading in outline. */
#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

const char *const nb_tok_role_names[NB_ROLES] = {"bos_token", "eos_token", "pad_token", "unk_token"};

/* ---- strings and ids ----------------------------------------------------------------------------------- */

uint64_t nb_tok_hash(const char *s, size_t n) {
    uint64_t h = n * 0x9E3779B97F4A7C15u, x;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&x, s, 8);
        h = (h ^ x) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    x = 0;
    for (size_t i = 0; i < n; i++) x = x << 8 | (uint8_t)s[i];
    h = (h ^ x) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

const char *nb_tok_keep(nb_tokenizer *t, const char *s, size_t n) {
    enum { CHUNK = 1 << 18 };
    if (t->chunk_left < n + 1) {
        size_t size = n + 1 > CHUNK ? n + 1 : CHUNK;
        NB_GROW(t->chunk, t->n_chunks, t->cap_chunks);
        t->chunk[t->n_chunks++] = nb_calloc(size, 1); /* zeroed: strings end in NUL; filled from its end */
        t->chunk_left = size;
    }
    t->chunk_left -= n + 1;
    return memcpy(t->chunk[t->n_chunks - 1] + t->chunk_left, s, n);
}

static uint32_t find_slot(const nb_tokenizer *t, const char *s, size_t n) {
    uint32_t i = (uint32_t)nb_tok_hash(s, n) & t->slot_mask;
    for (; t->slot[i] >= 0; i = (i + 1) & t->slot_mask) {
        const nb_tok_entry *e = &t->entry[t->slot[i]];
        if (e->n == n && !memcmp(e->s, s, n)) break;
    }
    return i;
}

int32_t nb_tok_find_str(const nb_tokenizer *t, const char *s, size_t n) {
    return t->slot ? t->slot[find_slot(t, s, n)] : -1;
}

int32_t nb_tok_find_vocab(const nb_tokenizer *t, const char *s, size_t n) {
    int32_t id = nb_tok_find_str(t, s, n);
    return id >= 0 && (t->entry[id].flags & NB_TOK_VOCAB) ? id : -1;
}

static void grow_slots(nb_tokenizer *t) {
    uint32_t size = t->slot ? (t->slot_mask + 1) * 2 : 1024;
    free(t->slot);
    t->slot = nb_malloc(size * sizeof *t->slot);
    t->slot_mask = size - 1;
    memset(t->slot, -1, size * sizeof *t->slot);
    for (int id = 0; id < t->n; id++)
        if (t->entry[id].s) t->slot[find_slot(t, t->entry[id].s, t->entry[id].n)] = id;
}

nb_status nb_tok_put(nb_tokenizer *t, const char *s, size_t n, int64_t id, uint32_t flags) {
    if (id < 0 || id >= NB_TOK_MAX_ID)
        return nb_fail(NB_EINPUT, "%s: token \"%.100s\" has id %lld, outside 0..%d", t->file, s, (long long)id,
                       NB_TOK_MAX_ID - 1);
    if (n > UINT16_MAX)
        return nb_fail(NB_EINPUT, "%s: the token with id %lld has %zu bytes", t->file, (long long)id, n);
    if (id < t->n && t->entry[id].s)
        return nb_fail(NB_EINPUT, "%s: tokens \"%.100s\" and \"%.100s\" have the same id %lld", t->file, t->entry[id].s,
                       s, (long long)id);
    if (!t->slot || t->n_strings * 2 > t->slot_mask) grow_slots(t);
    if (id >= t->cap) {
        int cap = id + 1 > t->cap * 2 ? (int)id + 1 : t->cap * 2;
        t->entry = nb_realloc(t->entry, (size_t)cap, sizeof *t->entry);
        memset(t->entry + t->cap, 0, (size_t)(cap - t->cap) * sizeof *t->entry);
        t->cap = cap;
    }
    uint32_t at = find_slot(t, s, n);
    if (t->slot[at] >= 0)
        return nb_fail(NB_EINPUT, "%s: token \"%.100s\" has two ids, %d and %lld", t->file, s, t->slot[at],
                       (long long)id);
    t->entry[id] = (nb_tok_entry){nb_tok_keep(t, s, n), (uint32_t)n, flags};
    t->slot[at] = (int32_t)id;
    t->n_strings++;
    if (id >= t->n) t->n = (int)id + 1;
    return NB_OK;
}

void nb_tok_list_add(nb_tok_list *l, int32_t id) {
    NB_GROW(l->v, l->n, l->cap);
    l->v[l->n++] = id;
}

/* ---- JSON helpers -------------------------------------------------------------------------------------- */

nb_status nb_tok_only(const json_t *obj, const char *where, const char *const *names) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)obj, key, v) {
        int i = 0;
        while (names[i] && strcmp(names[i], key)) i++;
        if (!names[i])
            return nb_fail(
                NB_EUNSUPPORTED, "%s: %s has \"%s\", which nibble does not know and which may change ids", where,
                json_string_value(json_object_get(obj, "type")) ? json_string_value(json_object_get(obj, "type"))
                                                                : "an object",
                key);
    }
    return NB_OK;
}

nb_status nb_tok_need_str(const json_t *obj, const char *key, const char **out, const char *where) {
    const json_t *v = json_object_get(obj, key);
    if (!json_is_string(v))
        return nb_fail(NB_EINPUT, "%s: \"%s\" should be a string, not %s", where, key, v ? nb_json_type(v) : "absent");
    *out = json_string_value(v);
    if (strlen(*out) != json_string_length(v))
        return nb_fail(NB_EINPUT, "%s: \"%s\" contains a NUL character", where, key);
    return NB_OK;
}

nb_status nb_tok_need_array(const json_t *obj, const char *key, const json_t **out, const char *where) {
    *out = json_object_get(obj, key);
    if (json_is_array(*out)) return NB_OK;
    return nb_fail(NB_EINPUT, "%s: \"%s\" should be an array, not %s", where, key,
                   *out ? nb_json_type(*out) : "absent");
}

/* ---- loading ------------------------------------------------------------------------------------------- */

static void hash_list(nb_sha256 *h, const nb_tok_list *l) {
    nb_sha256_add(h, &l->n, sizeof l->n);
    if (l->n) nb_sha256_add(h, l->v, (size_t)l->n * sizeof *l->v);
}

static void rehash(nb_tokenizer *t) {
    nb_sha256 h = nb_sha256_open();
    nb_sha256_add_str(&h, t->file_sha);
    for (int i = 0; i < t->n_added; i++) {
        const nb_tok_added *a = &t->added[i];
        const uint8_t flags[5] = {a->special, a->lstrip, a->rstrip, a->single_word, a->normalized};
        nb_sha256_add(&h, &a->id, sizeof a->id);
        nb_sha256_add(&h, flags, sizeof flags);
        nb_sha256_add_str(&h, t->entry[a->id].s);
    }
    hash_list(&h, &t->prefix);
    hash_list(&h, &t->suffix);
    hash_list(&h, &t->eos_ids);
    nb_sha256_add(&h, t->role, sizeof t->role);
    nb_sha256_close(&h, t->sha);
}

/* The tokenizer file inside a folder, or the file itself. */
static nb_status find_file(nb_tokenizer *t, const char *path) {
    static const char *const names[] = {"tokenizer.json", "tokenizer.model"};
    if (!nb_is_dir(path)) {
        const char *base = nb_path_base(path);
        t->file = nb_strdup(path);
        t->dir = base == path ? nb_strdup(".") : nb_strndup(path, (size_t)(base - path));
        t->from_model = !strcmp(nb_path_ext(path), ".model") || !strcmp(nb_path_ext(path), ".tiktoken");
        return NB_OK;
    }
    t->dir = nb_strdup(path);
    for (int i = 0; i < NB_LEN(names); i++) {
        t->file = nb_path_join(path, names[i]);
        t->from_model = i == 1;
        if (nb_file_exists(t->file)) return NB_OK;
        free(t->file);
        t->file = NULL;
    }
    return nb_fail(NB_EINPUT, "%s: no tokenizer.json and no tokenizer.model in this folder%s", path,
                   nb_file_exists(path) ? "" : " (it does not exist)");
}

static nb_status load(nb_tokenizer *t, const char *path) {
    NB_TRY(find_file(t, path));
    NB_TRY(nb_sha256_file(t->file, t->file_sha));
    NB_TRY(t->from_model ? nb_tok_load_model(t) : nb_tok_load_json(t));
    NB_TRY(nb_tok_load_config(t));
    return nb_tok_finish(t);
}

nb_status nb_tok_finish(nb_tokenizer *t) {
    nb_tok_bpe_finish(t);
    NB_TRY(nb_tok_added_finish(t));
    rehash(t);
    return NB_OK;
}

nb_tokenizer *nb_tok_new(void) {
    nb_tokenizer *t = NB_NEW(nb_tokenizer);
    pthread_mutex_init(&t->lock, NULL);
    for (int i = 0; i < NB_ROLES; i++) t->role[i] = -1;
    t->bpe.unk = -1;
    return t;
}

nb_status nb_tokenizer_load(nb_tokenizer **out, const char *dir_or_file) {
    *out = NULL;
    nb_tokenizer *t = nb_tok_new();
    nb_status st = load(t, dir_or_file);
    if (st == NB_OK) *out = t;
    else nb_tokenizer_free(t);
    return st;
}

void nb_tokenizer_free(nb_tokenizer *t) {
    if (!t) return;
    for (nb_tok_work *w = t->pool, *next; w; w = next) {
        next = w->next;
        nb_tok_work_free(w);
    }
    for (int i = 0; i < t->n_chunks; i++) free(t->chunk[i]);
    nb_tok_norms_free(&t->norms);
    nb_tok_pres_free(&t->pres);
    nb_tok_decs_free(&t->decs);
    nb_tok_bpe_free(&t->bpe);
    nb_tok_unigram_free(&t->uni);
    free(t->chunk), free(t->entry), free(t->slot), free(t->added);
    free(t->raw.v), free(t->normalized.v);
    free(t->prefix.v), free(t->suffix.v), free(t->eos_ids.v);
    free(t->chat_template), free(t->file), free(t->dir);
    free(t->made), free(t->made_config);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* ---- questions ----------------------------------------------------------------------------------------- */

int nb_tokenizer_vocab_size(const nb_tokenizer *t) { return t->n; }
int32_t nb_tokenizer_bos(const nb_tokenizer *t) { return t->role[NB_BOS]; }
int32_t nb_tokenizer_eos(const nb_tokenizer *t) { return t->role[NB_EOS]; }
int32_t nb_tokenizer_pad(const nb_tokenizer *t) { return t->role[NB_PAD]; }
int32_t nb_tokenizer_unk(const nb_tokenizer *t) { return t->role[NB_UNK]; }
const char *nb_tokenizer_chat_template(const nb_tokenizer *t) { return t->chat_template; }
const char *nb_tokenizer_sha256(const nb_tokenizer *t) { return t->sha; }
int32_t nb_tokenizer_token_id(const nb_tokenizer *t, const char *token) {
    return nb_tok_find_str(t, token, strlen(token));
}

const int32_t *nb_tokenizer_eos_ids(const nb_tokenizer *t, int *n) {
    *n = t->eos_ids.n;
    return t->eos_ids.v;
}

const char *nb_tokenizer_token(const nb_tokenizer *t, int32_t id) {
    return id >= 0 && id < t->n ? t->entry[id].s : NULL;
}

bool nb_tokenizer_is_special(const nb_tokenizer *t, int32_t id) {
    return id >= 0 && id < t->n && (t->entry[id].flags & NB_TOK_IS_SPECIAL);
}

static bool holds(const nb_tok_list *l, int32_t id) {
    for (int i = 0; i < l->n; i++)
        if (l->v[i] == id) return true;
    return false;
}
bool nb_tokenizer_adds_bos(const nb_tokenizer *t) { return holds(&t->prefix, t->role[NB_BOS]); }
bool nb_tokenizer_adds_eos(const nb_tokenizer *t) { return holds(&t->suffix, t->role[NB_EOS]); }

/* ---- changes ------------------------------------------------------------------------------------------- */

nb_status nb_tokenizer_add(nb_tokenizer *t, const char *token, bool special, int32_t *id) {
    size_t n = strlen(token);
    int32_t have = nb_tok_find_str(t, token, n);
    nb_tok_added *a = have >= 0 ? nb_tok_added_get(t, have) : NULL;
    if (nb_utf8_valid(token, n) < n) return nb_fail(NB_EINPUT, "the token \"%s\" is not valid UTF-8", token);
    if (id) *id = have >= 0 ? have : t->n;
    if (a && (a->special || !special)) return NB_OK;
    if (a) {
        a->special = a->is_new = true;
        t->entry[have].flags |= NB_TOK_IS_SPECIAL;
    } else {
        nb_tok_added flags = {.special = special, .normalized = !special, .is_new = true};
        NB_TRY(nb_tok_added_put(t, token, n, have >= 0 ? have : t->n, flags));
    }
    NB_TRY(nb_tok_added_finish(t));
    rehash(t);
    return NB_OK;
}

nb_status nb_tokenizer_set_special(nb_tokenizer *t, const char *role, const char *token) {
    int32_t id;
    for (int r = 0; r < NB_ROLES; r++) {
        if (strcmp(role, nb_tok_role_names[r])) continue;
        NB_TRY(nb_tokenizer_add(t, token, true, &id));
        t->role_changed[r] |= t->role[r] != id;
        t->role[r] = id;
        if (r == NB_EOS) {
            nb_tok_list old = t->eos_ids;
            t->eos_ids = (nb_tok_list){0};
            nb_tok_list_add(&t->eos_ids, id);
            for (int i = 0; i < old.n; i++)
                if (old.v[i] != id) nb_tok_list_add(&t->eos_ids, old.v[i]);
            free(old.v);
        }
        rehash(t);
        return NB_OK;
    }
    return nb_fail(NB_EINPUT, "special token role '%s': want bos_token, eos_token, pad_token or unk_token", role);
}
