/* Pre-tokenizers: cut a text into words. Each of the library's is a sequence of four steps (nb_tok_pre_kind). */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

static const char gpt2_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- running ------------------------------------------------------------------------------------------- */

static void span_add(nb_tok_spans *s, size_t from, size_t to) {
    if (from >= to) return;
    NB_GROW(s->v, s->n, s->cap);
    s->v[s->n++] = (nb_tok_span){(uint32_t)from, (uint32_t)to};
}

/* Takes the parts of a text in order, matches and what lies between, and joins them as the behaviour says. */
typedef struct joiner {
    nb_tok_behavior behavior;
    nb_tok_spans *out;
    size_t from, to; /* a part held back */
    bool held, held_match, last_match;
} joiner;

static void join_flush(joiner *j) {
    if (j->held) span_add(j->out, j->from, j->to);
    j->held = false;
}

static void join_part(joiner *j, size_t from, size_t to, bool match) {
    bool extend = false; /* this part goes on the held one */
    switch (j->behavior) {
    case NB_ISOLATED: span_add(j->out, from, to); return;
    case NB_REMOVED:
        if (!match) span_add(j->out, from, to);
        return;
    case NB_CONTIGUOUS: extend = j->held && match == j->held_match; break;
    case NB_MERGED_WITH_PREVIOUS: extend = j->held && match && !j->last_match; break;
    case NB_MERGED_WITH_NEXT: extend = j->held && j->held_match && !match; break;
    }
    j->last_match = match;
    if (extend) j->to = to;
    else {
        join_flush(j);
        j->from = from, j->to = to;
        j->held = true;
    }
    /* a match that was joined with what follows it takes nothing more */
    j->held_match = j->behavior == NB_MERGED_WITH_NEXT && extend ? false : match;
}

static nb_status run_split(const nb_tok_pre *p, nb_tok_work *w, const nb_tok_view *v, const nb_tok_spans *in,
                           nb_tok_spans *out) {
    for (size_t i = 0; i < in->n; i++) {
        size_t base = in->v[i].from, n = in->v[i].to - base, done = 0;
        joiner j = {.behavior = p->behavior, .out = out};
        nb_tok_find f = {0};
        for (;;) {
            bool found;
            NB_TRY(nb_tok_pattern_next(&p->pattern, w, v->s + base, n, &f, &found));
            if (!found) break;
            if (f.from > done) join_part(&j, base + done, base + f.from, p->invert);
            join_part(&j, base + f.from, base + f.to, !p->invert);
            done = f.to;
        }
        if (done < n) join_part(&j, base + done, base + n, p->invert);
        join_flush(&j);
    }
    return NB_OK;
}

static void run_space(const nb_tok_view *v, size_t from, size_t to, nb_tok_buf *b) {
    if (v->s[from] != ' ') nb_tok_buf_add(b, " ", 1, nb_tok_origin(v, from));
    nb_tok_buf_copy(b, v, from, to);
}

static void run_meta(const nb_tok_pre *p, const nb_tok_view *v, size_t from, size_t to, nb_tok_buf *b) {
    size_t n = strlen(p->text);
    bool has = v->s[from] == ' ' || (to - from >= n && !memcmp(v->s + from, p->text, n));
    bool put = p->prepend == NB_PREPEND_ALWAYS || (p->prepend == NB_PREPEND_FIRST && nb_tok_origin(v, from) == 0);
    if (put && !has) nb_tok_buf_add(b, p->text, n, nb_tok_origin(v, from));
    for (size_t i = from; i < to;) {
        const char *space = memchr(v->s + i, ' ', to - i);
        size_t at = space ? (size_t)(space - v->s) : to;
        nb_tok_buf_copy(b, v, i, at);
        if (space) nb_tok_buf_add(b, p->text, n, nb_tok_origin(v, at));
        i = at + (space != NULL);
    }
}

static void run_bytes(const nb_tok_view *v, size_t from, size_t to, nb_tok_buf *b) {
    for (size_t i = from; i < to; i++) {
        char c[4];
        nb_tok_buf_add(b, c, (size_t)nb_utf8_put(c, nb_tok_byte_char((uint8_t)v->s[i])), nb_tok_origin(v, i));
    }
}

/* The steps that change the text write all words, one behind another, into a new one. */
static void rewrite(const nb_tok_pre *p, const nb_tok_view *v, const nb_tok_spans *in, nb_tok_buf *b,
                    nb_tok_spans *out) {
    for (size_t i = 0; i < in->n; i++) {
        size_t mark = b->n, from = in->v[i].from, to = in->v[i].to;
        if (p->kind == NB_PRE_SPACE) run_space(v, from, to, b);
        else if (p->kind == NB_PRE_META) run_meta(p, v, from, to, b);
        else run_bytes(v, from, to, b);
        span_add(out, mark, b->n);
    }
}

nb_status nb_tok_presplit(const nb_tok_pres *s, nb_tok_work *w, nb_tok_view *v, nb_tok_spans **spans) {
    nb_tok_spans *now = &w->span[0], *next = &w->span[1];
    int turn = 0;
    now->n = 0;
    span_add(now, 0, v->n);
    for (int i = 0; i < s->n; i++) {
        next->n = 0;
        if (s->v[i].kind == NB_PRE_SPLIT) NB_TRY(run_split(&s->v[i], w, v, now, next));
        else {
            nb_tok_buf *b = &w->pre[turn++ & 1];
            b->n = 0;
            rewrite(&s->v[i], v, now, b, next);
            if (b->n > (size_t)3 * NB_TOK_MAX_TEXT) return nb_fail(NB_EINPUT, "the text is too long: split it");
            *v = nb_tok_buf_view(b);
        }
        nb_tok_spans *swap = now;
        now = next, next = swap;
    }
    *spans = now;
    return NB_OK;
}

/* ---- reading ------------------------------------------------------------------------------------------- */

static nb_tok_pre *push(nb_tok_pres *s, nb_tok_pre_kind kind) {
    NB_GROW(s->v, s->n, s->cap);
    s->v[s->n] = (nb_tok_pre){.kind = kind};
    return &s->v[s->n++];
}

static nb_status parse_behavior(nb_tok_behavior *out, const json_t *v, const char *where) {
    static const char *const camel[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *s;
    NB_TRY(nb_tok_need_str(v, "behavior", &s, where));
    for (int i = 0; i < NB_LEN(camel); i++)
        if (!strcmp(s, camel[i])) {
            *out = (nb_tok_behavior)i;
            return NB_OK;
        }
    return nb_fail(NB_EUNSUPPORTED, "%s: pre_tokenizer behavior \"%s\" is not supported", where, s);
}

static nb_status parse_split(nb_tok_pres *s, const json_t *v, const char *where) {
    nb_tok_pre *p = push(s, NB_PRE_SPLIT);
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "pattern", "behavior", "invert", NULL}));
    NB_TRY(parse_behavior(&p->behavior, v, where));
    NB_TRY(nb_json_bool(v, "invert", &p->invert, where));
    return nb_tok_pattern_parse(&p->pattern, json_object_get(v, "pattern"), where);
}

static nb_status parse_byte_level(nb_tok_pres *s, const json_t *v, const char *where) {
    bool space = true, regex = true; /* use_regex is absent in files older than the option */
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "add_prefix_space", "trim_offsets", "use_regex", NULL}));
    NB_TRY(nb_json_bool(v, "add_prefix_space", &space, where));
    NB_TRY(nb_json_bool(v, "use_regex", &regex, where));
    if (space) push(s, NB_PRE_SPACE);
    if (regex) NB_TRY(nb_tok_regex(&push(s, NB_PRE_SPLIT)->pattern, gpt2_regex, where));
    push(s, NB_PRE_BYTES);
    return NB_OK;
}

static nb_status parse_digits(nb_tok_pres *s, const json_t *v, const char *where) {
    bool one = false;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "individual_digits", NULL}));
    NB_TRY(nb_json_bool(v, "individual_digits", &one, where));
    return nb_tok_regex(&push(s, NB_PRE_SPLIT)->pattern, one ? "\\p{N}" : "\\p{N}+", where);
}

static nb_status parse_metaspace(nb_tok_pres *s, const json_t *v, const char *where) {
    const char *text, *scheme = NULL;
    bool split = true, space = true;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "replacement", "prepend_scheme", "split", "str_rep",
                                                       "add_prefix_space", NULL}));
    NB_TRY(nb_tok_need_str(v, "replacement", &text, where));
    NB_TRY(nb_json_str(v, "prepend_scheme", &scheme, where));
    NB_TRY(nb_json_bool(v, "split", &split, where));
    NB_TRY(nb_json_bool(v, "add_prefix_space", &space, where));
    static const char *const names[] = {"always", "first", "never"};
    int found = scheme ? -1 : space ? NB_PREPEND_ALWAYS : NB_PREPEND_NEVER;
    for (int i = 0; scheme && i < NB_LEN(names); i++)
        if (!strcmp(scheme, names[i])) found = i;
    if (found < 0)
        return nb_fail(NB_EUNSUPPORTED, "%s: Metaspace prepend_scheme \"%s\" is not supported", where, scheme);
    if (!space && found != NB_PREPEND_NEVER)
        return nb_fail(NB_EINPUT, "%s: Metaspace has add_prefix_space false and prepend_scheme \"%s\": they disagree",
                       where, scheme);
    size_t one = 0;
    if (*text) nb_utf8_next(text, &one);
    if (!one || text[one]) return nb_fail(NB_EINPUT, "%s: Metaspace replacement must be one character", where);
    nb_tok_pre *p = push(s, NB_PRE_META);
    p->text = nb_strdup(text);
    p->prepend = (nb_tok_prepend)found;
    if (!split) return NB_OK;
    nb_tok_pre *q = push(s, NB_PRE_SPLIT);
    q->behavior = NB_MERGED_WITH_NEXT;
    q->pattern = (nb_tok_pattern){.lit = nb_strdup(text), .lit_n = one, .where = where};
    return NB_OK;
}

/* Words, or runs of what is neither word nor space. This \w is Rust's: joiners, and no numbers of Latin-1. */
#define RUST_WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}" NB_TOK_CIRCLED
static nb_status parse_whitespace(nb_tok_pres *s, const json_t *v, const char *where) {
    nb_tok_pre *p = push(s, NB_PRE_SPLIT);
    p->behavior = NB_REMOVED, p->invert = true;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", NULL}));
    return nb_tok_regex(&p->pattern, "[" RUST_WORD "]+|[^" RUST_WORD "\\s]+", where);
}

static nb_status parse_whitespace_split(nb_tok_pres *s, const json_t *v, const char *where) {
    nb_tok_pre *p = push(s, NB_PRE_SPLIT);
    p->behavior = NB_REMOVED;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", NULL}));
    return nb_tok_regex(&p->pattern, "\\s", where);
}

static nb_status parse_punctuation(nb_tok_pres *s, const json_t *v, const char *where) {
    nb_tok_pre *p = push(s, NB_PRE_SPLIT);
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "behavior", NULL}));
    if (json_object_get(v, "behavior")) NB_TRY(parse_behavior(&p->behavior, v, where));
    return nb_tok_regex(&p->pattern, "[\\p{P}$+<=>^`|~]", where);
}

static nb_status parse_bert(nb_tok_pres *s, const json_t *v, const char *where) {
    NB_TRY(parse_whitespace_split(s, v, where));
    return parse_punctuation(s, v, where);
}

static nb_status parse_delimiter(nb_tok_pres *s, const json_t *v, const char *where) {
    const char *text;
    NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "delimiter", NULL}));
    NB_TRY(nb_tok_need_str(v, "delimiter", &text, where));
    if (!*text) return nb_fail(NB_EINPUT, "%s: CharDelimiterSplit without a delimiter", where);
    nb_tok_pre *p = push(s, NB_PRE_SPLIT);
    p->behavior = NB_REMOVED;
    p->pattern = (nb_tok_pattern){.lit = nb_strdup(text), .lit_n = strlen(text), .where = where};
    return NB_OK;
}

static const struct {
    const char *type;
    nb_status (*parse)(nb_tok_pres *s, const json_t *v, const char *where);
} kinds[] = {{"Split", parse_split},
             {"ByteLevel", parse_byte_level},
             {"Digits", parse_digits},
             {"Metaspace", parse_metaspace},
             {"Whitespace", parse_whitespace},
             {"WhitespaceSplit", parse_whitespace_split},
             {"Punctuation", parse_punctuation},
             {"BertPreTokenizer", parse_bert},
             {"CharDelimiterSplit", parse_delimiter}};

nb_status nb_tok_pres_parse(nb_tok_pres *s, const json_t *v, const char *where, int depth) {
    const char *type;
    if (!v || json_is_null(v)) return NB_OK;
    if (depth > NB_TOK_MAX_DEPTH)
        return nb_fail(NB_EINPUT, "%s: pre_tokenizers nested deeper than %d", where, NB_TOK_MAX_DEPTH);
    NB_TRY(nb_tok_need_str(v, "type", &type, where));
    if (!strcmp(type, "Sequence")) {
        const json_t *list;
        NB_TRY(nb_tok_only(v, where, (const char *const[]){"type", "pretokenizers", NULL}));
        NB_TRY(nb_tok_need_array(v, "pretokenizers", &list, where));
        for (size_t i = 0; i < json_array_size(list); i++)
            NB_TRY(nb_tok_pres_parse(s, json_array_get(list, i), where, depth + 1));
        return NB_OK;
    }
    for (int i = 0; i < NB_LEN(kinds); i++)
        if (!strcmp(type, kinds[i].type)) return kinds[i].parse(s, v, where);
    return nb_fail(NB_EUNSUPPORTED, "%s: pre_tokenizer \"%s\" is not supported", where, type);
}

void nb_tok_pres_free(nb_tok_pres *s) {
    for (int i = 0; i < s->n; i++) nb_tok_pattern_free(&s->v[i].pattern), free(s->v[i].text);
    free(s->v);
}
