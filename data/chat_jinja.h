/* Private to data/chat*.c: conversations through the Jinja interpreter. */
#ifndef NB_DATA_CHAT_JINJA_H
#define NB_DATA_CHAT_JINJA_H

#include "data/chat.h"
#include "data/jinja.h"

/* As nb_chat_render_extra. */
nb_status nb_chat_jinja_render(const nb_jinja *j, const nb_tokenizer *t, const nb_message_t *m, int n,
                               const nb_chat_extra *extra, bool add_generation_prompt, nb_text *text,
                               nb_chat_span **spans, int *n_spans);
/* What ends an assistant turn: a token of the tokenizer (*id >= 0), or, appended to `text`, what looks like one;
 * neither where a turn has no end. */
void nb_chat_jinja_end(const nb_jinja *j, const nb_tokenizer *t, int32_t *id, nb_text *text);

#endif
