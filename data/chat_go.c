/* A chat template as Ollama's Modelfile has them: Go's text/template over .System and .Messages (.Role, .Content).
 *
 * Nothing is translated. Conversations of marked messages are rendered, and what stands between two messages is taken for
 * what always stands between messages of these roles. Other conversations, put together from these parts, then have to be
 * what the template renders; a template for which that is not so has no Go form here. */
#include "data/chat_go.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

enum { SYSTEM, USER, ASSISTANT, MOST = 8 };
static const char *const roles[] = {"system", "user", "assistant"};

/* Text in front of the first user message; with a system message before and behind it; before an assistant's; before
 * later user messages; behind the last user message, for the answer. */
typedef struct parts {
    char *first, *system, *behind_system, *assistant, *user, *generation;
    bool late; /* the system message is with the last user message, not with the first */
} parts;

static void parts_free(parts *p) {
    free(p->first), free(p->system), free(p->behind_system), free(p->assistant), free(p->user), free(p->generation);
}

/* Roles as a word of s, u and a; messages are their role and number, which no template writes. */
typedef struct talk {
    nb_message_t m[MOST];
    char content[MOST][32];
    int n;
} talk;

static void talk_make(talk *t, const char *word) {
    t->n = 0;
    for (const char *p = word; *p; p++, t->n++) {
        int role = *p == 's' ? SYSTEM : *p == 'u' ? USER : ASSISTANT;
        snprintf(t->content[t->n], sizeof t->content[0], "Message%dOf%s", t->n, roles[role]);
        t->m[t->n] = (nb_message_t){roles[role], t->content[t->n]};
    }
}

static nb_status render(const nb_chat_template *c, const nb_tokenizer *t, const talk *k, nb_text *text) {
    nb_chat_span *spans;
    int n;
    NB_TRY(nb_chat_render(c, t, k->m, k->n, strcmp(k->m[k->n - 1].role, "assistant") != 0, text, &spans, &n));
    free(spans);
    nb_text_add(text, "", 0);
    return NB_OK;
}

/* The text up to the message, and *at moved behind it; NULL: it is not there. */
static char *up_to(const char **at, const char *message) {
    const char *found = strstr(*at, message);
    if (!found) return NULL;
    char *part = nb_strndup(*at, (size_t)(found - *at));
    *at = found + strlen(message);
    return part;
}

static bool take(parts *p, const nb_chat_template *c, const nb_tokenizer *t) {
    talk k;
    nb_text text = {0};
    talk_make(&k, "uau");
    bool good = render(c, t, &k, &text) == NB_OK;
    const char *at = text.s;
    if (good) {
        p->first = up_to(&at, k.content[0]);
        p->assistant = p->first ? up_to(&at, k.content[1]) : NULL;
        p->user = p->assistant ? up_to(&at, k.content[2]) : NULL;
        p->generation = nb_strdup(at);
        good = p->user != NULL;
    }
    text.n = 0;
    talk_make(&k, "suau");
    if (good && render(c, t, &k, &text) == NB_OK && strstr(text.s, k.content[0])) {
        p->late = strstr(text.s, k.content[0]) > strstr(text.s, k.content[1]);
        at = text.s;
        if (p->late) free(up_to(&at, k.content[2]));
        p->system = up_to(&at, k.content[0]);
        p->behind_system = up_to(&at, k.content[p->late ? 3 : 1]);
        good = p->system && p->behind_system && (!p->late || !strcmp(p->system, p->user));
    }
    nb_text_free(&text);
    return good;
}

/* What the Go template below makes of the conversation. */
static void put_together(const parts *p, const talk *k, nb_text *out) {
    bool system = !strcmp(k->m[0].role, "system"), later = false;
    nb_text_puts(out, system && !p->late ? p->system : p->first);
    if (system && !p->late) nb_text_puts(out, k->content[0]), nb_text_puts(out, p->behind_system);
    for (int i = system; i < k->n; i++) {
        bool user = !strcmp(k->m[i].role, "user");
        if (!user) nb_text_puts(out, p->assistant);
        else if (later) nb_text_puts(out, p->user);
        if (user && system && p->late && k->n - i <= 2)
            nb_text_puts(out, k->content[0]), nb_text_puts(out, p->behind_system);
        nb_text_puts(out, k->content[i]);
        later = true;
        if (user && i == k->n - 1) nb_text_puts(out, p->generation);
    }
    nb_text_add(out, "", 0);
}

static bool agrees(const parts *p, const nb_chat_template *c, const nb_tokenizer *t) {
    static const char *const words[] = {"u", "uau", "uauau", "uauauau", "su", "suau", "suauau"};
    bool good = true;
    for (int i = 0; i < NB_LEN(words) && good; i++) {
        talk k;
        nb_text theirs = {0}, ours = {0};
        if (words[i][0] == 's' && !p->system) break;
        talk_make(&k, words[i]);
        good = render(c, t, &k, &theirs) == NB_OK;
        put_together(p, &k, &ours);
        good = good && ours.n == theirs.n && !memcmp(ours.s, theirs.s, ours.n);
        nb_text_free(&theirs), nb_text_free(&ours);
    }
    return good;
}

/* Text between actions: "{{" would begin one, and three quotes would end the Modelfile's text. */
static void put(nb_text *out, const char *text) {
    static const struct { const char *text, *go; } special[] = {{"{{", "{{ \"{{\" }}"}, {"\"\"", "{{ `\"` }}\""}};
    for (; *text; text++) {
        int i = 0;
        while (i < 2 && strncmp(text, special[i].text, strlen(special[i].text)) != 0) i++;
        if (i == 2) nb_text_add(out, text, 1);
        else nb_text_puts(out, special[i].go), text += strlen(special[i].text) - 1;
    }
}

static void put_go(const parts *p, nb_text *out) {
    if (p->system && !p->late) {
        nb_text_puts(out, "{{ if .System }}");
        put(out, p->system);
        nb_text_puts(out, "{{ .System }}");
        put(out, p->behind_system);
        nb_text_puts(out, "{{ else }}");
        put(out, p->first);
        nb_text_puts(out, "{{ end }}");
    } else {
        put(out, p->first);
    }
    nb_text_puts(out, "{{ $later := false }}{{ range $i, $_ := .Messages }}{{ $left := len (slice $.Messages $i) }}"
                      "{{ if eq .Role \"user\" }}{{ if $later }}");
    put(out, p->user);
    nb_text_puts(out, "{{ end }}");
    if (p->late) {
        nb_text_puts(out, "{{ if and $.System (le $left 2) }}{{ $.System }}");
        put(out, p->behind_system);
        nb_text_puts(out, "{{ end }}");
    }
    nb_text_puts(out, "{{ .Content }}{{ $later = true }}{{ if eq $left 1 }}");
    put(out, p->generation);
    nb_text_puts(out, "{{ end }}{{ else if eq .Role \"assistant\" }}");
    put(out, p->assistant);
    nb_text_puts(out, "{{ .Content }}{{ $later = true }}{{ end }}{{ end }}");
}

/* Ollama puts the BOS before the whole text by itself where the model's tokenizer does. false: there is none to drop. */
static bool drop_bos(char *text, const char *bos) {
    size_t n = strlen(bos);
    if (strncmp(text, bos, n) != 0) return false;
    memmove(text, text + n, strlen(text + n) + 1);
    return true;
}

bool nb_chat_go(const nb_chat_template *c, const nb_tokenizer *t, nb_text *out, nb_chat_go_form *form) {
    parts p = {0};
    bool good = take(&p, c, t) && agrees(&p, c, t);
    *form = (nb_chat_go_form){.system = p.system != NULL};
    if (good && nb_tokenizer_bos(t) >= 0 && nb_tokenizer_adds_bos(t)) {
        const char *bos = nb_tokenizer_token(t, nb_tokenizer_bos(t));
        form->more_bos = !drop_bos(p.first, bos);
        if (p.system && !p.late) drop_bos(p.system, bos);
    }
    if (good) put_go(&p, out);
    parts_free(&p);
    return good;
}
