/* Normalizers: each rewrites a text into a buffer that remembers where every byte came from. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

static void room(nb_tok_buf *b, size_t more) {
    if (b->cap - b->n >= more) return;
    b->cap = b->cap * 2 > b->n + more ? b->cap * 2 : b->n + more + 64;
    b->s = nb_realloc(b->s, b->cap, 1);
    b->org = nb_realloc(b->org, b->cap, sizeof *b->org);
}

void nb_tok_buf_add(nb_tok_buf *b, const char *s, size_t n, uint32_t org) {
    room(b, n);
    memcpy(b->s + b->n, s, n);
    for (size_t i = 0; i < n; i++) b->org[b->n + i] = org;
    b->n += n;
}

void nb_tok_buf_copy(nb_tok_buf *b, const nb_tok_view *v, size_t from, size_t to) {
    size_t n = to - from;
    if (!n) return;
    room(b, n);
    memcpy(b->s + b->n, v->s + from, n);
    if (v->org) memcpy(b->org + b->n, v->org + from, n * sizeof *b->org);
    else
        for (size_t i = 0; i < n; i++) b->org[b->n + i] = v->base + (uint32_t)(from + i);
    b->n += n;
}

static nb_status prepend(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)w;
    if (in->n) nb_tok_buf_add(out, s->text, strlen(s->text), nb_tok_origin(in, 0));
    nb_tok_buf_copy(out, in, 0, in->n);
    return NB_OK;
}

static nb_status replace(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    nb_tok_find f = {0};
    bool found;
    size_t done = 0, len = strlen(s->text);
    for (;;) {
        NB_TRY(nb_tok_pattern_next(&s->pattern, w, in->s, in->n, &f, &found));
        if (!found) break;
        nb_tok_buf_copy(out, in, done, f.from);
        uint32_t org = in->n ? nb_tok_origin(in, f.from < in->n ? f.from : in->n - 1) : in->base;
        nb_tok_buf_add(out, s->text, len, org);
        done = f.to;
        if (out->n > (size_t)3 * NB_TOK_MAX_TEXT)
            return nb_fail(NB_EINPUT, "%s: replacing makes the text too long: split it", s->pattern.where);
    }
    nb_tok_buf_copy(out, in, done, in->n);
    return NB_OK;
}

static nb_status lowercase(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)s, (void)w;
    for (size_t i = 0; i < in->n;) {
        size_t at = i;
        uint32_t cp = nb_utf8_next(in->s, &i), low = (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
        char c[4];
        /* the one character whose lowercase form is two */
        if (cp == 0x130) nb_tok_buf_add(out, "i\xcc\x87", 3, nb_tok_origin(in, at));
        else if (low == cp) nb_tok_buf_copy(out, in, at, i);
        else nb_tok_buf_add(out, c, (size_t)nb_utf8_put(c, low), nb_tok_origin(in, at));
    }
    return NB_OK;
}

static nb_status strip(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)w;
    size_t from = in->n, to = 0;
    for (size_t i = 0; i < in->n;) {
        size_t at = i;
        if (nb_tok_is_space(nb_utf8_next(in->s, &i))) continue;
        if (from > at) from = at;
        to = i;
    }
    if (!s->left) from = 0;
    if (!s->right) to = in->n;
    if (from < to) nb_tok_buf_copy(out, in, from, to);
    return NB_OK;
}

/* Control characters go, and what SentencePiece's nmt rules take for white space becomes a space. */
static nb_status nmt(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)s, (void)w;
    for (size_t i = 0; i < in->n;) {
        size_t at = i;
        uint32_t c = nb_utf8_next(in->s, &i);
        bool gone = (c >= 1 && c <= 8) || c == 11 || (c >= 14 && c <= 31) || c == 127 || c == 0x8f || c == 0x9f;
        bool space = c == '\t' || c == '\n' || c == '\f' || c == '\r' || c == 0x1680 || (c >= 0x200b && c <= 0x200f) ||
                     c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xfeff || c == 0xfffd;
        if (space) nb_tok_buf_add(out, " ", 1, nb_tok_origin(in, at));
        else if (!gone) nb_tok_buf_copy(out, in, at, i);
    }
    return NB_OK;
}

static nb_status strip_accents(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)s, (void)w;
    for (size_t i = 0; i < in->n;) {
        size_t at = i;
        utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)nb_utf8_next(in->s, &i));
        bool mark = c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
        if (!mark) nb_tok_buf_copy(out, in, at, i);
    }
    return NB_OK;
}

static nb_status unicode_text(const nb_tok_norm *s, const char *in, size_t n, char **out, size_t *out_n) {
    utf8proc_uint8_t *r = NULL;
    utf8proc_ssize_t got = utf8proc_map((const utf8proc_uint8_t *)in, (utf8proc_ssize_t)n, &r,
                                        (utf8proc_option_t)s->form);
    if (got < 0) return nb_fail(NB_EINPUT, "Unicode normalization failed: %s", utf8proc_errmsg(got));
    *out = (char *)r;
    *out_n = (size_t)got;
    return NB_OK;
}

/* A run that normalization changes: cluster by cluster (a starter and what combines with it), so that tokens know
 * where they came from; if the clusters together give something else than the run, the run's start stands for all. */
static nb_status changed_run(const nb_tok_norm *s, const nb_tok_view *in, size_t from, size_t to, const char *whole,
                             size_t whole_n, nb_tok_buf *out) {
    size_t mark = out->n;
    for (size_t at = from, i = from; at < to; at = i) {
        nb_utf8_next(in->s, &i);
        while (i < to) {
            size_t next = i;
            uint32_t cp = nb_utf8_next(in->s, &next);
            bool jamo = cp >= 0x1160 && cp <= 0x11ff; /* Hangul vowels and finals combine though they are starters */
            if (!jamo && utf8proc_get_property((utf8proc_int32_t)cp)->combining_class == 0) break;
            i = next;
        }
        char *r = NULL;
        size_t n = 0;
        NB_TRY(unicode_text(s, in->s + at, i - at, &r, &n));
        if (n == i - at && !memcmp(r, in->s + at, n)) nb_tok_buf_copy(out, in, at, i);
        else nb_tok_buf_add(out, r, n, nb_tok_origin(in, at));
        free(r);
    }
    if (out->n - mark == whole_n && !memcmp(out->s + mark, whole, whole_n)) return NB_OK;
    out->n = mark;
    nb_tok_buf_add(out, whole, whole_n, nb_tok_origin(in, from));
    return NB_OK;
}

/* ASCII is normal already. A run of other characters is normalized together with the ASCII character before it,
 * which may combine with its first one; nothing combines with a following ASCII character. */
static nb_status unicode_form(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)w;
    size_t done = 0, i = 0;
    while (i < in->n) {
        if (!(in->s[i] & 0x80)) {
            i++;
            continue;
        }
        size_t from = i > done ? i - 1 : i;
        while (i < in->n && (in->s[i] & 0x80)) i++;
        nb_tok_buf_copy(out, in, done, from);
        done = i;
        char *r = NULL;
        size_t n = 0;
        NB_TRY(unicode_text(s, in->s + from, i - from, &r, &n));
        nb_status st = NB_OK;
        if (n == i - from && !memcmp(r, in->s + from, n)) nb_tok_buf_copy(out, in, from, i);
        else st = changed_run(s, in, from, i, r, n, out);
        free(r);
        NB_TRY(st);
    }
    nb_tok_buf_copy(out, in, done, in->n);
    return NB_OK;
}

/* SentencePiece's own normalizer without a character map: left = add_dummy_prefix, right = remove_extra_whitespaces. */
static nb_status sentencepiece(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out) {
    (void)w;
    static const char meta[] = "\xe2\x96\x81";
    size_t from = 0, to = in->n;
    while (s->right && from < to && in->s[from] == ' ') from++;
    while (s->right && from < to && in->s[to - 1] == ' ') to--;
    if (from == to) return NB_OK;
    if (s->left) nb_tok_buf_add(out, meta, 3, nb_tok_origin(in, from));
    for (size_t i = from; i < to;) {
        const char *space = memchr(in->s + i, ' ', to - i);
        size_t at = space ? (size_t)(space - in->s) : to;
        nb_tok_buf_copy(out, in, i, at);
        i = at;
        if (at == to) break;
        nb_tok_buf_add(out, meta, 3, nb_tok_origin(in, at));
        i++;
        while (s->right && i < to && in->s[i] == ' ') i++;
    }
    while (s->right && out->n >= 3 && !memcmp(out->s + out->n - 3, meta, 3)) out->n -= 3; /* "▁" of the text's own */
    return NB_OK;
}

static nb_tok_norm *push(nb_tok_norms *s) {
    NB_GROW(s->v, s->n, s->cap);
    s->v[s->n] = (nb_tok_norm){0};
    return &s->v[s->n++];
}

nb_status nb_tok_norm_spm(nb_tokenizer *t, const char *charsmap, size_t n, bool dummy_prefix, bool remove_extra) {
    if (n) {
        nb_tok_norm *map = push(&t->norms);
        map->run = nb_tok_charsmap_longest, map->kept = t;
        NB_TRY(nb_tok_charsmap_read(&map->map, charsmap, n, t->file));
    }
    nb_tok_norm *x = push(&t->norms);
    x->run = sentencepiece, x->left = dummy_prefix, x->right = remove_extra;
    return NB_OK;
}

static nb_status parse_prepend(nb_tok_norm *x, const json_t *v, const char *where) {
    const char *text;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "prepend", NULL}));
    NB_TRY(nb_tok_need_str(v, "prepend", &text, where));
    x->text = nb_strdup(text);
    return NB_OK;
}

static nb_status parse_replace(nb_tok_norm *x, const json_t *v, const char *where) {
    const char *text;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "pattern", "content", NULL}));
    NB_TRY(nb_tok_need_str(v, "content", &text, where));
    x->text = nb_strdup(text);
    return nb_tok_pattern_parse(&x->pattern, json_object_get(v, "pattern"), where);
}

static nb_status parse_strip(nb_tok_norm *x, const json_t *v, const char *where) {
    x->left = x->right = true;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "strip_left", "strip_right", NULL}));
    NB_TRY(nb_json_bool(v, "strip_left", &x->left, where));
    return nb_json_bool(v, "strip_right", &x->right, where);
}

static nb_status parse_precompiled(nb_tok_norm *x, const json_t *v, const char *where) {
    const char *text;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "precompiled_charsmap", NULL}));
    NB_TRY(nb_tok_need_str(v, "precompiled_charsmap", &text, where));
    return nb_tok_charsmap_base64(&x->map, text, where);
}

static nb_status parse_plain(nb_tok_norm *x, const json_t *v, const char *where) {
    (void)x;
    return nb_tok_only(v, where, (const char *const[]){"type", NULL});
}

static const struct {
    const char *type;
    nb_status (*parse)(nb_tok_norm *x, const json_t *v, const char *where);
    nb_status (*run)(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out);
    int form;
} kinds[] = {
    {"NFC", parse_plain, unicode_form, UTF8PROC_STABLE | UTF8PROC_COMPOSE},
    {"NFD", parse_plain, unicode_form, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
    {"NFKC", parse_plain, unicode_form, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
    {"NFKD", parse_plain, unicode_form, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
    {"Prepend", parse_prepend, prepend, 0},
    {"Replace", parse_replace, replace, 0},
    {"Lowercase", parse_plain, lowercase, 0},
    {"Strip", parse_strip, strip, 0},
    {"StripAccents", parse_plain, strip_accents, 0},
    {"Nmt", parse_plain, nmt, 0},
    {"Precompiled", parse_precompiled, nb_tok_charsmap_graphemes, 0},
};

nb_status nb_tok_norms_parse(nb_tok_norms *s, const json_t *v, const char *where, int depth) {
    const char *type;
    if (!v || json_is_null(v)) return NB_OK;
    if (depth > NB_TOK_MAX_DEPTH)
        return nb_fail(NB_EINPUT, "%s: normalizers nested deeper than %d", where, NB_TOK_MAX_DEPTH);
    NB_TRY(nb_tok_need_str(v, "type", &type, where));
    if (!strcmp(type, "Sequence")) {
        NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "normalizers", NULL}));
        const json_t *list;
        NB_TRY(nb_tok_need_array(v, "normalizers", &list, where));
        for (size_t i = 0; i < json_array_size(list); i++)
            NB_TRY(nb_tok_norms_parse(s, json_array_get(list, i), where, depth + 1));
        return NB_OK;
    }
    for (int i = 0; i < NB_LEN(kinds); i++)
        if (!strcmp(type, kinds[i].type)) {
            nb_tok_norm *x = push(s);
            x->run = kinds[i].run, x->form = kinds[i].form;
            return kinds[i].parse(x, v, where);
        }
    return nb_fail(NB_EUNSUPPORTED, "%s: normalizer \"%s\" is not supported", where, type);
}

nb_status nb_tok_normalize(const nb_tok_norms *s, nb_tok_work *w, nb_tok_view *v) {
    for (int i = 0; i < s->n; i++) {
        nb_tok_buf *out = &w->norm[i & 1];
        out->n = 0;
        room(out, v->n + 16);
        NB_TRY(s->v[i].run(&s->v[i], w, v, out));
        *v = nb_tok_buf_view(out);
    }
    return NB_OK;
}

void nb_tok_norms_free(nb_tok_norms *s) {
    for (int i = 0; i < s->n; i++) {
        nb_tok_pattern_free(&s->v[i].pattern);
        nb_tok_charsmap_free(&s->v[i].map);
        free(s->v[i].text);
    }
    free(s->v);
}
