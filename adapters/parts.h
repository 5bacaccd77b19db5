/* Shared by the files of adapters/ that build adapters. */
#ifndef NB_ADAPTERS_PARTS_H
#define NB_ADAPTERS_PARTS_H

#include "adapters/adapter.h"

/* An adapter with room for max_params parameters; declare them, then nb_adapter_place gives them memory. */
nb_adapter *nb_adapter_alloc(nb_model *m, int max_params);
/* name is taken over. The returned tensor has data only after nb_adapter_place. */
nb_tensor *nb_adapter_param(nb_adapter *a, char *name, int n_dims, int64_t d0, int64_t d1);
nb_status nb_adapter_place(nb_adapter *a, bool trainable);
void nb_adapter_attach_lora(nb_adapter *a, nb_linear *lin, int64_t r, double alpha);
void nb_adapter_attach_rows(nb_adapter *a, const int32_t *ids, int64_t n);
/* Names the target modules and switches it on. */
void nb_adapter_finish_load(nb_adapter *a);
/* DoRA: gives every attached module the norms of its base weight's rows, and, with_magnitudes, the magnitudes of a new
 * adapter, which are these norms. After nb_adapter_place. */
nb_status nb_dora_open(nb_adapter *a, bool with_magnitudes);
/* Rows W + s B A of width C become m / norm times as long. */
void nb_dora_rescale(float *rows, const float *magnitude, int64_t n, int64_t C);

/* *value = that of the first key that is a regular expression for the path's end, as PEFT matches rank_pattern and
 * alpha_pattern; stays when none is. `what` names the map in messages; used[i] becomes true for the key, if given. */
nb_status nb_pattern_find(const nb_pairs *m, const char *what, const char *path, double *value, bool *used);
/* The map for adapter_config.json's rank_pattern, or alpha_pattern: the modules whose value is not the adapter's, by
 * their name where all of a name agree, else by their path. It says the same in any order: PEFT sorts when it saves. */
json_t *nb_pattern_of(const nb_adapter *a, bool alphas);
/* PEFT's map, from a configuration; the key may be absent. */
nb_status nb_pattern_read(nb_pairs *m, const json_t *config, const char *key, const char *path);

/* Copies a model folder's small files (config.json, generation_config.json, tokenizer files, chat template). */
nb_status nb_copy_model_files(const char *from, const char *to);
/* config.json of dir gets the base's vocab_size; with a tokenizer that is not the base's own, its files too, and the
 * folder's configurations its bos, eos and pad. */
nb_status nb_put_vocabulary(const nb_spec *s, const nb_tokenizer *t, const char *dir);
/* Moves the finished folder `tmp` to `dir`, replacing what was there; durable. */
nb_status nb_replace_dir(const char *tmp, const char *dir);

#endif
