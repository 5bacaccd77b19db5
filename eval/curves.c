#include "eval/curves.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"

const nb_series *nb_curves_find(const nb_curves *c, const char *name, bool eval) {
    for (int i = 0; i < c->n; i++)
        if (c->s[i].eval == eval && !strcmp(c->s[i].name, name)) return &c->s[i];
    return NULL;
}

static void add_point(nb_curves *c, const char *name, bool eval, double step, const json_t *v) {
    double y = json_number_value(v);
    if (!json_is_number(v) || !isfinite(y)) return;
    nb_series *s = (nb_series *)(uintptr_t)nb_curves_find(c, name, eval);
    if (!s) {
        NB_GROW(c->s, c->n, c->cap);
        s = &c->s[c->n++];
        *s = (nb_series){.name = nb_strdup(name), .eval = eval};
    }
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 64;
        s->x = nb_realloc(s->x, (size_t)s->cap, sizeof *s->x);
        s->y = nb_realloc(s->y, (size_t)s->cap, sizeof *s->y);
    }
    s->x[s->n] = step;
    s->y[s->n++] = y;
}

static void add_line(nb_curves *c, const json_t *line) {
    double step = json_number_value(json_object_get(line, "step"));
    const char *name;
    json_t *v;
    json_object_foreach(json_object_get(line, "eval"), name, v) add_point(c, name, true, step, v);
    json_object_foreach((json_t *)(uintptr_t)line, name, v)
        if (strcmp(name, "step") != 0) add_point(c, name, false, step, v);
}

nb_status nb_curves_load(nb_curves *c, const char *path) {
    char *text;
    size_t size;
    int number = 0;
    nb_status st = NB_OK;
    *c = (nb_curves){0};
    NB_TRY(nb_file_read(path, &text, &size));
    for (char *line = text, *next; line < text + size && st == NB_OK; line = next) {
        char *end = memchr(line, '\n', (size_t)(text + size - line));
        next = end ? end + 1 : text + size;
        size_t n = (size_t)(next - line) - (end != NULL);
        number++;
        if (strspn(line, " \t\r") >= n) continue;
        json_t *v = json_loadb(line, n, 0, NULL);
        if (json_is_object(v)) add_line(c, v);
        else if (end) st = nb_fail(NB_EINPUT, "%s:%d: not a JSON object", path, number);
        json_decref(v);
    }
    free(text);
    if (st != NB_OK) nb_curves_free(c);
    return st;
}

void nb_curves_free(nb_curves *c) {
    for (int i = 0; i < c->n; i++) {
        free(c->s[i].name);
        free(c->s[i].x);
        free(c->s[i].y);
    }
    free(c->s);
    *c = (nb_curves){0};
}
