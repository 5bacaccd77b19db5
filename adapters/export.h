/* GGUF files from a Hugging Face folder, and from an adapter. What was written is read back and compared before the
 * file appears under its name. */
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
/* Are all tensors of two safetensors files (DIR/STEM...) equal, value by value? Fails naming the first that is not. */
nb_status nb_export_same_tensors(const char *dir, const char *other, const char *stem, int64_t *n);

#endif
