#include "data/chat_jinja.h"

#include <stdlib.h>
#include <string.h>

enum { END_TOKEN_BYTES = 96 }; /* no end token is longer */

/* ---- input ---- */

/* The special tokens a tokenizer has; one that it lacks stays undefined. tools is None, as when no tools are given. */
static json_t *variables(const nb_tokenizer *t, json_t *messages, bool add_generation_prompt) {
    const struct {
        const char *name;
        int32_t id;
    } roles[] = {{"bos_token", nb_tokenizer_bos(t)}, {"eos_token", nb_tokenizer_eos(t)},
                 {"pad_token", nb_tokenizer_pad(t)}, {"unk_token", nb_tokenizer_unk(t)}};
    json_t *v = json_pack("{s:O, s:b, s:n, s:n}", "messages", messages, "add_generation_prompt",
                          (int)add_generation_prompt, "tools", "documents");
    for (int i = 0; i < NB_LEN(roles); i++) {
        const char *token = roles[i].id < 0 ? NULL : nb_tokenizer_token(t, roles[i].id);
        if (token) json_object_set_new(v, roles[i].name, json_string(token));
    }
    return v;
}

static nb_status run(const nb_jinja *j, const nb_tokenizer *t, json_t *messages, bool generate, nb_jinja_output *out) {
    json_t *v = variables(t, messages, generate);
    nb_jinja_input in = {.variables = v};
    nb_status st = nb_jinja_render(j, &in, out);
    /* Some templates cannot do without a date; every day the same one, so that a row's tokens stay what they are. */
    static const struct tm day = {.tm_year = 2024 - 1900, .tm_mon = 6, .tm_mday = 26, .tm_wday = 5, .tm_yday = 207};
    if (st != NB_OK && strstr(nb_message(), "'strftime_now' is undefined")) {
        in.now = &day;
        st = nb_jinja_render(j, &in, out);
    }
    json_decref(v);
    return st;
}

static nb_status to_json(const nb_message_t *m, int n, json_t **out) {
    *out = json_array();
    for (int i = 0; i < n; i++) {
        json_t *one = json_pack("{s:s, s:s}", "role", m[i].role, "content", m[i].content);
        if (!one) {
            json_decref(*out);
            *out = NULL;
            return nb_fail(NB_EINPUT, "message %d is not UTF-8", i + 1);
        }
        json_array_append_new(*out, one);
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

typedef struct turn { /* runs [first, last] of the output are of one message, and nothing of another between them */
    int first, last, message;
    size_t begin, end, after; /* as in nb_chat_span; after: where the next message's text begins */
    size_t end_of_turn;
    int32_t end_id;
    bool untrained;
} turn;

typedef struct rendering {
    const nb_jinja *j;
    const nb_tokenizer *t;
    const nb_message_t *m;
    json_t *messages;
    nb_jinja_output out;
    turn *turns;
    int n_turns, cap_turns;
    bool generation; /* the template marks what is trained */
} rendering;

static bool is_assistant(const rendering *r, const turn *u) {
    return !strcmp(r->m[u->message].role, "assistant");
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
        r->turns[r->n_turns++] = (turn){i, i, run->message, run->begin, run->end, r->out.text.n, run->end, -1, false};
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
    if (run(r->j, r->t, before, true, &prompt) == NB_OK) {
        int last = prompt.n_runs - 1;
        while (last >= 0 && prompt.runs[last].message < 0) last--;
        bool same = last < 0 ? previous < 0 : previous >= 0 && prompt.runs[last].message == runs[previous].message;
        size_t tail = last < 0 ? 0 : prompt.runs[last].end, n = prompt.text.n - tail;
        if (same && n <= u->begin - from && !memcmp(prompt.text.s + tail, r->out.text.s + from, n)) u->begin = from + n;
    }
    nb_jinja_output_free(&prompt);
    json_decref(before);
}

/* A turn that {% generation %} marks begins and ends with its block. */
static void find_generation(const rendering *r, turn *u) {
    const nb_jinja_run *runs = r->out.runs;
    int first = u->first, last = u->last;
    u->untrained = !runs[first].generation;
    if (u->untrained) return;
    while (first > 0 && runs[first - 1].generation && runs[first - 1].end == runs[first].begin) first--;
    while (last + 1 < r->out.n_runs && runs[last + 1].generation && runs[last + 1].begin == runs[last].end &&
           runs[last + 1].message < 0)
        last++;
    u->begin = runs[first].begin;
    u->end_of_turn = runs[last].end > u->end ? runs[last].end : u->end;
}

/* Where turns end: assistant turns with whatever special token comes next; others only with the same one, because
 * what follows them may be the header of the answer. */
static void find_ends(rendering *r) {
    int32_t id = -1;
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
}

/* A turn as spans: its text, and around it what the template writes within the turn. */
static void add_spans(const rendering *r, const turn *u, size_t base, nb_chat_span **spans, int *n, int *cap) {
    size_t at = u->begin;
    for (int i = u->first; i <= u->last; i++) {
        const nb_jinja_run *run = &r->out.runs[i];
        if (run->message < 0) continue;
        nb_chat_span s = {.message = u->message, .untrained = u->untrained};
        if (at < run->begin) {
            s.begin = base + at;
            s.end = s.end_of_turn = base + run->begin;
            s.template_text = true;
            NB_GROW(*spans, *n, *cap);
            (*spans)[(*n)++] = s;
        }
        s.begin = base + run->begin;
        s.end = s.end_of_turn = base + run->end;
        s.template_text = false;
        if (i == u->last) s.end_of_turn = base + u->end_of_turn;
        NB_GROW(*spans, *n, *cap);
        (*spans)[(*n)++] = s;
        at = run->end;
    }
}

static void close_rendering(rendering *r) {
    nb_jinja_output_free(&r->out);
    json_decref(r->messages);
    free(r->turns);
}

nb_status nb_chat_jinja_render(const nb_jinja *j, const nb_tokenizer *t, const nb_message_t *m, int n,
                               bool add_generation_prompt, nb_text *text, nb_chat_span **spans, int *n_spans) {
    rendering r = {.j = j, .t = t, .m = m};
    int cap = 0;
    *spans = NULL;
    *n_spans = 0;
    nb_status st = to_json(m, n, &r.messages);
    if (st == NB_OK) st = run(j, t, r.messages, add_generation_prompt, &r.out);
    if (st == NB_OK) {
        find_turns(&r);
        find_ends(&r);
        for (int i = 0; i < r.n_turns; i++) {
            if (is_assistant(&r, &r.turns[i])) {
                if (r.generation) find_generation(&r, &r.turns[i]);
                else find_begin(&r, &r.turns[i]);
            }
            add_spans(&r, &r.turns[i], text->n, spans, n_spans, &cap);
        }
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
        rendering r = {.j = j, .t = t, .m = probe + skip};
        if (to_json(r.m, NB_LEN(probe) - skip, &r.messages) == NB_OK &&
            run(j, t, r.messages, false, &r.out) == NB_OK) {
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
