/* Values: strings with their origins, lists, dictionaries, and what Python does with them (truth, equality, order,
 * str, repr). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "core/utf8.h"
#include "data/jinja_impl.h"

/* ---- strings ---- */

ji_builder nb_ji_builder(ji *j) {
    return (ji_builder){.j = j};
}

static void *grow(ji *j, void *old, size_t n, size_t *cap, size_t more, size_t size) {
    if (n + more <= *cap) return old;
    size_t want = *cap ? 2 * *cap : 32;
    while (want < n + more) want *= 2;
    void *p = nb_ji_alloc(j, want, size);
    if (n) memcpy(p, old, n * size);
    *cap = want;
    return p;
}

static void add_run(ji_builder *b, size_t begin, size_t end, int origin) {
    ji_run *last = b->n_runs ? &b->runs[b->n_runs - 1] : NULL;
    if (last && last->origin == origin && last->end == begin) {
        last->end = end;
        return;
    }
    if (begin == end && !(origin & ~JI_GENERATION)) return;
    b->runs = grow(b->j, b->runs, b->n_runs, &b->cap_runs, 1, sizeof *b->runs);
    b->runs[b->n_runs++] = (ji_run){begin, end, origin};
}

void nb_ji_add(ji_builder *b, const char *s, size_t n, int origin) {
    if (b->n + n > b->j->limits.output)
        nb_ji_fail(b->j, "a text of more than %zu bytes: the limit of a chat template", b->j->limits.output);
    nb_ji_step(b->j, n / 64);
    b->s = grow(b->j, b->s, b->n, &b->cap, n, 1);
    if (n) memcpy(b->s + b->n, s, n);
    if (origin) add_run(b, b->n, b->n + n, origin);
    b->n += n;
}

/* The first run that ends at `at` or behind it. */
static size_t first_run(const ji_str *s, size_t at) {
    size_t low = 0, high = s->n_runs;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (s->runs[middle].end < at) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* An empty run counts where the slice lies within it or it within the slice: a message whose content was trimmed to
 * nothing is still there. */
void nb_ji_add_slice(ji_builder *b, const ji_str *s, size_t begin, size_t end, int or_origin) {
    size_t at = b->n, done = begin;
    nb_ji_add(b, s->s + begin, end - begin, 0);
    for (size_t i = first_run(s, begin); i < s->n_runs && s->runs[i].begin <= end; i++) {
        ji_run r = s->runs[i];
        bool whole = (r.begin <= begin && r.end >= end) || (r.begin == r.end && r.begin >= begin);
        size_t from = r.begin > begin ? r.begin : begin, to = r.end < end ? r.end : end;
        if (from > to || (from == to && !whole)) continue;
        if (or_origin && from > done) add_run(b, at + done - begin, at + from - begin, or_origin);
        add_run(b, at + from - begin, at + to - begin, r.origin | or_origin);
        done = to;
    }
    if (or_origin && end > done) add_run(b, at + done - begin, at + end - begin, or_origin);
}

void nb_ji_add_str(ji_builder *b, const ji_str *s) {
    nb_ji_add_slice(b, s, 0, s->n, 0);
}

const ji_str *nb_ji_built(ji_builder *b) {
    ji_str *s = nb_ji_alloc(b->j, 1, sizeof *s);
    *s = (ji_str){b->s ? b->s : "", b->n, b->runs, b->n_runs};
    return s;
}

const ji_str *nb_ji_str(ji *j, const char *s, size_t n) {
    ji_str *out = nb_ji_alloc(j, 1, sizeof *out);
    *out = (ji_str){s, n, NULL, 0};
    return out;
}

const ji_str *nb_ji_cstr(ji *j, const char *s) {
    return nb_ji_str(j, s, strlen(s));
}

const ji_str *nb_ji_slice(ji *j, const ji_str *s, size_t begin, size_t end) {
    if (begin == 0 && end == s->n) return s;
    if (!s->n_runs) return nb_ji_str(j, s->s + begin, end - begin);
    ji_builder b = nb_ji_builder(j);
    nb_ji_add_slice(&b, s, begin, end, 0);
    return nb_ji_built(&b);
}

int nb_ji_origin_at(const ji_str *s, size_t at) {
    size_t i = first_run(s, at + 1);
    return i < s->n_runs && s->runs[i].begin <= at ? s->runs[i].origin : 0;
}

bool nb_ji_is(const ji_str *s, const char *word) {
    size_t n = strlen(word);
    return s->n == n && !memcmp(s->s, word, n);
}

bool nb_ji_str_eq(const ji_str *x, const ji_str *y) {
    return x->n == y->n && (!x->n || !memcmp(x->s, y->s, x->n));
}

/* UTF-8 sorts as its code points do. */
int nb_ji_str_cmp(const ji_str *x, const ji_str *y) {
    size_t n = x->n < y->n ? x->n : y->n;
    int c = n ? memcmp(x->s, y->s, n) : 0;
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

size_t nb_ji_find(const ji_str *s, size_t from, const ji_str *what) {
    if (from > s->n || what->n > s->n - from) return SIZE_MAX;
    if (!what->n) return from;
    const char *p = memmem(s->s + from, s->n - from, what->s, what->n);
    return p ? (size_t)(p - s->s) : SIZE_MAX;
}

size_t nb_ji_char_len(const char *s, size_t n) {
    size_t k = 1;
    while (k < n && ((unsigned char)s[k] & 0xC0) == 0x80) k++;
    return k;
}

size_t nb_ji_chars(const char *s, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)s[i] & 0xC0) != 0x80;
    return count;
}

size_t nb_ji_char_at(const ji_str *s, size_t i) {
    size_t at = 0;
    for (; i && at < s->n; i--) at += nb_ji_char_len(s->s + at, s->n - at);
    return at;
}

int32_t nb_ji_codepoint(const char *s, size_t n) {
    uint32_t cp;
    return n && nb_utf8_char(s, n, &cp) > 0 ? (int32_t)cp : -1;
}

bool nb_ji_is_space(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* ---- lists and dictionaries ---- */

void nb_ji_push(ji *j, ji_list *l, ji_val v) {
    nb_ji_step(j, 1);
    l->v = grow(j, l->v, l->n, &l->cap, 1, sizeof *l->v);
    l->v[l->n++] = v;
}

ji_list *nb_ji_new_list(ji *j) {
    ji_list *l = nb_ji_alloc(j, 1, sizeof *l);
    *l = (ji_list){0};
    return l;
}

ji_dict *nb_ji_new_dict(ji *j) {
    ji_dict *d = nb_ji_alloc(j, 1, sizeof *d);
    *d = (ji_dict){0};
    return d;
}

static size_t position_of(ji *j, const ji_dict *d, ji_val key) {
    nb_ji_step(j, d->keys.n / 8);
    for (size_t i = 0; i < d->keys.n; i++) {
        ji_val k = d->keys.v[i];
        bool strings = k.type == JI_STRING && key.type == JI_STRING;
        if (strings && k.s->n != key.s->n) continue;
        if (strings) nb_ji_step(j, key.s->n / 64);
        if (strings ? nb_ji_str_eq(k.s, key.s) : nb_ji_eq(j, k, key)) return i;
    }
    return SIZE_MAX;
}

void nb_ji_put(ji *j, ji_dict *d, ji_val key, ji_val value) {
    if (key.type == JI_LIST || key.type == JI_DICT)
        nb_ji_fail(j, "a %s cannot be a dictionary's key", nb_ji_type_name(key));
    size_t i = position_of(j, d, key);
    if (i != SIZE_MAX) {
        d->values.v[i] = value;
        return;
    }
    nb_ji_push(j, &d->keys, key);
    nb_ji_push(j, &d->values, value);
}

bool nb_ji_get(ji *j, const ji_dict *d, ji_val key, ji_val *out) {
    size_t i = position_of(j, d, key);
    if (i != SIZE_MAX) *out = d->values.v[i];
    return i != SIZE_MAX;
}

ji_list *nb_ji_iterate(ji *j, ji_val v) {
    if (v.type == JI_LIST || v.type == JI_TUPLE) return v.l;
    if (v.type == JI_DICT) return &v.d->keys;
    ji_list *l = nb_ji_new_list(j);
    if (v.type == JI_STRING) {
        for (size_t i = 0, n; i < v.s->n; i += n) {
            n = nb_ji_char_len(v.s->s + i, v.s->n - i);
            nb_ji_push(j, l, ji_string(nb_ji_slice(j, v.s, i, i + n)));
        }
    } else if (v.type != JI_UNDEFINED) {
        nb_ji_fail(j, "'%s' object is not iterable", nb_ji_type_name(v));
    }
    return l;
}

size_t nb_ji_length(ji *j, ji_val v) {
    switch (v.type) {
    case JI_UNDEFINED: return 0;
    case JI_STRING: nb_ji_step(j, v.s->n / 64); return nb_ji_chars(v.s->s, v.s->n);
    case JI_LIST: case JI_TUPLE: return v.l->n;
    case JI_DICT: return v.d->keys.n;
    default: nb_ji_fail(j, "object of type '%s' has no len()", nb_ji_type_name(v));
    }
}

/* ---- truth, equality, order ---- */

const char *nb_ji_type_name(ji_val v) {
    static const char *const names[] = {"Undefined", "NoneType", "bool", "int", "float", "str", "list", "tuple", "dict",
                                        "Namespace", "LoopContext", "Macro", "method", "function"};
    return names[v.type];
}

bool nb_ji_true(ji_val v) {
    switch (v.type) {
    case JI_UNDEFINED: case JI_NONE: return false;
    case JI_BOOL: return v.b;
    case JI_INT: return v.i != 0;
    case JI_FLOAT: return v.f != 0;
    case JI_STRING: return v.s->n != 0;
    case JI_LIST: case JI_TUPLE: return v.l->n != 0;
    case JI_DICT: return v.d->keys.n != 0;
    default: return true;
    }
}

static bool lists_equal(ji *j, const ji_list *x, const ji_list *y) {
    bool same = x->n == y->n;
    for (size_t i = 0; same && i < x->n; i++) same = nb_ji_eq(j, x->v[i], y->v[i]);
    return same;
}

bool nb_ji_eq(ji *j, ji_val x, ji_val y) {
    nb_ji_step(j, 1);
    if (ji_is_number(x) && ji_is_number(y))
        return ji_is_integral(x) && ji_is_integral(y) ? ji_as_int(x) == ji_as_int(y) : ji_as_float(x) == ji_as_float(y);
    if (x.type != y.type) return false;
    bool same = true;
    nb_ji_deeper(j);
    switch (x.type) {
    case JI_UNDEFINED: case JI_NONE: break;
    case JI_STRING: nb_ji_step(j, x.s->n / 64); same = nb_ji_str_eq(x.s, y.s); break;
    case JI_LIST: case JI_TUPLE: same = lists_equal(j, x.l, y.l); break;
    case JI_DICT:
        same = x.d->keys.n == y.d->keys.n;
        for (size_t i = 0; same && i < x.d->keys.n; i++) {
            ji_val other;
            same = nb_ji_get(j, y.d, x.d->keys.v[i], &other) && nb_ji_eq(j, x.d->values.v[i], other);
        }
        break;
    case JI_FUNCTION: same = x.function == y.function; break;
    default: same = x.d == y.d;
    }
    j->depth--;
    return same;
}

int nb_ji_compare(ji *j, ji_val x, ji_val y) {
    nb_ji_step(j, 1);
    if (ji_is_integral(x) && ji_is_integral(y)) return (ji_as_int(x) > ji_as_int(y)) - (ji_as_int(x) < ji_as_int(y));
    if (ji_is_number(x) && ji_is_number(y))
        return (ji_as_float(x) > ji_as_float(y)) - (ji_as_float(x) < ji_as_float(y));
    if (x.type == JI_STRING && y.type == JI_STRING) {
        nb_ji_step(j, (x.s->n < y.s->n ? x.s->n : y.s->n) / 64);
        return nb_ji_str_cmp(x.s, y.s);
    }
    if (x.type != y.type || (x.type != JI_LIST && x.type != JI_TUPLE))
        nb_ji_fail(j, "'%s' and '%s' have no order", nb_ji_type_name(x), nb_ji_type_name(y));
    nb_ji_deeper(j);
    int c = 0;
    for (size_t i = 0; !c && i < x.l->n && i < y.l->n; i++)
        if (!nb_ji_eq(j, x.l->v[i], y.l->v[i])) c = nb_ji_compare(j, x.l->v[i], y.l->v[i]);
    j->depth--;
    return c ? c : (x.l->n > y.l->n) - (x.l->n < y.l->n);
}

bool nb_ji_contains(ji *j, ji_val all, ji_val x) {
    ji_val out;
    if (all.type == JI_STRING) {
        if (x.type != JI_STRING)
            nb_ji_fail(j, "'in <string>' requires a string on the left, not '%s'", nb_ji_type_name(x));
        nb_ji_step(j, all.s->n / 64);
        return nb_ji_find(all.s, 0, x.s) != SIZE_MAX;
    }
    if (all.type == JI_DICT) return nb_ji_get(j, all.d, x, &out);
    if (all.type != JI_LIST && all.type != JI_TUPLE && all.type != JI_UNDEFINED)
        nb_ji_fail(j, "argument of type '%s' is not iterable", nb_ji_type_name(all));
    if (all.type == JI_UNDEFINED) return false;
    for (size_t i = 0; i < all.l->n; i++)
        if (nb_ji_eq(j, all.l->v[i], x)) return true;
    return false;
}

/* ---- text of values ---- */

/* The shortest digits that read back as the same number, as Python writes them. */
void nb_ji_float_repr(double f, char out[40]) {
    char digits[32];
    int precision = 1, exponent;
    if (isnan(f) || isinf(f)) {
        snprintf(out, 40, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    do snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
    while (strtod(digits, NULL) != f && ++precision <= 17);
    exponent = atoi(strchr(digits, 'e') + 1);
    if (f != 0 && (exponent < -4 || exponent >= 16)) {
        char *e = strchr(digits, 'e');
        *e = 0;
        snprintf(out, 40, "%.24se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int decimals = precision - 1 - exponent;
    snprintf(out, 40, "%.*f", decimals > 1 ? decimals : 1, f);
}

static void puts_to(ji_builder *b, const char *s) {
    nb_ji_add(b, s, strlen(s), 0);
}

static bool printable(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return c == ' ' || !(k == UTF8PROC_CATEGORY_CN || k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF ||
                         k == UTF8PROC_CATEGORY_CS || k == UTF8PROC_CATEGORY_CO || k == UTF8PROC_CATEGORY_ZS ||
                         k == UTF8PROC_CATEGORY_ZL || k == UTF8PROC_CATEGORY_ZP);
}

static void repr_str(ji_builder *b, const ji_str *s) {
    bool single = s->n && memchr(s->s, '\'', s->n), both = single && memchr(s->s, '"', s->n);
    char quote = single && !both ? '"' : '\'', text[16];
    nb_ji_step(b->j, s->n / 2);
    nb_ji_add(b, &quote, 1, 0);
    for (size_t i = 0, n; i < s->n; i += n) {
        n = nb_ji_char_len(s->s + i, s->n - i);
        int32_t c = nb_ji_codepoint(s->s + i, n);
        const char *p = c > 0 && c < 128 ? strchr("\nn\rr\tt\\\\", c) : NULL;
        int origin = nb_ji_origin_at(s, i);
        if (c == quote) snprintf(text, sizeof text, "\\%c", quote);
        else if (p && c != 'n' && c != 'r' && c != 't') snprintf(text, sizeof text, "\\%c", p[1]);
        else if (printable(c)) {
            nb_ji_add(b, s->s + i, n, origin);
            continue;
        } else snprintf(text, sizeof text, c < 256 ? "\\x%02x" : c < 65536 ? "\\u%04x" : "\\U%08x", (unsigned)c);
        nb_ji_add(b, text, strlen(text), origin);
    }
    nb_ji_add(b, &quote, 1, 0);
}

static void repr_list(ji_builder *b, ji_val v) {
    bool is_list = v.type == JI_LIST;
    puts_to(b, is_list ? "[" : "(");
    for (size_t i = 0; i < v.l->n; i++) {
        if (i) puts_to(b, ", ");
        nb_ji_repr(b, v.l->v[i]);
    }
    puts_to(b, is_list ? "]" : v.l->n == 1 ? ",)" : ")");
}

void nb_ji_repr(ji_builder *b, ji_val v) {
    nb_ji_deeper(b->j);
    switch (v.type) {
    case JI_STRING: repr_str(b, v.s); break;
    case JI_UNDEFINED: puts_to(b, "Undefined"); break;
    case JI_LIST: case JI_TUPLE: repr_list(b, v); break;
    case JI_DICT:
        puts_to(b, "{");
        for (size_t i = 0; i < v.d->keys.n; i++) {
            if (i) puts_to(b, ", ");
            nb_ji_repr(b, v.d->keys.v[i]);
            puts_to(b, ": ");
            nb_ji_repr(b, v.d->values.v[i]);
        }
        puts_to(b, "}");
        break;
    default: nb_ji_add_str(b, nb_ji_to_str(b->j, v));
    }
    b->j->depth--;
}

const ji_str *nb_ji_to_str(ji *j, ji_val v) {
    char text[40];
    ji_builder b = nb_ji_builder(j);
    switch (v.type) {
    case JI_STRING: return v.s;
    case JI_UNDEFINED: return nb_ji_cstr(j, "");
    case JI_NONE: return nb_ji_cstr(j, "None");
    case JI_BOOL: return nb_ji_cstr(j, v.b ? "True" : "False");
    case JI_INT: snprintf(text, sizeof text, "%lld", (long long)v.i); break;
    case JI_FLOAT: nb_ji_float_repr(v.f, text); break;
    case JI_LIST: case JI_TUPLE: case JI_DICT: nb_ji_repr(&b, v); return nb_ji_built(&b);
    default: nb_ji_fail(j, "a %s has no text", nb_ji_type_name(v));
    }
    nb_ji_add(&b, text, strlen(text), 0);
    return nb_ji_built(&b);
}

static const ji_str *with_origin(ji *j, const char *text, size_t n, int origin) {
    ji_str *s = nb_ji_alloc(j, 1, sizeof *s);
    ji_run *r = nb_ji_alloc(j, 1, sizeof *r);
    *s = (ji_str){text, n, r, origin != 0};
    *r = (ji_run){0, n, origin};
    return s;
}

ji_val nb_ji_from_json(ji *j, const json_t *v, int origin) {
    ji_val out = ji_none();
    nb_ji_deeper(j);
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_TRUE: case JSON_FALSE: out = ji_bool(json_is_true(v)); break;
    case JSON_INTEGER: out = ji_int(json_integer_value(v)); break;
    case JSON_REAL: out = ji_float(json_real_value(v)); break;
    case JSON_STRING: out = ji_string(with_origin(j, json_string_value(v), json_string_length(v), origin)); break;
    case JSON_ARRAY:
        out = ji_of_list(nb_ji_new_list(j));
        for (size_t i = 0; i < json_array_size(v); i++)
            nb_ji_push(j, out.l, nb_ji_from_json(j, json_array_get(v, i), origin));
        break;
    case JSON_OBJECT: {
        out = (ji_val){.type = JI_DICT, .d = nb_ji_new_dict(j)};
        /* jansson's objects keep their order; the keys are known to differ */
        for (void *it = json_object_iter((json_t *)(uintptr_t)v); it;
             it = json_object_iter_next((json_t *)(uintptr_t)v, it)) {
            const char *key = json_object_iter_key(it);
            nb_ji_push(j, &out.d->keys, ji_string(with_origin(j, key, strlen(key), origin)));
            nb_ji_push(j, &out.d->values, nb_ji_from_json(j, json_object_iter_value(it), origin));
        }
        break;
    }
    default: break;
    }
    j->depth--;
    return out;
}
