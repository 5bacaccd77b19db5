/* What a configuration changes in a tokenizer: special_tokens and tokens. Training, `nibble data` and evaluation all
 * read their text through this. */
#ifndef NB_DATA_ADDED_H
#define NB_DATA_ADDED_H

#include "configs/config.h"
#include "data/chat.h"
#include "data/tokenizer.h"

/* The configuration's chat_template, as nb_chat_template_find wants it. */
const char *nb_config_chat_name(const nb_config *c);
/* That template, with chat_template_kwargs. */
nb_status nb_config_chat(const nb_chat_template **out, const nb_config *c, const nb_tokenizer *t);
/* Puts special_tokens and tokens into the tokenizer. A token that ends a turn (eot_tokens) or that the chat template
 * writes itself is added as special, so that a message's text cannot inject it. *ids: the tokens that were not there
 * before, ascending (NULL when there are none; caller frees); ids may be NULL. */
nb_status nb_tokens_add(nb_tokenizer *t, const nb_config *c, int32_t **ids, int *n);

#endif
