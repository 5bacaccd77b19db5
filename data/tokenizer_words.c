/* From words to ids: a cache of short words in front of the model, BPE or Unigram. */
#include <string.h>

#include "core/mem.h"
#include "data/tokenizer_impl.h"

void nb_tok_sym_add(nb_tok_work *w, int32_t id, size_t start) {
    NB_GROW(w->sym, w->n_sym, w->cap_sym);
    w->sym[w->n_sym++] = (nb_tok_sym){.id = id, .start = (uint32_t)start};
}

static bool cache_read(const nb_tok_cached *c, const nb_tok_view *v, size_t from, size_t n, nb_ids *out) {
    if (c->len != n || memcmp(c->word, v->s + from, n)) return false;
    for (int i = 0; i < c->n; i++) nb_ids_add(out, c->id[i], nb_tok_origin(v, from + c->start[i]));
    return true;
}

static void cache_write(nb_tok_cached *c, const nb_tok_work *w, const char *s, size_t from, size_t n) {
    if (w->n_sym > (size_t)NB_LEN(c->id)) return;
    c->len = (uint8_t)n, c->n = (uint8_t)w->n_sym;
    memcpy(c->word, s + from, n);
    for (int i = 0; i < NB_LEN(c->id) && i < c->n; i++) {
        c->start[i] = (uint8_t)(w->sym[i].start - from);
        c->id[i] = w->sym[i].id;
    }
}

/* What is independent of its neighbours. Special tokens that spell themselves depend on the flags: never cached. */
static nb_status piece(const nb_tokenizer *t, nb_tok_work *w, const nb_tok_view *v, size_t from, size_t to, int flags,
                       nb_ids *out) {
    size_t n = to - from;
    nb_tok_cached *c = NULL;
    if (n <= sizeof c->word) {
        c = &w->cache[nb_tok_hash(v->s + from, n) & (NB_TOK_CACHE - 1)];
        if (cache_read(c, v, from, n, out)) return NB_OK;
    }
    w->n_sym = 0;
    w->flagged = false;
    if (t->uni.node) NB_TRY(nb_tok_unigram_symbols(t, w, v->s, from, to, flags));
    else nb_tok_bpe_symbols(t, w, v->s, from, to, flags);
    if (c && !w->flagged) cache_write(c, w, v->s, from, n);
    for (size_t i = 0; i < w->n_sym; i++) nb_ids_add(out, w->sym[i].id, nb_tok_origin(v, w->sym[i].start));
    return NB_OK;
}

nb_status nb_tok_word(const nb_tokenizer *t, nb_tok_work *w, const nb_tok_view *v, size_t from, size_t to, int flags,
                      nb_ids *out) {
    for (size_t end; from < to; from = end) {
        end = nb_tok_bpe_seam(t, v->s, from, to);
        NB_TRY(piece(t, w, v, from, end, flags, out));
    }
    return NB_OK;
}
