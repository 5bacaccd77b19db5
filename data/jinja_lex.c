/* Template text to tokens, with the white space control of jinja2's lexer: "-" strips everything, lstrip_blocks the
 * indentation before a block or comment, trim_blocks the line break after it; "+" prevents either. */
#include <stdlib.h>

#include "core/utf8.h"
#include "data/jinja_impl.h"

typedef struct lexer {
    ji *j;
    const char *s; /* the template, line breaks normalized */
    size_t n, at;
    ji_token *out;
    size_t count, cap;
    bool line_start; /* what the lexer matched last ended with a line break */
    size_t line_of;  /* the position that line and column stand for */
    int line, column;
} lexer;

/* Positions are asked for in ascending order, mostly. */
static void locate(lexer *x, size_t at) {
    if (at < x->line_of) x->line_of = 0, x->line = 1, x->column = 1;
    for (; x->line_of < at; x->line_of++) {
        if (x->s[x->line_of] == '\n') x->line++, x->column = 1;
        else if (((unsigned char)x->s[x->line_of] & 0xC0) != 0x80) x->column++;
    }
    x->j->line = x->line;
    x->j->column = x->column;
}

static ji_token *push(lexer *x, ji_token_type type, size_t begin, size_t end) {
    if (x->count == x->cap) {
        size_t cap = x->cap ? 2 * x->cap : 64;
        ji_token *more = nb_ji_alloc(x->j, cap, sizeof *more);
        if (x->count) memcpy(more, x->out, x->count * sizeof *more);
        x->out = more;
        x->cap = cap;
    }
    locate(x, begin);
    ji_token *t = &x->out[x->count++];
    *t = (ji_token){.type = type, .line = x->line, .column = x->column, .s = x->s + begin, .n = end - begin};
    return t;
}

/* Bytes of the white space character at `at`, 0 if there is none. */
static size_t space_at(const lexer *x, size_t at) {
    if (at >= x->n) return 0;
    return nb_ji_is_space(nb_ji_codepoint(x->s + at, x->n - at)) ? nb_ji_char_len(x->s + at, x->n - at) : 0;
}

static size_t skip_space(const lexer *x, size_t at) {
    size_t w;
    while ((w = space_at(x, at)) > 0) at += w;
    return at;
}

static size_t strip_end(const lexer *x, size_t begin, size_t end) {
    while (end > begin) {
        size_t p = end - 1;
        while (p > begin && ((unsigned char)x->s[p] & 0xC0) == 0x80) p--;
        if (!space_at(x, p)) break;
        end = p;
    }
    return end;
}

/* Template text [begin, tag), cut as the sign of the tag behind it asks. */
static void push_text(lexer *x, size_t begin, size_t tag, char sign, bool is_print) {
    size_t end = tag;
    if (sign == '-') {
        end = strip_end(x, begin, tag);
    } else if (sign != '+' && !is_print) {
        size_t line = tag;
        while (line > begin && x->s[line - 1] != '\n') line--;
        if ((line > begin || x->line_start) && line < tag && strip_end(x, line, tag) == line) end = line;
    }
    if (end > begin) push(x, JT_TEXT, begin, end);
}

static bool has(const lexer *x, size_t at, const char *what) {
    size_t n = strlen(what);
    return at + n <= x->n && !memcmp(x->s + at, what, n);
}

static bool is_word(const lexer *x, size_t at) {
    unsigned char c = at < x->n ? (unsigned char)x->s[at] : 0;
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= 0x80 && !space_at(x, at));
}

/* "%}" at `at` with its sign: the position after it, and after what it cuts away; 0 if it is not there. */
static size_t tag_close(const lexer *x, size_t at, const char *close, bool trims_line) {
    char sign = at < x->n ? x->s[at] : 0;
    if (sign == '-' && has(x, at + 1, close)) return skip_space(x, at + 3);
    if (sign == '+' && trims_line && has(x, at + 1, close)) return at + 3;
    if (!has(x, at, close)) return 0;
    return at + 2 + (trims_line && at + 2 < x->n && x->s[at + 2] == '\n');
}

/* ---- literals ---- */

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* Digits of an escape at s: at most `most` in this base. */
static size_t escape_digits(const char *s, size_t n, int most, int base, int32_t *code) {
    size_t k = 0;
    *code = 0;
    while (k < n && k < (size_t)most && hex_digit(s[k]) >= 0 && hex_digit(s[k]) < base)
        *code = *code * base + hex_digit(s[k++]);
    return k;
}

/* The escape behind a backslash at s, as in Python's strings; returns the bytes read, 0 when it is none. */
static size_t unescape(lexer *x, const char *s, size_t n, char out[4], size_t *out_n) {
    static const char names[] = "ntr\\'\"abfv", values[] = "\n\t\r\\'\"\a\b\f\v";
    const char *p = memchr(names, s[0], sizeof names - 1);
    int32_t code;
    size_t digits = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : s[0] == 'U' ? 8 : 0, used;
    *out_n = 1;
    if (p) {
        out[0] = values[p - names];
        return 1;
    }
    if (s[0] == '\n') {
        *out_n = 0;
        return 1;
    }
    if (digits) {
        if (n > 3 && s[0] == 'U' && s[1] > '0') nb_ji_fail(x->j, "this is no character: \\%.9s", s);
        used = 1 + escape_digits(s + 1, n - 1, (int)digits, 16, &code);
        if (used != 1 + digits) nb_ji_fail(x->j, "\\%c wants %zu hexadecimal digits", s[0], digits);
    } else {
        used = escape_digits(s, n, 3, 8, &code);
        if (s[0] == 'N') nb_ji_fail(x->j, "characters by name (\\N) are not supported");
        if (!used) return 0;
    }
    if (!code || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        nb_ji_fail(x->j, "U+%X is no character", (unsigned)code);
    *out_n = (size_t)nb_utf8_put(out, (uint32_t)code);
    return used;
}

static size_t lex_string(lexer *x, size_t at) {
    size_t end = at + 1, n = 0;
    while (end < x->n && x->s[end] != x->s[at]) end += x->s[end] == '\\' && end + 1 < x->n ? 2 : 1;
    ji_token *t = push(x, JT_STRING, at, at + 1);
    if (end >= x->n) nb_ji_fail(x->j, "the string that begins here never ends");
    char *s = nb_ji_alloc(x->j, end - at, 1);
    for (size_t p = at + 1; p < end;) {
        size_t written, used = x->s[p] == '\\' ? unescape(x, x->s + p + 1, end - p - 1, s + n, &written) : 0;
        if (used) n += written, p += 1 + used;
        else s[n++] = x->s[p++];
    }
    t->s = s;
    t->n = n;
    return end + 1;
}

/* Digits with single underscores between them, copied without; returns the position after them. */
static size_t take_digits(const lexer *x, size_t at, int base, char *out, size_t *n, size_t room) {
    while (at < x->n && *n + 1 < room) {
        if (hex_digit(x->s[at]) >= 0 && hex_digit(x->s[at]) < base) out[(*n)++] = x->s[at++];
        else if (x->s[at] == '_' && at + 1 < x->n && *n && hex_digit(x->s[at + 1]) >= 0 &&
                 hex_digit(x->s[at + 1]) < base)
            at++;
        else break;
    }
    out[*n] = 0;
    return at;
}

static bool digit_at(const lexer *x, size_t at) {
    return at < x->n && x->s[at] >= '0' && x->s[at] <= '9';
}

static size_t lex_number(lexer *x, size_t begin) {
    char text[80];
    size_t n = 0, at = begin;
    int base = 10;
    bool is_float = false;
    char mark = begin + 1 < x->n && x->s[begin] == '0' ? (char)(x->s[begin + 1] | 32) : 0;
    if (mark == 'x' || mark == 'o' || mark == 'b') base = mark == 'x' ? 16 : mark == 'o' ? 8 : 2, at += 2;
    at = take_digits(x, at, base, text, &n, sizeof text / 2);
    if (base == 10 && at < x->n && x->s[at] == '.' && digit_at(x, at + 1) && (!begin || x->s[begin - 1] != '.')) {
        text[n++] = '.';
        at = take_digits(x, at + 1, 10, text, &n, sizeof text - 8);
        is_float = true;
    }
    if (base == 10 && at < x->n && (x->s[at] | 32) == 'e') {
        size_t sign = at + 1 < x->n && (x->s[at + 1] == '+' || x->s[at + 1] == '-');
        if (digit_at(x, at + 1 + sign)) {
            text[n++] = 'e';
            if (sign) text[n++] = x->s[at + 1];
            at = take_digits(x, at + 1 + sign, 10, text, &n, sizeof text);
            is_float = true;
        }
    }
    ji_token *t = push(x, is_float ? JT_FLOAT : JT_INT, begin, at);
    if (is_float) t->f = strtod(text, NULL);
    else {
        char *end;
        t->i = strtoll(text, &end, base);
        bool zeros = base == 10 && text[0] == '0' && t->i; /* 010 is no number */
        if (zeros || !n || *end || n > 62 || t->i == INT64_MAX) nb_ji_fail(x->j, "this number is not supported: %.60s", t->s);
    }
    return at;
}

/* ---- inside of tags ---- */

static size_t lex_operator(lexer *x, size_t at, char *open, size_t *depth, size_t room) {
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    static const char pairs[] = "()[]{}";
    char c = x->s[at];
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (has(x, at, two[i])) {
            push(x, JT_OPERATOR, at, at + 2);
            return at + 2;
        }
    push(x, JT_OPERATOR, at, at + 1);
    if (!memchr("+-/*%~[](){}<>=.:|,;", c, 20)) nb_ji_fail(x->j, "unexpected character \"%c\"", c);
    const char *p = memchr(pairs, c, 6);
    if (p && (p - pairs) % 2 == 0) {
        if (*depth == room) nb_ji_fail(x->j, "brackets are nested too deep");
        open[(*depth)++] = p[1];
    } else if (p && (!*depth || open[--*depth] != c)) {
        nb_ji_fail(x->j, "unexpected \"%c\"", c);
    }
    return at + 1;
}

/* The tokens of a tag from `at`, with its end; returns the position behind it. */
static size_t lex_tag(lexer *x, size_t at, bool is_print) {
    char open[256];
    size_t depth = 0, begin = at;
    for (;;) {
        at = skip_space(x, at);
        size_t after = depth ? 0 : tag_close(x, at, is_print ? "}}" : "%}", !is_print);
        if (after) {
            push(x, is_print ? JT_PRINT_END : JT_BLOCK_END, at, after);
            return after;
        }
        if (at >= x->n) {
            locate(x, begin);
            nb_ji_fail(x->j, "the tag that begins here is never closed");
        }
        nb_ji_step(x->j, 1);
        if (digit_at(x, at)) at = lex_number(x, at);
        else if (x->s[at] == '"' || x->s[at] == '\'') at = lex_string(x, at);
        else if (is_word(x, at)) {
            size_t end = at;
            while (is_word(x, end)) end++;
            push(x, JT_NAME, at, end);
            at = end;
        } else at = lex_operator(x, at, open, &depth, sizeof open);
    }
}

/* {% raw %}: the position behind its tag, 0 if the block at `at` (after its sign) is another. */
static size_t raw_begin(const lexer *x, size_t at) {
    at = skip_space(x, at);
    if (!has(x, at, "raw") || is_word(x, at + 3)) return 0;
    at = skip_space(x, at + 3);
    if (has(x, at, "-%}")) return skip_space(x, at + 3);
    return has(x, at, "%}") ? at + 2 : 0;
}

static size_t lex_raw(lexer *x, size_t begin) {
    for (size_t at = begin; at < x->n; at++) {
        if (!has(x, at, "{%")) continue;
        size_t sign = at + 2 < x->n && (x->s[at + 2] == '-' || x->s[at + 2] == '+');
        size_t name = skip_space(x, at + 2 + sign);
        size_t after = has(x, name, "endraw") ? tag_close(x, skip_space(x, name + 6), "%}", true) : 0;
        if (!after) continue;
        push_text(x, begin, at, sign ? x->s[at + 2] : 0, false);
        return after;
    }
    locate(x, begin);
    nb_ji_fail(x->j, "{%% raw %%} is never closed");
}

static size_t lex_comment(lexer *x, size_t begin) {
    for (size_t at = begin; at < x->n; at++) {
        size_t after = tag_close(x, at, "#}", true);
        if (after) return after;
    }
    locate(x, begin);
    nb_ji_fail(x->j, "the comment that begins here is never closed");
}

const ji_token *nb_ji_lex(ji *j, const char *text, size_t n) {
    char *s = nb_ji_alloc(j, n + 1, 1);
    lexer x = {.j = j, .s = s, .line_start = true, .line = 1, .column = 1};
    for (size_t i = 0; i < n; i++) {
        bool cr = text[i] == '\r';
        s[x.n++] = cr ? '\n' : text[i];
        if (cr && i + 1 < n && text[i + 1] == '\n') i++;
    }
    if (x.n && s[x.n - 1] == '\n') x.n--; /* keep_trailing_newline is off */
    while (x.at < x.n) {
        size_t tag = x.at;
        while (tag < x.n && !(s[tag] == '{' && tag + 1 < x.n && memchr("{%#", s[tag + 1], 3))) tag++;
        if (tag == x.n) {
            push(&x, JT_TEXT, x.at, x.n);
            break;
        }
        char kind = s[tag + 1], sign = tag + 2 < x.n && (s[tag + 2] == '-' || s[tag + 2] == '+') ? s[tag + 2] : 0;
        size_t inside = tag + 2 + (sign != 0), raw = kind == '%' ? raw_begin(&x, inside) : 0;
        push_text(&x, x.at, tag, sign, kind == '{');
        if (raw) {
            x.line_start = s[raw - 1] == '\n';
            x.at = lex_raw(&x, raw);
        } else if (kind == '#') {
            x.at = lex_comment(&x, tag + 2);
        } else {
            push(&x, kind == '{' ? JT_PRINT_BEGIN : JT_BLOCK_BEGIN, tag, inside);
            x.at = lex_tag(&x, inside, kind == '{');
        }
        x.line_start = s[x.at - 1] == '\n';
    }
    push(&x, JT_EOF, x.n, x.n);
    return x.out;
}
