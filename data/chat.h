/* Built-in chat templates, rendered with provenance: every byte of the text knows whether it is template text
 * or the content of a message, so masks need no search. */
#ifndef NB_DATA_CHAT_H
#define NB_DATA_CHAT_H

#include <stdbool.h>
#include <stddef.h>

#include "core/mem.h"
#include "core/status.h"
#include "data/tokenizer.h"

typedef struct nb_message {
    const char *role, *content; /* role: "system", "user", "assistant"; NUL-terminated UTF-8 */
} nb_message_t;

/* Bytes [begin, end) of the rendered text are the content of message `message`; for the assistant: what follows the
 * header that a generation prompt ends with, which for Mistral includes a space. */
typedef struct nb_chat_span {
    size_t begin, end, end_of_turn; /* [end, end_of_turn) is the turn's end token; empty where a turn has none */
    int message;
} nb_chat_span;

typedef struct nb_chat_template nb_chat_template;
/* name: a built-in (chatml, llama3, mistral, zephyr, alpaca, or one of the variants llama3.1, mistral_v0.2, mistral_v1,
 * qwen2.5, smollm2), or "tokenizer_default": recognizes the tokenizer's own Jinja text among those known to render
 * exactly like a built-in and refuses any other. */
nb_status nb_chat_template_find(const nb_chat_template **out, const char *name, const nb_tokenizer *t);
const char *nb_chat_template_name(const nb_chat_template *c);
/* A Jinja text that renders what nb_chat_render does, to be saved beside an adapter; NULL if there is none. */
const char *nb_chat_template_jinja(const nb_chat_template *c);
/* Appends to text and *spans (malloc'd, caller frees; one per message, in order of the text). add_generation_prompt
 * ends with the header that starts an assistant turn. The text holds BOS where the template does: encode it without
 * NB_TOK_SPECIAL. */
nb_status nb_chat_render(const nb_chat_template *c, const nb_tokenizer *t, const nb_message_t *m, int n,
                         bool add_generation_prompt, nb_text *text, nb_chat_span **spans, int *n_spans);
/* Tokenizes rendered text. What stands in `spans` is data: if it holds the text of a control token ("<|im_end|>"), that
 * stays ordinary text. start[] of `out` counts bytes of the whole text. */
nb_status nb_chat_encode(const nb_tokenizer *t, const nb_text *text, const nb_chat_span *spans, int n_spans,
                         nb_ids *out);
/* The token that ends an assistant turn ("<|im_end|>", "<|eot_id|>", "</s>"). */
const char *nb_chat_end_of_turn(const nb_chat_template *c, const nb_tokenizer *t);

#endif
