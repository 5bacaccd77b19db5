/* A Hugging Face model as llama.cpp's GGUF describes one: names of architectures, keys and tensors, and what changes in
 * the values: rows of q and k in another order, 1 added to Gemma's norms, a layer's experts in one tensor. The tables
 * serve both ways: files are written from them (gguf_map.c, gguf_plan.c) and read by them (gguf_config.c,
 * gguf_base.c). */
#ifndef NB_MODEL_GGUF_MAP_H
#define NB_MODEL_GGUF_MAP_H

#include "model/gguf.h"
#include "model/safetensors.h"
#include "model/spec.h"

/* Parts of a model that a mixture of types may tell apart. */
typedef enum nb_gguf_part {
    NB_GGUF_PLAIN, NB_GGUF_MORE, NB_GGUF_OUTPUT, NB_GGUF_EIGHT_KV, NB_GGUF_EIGHT_O, NB_GGUF_WHOLE
} nb_gguf_part;

/* What --dtype names (gguf_mix.c). Vectors are F32 in all of them. */
typedef struct nb_gguf_mix {
    const char *name;
    uint32_t file_type;              /* llama.cpp's number of it */
    nb_gguf_type type, more, output; /* of matrices; of attn_v (or attn_qkv) and ffn_down in some layers; of the head,
                                        which is the embedding when they are tied. Learned positions and routers
                                        stay F32 */
    nb_gguf_type eight_kv, eight_o;  /* with 8 experts: of attn_k, attn_v; of attn_output */
} nb_gguf_mix;
const nb_gguf_mix *nb_gguf_mix_find(const char *name); /* NULL: there is none. "q4_k" is "q4_k_m" */
extern const char nb_gguf_mix_names[];                 /* for messages */

/* llama.cpp's architecture of a family, and what its graph takes for granted. */
typedef struct nb_gguf_family {
    const char *family, *name; /* model_type; general.architecture */
    bool interleaved;     /* rotates neighbouring dims: rows of q and k are reordered; others rotate halves, as HF */
    bool biases;          /* takes biases of linear layers */
    bool all_biases;      /* ... and has to be given them */
    nb_act act;
    bool any_gelu;        /* computes GELU in its tanh form where HF has either */
    int pattern;          /* all but every so manyth layer have a window; 0: windows are ignored */
    bool window_key;      /* has a key for the window's size */
    int no_rope;          /* every so manyth layer has no positions */
    bool any_rope;        /* reads factors for llama3 and longrope */
    int64_t scale_layers; /* with so many layers, attention is scaled by (hidden / heads)^-0.5, not head_dim^-0.5 */
    bool tied;            /* has no output head of its own */
    bool own_head;        /* always has one: a tied one is written twice */
    bool square;          /* queries are as wide as the residual stream */
    bool no_groups;       /* as many key/value heads as heads */
    bool clips;           /* keeps q, k, v within clip_qkv */
    bool parallel_key;    /* has a key for attention and MLP side by side */
    bool experts, renorm; /* every layer is a mixture of experts; the chosen ones' weights are divided by their sum */
} nb_gguf_family;
/* By general.architecture, and whether the file has experts, which tells Mixtral from Llama; NULL: not one of ours.
 * Rows of a name follow one another. */
const nb_gguf_family *nb_gguf_family_find(const char *arch, bool experts);
const nb_gguf_family *nb_gguf_family_of(const nb_spec *s); /* NULL: it is none of those that can be written */
char *nb_gguf_families_text(void); /* all of them, for messages; caller frees */
/* Gemma's scale of attention is no key: it is this number to the power of -0.5. */
double nb_gguf_attn_scalar(const nb_gguf_family *a, int64_t layers, int64_t hidden, int64_t heads, int64_t head_dim);

/* Sizes: a key behind "ARCH.", what config.json calls it (NULL: it has no such), and its int64_t in nb_spec. */
typedef struct nb_gguf_size { const char *key, *config; size_t at; } nb_gguf_size;
enum { NB_GGUF_SIZES = 9 };
extern const nb_gguf_size nb_gguf_sizes[NB_GGUF_SIZES];

enum { NB_GGUF_NAME = 64 };
/* "blk.N.attn_q" of a linear layer, before ".weight" or ".bias". All experts of a kind have one name. */
void nb_gguf_linear_name(const nb_spec *s, int64_t layer, int slot, char name[NB_GGUF_NAME]);
/* "blk.N.attn_norm", likewise. */
void nb_gguf_norm_name(int64_t layer, nb_norm_slot slot, char name[NB_GGUF_NAME]);

/* The order of a linear layer's rows: HF has them as [outer][m][n][inner], the file as [outer][n][m][inner]; n 0: as HF
 * has them. */
typedef struct nb_gguf_order { int64_t outer, n, m, inner; } nb_gguf_order;
nb_gguf_order nb_gguf_order_of(const nb_spec *s, int slot);
/* Which of HF's rows row r of the file is. */
int64_t nb_gguf_row(int64_t r, const nb_gguf_order *o);

/* One tensor of the file to be. */
typedef struct nb_gguf_item {
    char name[NB_GGUF_MAX_NAME + 1];
    int n_dims;
    int64_t rows, cols;        /* [rows, cols]; one dimension: [rows], cols 1; three: the rows of all experts */
    int64_t experts;           /* three dimensions: their number */
    const nb_st_tensor **from; /* of each expert, else one; owned; NULL: `values` */
    nb_gguf_order order;       /* of the rows */
    bool turned;               /* `from` is [cols, rows] */
    float add;
    float *values;            /* owned */
    nb_gguf_part part;
} nb_gguf_item;

typedef struct nb_gguf_plan {
    nb_gguf_item *items;
    int n, cap;
} nb_gguf_plan;

/* Refuses by name families, and settings of a family, that llama.cpp has not or computes otherwise; warns of a sliding
 * window that it ignores. */
nb_status nb_gguf_check(const nb_spec *s, const char *where);
/* The architecture's keys: sizes, norms, rope, windows. */
void nb_gguf_put_spec(nb_gguf_writer *w, const nb_spec *s);
/* Every tensor, in the order of the file. Refuses a tensor of the folder that has no place. */
nb_status nb_gguf_plan_make(nb_gguf_plan *p, const nb_spec *s, const nb_st *st);
void nb_gguf_plan_free(nb_gguf_plan *p);
/* An empty item behind the others; three dimensions: `rows` of each expert. */
nb_gguf_item *nb_gguf_plan_add(nb_gguf_plan *p, const char *name, int n_dims, int64_t rows, int64_t cols,
                               int64_t experts);
/* Its dimensions in the file's order, 1 beyond n_dims. */
void nb_gguf_item_shape(const nb_gguf_item *it, int64_t ne[3]);
/* Rows first..first+n as they are to be in the file, before they are encoded. */
void nb_gguf_item_read(const nb_gguf_item *it, float *out, int64_t first, int64_t n);
/* The part that a tensor of this name is, in a model of so many layers and experts; tied: without a head. */
nb_gguf_part nb_gguf_part_of(const char *name, int64_t layers, int64_t experts, bool tied);
/* The type an item is stored in. Where rows are not whole blocks, a larger type: Q4_K becomes Q5_0, Q5_K Q5_1, Q6_K Q8_0,
 * and without whole blocks of 32 it is F16. */
nb_gguf_type nb_gguf_item_type(const nb_gguf_item *it, const nb_gguf_mix *mix);

#endif
