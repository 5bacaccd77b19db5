/* Built-in chat templates, rendered with provenance: every byte of the text knows whether it is template text
 * or the content of a message, so masks need no search. chatml, llama3, mistral, zephyr, alpaca. */
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

typedef struct nb_chat_span { /* bytes [begin, end) of the rendered text that came from message `message` */
    size_t begin, end, end_of_turn; /* [end, end_of_turn) is the turn's end token */
    int message;
} nb_chat_span;

typedef struct nb_chat_template nb_chat_template;
/* name: one of the built-ins, or "tokenizer_default": recognizes the tokenizer's own Jinja text among the built-ins
 * and refuses what it does not know. */
nb_status nb_chat_template_find(const nb_chat_template **out, const char *name, const nb_tokenizer *t);
const char *nb_chat_template_name(const nb_chat_template *c);
/* Appends to text and *spans (malloc'd, caller frees). add_generation_prompt ends with the header that starts an
 * assistant turn. The text holds BOS where the template does: encode it without NB_TOK_SPECIAL. */
nb_status nb_chat_render(const nb_chat_template *c, const nb_tokenizer *t, const nb_message_t *m, int n,
                         bool add_generation_prompt, nb_text *text, nb_chat_span **spans, int *n_spans);
/* The token that ends an assistant turn ("<|im_end|>", "<|eot_id|>", "</s>"). */
const char *nb_chat_end_of_turn(const nb_chat_template *c, const nb_tokenizer *t);

#endif
