#include "data/chat_jinja.h"

#include <stdlib.h>
#include <string.h>

enum { END_TOKEN_BYTES = 96 }; /* no end token is longer */

/* ---- input ---- */

typedef struct turn { /* runs [first, last] of the output are of one message, and nothing of another between them */
    int first, last, message;
    size_t begin, end, after; /* after: where the next message's text begins */
    size_t end_of_turn, tail; /* up to tail the template writes within the turn */
    int32_t end_id;
} turn;

typedef struct rendering {
    const nb_jinja *j;
    const nb_tokenizer *t;
    const nb_message_t *m;
    int n;
    const nb_chat_extra *extra;
    json_t *messages;
    nb_jinja_output out;
    turn *turns;
    int n_turns, cap_turns;
    bool generation; /* the template marks what is trained */
} rendering;

static void set(json_t *v, const char *name, const json_t *value) {
    if (value) json_object_set(v, name, (json_t *)(uintptr_t)value);
    else json_object_set_new(v, name, json_null());
}

/* The special tokens a tokenizer has; one that it lacks stays undefined. tools is None when no tools are given. */
static json_t *variables(const rendering *r, const json_t *messages, bool add_generation_prompt) {
    const nb_tokenizer *t = r->t;
    const struct {
        const char *name;
        int32_t id;
    } roles[] = {{"bos_token", nb_tokenizer_bos(t)}, {"eos_token", nb_tokenizer_eos(t)},
                 {"pad_token", nb_tokenizer_pad(t)}, {"unk_token", nb_tokenizer_unk(t)}};
    json_t *v = json_object();
    set(v, "messages", messages);
    set(v, "tools", r->extra ? r->extra->tools : NULL);
    set(v, "documents", r->extra ? r->extra->documents : NULL);
    json_object_set_new(v, "add_generation_prompt", json_boolean(add_generation_prompt));
    for (int i = 0; i < NB_LEN(roles); i++) {
        const char *token = roles[i].id < 0 ? NULL : nb_tokenizer_token(t, roles[i].id);
        if (token) json_object_set_new(v, roles[i].name, json_string(token));
    }
    return v;
}

static nb_status run(const rendering *r, const json_t *messages, bool generate, nb_jinja_output *out) {
    json_t *v = variables(r, messages, generate);
    nb_jinja_input in = {.variables = v};
    nb_status st = nb_jinja_render(r->j, &in, out);
    /* Some templates cannot do without a date; every day the same one, so that a row's tokens stay what they are. */
    static const struct tm day = {.tm_year = 2024 - 1900, .tm_mon = 6, .tm_mday = 26, .tm_wday = 5, .tm_yday = 207};
    if (st != NB_OK && strstr(nb_message(), "'strftime_now' is undefined")) {
        in.now = &day;
        st = nb_jinja_render(r->j, &in, out);
    }
    json_decref(v);
    return st;
}

static nb_status to_json(const nb_message_t *m, int n, json_t **out) {
    *out = json_array();
    for (int i = 0; i < n; i++) {
        json_t *one = m[i].fields ? json_copy((json_t *)(uintptr_t)m[i].fields) : json_object();
        bool bad = json_object_set_new(one, "role", json_string(m[i].role)) ||
                   (m[i].content && json_object_set_new(one, "content", json_string(m[i].content)));
        json_array_append_new(*out, one);
        if (bad) {
            json_decref(*out);
            *out = NULL;
            return nb_fail(NB_EINPUT, "message %d is not UTF-8", i + 1);
        }
    }
    return NB_OK;
}

/* ---- turns ---- */

/* The special token that begins at text[at..end), behind white space; its id, and the position after it. */
static int32_t token_at(const nb_tokenizer *t, const nb_text *text, size_t at, size_t end, size_t *after) {
    nb_ids ids = {0};
    int32_t id = -1;
    int n_eos;
    const int32_t *eos = nb_tokenizer_eos_ids(t, &n_eos);
    while (at < end && strchr(" \t\r\n", text->s[at])) at++;
    if (end > at + END_TOKEN_BYTES) end = at + END_TOKEN_BYTES;
    while (end > at && end < text->n && ((unsigned char)text->s[end] & 0xC0) == 0x80) end--;
    if (at < end && nb_tokenizer_encode(t, text->s + at, end - at, 0, &ids) == NB_OK && ids.n) {
        const char *token = nb_tokenizer_token(t, ids.id[0]);
        bool special = nb_tokenizer_is_special(t, ids.id[0]);
        for (int i = 0; i < n_eos; i++) special |= eos[i] == ids.id[0];
        size_t n = token ? strlen(token) : 0;
        if (special && n && n <= end - at && !memcmp(token, text->s + at, n)) id = ids.id[0], *after = at + n;
    }
    nb_ids_free(&ids);
    return id;
}

static bool is_assistant(const rendering *r, const turn *u) {
    return u->message != NB_JINJA_DATA && !strcmp(r->m[u->message].role, "assistant");
}

static void find_turns(rendering *r) {
    for (int i = 0; i < r->out.n_runs; i++) {
        const nb_jinja_run *run = &r->out.runs[i];
        turn *last = r->n_turns ? &r->turns[r->n_turns - 1] : NULL;
        r->generation |= run->generation;
        if (run->message < 0) continue;
        if (last && last->message == run->message) {
            last->last = i;
            last->end = run->end;
            continue;
        }
        if (last) last->after = run->begin;
        NB_GROW(r->turns, r->n_turns, r->cap_turns);
        r->turns[r->n_turns++] = (turn){
            .first = i, .last = i, .message = run->message, .begin = run->begin, .end = run->end,
            .after = r->out.text.n, .end_id = -1};
    }
}

/* What the template writes behind the last message's text of the conversation so far when it asks for the next answer:
 * where that text stands in front of the answer's turn too, the turn begins behind it. */
static void find_begin(const rendering *r, turn *u) {
    nb_jinja_output prompt;
    json_t *before = json_array();
    const nb_jinja_run *runs = r->out.runs;
    int previous = u->first - 1;
    while (previous >= 0 && runs[previous].message < 0) previous--;
    size_t from = previous < 0 ? 0 : runs[previous].end;
    for (int i = 0; i < u->message; i++) json_array_append(before, json_array_get(r->messages, (size_t)i));
    if (run(r, before, true, &prompt) == NB_OK) {
        int last = prompt.n_runs - 1;
        while (last >= 0 && prompt.runs[last].message < 0) last--;
        bool same = last < 0 ? previous < 0 : previous >= 0 && prompt.runs[last].message == runs[previous].message;
        size_t tail = last < 0 ? 0 : prompt.runs[last].end, n = prompt.text.n - tail;
        if (same && n <= u->begin - from && !memcmp(prompt.text.s + tail, r->out.text.s + from, n)) u->begin = from + n;
    }
    nb_jinja_output_free(&prompt);
    json_decref(before);
}

/* Behind the last text of a message's tool calls stands more of the template's, brackets and tags, and then the token
 * that ends the turn: the first one in [u->end, u->after) that ends generation, or `usual`, which ends other turns. */
static int32_t end_of_calls(const rendering *r, turn *u, int32_t usual) {
    nb_ids ids = {0};
    int32_t found = -1;
    int n_eos;
    const int32_t *eos = nb_tokenizer_eos_ids(r->t, &n_eos);
    if (nb_tokenizer_encode(r->t, r->out.text.s + u->end, u->after - u->end, 0, &ids) != NB_OK) ids.n = 0;
    for (int64_t i = 0; i < ids.n && found < 0; i++) {
        bool ends = ids.id[i] == usual;
        for (int k = 0; k < n_eos; k++) ends |= eos[k] == ids.id[i];
        if (!ends) continue;
        found = ids.id[i];
        u->tail = u->end + (size_t)ids.start[i];
        u->end_of_turn = u->tail + strlen(nb_tokenizer_token(r->t, found));
    }
    nb_ids_free(&ids);
    return found;
}

static bool has_calls(const rendering *r, const turn *u) {
    return is_assistant(r, u) && json_object_get(r->m[u->message].fields, "tool_calls");
}

/* Where turns end: assistant turns with whatever special token comes next; others only with the same one, because
 * what follows them may be the header of the answer. */
static void find_ends(rendering *r) {
    int32_t id = -1;
    for (int i = 0; i < r->n_turns; i++) r->turns[i].tail = r->turns[i].end_of_turn = r->turns[i].end;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < r->n_turns; i++) {
            turn *u = &r->turns[i];
            size_t after = u->end;
            if (is_assistant(r, u) != (pass == 0)) continue;
            u->end_id = token_at(r->t, &r->out.text, u->end, u->after, &after);
            if (u->end_id < 0 || (pass == 1 && u->end_id != id)) continue;
            u->end_of_turn = after;
            if (pass == 0) id = u->end_id;
        }
    for (int i = 0; i < r->n_turns; i++) {
        turn *u = &r->turns[i];
        if (!has_calls(r, u) || u->end_id >= 0) continue;
        nb_text none = {0};
        if (id < 0) nb_chat_jinja_end(r->j, r->t, &id, &none);
        nb_text_free(&none);
        u->end_id = end_of_calls(r, u, id);
    }
}

typedef struct span_list {
    nb_chat_span *v;
    int n, cap;
    size_t base; /* where the rendering begins in the text */
} span_list;

static void add_span(span_list *l, const turn *u, size_t begin, size_t end, bool template_text, bool untrained) {
    NB_GROW(l->v, l->n, l->cap);
    l->v[l->n++] = (nb_chat_span){.begin = l->base + begin, .end = l->base + end, .end_of_turn = l->base + end,
                                  .template_text = template_text, .untrained = untrained,
                                  .message = u->message == NB_JINJA_DATA ? -1 : u->message};
}

/* A turn as spans: its text, and around it what the template writes within the turn. */
static void add_spans(const rendering *r, const turn *u, span_list *l) {
    size_t at = u->begin;
    for (int i = u->first; i <= u->last; i++) {
        const nb_jinja_run *run = &r->out.runs[i];
        if (run->message < 0) continue;
        if (at < run->begin) add_span(l, u, at, run->begin, true, false);
        add_span(l, u, run->begin, run->end, false, false);
        at = run->end;
    }
    if (at < u->tail) add_span(l, u, at, u->tail, true, false);
    l->v[l->n - 1].end_of_turn = l->base + u->end_of_turn;
}

/* Is run i - 1 the template's, in the same {% generation %} block as run i? */
static bool goes_on(const nb_jinja_run *runs, int i) {
    return runs[i - 1].generation && runs[i - 1].message < 0 && runs[i].generation && runs[i - 1].end == runs[i].begin;
}

/* A turn whose template says by {% generation %} what of it is trained: that and no more. What the template writes last
 * in such a block is the turn's end. Returns the first run behind the turn. */
static int add_generation(const rendering *r, const turn *u, span_list *l) {
    const nb_jinja_run *runs = r->out.runs;
    int first = u->first, next = u->last + 1;
    while (first > 0 && goes_on(runs, first)) first--;
    for (int i = first; i <= u->last; i++)
        add_span(l, u, runs[i].begin, runs[i].end, runs[i].message < 0, !runs[i].generation);
    for (; next < r->out.n_runs && runs[next].generation && runs[next].message < 0 && runs[next - 1].generation &&
           runs[next].begin == runs[next - 1].end; next++)
        l->v[l->n - 1].end_of_turn = l->base + runs[next].end;
    return next;
}

/* Blocks among runs [from, to) that hold nothing of a message: of assistants whose content is empty, the first ones
 * behind message `last`. */
static void add_empty_turns(const rendering *r, int from, int to, int last, span_list *l) {
    const nb_jinja_run *runs = r->out.runs;
    for (int i = from; i < to; i++) {
        if (!runs[i].generation || runs[i].message >= 0) continue;
        do last++;
        while (last < r->n && strcmp(r->m[last].role, "assistant"));
        if (last >= r->n) return;
        add_span(l, &(turn){.message = last}, runs[i].begin, runs[i].begin, true, false);
        l->v[l->n - 1].end_of_turn = l->base + runs[i].end;
    }
}

/* All turns of a template with {% generation %}. */
static void add_marked(const rendering *r, span_list *l) {
    int at = 0, last = -1;
    for (int i = 0; i < r->n_turns; i++) {
        const turn *u = &r->turns[i];
        bool assistant = is_assistant(r, u);
        int first = u->first;
        while (assistant && first > at && goes_on(r->out.runs, first)) first--;
        add_empty_turns(r, at, first, last, l);
        at = u->last + 1;
        if (assistant) at = add_generation(r, u, l);
        else add_spans(r, u, l);
        if (u->message != NB_JINJA_DATA) last = u->message;
    }
    add_empty_turns(r, at, r->out.n_runs, last, l);
}

static void close_rendering(rendering *r) {
    nb_jinja_output_free(&r->out);
    json_decref(r->messages);
    free(r->turns);
}

nb_status nb_chat_jinja_render(const nb_jinja *j, const nb_tokenizer *t, const nb_message_t *m, int n,
                               const nb_chat_extra *extra, bool add_generation_prompt, nb_text *text,
                               nb_chat_span **spans, int *n_spans) {
    rendering r = {.j = j, .t = t, .m = m, .n = n, .extra = extra};
    span_list l = {.base = text->n};
    *spans = NULL;
    *n_spans = 0;
    nb_status st = to_json(m, n, &r.messages);
    if (st == NB_OK) st = run(&r, r.messages, add_generation_prompt, &r.out);
    if (st == NB_OK) {
        find_turns(&r);
        find_ends(&r);
        if (r.generation) add_marked(&r, &l);
        for (int i = 0; !r.generation && i < r.n_turns; i++) {
            if (is_assistant(&r, &r.turns[i])) find_begin(&r, &r.turns[i]);
            add_spans(&r, &r.turns[i], &l);
        }
        *spans = l.v;
        *n_spans = l.n;
        nb_text_add(text, r.out.text.s, r.out.text.n);
    }
    close_rendering(&r);
    return st;
}

void nb_chat_jinja_end(const nb_jinja *j, const nb_tokenizer *t, int32_t *id, nb_text *text) {
    static const nb_message_t probe[] = {{"system", "s"}, {"user", "u"}, {"assistant", "a"}};
    *id = -1;
    /* with a system message, and for templates that refuse one without */
    for (int skip = 0; skip < 2 && *id < 0 && !text->n; skip++) {
        rendering r = {.j = j, .t = t, .m = probe + skip, .n = NB_LEN(probe) - skip};
        if (to_json(r.m, r.n, &r.messages) == NB_OK && run(&r, r.messages, false, &r.out) == NB_OK) {
            find_turns(&r);
            find_ends(&r);
            const turn *u = r.n_turns ? &r.turns[r.n_turns - 1] : NULL;
            if (u && is_assistant(&r, u)) {
                *id = u->end_id;
                const char *s = r.out.text.s + u->end;
                s += strspn(s, " \t\r\n");
                if (*id < 0) nb_text_add(text, s, strcspn(s, " \t\r\n"));
            }
        }
        close_rendering(&r);
    }
}
