/* Filters: what follows "|". What is lazy in jinja2 (map, select, ...) is a list here. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "data/jinja_impl.h"

typedef ji_val (*filter_function)(ji *j, ji_val v, const ji_args *a);

static ji_val text(ji *j, ji_val v) {
    return ji_string(nb_ji_to_str(j, v));
}

static bool flag(ji *j, const ji_args *a, size_t i, const char *name) {
    return nb_ji_true(nb_ji_arg(j, a, i, name, ji_bool(false)));
}

/* ---- text ---- */

static ji_val f_trim(ji *j, ji_val v, const ji_args *a) {
    ji_val chars = nb_ji_arg(j, a, 0, "chars", ji_none());
    const ji_str *x = chars.type == JI_NONE ? NULL : nb_ji_arg_str(j, a, 0, "chars", "trim");
    return ji_string(nb_ji_strip(j, text(j, v).s, x, true, true));
}

static ji_val f_string(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return text(j, v);
}

static ji_val f_upper(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return ji_string(nb_ji_case(j, text(j, v).s, JI_UPPER));
}

static ji_val f_lower(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return ji_string(nb_ji_case(j, text(j, v).s, JI_LOWER));
}

static ji_val f_title(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return ji_string(nb_ji_case(j, text(j, v).s, JI_TITLE_FILTER));
}

static ji_val f_capitalize(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return ji_string(nb_ji_case(j, text(j, v).s, JI_CAPITALIZE));
}

static ji_val f_replace(ji *j, ji_val v, const ji_args *a) {
    ji_val count = nb_ji_arg(j, a, 2, "count", ji_none());
    if (a->positional.n + a->named.keys.n < 2) nb_ji_fail(j, "replace wants two strings");
    const ji_str *from = text(j, nb_ji_arg(j, a, 0, "old", ji_undefined(NULL))).s,
                 *to = text(j, nb_ji_arg(j, a, 1, "new", ji_undefined(NULL))).s;
    return ji_string(
        nb_ji_replace(j, text(j, v).s, from, to, count.type == JI_NONE ? -1 : nb_ji_arg_int(j, a, 2, "count", -1)));
}

static ji_val f_escape(ji *j, ji_val v, const ji_args *a) {
    static const char *const pairs[][2] = {
        {"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"'", "&#39;"}, {"\"", "&#34;"}};
    const ji_str *s = text(j, v).s;
    (void)a;
    for (int i = 0; i < NB_LEN(pairs); i++)
        s = nb_ji_replace(j, s, nb_ji_cstr(j, pairs[i][0]), nb_ji_cstr(j, pairs[i][1]), -1);
    return ji_string(s);
}

static ji_val f_indent(ji *j, ji_val v, const ji_args *a) {
    ji_val width = nb_ji_arg(j, a, 0, "width", ji_int(4));
    bool first = flag(j, a, 1, "first"), blank = flag(j, a, 2, "blank");
    const ji_str *s = text(j, v).s;
    ji_builder pad = nb_ji_builder(j), b = nb_ji_builder(j);
    if (width.type == JI_STRING) nb_ji_add_str(&pad, width.s);
    else for (int64_t i = nb_ji_arg_int(j, a, 0, "width", 4); i > 0; i--) nb_ji_add(&pad, " ", 1, 0), nb_ji_step(j, 1);
    const ji_str *indent = nb_ji_built(&pad);
    const ji_list *lines = nb_ji_splitlines(j, s, false).l;
    bool ended = s->n && s->s[s->n - 1] == '\n'; /* jinja2 counts an empty line behind the last line break */
    for (size_t i = 0; i < lines->n + ended; i++) {
        const ji_str *line = i < lines->n ? lines->v[i].s : NULL;
        if (i) nb_ji_add(&b, "\n", 1, 0);
        if (i == 0 ? first : line ? line->n || blank : blank) nb_ji_add_str(&b, indent);
        if (line) nb_ji_add_str(&b, line);
    }
    if (!s->n && first) nb_ji_add_str(&b, indent);
    return ji_string(nb_ji_built(&b));
}

static ji_val f_format(ji *j, ji_val v, const ji_args *a) {
    ji_list *l = nb_ji_new_list(j);
    for (size_t i = 0; i < a->positional.n; i++) nb_ji_push(j, l, a->positional.v[i]);
    return ji_string(nb_ji_format(j, text(j, v).s, ji_of_tuple(l)));
}

static ji_val f_tojson(ji *j, ji_val v, const ji_args *a) {
    ji_builder b = nb_ji_builder(j);
    nb_ji_json(j, &b, v, a);
    return ji_string(nb_ji_built(&b));
}

/* ---- numbers ---- */

/* All of s as a number (with white space around it, as Python's int and float take it). */
static bool number_in(ji *j, const ji_str *s, bool whole, int base, int64_t *i, double *f) {
    s = nb_ji_strip(j, s, NULL, true, true);
    char buffer[64], *end;
    if (!s->n || s->n >= sizeof buffer) return false;
    memcpy(buffer, s->s, s->n);
    buffer[s->n] = 0;
    const char *digits = !whole ? "+-.0123456789eE" : base == 10 ? "+-0123456789" : "+-0123456789abcdefABCDEFxXoO";
    if (strspn(buffer, digits) != s->n &&
        (whole || (strcmp(buffer, "inf") && strcmp(buffer, "nan"))))
        return false;
    errno = 0;
    if (whole) *i = strtoll(buffer, &end, base);
    else *f = strtod(buffer, &end);
    return !*end && end != buffer && !(whole && errno);
}

static ji_val f_int(ji *j, ji_val v, const ji_args *a) {
    ji_val fallback = nb_ji_arg(j, a, 0, "default", ji_int(0));
    int64_t base = nb_ji_arg_int(j, a, 1, "base", 10), i;
    double f;
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (ji_is_integral(v)) return ji_int(ji_as_int(v));
    if (v.type == JI_FLOAT) return fabs(v.f) < 9e18 ? ji_int((int64_t)v.f) : fallback;
    if (v.type != JI_STRING || base < 2 || base > 36) return fallback;
    if (number_in(j, v.s, true, (int)base, &i, &f)) return ji_int(i);
    return number_in(j, v.s, false, 10, &i, &f) && fabs(f) < 9e18 ? ji_int((int64_t)f) : fallback;
}

static ji_val f_float(ji *j, ji_val v, const ji_args *a) {
    ji_val fallback = nb_ji_arg(j, a, 0, "default", ji_float(0));
    int64_t i;
    double f;
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (ji_is_number(v)) return ji_float(ji_as_float(v));
    return v.type == JI_STRING && number_in(j, v.s, false, 10, &i, &f) ? ji_float(f) : fallback;
}

static ji_val f_abs(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return ji_is_number(v) && ji_as_float(v) >= 0 ? (v.type == JI_FLOAT ? v : ji_int(ji_as_int(v)))
                                                  : nb_ji_negate(j, v, true);
}

static ji_val f_round(ji *j, ji_val v, const ji_args *a) {
    int64_t digits = nb_ji_arg_int(j, a, 0, "precision", 0);
    ji_val method = nb_ji_arg(j, a, 1, "method", ji_string(nb_ji_cstr(j, "common")));
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (!ji_is_number(v) || method.type != JI_STRING) nb_ji_fail(j, "round wants a number");
    if (digits < -15 || digits > 15) nb_ji_fail(j, "round to %lld digits is not supported", (long long)digits);
    bool up = nb_ji_is(method.s, "ceil"), down = nb_ji_is(method.s, "floor");
    if (!up && !down && !nb_ji_is(method.s, "common")) nb_ji_fail(j, "round: method must be common, ceil or floor");
    double x = ji_as_float(v), scale = pow(10, (double)digits);
    if (up || down) return ji_float((up ? ceil(x * scale) : floor(x * scale)) / scale);
    char buffer[400]; /* digits >= 0: printf rounds the exact value, half to even, as Python does */
    if (digits < 0) {
        x = nearbyint(x * scale) / scale;
        return v.type == JI_FLOAT || fabs(x) >= 9e18 ? ji_float(x) : ji_int((int64_t)x);
    }
    snprintf(buffer, sizeof buffer, "%.*f", (int)digits, x);
    ji_val out = ji_float(strtod(buffer, NULL));
    return v.type == JI_FLOAT ? out : v;
}

/* ---- elements ---- */

/* v.a.b.0, as attribute= takes it. */
static ji_val attribute_of(ji *j, ji_val v, ji_val path) {
    if (ji_is_integral(path)) return nb_ji_item(j, v, path);
    if (path.type != JI_STRING) nb_ji_fail(j, "an attribute's name should be a string");
    for (size_t at = 0; at <= path.s->n;) {
        size_t end = at;
        bool digits = true;
        int64_t number = 0;
        for (; end < path.s->n && path.s->s[end] != '.'; end++) {
            digits = digits && path.s->s[end] >= '0' && path.s->s[end] <= '9' && end - at < 9;
            if (digits) number = number * 10 + path.s->s[end] - '0';
        }
        ji_val key = digits && end > at ? ji_int(number) : ji_string(nb_ji_slice(j, path.s, at, end));
        v = nb_ji_item(j, v, key);
        at = end + 1;
    }
    return v;
}

static ji_val f_length(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return ji_int((int64_t)nb_ji_length(j, v));
}

static ji_val f_list(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return ji_of_list(nb_ji_iterate(j, v));
}

static ji_val f_first(ji *j, ji_val v, const ji_args *a) {
    const ji_list *l = nb_ji_iterate(j, v);
    (void)a;
    return l->n ? l->v[0] : ji_undefined(nb_ji_cstr(j, "first of an empty sequence"));
}

static ji_val f_last(ji *j, ji_val v, const ji_args *a) {
    const ji_list *l = nb_ji_iterate(j, v);
    (void)a;
    return l->n ? l->v[l->n - 1] : ji_undefined(nb_ji_cstr(j, "last of an empty sequence"));
}

static ji_val f_reverse(ji *j, ji_val v, const ji_args *a) {
    (void)a;
    return nb_ji_slice_of(j, v.type == JI_STRING ? v : ji_of_list(nb_ji_iterate(j, v)), ji_none(), ji_none(),
                          ji_int(-1));
}

static ji_val f_join(ji *j, ji_val v, const ji_args *a) {
    ji_val separator = nb_ji_arg(j, a, 0, "d", ji_string(nb_ji_cstr(j, "")));
    ji_val attribute = nb_ji_arg(j, a, 1, "attribute", ji_none());
    const ji_list *l = nb_ji_iterate(j, v);
    if (attribute.type != JI_NONE) {
        ji_list *parts = nb_ji_new_list(j);
        for (size_t i = 0; i < l->n; i++) nb_ji_push(j, parts, attribute_of(j, l->v[i], attribute));
        l = parts;
    }
    return ji_string(nb_ji_join(j, text(j, separator).s, l, false));
}

/* The arguments behind the first `skip` positional ones. */
static ji_args rest(const ji_args *a, size_t skip) {
    ji_args r = *a;
    if (skip >= r.positional.n) r.positional = (ji_list){0};
    else r.positional.v += skip, r.positional.n -= skip;
    r.positional.cap = 0;
    return r;
}

/* map, select and their like take whatever is not true for an empty list. */
static const ji_list *iterate_if_true(ji *j, ji_val v) {
    return nb_ji_true(v) ? nb_ji_iterate(j, v) : nb_ji_new_list(j);
}

static ji_val f_map(ji *j, ji_val v, const ji_args *a) {
    const ji_list *l = iterate_if_true(j, v);
    ji_val out = ji_of_list(nb_ji_new_list(j)), attribute = nb_ji_arg(j, a, SIZE_MAX, "attribute", ji_none());
    ji_val fallback = nb_ji_arg(j, a, SIZE_MAX, "default", ji_undefined(NULL));
    const ji_str *name = attribute.type == JI_NONE ? nb_ji_arg_str(j, a, 0, NULL, "map") : NULL;
    ji_args inner = rest(a, 1);
    for (size_t i = 0; i < l->n; i++) {
        ji_val x = name ? nb_ji_filter(j, name, l->v[i], &inner) : attribute_of(j, l->v[i], attribute);
        nb_ji_push(j, out.l, x.type == JI_UNDEFINED && !name ? fallback : x);
    }
    return out;
}

/* select, reject, selectattr, rejectattr: keeps the elements for which the test's result is `want`. */
static ji_val filtered(ji *j, ji_val v, const ji_args *a, bool by_attribute, bool want) {
    const ji_list *l = iterate_if_true(j, v);
    ji_val out = ji_of_list(nb_ji_new_list(j));
    size_t name_at = by_attribute;
    if (by_attribute && !a->positional.n) nb_ji_fail(j, "selectattr and rejectattr want an attribute's name");
    const ji_str *name = a->positional.n > name_at ? nb_ji_arg_str(j, a, name_at, NULL, "a test's name") : NULL;
    ji_args inner = rest(a, name_at + 1);
    for (size_t i = 0; i < l->n; i++) {
        ji_val x = by_attribute ? attribute_of(j, l->v[i], a->positional.v[0]) : l->v[i];
        if ((name ? nb_ji_test(j, name, x, &inner) : nb_ji_true(x)) == want) nb_ji_push(j, out.l, l->v[i]);
    }
    return out;
}

static ji_val f_select(ji *j, ji_val v, const ji_args *a) { return filtered(j, v, a, false, true); }
static ji_val f_reject(ji *j, ji_val v, const ji_args *a) { return filtered(j, v, a, false, false); }
static ji_val f_selectattr(ji *j, ji_val v, const ji_args *a) { return filtered(j, v, a, true, true); }
static ji_val f_rejectattr(ji *j, ji_val v, const ji_args *a) { return filtered(j, v, a, true, false); }

/* What an element is compared by. */
static ji_val sort_key(ji *j, ji_val v, ji_val attribute, bool case_sensitive) {
    if (attribute.type != JI_NONE) v = attribute_of(j, v, attribute);
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    return v.type == JI_STRING && !case_sensitive ? ji_string(nb_ji_case(j, v.s, JI_LOWER)) : v;
}

/* Stable merge sort of `items` by `keys`, both permuted. */
static void merge_sort(ji *j, ji_val *items, ji_val *keys, size_t n, ji_val *spare, bool reverse) {
    if (n < 2) return;
    size_t half = n / 2, x = 0, y = half, k = 0;
    merge_sort(j, items, keys, half, spare, reverse);
    merge_sort(j, items + half, keys + half, n - half, spare, reverse);
    while (k < n) {
        bool left = y == n;
        if (!left && x < half) {
            int c = nb_ji_compare(j, keys[x], keys[y]);
            left = reverse ? c >= 0 : c <= 0;
        }
        size_t from = left ? x++ : y++;
        spare[2 * k] = items[from];
        spare[2 * k++ + 1] = keys[from];
    }
    for (k = 0; k < n; k++) items[k] = spare[2 * k], keys[k] = spare[2 * k + 1];
}

static ji_val sorted(ji *j, const ji_list *l, ji_val attribute, bool case_sensitive, bool reverse) {
    ji_list *out = nb_ji_new_list(j), keys = {0};
    for (size_t i = 0; i < l->n; i++) {
        nb_ji_push(j, out, l->v[i]);
        nb_ji_push(j, &keys, sort_key(j, l->v[i], attribute, case_sensitive));
    }
    ji_val *spare = nb_ji_alloc(j, 2 * l->n + 1, sizeof *spare);
    if (l->n) merge_sort(j, out->v, keys.v, l->n, spare, reverse);
    return ji_of_list(out);
}

static ji_val f_sort(ji *j, ji_val v, const ji_args *a) {
    return sorted(j, nb_ji_iterate(j, v), nb_ji_arg(j, a, 2, "attribute", ji_none()), flag(j, a, 1, "case_sensitive"),
                  flag(j, a, 0, "reverse"));
}

static ji_val f_items(ji *j, ji_val v, const ji_args *a) {
    ji_val method;
    (void)a;
    if (v.type == JI_UNDEFINED) return ji_of_list(nb_ji_new_list(j));
    if (v.type != JI_DICT) nb_ji_fail(j, "items wants a mapping, not '%s'", nb_ji_type_name(v));
    nb_ji_method_find(j, v, nb_ji_cstr(j, "items"), &method);
    return nb_ji_method_call(j, method.method, &(ji_args){0});
}

static ji_val f_dictsort(ji *j, ji_val v, const ji_args *a) {
    ji_val by = nb_ji_arg(j, a, 1, "by", ji_string(nb_ji_cstr(j, "key")));
    bool value = by.type == JI_STRING && nb_ji_is(by.s, "value");
    if (!value && !(by.type == JI_STRING && nb_ji_is(by.s, "key"))) nb_ji_fail(j, "dictsort: by must be key or value");
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    return sorted(j, f_items(j, v, a).l, ji_int(value), flag(j, a, 0, "case_sensitive"), flag(j, a, 2, "reverse"));
}

static ji_val f_unique(ji *j, ji_val v, const ji_args *a) {
    const ji_list *l = nb_ji_iterate(j, v);
    bool sensitive = flag(j, a, 0, "case_sensitive");
    ji_val out = ji_of_list(nb_ji_new_list(j)), seen = ji_of_list(nb_ji_new_list(j));
    ji_val attribute = nb_ji_arg(j, a, 1, "attribute", ji_none());
    for (size_t i = 0; i < l->n; i++) {
        ji_val key = sort_key(j, l->v[i], attribute, sensitive);
        if (nb_ji_contains(j, seen, key)) continue;
        nb_ji_push(j, seen.l, key);
        nb_ji_push(j, out.l, l->v[i]);
    }
    return out;
}

static ji_val extreme(ji *j, ji_val v, const ji_args *a, int sign) {
    const ji_list *l = nb_ji_iterate(j, v);
    bool sensitive = flag(j, a, 0, "case_sensitive");
    ji_val attribute = nb_ji_arg(j, a, 1, "attribute", ji_none()), best_key = ji_none();
    size_t best = 0;
    if (!l->n) return ji_undefined(nb_ji_cstr(j, "min or max of an empty sequence"));
    for (size_t i = 0; i < l->n; i++) {
        ji_val key = sort_key(j, l->v[i], attribute, sensitive);
        if (i && nb_ji_compare(j, key, best_key) * sign <= 0) continue;
        best = i;
        best_key = key;
    }
    return l->v[best];
}

static ji_val f_max(ji *j, ji_val v, const ji_args *a) { return extreme(j, v, a, 1); }
static ji_val f_min(ji *j, ji_val v, const ji_args *a) { return extreme(j, v, a, -1); }

static ji_val f_sum(ji *j, ji_val v, const ji_args *a) {
    const ji_list *l = nb_ji_iterate(j, v);
    ji_val attribute = nb_ji_arg(j, a, 0, "attribute", ji_none()), out = nb_ji_arg(j, a, 1, "start", ji_int(0));
    for (size_t i = 0; i < l->n; i++)
        out = nb_ji_binary(j, JO_ADD, out, attribute.type == JI_NONE ? l->v[i] : attribute_of(j, l->v[i], attribute));
    return out;
}

/* ---- others ---- */

static ji_val f_default(ji *j, ji_val v, const ji_args *a) {
    bool empty = v.type == JI_UNDEFINED || (flag(j, a, 1, "boolean") && !nb_ji_true(v));
    return empty ? nb_ji_arg(j, a, 0, "default_value", ji_string(nb_ji_cstr(j, ""))) : v;
}

static ji_val f_safe(ji *j, ji_val v, const ji_args *a) {
    (void)j, (void)a;
    return v;
}

static ji_val f_attr(ji *j, ji_val v, const ji_args *a) {
    const ji_str *name = nb_ji_arg_str(j, a, 0, "name", "attr");
    ji_val out;
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (v.type == JI_DICT) return nb_ji_method_find(j, v, name, &out) ? out : ji_undefined(name);
    return nb_ji_attr(j, v, name);
}

static const struct {
    const char *name;
    filter_function run;
    const char *parameters; /* in order; NULL: it looks itself */
} filters[] = {
    {"trim", f_trim, "chars"}, {"string", f_string, ""}, {"upper", f_upper, ""}, {"lower", f_lower, ""},
    {"title", f_title, ""}, {"capitalize", f_capitalize, ""}, {"replace", f_replace, "old new count"},
    {"escape", f_escape, ""}, {"e", f_escape, ""}, {"safe", f_safe, ""}, {"indent", f_indent, "width first blank"},
    {"format", f_format, NULL}, {"tojson", f_tojson, "ensure_ascii indent separators sort_keys"},
    {"int", f_int, "default base"}, {"float", f_float, "default"}, {"abs", f_abs, ""},
    {"round", f_round, "precision method"}, {"length", f_length, ""}, {"count", f_length, ""}, {"list", f_list, ""},
    {"first", f_first, ""}, {"last", f_last, ""}, {"reverse", f_reverse, ""}, {"join", f_join, "d attribute"},
    {"map", f_map, NULL}, {"select", f_select, NULL}, {"reject", f_reject, NULL}, {"selectattr", f_selectattr, NULL},
    {"rejectattr", f_rejectattr, NULL}, {"sort", f_sort, "reverse case_sensitive attribute"}, {"items", f_items, ""},
    {"dictsort", f_dictsort, "case_sensitive by reverse"}, {"unique", f_unique, "case_sensitive attribute"},
    {"max", f_max, "case_sensitive attribute"}, {"min", f_min, "case_sensitive attribute"},
    {"sum", f_sum, "attribute start"}, {"default", f_default, "default_value boolean"},
    {"d", f_default, "default_value boolean"}, {"attr", f_attr, "name"},
};

/* An argument that a filter does not have is a mistake of the template, or something that is not supported here. */
static void check_arguments(ji *j, const char *filter, const char *parameters, const ji_args *a) {
    size_t known = *parameters != 0;
    for (const char *p = parameters; *p; p++) known += *p == ' ';
    if (a->positional.n > known) nb_ji_fail(j, "the filter '%s' takes no more than %zu arguments", filter, known);
    for (size_t i = 0; i < a->named.keys.n; i++) {
        const ji_str *name = a->named.keys.v[i].s;
        const char *p = parameters;
        while (*p && !(strcspn(p, " ") == name->n && !memcmp(p, name->s, name->n))) {
            p += strcspn(p, " ");
            p += *p == ' ';
        }
        if (!*p) nb_ji_fail(j, "the filter '%s' has no argument '%.*s' here", filter, (int)(name->n % 100), name->s);
    }
}

ji_val nb_ji_filter(ji *j, const ji_str *name, ji_val v, const ji_args *a) {
    for (int i = 0; i < NB_LEN(filters); i++) {
        if (!nb_ji_is(name, filters[i].name)) continue;
        if (filters[i].parameters) check_arguments(j, filters[i].name, filters[i].parameters, a);
        nb_ji_deeper(j);
        ji_val out = filters[i].run(j, v, a);
        j->depth--;
        return out;
    }
    nb_ji_fail(j, "there is no filter '%.*s' here", name->n > 80 ? 80 : (int)name->n, name->s);
}
