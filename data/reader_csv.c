/* CSV as RFC 4180 has it: fields parted by commas (tabs in .tsv), records by CRLF or LF, a field with commas, quotes or
 * line breaks in quotes, a quote in it doubled. The first record names the columns. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "data/reader_file.h"

/* Takes one field from *p into `field` (unquoted) and moves *p behind it: to a delimiter, a line end or `end`.
 * Returns NULL, or what is wrong with it. */
static const char *take_field(const char **p, const char *end, char delimiter, nb_text *field) {
    const char *q = *p;
    field->n = 0;
    nb_text_add(field, "", 0);
    if (q < end && *q == '"') {
        for (q++;; q++) {
            const char *quote = memchr(q, '"', (size_t)(end - q));
            if (!quote) return "a quoted field is never closed (its closing \" is missing)";
            nb_text_add(field, q, (size_t)(quote - q));
            q = quote + 1;
            if (q >= end || *q != '"') break;
            nb_text_add(field, "\"", 1);
        }
        if (q < end && *q == '\r' && (q + 1 == end || q[1] == '\n')) q++;
        if (q < end && *q != delimiter && *q != '\n')
            return "text behind a closing quote (a quote inside a quoted field must be doubled: \"\")";
        *p = q;
        return NULL;
    }
    while (q < end && *q != delimiter && *q != '\n') q++;
    size_t n = (size_t)(q - *p);
    if (n && (q == end || *q == '\n') && q[-1] == '\r') n--;
    nb_text_add(field, *p, n);
    *p = q;
    return NULL;
}

static nb_status bad_row(const nb_source *s, int64_t line, const char *why) {
    return nb_fail(NB_EINPUT, "%s:%lld: %s", s->path, (long long)line, why);
}

static nb_status add_column(nb_source *s, const nb_text *name) {
    if (!name->n) return nb_fail(NB_EINPUT, "%s:1: column %d has no name in the header row", s->path, s->n_columns + 1);
    for (int c = 0; c < s->n_columns; c++)
        if (!strcmp(s->columns[c], name->s))
            return nb_fail(NB_EINPUT, "%s:1: two columns are called \"%s\"", s->path, name->s);
    s->columns = nb_realloc(s->columns, (size_t)s->n_columns + 1, sizeof *s->columns);
    s->columns[s->n_columns++] = nb_strndup(name->s, name->n);
    return NB_OK;
}

/* The end of the record at p: behind its last field. Counts the fields; the header's names are taken along. */
static nb_status scan_record(nb_source *s, const char **p, int64_t line, bool header, nb_text *field, int *fields) {
    const char *end = s->text + s->n;
    for (*fields = 1;; ++*fields, ++*p) {
        const char *wrong = take_field(p, end, s->delimiter, field);
        if (wrong) return bad_row(s, line, wrong);
        if (header) NB_TRY(add_column(s, field));
        if (*p >= end || **p != s->delimiter) return NB_OK;
    }
}

static nb_status split(nb_reader *r, nb_source *s, nb_text *field) {
    const char *p = s->text, *end = s->text + s->n;
    int64_t line = 1;
    for (bool header = true; p < end;) {
        const char *begin = p;
        int64_t at = line;
        int fields;
        NB_TRY(scan_record(s, &p, at, header, field, &fields));
        size_t n = (size_t)(p - begin);
        bool blank = n == 0 || (n == 1 && *begin == '\r');
        for (const char *q = begin; q < p; q++) line += *q == '\n';
        if (p < end) p++, line++;
        if (header) {
            header = false;
        } else if (!blank) {
            if (fields != s->n_columns)
                return nb_fail(NB_EINPUT, "%s:%lld: %d fields, but the header row names %d columns", s->path,
                               (long long)at, fields, s->n_columns);
            nb_reader_add(r, at, begin, n);
        }
    }
    return NB_OK;
}

nb_status nb_csv_split(nb_reader *r, nb_source *s) {
    nb_text field = {0};
    nb_status st = split(r, s, &field);
    nb_text_free(&field);
    return st;
}

nb_status nb_csv_parse(const nb_source *s, const nb_record *rec, json_t **obj) {
    const char *p = rec->raw, *end = rec->raw + rec->n;
    nb_text field = {0};
    *obj = json_object();
    for (int c = 0; c < s->n_columns; c++, p++) {
        take_field(&p, end, s->delimiter, &field); /* what could be wrong with it, splitting has refused */
        json_object_set_new(*obj, s->columns[c], json_stringn(field.s, field.n));
    }
    nb_text_free(&field);
    return NB_OK;
}
