/* Methods of strings, dictionaries, lists and of the loop variable. What would change a list or a dictionary is absent,
 * as in jinja2's immutable sandbox. */
#include <stdio.h>
#include <utf8proc.h>

#include "core/utf8.h"
#include "data/jinja_impl.h"

/* ---- text ---- */

static bool in_chars(ji *j, int32_t c, const ji_str *chars) {
    if (!chars) return nb_ji_is_space(c);
    nb_ji_step(j, chars->n / 16);
    for (size_t i = 0, n; i < chars->n; i += n) {
        n = nb_ji_char_len(chars->s + i, chars->n - i);
        if (nb_ji_codepoint(chars->s + i, n) == c) return true;
    }
    return false;
}

static size_t char_before(const ji_str *s, size_t end) {
    size_t p = end - 1;
    while (p && ((unsigned char)s->s[p] & 0xC0) == 0x80) p--;
    return p;
}

/* chars: NULL for white space. */
const ji_str *nb_ji_strip(ji *j, const ji_str *s, const ji_str *chars, bool left, bool right) {
    size_t begin = 0, end = s->n;
    while (left && begin < end && in_chars(j, nb_ji_codepoint(s->s + begin, end - begin), chars))
        begin += nb_ji_char_len(s->s + begin, end - begin);
    while (right && end > begin) {
        size_t p = char_before(s, end);
        if (!in_chars(j, nb_ji_codepoint(s->s + p, end - p), chars)) break;
        end = p;
    }
    nb_ji_step(j, (s->n - (end - begin)) / 8);
    return nb_ji_slice(j, s, begin, end);
}

const ji_str *nb_ji_replace(ji *j, const ji_str *s, const ji_str *from, const ji_str *to, int64_t count) {
    ji_builder b = nb_ji_builder(j);
    size_t at = 0, hit;
    nb_ji_step(j, s->n / 64);
    if (!from->n && count != 0) { /* between all characters, in front and behind */
        for (; at < s->n && count != 0; count--) {
            size_t n = nb_ji_char_len(s->s + at, s->n - at);
            nb_ji_add_str(&b, to);
            nb_ji_add_slice(&b, s, at, at + n, 0);
            at += n;
        }
        if (count != 0) nb_ji_add_str(&b, to);
    }
    for (; from->n && count != 0 && (hit = nb_ji_find(s, at, from)) != SIZE_MAX; count--) {
        nb_ji_step(j, 1);
        nb_ji_add_slice(&b, s, at, hit, 0);
        nb_ji_add_str(&b, to);
        at = hit + from->n;
    }
    if (!at) return b.n ? nb_ji_built(&b) : s;
    nb_ji_add_slice(&b, s, at, s->n, 0);
    return nb_ji_built(&b);
}

static bool cased(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

/* Character by character; of those that become two only "ß" and "İ" are here. */
const ji_str *nb_ji_case(ji *j, const ji_str *s, int how) {
    ji_builder b = nb_ji_builder(j);
    bool start = true;
    nb_ji_step(j, s->n / 2);
    for (size_t i = 0, n; i < s->n; i += n) {
        n = nb_ji_char_len(s->s + i, s->n - i);
        int32_t c = nb_ji_codepoint(s->s + i, n), to;
        bool raise = how == JI_UPPER || (how != JI_LOWER && start);
        char out[4];
        if (raise && c == 0xDF) {
            nb_ji_add(&b, how == JI_UPPER || how == JI_TITLE_FILTER ? "SS" : "Ss", 2, nb_ji_origin_at(s, i));
        } else if (!raise && c == 0x130) {
            nb_ji_add(&b, "i\u0307", 3, nb_ji_origin_at(s, i));
        } else {
            to = !raise ? utf8proc_tolower(c) : how == JI_TITLE || how == JI_CAPITALIZE ? utf8proc_totitle(c)
                                                                                         : utf8proc_toupper(c);
            nb_ji_add(&b, out, (size_t)nb_utf8_put(out, (uint32_t)to), nb_ji_origin_at(s, i));
        }
        if (how == JI_TITLE) start = !cased(c);
        else if (how == JI_TITLE_FILTER) start = nb_ji_is_space(c) || (c < 128 && strchr("-({[<", c));
        else start = false;
    }
    return s->n ? nb_ji_built(&b) : s;
}

const ji_str *nb_ji_join(ji *j, const ji_str *separator, const ji_list *l, bool strings_only) {
    ji_builder b = nb_ji_builder(j);
    for (size_t i = 0; i < l->n; i++) {
        if (strings_only && l->v[i].type != JI_STRING)
            nb_ji_fail(j, "join wants strings, not '%s'", nb_ji_type_name(l->v[i]));
        nb_ji_step(j, 1);
        if (i) nb_ji_add_str(&b, separator);
        nb_ji_add_str(&b, nb_ji_to_str(j, l->v[i]));
    }
    return nb_ji_built(&b);
}

/* ---- splitting ---- */

static void push_slice(ji *j, ji_list *l, const ji_str *s, size_t begin, size_t end) {
    nb_ji_push(j, l, ji_string(nb_ji_slice(j, s, begin, end)));
}

/* At runs of white space, none at the ends. */
static void split_spaces(ji *j, ji_list *l, const ji_str *s, int64_t most) {
    for (size_t at = 0;;) {
        while (at < s->n && nb_ji_is_space(nb_ji_codepoint(s->s + at, s->n - at)))
            at += nb_ji_char_len(s->s + at, s->n - at);
        if (at == s->n) return;
        size_t end = at;
        if (most-- == 0) {
            push_slice(j, l, s, at, nb_ji_strip(j, nb_ji_slice(j, s, at, s->n), NULL, false, true)->n + at);
            return;
        }
        while (end < s->n && !nb_ji_is_space(nb_ji_codepoint(s->s + end, s->n - end)))
            end += nb_ji_char_len(s->s + end, s->n - end);
        push_slice(j, l, s, at, end);
        at = end;
    }
}

static size_t find_last(ji *j, const ji_str *s, size_t end, const ji_str *what) {
    for (size_t at = what->n <= end ? end - what->n + 1 : 0; at-- > 0;) {
        if (what->n && s->s[at] != what->s[0]) continue;
        nb_ji_step(j, what->n / 64);
        if (!memcmp(s->s + at, what->s, what->n)) return at;
    }
    return SIZE_MAX;
}

static void reverse(ji_list *l) {
    for (size_t i = 0; i < l->n / 2; i++) {
        ji_val v = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = v;
    }
}

static ji_val split(ji *j, const ji_str *s, const ji_args *a, bool right) {
    ji_val separator = nb_ji_arg(j, a, 0, "sep", ji_none());
    int64_t most = nb_ji_arg_int(j, a, 1, "maxsplit", -1);
    ji_list *l = nb_ji_new_list(j);
    size_t at = 0, end = s->n, hit;
    nb_ji_step(j, s->n / 16);
    if (separator.type == JI_NONE) {
        if (right && most >= 0) nb_ji_fail(j, "rsplit() at white space with a limit is not supported");
        split_spaces(j, l, s, most);
        return ji_of_list(l);
    }
    const ji_str *by = nb_ji_arg_str(j, a, 0, "sep", "split()");
    if (!by->n) nb_ji_fail(j, "split() with an empty separator");
    if (right) {
        for (; most != 0 && (hit = find_last(j, s, end, by)) != SIZE_MAX; most--, end = hit)
            push_slice(j, l, s, hit + by->n, end);
        push_slice(j, l, s, 0, end);
        reverse(l);
    } else {
        for (; most != 0 && (hit = nb_ji_find(s, at, by)) != SIZE_MAX; most--, at = hit + by->n)
            push_slice(j, l, s, at, hit);
        push_slice(j, l, s, at, s->n);
    }
    return ji_of_list(l);
}

ji_val nb_ji_splitlines(ji *j, const ji_str *s, bool keep) {
    ji_list *l = nb_ji_new_list(j);
    nb_ji_step(j, s->n / 16);
    for (size_t at = 0; at < s->n;) {
        size_t end = at, after;
        int32_t c = 0;
        while (end < s->n) {
            c = nb_ji_codepoint(s->s + end, s->n - end);
            if ((c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029) break;
            end += nb_ji_char_len(s->s + end, s->n - end);
        }
        after = end < s->n ? end + nb_ji_char_len(s->s + end, s->n - end) : end;
        if (c == '\r' && after < s->n && s->s[after] == '\n') after++;
        push_slice(j, l, s, at, keep ? after : end);
        at = after;
    }
    return ji_of_list(l);
}

static ji_val partition(ji *j, const ji_str *s, const ji_str *by, bool right) {
    if (!by->n) nb_ji_fail(j, "partition() with an empty separator");
    nb_ji_step(j, s->n / 64);
    ji_list *l = nb_ji_new_list(j);
    size_t hit = right ? find_last(j, s, s->n, by) : nb_ji_find(s, 0, by);
    const ji_str *empty = nb_ji_cstr(j, "");
    if (hit != SIZE_MAX) {
        push_slice(j, l, s, 0, hit);
        push_slice(j, l, s, hit, hit + by->n);
        push_slice(j, l, s, hit + by->n, s->n);
    } else {
        for (int i = 0; i < 3; i++) nb_ji_push(j, l, ji_string(i == (right ? 2 : 0) ? s : empty));
    }
    return ji_of_tuple(l);
}

/* ---- asking ---- */

/* startswith and endswith take a string or a tuple of them. */
static ji_val affixed(ji *j, const ji_str *s, ji_val what, bool end) {
    ji_list one = {.v = &what, .n = 1};
    const ji_list *all = what.type == JI_TUPLE ? what.l : &one;
    for (size_t i = 0; i < all->n; i++) {
        if (all->v[i].type == JI_UNDEFINED) nb_ji_undefined(j, all->v[i]);
        if (all->v[i].type != JI_STRING) nb_ji_fail(j, "a string is wanted, not '%s'", nb_ji_type_name(all->v[i]));
        const ji_str *x = all->v[i].s;
        nb_ji_step(j, 1 + x->n / 64);
        if (x->n <= s->n && !memcmp(s->s + (end ? s->n - x->n : 0), x->s, x->n)) return ji_bool(true);
    }
    return ji_bool(false);
}

static ji_val count_of(ji *j, const ji_str *s, const ji_str *what) {
    int64_t n = 0;
    nb_ji_step(j, s->n / 16);
    if (!what->n) return ji_int((int64_t)nb_ji_chars(s->s, s->n) + 1);
    for (size_t at = 0; (at = nb_ji_find(s, at, what)) != SIZE_MAX; at += what->n) n++;
    return ji_int(n);
}

static bool all_chars(ji *j, const ji_str *s, int which) {
    nb_ji_step(j, s->n / 16);
    for (size_t i = 0, n; i < s->n; i += n) {
        n = nb_ji_char_len(s->s + i, s->n - i);
        int32_t c = nb_ji_codepoint(s->s + i, n);
        utf8proc_category_t k = utf8proc_category(c);
        bool letter = cased(c) || k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_LO;
        bool digit = k == UTF8PROC_CATEGORY_ND;
        if (!(which == 0 ? nb_ji_is_space(c) : which == 1 ? digit : which == 2 ? letter : letter || digit))
            return false;
    }
    return s->n > 0;
}

/* "{} {0} {name}".format(): no attributes, no format specifications. */
static ji_val format_braces(ji *j, const ji_str *s, const ji_args *a) {
    ji_builder b = nb_ji_builder(j);
    size_t automatic = 0;
    bool manual = false;
    for (size_t i = 0; i < s->n;) {
        char c = s->s[i];
        if (c != '{' && c != '}') {
            size_t end = i;
            while (end < s->n && s->s[end] != '{' && s->s[end] != '}') end++;
            nb_ji_add_slice(&b, s, i, end, 0);
            i = end;
            continue;
        }
        if (i + 1 < s->n && s->s[i + 1] == c) {
            nb_ji_add_slice(&b, s, i, i + 1, 0);
            i += 2;
            continue;
        }
        const char *close = c == '{' ? memchr(s->s + i, '}', s->n - i) : NULL;
        if (!close) nb_ji_fail(j, "format(): a brace without its other one");
        const ji_str *name = nb_ji_str(j, s->s + i + 1, (size_t)(close - s->s) - i - 1);
        ji_val v = ji_undefined(name);
        bool number = name->n > 0 && name->n < 6;
        size_t index = 0;
        for (size_t k = 0; k < name->n; k++) {
            number = number && name->s[k] >= '0' && name->s[k] <= '9';
            if (number) index = index * 10 + (size_t)(name->s[k] - '0');
        }
        if (number) manual = true;
        if (!name->n) index = automatic++, number = true;
        if (manual && automatic) nb_ji_fail(j, "format(): {} and {0} cannot be mixed");
        if (number && index < a->positional.n) v = a->positional.v[index];
        else if (number || !nb_ji_get(j, &a->named, ji_string(name), &v))
            nb_ji_fail(j, "format() has no argument for {%.*s}", name->n > 80 ? 80 : (int)name->n, name->s);
        nb_ji_add_str(&b, nb_ji_to_str(j, v));
        i = (size_t)(close - s->s) + 1;
    }
    return ji_string(nb_ji_built(&b));
}

/* ---- the tables ---- */

typedef enum method_name {
    M_STRIP, M_LSTRIP, M_RSTRIP, M_SPLIT, M_RSPLIT, M_SPLITLINES, M_STARTSWITH, M_ENDSWITH, M_REPLACE, M_UPPER,
    M_LOWER, M_TITLE, M_CAPITALIZE, M_JOIN, M_FIND, M_RFIND, M_COUNT, M_FORMAT, M_REMOVEPREFIX, M_REMOVESUFFIX,
    M_PARTITION, M_RPARTITION, M_ISSPACE, M_ISDIGIT, M_ISALPHA, M_ISALNUM, M_ITEMS, M_KEYS, M_VALUES, M_GET, M_COPY,
    M_LIST_INDEX, M_LIST_COUNT, M_CYCLE, M_CHANGED
} method_name;

static const struct {
    const char *name;
    ji_type type;
} methods[] = {
    [M_STRIP] = {"strip", JI_STRING},           [M_LSTRIP] = {"lstrip", JI_STRING},
    [M_RSTRIP] = {"rstrip", JI_STRING},         [M_SPLIT] = {"split", JI_STRING},
    [M_RSPLIT] = {"rsplit", JI_STRING},         [M_SPLITLINES] = {"splitlines", JI_STRING},
    [M_STARTSWITH] = {"startswith", JI_STRING}, [M_ENDSWITH] = {"endswith", JI_STRING},
    [M_REPLACE] = {"replace", JI_STRING},       [M_UPPER] = {"upper", JI_STRING},
    [M_LOWER] = {"lower", JI_STRING},           [M_TITLE] = {"title", JI_STRING},
    [M_CAPITALIZE] = {"capitalize", JI_STRING}, [M_JOIN] = {"join", JI_STRING},
    [M_FIND] = {"find", JI_STRING},             [M_RFIND] = {"rfind", JI_STRING},
    [M_COUNT] = {"count", JI_STRING},           [M_FORMAT] = {"format", JI_STRING},
    [M_REMOVEPREFIX] = {"removeprefix", JI_STRING}, [M_REMOVESUFFIX] = {"removesuffix", JI_STRING},
    [M_PARTITION] = {"partition", JI_STRING},   [M_RPARTITION] = {"rpartition", JI_STRING},
    [M_ISSPACE] = {"isspace", JI_STRING},       [M_ISDIGIT] = {"isdigit", JI_STRING},
    [M_ISALPHA] = {"isalpha", JI_STRING},       [M_ISALNUM] = {"isalnum", JI_STRING},
    [M_ITEMS] = {"items", JI_DICT},             [M_KEYS] = {"keys", JI_DICT},
    [M_VALUES] = {"values", JI_DICT},           [M_GET] = {"get", JI_DICT},
    [M_COPY] = {"copy", JI_DICT},               [M_LIST_INDEX] = {"index", JI_LIST},
    [M_LIST_COUNT] = {"count", JI_LIST},        [M_CYCLE] = {"cycle", JI_LOOP},
    [M_CHANGED] = {"changed", JI_LOOP},
};

bool nb_ji_method_find(ji *j, ji_val v, const ji_str *name, ji_val *out) {
    ji_type type = v.type == JI_TUPLE ? JI_LIST : v.type;
    for (int i = 0; i < NB_LEN(methods); i++) {
        if (methods[i].type != type || !nb_ji_is(name, methods[i].name)) continue;
        ji_method *m = nb_ji_alloc(j, 1, sizeof *m);
        *m = (ji_method){v, i};
        *out = (ji_val){.type = JI_METHOD, .method = m};
        return true;
    }
    return false;
}

static ji_val find_in(ji *j, const ji_str *s, const ji_str *what, bool last) {
    nb_ji_step(j, s->n / 64);
    size_t at = last ? find_last(j, s, s->n, what) : nb_ji_find(s, 0, what);
    return ji_int(at == SIZE_MAX ? -1 : (int64_t)nb_ji_chars(s->s, at));
}

static ji_val string_method(ji *j, const ji_str *s, int which, const ji_args *a) {
    static const int cases[] = {JI_UPPER, JI_LOWER, JI_TITLE, JI_CAPITALIZE};
    const char *name = methods[which].name;
    ji_val first = nb_ji_arg(j, a, 0, NULL, ji_none());
    const ji_str *x;
    switch (which) {
    case M_STRIP: case M_LSTRIP: case M_RSTRIP:
        x = first.type == JI_NONE ? NULL : nb_ji_arg_str(j, a, 0, NULL, name);
        return ji_string(nb_ji_strip(j, s, x, which != M_RSTRIP, which != M_LSTRIP));
    case M_SPLIT: case M_RSPLIT: return split(j, s, a, which == M_RSPLIT);
    case M_SPLITLINES: return nb_ji_splitlines(j, s, nb_ji_true(nb_ji_arg(j, a, 0, "keepends", ji_none())));
    case M_STARTSWITH: case M_ENDSWITH: return affixed(j, s, first, which == M_ENDSWITH);
    case M_REPLACE:
        x = nb_ji_arg_str(j, a, 0, NULL, name);
        return ji_string(
            nb_ji_replace(j, s, x, nb_ji_arg_str(j, a, 1, NULL, name), nb_ji_arg_int(j, a, 2, "count", -1)));
    case M_UPPER: case M_LOWER: case M_TITLE: case M_CAPITALIZE:
        return ji_string(nb_ji_case(j, s, cases[which - M_UPPER]));
    case M_JOIN: return ji_string(nb_ji_join(j, s, nb_ji_iterate(j, first), true));
    case M_FIND: case M_RFIND: return find_in(j, s, nb_ji_arg_str(j, a, 0, NULL, name), which == M_RFIND);
    case M_COUNT: return count_of(j, s, nb_ji_arg_str(j, a, 0, NULL, name));
    case M_FORMAT: return format_braces(j, s, a);
    case M_REMOVEPREFIX: case M_REMOVESUFFIX:
        x = nb_ji_arg_str(j, a, 0, NULL, name);
        if (!affixed(j, s, first, which == M_REMOVESUFFIX).b) return ji_string(s);
        return ji_string(which == M_REMOVESUFFIX ? nb_ji_slice(j, s, 0, s->n - x->n) : nb_ji_slice(j, s, x->n, s->n));
    case M_PARTITION: case M_RPARTITION:
        return partition(j, s, nb_ji_arg_str(j, a, 0, NULL, name), which == M_RPARTITION);
    default: return ji_bool(all_chars(j, s, which - M_ISSPACE));
    }
}

static ji_val dict_method(ji *j, ji_val self, int which, const ji_args *a) {
    const ji_dict *d = self.d;
    ji_val out = ji_of_list(nb_ji_new_list(j));
    if (which == M_COPY) return self; /* nothing can change it */
    if (which == M_GET) {
        ji_val key = nb_ji_arg(j, a, 0, NULL, ji_none());
        if (key.type == JI_LIST || key.type == JI_DICT) nb_ji_fail(j, "unhashable type: '%s'", nb_ji_type_name(key));
        return nb_ji_get(j, d, key, &out) ? out : nb_ji_arg(j, a, 1, "default", ji_none());
    }
    for (size_t i = 0; i < d->keys.n; i++) {
        ji_val pair = ji_of_tuple(nb_ji_new_list(j));
        if (which == M_ITEMS) {
            nb_ji_push(j, pair.l, d->keys.v[i]);
            nb_ji_push(j, pair.l, d->values.v[i]);
        }
        nb_ji_push(j, out.l, which == M_ITEMS ? pair : which == M_KEYS ? d->keys.v[i] : d->values.v[i]);
    }
    return out;
}

static ji_val list_method(ji *j, const ji_list *l, int which, const ji_args *a) {
    ji_val x = nb_ji_arg(j, a, 0, NULL, ji_none());
    int64_t n = 0;
    for (size_t i = 0; i < l->n; i++) {
        if (!nb_ji_eq(j, l->v[i], x)) continue;
        if (which == M_LIST_INDEX) return ji_int((int64_t)i);
        n++;
    }
    if (which == M_LIST_INDEX) nb_ji_fail(j, "the value is not in the list");
    return ji_int(n);
}

static ji_val loop_method(ji *j, ji_loop *l, int which, const ji_args *a) {
    if (which == M_CYCLE) {
        if (!a->positional.n) nb_ji_fail(j, "loop.cycle() without values");
        return a->positional.v[l->index % a->positional.n];
    }
    ji_list *seen = nb_ji_new_list(j);
    for (size_t i = 0; i < a->positional.n; i++) nb_ji_push(j, seen, a->positional.v[i]);
    bool same = l->changed && nb_ji_eq(j, ji_of_list(l->changed), ji_of_list(seen));
    l->changed = seen;
    return ji_bool(!same);
}

ji_val nb_ji_method_call(ji *j, const ji_method *m, const ji_args *a) {
    switch (methods[m->which].type) {
    case JI_STRING: return string_method(j, m->self.s, m->which, a);
    case JI_DICT: return dict_method(j, m->self, m->which, a);
    case JI_LIST: return list_method(j, m->self.l, m->which, a);
    default: return loop_method(j, m->self.loop, m->which, a);
    }
}
