#include "data/tokenizer_export.h"

#include <stdlib.h>
#include <string.h>

#include "data/tokenizer_impl.h"

/* ---- byte-level BPE: the splitting expression ---- */

static const char *kind_of(const json_t *step) {
    const char *s = json_string_value(json_object_get(step, "type"));
    return s ? s : "";
}

/* By the steps before ByteLevel: none, the digits one by one, or one expression. */
static nb_status name_split(const nb_tokenizer *t, const json_t *pre, bool nfc, const char **out) {
    const json_t *steps = json_object_get(pre, "pretokenizers");
    const json_t *first = steps ? json_array_get(steps, 0) : pre, *last = steps ? json_array_get(steps, 1) : pre;
    if (steps && json_array_size(steps) == 1) last = first;
    const json_t *own = json_object_get(last, "use_regex");
    bool splits_itself = !own || json_is_true(own), alone = first == last;
    if (strcmp(kind_of(last), "ByteLevel") != 0 || (steps && json_array_size(steps) > 2) ||
        json_is_true(json_object_get(last, "add_prefix_space")))
        return nb_fail(NB_EUNSUPPORTED, "%s: pre_tokenizer: GGUF has no name for this way of splitting text", t->file);
    const char *regex = json_string_value(json_object_get(json_object_get(first, "pattern"), "Regex"));
    bool digits = !strcmp(kind_of(first), "Digits") && json_is_true(json_object_get(first, "individual_digits"));
    *out = NULL;
    if (alone && splits_itself) *out = nb_tok_split_name(NB_SPLIT_GPT2, t->bpe.ignore_merges, nfc);
    else if (digits && splits_itself) *out = nb_tok_split_name(NB_SPLIT_DIGITS, t->bpe.ignore_merges, nfc);
    else if (regex && !splits_itself) *out = nb_tok_split_name(regex, t->bpe.ignore_merges, nfc);
    if (*out) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s: pre_tokenizer: GGUF has no name for the splitting expression %.300s", t->file,
                   regex ? regex : "of this file");
}

static nb_status byte_level(const nb_tokenizer *t, nb_token_list *l) {
    json_t *root;
    if (t->split_name) return l->pre = t->split_name, NB_OK;
    NB_TRY(nb_json_load(t->file, &root));
    const json_t *normalizer = json_object_get(root, "normalizer");
    nb_status st = name_split(t, json_object_get(root, "pre_tokenizer"), json_is_object(normalizer), &l->pre);
    if (st == NB_OK && json_is_object(normalizer) && strcmp(kind_of(normalizer), "NFC") != 0)
        st = nb_fail(NB_EUNSUPPORTED, "%s: normalizer \"%s\": GGUF cannot say so for a byte-level tokenizer", t->file,
                     kind_of(normalizer));
    json_decref(root);
    return st;
}

static int by_rank(const void *x, const void *y) {
    const nb_tok_merge *a = *(nb_tok_merge *const *)x, *b = *(nb_tok_merge *const *)y;
    return (a->rank > b->rank) - (a->rank < b->rank);
}

static void list_merges(const nb_tokenizer *t, nb_token_list *l) {
    const nb_tok_merge **m = nb_calloc(t->bpe.n_merges + 1, sizeof *m);
    for (uint64_t i = 0; i <= t->bpe.mask; i++)
        if (t->bpe.merge[i].pair != UINT64_MAX) m[l->n_merges++] = &t->bpe.merge[i];
    qsort(m, (size_t)l->n_merges, sizeof *m, by_rank);
    l->merge = nb_calloc((size_t)l->n_merges + 1, sizeof *l->merge);
    for (int64_t i = 0; i < l->n_merges; i++)
        l->merge[i] = nb_asprintf("%s %s", t->entry[m[i]->pair >> 32].s, t->entry[(uint32_t)m[i]->pair].s);
    free(m);
}

/* ---- SentencePiece ---- */

/* llama.cpp joins the neighbours whose joined piece has the highest score: minus the rank of the first merge that makes
 * it keeps the order of the merges. Bytes have 0, added tokens are out of the way at -1000. */
static void score(const nb_tokenizer *t, nb_token_list *l) {
    l->score = nb_calloc((size_t)l->n, sizeof *l->score);
    for (int64_t i = 0; i < l->n; i++)
        l->score[i] = l->type[i] == NB_TOKEN_NORMAL ? -(float)t->bpe.n_merges - 1
                      : l->type[i] == NB_TOKEN_BYTE ? 0
                      : l->type[i] == NB_TOKEN_UNUSED ? -10000 : -1000;
    for (uint64_t i = 0; i <= t->bpe.mask; i++) {
        const nb_tok_merge *m = &t->bpe.merge[i];
        if (m->pair == UINT64_MAX || (l->type[m->id] != NB_TOKEN_NORMAL && l->type[m->id] != NB_TOKEN_USER_DEFINED))
            continue;
        if (-(float)m->rank > l->score[m->id]) l->score[m->id] = -(float)m->rank;
    }
}

/* Does a text begin with a space of its own? What the tokenizer does tells, whichever of its parts does it. */
static nb_status find_prefix(const nb_tokenizer *t, bool *out) {
    nb_ids ids = {0};
    nb_status st = nb_tokenizer_encode(t, "a", 1, 0, &ids);
    const char *s = st == NB_OK && ids.n ? nb_tokenizer_token(t, ids.id[0]) : NULL;
    *out = s && !strncmp(s, "\xe2\x96\x81", 3); /* "▁" */
    nb_ids_free(&ids);
    return st;
}

/* ---- tokens ---- */

static nb_token_type type_of(const nb_tokenizer *t, int32_t id) {
    const nb_tok_entry *e = &t->entry[id];
    if (e->flags & NB_TOK_IS_SPECIAL) return NB_TOKEN_CONTROL;
    if (e->flags & NB_TOK_ADDED) return NB_TOKEN_USER_DEFINED;
    if (id == t->bpe.unk) return NB_TOKEN_UNKNOWN;
    for (int b = 0; b < 256 && t->bpe.byte_fallback; b++)
        if (t->bpe.fallback[b] == id) return NB_TOKEN_BYTE;
    return NB_TOKEN_NORMAL;
}

/* Spaces are stored as spaces in tokens that are looked for as they are. */
static char *with_spaces(const char *s) {
    nb_text t = {0};
    for (; *s; s++) {
        bool space = !strncmp(s, "\xe2\x96\x81", 3);
        nb_text_add(&t, space ? " " : s, 1);
        s += space ? 2 : 0;
    }
    return t.s ? t.s : nb_strdup("");
}

static void list_tokens(const nb_tokenizer *t, nb_token_list *l) {
    l->token = nb_calloc((size_t)l->n, sizeof *l->token);
    l->type = nb_calloc((size_t)l->n, sizeof *l->type);
    for (int64_t i = 0; i < l->n; i++) {
        const char *s = i < t->n ? t->entry[i].s : NULL;
        l->type[i] = s ? type_of(t, (int32_t)i) : NB_TOKEN_UNUSED;
        l->token[i] = !s ? nb_asprintf("[PAD%lld]", (long long)i)
                      : l->type[i] == NB_TOKEN_USER_DEFINED ? with_spaces(s) : nb_strdup(s);
    }
}

nb_status nb_tokenizer_list(const nb_tokenizer *t, int64_t vocab, nb_token_list *out) {
    *out = (nb_token_list){.n = vocab};
    if (t->n > vocab)
        return nb_fail(NB_EINPUT, "%s: has %d tokens, the model has rows for %lld", t->file, t->n, (long long)vocab);
    if (t->uni.node)
        return nb_fail(NB_EUNSUPPORTED, "%s: a Unigram tokenizer: GGUF has it for T5 and encoders only, none of which "
                       "nibble trains", t->file);
    if (!t->bpe.merge || (!t->bpe.bytes && !t->bpe.byte_fallback))
        return nb_fail(NB_EUNSUPPORTED, "%s: GGUF takes byte-level BPE, and BPE with byte fallback", t->file);
    if (t->bpe.bytes) NB_TRY(byte_level(t, out));
    else NB_TRY(find_prefix(t, &out->space_prefix));
    list_tokens(t, out);
    out->bos = t->role[NB_BOS], out->eos = t->role[NB_EOS], out->unk = t->role[NB_UNK], out->pad = t->role[NB_PAD];
    out->ends = t->eos_ids.v, out->n_ends = t->eos_ids.n;
    out->add_bos = nb_tokenizer_adds_bos(t), out->add_eos = nb_tokenizer_adds_eos(t);
    out->chat_template = t->chat_template;
    out->model = t->bpe.bytes ? "gpt2" : "llama";
    if (!t->bpe.bytes) out->pre = "default";
    if (t->bpe.bytes) list_merges(t, out);
    else score(t, out);
    return NB_OK;
}

void nb_token_list_free(nb_token_list *l) {
    for (int64_t i = 0; i < l->n && l->token; i++) free(l->token[i]);
    for (int64_t i = 0; i < l->n_merges; i++) free(l->merge[i]);
    free(l->token), free(l->merge), free(l->score), free(l->type);
    *l = (nb_token_list){0};
}
