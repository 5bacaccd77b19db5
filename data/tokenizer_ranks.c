/* tokenizer.model as tiktoken reads it, which is what Llama 3 comes with: a token a line, "BASE64 RANK", and the rank is
 * the id. A word's neighbours are joined whose joined bytes have the lowest rank, so that the merges follow from the
 * ranks. The splitting expression and the special tokens are in the program that the file belongs to: they are known
 * for the vocabularies below, told by their number of ranks. */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

enum { MAX_BYTES = 512 }; /* of a token: the longest of those in use has 128, and every cut of it is looked up */

/* ---- the vocabularies ---- */

typedef struct special { int32_t id; const char *text; } special;
static const special llama3[] = {
    {128000, "<|begin_of_text|>"}, {128001, "<|end_of_text|>"}, {128006, "<|start_header_id|>"},
    {128007, "<|end_header_id|>"}, {128009, "<|eot_id|>"}, {0}};
static const special llama31[] = {
    {128000, "<|begin_of_text|>"}, {128001, "<|end_of_text|>"}, {128004, "<|finetune_right_pad_id|>"},
    {128006, "<|start_header_id|>"}, {128007, "<|end_header_id|>"}, {128008, "<|eom_id|>"}, {128009, "<|eot_id|>"},
    {128010, "<|python_tag|>"}, {0}};
static const special cl100k[] = {
    {100257, "<|endoftext|>"}, {100258, "<|fim_prefix|>"}, {100259, "<|fim_middle|>"}, {100260, "<|fim_suffix|>"},
    {100276, "<|endofprompt|>"}, {0}};

static const struct nb_tok_vocabulary {
    int ranks, reserved;     /* ids up to `reserved` that have no name are <|reserved_special_token_N|>; 0: no such */
    const special *names;
    int64_t context;         /* of the models with these names; 0: any */
    const char *split;       /* llama.cpp's name for the expression */
    int32_t bos, ends[3];    /* without a word on it in the folder; 0: none */
} vocabularies[] = {
    {128000, 128256, llama3, 8192, "llama-bpe", 128000, {128001, 128009}},
    {128000, 128256, llama31, 0, "llama-bpe", 128000, {128001, 128008, 128009}},
    {100256, 0, cl100k, 0, "llama-bpe", 0, {100257}},
};

/* Llama 3.1 gave names to some of Llama 3's reserved tokens; the length of the context tells them apart. */
static nb_status find_vocabulary(const nb_tokenizer *t, const struct nb_tok_vocabulary **out) {
    char *path = nb_path_join(t->dir, "config.json");
    json_t *config = NULL;
    int64_t context = 0;
    nb_status st = nb_file_exists(path) ? nb_json_load(path, &config) : NB_OK;
    if (st == NB_OK && config) st = nb_json_int(config, "max_position_embeddings", &context, path);
    json_decref(config);
    free(path);
    NB_TRY(st);
    for (int i = 0; i < NB_LEN(vocabularies); i++) {
        *out = &vocabularies[i];
        if ((*out)->ranks == t->n && (!(*out)->context || (*out)->context == context)) return NB_OK;
    }
    return nb_fail(NB_EUNSUPPORTED, "%s: a tiktoken list of %d ranks, for which nibble knows no splitting expression "
                   "(it does for Llama 3's 128000 and cl100k's 100256): is there a tokenizer.json?", t->file, t->n);
}

/* ---- the lines ---- */

/* No protocol buffer begins like this: SentencePiece's fields are numbered 1 to 5, their keys no digits of base64. */
bool nb_tok_is_ranks(const char *data, size_t n) {
    if (!n || nb_tok_base64_digit(data[0]) < 0) return false;
    for (size_t i = 0; i < n && data[i] != '\n'; i++)
        if (((uint8_t)data[i] < ' ' && data[i] != '\r') || (uint8_t)data[i] > '~') return false;
    return true;
}

/* s[0..n): one line without its end. */
static nb_status read_line(nb_tokenizer *t, const char *s, size_t n, int64_t line, int64_t lines) {
    uint8_t bytes[MAX_BYTES + 3];
    char text[2 * MAX_BYTES + 1];
    const char *space = memchr(s, ' ', n);
    size_t at = space ? (size_t)(space - s) : n, length = 0;
    int64_t rank = 0, count = at / 4 * 3 < sizeof bytes ? nb_tok_base64(bytes, s, at) : -1;
    bool number = at + 1 < n;
    for (size_t i = at + 1; i < n && number; i++) {
        number = s[i] >= '0' && s[i] <= '9' && rank < NB_TOK_MAX_ID;
        rank = rank * 10 + (s[i] - '0');
    }
    if (count < 1 || count > MAX_BYTES || !number)
        return nb_fail(NB_EINPUT, "%s: line %lld should be a token in base64 (of at most %d bytes), a space and its "
                       "rank: \"%.*s\"", t->file, (long long)line, MAX_BYTES, (int)(n < 60 ? n : 60), s);
    if (rank >= lines)
        return nb_fail(NB_EINPUT, "%s: line %lld: rank %lld, but the file has %lld lines, and ranks count from 0 without "
                       "a gap", t->file, (long long)line, (long long)rank, (long long)lines);
    for (int64_t i = 0; i < count; i++) length += (size_t)nb_utf8_put(text + length, nb_tok_byte_char(bytes[i]));
    if (rank < t->n && t->entry[rank].s)
        return nb_fail(NB_EINPUT, "%s: line %lld: rank %lld was there before", t->file, (long long)line,
                       (long long)rank);
    int32_t have = nb_tok_find_str(t, text, length);
    if (have >= 0)
        return nb_fail(NB_EINPUT, "%s: line %lld: this token has the rank %d already", t->file, (long long)line, have);
    text[length] = 0;
    return nb_tok_put(t, text, length, rank, NB_TOK_VOCAB);
}

static nb_status read_lines(nb_tokenizer *t, const char *data, size_t size) {
    int64_t lines = 0, line = 0;
    for (size_t i = 0; i < size; i++) lines += data[i] == '\n' || i + 1 == size;
    for (size_t i = 0; i < size;) {
        const char *end = memchr(data + i, '\n', size - i);
        size_t stop = end ? (size_t)(end - data) : size, n = stop - i;
        n -= n && data[stop - 1] == '\r';
        line++;
        if (n) NB_TRY(read_line(t, data + i, n, line, lines));
        i = stop + 1;
    }
    for (int b = 0; b < 256; b++) {
        char c[4];
        if (nb_tok_find_str(t, c, (size_t)nb_utf8_put(c, nb_tok_byte_char((uint8_t)b))) < 0)
            return nb_fail(NB_EINPUT, "%s: no rank for the byte 0x%02x: texts could not be written in these tokens",
                           t->file, (unsigned)b);
    }
    for (int id = 0; id < t->n; id++)
        if (!t->entry[id].s) return nb_fail(NB_EINPUT, "%s: no token has rank %d", t->file, id);
    return NB_OK;
}

/* ---- the merges ---- */

typedef struct merge { int32_t left, right, id; } merge;

static int by_parts(const void *p, const void *q) {
    const merge *x = p, *y = q;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

/* Every way to cut a token in two tokens, by the token's rank and then by those of the parts: the order of transformers'
 * converter, and so of the tokenizer.json that it writes. */
static void make_merges(nb_tokenizer *t) {
    merge *list = NULL;
    size_t n = 0, cap = 0;
    for (int32_t id = 0; id < t->n; id++) {
        const nb_tok_entry *e = &t->entry[id];
        size_t first = n, cut = 0;
        for (nb_utf8_next(e->s, &cut); cut < e->n; nb_utf8_next(e->s, &cut)) {
            int32_t left = nb_tok_find_str(t, e->s, cut);
            int32_t right = left < 0 ? -1 : nb_tok_find_str(t, e->s + cut, e->n - cut);
            if (right < 0) continue;
            NB_GROW(list, n, cap);
            list[n++] = (merge){left, right, id};
        }
        if (n - first > 1) qsort(list + first, n - first, sizeof *list, by_parts);
    }
    nb_tok_bpe_init(&t->bpe, n);
    for (size_t i = 0; i < n; i++) nb_tok_bpe_merge(&t->bpe, list[i].left, list[i].right, (uint32_t)i, list[i].id);
    free(list);
}

/* ---- special tokens ---- */

/* What tokenizer_config.json and added_tokens.json will add: text -> id, and the ids as keys too. */
static nb_status named_elsewhere(const nb_tokenizer *t, json_t **out) {
    static const char *const files[] = {"tokenizer_config.json", "added_tokens.json"};
    nb_status st = NB_OK;
    *out = json_object();
    for (int i = 0; i < NB_LEN(files) && st == NB_OK; i++) {
        char *path = nb_path_join(t->dir, files[i]), id[32];
        json_t *root = NULL, *v;
        const char *key;
        if (nb_file_exists(path)) st = nb_json_load(path, &root);
        free(path);
        json_object_foreach(i ? root : json_object_get(root, "added_tokens_decoder"), key, v) {
            const char *text = i ? key : json_string_value(json_object_get(v, "content"));
            snprintf(id, sizeof id, "%lld", (long long)json_integer_value(v));
            if (text) json_object_set_new(*out, text, json_true());
            json_object_set_new(*out, i ? id : key, json_true());
        }
        json_decref(root);
    }
    return st;
}

static nb_status put_special(nb_tokenizer *t, const json_t *elsewhere, int32_t id, const char *text) {
    char key[16];
    snprintf(key, sizeof key, "%d", id);
    if (json_object_get(elsewhere, key) || json_object_get(elsewhere, text)) return NB_OK;
    return nb_tok_added_put(t, text, strlen(text), id, (nb_tok_added){.special = true});
}

/* Those of the program the file comes from, where the folder does not say. */
static nb_status add_specials(nb_tokenizer *t, const struct nb_tok_vocabulary *v) {
    json_t *elsewhere;
    int reserved = 0;
    const special *s = v->names;
    nb_status st = named_elsewhere(t, &elsewhere);
    for (int32_t id = v->ranks; st == NB_OK && (s->text || id < v->reserved); id++) {
        char name[64];
        bool named = s->text && s->id == id;
        if (!named && id >= v->reserved) continue;
        snprintf(name, sizeof name, "<|reserved_special_token_%d|>", reserved);
        st = put_special(t, elsewhere, id, named ? s->text : name);
        reserved += !named;
        s += named;
    }
    json_decref(elsewhere);
    return st;
}

void nb_tok_ranks_roles(nb_tokenizer *t) {
    const struct nb_tok_vocabulary *v = t->ranks;
    if (!v) return;
    if (t->role[NB_BOS] < 0 && v->bos && v->bos < t->n) t->role[NB_BOS] = v->bos;
    if (t->role[NB_EOS] < 0 && v->ends[0] < t->n) t->role[NB_EOS] = v->ends[0];
    for (int i = 0, any = t->eos_ids.n; i < NB_LEN(v->ends) && !any; i++)
        if (v->ends[i] && v->ends[i] < t->n) nb_tok_list_add(&t->eos_ids, v->ends[i]);
}

/* ---- the whole ---- */

nb_status nb_tok_read_ranks(nb_tokenizer *t, const char *data, size_t size) {
    NB_TRY(read_lines(t, data, size));
    const struct nb_tok_vocabulary *v;
    NB_TRY(find_vocabulary(t, &v));
    make_merges(t);
    t->ranks = v;
    t->split_name = v->split;
    t->bpe.bytes = t->bpe.ignore_merges = true; /* a word that is a token is that token */
    json_t *pre = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                            nb_tok_split_regex(v->split), "behavior", "Isolated", "invert", 0);
    json_t *decoder = json_pack("{s:s}", "type", "ByteLevel");
    nb_status st = nb_tok_pres_parse(&t->pres, pre, t->file, 0);
    if (st == NB_OK) st = nb_tok_decs_parse(&t->decs, decoder, t->file, 0);
    json_decref(pre), json_decref(decoder);
    return st == NB_OK ? add_specials(t, v) : st;
}
