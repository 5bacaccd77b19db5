/* A model ready to run: base, tokenizer, and optionally an adapter, opened the way the adapter was trained. */
#ifndef NB_ADAPTERS_SESSION_H
#define NB_ADAPTERS_SESSION_H

#include "adapters/adapter.h"
#include "data/chat.h"
#include "data/tokenizer.h"
#include "model/transformer.h"

typedef struct nb_session_options {
    const char *base;      /* folder or hub name; NULL: the one the adapter names */
    const char *adapter;   /* PEFT folder, or NULL */
    const char *tokenizer; /* folder or file; NULL: the adapter's if it has one, else the base's */
    int load_in_4bit;      /* 1, 0, or -1: as the adapter's manifest says (without one: as it is stored) */
    bool keep_quantized;   /* with 0: a base that is stored in 4 bits is taken as it is */
    const char *device;    /* "cpu", "cuda:1", ...; NULL: "auto" */
    const char *dtype;     /* "f32", "bf16": what products compute in; NULL: the manifest's, else bf16 where the device has it */
    const char *lm_head_quant; /* "none", "nf4", "int8"; NULL: as the adapter's manifest says */
    const char *quantized_cache;
    int64_t positions;     /* longest sequence wanted; 0: the model's context */
} nb_session_options;

typedef struct nb_session {
    nb_dev *dev;
    const char *device;   /* as it was asked for */
    nb_base *base;
    nb_tokenizer *tokenizer;
    bool own_tokenizer;   /* ... is the adapter's, not the base's */
    nb_model *model;
    nb_adapter *adapter;  /* NULL: none */
    nb_arena arena;
    const nb_chat_template *chat; /* of the manifest, else recognized from the tokenizer; NULL: none known */
} nb_session;

nb_status nb_session_open(nb_session *s, const nb_session_options *o);
void nb_session_close(nb_session *s);

#endif
