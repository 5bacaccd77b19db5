/* JSON lines and JSON files. A JSON array is cut into its elements by a scanner that knows only strings and
 * brackets, so that elements have line numbers and are parsed one by one (and in parallel) like lines. */
#include <string.h>

#include "core/json.h"
#include "core/mem.h"
#include "data/reader_file.h"

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

nb_status nb_jsonl_split(nb_reader *r, nb_source *s) {
    const char *p = s->text, *end = s->text + s->n;
    for (int64_t line = 1; p < end; line++) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        const char *stop = eol ? eol : end;
        const char *q = p;
        while (q < stop && is_space(*q)) q++;
        if (q < stop) nb_reader_add(r, line, p, (size_t)(stop - p));
        p = eol ? eol + 1 : end;
    }
    return NB_OK;
}

typedef struct scan {
    const char *p, *end;
    int64_t line;
} scan;

static void skip_space(scan *c) {
    for (; c->p < c->end && is_space(*c->p); c->p++) c->line += *c->p == '\n';
}

/* Moves behind one value: to the ',' or closing bracket that follows it. */
static void skip_value(scan *c) {
    int depth = 0;
    for (bool quoted = false; c->p < c->end; c->p++) {
        char ch = *c->p;
        c->line += ch == '\n';
        if (quoted) {
            if (ch == '\\' && c->p + 1 < c->end) c->p++;
            else quoted = ch != '"';
        } else if (ch == '"') {
            quoted = true;
        } else if (ch == '[' || ch == '{') {
            depth++;
        } else if (ch == ']' || ch == '}') {
            if (depth-- == 0) return;
        } else if (ch == ',' && depth == 0) {
            return;
        }
    }
}

static nb_status split_array(nb_reader *r, const nb_source *s, scan *c) {
    c->p++;
    skip_space(c);
    if (c->p < c->end && *c->p == ']') return NB_OK;
    for (;;) {
        skip_space(c);
        const char *begin = c->p;
        int64_t line = c->line;
        skip_value(c);
        if (c->p >= c->end)
            return nb_fail(NB_EINPUT,
                           "%s:%lld: the array is not closed: the file ends inside the element that begins here "
                           "(is it cut off?)",
                           s->path, (long long)line);
        nb_reader_add(r, line, begin, (size_t)(c->p - begin));
        char ch = *c->p++;
        if (ch == ']') break;
        if (ch != ',')
            return nb_fail(NB_EINPUT, "%s:%lld: unexpected '%c' in the array", s->path, (long long)c->line, ch);
    }
    skip_space(c);
    if (c->p < c->end)
        return nb_fail(NB_EINPUT, "%s:%lld: text behind the end of the array", s->path, (long long)c->line);
    return NB_OK;
}

static nb_status split_columns(nb_reader *r, nb_source *s) {
    json_error_t err;
    s->table = json_loadb(s->text, s->n, JSON_REJECT_DUPLICATES, &err);
    if (!s->table) {
        bool lines = strstr(err.text, "end of file expected") != NULL;
        return nb_fail(NB_EINPUT, "%s:%d:%d: not valid JSON: %s%s", s->path, err.line, err.column, err.text,
                       lines ? " (one object per line? then name the file .jsonl)" : "");
    }
    const char *key, *first = NULL;
    json_t *column;
    size_t rows = 0;
    json_object_foreach(s->table, key, column) {
        if (!json_is_array(column))
            return nb_fail(NB_EINPUT, "%s: wanted an array of objects, or an object whose values are columns of equal "
                           "length; \"%s\" is %s", s->path, key, nb_json_type(column));
        if (!first) first = key, rows = json_array_size(column);
        if (json_array_size(column) != rows)
            return nb_fail(NB_EINPUT, "%s: column \"%s\" has %zu values, column \"%s\" has %zu", s->path, first, rows,
                           key, json_array_size(column));
    }
    for (size_t i = 0; i < rows; i++) nb_reader_add(r, (int64_t)i + 1, NULL, 0);
    return NB_OK;
}

nb_status nb_json_split(nb_reader *r, nb_source *s) {
    scan c = {s->text, s->text + s->n, 1};
    skip_space(&c);
    if (c.p == c.end) return NB_OK;
    if (*c.p == '[') return split_array(r, s, &c);
    if (*c.p == '{') return split_columns(r, s);
    return nb_fail(NB_EINPUT, "%s:%lld: wanted '[' (an array of objects) or '{' (an object of columns)", s->path,
                   (long long)c.line);
}

nb_status nb_json_parse(const nb_source *s, const nb_record *rec, json_t **obj) {
    if (s->table) {
        const char *key;
        json_t *column;
        *obj = json_object();
        json_object_foreach(s->table, key, column)
            json_object_set(*obj, key, json_array_get(column, (size_t)rec->line - 1));
        return NB_OK;
    }
    json_error_t err;
    *obj = json_loadb(rec->raw, rec->n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &err);
    if (!*obj)
        return nb_fail(NB_EINPUT, "%s:%lld:%d: not valid JSON: %s", s->path, (long long)(rec->line + err.line - 1),
                       err.column, err.text);
    if (json_is_object(*obj)) return NB_OK;
    nb_status st = nb_fail(NB_EINPUT, "%s:%lld: a row should be an object {\"field\": ...}, not %s", s->path,
                           (long long)rec->line, nb_json_type(*obj));
    json_decref(*obj);
    *obj = NULL;
    return st;
}
