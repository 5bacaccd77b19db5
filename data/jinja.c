/* Entry points, the arena, limits and errors. */
#include "data/jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/utf8.h"
#include "data/jinja_impl.h"

enum { BLOCK = 16 << 10, MAX_TEMPLATE = 1 << 20 };

const nb_jinja_limits nb_jinja_default_limits = {
    .steps = 20000000, .memory = 256u << 20, .output = 64u << 20, .depth = 400};

/* ---- memory ---- */

struct ji_block {
    ji_block *next;
    size_t used, size;
    max_align_t data[];
};

void *nb_ji_alloc(ji *j, size_t count, size_t size) {
    if (size && count > j->memory_limit / size) nb_ji_fail(j, "it needs more memory than a chat template may have");
    size_t n = (count * size + 15) & ~(size_t)15;
    if (!j->blocks || n > j->blocks->size - j->blocks->used) {
        size_t want = n > BLOCK / 4 ? n : BLOCK;
        if (want > j->memory_limit - j->used) nb_ji_fail(j, "it needs more memory than a chat template may have");
        ji_block *b = nb_malloc(sizeof *b + want);
        *b = (ji_block){.next = j->blocks, .size = want};
        /* A large piece goes behind the block in use, which still has room. */
        if (j->blocks && want != BLOCK) b->next = j->blocks->next, j->blocks->next = b;
        else j->blocks = b;
        j->used += want;
        b->used = n;
        return b->data;
    }
    void *p = (char *)j->blocks->data + j->blocks->used;
    j->blocks->used += n;
    return p;
}

void nb_ji_free_blocks(ji_block *b) {
    while (b) {
        ji_block *next = b->next;
        free(b);
        b = next;
    }
}

/* ---- errors and limits ---- */

void nb_ji_fail(ji *j, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(j->error, sizeof j->error, fmt, args);
    va_end(args);
    if (j->at) j->line = j->at->line, j->column = j->at->column;
    longjmp(j->out, 1);
}

void nb_ji_undefined(ji *j, ji_val v) {
    if (v.s) nb_ji_fail(j, "'%.*s' is undefined", v.s->n > 200 ? 200 : (int)v.s->n, v.s->s);
    nb_ji_fail(j, "a value that is needed here is undefined");
}

void nb_ji_step(ji *j, size_t n) {
    j->steps += (int64_t)n;
    if (j->steps > j->limits.steps)
        nb_ji_fail(j, "it takes more than %lld steps: the limit of a chat template", (long long)j->limits.steps);
}

void nb_ji_deeper(ji *j) {
    if (++j->depth > j->limits.depth) nb_ji_fail(j, "nested too deep (more than %d levels)", j->limits.depth);
}

static nb_status failed(const ji *j) {
    return nb_fail(NB_EINPUT, "chat template, line %d, column %d: %s", j->line, j->column, j->error);
}

/* ---- parsing ---- */

nb_status nb_jinja_parse(nb_jinja **out, const char *text, size_t n) {
    *out = NULL;
    if (n > MAX_TEMPLATE)
        return nb_fail(NB_EINPUT, "chat template: %zu bytes; more than %d are not supported", n, MAX_TEMPLATE);
    size_t valid = nb_utf8_valid(text, n);
    if (valid != n) return nb_fail(NB_EINPUT, "chat template: byte %zu is not UTF-8", valid);
    if (n && memchr(text, 0, n)) return nb_fail(NB_EINPUT, "chat template: it holds a zero byte");
    ji *j = nb_calloc(1, sizeof *j);
    j->limits = nb_jinja_default_limits;
    j->memory_limit = (size_t)256 << 20;
    nb_status st = NB_OK;
    if (!setjmp(j->out)) {
        j->tokens = nb_ji_lex(j, text, n);
        const ji_node *body = nb_ji_parse_body(j);
        *out = NB_NEW(nb_jinja);
        **out = (nb_jinja){j->blocks, body};
    } else {
        st = failed(j);
        nb_ji_free_blocks(j->blocks);
    }
    free(j);
    return st;
}

void nb_jinja_free(nb_jinja *j) {
    if (!j) return;
    nb_ji_free_blocks(j->blocks);
    free(j);
}

/* ---- rendering ---- */

/* A message's texts get its origin, but for its role. */
static ji_val message(ji *j, const json_t *m, int origin) {
    if (!json_is_object(m)) return nb_ji_from_json(j, m, 0);
    ji_val out = {.type = JI_DICT, .d = nb_ji_new_dict(j)};
    for (void *it = json_object_iter((json_t *)(uintptr_t)m); it;
         it = json_object_iter_next((json_t *)(uintptr_t)m, it)) {
        const char *key = json_object_iter_key(it);
        nb_ji_push(j, &out.d->keys, ji_string(nb_ji_cstr(j, key)));
        nb_ji_push(j, &out.d->values, nb_ji_from_json(j, json_object_iter_value(it), strcmp(key, "role") ? origin : 0));
    }
    return out;
}

static ji_val messages(ji *j, const json_t *list) {
    ji_val out = ji_of_list(nb_ji_new_list(j));
    for (size_t i = 0; i < json_array_size(list); i++)
        nb_ji_push(j, out.l, message(j, json_array_get(list, i), i < NB_JINJA_DATA ? (int)i + 1 : 0));
    return out;
}

static ji_scope *global_scope(ji *j, const json_t *variables) {
    ji_scope *s = nb_ji_scope(j, NULL);
    for (void *it = json_object_iter((json_t *)(uintptr_t)variables); it;
         it = json_object_iter_next((json_t *)(uintptr_t)variables, it)) {
        const char *name = json_object_iter_key(it);
        const json_t *v = json_object_iter_value(it);
        bool data = !strcmp(name, "tools") || !strcmp(name, "documents");
        nb_ji_set(j, s, nb_ji_cstr(j, name), !strcmp(name, "messages") && json_is_array(v)
                                                 ? messages(j, v)
                                                 : nb_ji_from_json(j, v, data ? NB_JINJA_DATA + 1 : 0));
    }
    return s;
}

static void hand_over(const ji_builder *b, nb_jinja_output *out) {
    nb_text_add(&out->text, b->s ? b->s : "", b->n);
    out->runs = nb_calloc(b->n_runs + 1, sizeof *out->runs);
    out->n_runs = (int)b->n_runs;
    for (size_t i = 0; i < b->n_runs; i++) {
        ji_run r = b->runs[i];
        out->runs[i] = (nb_jinja_run){r.begin, r.end, (r.origin & ~JI_GENERATION) - 1, (r.origin & JI_GENERATION) != 0};
    }
}

nb_status nb_jinja_render(const nb_jinja *t, const nb_jinja_input *in, nb_jinja_output *out) {
    *out = (nb_jinja_output){0};
    ji *j = nb_calloc(1, sizeof *j);
    j->limits = in->limits ? *in->limits : nb_jinja_default_limits;
    j->memory_limit = j->limits.memory;
    j->now = in->now;
    j->line = j->column = 1;
    nb_status st = NB_OK;
    if (!setjmp(j->out)) {
        ji_builder *b = nb_ji_alloc(j, 1, sizeof *b);
        *b = nb_ji_builder(j);
        j->output = b;
        nb_ji_exec(j, t->body, nb_ji_scope(j, global_scope(j, in->variables)));
        hand_over(b, out);
    } else {
        st = failed(j);
    }
    nb_ji_free_blocks(j->blocks);
    free(j);
    return st;
}

void nb_jinja_output_free(nb_jinja_output *out) {
    nb_text_free(&out->text);
    free(out->runs);
    *out = (nb_jinja_output){0};
}
