#include "cli/text.h"

#include <stdio.h>
#include <stdlib.h>

nb_text_args nb_text_args_default(void) {
    return (
        nb_text_args){.session.load_in_4bit = -1, .sampling = nb_sampling_greedy(), .seed = 42, .max_new_tokens = 256};
}

nb_status nb_text_open(nb_session *s, nb_text_args *a, bool want_chat) {
    a->sampling.seed = (uint64_t)a->seed;
    NB_TRY(nb_sampling_check(&a->sampling));
    if (a->max_new_tokens < 1 || a->max_new_tokens > INT32_MAX)
        return nb_fail(NB_EINPUT, "--max-new-tokens %lld: give 1 or more", (long long)a->max_new_tokens);
    if (!a->session.base && !a->session.adapter)
        return nb_fail(NB_EINPUT, "which model? give --base DIR, --adapter DIR, or both");
    NB_TRY(nb_cli_threads(a->threads));
    NB_TRY(nb_session_open(s, &a->session));
    nb_status st = NB_OK;
    if (a->template) st = nb_chat_template_find(&s->chat, a->template, s->tokenizer);
    if (st == NB_OK && want_chat && !s->chat && nb_tokenizer_chat_template(s->tokenizer))
        st = nb_chat_template_find(&s->chat, "tokenizer_default", s->tokenizer); /* says what is wrong with it */
    if (st == NB_OK && want_chat && !s->chat)
        st = nb_fail(NB_EUNSUPPORTED,
                     "%s: its tokenizer has no chat template: name the one it was trained "
                     "with by --chat-template chatml|llama3|mistral|zephyr|alpaca|jinja:FILE, or let it complete plain text with "
                     "`nibble generate --prompt`",
                     s->base->dir);
    if (st != NB_OK) nb_session_close(s);
    return st;
}

nb_status nb_text_generator(nb_generator **out, nb_session *s, const nb_text_args *a, int64_t slot_len,
                            int64_t prompt_n, bool keep_prefix) {
    int n;
    int32_t *stop = nb_stop_ids(s->tokenizer, s->chat, &n);
    nb_gen_options o = {.slots = 1, .slot_len = slot_len, .max_tokens = prompt_n < 512 ? prompt_n : 512,
                        .stop_ids = stop, .n_stop_ids = n, .stop = a->stop.v, .n_stop = a->stop.n,
                        .keep_prefix = keep_prefix};
    nb_status st = nb_generator_open(out, s->model, &s->arena, s->tokenizer, &o);
    free(stop);
    return st;
}

nb_status nb_text_chat_ids(const nb_session *s, const nb_message_t *m, int n, nb_ids *out) {
    nb_text text = {0};
    nb_chat_span *spans = NULL;
    int n_spans = 0;
    nb_status st = nb_chat_render(s->chat, s->tokenizer, m, n, true, &text, &spans, &n_spans);
    if (st == NB_OK) st = nb_chat_encode(s->tokenizer, &text, spans, n_spans, out);
    nb_text_free(&text);
    free(spans);
    return st;
}

bool nb_text_print(void *arg, const char *text, size_t n) {
    (void)arg;
    fwrite(text, 1, n, stdout);
    return fflush(stdout) == 0; /* whoever read the text is gone: no use going on */
}
