#include "data/chat.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/nearest.h"
#include "data/chat_jinja.h"
#include "data/chat_known.h"

enum { TRIM_NONE, TRIM_ASSISTANT, TRIM_ALL };
/* Where a system message goes: a turn of its own, or in front of the first or the last user message. */
enum { SYSTEM_TURN, SYSTEM_FIRST_USER, SYSTEM_LAST_USER };

/* Patterns: %r role, %c content, %s system message and an empty line (or nothing), %b BOS, %e end-of-sequence;
 * %[ and %] enclose the token that ends the turn; %< marks that a turn's text begins before %c: the generator's prompt
 * ends there, so the model must learn to write what follows. */
struct nb_chat_template {
    const char *name;
    const char *begin;          /* before the first turn */
    const char *system;         /* a first message of role system; NULL: like any turn */
    const char *user, *assistant, *other; /* NULL: the template has no such role */
    const char *join;           /* between turns, and before the generation header */
    const char *generation;     /* the header that starts an assistant turn */
    const char *default_system; /* when there is no system message; NULL: none */
    int trim, system_goes;
    bool alternate;             /* user and assistant must take turns */
    const char *jinja;          /* renders the same; our own text */
    nb_jinja *engine;           /* not NULL: `jinja` is run, and nothing above counts */
    struct nb_chat_template *next;
    char *end; /* of an engine's turns, where it is no token of the tokenizer */
};

#define CHATML "<|im_start|>%r\n%c%[<|im_end|>%]\n"
#define LLAMA3 "<|start_header_id|>%r<|end_header_id|>\n\n%c%[<|eot_id|>%]"
#define LLAMA3_ASSISTANT "<|start_header_id|>assistant<|end_header_id|>\n\n"
#define ZEPHYR "<|%r|>\n%c%[%e%]\n"
#define GENERATION(text) "{% if add_generation_prompt %}{{ '" text "' }}{% endif %}"

static const char chatml_jinja[] =
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}" GENERATION("<|im_start|>assistant\\n");
static const char llama3_jinja[] = "{{ bos_token }}{% for message in messages %}"
                                   "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
                                   "message['content'] | trim + '<|eot_id|>' }}"
                                   "{% endfor %}" GENERATION("<|start_header_id|>assistant<|end_header_id|>\\n\\n");
static const char zephyr_jinja[] =
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}" GENERATION("<|assistant|>\\n");
static const char alpaca_jinja[] =
    "{% if messages[0]['role'] != 'system' %}{{ 'Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.\\n\\n' }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token }}{% endif %}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}" GENERATION("\\n\\n### Response:\\n");
/* The published template drops the system message when the conversation ends with the assistant; training on
 * such rows needs it where the generator will have it, so here it stays with the last user message. */
static const char mistral_jinja[] =
    "{% set ns = namespace(last=-1) %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.index0 == ns.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}"
    "{% endif %}{{ message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}";

static const nb_chat_template templates[] = {
    {.name = "chatml",
     .begin = "",
     .user = CHATML,
     .assistant = CHATML,
     .other = CHATML,
     .join = "",
     .generation = "<|im_start|>assistant\n",
     .jinja = chatml_jinja},
    {.name = "llama3",
     .begin = "%b",
     .user = LLAMA3,
     .assistant = LLAMA3,
     .other = LLAMA3,
     .join = "",
     .generation = LLAMA3_ASSISTANT,
     .trim = TRIM_ALL,
     .jinja = llama3_jinja},
    {.name = "mistral",
     .begin = "%b",
     .user = "[INST] %s%c[/INST]",
     .assistant = "%< %c%[%e%]",
     .join = "",
     .generation = "",
     .trim = TRIM_ASSISTANT,
     .system_goes = SYSTEM_LAST_USER,
     .alternate = true,
     .jinja = mistral_jinja},
    {.name = "zephyr",
     .begin = "",
     .user = ZEPHYR,
     .assistant = ZEPHYR,
     .system = ZEPHYR,
     .join = "",
     .generation = "<|assistant|>\n",
     .jinja = zephyr_jinja},
    {.name = "alpaca",
     .begin = "",
     .system = "%c",
     .user = "### Instruction:\n%c",
     .assistant = "### Response:\n%c%[%e%]",
     .join = "\n\n",
     .generation = "### Response:\n",
     .jinja = alpaca_jinja,
     .default_system = "Below is an instruction that describes a task. "
                       "Write a response that appropriately completes the request."},
    /* Variants that real tokenizers bring. */
    {.name = "llama3.1",
     .begin = "%b",
     .user = LLAMA3,
     .assistant = LLAMA3,
     .other = LLAMA3,
     .join = "",
     .system = "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
               "Today Date: 26 Jul 2024\n\n%c%[<|eot_id|>%]",
     .generation = LLAMA3_ASSISTANT,
     .default_system = "",
     .trim = TRIM_ALL},
    {.name = "mistral_v1",
     .begin = "%b",
     .user = " [INST] %s%c [/INST]",
     .assistant = "%< %c%[%e%]",
     .join = "",
     .generation = "",
     .system_goes = SYSTEM_FIRST_USER,
     .alternate = true},
    {.name = "mistral_v0.2",
     .begin = "%b",
     .user = "[INST] %s%c [/INST]",
     .assistant = "%c%[%e%]",
     .join = "",
     .generation = "",
     .system_goes = SYSTEM_FIRST_USER,
     .alternate = true},
    {.name = "qwen2.5",
     .begin = "",
     .user = CHATML,
     .assistant = CHATML,
     .other = CHATML,
     .join = "",
     .generation = "<|im_start|>assistant\n",
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "smollm2",
     .begin = "",
     .user = CHATML,
     .assistant = CHATML,
     .other = CHATML,
     .join = "",
     .generation = "<|im_start|>assistant\n",
     .default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
};

static const nb_chat_template *by_name(const char *name) {
    for (int i = 0; i < NB_LEN(templates); i++)
        if (!strcmp(templates[i].name, name)) return &templates[i];
    return NULL;
}

/* ---- templates in Jinja: parsed once, kept until the program ends ---- */

static nb_chat_template *parsed;
static pthread_mutex_t parsed_lock = PTHREAD_MUTEX_INITIALIZER;

static nb_status from_text(const nb_chat_template **out, const char *jinja) {
    nb_chat_template *c;
    nb_status st = NB_OK;
    pthread_mutex_lock(&parsed_lock);
    for (c = parsed; c && strcmp(c->jinja, jinja); c = c->next) {}
    if (!c) {
        nb_jinja *engine;
        nb_hex hex;
        st = nb_jinja_parse(&engine, jinja, strlen(jinja));
        if (st == NB_OK) {
            nb_sha256_of(jinja, strlen(jinja), hex);
            c = NB_NEW(nb_chat_template);
            *c = (nb_chat_template){.name = nb_asprintf("jinja-%.12s", hex), .jinja = nb_strdup(jinja),
                                    .engine = engine, .next = parsed};
            parsed = c;
        }
    }
    pthread_mutex_unlock(&parsed_lock);
    *out = c;
    return st;
}

static nb_status from_file(const nb_chat_template **out, const char *path) {
    char *text;
    size_t n;
    NB_TRY(nb_file_read(path, &text, &n));
    nb_status st = strlen(text) == n ? from_text(out, text) : nb_fail(NB_EINPUT, "it holds a zero byte");
    free(text);
    return st == NB_OK ? st : nb_prefix(st, "%s", path);
}

static nb_status find_default(const nb_chat_template **out, const nb_tokenizer *t) {
    const char *jinja = nb_tokenizer_chat_template(t);
    if (!jinja)
        return nb_fail(
            NB_EINPUT,
            "chat_template: tokenizer_default, but this tokenizer brings no template; name one: chatml, llama3, "
            "mistral, zephyr, alpaca, jinja:FILE");
    nb_text canonical = {0}, ours = {0};
    nb_chat_canonical(jinja, &canonical);
    const char *known = nb_chat_known(&canonical);
    *out = known ? by_name(known) : NULL;
    for (int i = 0; !*out && i < NB_LEN(templates); i++) {
        if (!templates[i].jinja) continue;
        ours.n = 0;
        nb_chat_canonical(templates[i].jinja, &ours);
        if (ours.n == canonical.n && !memcmp(ours.s, canonical.s, ours.n)) *out = &templates[i];
    }
    nb_text_free(&canonical);
    nb_text_free(&ours);
    if (*out) return NB_OK;
    nb_status st = from_text(out, jinja);
    return st == NB_OK ? st : nb_prefix(st, "the tokenizer's own template");
}

nb_status nb_chat_template_find(const nb_chat_template **out, const char *name, const nb_tokenizer *t) {
    const char *names[NB_LEN(templates)];
    if (!name || !strcmp(name, "tokenizer_default")) return find_default(out, t);
    if (!strncmp(name, "jinja:", 6)) return from_file(out, name + 6);
    if (strstr(name, "{{") || strstr(name, "{%")) return from_text(out, name);
    *out = by_name(name);
    if (*out) return NB_OK;
    for (int i = 0; i < NB_LEN(templates); i++) names[i] = templates[i].name;
    const char *near = nb_nearest(name, names, NB_LEN(templates));
    return nb_fail(
        NB_EINPUT,
        "chat_template: unknown template \"%s\"%s%s%s (tokenizer_default, chatml, llama3, mistral, zephyr, alpaca, "
        "jinja:FILE)",
        name, near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

/* A template that is built in becomes the Jinja text it stands for: the tokenizer's, which knows more than the built-in
 * one, where that was recognized by it. */
static nb_status as_jinja(const nb_chat_template **c, const nb_tokenizer *t) {
    const nb_chat_template *own = NULL;
    const char *jinja = (*c)->jinja;
    if ((*c)->engine) return NB_OK;
    if (nb_tokenizer_chat_template(t) && find_default(&own, t) == NB_OK && own == *c)
        jinja = nb_tokenizer_chat_template(t);
    if (jinja) return from_text(c, jinja);
    return nb_fail(NB_EINPUT, "chat template %s is built in and renders text alone; name the model's own "
                   "(chat_template: tokenizer_default, or jinja:FILE)", (*c)->name);
}

/* Inside a block: true, not JSON's true, is what both call it; null alone differs. */
static void add_literal(nb_text *out, const json_t *v) {
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_null(v)) nb_text_puts(out, "none");
    else if (json_is_array(v)) {
        nb_text_puts(out, "[");
        json_array_foreach(v, i, item) {
            if (i) nb_text_puts(out, ", ");
            add_literal(out, item);
        }
        nb_text_puts(out, "]");
    } else if (json_is_object(v)) {
        nb_text_puts(out, "{");
        json_object_foreach((json_t *)(uintptr_t)v, key, item) {
            json_t *name = json_string(key);
            add_literal(out, name);
            nb_text_puts(out, ": ");
            add_literal(out, item);
            nb_text_puts(out, ", ");
            json_decref(name);
        }
        nb_text_puts(out, "}");
    } else {
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        nb_text_puts(out, text);
        free(text);
    }
}

static bool is_name(const char *s) {
    bool ok = *s && !(*s >= '0' && *s <= '9');
    for (; *s; s++)
        ok &= *s == '_' || (*s >= '0' && *s <= '9') || (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z');
    return ok;
}

nb_status nb_chat_template_preset(const nb_chat_template **out, const nb_chat_template *c, const nb_tokenizer *t,
                                  const char *kwargs) {
    static const char *const given[] = {"messages", "tools", "documents", "add_generation_prompt"};
    json_t *all = json_loads(kwargs, 0, NULL), *v;
    const char *name;
    nb_text text = {0};
    nb_status st = json_is_object(all) ? NB_OK : nb_fail(NB_EINPUT, "chat_template_kwargs should be a map");
    if (st == NB_OK) st = as_jinja(&c, t);
    json_object_foreach(all, name, v) {
        bool own = is_name(name);
        for (int i = 0; i < NB_LEN(given); i++) own &= strcmp(name, given[i]) != 0;
        if (st == NB_OK && !own) st = nb_fail(NB_EINPUT, "chat_template_kwargs: \"%s\" cannot be set there", name);
        nb_text_printf(&text, "{%% set %s = %s if %s is defined else ", name, name, name);
        add_literal(&text, v);
        nb_text_puts(&text, " +%}");
    }
    json_decref(all);
    if (st == NB_OK) {
        nb_text_puts(&text, c->jinja);
        st = from_text(out, text.s);
    }
    nb_text_free(&text);
    return st;
}

const char *nb_chat_template_name(const nb_chat_template *c) {
    return c->name;
}

const char *nb_chat_template_jinja(const nb_chat_template *c) {
    return c->jinja;
}

static const char *eos_of(const nb_tokenizer *t) {
    return nb_tokenizer_eos(t) < 0 ? NULL : nb_tokenizer_token(t, nb_tokenizer_eos(t));
}

static const char *engine_end(const nb_chat_template *c, const nb_tokenizer *t) {
    nb_text text = {0};
    int32_t id;
    nb_chat_jinja_end(c->engine, t, &id, &text);
    if (id < 0 && text.n) { /* `parsed` is where the template can be changed */
        pthread_mutex_lock(&parsed_lock);
        nb_chat_template *own = parsed;
        while (own != c) own = own->next;
        if (!own->end) own->end = nb_strdup(text.s);
        pthread_mutex_unlock(&parsed_lock);
    }
    nb_text_free(&text);
    return id < 0 ? c->end : nb_tokenizer_token(t, id);
}

const char *nb_chat_end_of_turn(const nb_chat_template *c, const nb_tokenizer *t) {
    if (c->engine) return engine_end(c, t);
    return strstr(c->assistant, "%[%e") ? eos_of(t) : strstr(c->assistant, "<|im_end|>") ? "<|im_end|>" : "<|eot_id|>";
}

/* ---- rendering ---- */

typedef struct render {
    const nb_chat_template *c;
    const nb_tokenizer *t;
    const nb_message_t *m, *system; /* system: put into a user turn, or NULL */
    nb_text *text;
    nb_chat_span *spans;
    int n_spans, cap_spans;
} render;

/* Length of the white space (as Python's str.strip sees it) at p, 0 if none. */
static size_t space_at(const unsigned char *p, size_t n) {
    if ((p[0] >= 9 && p[0] <= 13) || (p[0] >= 28 && p[0] <= 32)) return 1;
    if (n >= 2 && p[0] == 0xC2 && (p[1] == 0x85 || p[1] == 0xA0)) return 2;
    if (n < 3) return 0;
    unsigned code = p[0] >= 0xE1 && p[0] <= 0xE3 ? (p[0] & 15u) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u) : 0;
    return code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
           code == 0x205F || code == 0x3000 ? 3 : 0;
}

static void trim(const char **s, size_t *n) {
    size_t w;
    while (*n && (w = space_at((const unsigned char *)*s, *n)) > 0) *s += w, *n -= w;
    while (*n) {
        size_t back = 1;
        while (back < *n && back < 3 && ((unsigned char)(*s)[*n - back] & 0xC0) == 0x80) back++;
        if (space_at((const unsigned char *)*s + *n - back, back) != back) break;
        *n -= back;
    }
}

static void add_content(render *r, const nb_message_t *m, size_t begin, bool trimmed) {
    const char *s = m->content;
    size_t n = strlen(s);
    if (trimmed) trim(&s, &n);
    nb_text_add(r->text, s, n);
    NB_GROW(r->spans, r->n_spans, r->cap_spans);
    r->spans[r->n_spans++] = (nb_chat_span){
        .begin = begin, .end = r->text->n, .end_of_turn = r->text->n, .message = (int)(m - r->m)};
}

static void expand(render *r, const char *pattern, const nb_message_t *m) {
    bool trimmed = r->c->trim == TRIM_ALL || (r->c->trim == TRIM_ASSISTANT && m && !strcmp(m->role, "assistant"));
    size_t begin = SIZE_MAX;
    int span = -1;
    for (const char *p = pattern; *p; p++) {
        if (*p != '%') {
            nb_text_add(r->text, p, 1);
            continue;
        }
        switch (*++p) {
        case 'r': nb_text_puts(r->text, m->role); break;
        case 'c':
            span = r->n_spans;
            add_content(r, m, begin == SIZE_MAX ? r->text->n : begin, trimmed);
            break;
        case 's':
            if (r->system) {
                add_content(r, r->system, r->text->n, false);
                nb_text_puts(r->text, "\n\n");
            }
            break;
        case '<': begin = r->text->n; break;
        case 'b':
            if (nb_tokenizer_bos(r->t) >= 0) nb_text_puts(r->text, nb_tokenizer_token(r->t, nb_tokenizer_bos(r->t)));
            break;
        case 'e': nb_text_puts(r->text, eos_of(r->t)); break;
        case ']':
            if (span >= 0) r->spans[span].end_of_turn = r->text->n;
            break;
        default: break; /* %[ only marks where the end token begins: the content's end */
        }
    }
}

static bool is_role(const nb_message_t *m, const char *role) {
    return !strcmp(m->role, role);
}

static nb_status check(const nb_chat_template *c, const nb_tokenizer *t, const nb_message_t *m, int n) {
    if (!n) return nb_fail(NB_EINPUT, "the conversation has no messages");
    int turns = 0;
    for (int i = 0; i < n; i++) {
        bool system = is_role(&m[i], "system"), user = is_role(&m[i], "user");
        if (system && i == 0) continue;
        if (!c->other && !user && !is_role(&m[i], "assistant"))
            return nb_fail(
                NB_EINPUT,
                "message %d has the role \"%s\"; chat template %s has user and assistant, and a system message "
                "in front",
                i + 1, m[i].role, c->name);
        if (c->alternate && user != (turns++ % 2 == 0))
            return nb_fail(
                NB_EINPUT,
                "message %d is from \"%s\"; in chat template %s user and assistant must take turns, the user "
                "first",
                i + 1, m[i].role, c->name);
    }
    if (c->system_goes != SYSTEM_TURN && n == 1 && is_role(m, "system"))
        return nb_fail(NB_EINPUT,
                       "there is a system message only; chat template %s needs a user message to put it into", c->name);
    if (strstr(c->assistant, "%e") && !eos_of(t))
        return nb_fail(NB_EINPUT,
                       "chat template %s ends turns with the end-of-sequence token, which this tokenizer does not "
                       "have",
                       c->name);
    return NB_OK;
}

nb_status nb_chat_render(const nb_chat_template *c, const nb_tokenizer *t, const nb_message_t *m, int n,
                         bool add_generation_prompt, nb_text *text, nb_chat_span **spans, int *n_spans) {
    return nb_chat_render_extra(c, t, m, n, NULL, add_generation_prompt, text, spans, n_spans);
}

nb_status nb_chat_render_extra(const nb_chat_template *c, const nb_tokenizer *t, const nb_message_t *m, int n,
                               const nb_chat_extra *extra, bool add_generation_prompt, nb_text *text,
                               nb_chat_span **spans, int *n_spans) {
    bool rich = extra && (extra->tools || extra->documents);
    *spans = NULL;
    *n_spans = 0;
    for (int i = 0; i < n; i++)
        rich |= !m[i].content || json_object_get(m[i].fields, "tool_calls") || (c->other && is_role(&m[i], "tool"));
    if (rich) NB_TRY(as_jinja(&c, t));
    if (c->engine && !n) return nb_fail(NB_EINPUT, "the conversation has no messages");
    if (c->engine) return nb_chat_jinja_render(c->engine, t, m, n, extra, add_generation_prompt, text, spans, n_spans);
    NB_TRY(check(c, t, m, n));
    render r = {.c = c, .t = t, .m = m, .text = text};
    bool has_system = is_role(m, "system"), moved = has_system && c->system_goes != SYSTEM_TURN;
    int user = -1, turns = 0;
    for (int i = 0; i < n; i++)
        if (is_role(&m[i], "user") && (user < 0 || c->system_goes == SYSTEM_LAST_USER)) user = i;
    expand(&r, c->begin, NULL);
    if (!has_system && c->default_system) {
        static const nb_message_t none = {"system", NULL};
        /* The default is template text: put it where the content would be, as no message's span. */
        const char *pattern = c->system ? c->system : c->other, *at = strstr(pattern, "%c");
        char *head = nb_strndup(pattern, (size_t)(at - pattern));
        expand(&r, head, &none);
        nb_text_puts(text, c->default_system);
        expand(&r, at + 2, &none);
        free(head);
        turns++;
    }
    for (int i = moved ? 1 : 0; i < n; i++) {
        if (turns++) nb_text_puts(text, c->join);
        r.system = moved && i == user ? &m[0] : NULL;
        const char *pattern = is_role(&m[i], "user") ? c->user : is_role(&m[i], "assistant") ? c->assistant : c->other;
        expand(&r, i == 0 && has_system && c->system ? c->system : pattern, &m[i]);
    }
    if (add_generation_prompt) {
        nb_text_puts(text, c->join);
        nb_text_puts(text, c->generation);
    }
    *spans = r.spans;
    *n_spans = r.n_spans;
    return NB_OK;
}

/* ---- encoding ---- */

static nb_status encode_piece(const nb_tokenizer *t, const nb_text *text, size_t begin, size_t end, int flags,
                              nb_ids *out) {
    int64_t first = out->n;
    if (begin == end) return NB_OK;
    NB_TRY(nb_tokenizer_encode(t, text->s + begin, end - begin, flags, out));
    for (int64_t i = first; i < out->n; i++) out->start[i] += (int64_t)begin;
    return NB_OK;
}

static bool holds_token(const nb_tokenizer *t, const nb_text *text, const nb_chat_span *s, const nb_ids *ids,
                        int64_t i) {
    const char *token = nb_tokenizer_is_special(t, ids->id[i]) ? nb_tokenizer_token(t, ids->id[i]) : NULL;
    return token && memmem(text->s + s->begin, s->end - s->begin, token, strlen(token));
}

/* The whole text is tokenized at once, because a word may begin in template text and end in a message. Only a message
 * that came out with a control token in it is tokenized on its own instead, as plain text. */
nb_status nb_chat_encode(const nb_tokenizer *t, const nb_text *text, const nb_chat_span *spans, int n_spans,
                         nb_ids *out) {
    int64_t first = out->n, i = first;
    size_t done = 0;
    NB_TRY(nb_tokenizer_encode(t, text->s, text->n, 0, out));
    bool *plain = nb_calloc((size_t)n_spans + 1, sizeof *plain), any = false;
    for (int s = 0; s < n_spans; s++) {
        for (; i < out->n && (size_t)out->start[i] < spans[s].end; i++)
            if (!spans[s].template_text && (size_t)out->start[i] >= spans[s].begin &&
                holds_token(t, text, &spans[s], out, i))
                any = plain[s] = true;
    }
    nb_status st = NB_OK;
    if (any) out->n = first;
    for (int s = 0; any && s < n_spans && st == NB_OK; s++) {
        if (!plain[s]) continue;
        st = encode_piece(t, text, done, spans[s].begin, 0, out);
        if (st == NB_OK) st = encode_piece(t, text, spans[s].begin, spans[s].end, NB_TOK_PLAIN, out);
        done = spans[s].end;
    }
    if (any && st == NB_OK) st = encode_piece(t, text, done, text->n, 0, out);
    free(plain);
    return st;
}
