/* A Hugging Face model as llama.cpp's GGUF describes one: names of architectures, keys and tensors, and what changes in
 * the values: rows of q and k in another order, 1 added to Gemma's norms. */
#ifndef NB_MODEL_GGUF_MAP_H
#define NB_MODEL_GGUF_MAP_H

#include "model/gguf.h"
#include "model/safetensors.h"
#include "model/spec.h"

/* One tensor of the file to be. */
typedef struct nb_gguf_item {
    char name[NB_GGUF_MAX_NAME + 1];
    int n_dims;
    int64_t rows, cols;       /* [rows, cols]; one dimension: [rows], cols 1 */
    const nb_st_tensor *from; /* NULL: `values` */
    int64_t heads;            /* rows are stored head by head, halves of each head interleaved; 0: as they are */
    bool turned;              /* `from` is [cols, rows] */
    float add;
    float *values;            /* owned */
} nb_gguf_item;

typedef struct nb_gguf_plan {
    nb_gguf_item *items;
    int n, cap;
} nb_gguf_plan;

/* Refuses by name families, and settings of a family, that llama.cpp has not or computes otherwise; warns of a sliding
 * window that it ignores. */
nb_status nb_gguf_check(const nb_spec *s, const char *where);
/* llama.cpp's name of the architecture; NULL: it is none of those that can be written. */
const char *nb_gguf_arch(const nb_spec *s);
/* The architecture's keys: sizes, norms, rope, windows. */
void nb_gguf_put_spec(nb_gguf_writer *w, const nb_spec *s);
/* Every tensor, in the order of the file. Refuses a tensor of the folder that has no place. */
nb_status nb_gguf_plan_make(nb_gguf_plan *p, const nb_spec *s, const nb_st *st);
void nb_gguf_plan_free(nb_gguf_plan *p);
/* Rows first..first+n as they are to be in the file, before they are encoded. */
void nb_gguf_item_read(const nb_gguf_item *it, float *out, int64_t first, int64_t n);
/* The type an item is stored in when the file's is `type`: vectors stay F32, rows that are not whole blocks F16. */
nb_gguf_type nb_gguf_item_type(const nb_gguf_item *it, nb_gguf_type type);

/* A linear layer by its module path: its name ("blk.0.attn_q", into 64 bytes) and heads as above; false: unknown. */
bool nb_gguf_linear(const nb_spec *s, const char *module, char *name, int64_t *heads);
/* Where row r of a matrix stored in `heads` comes from: row 2j + t of a head of D rows was row t D/2 + j. */
int64_t nb_gguf_row(int64_t r, int64_t rows, int64_t heads);

#endif
