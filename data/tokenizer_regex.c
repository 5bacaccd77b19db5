/* Splitting expressions. tokenizer.json holds them in Oniguruma's Ruby syntax; PCRE2 runs them after a small
 * translation of what differs: \s and \w (PCRE2 counts other characters), script names (PCRE2 means script
 * extensions). What differs and cannot be translated is refused. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

/* Unicode White_Space; PCRE2's \s also has U+180E. */
#define SPACE                                                                                                          \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
/* What Oniguruma counts: letters, marks, decimal digits, letter numbers, connectors, circled letters; and, but only
 * outside [...], the other numbers of Latin-1. */
#define WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}" NB_TOK_CIRCLED
#define LATIN1_NUMBERS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

typedef struct translation {
    const char *regex, *where;
    size_t i;
    nb_text out;
    bool in_class;
} translation;

static nb_status differs(const translation *t, const char *what) {
    return nb_fail(NB_EUNSUPPORTED, "%s: the expression \"%.200s\" uses %s at offset %zu, which nibble cannot run "
                   "with the same meaning", t->where, t->regex, what, t->i);
}

static pcre2_code *compile(const char *s, size_t n, int *err, size_t *at) {
    pcre2_compile_context *c = pcre2_compile_context_create(NULL);
    pcre2_set_newline(c, PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length(c, 1 << 16);
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)s, n, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, err, at, c);
    pcre2_compile_context_free(c);
    return code;
}

/* \p{Name}: a script's name gets "sc:", if PCRE2 knows both. */
static void property(translation *t) {
    const char *s = t->regex + t->i, *end = s[2] == '{' ? strchr(s, '}') : NULL;
    if (!end) {
        nb_text_add(&t->out, s, 2), t->i += 2;
        return;
    }
    size_t negated = s[3] == '^', n = (size_t)(end - s) - 3 - negated;
    char *probe = nb_asprintf("\\p{sc:%.*s}", (int)n, s + 3 + negated);
    int err;
    size_t at;
    pcre2_code *code = n > 2 ? compile(probe, strlen(probe), &err, &at) : NULL;
    nb_text_add(&t->out, s, 3 + negated);
    if (code) nb_text_puts(&t->out, "sc:");
    nb_text_add(&t->out, s + 3 + negated, n + 1);
    pcre2_code_free(code);
    free(probe);
    t->i += (size_t)(end - s) + 1;
}

static nb_status escape(translation *t) {
    char c = t->regex[t->i + 1];
    const char *set = c == 's' || c == 'S' ? SPACE : t->in_class ? WORD : WORD LATIN1_NUMBERS;
    switch (c) {
    case 0: return differs(t, "a backslash at the end");
    case 'h':
    case 'H': return differs(t, "\\h");
    case 'p':
    case 'P': property(t); return NB_OK;
    case 's':
    case 'w':
        nb_text_printf(&t->out, t->in_class ? "%s" : "[%s]", set);
        break;
    case 'S':
    case 'W':
        if (t->in_class) nb_text_add(&t->out, t->regex + t->i, 2);
        else nb_text_printf(&t->out, "[^%s]", set);
        break;
    default: nb_text_add(&t->out, t->regex + t->i, 2);
    }
    t->i += 2;
    return NB_OK;
}

static nb_status in_class(translation *t) {
    const char *s = t->regex + t->i;
    static const struct { const char *name, *set; } posix[] = {
        {"[:space:]", SPACE}, {"[:digit:]", "\\p{Nd}"}, {"[:punct:]", "\\p{P}\\p{S}"}};
    for (int i = 0; i < NB_LEN(posix); i++) {
        size_t n = strlen(posix[i].name);
        if (strncmp(s, posix[i].name, n)) continue;
        nb_text_puts(&t->out, posix[i].set);
        t->i += n;
        return NB_OK;
    }
    if (s[0] == '[') return differs(t, s[1] == ':' ? "this [:name:]" : "a set inside a set");
    if (s[0] == '&' && s[1] == '&') return differs(t, "the set intersection &&");
    if (s[0] == ']') t->in_class = false;
    nb_text_add(&t->out, s, 1);
    t->i++;
    return NB_OK;
}

static nb_status outside(translation *t) {
    const char *s = t->regex + t->i;
    if (s[0] == '(' && s[1] == '*') return differs(t, "a PCRE verb (*");
    if (s[0] == '(' && s[1] == '?')
        for (const char *f = s + 2; *f == '-' || (*f >= 'a' && *f <= 'z'); f++)
            if (*f == 'm' || *f == 's') return differs(t, "(?m) or (?s)");
    if (s[0] == '{') {
        size_t n = 1 + strspn(s + 1, "0123456789,");
        if (s[1] == ',') return differs(t, "the quantifier {,n}");
        if (n > 1 && s[n] == '}' && s[n + 1] == '+') return differs(t, "{n,m}+");
    }
    nb_text_add(&t->out, s, 1);
    t->i++;
    if (s[0] != '[') return NB_OK;
    t->in_class = true;
    size_t lead = s[1] == '^';
    lead += s[1 + lead] == ']'; /* a ] that comes first is an ordinary character */
    nb_text_add(&t->out, s + 1, lead);
    t->i += lead;
    return NB_OK;
}

static nb_status translate(translation *t) {
    while (t->regex[t->i]) {
        if (t->regex[t->i] == '\\') NB_TRY(escape(t));
        else if (t->in_class) NB_TRY(in_class(t));
        else NB_TRY(outside(t));
    }
    return NB_OK;
}

nb_status nb_tok_regex(nb_tok_pattern *p, const char *regex, const char *where) {
    translation t = {.regex = regex, .where = where};
    nb_text_puts(&t.out, "");
    nb_status st = translate(&t);
    if (st == NB_OK) {
        int err;
        size_t at;
        p->code = compile(t.out.s, t.out.n, &err, &at);
        if (!p->code) {
            char reason[256];
            pcre2_get_error_message(err, (PCRE2_UCHAR *)reason, sizeof reason);
            st = nb_fail(NB_EINPUT, "%s: bad regular expression \"%.200s\": %s (near \"%.20s\")", where, regex, reason,
                         t.out.s + (at < t.out.n ? at : t.out.n));
        } else pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE); /* without JIT pcre2_match interprets */
    }
    p->where = where;
    nb_text_free(&t.out);
    return st;
}

nb_status nb_tok_pattern_parse(nb_tok_pattern *p, const json_t *pattern, const char *where) {
    const char *s;
    if (json_object_get(pattern, "Regex")) {
        NB_TRY(nb_tok_need_str(pattern, "Regex", &s, where));
        return nb_tok_regex(p, s, where);
    }
    if (!json_object_get(pattern, "String"))
        return nb_fail(NB_EINPUT, "%s: a pattern needs {\"String\": text} or {\"Regex\": expression}", where);
    NB_TRY(nb_tok_need_str(pattern, "String", &s, where));
    if (!*s) return nb_fail(NB_EINPUT, "%s: the pattern is an empty text", where);
    p->lit = nb_strdup(s);
    p->lit_n = strlen(s);
    p->where = where;
    return NB_OK;
}

nb_status nb_tok_pattern_next(const nb_tok_pattern *p, nb_tok_work *w, const char *s, size_t n, nb_tok_find *f,
                              bool *found) {
    *found = false;
    if (p->lit) {
        if (f->to >= n) return NB_OK;
        const char *hit = p->lit_n == 1 ? memchr(s + f->to, p->lit[0], n - f->to)
                                        : memmem(s + f->to, n - f->to, p->lit, p->lit_n);
        if (hit) *found = true, f->from = (size_t)(hit - s), f->to = f->from + p->lit_n;
        return NB_OK;
    }
    while (f->at <= n) {
        int rc = pcre2_match(p->code, (PCRE2_SPTR)s, n, f->at, PCRE2_NO_UTF_CHECK, w->match, w->limits);
        if (rc == PCRE2_ERROR_NOMATCH) return NB_OK;
        if (rc < 0) {
            char reason[256];
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof reason);
            return nb_fail(NB_EINPUT, "%s: its regular expression gave up at byte %zu of a text: %s", p->where, f->at,
                           reason);
        }
        const size_t *m = pcre2_get_ovector_pointer(w->match);
        size_t from = m[0], to = m[1];
        if (from < f->at || to < from) /* \K in a lookaround */
            return nb_fail(NB_EINPUT, "%s: its regular expression matches backwards", p->where);
        if (to > from || !f->started || from != f->to) {
            f->at = to;
            if (from == to && to < n) nb_utf8_next(s, &f->at);
            else if (from == to) f->at = n + 1;
            f->from = from, f->to = to, f->started = true;
            *found = true;
            return NB_OK;
        }
        if (from >= n) return NB_OK;
        f->at = from;
        nb_utf8_next(s, &f->at);
    }
    return NB_OK;
}

void nb_tok_pattern_free(nb_tok_pattern *p) {
    pcre2_code_free(p->code);
    free(p->lit);
}
