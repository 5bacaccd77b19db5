/* Added tokens: whole pieces of text that are found before (or, "normalized", right after) the normalizer runs and
 * become one id, untouched by splitting and merging. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

bool nb_tok_is_space(uint32_t c) { /* Unicode White_Space */
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* What Rust's \w counts: letters, marks, decimal digits, letter numbers, connectors, joiners, circled letters. */
static bool is_word(uint32_t c) {
    static const bool word[] = {
        [UTF8PROC_CATEGORY_LU] = true, [UTF8PROC_CATEGORY_LL] = true, [UTF8PROC_CATEGORY_LT] = true,
        [UTF8PROC_CATEGORY_LM] = true, [UTF8PROC_CATEGORY_LO] = true, [UTF8PROC_CATEGORY_MN] = true,
        [UTF8PROC_CATEGORY_MC] = true, [UTF8PROC_CATEGORY_ME] = true, [UTF8PROC_CATEGORY_ND] = true,
        [UTF8PROC_CATEGORY_NL] = true, [UTF8PROC_CATEGORY_PC] = true, [UTF8PROC_CATEGORY_CO] = false};
    if (c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
        (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189))
        return true;
    return word[utf8proc_category((utf8proc_int32_t)c)];
}

static uint32_t char_before(const char *s, size_t at) {
    do at--;
    while (at && ((uint8_t)s[at] & 0xc0) == 0x80);
    return nb_utf8_next(s, &at);
}

nb_tok_added *nb_tok_added_get(nb_tokenizer *t, int32_t id) {
    if (!(t->entry[id].flags & NB_TOK_ADDED)) return NULL;
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].id == id) return &t->added[i];
    return NULL;
}

nb_status nb_tok_added_put(nb_tokenizer *t, const char *content, size_t n, int64_t id, nb_tok_added flags) {
    int32_t have = nb_tok_find_str(t, content, n);
    if (!n) return nb_fail(NB_EINPUT, "%s: an added token is an empty text", t->file);
    if (have >= 0 && have != id)
        return nb_fail(NB_EINPUT, "%s: added token \"%s\" has id %lld, but id %d elsewhere in the file", t->file,
                       content, (long long)id, have);
    if (have < 0) NB_TRY(nb_tok_put(t, content, n, id, 0));
    nb_tok_added *a = nb_tok_added_get(t, (int32_t)id);
    t->entry[id].flags |= NB_TOK_ADDED | (flags.special ? NB_TOK_IS_SPECIAL : 0);
    if (!a) {
        NB_GROW(t->added, t->n_added, t->cap_added);
        a = &t->added[t->n_added++];
    }
    flags.id = (int32_t)id;
    *a = flags;
    return NB_OK;
}

static int by_match(const void *p, const void *q) {
    const nb_tok_added *x = *(nb_tok_added *const *)p, *y = *(nb_tok_added *const *)q;
    uint32_t n = x->match_n < y->match_n ? x->match_n : y->match_n;
    int c = memcmp(x->match, y->match, n);
    if (!c) c = (x->match_n > y->match_n) - (x->match_n < y->match_n);
    return c ? c : (x < y) - (x > y); /* of two that normalize to the same text the later one counts */
}

static void matcher_build(nb_tok_matcher *m, const nb_tokenizer *t, bool normalized) {
    free(m->v);
    *m = (nb_tok_matcher){.v = nb_calloc((size_t)t->n_added + 1, sizeof *m->v)};
    for (int i = 0; i < t->n_added; i++) {
        const nb_tok_added *a = &t->added[i];
        if (a->normalized != normalized || !a->match_n) continue;
        m->v[m->n++] = a;
        m->first[(uint8_t)a->match[0]] = true;
    }
    if (m->n) qsort(m->v, (size_t)m->n, sizeof *m->v, by_match);
}

nb_status nb_tok_added_finish(nb_tokenizer *t) {
    nb_status st = NB_OK;
    nb_tok_work *w = nb_tok_work_take(t);
    for (int i = 0; i < t->n_added && st == NB_OK; i++) {
        nb_tok_added *a = &t->added[i];
        nb_tok_view v = {.s = t->entry[a->id].s, .n = t->entry[a->id].n};
        if (a->normalized && !a->verbatim) st = nb_tok_normalize(&t->norms, w, &v);
        a->match = v.s == t->entry[a->id].s ? v.s : nb_tok_keep(t, v.s, v.n);
        a->match_n = (uint32_t)v.n;
    }
    nb_tok_work_give(t, w);
    NB_TRY(st);
    matcher_build(&t->raw, t, false);
    matcher_build(&t->normalized, t, true);
    return NB_OK;
}

/* The longest token that begins at s: the range of candidates in the sorted list narrows byte by byte. */
static const nb_tok_added *longest(const nb_tok_matcher *m, const char *s, size_t n) {
    const nb_tok_added *best = NULL;
    int lo = 0, hi = m->n;
    for (size_t d = 0; lo < hi && d < n; d++) {
        uint8_t c = (uint8_t)s[d];
        int bounds[2];
        for (int side = 0; side < 2; side++) { /* first candidate with byte >= c, first with byte > c */
            int from = lo, to = hi;
            while (from < to) {
                int mid = from + (to - from) / 2;
                const nb_tok_added *a = m->v[mid];
                bool before = a->match_n <= d || (uint8_t)a->match[d] < c || (side && (uint8_t)a->match[d] == c);
                if (before) from = mid + 1;
                else to = mid;
            }
            bounds[side] = from;
        }
        lo = bounds[0], hi = bounds[1];
        if (lo < hi && m->v[lo]->match_n == d + 1) best = m->v[lo];
    }
    return best;
}

/* Finds the next added token in s[*at..n), leftmost and longest, and moves *at behind it. from..to is what it
 * covers: with lstrip/rstrip the white space beside it too, but nothing before `floor` (where the last one's ended).
 * NB_TOK_PLAIN skips the special ones. */
bool nb_tok_match(const nb_tok_matcher *m, const char *s, size_t n, size_t *at, size_t floor, int flags,
                  const nb_tok_added **hit, size_t *from, size_t *to) {
    if (!m->n) return false;
    for (size_t i = *at; i < n; i++) {
        if (!m->first[(uint8_t)s[i]]) continue;
        const nb_tok_added *a = longest(m, s + i, n - i);
        if (!a) continue;
        size_t end = i + a->match_n, next = end;
        bool skip = (flags & NB_TOK_PLAIN) && a->special;
        if (!skip && a->single_word)
            skip = (i > 0 && is_word(char_before(s, i))) || (end < n && is_word(nb_utf8_next(s, &next)));
        if (skip) {
            i = end - 1;
            continue;
        }
        *hit = a, *to = end, *at = end;
        *from = i > floor ? i : floor; /* white space that rstrip took may hold the beginning of another token */
        while (a->lstrip && *from > floor && nb_tok_is_space(char_before(s, *from)))
            do (*from)--;
            while (((uint8_t)s[*from] & 0xc0) == 0x80);
        if (*to < floor) *to = floor;
        for (next = *to; a->rstrip && next < n && nb_tok_is_space(nb_utf8_next(s, &next));) *to = next;
        return true;
    }
    return false;
}
