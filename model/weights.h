/* The frozen base: the weights of a Hugging Face folder, or of a model in GGUF, in the form products read them,
 * quantized to NF4 on the way if asked, from a cache where that was done before. */
#ifndef NB_MODEL_WEIGHTS_H
#define NB_MODEL_WEIGHTS_H

#include "core/hash.h"
#include "kernels/weight.h"
#include "model/safetensors.h"
#include "model/spec.h"

typedef struct nb_base_linear {
    char *name;        /* module path, "model.layers.0.self_attn.q_proj"; NULL: the family has no such layer */
    nb_weight w;       /* rows 0: the family has no such layer */
    const float *bias; /* [rows] f32, or NULL */
    bool as_stored;    /* while loading: w.data is [cols, rows], as the file has it (nb_spec.stored_transposed) */
} nb_base_linear;

typedef struct nb_base_layer {
    nb_base_linear *lin; /* [nb_spec_slots], of nb_base_make_room */
    const float *norm[NB_NORMS], *norm_bias[NB_NORMS]; /* [nb_spec_norm_size] f32; NULL: the family has none */
} nb_base_layer;

typedef enum nb_head_quant { NB_HEAD_STORED, NB_HEAD_NF4, NB_HEAD_INT8 } nb_head_quant; /* as lm_head_quant orders them */
const char *nb_head_quant_name(nb_head_quant q); /* "none", "nf4", "int8" */

typedef struct nb_base {
    nb_spec spec;
    char *dir;             /* resolved folder (a hub name is looked up in the local Hugging Face cache), or GGUF file */
    nb_hex sha256;         /* of all weight files and config.json: names this base in manifests and cache keys */
    bool is_gguf, in_blocks; /* ... its linear layers, some at least, are in formats of blocks: used as they are */
    bool hollow;           /* there are no weight files: shapes alone, sha256 that of config.json */
    bool quantized, double_quant, prequantized; /* linear layers are NF4; ... already so in the folder */
    nb_weight embed;       /* [V, C] f32, bf16 or f16: never quantized */
    nb_weight positions;   /* [context, C] likewise; rows 0: not learned */
    nb_base_linear head;   /* lm_head; head.w = embed when tied and not quantized */
    nb_head_quant head_quant;
    nb_weight head_stored; /* what head.w was before it was quantized; rows 0: it was not */
    const float *final_norm, *final_norm_bias;
    nb_base_layer *layer;  /* [spec.layers] */
    struct nb_base_store *store; /* owns maps and buffers */
} nb_base;

/* The head as the model's files have it. */
static inline const nb_weight *nb_base_stored_head(const nb_base *b) {
    return b->head_quant ? &b->head_stored : &b->head.w;
}

typedef struct nb_base_options {
    bool load_in_4bit, double_quant;
    const char *quantized_cache; /* folder of cache files; NULL: the user's cache folder; "" = no cache */
    bool keep_quantized;         /* a 4-bit checkpoint is taken as it is even without load_in_4bit */
    bool hollow_ok;              /* where config.json is there and weights are not: their shapes, to plan with */
    bool reinit;                 /* ignore the weight files (there may be none): normal(0, init_std) as transformers' */
    uint64_t seed;               /* for reinit */
    bool keep_f32;               /* reinit only: hold weights as f32 (adapter: full) */
} nb_base_options;

/* Weights that are not quantized stay in the mapped file, in its own dtype. Quantized ones come from a cache file that
 * is mapped too, or from memory (with a warning) when it cannot be written.
 * Messages name file and tensor: missing file, truncated shard, impossible offsets, missing tensor, shape that
 * does not match config.json. Quantizing is parallel and shows progress. Checkpoints saved by bitsandbytes in 4 bits
 * load as they are (load_in_4bit false then is an error). */
nb_status nb_base_load(nb_base **out, const char *dir_or_name, const nb_base_options *o);
/* The same in two parts. The first maps the files and checks names and shapes. The second, with the same options, makes the
 * weights ready to compute with, which may take minutes: what else a run needs is looked at in between. */
nb_status nb_base_open(nb_base **out, const char *dir_or_name, const nb_base_options *o);
nb_status nb_base_ready(nb_base *b, const nb_base_options *o);
void nb_base_free(nb_base *b);
/* The weight files of a model folder. The names are the whole model's, also where the file was saved from the model
 * without its head and lacks the prefix ("h.0.ln_1.weight" for "transformer.h.0.ln_1.weight"). */
nb_status nb_base_open_files(nb_st *st, const nb_spec *s, const char *dir);
/* A float weight whose data is [cols, rows], as [rows, cols]. */
void nb_weight_turn(void *out, const nb_weight *w);
/* Does a model folder say that its weights are saved in 4 bits? */
bool nb_base_is_quantized(const char *dir);
/* Is it a table of old files (rotary frequencies, the mask of attention) that is computed, not read? */
bool nb_base_is_derived(const nb_st_tensor *t);
/* Gives b->layer room for what b->spec has, the lin of all layers one array; and frees it, with the names in it. */
void nb_base_make_room(nb_base *b);
void nb_base_free_room(nb_base *b);
/* n more rows of embedding and untied head, for tokens it has no row for: a copy of both, the new rows the mean of the
 * old ones (as transformers' resize_token_embeddings started them). Before a model is opened on the base. */
nb_status nb_base_extend(nb_base *b, int64_t n);
/* The output head in fewer bits, from the cache or quantized now; after nb_base_extend, before a model is opened on the
 * base. cache: as in nb_base_options. */
nb_status nb_base_quantize_head(nb_base *b, nb_head_quant q, const char *cache);
/* The tensors that a Hugging Face folder of this base in floats would have, in one file "model.safetensors": floats as they
 * are held, vectors in f32. Those held in blocks are BF16, those in 4 bits what they were quantized from, with data NULL,
 * and so are those that a folder has turned: nb_base_matrix has their values. Close with nb_st_close before the base is
 * freed. */
void nb_base_list(const nb_base *b, nb_st *out);
/* The weight that a tensor of this name is ("model.embed_tokens.weight"); NULL: it is no matrix of the base. */
const nb_weight *nb_base_matrix(const nb_base *b, const char *tensor);
/* What most of the linear layers' weights are held in: "nf4", "bf16", "q4_k". */
const char *nb_base_format(const nb_base *b);
/* Bytes of all weights as they are held; or as they would be with the linear layers in NF4, double quantization. */
int64_t nb_base_bytes(const nb_base *b, bool in_4bit);

/* "org/name" -> snapshot folder in the local Hugging Face cache ($HF_HUB_CACHE, $HF_HOME/hub,
 * ~/.cache/huggingface/hub); an existing folder -> itself, but the GGUF model in it where it has one and no
 * config.json; a file in GGUF -> itself. Caller frees *dir. */
nb_status nb_base_resolve(const char *dir_or_name, char **dir);
/* sha256 over a folder's config.json and weight files (names and bytes; the same for a copy elsewhere), or over the
 * parts of a model in GGUF; of one file alone its own. Each one is remembered in the cache folder by real path, size,
 * time and inode. */
nb_status nb_base_sha256(const char *dir, nb_hex out);

/* Writes DIR_OUT (new or empty) as transformers + bitsandbytes save a 4-bit model: linear layers packed with
 * their quant_state, the rest as it is, config.json with quantization_config, tokenizer files copied. The cache has the
 * same form. */
nb_status nb_base_quantize_dir(const char *dir_or_name, const char *dir_out, bool double_quant);
/* Reads such a folder back: every 4-bit weight is within NF4's step of the one it was made of, all else is equal. *n
 * tensors were compared, *bytes are in the folder's. */
nb_status nb_base_verify_quantized(const char *dir_or_name, const char *dir_out, int64_t *n, int64_t *bytes);

#endif
