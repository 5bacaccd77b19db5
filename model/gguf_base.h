/* A model in GGUF, one file or several, as a base: its keys as the config.json that transformers would have, its
 * tensors under llama.cpp's names. */
#ifndef NB_MODEL_GGUF_BASE_H
#define NB_MODEL_GGUF_BASE_H

#include <jansson.h>

#include "model/gguf.h"

typedef struct nb_gguf_model {
    nb_gguf *part; /* [n] files; the keys that describe the model are in the first */
    int n;
} nb_gguf_model;

/* Is this path a file in GGUF, by its first bytes? */
bool nb_gguf_is(const char *path);
/* The GGUF model in a folder that has one and no config.json: the file, or the first of its parts. *file NULL: there is
 * none. Several models are an error. Caller frees. */
nb_status nb_gguf_in_dir(const char *dir, char **file);
/* The files of the model that begins with `path`, as names beside it (PATH-00001-of-00003.gguf has three). Caller frees
 * them and the list. */
nb_status nb_gguf_parts(const char *path, char ***paths, int *n);

nb_status nb_gguf_model_open(nb_gguf_model *m, const char *path);
void nb_gguf_model_close(nb_gguf_model *m);
const nb_gguf_tensor *nb_gguf_model_tensor(const nb_gguf_model *m, const char *name); /* NULL when absent */

/* What config.json would say (caller json_decrefs). Refuses by name an architecture that is not ours, and every key of
 * the architecture that would change the result and is not handled. */
nb_status nb_gguf_config(json_t **out, const nb_gguf_model *m);

#endif
