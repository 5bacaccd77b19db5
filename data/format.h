/* One data row to token ids and a label per token, by the dataset's type. A row first becomes one text and the
 * byte spans of it that are trained on (known from where each piece came from: which field, which message).
 * The text is tokenized whole, so that ids are what the model will see in use, and a token is trained on if and
 * only if its first byte lies in a trained span: a token that begins in the prompt and runs into the answer
 * belongs to the prompt. The first token of a row is never predicted, so its label is always NB_IGNORE.
 *
 *   completion         text, BOS where the tokenizer's post-processor puts one, end-of-sequence; all trained
 *   alpaca             the Stanford Alpaca prompt; the output and end-of-sequence trained
 *   prompt_completion  prompt and completion end to end; the completion and end-of-sequence trained
 *   chat_template      messages through a chat template; contents and end tokens of roles_to_train trained
 *   tokenized          input_ids and labels as they stand
 *
 * Text from a data file is plain text: "<|im_end|>" in a user's message does not become a control token. */
#ifndef NB_DATA_FORMAT_H
#define NB_DATA_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "configs/config.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/status.h"
#include "data/reader.h"
#include "data/tokenizer.h"

typedef struct nb_encoded { /* one tokenized row; zero-initialize, reuse, nb_encoded_free */
    int32_t *ids, *labels;  /* [n] */
    int32_t *bytes;         /* [n] bytes of trained text (end tokens not counted) in each token; 0 where not trained */
    int64_t n, cap;
    int64_t prompt_n;       /* as in nb_row */
    nb_text reference;      /* as in nb_row */
} nb_encoded;
void nb_encoded_free(nb_encoded *e);

typedef struct nb_format nb_format;
/* Looks up the type and the template and checks the entry's settings; `c`, `entry` and `t` must outlive it. */
nb_status nb_format_open(nb_format **out, const nb_config *c, const nb_config_dataset *entry, const nb_tokenizer *t);
void nb_format_close(nb_format *f);
/* Tokenizes record i. Thread-safe for different records and outputs. A row that trains on nothing, lacks a field or
 * has one of the wrong type is an error that names file:line. */
nb_status nb_format_row(const nb_format *f, const nb_reader *r, int64_t i, nb_encoded *out);
/* Adds to the hash everything besides the data files that decides what rows become: type, fields, roles, template,
 * tokenizer. */
void nb_format_hash(const nb_format *f, nb_sha256 *h);

#endif
