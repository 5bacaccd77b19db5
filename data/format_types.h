/* Private to data/format*.c: a row as text with provenance, and the types that make it. */
#ifndef NB_DATA_FORMAT_TYPES_H
#define NB_DATA_FORMAT_TYPES_H

#include "data/chat.h"
#include "data/format.h"

typedef struct nb_train_span { /* bytes [begin, end) of the text are trained on */
    size_t begin, end;
    bool is_end;   /* an end token: trained, but no text of the data */
    bool is_start; /* begins an answer: what stands before it is a prompt */
} nb_train_span;

typedef struct nb_example { /* a row as text */
    nb_text text;
    nb_train_span *spans; /* in order, not overlapping */
    int n_spans, cap_spans;
    nb_chat_span *contents; /* chat: where the messages' own text stands, to be kept free of control tokens */
    int n_contents;
    bool chat;              /* the text has its own BOS and end tokens */
} nb_example;

struct nb_format {
    const nb_config *c;
    const nb_config_dataset *e;
    const nb_tokenizer *t;
    const struct nb_format_type *type;
    const nb_chat_template *chat;
};

/* A row being read: for messages and look-ups. */
typedef struct nb_row_in {
    const nb_format *f;
    const json_t *obj;
    char where[512]; /* "file:line" */
} nb_row_in;

typedef struct nb_format_type {
    const char *name;
    nb_status (*build)(const nb_row_in *in, nb_example *ex);  /* a row as text; or */
    nb_status (*encode)(const nb_row_in *in, nb_encoded *out); /* as tokens */
} nb_format_type;

void nb_example_add(nb_example *ex, const char *s, size_t n);
void nb_example_train(nb_example *ex, size_t begin, size_t end, bool is_end, bool is_start);

typedef struct nb_field { /* a field's text, borrowed from the row or, for an integer, in `digits` */
    const char *s;
    size_t n;
    char digits[24];
} nb_field;
/* Absent or null: an error, or s = NULL where not required. `setting` is the key that names the field. */
nb_status nb_field_text(const nb_row_in *in, const char *key, const char *setting, bool required, nb_field *out);
nb_status nb_field_missing(const nb_row_in *in, const char *key, const char *setting);

nb_status nb_build_chat(const nb_row_in *in, nb_example *ex);
nb_status nb_encode_tokenized(const nb_row_in *in, nb_encoded *out);

#endif
