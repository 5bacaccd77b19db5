/* Byte pair encoding of one word: start from characters (or bytes), then join, again and again, the neighbouring
 * pair whose merge has the lowest rank, the leftmost of equals.
 *
 * Short words scan all pairs for the lowest; long ones keep them in a heap over a linked list, O(n log n), because
 * a SentencePiece-style tokenizer takes a whole book for one word. Such a word is first cut at its seams: between
 * two characters that stand side by side in no merged token no merge can ever happen, so both sides are independent
 * and most of a book's pieces come out of the same cache as a byte-level tokenizer's words. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

enum { SCAN_MAX = 32, BIGRAM_BITS = 20 };
#define NO_RANK UINT32_MAX

/* ---- tables -------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}

void nb_tok_bpe_init(nb_tok_bpe *b, uint64_t merges) {
    uint64_t size = 16;
    while (size < merges * 2) size *= 2;
    b->mask = size - 1;
    b->merge = nb_malloc(size * sizeof *b->merge);
    for (uint64_t i = 0; i < size; i++) b->merge[i] = (nb_tok_merge){UINT64_MAX, NO_RANK, -1};
}

static nb_tok_merge *slot(const nb_tok_bpe *b, uint64_t pair) {
    uint64_t i = mix(pair) & b->mask;
    while (b->merge[i].pair != pair && b->merge[i].pair != UINT64_MAX) i = (i + 1) & b->mask;
    return &b->merge[i];
}

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

/* The same pair twice: the later one counts, as in the tokenizers library. */
void nb_tok_bpe_merge(nb_tok_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    nb_tok_merge *m = slot(b, pair_of(left, right));
    NB_ASSERT(m->pair != UINT64_MAX || b->n_merges < b->mask);
    b->n_merges += m->pair == UINT64_MAX;
    *m = (nb_tok_merge){pair_of(left, right), rank, id};
}

static uint64_t bigram_bit(uint32_t left, uint32_t right) {
    return mix((uint64_t)left << 32 | right) >> 5 & ((1u << BIGRAM_BITS) - 1);
}

static void add_bigrams(nb_tok_bpe *b, const nb_tok_entry *e) {
    size_t i = 0;
    if (!e->n) return;
    uint32_t left = nb_utf8_next(e->s, &i);
    while (i < e->n) {
        uint32_t right = nb_utf8_next(e->s, &i);
        uint64_t bit = bigram_bit(left, right);
        b->bigrams[bit >> 6] |= (uint64_t)1 << (bit & 63);
        left = right;
    }
}

void nb_tok_bpe_finish(nb_tokenizer *t) {
    nb_tok_bpe *b = &t->bpe;
    b->char_id = nb_malloc(NB_TOK_LOW_CHARS * sizeof *b->char_id);
    for (int i = 0; i < NB_TOK_LOW_CHARS; i++) b->char_id[i] = -1;
    for (int id = 0; id < t->n; id++) {
        const nb_tok_entry *e = &t->entry[id];
        if (!e->s || !(e->flags & NB_TOK_VOCAB) || !e->n) continue;
        size_t i = 0;
        uint32_t cp = nb_utf8_next(e->s, &i);
        if (i == e->n && cp < NB_TOK_LOW_CHARS) b->char_id[cp] = id;
        if (e->n > b->max_len) b->max_len = e->n;
    }
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        b->byte_id[byte] = b->char_id[nb_tok_byte_char((uint8_t)byte)];
        b->fallback[byte] = nb_tok_find_vocab(t, name, 6);
    }
    /* with ignore_merges a whole word may be a token without any merge: no seams then */
    if (b->bytes || b->ignore_merges || !b->merge) return;
    b->bigrams = nb_calloc((size_t)1 << (BIGRAM_BITS - 6), sizeof *b->bigrams);
    for (uint64_t i = 0; i <= b->mask; i++)
        if (b->merge[i].id >= 0) add_bigrams(b, &t->entry[b->merge[i].id]);
}

void nb_tok_bpe_free(nb_tok_bpe *b) {
    free(b->merge);
    free(b->char_id);
    free(b->bigrams);
}

/* ---- symbols ------------------------------------------------------------------------------------------- */

static int32_t char_id(const nb_tokenizer *t, uint32_t cp, const char *s, size_t n) {
    return cp < NB_TOK_LOW_CHARS ? t->bpe.char_id[cp] : nb_tok_find_vocab(t, s, n);
}

/* Unknown characters in a row may be one unk; it is written when something else follows. Byte tokens do not count
 * as something else: so it is in the tokenizers library. */
typedef struct pending {
    bool any;
    size_t start;
} pending;

/* Behind byte tokens it stands where they do: starts never decrease. */
static void unk_flush(const nb_tokenizer *t, nb_tok_work *w, pending *p) {
    size_t last = w->n_sym ? w->sym[w->n_sym - 1].start : 0;
    if (p->any) nb_tok_sym_add(w, t->bpe.unk, p->start > last ? p->start : last);
    p->any = false;
}

static void add_missing(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t n, size_t start, pending *p) {
    const nb_tok_bpe *b = &t->bpe;
    bool all = b->byte_fallback;
    for (size_t i = 0; i < n && all; i++) all = b->fallback[(uint8_t)s[i]] >= 0;
    if (all) {
        for (size_t i = 0; i < n; i++) nb_tok_sym_add(w, b->fallback[(uint8_t)s[i]], start);
    } else if (b->unk >= 0) {
        if (p->any && b->fuse_unk) return;
        unk_flush(t, w, p);
        *p = (pending){true, start};
    }
}

static void add_chars(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t from, size_t to) {
    pending p = {0};
    for (size_t i = from; i < to;) {
        size_t at = i;
        uint32_t cp = nb_utf8_next(s, &i);
        int32_t id = char_id(t, cp, s + at, i - at);
        if (id < 0) {
            add_missing(t, w, s + at, i - at, at, &p);
            continue;
        }
        unk_flush(t, w, &p);
        nb_tok_sym_add(w, id, at);
    }
    unk_flush(t, w, &p);
}

static void add_bytes(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t from, size_t to) {
    pending p = {0};
    for (size_t i = from; i < to; i++) {
        int32_t id = t->bpe.byte_id[(uint8_t)s[i]];
        if (id < 0) {
            char c[4];
            add_missing(t, w, c, (size_t)nb_utf8_put(c, nb_tok_byte_char((uint8_t)s[i])), i, &p);
            continue;
        }
        unk_flush(t, w, &p);
        nb_tok_sym_add(w, id, i);
    }
    unk_flush(t, w, &p);
}

/* ---- merging ------------------------------------------------------------------------------------------- */

static void look_up(const nb_tok_bpe *b, nb_tok_sym *x, int32_t right) {
    const nb_tok_merge *m = slot(b, pair_of(x->id, right));
    x->rank = m->rank;
    x->merged = m->id;
}

static void merge_scan(const nb_tok_bpe *b, nb_tok_work *w) {
    nb_tok_sym *x = w->sym;
    size_t n = w->n_sym;
    for (size_t i = 0; i + 1 < n; i++) look_up(b, &x[i], x[i + 1].id);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (x[i].rank < x[best].rank) best = i;
        if (x[best].rank == NO_RANK) break;
        x[best].id = x[best].merged;
        memmove(&x[best + 1], &x[best + 2], (n - best - 2) * sizeof *x);
        n--;
        if (best + 1 < n) look_up(b, &x[best], x[best + 1].id);
        if (best > 0) look_up(b, &x[best - 1], x[best].id);
    }
    w->n_sym = n;
}

/* A binary heap of rank << 32 | position: lowest rank first, leftmost of equals. */
static void sift_down(uint64_t *h, size_t n, size_t i) {
    uint64_t x = h[i];
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1] < h[c]) c++;
        if (h[c] >= x) break;
        h[i] = h[c];
    }
    h[i] = x;
}

static void heap_push(uint64_t *h, size_t *n, uint64_t x) {
    size_t i = (*n)++;
    for (; i && h[(i - 1) / 2] > x; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = x;
}

static void merge_heap(const nb_tok_bpe *b, nb_tok_work *w) {
    nb_tok_sym *x = w->sym;
    size_t n = w->n_sym, h = 0;
    if (w->cap_heap < 3 * n) { /* each merge takes one entry out and puts at most two in */
        w->cap_heap = 3 * n;
        free(w->heap);
        w->heap = nb_malloc(w->cap_heap * sizeof *w->heap);
    }
    for (size_t i = 0; i < n; i++) {
        x[i].prev = (int32_t)i - 1, x[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
        x[i].rank = NO_RANK;
        if (i + 1 < n) look_up(b, &x[i], x[i + 1].id);
        if (x[i].rank != NO_RANK) w->heap[h++] = (uint64_t)x[i].rank << 32 | i;
    }
    for (size_t i = h / 2; i-- > 0;) sift_down(w->heap, h, i);
    while (h) {
        uint64_t top = w->heap[0];
        w->heap[0] = w->heap[--h];
        if (h) sift_down(w->heap, h, 0);
        nb_tok_sym *left = &x[(uint32_t)top];
        if (left->rank != top >> 32 || left->id < 0) continue; /* merged away meanwhile, or with something else */
        nb_tok_sym *right = &x[left->next];
        left->id = left->merged;
        left->next = right->next;
        right->id = -1, right->rank = NO_RANK;
        left->rank = NO_RANK;
        if (left->next >= 0) {
            x[left->next].prev = (int32_t)(left - x);
            look_up(b, left, x[left->next].id);
            if (left->rank != NO_RANK) heap_push(w->heap, &h, (uint64_t)left->rank << 32 | (uint32_t)(left - x));
        }
        if (left->prev >= 0) {
            nb_tok_sym *before = &x[left->prev];
            look_up(b, before, left->id);
            if (before->rank != NO_RANK) heap_push(w->heap, &h, (uint64_t)before->rank << 32 | (uint32_t)(before - x));
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (x[i].id >= 0) x[kept++] = x[i];
    w->n_sym = kept;
}

/* ---- words --------------------------------------------------------------------------------------------- */

/* With ignore_merges a word that is a token is that token, whatever the merges would make of it. */
static int32_t whole_word(const nb_tokenizer *t, const char *s, size_t n) {
    if (n > t->bpe.max_len) return -1;
    if (!t->bpe.bytes) return nb_tok_find_vocab(t, s, n);
    nb_text name = {0};
    for (size_t i = 0; i < n; i++) {
        char c[4];
        nb_text_add(&name, c, (size_t)nb_utf8_put(c, nb_tok_byte_char((uint8_t)s[i])));
    }
    int32_t id = nb_tok_find_vocab(t, name.s, name.n);
    nb_text_free(&name);
    return id;
}

void nb_tok_bpe_symbols(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t from, size_t to, int flags) {
    int32_t whole = t->bpe.ignore_merges ? whole_word(t, s + from, to - from) : -1;
    if (whole >= 0 && (t->entry[whole].flags & NB_TOK_IS_SPECIAL)) {
        w->flagged = true;
        if (flags & NB_TOK_PLAIN) whole = -1;
    }
    if (whole >= 0) nb_tok_sym_add(w, whole, from);
    else if (t->bpe.bytes) add_bytes(t, w, s, from, to);
    else add_chars(t, w, s, from, to);
    if (w->n_sym <= SCAN_MAX) merge_scan(&t->bpe, w);
    else merge_heap(&t->bpe, w);
}

/* The end of the stretch that begins at `from` and that no merge reaches beyond. */
size_t nb_tok_bpe_seam(const nb_tokenizer *t, const char *s, size_t from, size_t to) {
    const uint64_t *bits = t->bpe.bigrams;
    size_t i = from;
    uint32_t left = 0;
    bool known = false; /* an unknown left character may be fused with its neighbour: no seam there */
    while (i < to && bits) {
        size_t at = i;
        uint32_t right = nb_utf8_next(s, &i);
        bool right_known = char_id(t, right, s + at, i - at) >= 0;
        uint64_t bit = bigram_bit(left, right);
        if (known && right_known && !(bits[bit >> 6] >> (bit & 63) & 1)) return at;
        left = right, known = right_known;
    }
    return to;
}
