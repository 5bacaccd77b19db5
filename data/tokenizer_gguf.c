/* A tokenizer from the list that GGUF files have of one. The list is turned into what tokenizers' tokenizer.json would
 * say and read as that, so that ids here and ids of a saved folder cannot differ. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_export.h"
#include "data/tokenizer_impl.h"

/* ---- byte-level BPE: the splitting expression ---- */

#define CL100K(digits) \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define O200K(contraction, digits) \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" contraction \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" contraction \
    "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

/* llama.cpp knows the ways by names (llama-vocab.cpp). It never composes characters; the tokenizers of some do, and
 * only the name tells. Of several names for one way the first is written. */
static const struct split { const char *pre, *split; bool ignore_merges, nfc, adds_bos; } splits[] = {
    {"gpt-2", NB_SPLIT_GPT2, .nfc = false},
    {"phi-2", NB_SPLIT_GPT2, .nfc = false},
    {"mpt", NB_SPLIT_GPT2, .nfc = true},
    {"olmo", NB_SPLIT_GPT2, .nfc = true},
    {"smollm", NB_SPLIT_DIGITS, .nfc = false},
    {"starcoder", NB_SPLIT_DIGITS, .nfc = false},
    {"refact", NB_SPLIT_DIGITS, .nfc = false},
    {"llama-bpe", CL100K("\\p{N}{1,3}"), .ignore_merges = true, .adds_bos = true},
    {"llama3", CL100K("\\p{N}{1,3}"), .ignore_merges = true, .adds_bos = true},
    {"llama-v3", CL100K("\\p{N}{1,3}"), .ignore_merges = true, .adds_bos = true},
    {"dbrx", CL100K("\\p{N}{1,3}"), .nfc = false},
    {"smaug-bpe", CL100K("\\p{N}{1,3}"), .nfc = false},
    {"qwen2", CL100K("\\p{N}"), .nfc = true},
    {"deepseek-r1-qwen", CL100K("\\p{N}"), .nfc = true},
    {"stablelm2", CL100K("\\p{N}"), .nfc = true},
    {"gpt-4o", O200K(CONTRACTION, "\\p{N}{1,3}"), .nfc = false},
    {"tekken", O200K("", "\\p{N}"), .ignore_merges = true, .adds_bos = true},
};

const char *nb_tok_split_name(const char *split, bool ignore_merges, bool nfc) {
    const char *best = NULL;
    int most = -1;
    for (int i = 0; i < NB_LEN(splits); i++) {
        int alike = 2 * (splits[i].ignore_merges == ignore_merges) + (splits[i].nfc == nfc);
        if (!strcmp(splits[i].split, split) && alike > most) best = splits[i].pre, most = alike;
    }
    return best;
}

static const struct split *find_split(const char *pre) {
    for (int i = 0; i < NB_LEN(splits); i++)
        if (!strcmp(splits[i].pre, pre)) return &splits[i];
    return NULL;
}

const char *nb_tok_split_regex(const char *name) { return find_split(name)->split; }

bool nb_token_list_adds_bos(const char *model, const char *pre) {
    const struct split *s = find_split(pre);
    return !strcmp(model, "llama") || (s && s->adds_bos);
}

/* ---- the parts of tokenizer.json ---- */

#define SPACE "\xe2\x96\x81" /* "▁" */

typedef struct maker {
    const nb_token_list *l;
    const char *where;
    nb_tokenizer *names; /* used as a table: text of a token -> id */
    json_t *vocab, *added;
} maker;

static json_t *byte_level(bool use_regex) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 0, "use_regex",
                     (int)use_regex);
}

static json_t *pre_tokenizer(const struct split *s) {
    json_t *first;
    if (!strcmp(s->split, NB_SPLIT_GPT2)) return byte_level(true);
    bool digits = !strcmp(s->split, NB_SPLIT_DIGITS);
    if (digits) first = json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1);
    else
        first = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", s->split, "behavior",
                          "Isolated", "invert", 0);
    return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", first, byte_level(digits));
}

static json_t *replace(const char *from, const char *to) {
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content", to);
}

static json_t *spm_normalizer(bool prefix) {
    if (!prefix) return replace(" ", SPACE);
    return json_pack("{s:s, s:[{s:s, s:s}, o]}", "type", "Sequence", "normalizers", "type", "Prepend", "prepend", SPACE,
                     replace(" ", SPACE));
}

static json_t *spm_decoder(bool prefix) {
    json_t *list = json_pack("[o, {s:s}, {s:s}]", replace(SPACE, " "), "type", "ByteFallback", "type", "Fuse");
    if (prefix)
        json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1,
                                              "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static const char *token(const maker *m, int32_t id) { return id >= 0 && id < m->l->n ? m->l->token[id] : NULL; }

/* bos and eos around one text, and around each of two. */
static json_t *post_processor(const maker *m) {
    const nb_token_list *l = m->l;
    const char *bos = l->add_bos ? token(m, l->bos) : NULL, *eos = l->add_eos ? token(m, l->eos) : NULL;
    json_t *lists[2] = {json_array(), json_array()}, *specials = json_object();
    for (int i = 0; i < 3; i++) {
        json_t *to = lists[i > 0];
        int type = i == 2;
        if (bos) json_array_append_new(to, json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", bos, "type_id", type));
        json_array_append_new(to, json_pack("{s:{s:s, s:i}}", "Sequence", "id", type ? "B" : "A", "type_id", type));
        if (eos) json_array_append_new(to, json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", eos, "type_id", type));
    }
    for (int i = 0; i < 2; i++) {
        const char *s = i ? eos : bos;
        if (s)
            json_object_set_new(specials, s, json_pack("{s:s, s:[i], s:[s]}", "id", s, "ids", i ? l->eos : l->bos,
                                                       "tokens", s));
    }
    return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", lists[0], "pair", lists[1],
                     "special_tokens", specials);
}

/* ---- tokens ---- */

static int32_t type_of(const nb_token_list *l, int64_t id) { return l->type ? l->type[id] : NB_TOKEN_NORMAL; }

/* Rows of the embedding that have no token: "[PAD7]" by id, or without a text. */
static bool is_filler(const maker *m, int64_t id) {
    char pad[32];
    snprintf(pad, sizeof pad, "[PAD%lld]", (long long)id);
    return !*m->l->token[id] || (type_of(m->l, id) == NB_TOKEN_UNUSED && !strcmp(m->l->token[id], pad));
}

/* Special tokens that phi-3's strip: all but these. */
static bool strips_right(const maker *m, const char *s) {
    return m->l->strips_right && strcmp(s, "<unk>") != 0 && strcmp(s, "<s>") != 0 && strcmp(s, "<|endoftext|>") != 0;
}

static void add_special(maker *m, int64_t id, const char *s, bool special) {
    json_array_append_new(m->added, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id, "content", s,
                                              "single_word", 0, "lstrip", 0, "rstrip", (int)strips_right(m, s),
                                              "normalized", 0, "special", (int)special));
}

/* Runs of "▁" that are cut out whole are stored as the spaces they stand for. */
static char *with_marks(const char *s, bool spm, int32_t type) {
    if (!spm || type != NB_TOKEN_USER_DEFINED || s[strspn(s, " ")]) return nb_strdup(s);
    nb_text t = {0};
    for (; *s; s++) nb_text_puts(&t, SPACE);
    return t.s;
}

/* Vocabulary and added tokens. Byte-level tokens that are cut out whole are written as plain text: they are in the
 * vocabulary only where a merge names them. */
static nb_status put_tokens(maker *m, bool spm) {
    const nb_token_list *l = m->l;
    for (int64_t id = 0; id < l->n; id++) {
        int32_t type = type_of(l, id);
        bool special = type == NB_TOKEN_CONTROL || type == NB_TOKEN_UNKNOWN, whole = type == NB_TOKEN_USER_DEFINED;
        if (type < NB_TOKEN_NORMAL || type > NB_TOKEN_BYTE)
            return nb_fail(NB_EINPUT, "%s: token %lld has the unknown type %d", m->where, (long long)id, type);
        if (is_filler(m, id)) continue;
        char *s = with_marks(l->token[id], spm, type);
        nb_status st = nb_utf8_valid(s, strlen(s)) < strlen(s)
                           ? nb_fail(NB_EINPUT, "%s: token %lld is not valid UTF-8", m->where, (long long)id)
                           : nb_tok_put(m->names, s, strlen(s), id, NB_TOK_VOCAB);
        if (st == NB_OK && (spm || !(special || whole))) json_object_set_new(m->vocab, s, json_integer(id));
        if (st == NB_OK && (special || whole)) add_special(m, id, s, special);
        free(s);
        NB_TRY(st);
    }
    return NB_OK;
}

static json_t *text_n(const char *s, size_t n) {
    char *copy = nb_strndup(s, n);
    json_t *v = json_string(copy);
    free(copy);
    return v;
}

/* The two sides are parted by the first space behind the first byte. What a merge names is in the vocabulary. */
static nb_status put_merge(maker *m, json_t *merges, int64_t i) {
    const char *s = m->l->merge[i], *space = *s ? strchr(s + 1, ' ') : NULL;
    if (!space || !space[1] || nb_utf8_valid(s, strlen(s)) < strlen(s))
        return nb_fail(NB_EINPUT, "%s: merge %lld is not two tokens", m->where, (long long)i);
    char *joined = nb_asprintf("%.*s%s", (int)(space - s), s, space + 1);
    json_t *pair = json_array();
    json_array_append_new(pair, text_n(s, (size_t)(space - s)));
    json_array_append_new(pair, json_string(space + 1));
    const char *names[3] = {json_string_value(json_array_get(pair, 0)), space + 1, joined};
    for (int k = 0; k < 3; k++) {
        int32_t id = nb_tok_find_str(m->names, names[k], strlen(names[k]));
        if (id >= 0) json_object_set_new(m->vocab, names[k], json_integer(id));
    }
    json_array_append_new(merges, pair);
    free(joined);
    return NB_OK;
}

/* ---- SentencePiece: merges by scores ---- */

typedef struct merge {
    int32_t left, right, id;
    int left_chars, right_chars;
    float score;
} merge;

/* The order of transformers' converter: by score, then longer parts first, then as they were found. */
static int by_score(const void *x, const void *y) {
    const merge *a = x, *b = y;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    if (a->left_chars != b->left_chars) return a->left_chars > b->left_chars ? -1 : 1;
    if (a->right_chars != b->right_chars) return a->right_chars > b->right_chars ? -1 : 1;
    if (a->id != b->id) return a->id < b->id ? -1 : 1;
    if (a->left != b->left) return a->left < b->left ? -1 : 1;
    return (a->right > b->right) - (a->right < b->right);
}

static int count_chars(const char *s, size_t n) {
    int chars = 0;
    for (size_t i = 0; i < n; i++) chars += ((uint8_t)s[i] & 0xc0) != 0x80;
    return chars;
}

/* Every way to cut a piece in two pieces. Tokens added later (their score is -1000) are made by no merge. */
static void put_scores(const maker *m, json_t *merges) {
    const nb_token_list *l = m->l;
    merge *list = NULL;
    size_t n = 0, cap = 0;
    for (int32_t id = 0; id < m->names->n; id++) {
        const nb_tok_entry *e = &m->names->entry[id];
        int32_t type = type_of(l, id);
        if (!e->s || (type != NB_TOKEN_NORMAL && !(type == NB_TOKEN_USER_DEFINED && l->score[id] > -1000))) continue;
        size_t cut = 0;
        for (nb_utf8_next(e->s, &cut); cut < e->n; nb_utf8_next(e->s, &cut)) {
            int32_t left = nb_tok_find_str(m->names, e->s, cut);
            int32_t right = nb_tok_find_str(m->names, e->s + cut, e->n - cut);
            if (left < 0 || right < 0) continue;
            NB_GROW(list, n, cap);
            list[n++] = (merge){left, right, id, count_chars(e->s, cut), count_chars(e->s + cut, e->n - cut),
                                l->score[id]};
        }
    }
    if (n) qsort(list, n, sizeof *list, by_score);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(merges, json_pack("[s, s]", m->names->entry[list[i].left].s,
                                                m->names->entry[list[i].right].s));
    free(list);
}

/* ---- the whole ---- */

static json_t *model(const maker *m, json_t *merges, bool ignore_merges, bool spm) {
    bool bytes = false;
    for (int64_t i = 0; i < m->l->n; i++) bytes |= type_of(m->l, i) == NB_TOKEN_BYTE;
    json_t *v = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:O, s:o}", "type", "BPE", "dropout", "unk_token",
                          "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", (int)spm, "byte_fallback",
                          (int)(spm && bytes), "ignore_merges", (int)ignore_merges, "vocab", m->vocab, "merges",
                          merges);
    const char *unk = token(m, m->l->unk);
    if (spm && unk && json_object_get(m->vocab, unk)) json_object_set_new(v, "unk_token", json_string(unk));
    return v;
}

static nb_status make_json(maker *m, const struct split *split, json_t **out) {
    const nb_token_list *l = m->l;
    bool spm = !split;
    json_t *merges = json_array();
    nb_status st = put_tokens(m, spm);
    if (st == NB_OK && spm) put_scores(m, merges);
    for (int64_t i = 0; i < l->n_merges && st == NB_OK && !spm; i++) st = put_merge(m, merges, i);
    if (st != NB_OK) {
        json_decref(merges);
        return st;
    }
    json_t *root = *out = json_pack("{s:s, s:n, s:n, s:O}", "version", "1.0", "truncation", "padding", "added_tokens",
                                    m->added);
    json_t *nfc = split && split->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    json_object_set_new(root, "normalizer", spm ? spm_normalizer(l->space_prefix) : nfc);
    json_object_set_new(root, "pre_tokenizer", spm ? json_null() : pre_tokenizer(split));
    json_object_set_new(root, "post_processor", post_processor(m));
    json_object_set_new(root, "decoder", spm ? spm_decoder(l->space_prefix) : byte_level(true));
    json_object_set_new(root, "model", model(m, merges, split && split->ignore_merges, spm));
    return NB_OK;
}

/* tokenizer_config.json, as a class that reads tokenizer.json alone wants it. */
static json_t *make_config(const maker *m) {
    const nb_token_list *l = m->l;
    const int32_t ids[NB_ROLES] = {[NB_BOS] = l->bos, [NB_EOS] = l->eos, [NB_PAD] = l->pad, [NB_UNK] = l->unk};
    json_t *c = json_pack("{s:s, s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "clean_up_tokenization_spaces",
                          0);
    for (int r = 0; r < NB_ROLES; r++)
        if (token(m, ids[r])) json_object_set_new(c, nb_tok_role_names[r], json_string(token(m, ids[r])));
    if (l->chat_template) json_object_set_new(c, "chat_template", json_string(l->chat_template));
    return c;
}

static nb_status check_list(const nb_token_list *l, const struct split **split, const char *where) {
    *split = NULL;
    if (!strcmp(l->model, "llama")) {
        if (!l->score) return nb_fail(NB_EINPUT, "%s: tokenizer.ggml.scores are missing", where);
        for (int64_t i = 0; i < l->n; i++)
            if (!isfinite(l->score[i]))
                return nb_fail(NB_EINPUT, "%s: the score of token %lld is not finite", where, (long long)i);
        return NB_OK;
    }
    if (strcmp(l->model, "gpt2") != 0)
        return nb_fail(NB_EUNSUPPORTED, "%s: tokenizer.ggml.model \"%.40s\" is not supported (gpt2 and llama are): "
                       "name a tokenizer.json with `tokenizer`", where, l->model);
    *split = find_split(l->pre);
    if (*split) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s: tokenizer.ggml.pre \"%.60s\" is not known, so text cannot be split as the "
                   "model wants it: name its tokenizer.json with `tokenizer`", where, l->pre);
}

/* t from the two texts, roles as the list has them. */
static nb_status build(nb_tokenizer *t, const nb_token_list *l, const json_t *root) {
    const int32_t ids[NB_ROLES] = {[NB_BOS] = l->bos, [NB_EOS] = l->eos, [NB_PAD] = l->pad, [NB_UNK] = l->unk};
    nb_sha256_of(t->made, strlen(t->made), t->file_sha);
    NB_TRY(nb_tok_read_json(t, root));
    for (int r = 0; r < NB_ROLES; r++)
        if (ids[r] >= 0 && ids[r] < t->n && t->entry[ids[r]].s) t->role[r] = ids[r];
    if (t->role[NB_EOS] >= 0) nb_tok_list_add(&t->eos_ids, t->role[NB_EOS]);
    for (int i = 0; i < l->n_ends; i++)
        if (l->ends[i] != t->role[NB_EOS] && l->ends[i] >= 0 && l->ends[i] < t->n && t->entry[l->ends[i]].s)
            nb_tok_list_add(&t->eos_ids, l->ends[i]);
    if (l->chat_template) t->chat_template = nb_strdup(l->chat_template);
    return nb_tok_finish(t);
}

nb_status nb_tokenizer_from_list(nb_tokenizer **out, const nb_token_list *l, const char *where) {
    const struct split *split;
    json_t *root = NULL, *config = NULL;
    *out = NULL;
    NB_TRY(check_list(l, &split, where));
    maker m = {.l = l, .where = where, .names = nb_tok_new(), .vocab = json_object(), .added = json_array()};
    nb_tokenizer *t = nb_tok_new();
    t->file = nb_strdup(where), t->dir = nb_strdup(where);
    m.names->file = nb_strdup(where);
    nb_status st = make_json(&m, split, &root);
    if (st == NB_OK) {
        config = make_config(&m);
        t->made = json_dumps(root, JSON_COMPACT), t->made_config = json_dumps(config, JSON_COMPACT);
        if (!t->made || !t->made_config) st = nb_fail(NB_EINPUT, "%s: the chat template is not valid UTF-8", where);
    }
    if (st == NB_OK) st = build(t, l, root);
    if (st == NB_OK) *out = t;
    else nb_tokenizer_free(t);
    nb_tokenizer_free(m.names);
    json_decref(root), json_decref(config), json_decref(m.vocab), json_decref(m.added);
    return st;
}
