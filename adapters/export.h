/* What other programs read, from a Hugging Face folder or an adapter. What was written is read back and compared before it
 * appears under its name. */
#ifndef NB_ADAPTERS_EXPORT_H
#define NB_ADAPTERS_EXPORT_H

#include "adapters/session.h"
#include "model/gguf_map.h"

typedef struct nb_export_report {
    int64_t tensors, bytes; /* of the file */
    int64_t verified;       /* tensors read back; 0: not asked for */
} nb_export_report;

/* The model in `dir` with its tokenizer and chat template as the file `out`, which must not exist. mix NULL: as the
 * folder stores its weights. `name` is what the file calls the model. */
nb_status nb_export_gguf(const char *dir, const char *name, const char *out, const nb_gguf_mix *mix, bool verify,
                         nb_export_report *r);
/* The adapter of a session, in F32, for llama.cpp's --lora. Refuses what such a file cannot say (added tokens, DoRA). */
nb_status nb_export_gguf_lora(const nb_session *s, const char *name, const char *out, bool verify, nb_export_report *r);
/* A folder for `ollama create`: model.gguf as above, and a Modelfile with the chat template in Go (chat NULL: the
 * tokenizer's own), stop strings, and the system message if given. */
nb_status nb_export_ollama(const char *dir, const char *name, const char *out, const nb_gguf_mix *mix, bool verify,
                           const nb_chat_template *chat, const char *system, nb_export_report *r);
/* The Modelfile alone, appended to t. chat NULL: none. */
nb_status nb_export_modelfile(nb_text *t, const char *gguf, const nb_chat_template *chat, const nb_tokenizer *tokenizer,
                              const char *system);
/* Are all tensors of two safetensors files (DIR/STEM...) equal, value by value? Fails naming the first that is not. */
nb_status nb_export_same_tensors(const char *dir, const char *other, const char *stem, int64_t *n);

#endif
