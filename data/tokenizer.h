/* Text to token ids and back, as the Hugging Face tokenizers library does it: tokenizer.json with a BPE model
 * (byte-level, or SentencePiece style with byte fallback) or a Unigram one, SentencePiece's own tokenizer.model, or
 * tiktoken's list of ranks for the vocabularies of Llama 3 and cl100k.
 *
 *   text -> added tokens cut out -> normalizer -> splitting -> model on each word -> ids -> bos/eos around them
 *
 * What a file asks for and nibble does not have is refused by name (NB_EUNSUPPORTED): ids are never silently
 * different. Tokenizer files are untrusted: every length, id and nesting depth is checked, and expressions run
 * with limits. */
#ifndef NB_DATA_TOKENIZER_H
#define NB_DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/mem.h"
#include "core/status.h"

/* May be used by several threads at once; nb_tokenizer_add and nb_tokenizer_set_special alone must not run
 * beside another call. */
typedef struct nb_tokenizer nb_tokenizer;

/* A folder (tokenizer.json, else tokenizer.model) or one of these files. Beside it are read, when there:
 * tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json (bos, eos, pad, unk),
 * chat_template.jinja. Free with nb_tokenizer_free. */
nb_status nb_tokenizer_load(nb_tokenizer **out, const char *dir_or_file);
void nb_tokenizer_free(nb_tokenizer *t); /* NULL is harmless */
int nb_tokenizer_vocab_size(const nb_tokenizer *t); /* highest id + 1, added tokens included */

/* Ids with where they came from: token i begins at byte start[i] of the text given to nb_tokenizer_encode and ends
 * where the next one begins (the last: at the end of the text). Starts never decrease; the token after a call's last
 * one does not exist, so start has n entries, not n + 1. What stands for no text of its own (bos, a "▁" put in
 * front) starts where the text behind it starts; eos starts at the text's end. The byte tokens of one character
 * may share its start. Characters a normalizer merged count from the first of them. Zero-initialize; calls append. */
typedef struct nb_ids {
    int32_t *id;
    int64_t n, cap;
    int64_t *start;
} nb_ids;
void nb_ids_add(nb_ids *x, int32_t id, int64_t start);
void nb_ids_free(nb_ids *x);

enum {
    NB_TOK_SPECIAL = 1, /* put bos/eos where the tokenizer's post-processor says */
    NB_TOK_PLAIN = 2    /* special tokens spelled out in the text are ordinary text: for user content, which must
                           not inject control tokens */
};
/* Appends the ids of text[0..n). Invalid UTF-8: NB_EINPUT with the byte offset. At most 256 MiB a call. On an
 * error `out` is as before. */
nb_status nb_tokenizer_encode(const nb_tokenizer *t, const char *text, size_t n, int flags, nb_ids *out);

/* Appends the text of ids to `out`; always valid UTF-8 (what cannot be text becomes U+FFFD). skip_special leaves
 * special tokens out. Ids without a token (rows that pad an embedding) are left out; a negative id is NB_EINPUT. */
nb_status nb_tokenizer_decode(const nb_tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, nb_text *out);

/* Streaming: one id at a time, `out` gets the text that is certain; the bytes of an unfinished character are held
 * back until it is complete or nb_decoder_flush. The pieces together equal nb_tokenizer_decode, except where a
 * run of byte tokens (<0xE2>...) is not valid UTF-8: decoding the whole replaces the whole run, streaming only the
 * invalid part. After a flush the decoder is as new. */
typedef struct nb_decoder nb_decoder;
nb_decoder *nb_decoder_open(const nb_tokenizer *t, bool skip_special);
nb_status nb_decoder_push(nb_decoder *d, int32_t id, nb_text *out);
void nb_decoder_flush(nb_decoder *d, nb_text *out);
void nb_decoder_free(nb_decoder *d);

/* -1 when the tokenizer has none. */
int32_t nb_tokenizer_bos(const nb_tokenizer *t);
int32_t nb_tokenizer_eos(const nb_tokenizer *t);
int32_t nb_tokenizer_pad(const nb_tokenizer *t);
int32_t nb_tokenizer_unk(const nb_tokenizer *t);
/* Every id that ends a generated text: eos_token_id of generation_config.json (one or a list), else the eos token
 * of tokenizer_config.json, else eos_token_id of config.json. */
const int32_t *nb_tokenizer_eos_ids(const nb_tokenizer *t, int *n);
bool nb_tokenizer_adds_bos(const nb_tokenizer *t); /* with NB_TOK_SPECIAL, bos comes first */
bool nb_tokenizer_adds_eos(const nb_tokenizer *t);

/* A token's string form is the file's: "Ġthe" or "▁the", not " the". Strings live as long as the tokenizer. */
int32_t nb_tokenizer_token_id(const nb_tokenizer *t, const char *token); /* vocabulary or added; -1 */
const char *nb_tokenizer_token(const nb_tokenizer *t, int32_t id);       /* NULL if there is none */
bool nb_tokenizer_is_special(const nb_tokenizer *t, int32_t id);
const char *nb_tokenizer_chat_template(const nb_tokenizer *t); /* Jinja text; NULL if there is none */

/* Makes `token` one that is cut out of the text whole. New: its id is vocab_size. There already: the same id (and
 * it becomes special if asked). id may be NULL. */
nb_status nb_tokenizer_add(nb_tokenizer *t, const char *token, bool special, int32_t *id);
/* role: "bos_token", "eos_token", "pad_token" or "unk_token". The token is added as special if it is not there. A
 * new eos comes first in eos_ids. */
nb_status nb_tokenizer_set_special(nb_tokenizer *t, const char *role, const char *token);
/* Writes the tokenizer's files into dir (which must exist): copies of those it was loaded from, with added tokens
 * and changed roles put in. */
nb_status nb_tokenizer_save(const nb_tokenizer *t, const char *dir);
/* Hash of everything that decides ids and special ids: for cache keys and the manifest. 64 hexadecimal digits. */
const char *nb_tokenizer_sha256(const nb_tokenizer *t);

#endif
