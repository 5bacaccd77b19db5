/* tojson as transformers has it: Python's json.dumps(x, ensure_ascii=False, indent, separators, sort_keys). */
#include <math.h>
#include <stdio.h>

#include "data/jinja_impl.h"

typedef struct writer {
    ji *j;
    ji_builder *b;
    const ji_str *item, *key, *indent; /* separators; indent: one level's, or NULL */
    bool sorted;
} writer;

static void add(writer *w, const char *s) {
    nb_ji_add(w->b, s, strlen(s), 0);
}

static void write_string(writer *w, const ji_str *s) {
    add(w, "\"");
    for (size_t i = 0; i < s->n;) {
        size_t plain = i;
        while (i < s->n && (unsigned char)s->s[i] >= 0x20 && s->s[i] != '"' && s->s[i] != '\\') i++;
        nb_ji_add_slice(w->b, s, plain, i, 0);
        if (i == s->n) break;
        static const char plainly[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
        char c = s->s[i], text[8] = {'\\'};
        const char *p = memchr(plainly, c, sizeof plainly - 1);
        if (p) text[1] = names[p - plainly];
        else snprintf(text, sizeof text, "\\u%04x", (unsigned char)c);
        nb_ji_add(w->b, text, strlen(text), nb_ji_origin_at(s, i));
        i++;
    }
    add(w, "\"");
}

static void line(writer *w, int level) {
    if (!w->indent) return;
    add(w, "\n");
    for (int i = 0; i < level; i++) nb_ji_add_str(w->b, w->indent);
}

static void write_value(writer *w, ji_val v, int level);

static void write_dict(writer *w, const ji_dict *d, int level) {
    ji_list keys = d->keys;
    if (w->sorted) {
        keys.v = nb_ji_alloc(w->j, keys.n + 1, sizeof *keys.v);
        for (size_t i = 0; i < keys.n; i++) {
            size_t at = i;
            nb_ji_step(w->j, i);
            for (; at && nb_ji_compare(w->j, keys.v[at - 1], d->keys.v[i]) > 0; at--) keys.v[at] = keys.v[at - 1];
            keys.v[at] = d->keys.v[i];
        }
    }
    add(w, "{");
    for (size_t i = 0; i < keys.n; i++) {
        ji_val value = ji_none();
        nb_ji_get(w->j, d, keys.v[i], &value);
        if (i) nb_ji_add_str(w->b, w->item);
        line(w, level + 1);
        if (keys.v[i].type == JI_STRING) write_string(w, keys.v[i].s);
        else {
            add(w, "\"");
            write_value(w, keys.v[i], level);
            add(w, "\"");
        }
        nb_ji_add_str(w->b, w->key);
        write_value(w, value, level + 1);
    }
    if (keys.n) line(w, level);
    add(w, "}");
}

static void write_list(writer *w, const ji_list *l, int level) {
    add(w, "[");
    for (size_t i = 0; i < l->n; i++) {
        if (i) nb_ji_add_str(w->b, w->item);
        line(w, level + 1);
        write_value(w, l->v[i], level + 1);
    }
    if (l->n) line(w, level);
    add(w, "]");
}

static void write_value(writer *w, ji_val v, int level) {
    nb_ji_step(w->j, 1);
    nb_ji_deeper(w->j);
    switch (v.type) {
    case JI_NONE: add(w, "null"); break;
    case JI_BOOL: add(w, v.b ? "true" : "false"); break;
    case JI_FLOAT:
        if (isnan(v.f) || isinf(v.f)) add(w, isnan(v.f) ? "NaN" : v.f < 0 ? "-Infinity" : "Infinity");
        else nb_ji_add_str(w->b, nb_ji_to_str(w->j, v));
        break;
    case JI_INT: nb_ji_add_str(w->b, nb_ji_to_str(w->j, v)); break;
    case JI_STRING: write_string(w, v.s); break;
    case JI_LIST: case JI_TUPLE: write_list(w, v.l, level); break;
    case JI_DICT: write_dict(w, v.d, level); break;
    default: nb_ji_fail(w->j, "an object of type %s is not JSON serializable", nb_ji_type_name(v));
    }
    w->j->depth--;
}

void nb_ji_json(ji *j, ji_builder *b, ji_val v, const ji_args *a) {
    ji_val ascii = nb_ji_arg(j, a, 0, "ensure_ascii", ji_bool(false)), indent = nb_ji_arg(j, a, 1, "indent", ji_none());
    ji_val separators = nb_ji_arg(j, a, 2, "separators", ji_none());
    writer w = {.j = j, .b = b, .item = nb_ji_cstr(j, indent.type == JI_NONE ? ", " : ","), .key = nb_ji_cstr(j, ": "),
                .sorted = nb_ji_true(nb_ji_arg(j, a, 3, "sort_keys", ji_none()))};
    if (nb_ji_true(ascii)) nb_ji_fail(j, "tojson with ensure_ascii is not supported");
    if (indent.type == JI_STRING) w.indent = indent.s;
    else if (ji_is_integral(indent)) {
        int64_t n = ji_as_int(indent);
        w.indent = nb_ji_str(j, "                                ", (size_t)(n < 0 ? 0 : n > 32 ? 32 : n));
    } else if (indent.type != JI_NONE) nb_ji_fail(j, "tojson: indent should be a number");
    if (separators.type == JI_LIST || separators.type == JI_TUPLE) {
        const ji_list *l = separators.l;
        if (l->n != 2 || l->v[0].type != JI_STRING || l->v[1].type != JI_STRING)
            nb_ji_fail(j, "tojson: separators should be two strings");
        w.item = l->v[0].s;
        w.key = l->v[1].s;
    }
    write_value(&w, v, 0);
}
