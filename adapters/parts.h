/* Shared by the files of adapters/ that build adapters. */
#ifndef NB_ADAPTERS_PARTS_H
#define NB_ADAPTERS_PARTS_H

#include "adapters/adapter.h"

#define NB_PEFT_PREFIX "base_model.model." /* of every name in PEFT's files */

/* An adapter with room for max_params parameters; declare them, then nb_adapter_place gives them memory. */
nb_adapter *nb_adapter_alloc(nb_model *m, int max_params);
/* name is taken over. The returned tensor has data only after nb_adapter_place. */
nb_tensor *nb_adapter_param(nb_adapter *a, char *name, int n_dims, int64_t d0, int64_t d1);
nb_status nb_adapter_place(nb_adapter *a, bool trainable);
/* lin NULL: the embedding. */
void nb_adapter_attach_lora(nb_adapter *a, nb_linear *lin, int64_t r, double alpha);
void nb_adapter_attach_rows(nb_adapter *a, const int32_t *ids, int64_t n);
/* A module of the model that has weights of its own, a matrix or a norm's vector of n, and where the graph looks for
 * trained ones. */
typedef struct nb_module {
    const char *path;
    const nb_weight *matrix;
    bool turned;                /* files have it as [in, out] (GPT-2) */
    const float *vector, *bias; /* bias NULL: none */
    int64_t n;                  /* of vector and bias */
    nb_tensor **weight_at, **bias_at;
} nb_module;
/* The embedding, the norms, the linear layers, the head (also when it is tied). */
void nb_modules_each(nb_model *m, void (*fn)(const nb_module *, void *), void *arg);
/* Is the module, or one it is part of, meant by keys (modules_to_save)? PEFT compares ends of paths as text: "norm" is
 * every norm whose name ends so. used[i] becomes true for keys that meant it, if given. */
bool nb_saves_module(char *const *keys, int n, const char *path, bool *used);
/* Parameters for a module's weights; they get the base's values by nb_adapter_fill_whole after nb_adapter_place. */
void nb_adapter_attach_whole(nb_adapter *a, const nb_module *m);
nb_status nb_adapter_fill_whole(nb_adapter *a);
/* The embedding is the head too, if it is trained whole. */
void nb_adapter_tie_head(nb_adapter *a);
/* out[n, m] = in[m, n] turned. */
void nb_turn(float *out, const float *in, int64_t m, int64_t n);
/* Does the parameter lie in memory transposed, compared with its file? */
bool nb_adapter_is_turned(const nb_adapter *a, const nb_tensor *p);
/* What takes the base's place there, or NULL. */
const nb_tensor *nb_adapter_whole_at(const nb_adapter *a, nb_tensor *const *place);
void nb_adapter_enable_whole(nb_adapter *a, bool on);
/* Fails where parts of an adapter exclude one another, or want what the embedding or the head has not. */
nb_status nb_adapter_check_parts(const nb_adapter *a);
/* Does a tied head come apart from the embedding: is one of the two trained or adapted without the other? */
bool nb_adapter_unties(const nb_adapter *a);

/* Names the target modules and switches it on. */
void nb_adapter_finish_load(nb_adapter *a);
/* DoRA: gives every attached module the norms of its base weight's rows, and, with_magnitudes, the magnitudes of a new
 * adapter, which are these norms. After nb_adapter_place. Experts have none: refused. */
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

/* Copies a model folder's small files (config.json, generation_config.json, tokenizer files, chat template), or writes
 * those that say what the keys of a GGUF model say. */
nb_status nb_put_float(const char *dir); /* in its config.json: the weights are not quantized (any more) */
nb_status nb_copy_model_files(const char *from, const char *to);
/* config.json of dir gets the base's vocab_size, and where it is so, that the head is not tied to the embedding (any
 * more); with a tokenizer that is not the base's own, its files too, and the folder's configurations its bos, eos and
 * pad. */
nb_status nb_put_vocabulary(const nb_spec *s, const nb_tokenizer *t, bool untied, const char *dir);
/* config.json and the tokenizer's files, from a GGUF model's keys. */
nb_status nb_make_model_files(const char *gguf, const char *to);
/* Moves the finished folder `tmp` to `dir`, replacing what was there; durable. */
nb_status nb_replace_dir(const char *tmp, const char *dir);

#endif
