/* Ids back to text, a token at a time. A decoder is a chain of stages, each of which gets a piece of text, changes it
 * and hands it to the next; the last hands it to the caller's buffer. Decoding a whole list runs the same chain. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

/* ---- reading ------------------------------------------------------------------------------------------- */

static nb_tok_dec *push(nb_tok_decs *s, nb_tok_dec_kind kind) {
    bool fused =
        s->n && (s->v[s->n - 1].fused || s->v[s->n - 1].kind == NB_DEC_FUSE || s->v[s->n - 1].kind == NB_DEC_BYTES);
    NB_GROW(s->v, s->n, s->cap);
    s->v[s->n] = (nb_tok_dec){.kind = kind, .fused = fused};
    return &s->v[s->n++];
}

static nb_status parse_plain(nb_tok_dec *d, const json_t *v, const char *where) {
    (void)d;
    return nb_tok_only(v, where, (const char *const[]){"type", "add_prefix_space", "trim_offsets", "use_regex", NULL});
}

static nb_status parse_replace(nb_tok_dec *d, const json_t *v, const char *where) {
    const char *from, *to;
    if (!json_object_get(json_object_get(v, "pattern"), "String"))
        return nb_fail(NB_EUNSUPPORTED, "%s: decoder Replace with a regular expression is not supported", where);
    NB_TRY(nb_tok_need_str(json_object_get(v, "pattern"), "String", &from, where));
    NB_TRY(nb_tok_need_str(v, "content", &to, where));
    if (!*from) return nb_fail(NB_EINPUT, "%s: decoder Replace of an empty text", where);
    d->from = nb_strdup(from), d->to = nb_strdup(to);
    return NB_OK;
}

static nb_status parse_metaspace(nb_tok_dec *d, const json_t *v, const char *where) {
    const char *text, *scheme = NULL;
    bool space = true;
    NB_TRY(nb_tok_need_str(v, "replacement", &text, where));
    NB_TRY(nb_json_str(v, "prepend_scheme", &scheme, where));
    NB_TRY(nb_json_bool(v, "add_prefix_space", &space, where));
    if (!*text) return nb_fail(NB_EINPUT, "%s: decoder Metaspace without a replacement", where);
    d->from = nb_strdup(text);
    d->keep_first = scheme ? !strcmp(scheme, "never") : !space;
    return NB_OK;
}

static nb_status parse_strip(nb_tok_dec *d, const json_t *v, const char *where) {
    const char *text;
    int64_t start = 0, stop = 0;
    NB_TRY(nb_tok_need_str(v, "content", &text, where));
    NB_TRY(nb_json_int(v, "start", &start, where));
    NB_TRY(nb_json_int(v, "stop", &stop, where));
    if (!*text || start < 0 || stop < 0 || start > INT16_MAX || stop > INT16_MAX)
        return nb_fail(NB_EINPUT, "%s: decoder Strip: content, start or stop makes no sense", where);
    if (stop && d->fused)
        return nb_fail(NB_EUNSUPPORTED, "%s: decoder Strip with stop %lld behind Fuse is not supported", where,
                       (long long)stop);
    d->from = nb_strdup(text);
    d->start = (int)start, d->stop = (int)stop;
    return NB_OK;
}

static bool one_char(const char *s) {
    size_t n = 0;
    nb_utf8_next(s, &n);
    return !s[n];
}

static const struct {
    const char *type;
    nb_tok_dec_kind kind;
    nb_status (*parse)(nb_tok_dec *d, const json_t *v, const char *where);
} kinds[] = {{"ByteLevel", NB_DEC_BYTES, parse_plain},       {"ByteFallback", NB_DEC_FALLBACK, parse_plain},
             {"Fuse", NB_DEC_FUSE, parse_plain},             {"Replace", NB_DEC_REPLACE, parse_replace},
             {"Metaspace", NB_DEC_META, parse_metaspace},    {"Strip", NB_DEC_STRIP, parse_strip}};

static nb_status parse(nb_tok_decs *s, const json_t *v, const char *where, int depth) {
    const char *type;
    const json_t *list;
    if (depth > NB_TOK_MAX_DEPTH)
        return nb_fail(NB_EINPUT, "%s: decoders nested deeper than %d", where, NB_TOK_MAX_DEPTH);
    NB_TRY(nb_tok_need_str(v, "type", &type, where));
    if (!strcmp(type, "Sequence")) {
        NB_TRY(nb_tok_need_array(v, "decoders", &list, where));
        for (size_t i = 0; i < json_array_size(list); i++) NB_TRY(parse(s, json_array_get(list, i), where, depth + 1));
        return NB_OK;
    }
    for (int i = 0; i < NB_LEN(kinds); i++) {
        if (strcmp(type, kinds[i].type)) continue;
        nb_tok_dec *d = push(s, kinds[i].kind);
        NB_TRY(kinds[i].parse(d, v, where));
        /* one long token would have to be held back until the end of the text */
        bool local =
            d->kind == NB_DEC_FUSE || d->kind == NB_DEC_STRIP || (d->kind == NB_DEC_REPLACE && one_char(d->from));
        if (d->fused && !local)
            return nb_fail(NB_EUNSUPPORTED, "%s: decoder \"%s\" behind Fuse or ByteLevel is not supported", where,
                           type);
        return NB_OK;
    }
    return nb_fail(NB_EUNSUPPORTED, "%s: decoder \"%s\" is not supported", where, type);
}

nb_status nb_tok_decs_parse(nb_tok_decs *s, const json_t *v, const char *where, int depth) {
    if (v && !json_is_null(v)) return parse(s, v, where, depth);
    push(s, NB_DEC_JOIN); /* the library puts a space between tokens when a file has no decoder */
    return NB_OK;
}

void nb_tok_decs_spm(nb_tok_decs *s, bool strip_first) {
    nb_tok_dec *d = push(s, NB_DEC_REPLACE);
    d->from = nb_strdup("\xe2\x96\x81"), d->to = nb_strdup(" ");
    push(s, NB_DEC_FALLBACK);
    push(s, NB_DEC_FUSE);
    if (!strip_first) return;
    d = push(s, NB_DEC_STRIP);
    d->from = nb_strdup(" "), d->start = 1;
}

void nb_tok_decs_free(nb_tok_decs *s) {
    for (int i = 0; i < s->n; i++) free(s->v[i].from), free(s->v[i].to);
    free(s->v);
}

/* ---- running ------------------------------------------------------------------------------------------- */

typedef struct stage {
    nb_text text;  /* what is being built for the next stage, or held back */
    int64_t count; /* pieces seen; Strip behind Fuse: characters taken off */
    bool done;     /* Strip behind Fuse: the beginning is behind us */
} stage;

struct nb_decoder {
    const nb_tokenizer *t;
    bool skip_special;
    bool whole; /* the ids are all there are: see nb_tokenizer_decode on byte runs */
    nb_text *out;
    stage *stage; /* [t->decs.n] */
};

static void feed(nb_decoder *d, int i, const char *s, size_t n);

static void do_replace(nb_decoder *d, int i, const char *s, size_t n) {
    const nb_tok_dec *x = &d->t->decs.v[i];
    nb_text *b = &d->stage[i].text;
    size_t len = strlen(x->from), drop = 0;
    const char *to = x->to;
    /* Metaspace takes the replacement characters of the very first token away */
    if (x->kind == NB_DEC_META) to = " ", drop = d->stage[i].count++ == 0 && !x->keep_first;
    b->n = 0;
    for (const char *hit; n && (hit = memmem(s, n, x->from, len)); n -= (size_t)(hit - s) + len, s = hit + len) {
        nb_text_add(b, s, (size_t)(hit - s));
        if (!drop) nb_text_puts(b, to);
    }
    nb_text_add(b, s, n);
    feed(d, i + 1, b->s, b->n);
}

static void do_strip(nb_decoder *d, int i, const char *s, size_t n) {
    const nb_tok_dec *x = &d->t->decs.v[i];
    stage *st = &d->stage[i];
    size_t len = strlen(x->from);
    int64_t own = 0, *taken = x->fused ? &st->count : &own;
    if (!x->fused || !st->done)
        for (; *taken < x->start && n >= len && !memcmp(s, x->from, len); s += len, n -= len) ++*taken;
    st->done |= n > 0;
    for (int k = 0; k < x->stop && n >= len && !memcmp(s + n - len, x->from, len); k++) n -= len;
    feed(d, i + 1, s, n);
}

static int byte_of(const char *s, size_t n) { /* <0xHH>; -1: not a byte token */
    static const char digits[] = "0123456789ABCDEFabcdef";
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>' || !s[3] || !s[4]) return -1;
    const char *hi = strchr(digits, s[3]), *lo = strchr(digits, s[4]);
    if (!hi || !lo) return -1;
    int h = (int)(hi - digits), l = (int)(lo - digits);
    return (h > 15 ? h - 6 : h) * 16 + (l > 15 ? l - 6 : l);
}

/* Hands on what of the held bytes is certain; `end`: nothing more comes, so the rest is invalid. */
static void release(nb_decoder *d, int i, bool end) {
    nb_text *b = &d->stage[i].text;
    size_t at = 0;
    if (!b->n) return;
    while (at < b->n) {
        uint32_t cp;
        size_t good = nb_utf8_valid(b->s + at, b->n - at);
        if (good) feed(d, i + 1, b->s + at, good);
        at += good;
        if (at == b->n) break;
        int len = nb_utf8_char(b->s + at, b->n - at, &cp);
        if (len == 0 && !end) break;
        at += len < 0 ? (size_t)-len : b->n - at;
        feed(d, i + 1, replacement, 3);
    }
    memmove(b->s, b->s + at, b->n - at);
    b->n -= at;
}

static void flush_bytes(nb_decoder *d, int i) { /* the end of a run of byte tokens */
    nb_text *b = &d->stage[i].text;
    if (!b->n) return;
    if (d->whole && nb_utf8_valid(b->s, b->n) < b->n)
        for (; b->n; b->n--) feed(d, i + 1, replacement, 3);
    else release(d, i, true);
}

static void do_fallback(nb_decoder *d, int i, const char *s, size_t n) {
    int byte = byte_of(s, n);
    if (byte < 0) {
        flush_bytes(d, i);
        feed(d, i + 1, s, n);
        return;
    }
    nb_text_add(&d->stage[i].text, &(char){(char)byte}, 1);
    if (!d->whole) release(d, i, false);
}

static void do_bytes(nb_decoder *d, int i, const char *s, size_t n) {
    nb_text *b = &d->stage[i].text;
    size_t mark = b->n;
    for (size_t k = 0; k < n;) {
        int byte = nb_tok_char_byte(nb_utf8_next(s, &k));
        if (byte < 0) { /* a token not written in byte characters stands for itself */
            b->n = mark;
            nb_text_add(b, s, n);
            break;
        }
        nb_text_add(b, &(char){(char)byte}, 1);
    }
    release(d, i, false);
}

static void feed(nb_decoder *d, int i, const char *s, size_t n) {
    if (i == d->t->decs.n) {
        nb_text_add(d->out, s, n);
        return;
    }
    switch (d->t->decs.v[i].kind) {
    case NB_DEC_REPLACE:
    case NB_DEC_META: do_replace(d, i, s, n); break;
    case NB_DEC_STRIP: do_strip(d, i, s, n); break;
    case NB_DEC_FALLBACK: do_fallback(d, i, s, n); break;
    case NB_DEC_BYTES: do_bytes(d, i, s, n); break;
    case NB_DEC_FUSE: feed(d, i + 1, s, n); break;
    case NB_DEC_JOIN:
        if (d->stage[i].count++) feed(d, i + 1, " ", 1);
        feed(d, i + 1, s, n);
        break;
    }
}

nb_decoder *nb_decoder_open(const nb_tokenizer *t, bool skip_special) {
    nb_decoder *d = NB_NEW(nb_decoder);
    d->t = t;
    d->skip_special = skip_special;
    d->stage = nb_calloc((size_t)t->decs.n + 1, sizeof *d->stage);
    return d;
}

nb_status nb_decoder_push(nb_decoder *d, int32_t id, nb_text *out) {
    if (id < 0) return nb_fail(NB_EINPUT, "token id %d is negative", id);
    if (id >= d->t->n || !d->t->entry[id].s) return NB_OK;
    const nb_tok_entry *e = &d->t->entry[id];
    if (d->skip_special && (e->flags & NB_TOK_IS_SPECIAL)) return NB_OK;
    d->out = out;
    feed(d, 0, e->s, e->n);
    return NB_OK;
}

void nb_decoder_flush(nb_decoder *d, nb_text *out) {
    d->out = out;
    for (int i = 0; i < d->t->decs.n; i++) {
        if (d->t->decs.v[i].kind == NB_DEC_FALLBACK) flush_bytes(d, i);
        if (d->t->decs.v[i].kind == NB_DEC_BYTES) release(d, i, true);
        d->stage[i].text.n = 0;
        d->stage[i].count = 0;
        d->stage[i].done = false;
    }
}

void nb_decoder_free(nb_decoder *d) {
    if (!d) return;
    for (int i = 0; i < d->t->decs.n; i++) nb_text_free(&d->stage[i].text);
    free(d->stage);
    free(d);
}

nb_status nb_tokenizer_decode(const nb_tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, nb_text *out) {
    nb_decoder *d = nb_decoder_open(t, skip_special);
    nb_status st = NB_OK;
    d->whole = true;
    for (int64_t i = 0; i < n && st == NB_OK; i++) st = nb_decoder_push(d, ids[i], out);
    if (st == NB_OK) nb_decoder_flush(d, out);
    nb_decoder_free(d);
    return st;
}
