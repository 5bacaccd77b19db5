/* LoRA, rsLoRA and DoRA (Hu et al., 2021; Kalajdzievski, 2023; Liu et al., 2024) on any linear layers,
 * in and out of PEFT's folders. */
#ifndef NB_ADAPTERS_ADAPTER_H
#define NB_ADAPTERS_ADAPTER_H

#include <jansson.h>
#include <stdbool.h>

#include "configs/config.h"
#include "data/tokenizer.h"
#include "model/transformer.h"

typedef struct nb_lora_options {
    int64_t r;
    double alpha, dropout;
    const nb_pairs *ranks, *alphas; /* of single modules (PEFT's rank_pattern, alpha_pattern); NULL: none */
    bool rslora, dora;
    char *const *save;          /* modules trained whole beside it (modules_to_save) */
    int n_save;
    bool tie;                   /* a tied head follows the embedding that is trained whole (ensure_weight_tying) */
    const char *const *targets; /* suffixes of module paths, as PEFT matches lists */
    int n_targets;
    const char *pattern;        /* or one regular expression, matched against the whole path; or neither: all-linear */
    const int64_t *layers;      /* layers_to_transform; NULL: all */
    int n_layers;
    const int32_t *token_ids;   /* added tokens whose embedding rows are trained, ascending */
    int n_token_ids;
    uint64_t seed;
} nb_lora_options;

/* What is trained, in flat buffers: for adapter: full too. Parameters are named as PEFT (or the model) names them. */
typedef struct nb_adapter {
    nb_model *model;
    nb_dev *dev;
    nb_tensor *params;   /* leaves over data and grad */
    bool *turned;        /* [cap_params] files have it with rows and columns the other way round */
    int n_params, cap_params;
    float *data, *grad;  /* [n] each; grad NULL when loaded for inference */
    int64_t n;
    bool full;           /* adapter: full: the model's own weights */
    /* LoRA */
    int64_t r;           /* of modules that no pattern names */
    double alpha, dropout;
    bool rslora, dora, enabled;
    char **targets;      /* module names adapted, "q_proj", sorted: adapter_config.json's target_modules */
    int n_targets;
    char **saved;        /* its modules_to_save, as they were given */
    int n_saved;
    bool tie;            /* ensure_weight_tying */
    json_t *manifest;    /* nibble_manifest.json as loaded, or NULL */
    struct nb_attached { /* the places its parameters sit in, for switching it off and on */
        const char *module;           /* path */
        nb_linear *lin;               /* NULL: the embedding */
        nb_tensor *A, *B, *magnitude; /* the embedding's A is [V, R], transposed; magnitude: DoRA's [out], or NULL */
        float *squares;               /* [out] squared norms of the base weight's rows, with a magnitude; owned */
        int64_t r;
        double alpha;   /* its own: a pattern's, or the adapter's */
        float scale;
    } *attached;
    int n_attached;
    nb_token_rows rows;  /* added tokens; n = 0: none */
    struct nb_whole {    /* weights trained whole, and where in the model they take the base's place */
        nb_tensor *param, **place;
        const nb_weight *matrix; /* what they start from; with vector NULL: another one's place */
        const float *vector;
    } *whole;
    int n_whole, cap_whole;
} nb_adapter;

/* New adapter on a model: A uniform(-1/sqrt(in), 1/sqrt(in)) by Philox from (seed, name), B zero. */
nb_status nb_adapter_new(nb_adapter **out, nb_model *m, const nb_lora_options *o);
/* All of the model's weights become f32 parameters (adapter: full). */
nb_status nb_adapter_new_full(nb_adapter **out, nb_model *m);
/* A PEFT folder. Refuses by name what nibble does not do (trained biases, ...), an adapter for another base
 * (shapes; sha256 of the manifest when strict), and tensors that have no place. */
nb_status nb_adapter_load(nb_adapter **out, nb_model *m, const char *dir, bool trainable);
void nb_adapter_free(nb_adapter *a);
int64_t nb_adapter_size(const nb_adapter *a); /* trained parameters */
/* Does the parameter have a row a token: the embedding, its adapter, rows of added tokens? */
bool nb_adapter_embeds(const nb_adapter *a, const nb_tensor *p);
/* A parameter's values (or its gradient's, from == p->grad) in host memory, laid out as in the adapter's file. */
nb_status nb_adapter_fetch(const nb_adapter *a, const nb_tensor *p, const void *from, float *host);
int64_t nb_adapter_largest_rank(const nb_adapter *a);
/* Off: the model runs as the base alone. */
void nb_adapter_enable(nb_adapter *a, bool on);

/* DIR gets adapter_model.safetensors (f32, names sorted), adapter_config.json, README.md (model card) and
 * nibble_manifest.json, and the tokenizer's files where one is given (it is not the base's own); written beside and
 * renamed, so DIR is whole or absent. manifest is borrowed. */
nb_status nb_adapter_save(const nb_adapter *a, const char *dir, const json_t *manifest, const nb_tokenizer *own);
/* adapter: full: a Hugging Face folder in the base's dtype (config.json and tokenizer files copied; `own` as above). */
nb_status nb_adapter_save_full(const nb_adapter *a, const char *dir, nb_dtype dtype, const nb_tokenizer *own);
/* How many rows the adapter's added tokens need beyond the vocabulary of a base: what nb_base_extend is to add before
 * the model is opened. 0 for most. */
nb_status nb_adapter_rows_beyond(const char *dir, const nb_spec *spec, int64_t *n);
/* Does the adapter's folder hold a tokenizer (tokens were added, or it was trained with another than the base's)? */
bool nb_adapter_has_tokenizer(const char *dir);
/* nibble_manifest.json of an adapter folder; NULL (and NB_OK) when there is none. */
nb_status nb_adapter_manifest(const char *dir, json_t **manifest);

#endif
