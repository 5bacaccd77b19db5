#include "data/added.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat.h"

const char *nb_config_chat_name(const nb_config *c) {
    static const char *const names[] = {
        [NB_CHAT_TOKENIZER_DEFAULT] = "tokenizer_default", [NB_CHAT_CHATML] = "chatml", [NB_CHAT_LLAMA3] = "llama3",
        [NB_CHAT_MISTRAL] = "mistral", [NB_CHAT_ZEPHYR] = "zephyr", [NB_CHAT_ALPACA] = "alpaca",
    };
    if (c->chat_template == NB_CHAT_JINJA) return c->chat_template_jinja;
    return names[c->chat_template];
}

nb_status nb_config_chat(const nb_chat_template **out, const nb_config *c, const nb_tokenizer *t) {
    NB_TRY(nb_chat_template_find(out, nb_config_chat_name(c), t));
    return c->chat_template_kwargs ? nb_chat_template_preset(out, *out, t, c->chat_template_kwargs) : NB_OK;
}

/* A conversation without any text: all that the template writes itself. */
static nb_status markup(const nb_tokenizer *t, const nb_config *c, nb_text *out) {
    static const nb_message_t empty[] = {{"system", ""}, {"user", ""}, {"assistant", ""}};
    const nb_chat_template *chat;
    nb_chat_span *spans = NULL;
    int n_spans;
    NB_TRY(nb_config_chat(&chat, c, t));
    nb_status st = nb_chat_render(chat, t, empty, NB_LEN(empty), true, out, &spans, &n_spans);
    free(spans);
    return st;
}

/* Words like "user", which templates write too, stay ordinary. */
static bool is_control(const nb_config *c, const char *token, const char *written) {
    for (int i = 0; i < c->eot_tokens.n; i++)
        if (!strcmp(c->eot_tokens.v[i], token)) return true;
    bool word = true;
    for (const char *p = token; *p; p++) word &= (*p | 32) >= 'a' && (*p | 32) <= 'z';
    return !word && written && strstr(written, token);
}

nb_status nb_tokens_add(nb_tokenizer *t, const nb_config *c, int32_t **ids, int *n) {
    const char *const roles[][2] = {{"bos_token", c->special_tokens_bos_token},
                                    {"eos_token", c->special_tokens_eos_token},
                                    {"pad_token", c->special_tokens_pad_token},
                                    {"unk_token", c->special_tokens_unk_token}};
    int known = nb_tokenizer_vocab_size(t);
    nb_text written = {0};
    nb_status st = NB_OK;
    for (int i = 0; i < NB_LEN(roles) && st == NB_OK; i++)
        if (roles[i][1]) st = nb_tokenizer_set_special(t, roles[i][0], roles[i][1]);
    /* without a template there is no markup: whoever needs one says so */
    if (st == NB_OK && c->tokens.n && markup(t, c, &written) != NB_OK) written.n = 0;
    for (int i = 0; i < c->tokens.n && st == NB_OK; i++)
        st = nb_tokenizer_add(t, c->tokens.v[i], is_control(c, c->tokens.v[i], written.n ? written.s : NULL), NULL);
    nb_text_free(&written);
    if (st != NB_OK || !ids) return st;
    *n = nb_tokenizer_vocab_size(t) - known; /* new ids follow each other */
    *ids = *n ? nb_calloc((size_t)*n, sizeof **ids) : NULL;
    for (int i = 0; i < *n; i++) (*ids)[i] = known + i;
    return NB_OK;
}
