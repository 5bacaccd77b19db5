/* A tokenizer as llama.cpp's GGUF files describe one: a list of tokens with scores and types, and for byte-level BPE
 * the merges and the name of the splitting expression. Made of a tokenizer, and a tokenizer made of it. */
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
    int32_t bos, eos, unk, pad; /* -1: none */
    const int32_t *ends;        /* [n_ends] what else ends a generated text */
    int n_ends;
    bool add_bos, add_eos;      /* around a text */
    bool strips_right;          /* special tokens take the white space behind them with them */
    const char *chat_template;  /* Jinja, or NULL */
} nb_token_list;

/* Ids up to `vocab` that have no token become "[PADid]". Refuses by name what llama.cpp would tokenize differently
 * (NB_EUNSUPPORTED), and a vocabulary with more tokens than `vocab`. Free with nb_token_list_free. */
nb_status nb_tokenizer_list(const nb_tokenizer *t, int64_t vocab, nb_token_list *out);
void nb_token_list_free(nb_token_list *l);

/* Do tokenizers of this kind put bos in front, where the file does not say? */
bool nb_token_list_adds_bos(const char *model, const char *pre);
/* The tokenizer that a list of the file `where` describes, as tokenizers' tokenizer.json would say it, which is what
 * nb_tokenizer_save writes. Refuses by name a model or splitting expression that is not known, and lists that
 * contradict themselves. The list is only read. */
nb_status nb_tokenizer_from_list(nb_tokenizer **out, const nb_token_list *l, const char *where);

#endif
