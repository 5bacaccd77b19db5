/* Unigram: of all ways to cut a word into pieces of the vocabulary, the one whose scores have the highest sum
 * (Viterbi; Kudo 2018, https://arxiv.org/abs/1804.10959). A character that is no piece of its own may be "unknown",
 * at a cost of 10 below the lowest score; unknown characters in a row are one token.
 *
 * Sums often tie, so that how they are rounded decides ids: doubles for tokenizer.json, as in the tokenizers library;
 * floats for tokenizer.model, where a new sum is compared before it is rounded, as in SentencePiece. Of equal sums the
 * first found stays. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

/* Bytes after which a word's beginning is settled where no piece reaches over: bounds the memory of long words. */
enum { WINDOW = 4096 };
enum { FEW_CHILDREN = 12 }; /* that are looked through one by one */
static const double unk_penalty = 10;
#define UNREACHED UINT32_MAX

/* ---- reading ------------------------------------------------------------------------------------------- */

/* A score as the tokenizers library reads it, whose JSON reader takes the digits for an integer and divides that by a
 * power of ten: two roundings, so that the last bit may differ from the nearest double, which decides ties. */
static double read_score(double x) {
    char digits[40];
    int precision = 0;
    if (x == 0 || !isfinite(x)) return x;
    do snprintf(digits, sizeof digits, "%.*e", precision, x);
    while (strtod(digits, NULL) != x && precision++ < 16);
    bool negative = digits[0] == '-';
    int exponent = atoi(strchr(digits, 'e') + 1) - precision;
    double whole = 0;
    uint64_t integer = 0;
    for (const char *s = digits + negative; *s != 'e'; s++)
        if (*s != '.') integer = integer * 10 + (uint64_t)(*s - '0');
    whole = (double)integer;
    if (exponent < -300 || exponent > 300) return x;
    char power[16];
    snprintf(power, sizeof power, "1e%d", abs(exponent));
    whole = exponent < 0 ? whole / strtod(power, NULL) : whole * strtod(power, NULL);
    return negative ? -whole : whole;
}

/* "vocab": [[piece, score], ...], ids in order */
static nb_status read_vocab(nb_tokenizer *t, const json_t *vocab) {
    size_t n = json_array_size(vocab);
    if (!n || n > NB_TOK_MAX_ID)
        return nb_fail(NB_EINPUT, "%s: model.vocab has %zu pieces, want 1 to %d", t->file, n, NB_TOK_MAX_ID);
    t->uni.score = nb_calloc(n, sizeof *t->uni.score);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(vocab, i), *score = json_array_get(v, 1);
        const char *s = json_string_value(json_array_get(v, 0));
        if (json_array_size(v) != 2 || !s || !json_is_number(score))
            return nb_fail(NB_EINPUT, "%s: model.vocab[%zu] should be [piece, score]", t->file, i);
        if (strlen(s) != json_string_length(json_array_get(v, 0)))
            return nb_fail(NB_EINPUT, "%s: model.vocab[%zu] contains a NUL character", t->file, i);
        NB_TRY(nb_tok_put(t, s, strlen(s), (int64_t)i, NB_TOK_VOCAB));
        t->uni.score[i] = read_score(json_number_value(score));
    }
    return NB_OK;
}

nb_status nb_tok_unigram_parse(nb_tokenizer *t, const json_t *m) {
    static const char *const known[] = {"type", "unk_id", "vocab", "byte_fallback", NULL};
    const json_t *vocab, *unk = json_object_get(m, "unk_id");
    NB_TRY(nb_tok_only(m, t->file, known));
    NB_TRY(nb_json_bool(m, "byte_fallback", &t->bpe.byte_fallback, t->file));
    NB_TRY(nb_tok_need_array(m, "vocab", &vocab, t->file));
    NB_TRY(read_vocab(t, vocab));
    if (unk && !json_is_null(unk)) {
        if (!json_is_integer(unk) || json_integer_value(unk) < 0 || json_integer_value(unk) >= t->n)
            return nb_fail(NB_EINPUT, "%s: model.unk_id should be the id of one of the %d pieces", t->file, t->n);
        t->bpe.unk = (int32_t)json_integer_value(unk);
    }
    nb_tok_unigram_build(t, NULL);
    return NB_OK;
}

/* ---- the trie ------------------------------------------------------------------------------------------ */

static int by_bytes(const void *p, const void *q) {
    const nb_tok_entry *x = *(nb_tok_entry *const *)p, *y = *(nb_tok_entry *const *)q;
    int c = memcmp(x->s, y->s, x->n < y->n ? x->n : y->n);
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

static void widen(nb_tok_unigram *u) {
    int n = 0, cap = 0;
    for (int i = 0; i < u->n_nodes; i++) {
        nb_tok_node *x = &u->node[i];
        if (x->n <= FEW_CHILDREN) continue;
        NB_GROW(u->wide, n, cap);
        memset(u->wide[n], -1, sizeof u->wide[n]);
        for (int k = 0; k < x->n; k++) u->wide[n][u->node[x->child + k].byte] = x->child + k;
        x->child = n++, x->n = NB_TOK_WIDE;
    }
}

/* Node after node, breadth first: node i stands for the beginning that pieces lo[i]..hi[i] of the sorted list share.
 * The children of a node lie side by side, by their bytes. */
void nb_tok_unigram_build(nb_tokenizer *t, const bool *in) {
    nb_tok_unigram *u = &t->uni;
    nb_tok_entry **sorted = nb_calloc((size_t)t->n, sizeof(*sorted));
    struct { int lo, hi; uint32_t depth; } *range = NULL;
    int n = 0, cap = 0, cap_range = 0;
    double least = INFINITY;
    for (int id = 0; id < t->n; id++) {
        if (in && !in[id]) continue;
        if (u->score[id] < least) least = u->score[id];
        if (t->entry[id].n) sorted[n++] = &t->entry[id];
    }
    u->unk_score = u->floats ? (double)(float)(least - unk_penalty) : least - unk_penalty;
    if (n) qsort(sorted, (size_t)n, sizeof(*sorted), by_bytes);
    NB_GROW(u->node, 0, cap);
    NB_GROW(range, 0, cap_range);
    u->node[0] = (nb_tok_node){.id = -1};
    range[0].lo = 0, range[0].hi = n, range[0].depth = 0;
    u->n_nodes = 1;
    for (int i = 0; i < u->n_nodes; i++) {
        uint32_t depth = range[i].depth;
        int at = range[i].lo, hi = range[i].hi;
        if (at < hi && sorted[at]->n == depth) u->node[i].id = (int32_t)(sorted[at++] - t->entry);
        u->node[i].child = u->n_nodes;
        while (at < hi) {
            uint8_t byte = (uint8_t)sorted[at]->s[depth];
            int from = at;
            while (at < hi && (uint8_t)sorted[at]->s[depth] == byte) at++;
            NB_GROW(u->node, u->n_nodes, cap);
            NB_GROW(range, u->n_nodes, cap_range);
            u->node[u->n_nodes] = (nb_tok_node){.id = -1, .byte = byte};
            range[u->n_nodes].lo = from, range[u->n_nodes].hi = at, range[u->n_nodes++].depth = depth + 1;
            u->node[i].n++;
        }
    }
    free(sorted);
    free(range);
    for (int id = 0; id < t->n; id++)
        if (t->entry[id].s && (t->entry[id].flags & NB_TOK_KEPT)) u->kept[(uint8_t)t->entry[id].s[0]] = true;
    widen(u);
}

static inline const nb_tok_node *child(const nb_tok_unigram *u, const nb_tok_node *x, uint8_t byte) {
    if (x->n == NB_TOK_WIDE) {
        int32_t at = u->wide[x->child][byte];
        return at < 0 ? NULL : u->node + at;
    }
    const nb_tok_node *c = u->node + x->child, *end = c + x->n;
    for (; c < end; c++)
        if (c->byte == byte) return c;
    return NULL;
}

size_t nb_tok_unigram_kept(const nb_tokenizer *t, const char *s, size_t n) {
    const nb_tok_node *x = t->uni.node;
    size_t best = 0;
    if (!t->uni.kept[(uint8_t)s[0]]) return 0;
    for (size_t i = 0; x && i < n && (x = child(&t->uni, x, (uint8_t)s[i]));)
        if (i++, x->id >= 0 && (t->entry[x->id].flags & NB_TOK_KEPT)) best = i;
    return best;
}

void nb_tok_unigram_free(nb_tok_unigram *u) {
    free(u->node);
    free(u->wide);
    free(u->score);
}

/* ---- the best path ------------------------------------------------------------------------------------- */

/* A way to position `at` of the window: by the piece `id` that begins at `start`, with `score` in all. */
static void offer(const nb_tok_unigram *u, nb_tok_work *w, size_t at, double score, size_t start, int32_t id) {
    while (w->n_best <= at) {
        NB_GROW(w->best, w->n_best, w->cap_best);
        w->best[w->n_best++] = (nb_tok_best){.start = UNREACHED};
    }
    nb_tok_best *b = &w->best[at];
    if (b->start != UNREACHED && score <= b->score) return;
    *b = (nb_tok_best){u->floats ? (double)(float)score : score, (uint32_t)start, id};
}

/* Everything that may begin at byte `pos`; the window begins at `base`. */
static nb_status step(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t base, size_t pos, size_t to,
                      int flags) {
    const nb_tok_unigram *u = &t->uni;
    double here = w->best[pos - base].score;
    size_t first = pos;
    bool single = false;
    const nb_tok_node *x = u->node;
    nb_utf8_next(s, &first);
    for (size_t i = pos; i < to && (x = child(u, x, (uint8_t)s[i]));) {
        i++;
        if (x->id < 0) continue;
        if (t->entry[x->id].flags & NB_TOK_IS_SPECIAL) {
            w->flagged = true;
            if (flags & NB_TOK_PLAIN) continue;
        }
        offer(u, w, i - base, here + u->score[x->id], pos - base, x->id);
        single |= i == first;
    }
    if (single) return NB_OK;
    if (t->bpe.unk < 0)
        return nb_fail(NB_EINPUT, "%s: no piece for the character \"%.*s\", and no unk_id", t->file, (int)(first - pos),
                       s + pos);
    double unknown = here + u->unk_score;
    offer(u, w, first - base, u->floats ? (double)(float)unknown : unknown, pos - base, t->bpe.unk);
    return NB_OK;
}

/* The token of s[from..to), which is a piece or unknown characters; its start is `from`. Added back to front. */
static void add_piece(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t from, size_t to, int32_t id,
                      int flags) {
    bool all = id == t->bpe.unk;
    if (all) {
        int32_t known = nb_tok_find_vocab(t, s + from, to - from);
        if (known >= 0 && (t->entry[known].flags & NB_TOK_IS_SPECIAL)) {
            w->flagged = true;
            if (flags & NB_TOK_PLAIN) known = -1;
        }
        if (known >= 0) id = known;
        all = known < 0 && t->bpe.byte_fallback;
    }
    for (size_t i = from; i < to && all; i++) all = t->bpe.fallback[(uint8_t)s[i]] >= 0;
    if (all)
        for (size_t i = to; i-- > from;) nb_tok_sym_add(w, t->bpe.fallback[(uint8_t)s[i]], from);
    else nb_tok_sym_add(w, id, from);
}

/* The tokens of the best way to s[end]. */
static void collect(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t base, size_t end, int flags) {
    size_t mark = w->n_sym;
    for (size_t to = end, from; to > base; to = from) {
        int32_t id = w->best[to - base].id;
        from = base + w->best[to - base].start;
        while (id == t->bpe.unk && from > base && w->best[from - base].id == id)
            from = base + w->best[from - base].start;
        add_piece(t, w, s, from, to, id, flags);
    }
    for (size_t i = mark, k = w->n_sym; i + 1 < k; i++) {
        nb_tok_sym swap = w->sym[--k];
        w->sym[k] = w->sym[i], w->sym[i] = swap;
    }
}

nb_status nb_tok_unigram_symbols(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t from, size_t to,
                                 int flags) {
    size_t base = from, pos = from;
    w->n_best = 0;
    offer(&t->uni, w, 0, 0.0, 0, -1);
    while (pos < to) {
        bool settled = w->n_best == pos - base + 1 && w->best[pos - base].id != t->bpe.unk;
        if (settled && pos - base >= WINDOW) {
            double score = w->best[pos - base].score;
            collect(t, w, s, base, pos, flags);
            base = pos, w->n_best = 0;
            offer(&t->uni, w, 0, score, 0, -1);
        }
        NB_TRY(step(t, w, s, base, pos, to, flags));
        nb_utf8_next(s, &pos);
    }
    collect(t, w, s, base, to, flags);
    return NB_OK;
}
