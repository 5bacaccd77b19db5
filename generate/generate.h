/* Text from a model: any number of sequences at once over the slots of one KV cache.
 *
 *   slot s owns rows [s * slot_len, (s + 1) * slot_len) of the cache
 *
 *   slot 0   prompt prompt prompt answer answer .       a pass takes from every slot that reads its prompt a piece of it;
 *   slot 1   prompt prompt . . . .                      when all are read, the last token of every sequence being
 *   slot 2   (free: the next request enters here)       answered: what is not in the cache yet
 *
 * A sequence gets the same tokens whether it runs alone or among others: rows of a batch do not touch each other in
 * any kernel, and random draws are keyed by (seed, sequence, position). */
#ifndef NB_GENERATE_GENERATE_H
#define NB_GENERATE_GENERATE_H

#include <stdbool.h>

#include "core/log.h"
#include "core/mem.h"
#include "data/chat.h"
#include "data/tokenizer.h"
#include "generate/sampler.h"
#include "model/transformer.h"

typedef enum nb_stop {
    NB_STOP_TOKEN,   /* one of stop_ids: the usual end */
    NB_STOP_STRING,  /* one of the stop strings */
    NB_STOP_LIMIT,   /* max_new_tokens */
    NB_STOP_CONTEXT, /* the slot is full */
    NB_STOP_CALLER   /* on_text returned false */
} nb_stop;
const char *nb_stop_name(nb_stop s); /* "end token", "stop string", ... */

typedef struct nb_gen_options {
    int64_t slots;      /* sequences at once, from 1 */
    int64_t slot_len;   /* tokens a sequence may have, prompt and answer; at most the model's positions */
    int64_t max_tokens; /* tokens of one pass, at least slots: prompts are read in pieces of this size */
    const int32_t *stop_ids; /* copied; nb_stop_ids() finds them */
    int n_stop_ids;
    const char *const *stop; /* copied; none may be empty */
    int n_stop;
    bool keep_prefix;   /* a prompt that begins like what a slot holds (the chat so far) is not read again */
} nb_gen_options;

typedef struct nb_gen_request {
    const int32_t *prompt; /* [prompt_n], prompt_n >= 1; borrowed until nb_generate returns */
    int64_t prompt_n, max_new_tokens;
    uint64_t sequence;     /* names its random draws */
    /* May be NULL. Gets the text as soon as it is certain: whole characters, and nothing that may turn out to be the
     * beginning of a stop string. Returning false ends this sequence. */
    bool (*on_text)(void *arg, const char *text, size_t n);
    void *arg;
} nb_gen_request;

typedef struct nb_gen_result {
    int32_t *ids;   /* [n] what was generated, without the stop token */
    int64_t n;
    nb_text text;   /* decoded, special tokens left out, cut before a stop string; s may be NULL when empty */
    nb_stop stop;
} nb_gen_result;
void nb_gen_result_free(nb_gen_result *r);

typedef struct nb_generator nb_generator;
/* All memory is taken here. m, arena and t are borrowed; arena is shared with other runners of the same model. */
nb_status nb_generator_open(nb_generator **out, nb_model *m, nb_arena *arena, const nb_tokenizer *t,
                            const nb_gen_options *o);
void nb_generator_free(nb_generator *g); /* NULL is harmless */
size_t nb_generator_bytes(const nb_generator *g); /* KV cache and logits; activations are in the arena */
int64_t nb_generator_slot_len(const nb_generator *g);
/* Forgets what the slots hold: after the weights changed (a training step). Only keep_prefix needs it. An adapter
 * switched on or off makes another graph: that takes a new generator, as it takes new runners. */
void nb_generator_forget(nb_generator *g);

/* Runs all requests to their end, in any number of slots, taking them in order. results[n] is zeroed first; free each
 * with nb_gen_result_free, after an error too. progress (may be NULL) counts finished sequences from where it is.
 * A prompt that leaves no room for an answer: NB_EINPUT. SIGINT or SIGTERM: NB_EINTERRUPTED. */
nb_status nb_generate(nb_generator *g, const nb_sampling *sampling, const nb_gen_request *requests, int64_t n,
                      nb_gen_result *results, nb_progress *progress);

/* Every id that ends an answer: the tokenizer's eos ids and the template's end-of-turn token (chat may be NULL).
 * Ascending, each once; caller frees. Warns when there is none. */
int32_t *nb_stop_ids(const nb_tokenizer *t, const nb_chat_template *chat, int *n);

#endif
