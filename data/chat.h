/* Chat templates, rendered with provenance: every byte of the text knows whether it is template text or the content of
 * a message, so masks need no search. Some are built in; any other runs as Jinja (data/jinja.h).
 *
 * What of an assistant's turn is trained: from the end of the prompt that a generator would get for this turn (the text
 * behind the previous message's content when the conversation up to there is rendered with add_generation_prompt, if
 * the turn begins with it, else the content's begin) to the special token behind the content, white space in front of
 * it included. So what a template writes between the prompt and the content, such as empty think tags, is trained. A
 * template with {% generation %} blocks says itself: from the block's begin to its end.
 *
 * strftime_now is undefined, and templates that ask ("is defined") write their own constant date; for those that call it
 * without asking it is always 26 July 2024, the date that Llama's templates write. */
#ifndef NB_DATA_CHAT_H
#define NB_DATA_CHAT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/mem.h"
#include "core/status.h"
#include "data/tokenizer.h"

typedef struct nb_message {
    const char *role, *content; /* role: "system", "user", "assistant", "tool"; NUL-terminated UTF-8 */
    const json_t *fields;       /* an object with what else a template may ask for (tool_calls, name, tool_call_id,
                                   reasoning_content; content where it is NULL or no text), or NULL */
} nb_message_t;
/* What a conversation brings beside its messages, as apply_chat_template takes it; NULL: none. */
typedef struct nb_chat_extra {
    const json_t *tools, *documents; /* lists */
} nb_chat_extra;

/* Bytes [begin, end) of the rendered text are the content of message `message`; for the assistant: what follows the
 * header that a generation prompt ends with, which for Mistral includes a space. */
typedef struct nb_chat_span {
    size_t begin, end, end_of_turn; /* [end, end_of_turn) is the turn's end token; empty where a turn has none */
    int message;        /* -1: text of tools or documents */
    bool template_text; /* written by the template within the turn, not the message's own: trained with it, no data */
    bool untrained;     /* an assistant's message that the template's {% generation %} leaves out */
} nb_chat_span;

typedef struct nb_chat_template nb_chat_template;
/* name: a built-in (chatml, llama3, mistral, zephyr, alpaca, or one of the variants llama3.1, mistral_v0.2, mistral_v1,
 * qwen2.5, smollm2); "jinja:FILE"; a Jinja text (it holds "{{" or "{%"); or "tokenizer_default": the tokenizer's own
 * Jinja text, by the built-in that is known to render exactly like it, where there is one. Templates live as long as
 * the program. */
nb_status nb_chat_template_find(const nb_chat_template **out, const char *name, const nb_tokenizer *t);
const char *nb_chat_template_name(const nb_chat_template *c);
/* A Jinja text that renders what nb_chat_render does, to be saved beside an adapter; NULL if there is none. */
const char *nb_chat_template_jinja(const nb_chat_template *c);
/* Appends to text and *spans (malloc'd, caller frees; in order of the text; a message's parts follow each other).
 * add_generation_prompt ends with the header that starts an assistant turn. The text holds BOS where the template does: encode it without
 * NB_TOK_SPECIAL. */
nb_status nb_chat_render(const nb_chat_template *c, const nb_tokenizer *t, const nb_message_t *m, int n,
                         bool add_generation_prompt, nb_text *text, nb_chat_span **spans, int *n_spans);
/* The same with tools and documents (extra may be NULL). These, calls of tools and their answers are for Jinja: a template
 * that is built in gives way to the text it stands for. */
nb_status nb_chat_render_extra(const nb_chat_template *c, const nb_tokenizer *t, const nb_message_t *m, int n,
                               const nb_chat_extra *extra, bool add_generation_prompt, nb_text *text,
                               nb_chat_span **spans, int *n_spans);
/* The template with defaults for variables of its own: kwargs is a JSON object, {"enable_thinking": false}. They stand at
 * the head of the text, so that whoever renders it gets the same: {% set x = x if x is defined else false %}. */
nb_status nb_chat_template_preset(const nb_chat_template **out, const nb_chat_template *c, const nb_tokenizer *t,
                                  const char *kwargs);
/* Tokenizes rendered text. What stands in `spans` is data: if it holds the text of a control token ("<|im_end|>"), that
 * stays ordinary text. start[] of `out` counts bytes of the whole text. */
nb_status nb_chat_encode(const nb_tokenizer *t, const nb_text *text, const nb_chat_span *spans, int n_spans,
                         nb_ids *out);
/* The token that ends an assistant turn ("<|im_end|>", "<|eot_id|>", "</s>"). */
const char *nb_chat_end_of_turn(const nb_chat_template *c, const nb_tokenizer *t);

#endif
