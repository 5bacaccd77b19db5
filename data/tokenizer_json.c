/* tokenizer.json: the model (BPE), the added tokens, the post-processor; Unigram and the other sections have files of
 * their own. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "data/tokenizer_impl.h"

/* ---- model --------------------------------------------------------------------------------------------- */

static nb_status read_vocab(nb_tokenizer *t, const json_t *model) {
    const json_t *vocab = json_object_get(model, "vocab");
    if (!json_is_object(vocab))
        return nb_fail(NB_EINPUT, "%s: model.vocab should be an object, not %s", t->file, nb_json_type(vocab));
    const char *token;
    json_t *id;
    json_object_foreach((json_t *)vocab, token, id) {
        if (!json_is_integer(id))
            return nb_fail(NB_EINPUT, "%s: the id of token \"%s\" should be an integer, not %s", t->file, token,
                           nb_json_type(id));
        NB_TRY(nb_tok_put(t, token, strlen(token), json_integer_value(id), NB_TOK_VOCAB));
    }
    return NB_OK;
}

/* A merge is "left right" (one space, none inside) or ["left", "right"]. */
static nb_status split_merge(const nb_tokenizer *t, const json_t *m, size_t rank, const char **l, size_t *ln,
                             const char **r, size_t *rn) {
    if (json_is_array(m) && json_array_size(m) == 2 && json_is_string(json_array_get(m, 0)) &&
        json_is_string(json_array_get(m, 1))) {
        *l = json_string_value(json_array_get(m, 0)), *ln = json_string_length(json_array_get(m, 0));
        *r = json_string_value(json_array_get(m, 1)), *rn = json_string_length(json_array_get(m, 1));
        return NB_OK;
    }
    const char *s = json_string_value(m), *space = s ? strchr(s, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return nb_fail(NB_EINPUT, "%s: merge %zu should be \"left right\" or [\"left\", \"right\"]%s%.100s", t->file,
                       rank, s ? ", not " : "", s ? s : "");
    *l = s, *ln = (size_t)(space - s);
    *r = space + 1, *rn = strlen(space + 1);
    return NB_OK;
}

static nb_status read_merges(nb_tokenizer *t, const json_t *model) {
    const json_t *merges;
    NB_TRY(nb_tok_need_array(model, "merges", &merges, t->file));
    size_t n = json_array_size(merges);
    nb_text joined = {0};
    nb_status st = NB_OK;
    nb_tok_bpe_init(&t->bpe, n);
    for (size_t i = 0; i < n && st == NB_OK; i++) {
        const char *l = NULL, *r = NULL;
        size_t ln = 0, rn = 0;
        NB_GO(st, split_merge(t, json_array_get(merges, i), i, &l, &ln, &r, &rn), out);
        joined.n = 0;
        nb_text_add(&joined, l, ln);
        nb_text_add(&joined, r, rn);
        int32_t left = nb_tok_find_vocab(t, l, ln), right = nb_tok_find_vocab(t, r, rn);
        int32_t id = nb_tok_find_vocab(t, joined.s, joined.n);
        if (left < 0 || right < 0 || id < 0)
            st = nb_fail(NB_EINPUT, "%s: merge %zu makes \"%.*s\" + \"%.*s\", but %s is not in the vocabulary", t->file,
                         i, (int)ln, l, (int)rn, r,
                         left < 0    ? "the first"
                         : right < 0 ? "the second"
                                     : "the result");
        else nb_tok_bpe_merge(&t->bpe, left, right, (uint32_t)i, id);
    }
out:
    nb_text_free(&joined);
    return st;
}

static nb_status refuse_affixes(const nb_tokenizer *t, const json_t *model) {
    static const char *const keys[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < NB_LEN(keys); i++) {
        const char *s = NULL;
        NB_TRY(nb_json_str(model, keys[i], &s, t->file));
        if (s && *s) return nb_fail(NB_EUNSUPPORTED, "%s: model.%s \"%s\" is not supported", t->file, keys[i], s);
    }
    double dropout = 0;
    NB_TRY(nb_json_real(model, "dropout", &dropout, t->file));
    if (dropout != 0) return nb_fail(NB_EUNSUPPORTED, "%s: model.dropout (random merges) is not supported", t->file);
    return NB_OK;
}

static nb_status read_model(nb_tokenizer *t, const json_t *root) {
    static const char *const known[] = {"type",
                                        "dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "fuse_unk",
                                        "byte_fallback",
                                        "ignore_merges",
                                        "vocab",
                                        "merges",
                                        NULL};
    const json_t *m = json_object_get(root, "model");
    const char *type = "BPE", *unk = NULL; /* files older than the field are BPE when they have merges */
    if (!json_is_object(m)) return nb_fail(NB_EINPUT, "%s: no \"model\" object: not a tokenizer.json", t->file);
    NB_TRY(nb_json_str(m, "type", &type, t->file));
    if (!strcmp(type, "Unigram")) return nb_tok_unigram_parse(t, m);
    if (strcmp(type, "BPE"))
        return nb_fail(NB_EUNSUPPORTED, "%s: tokenizer model \"%s\" is not supported, only BPE and Unigram are",
                       t->file, type);
    NB_TRY(nb_tok_only(m, t->file, known));
    NB_TRY(refuse_affixes(t, m));
    NB_TRY(nb_json_bool(m, "fuse_unk", &t->bpe.fuse_unk, t->file));
    NB_TRY(nb_json_bool(m, "byte_fallback", &t->bpe.byte_fallback, t->file));
    NB_TRY(nb_json_bool(m, "ignore_merges", &t->bpe.ignore_merges, t->file));
    NB_TRY(read_vocab(t, m));
    NB_TRY(read_merges(t, m));
    NB_TRY(nb_json_str(m, "unk_token", &unk, t->file));
    if (unk) {
        t->bpe.unk = nb_tok_find_vocab(t, unk, strlen(unk));
        if (t->bpe.unk < 0) return nb_fail(NB_EINPUT, "%s: unk_token \"%s\" is not in the vocabulary", t->file, unk);
    }
    return NB_OK;
}

/* ---- added tokens and post-processor ------------------------------------------------------------------- */

static nb_status read_added(nb_tokenizer *t, const json_t *root) {
    static const char *const known[] = {"id",     "content",    "single_word", "lstrip",
                                        "rstrip", "normalized", "special",     NULL};
    const json_t *list;
    if (!json_object_get(root, "added_tokens")) return NB_OK;
    NB_TRY(nb_tok_need_array(root, "added_tokens", &list, t->file));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        nb_tok_added a = {0};
        const char *content;
        int64_t id = -1;
        NB_TRY(nb_tok_only(v, t->file, known));
        NB_TRY(nb_tok_need_str(v, "content", &content, t->file));
        NB_TRY(nb_json_int(v, "id", &id, t->file));
        NB_TRY(nb_json_bool(v, "special", &a.special, t->file));
        a.normalized = !a.special;
        NB_TRY(nb_json_bool(v, "normalized", &a.normalized, t->file));
        NB_TRY(nb_json_bool(v, "single_word", &a.single_word, t->file));
        NB_TRY(nb_json_bool(v, "lstrip", &a.lstrip, t->file));
        NB_TRY(nb_json_bool(v, "rstrip", &a.rstrip, t->file));
        NB_TRY(nb_tok_added_put(t, content, strlen(content), id, a));
    }
    return NB_OK;
}

static nb_status template_ids(nb_tokenizer *t, const json_t *special, const json_t *specials, nb_tok_list *to) {
    const char *name;
    const json_t *ids;
    NB_TRY(nb_tok_need_str(special, "id", &name, t->file));
    NB_TRY(nb_tok_need_array(json_object_get(specials, name), "ids", &ids, t->file));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        json_int_t id = json_is_integer(json_array_get(ids, i)) ? json_integer_value(json_array_get(ids, i)) : -1;
        if (id < 0 || id >= t->n)
            return nb_fail(NB_EINPUT, "%s: post_processor puts id %lld for \"%s\", outside the vocabulary of %d",
                           t->file, (long long)id, name, t->n);
        nb_tok_list_add(to, (int32_t)id);
    }
    return NB_OK;
}

/* "single": what stands before the sequence A and behind it. A second processor wraps around the first. */
static nb_status read_template(nb_tokenizer *t, const json_t *v) {
    const json_t *single, *specials = json_object_get(v, "special_tokens");
    nb_tok_list before = {0}, after = {0};
    bool seen = false;
    nb_status st = nb_tok_need_array(v, "single", &single, t->file);
    for (size_t i = 0; st == NB_OK && i < json_array_size(single); i++) {
        const json_t *e = json_array_get(single, i), *special = json_object_get(e, "SpecialToken");
        if (special) st = template_ids(t, special, specials, seen ? &after : &before);
        else if (seen || !json_object_get(e, "Sequence"))
            st = nb_fail(NB_EUNSUPPORTED, "%s: post_processor: a template should be special tokens around one Sequence",
                         t->file);
        else seen = true;
    }
    if (st == NB_OK && !seen) st = nb_fail(NB_EINPUT, "%s: post_processor: the template has no Sequence", t->file);
    for (int i = 0; i < t->prefix.n; i++) nb_tok_list_add(&before, t->prefix.v[i]);
    for (int i = 0; i < after.n; i++) nb_tok_list_add(&t->suffix, after.v[i]);
    free(t->prefix.v);
    free(after.v);
    t->prefix = before;
    return st;
}

/* RobertaProcessing, BertProcessing: "cls" before, "sep" behind, each as [token, id]. */
static nb_status read_pair(nb_tokenizer *t, const json_t *v) {
    int32_t id[2];
    for (int i = 0; i < 2; i++) {
        static const char *const keys[] = {"cls", "sep"};
        const json_t *pair = json_object_get(v, keys[i]), *n = json_array_get(pair, 1);
        if (json_array_size(pair) != 2 || !json_is_integer(n) || json_integer_value(n) < 0 ||
            json_integer_value(n) >= t->n)
            return nb_fail(NB_EINPUT, "%s: post_processor: \"%s\" should be [token, id], the id below %d", t->file,
                           keys[i], t->n);
        id[i] = (int32_t)json_integer_value(n);
    }
    nb_tok_list before = {0};
    nb_tok_list_add(&before, id[0]);
    for (int i = 0; i < t->prefix.n; i++) nb_tok_list_add(&before, t->prefix.v[i]);
    free(t->prefix.v);
    t->prefix = before;
    nb_tok_list_add(&t->suffix, id[1]);
    return NB_OK;
}

static nb_status read_post(nb_tokenizer *t, const json_t *v, int depth) {
    const char *type;
    const json_t *list;
    if (!v || json_is_null(v)) return NB_OK;
    if (depth > NB_TOK_MAX_DEPTH)
        return nb_fail(NB_EINPUT, "%s: post_processors nested deeper than %d", t->file, NB_TOK_MAX_DEPTH);
    NB_TRY(nb_tok_need_str(v, "type", &type, t->file));
    if (!strcmp(type, "ByteLevel")) return NB_OK; /* moves offsets, adds no ids */
    if (!strcmp(type, "TemplateProcessing")) return read_template(t, v);
    if (!strcmp(type, "RobertaProcessing") || !strcmp(type, "BertProcessing")) return read_pair(t, v);
    if (strcmp(type, "Sequence"))
        return nb_fail(NB_EUNSUPPORTED, "%s: post_processor \"%s\" is not supported", t->file, type);
    NB_TRY(nb_tok_need_array(v, "processors", &list, t->file));
    for (size_t i = 0; i < json_array_size(list); i++) NB_TRY(read_post(t, json_array_get(list, i), depth + 1));
    return NB_OK;
}

/* truncation and padding are left unread on purpose: they are a caller's business (sequence_len), as in transformers.
 */
nb_status nb_tok_read_json(nb_tokenizer *t, const json_t *root) {
    static const char *const known[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    if (!json_is_object(root)) return nb_fail(NB_EINPUT, "%s: not a JSON object", t->file);
    NB_TRY(read_model(t, root));
    NB_TRY(nb_tok_only(root, t->file, known));
    NB_TRY(read_added(t, root));
    NB_TRY(nb_tok_norms_parse(&t->norms, json_object_get(root, "normalizer"), t->file, 0));
    NB_TRY(nb_tok_pres_parse(&t->pres, json_object_get(root, "pre_tokenizer"), t->file, 0));
    NB_TRY(nb_tok_decs_parse(&t->decs, json_object_get(root, "decoder"), t->file, 0));
    NB_TRY(read_post(t, json_object_get(root, "post_processor"), 0));
    /* the usual last step needs no rewritten text: words stay bytes, and merging starts from bytes */
    if (t->pres.n && t->pres.v[t->pres.n - 1].kind == NB_PRE_BYTES && !t->uni.node)
        t->pres.n--, t->bpe.bytes = true;
    return NB_OK;
}

nb_status nb_tok_load_json(nb_tokenizer *t) {
    json_t *root;
    NB_TRY(nb_json_load(t->file, &root));
    nb_status st = nb_tok_read_json(t, root);
    json_decref(root);
    return st;
}
