/* A tokenizer from wherever a base may bring it: a folder's files, one file of them, or the keys of a GGUF model. */
#ifndef NB_ADAPTERS_TOKENIZER_OPEN_H
#define NB_ADAPTERS_TOKENIZER_OPEN_H

#include "data/tokenizer.h"

/* path: what nb_tokenizer_load takes, or a file in GGUF, or a folder that has one and no tokenizer. Free with
 * nb_tokenizer_free. */
nb_status nb_tokenizer_open(nb_tokenizer **out, const char *path);

#endif
