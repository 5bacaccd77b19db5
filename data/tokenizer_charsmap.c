/* SentencePiece's precompiled character map: a double-array trie (darts-clone) from UTF-8 sequences to places in a
 * table of NUL-terminated texts that stand for them. The file: 32 bits, the size of the trie in bytes; the trie's
 * units of 32 bits; the texts. A unit: bits 0-7 and 31 its label, bit 8 "a value follows", bits 10-30 the offset to
 * its children, times 256 if bit 9 is set; or, a value, 31 bits. All of it is untrusted. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

enum { LABEL = (int)0x800000ff, HAS_LEAF = 1 << 8 };
/* A grapheme of more bytes is looked up character by character, in the tokenizers library. */
enum { MAX_GRAPHEME = 5 };

static uint32_t offset_of(uint32_t unit) { return unit >> 10 << ((unit & 1u << 9) >> 6); }

/* The text for a prefix of s[0..n), the longest one or the shortest. *len 0: there is none. */
static nb_status look_up(const nb_tok_charsmap *m, const char *s, size_t n, bool longest, size_t *len,
                         const char **text, size_t *text_n) {
    size_t at = offset_of(m->unit[0]);
    *len = 0;
    for (size_t i = 0; i < n && s[i]; i++) {
        at ^= (uint8_t)s[i];
        if (at >= m->n_units || (m->unit[at] & (uint32_t)LABEL) != (uint8_t)s[i]) break;
        uint32_t unit = m->unit[at];
        at ^= offset_of(unit);
        if (!(unit & HAS_LEAF)) continue;
        uint32_t value = at < m->n_units ? m->unit[at] & 0x7fffffff : UINT32_MAX;
        const char *end = value < m->n_text ? memchr(m->text + value, 0, m->n_text - value) : NULL;
        if (!end || ((uint8_t)m->text[value] & 0xc0) == 0x80)
            return nb_fail(NB_EINPUT, "%s: precompiled_charsmap is damaged: it points outside its texts", m->where);
        *len = i + 1, *text = m->text + value, *text_n = (size_t)(end - *text);
        if (!longest) break;
    }
    return NB_OK;
}

/* ---- running ------------------------------------------------------------------------------------------- */

static nb_status put(const nb_tok_charsmap *m, const nb_tok_view *in, size_t from, size_t to, nb_tok_buf *out,
                     bool *found) {
    size_t len, n = 0;
    const char *text = NULL;
    NB_TRY(look_up(m, in->s + from, to - from, false, &len, &text, &n));
    *found = len > 0;
    if (*found) nb_tok_buf_add(out, text, n, nb_tok_origin(in, from));
    return NB_OK;
}

/* ASCII characters without an entry, from `i`: each is a grapheme when ASCII follows. */
static size_t skip_plain(const nb_tok_charsmap *m, const nb_tok_view *in, size_t i) {
    while (i < in->n && m->plain[(uint8_t)in->s[i]] && (i + 1 == in->n || !(in->s[i + 1] & 0x80))) i++;
    return i;
}

static size_t grapheme_end(const nb_tok_view *in, size_t from) {
    utf8proc_int32_t state = 0;
    size_t i = from;
    uint32_t left = nb_utf8_next(in->s, &i);
    while (i < in->n) {
        size_t next = i;
        uint32_t right = nb_utf8_next(in->s, &next);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)left, (utf8proc_int32_t)right, &state)) break;
        left = right, i = next;
    }
    return i;
}

/* As the tokenizers library does it: a short grapheme of which a beginning is in the map becomes what the shortest
 * such beginning stands for, the rest of it is lost; others go character by character. */
nb_status nb_tok_charsmap_graphemes(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)w;
    for (size_t i = 0, to; i < in->n; i = to) {
        bool found = false;
        to = skip_plain(&s->map, in, i);
        nb_tok_buf_copy(out, in, i, to);
        if (to > i) continue;
        to = grapheme_end(in, i);
        if (to - i <= MAX_GRAPHEME) NB_TRY(put(&s->map, in, i, to, out, &found));
        for (size_t at = i, next = i; at < to && !found; at = next) {
            bool one;
            nb_utf8_next(in->s, &next);
            NB_TRY(put(&s->map, in, at, next, out, &one));
            if (!one) nb_tok_buf_copy(out, in, at, next);
        }
    }
    return NB_OK;
}

/* As SentencePiece does it: at every place a user-defined symbol, else the longest sequence that is in the map. */
nb_status nb_tok_charsmap_longest(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)w;
    for (size_t i = 0, to; i < in->n; i = to) {
        size_t len, n = 0;
        const char *text = NULL;
        for (to = i; to < in->n && s->map.plain[(uint8_t)in->s[to]]; to++)
            if (s->kept->uni.kept[(uint8_t)in->s[to]]) break;
        if (to == i) to += nb_tok_unigram_kept(s->kept, in->s + i, in->n - i);
        nb_tok_buf_copy(out, in, i, to);
        if (to > i) continue;
        NB_TRY(look_up(&s->map, in->s + i, in->n - i, true, &len, &text, &n));
        if (len) nb_tok_buf_add(out, text, n, nb_tok_origin(in, i));
        else nb_utf8_next(in->s, &to), nb_tok_buf_copy(out, in, i, to);
        to += len;
    }
    return NB_OK;
}

/* ---- reading ------------------------------------------------------------------------------------------- */

nb_status nb_tok_charsmap_read(nb_tok_charsmap *m, const char *blob, size_t n, const char *where) {
    uint32_t size = 0;
    m->where = where;
    for (size_t i = 0; i < 4 && n >= 4; i++) size |= (uint32_t)(uint8_t)blob[i] << (8 * i);
    if (n < 4 || size < 4 || size % 4 || size > n - 4 || nb_utf8_valid(blob + 4 + size, n - 4 - size) < n - 4 - size)
        return nb_fail(NB_EINPUT, "%s: precompiled_charsmap is damaged (%zu bytes, of which %u are its trie)", where, n,
                       size);
    m->n_units = size / 4;
    m->unit = nb_calloc(m->n_units, sizeof *m->unit);
    for (uint32_t i = 0; i < size; i++) m->unit[i / 4] |= (uint32_t)(uint8_t)blob[4 + i] << (8 * (i & 3));
    m->n_text = n - 4 - size;
    m->text = nb_malloc(m->n_text + 1);
    memcpy(m->text, blob + 4 + size, m->n_text);
    for (int c = 0; c < 128; c++) { /* "\r" and "\n" may be one grapheme */
        uint32_t at = offset_of(m->unit[0]) ^ (uint32_t)c;
        m->plain[c] = c != '\r' && (!c || at >= m->n_units || (m->unit[at] & (uint32_t)LABEL) != (uint32_t)c);
    }
    return NB_OK;
}

nb_status nb_tok_charsmap_base64(nb_tok_charsmap *m, const char *s, const char *where) {
    size_t n = strlen(s);
    char *blob = nb_malloc(n / 4 * 3 + 3);
    int64_t used = nb_tok_base64((uint8_t *)blob, s, n);
    nb_status st = used < 0 ? nb_fail(NB_EINPUT, "%s: precompiled_charsmap is not base64 (at character %lld)", where,
                                      (long long)(-1 - used))
                            : nb_tok_charsmap_read(m, blob, (size_t)used, where);
    free(blob);
    return st;
}

void nb_tok_charsmap_free(nb_tok_charsmap *m) {
    free(m->unit);
    free(m->text);
}
