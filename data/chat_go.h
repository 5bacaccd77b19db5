/* Chat templates in Go's text/template, for Ollama. */
#ifndef NB_DATA_CHAT_GO_H
#define NB_DATA_CHAT_GO_H

#include "data/chat.h"

typedef struct nb_chat_go_form {
    bool system;   /* it has a place for a system message */
    bool more_bos; /* the tokenizer adds a BOS in front, and the template has none: there will be one */
} nb_chat_go_form;

/* Appends the template that makes of .System and .Messages what nb_chat_render makes of the conversation, with the
 * generation prompt when a user has the last word. Two things it cannot do: trim messages, and refuse. A BOS in front is
 * left out where the tokenizer adds one. false: the template depends on more than the roles and their order. */
bool nb_chat_go(const nb_chat_template *c, const nb_tokenizer *t, nb_text *out, nb_chat_go_form *form);

#endif
