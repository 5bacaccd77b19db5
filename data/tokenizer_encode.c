/* Encoding: the pipeline of tokenizer.h, and the pool of what its threads need. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

enum { MATCH_LIMIT = 10 * 1000 * 1000, JIT_STACK = 4 << 20 };

/* ---- work space ---------------------------------------------------------------------------------------- */

nb_tok_work *nb_tok_work_take(const nb_tokenizer *t) {
    nb_tokenizer *mine = (nb_tokenizer *)t; /* the pool is the one part that changes in use; the lock guards it */
    pthread_mutex_lock(&mine->lock);
    nb_tok_work *w = mine->pool;
    if (w) mine->pool = w->next;
    pthread_mutex_unlock(&mine->lock);
    if (w) return w;
    w = NB_NEW(nb_tok_work);
    w->cache = nb_calloc(NB_TOK_CACHE, sizeof *w->cache);
    w->match = pcre2_match_data_create(1, NULL);
    w->limits = pcre2_match_context_create(NULL);
    pcre2_set_match_limit(w->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(w->limits, 64 << 10); /* KiB */
    w->jit_stack = pcre2_jit_stack_create(32 << 10, JIT_STACK, NULL);
    pcre2_jit_stack_assign(w->limits, NULL, w->jit_stack);
    return w;
}

void nb_tok_work_give(const nb_tokenizer *t, nb_tok_work *w) {
    nb_tokenizer *mine = (nb_tokenizer *)t;
    pthread_mutex_lock(&mine->lock);
    w->next = mine->pool;
    mine->pool = w;
    pthread_mutex_unlock(&mine->lock);
}

void nb_tok_work_free(nb_tok_work *w) {
    for (int i = 0; i < 2; i++) {
        free(w->norm[i].s), free(w->norm[i].org);
        free(w->pre[i].s), free(w->pre[i].org);
        free(w->span[i].v);
    }
    free(w->sym);
    free(w->heap);
    free(w->cache);
    free(w->best);
    pcre2_match_data_free(w->match);
    pcre2_match_context_free(w->limits);
    pcre2_jit_stack_free(w->jit_stack);
    free(w);
}

/* ---- the pipeline -------------------------------------------------------------------------------------- */

void nb_ids_add(nb_ids *x, int32_t id, int64_t start) {
    if (x->n == x->cap) {
        x->cap = x->cap ? x->cap * 2 : 64;
        x->id = nb_realloc(x->id, (size_t)x->cap, sizeof *x->id);
        x->start = nb_realloc(x->start, (size_t)x->cap, sizeof *x->start);
    }
    x->id[x->n] = id;
    x->start[x->n++] = start;
}

void nb_ids_free(nb_ids *x) {
    free(x->id);
    free(x->start);
    *x = (nb_ids){0};
}

static nb_status encode_words(const nb_tokenizer *t, nb_tok_work *w, nb_tok_view v, int flags,
                              nb_ids *out) {
    nb_tok_spans *words;
    NB_TRY(nb_tok_presplit(&t->pres, w, &v, &words));
    for (size_t i = 0; i < words->n; i++)
        NB_TRY(nb_tok_word(t, w, &v, words->v[i].from, words->v[i].to, flags, out));
    return NB_OK;
}

static nb_tok_view part(const nb_tok_view *v, size_t from, size_t to) {
    return (nb_tok_view){v->s + from, to - from, v->org ? v->org + from : NULL, v->base + (uint32_t)from};
}

/* Text between added tokens: normalize it, cut out the added tokens that are looked for behind the normalizer. */
static nb_status encode_part(const nb_tokenizer *t, nb_tok_work *w, nb_tok_view v, int flags, nb_ids *out) {
    NB_TRY(nb_tok_normalize(&t->norms, w, &v));
    size_t done = 0, at = 0, from, to;
    const nb_tok_added *hit;
    while (nb_tok_match(&t->normalized, v.s, v.n, &at, done, flags, &hit, &from, &to)) {
        if (from > done) NB_TRY(encode_words(t, w, part(&v, done, from), flags, out));
        nb_ids_add(out, hit->id, nb_tok_origin(&v, from));
        done = to;
    }
    return done < v.n ? encode_words(t, w, part(&v, done, v.n), flags, out) : NB_OK;
}

static nb_status encode_text(const nb_tokenizer *t, nb_tok_work *w, const char *text, size_t n, int flags,
                             nb_ids *out) {
    nb_tok_view v = {.s = text, .n = n};
    size_t done = 0, at = 0, from, to;
    const nb_tok_added *hit;
    while (nb_tok_match(&t->raw, text, n, &at, done, flags, &hit, &from, &to)) {
        if (from > done) NB_TRY(encode_part(t, w, part(&v, done, from), flags, out));
        nb_ids_add(out, hit->id, (int64_t)from);
        done = to;
    }
    return done < n ? encode_part(t, w, part(&v, done, n), flags, out) : NB_OK;
}

static nb_status check_text(const char *text, size_t n) {
    if (n > NB_TOK_MAX_TEXT)
        return nb_fail(NB_EINPUT, "a text of %zu bytes is too long to tokenize at once (limit %d): split it", n,
                       NB_TOK_MAX_TEXT);
    size_t valid = nb_utf8_valid(text, n);
    if (valid < n)
        return nb_fail(NB_EINPUT, "invalid UTF-8 at byte %zu (0x%02x): convert the text to UTF-8", valid,
                       (uint8_t)text[valid]);
    return NB_OK;
}

nb_status nb_tokenizer_encode(const nb_tokenizer *t, const char *text, size_t n, int flags, nb_ids *out) {
    int64_t before = out->n;
    NB_TRY(check_text(text, n));
    nb_tok_work *w = nb_tok_work_take(t);
    for (int i = 0; (flags & NB_TOK_SPECIAL) && i < t->prefix.n; i++) nb_ids_add(out, t->prefix.v[i], 0);
    nb_status st = encode_text(t, w, text, n, flags, out);
    for (int i = 0; (flags & NB_TOK_SPECIAL) && i < t->suffix.n; i++) nb_ids_add(out, t->suffix.v[i], (int64_t)n);
    nb_tok_work_give(t, w);
    if (st != NB_OK) out->n = before;
    return st;
}
