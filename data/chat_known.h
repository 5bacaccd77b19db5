/* Private to data/chat.c: recognizing published Jinja templates without running them. */
#ifndef NB_DATA_CHAT_KNOWN_H
#define NB_DATA_CHAT_KNOWN_H

#include "core/mem.h"

/* Appends a form of the template in which nothing is left of what does not change its output: spaces inside tags, the
 * kind of quotes, escapes against real line breaks, comments, white space that Jinja cuts away (with trim_blocks and
 * lstrip_blocks, as Hugging Face runs it). Two templates with the same form render the same. */
void nb_chat_canonical(const char *jinja, nb_text *out);
/* The name of the built-in that renders exactly like this canonical text, or NULL. */
const char *nb_chat_known(const nb_text *canonical);

#endif
