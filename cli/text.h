/* What `nibble generate` and `nibble chat` share: the model's and the sampler's options, opening, and running. */
#ifndef NB_CLI_TEXT_H
#define NB_CLI_TEXT_H

#include "adapters/session.h"
#include "cli/cli.h"
#include "generate/generate.h"

typedef struct nb_text_args {
    nb_session_options session;
    nb_sampling sampling;
    nb_opt_list stop;
    const char *template;
    int64_t max_new_tokens, seed, threads;
} nb_text_args;
nb_text_args nb_text_args_default(void);

/* Rows of an nb_opt table, for `nb_text_args a`. */
#define NB_TEXT_OPTIONS(a) \
    {"base", NB_OPT_STR, &(a).session.base, "DIR", "model folder, or org/name in the local Hugging Face cache"}, \
        {"adapter", NB_OPT_STR, &(a).session.adapter, "DIR", \
         "adapter on top of it (its base is used when --base is absent)"}, \
        {"max-new-tokens", NB_OPT_INT, &(a).max_new_tokens, "N", "longest answer"}, \
        {"temperature", NB_OPT_REAL, &(a).sampling.temperature, "X", \
         "0: always the most likely token; higher: more varied"}, \
        {"top-k", NB_OPT_INT, &(a).sampling.top_k, "N", "draw from the N most likely tokens; 0: all"}, \
        {"top-p", NB_OPT_REAL, &(a).sampling.top_p, "X", \
         "draw from the most likely tokens that have this share; 1: all"}, \
        {"min-p", NB_OPT_REAL, &(a).sampling.min_p, "X", \
         "only tokens at least this many times as likely as the likeliest"}, \
        {"repetition-penalty", NB_OPT_REAL, &(a).sampling.repetition_penalty, "X", \
         "above 1: tokens seen before are less likely"}, \
        {"seed", NB_OPT_INT, &(a).seed, "N", "same seed, same text"}, \
        {"stop", NB_OPT_LIST, &(a).stop, "TEXT", "end before this text (repeatable)"}, \
        {"chat-template", NB_OPT_STR, &(a).template, "NAME", \
         "chatml, llama3, mistral, zephyr, alpaca (default: the model's own)"}, \
        {"load-in-4bit", NB_OPT_TRISTATE, &(a).session.load_in_4bit, NULL, \
         "quantize the base, or not (default: as the adapter was trained)"}, \
        {"lm-head-quant", NB_OPT_STR, &(a).session.lm_head_quant, "none|nf4|int8", \
         "how the output head is held (default: as the adapter was trained)"}, \
        {"dtype", NB_OPT_STR, &(a).session.dtype, "f32|bf16", "what products are computed in"}, \
        {"device", NB_OPT_STR, &(a).session.device, NB_DEVICES, NB_DEVICE_HELP}, { \
        "threads", NB_OPT_INT, &(a).threads, "N", "threads to use; 0: all cores" \
    }

/* Checks the options and opens the model. want_chat: a template must be known. */
nb_status nb_text_open(nb_session *s, nb_text_args *a, bool want_chat);
/* A generator for one sequence of at most slot_len tokens. */
nb_status nb_text_generator(nb_generator **out, nb_session *s, const nb_text_args *a, int64_t slot_len,
                            int64_t prompt_n, bool keep_prefix);
/* A conversation as prompt tokens. The text of messages cannot contain control tokens. */
nb_status nb_text_chat_ids(const nb_session *s, const nb_message_t *m, int n, nb_ids *out);
/* on_text: to stdout, at once. */
bool nb_text_print(void *arg, const char *text, size_t n);

#endif
