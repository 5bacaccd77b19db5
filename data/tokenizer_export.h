/* A tokenizer as llama.cpp's GGUF files describe one: a list of tokens with scores and types, and for byte-level BPE
 * the merges and the name of the splitting expression. */
#ifndef NB_DATA_TOKENIZER_EXPORT_H
#define NB_DATA_TOKENIZER_EXPORT_H

#include "data/tokenizer.h"

typedef enum nb_token_type {
    NB_TOKEN_NORMAL = 1, NB_TOKEN_UNKNOWN, NB_TOKEN_CONTROL, NB_TOKEN_USER_DEFINED, NB_TOKEN_UNUSED, NB_TOKEN_BYTE
} nb_token_type;

typedef struct nb_token_list {
    const char *model;  /* "llama": SentencePiece with byte fallback; "gpt2": byte-level BPE */
    const char *pre;    /* name of the splitting expression; "default" for "llama" */
    int64_t n;          /* tokens */
    char **token;
    float *score;       /* llama: joins with higher scores come first; NULL for gpt2 */
    int32_t *type;      /* nb_token_type */
    char **merge;       /* "left right", by rank; NULL for llama */
    int64_t n_merges;
    bool space_prefix;  /* llama: a text begins with a space of its own */
} nb_token_list;

/* Ids up to `vocab` that have no token become "[PADid]". Refuses by name what llama.cpp would tokenize differently
 * (NB_EUNSUPPORTED), and a vocabulary with more tokens than `vocab`. Free with nb_token_list_free. */
nb_status nb_tokenizer_list(const nb_tokenizer *t, int64_t vocab, nb_token_list *out);
void nb_token_list_free(nb_token_list *l);

#endif
