/* Shared by the files that fill an nb_base: weights.c, conv1d.c, reinit.c, hollow.c, quantize.c, nf4_file.c. */
#ifndef NB_MODEL_BASE_H
#define NB_MODEL_BASE_H

#include "core/names.h"
#include "model/safetensors.h"
#include "model/weights.h"

struct nb_base_store {
    nb_st st, cache; /* the folder's weights; the file of quantized ones */
    nb_map head;     /* the file of the quantized head */
    nb_names linear; /* names of linear layers, to their place among all of them */
    struct nb_gguf_model *gguf; /* instead of st: the files in GGUF */
    bool *used;      /* [st.n_tensors] */
    struct {
        void *p;
        size_t bytes;
    } *bufs;
    int n_bufs, cap;
};

/* Names the linear layers, once there is room for them. */
void nb_base_name_linear(nb_base *b);
/* A zeroed buffer that lives as long as the base. */
nb_status nb_base_buffer(nb_base *b, void **out, size_t bytes, const char *what);
/* The tensor's data where it can be used as it lies: in the map, or copied when unaligned. */
nb_status nb_base_data(nb_base *b, const nb_st_tensor *t, const void **out);
/* Finds a tensor of this shape (d1 = 0: one dimension) or fails naming file, tensor and the nearest name. */
nb_status nb_base_find(nb_base *b, const nb_st *s, const char *name, int64_t d0, int64_t d1,
                       const nb_st_tensor **out);
/* conv1d.c. Every linear layer that is still as its file has it gets a copy with rows and columns in our order. */
nb_status nb_base_turn(nb_base *b);
/* Fails when a weight that is to be computed with is not F32, BF16 or F16. */
nb_status nb_base_check_float(const nb_st *s, const nb_st_tensor *t);

/* nf4_file.c. A quantized linear layer in bitsandbytes' form: its tensors declared, written, read. `found` is false
 * when the file has none under this name. */
nb_status nb_nf4_declare(nb_st_writer *w, const char *module, int64_t rows, int64_t cols, bool double_quant);
nb_status nb_nf4_write(nb_st_writer *out, const char *module, const nb_weight *w);
nb_status nb_nf4_read(nb_base *b, const nb_st *s, nb_weight *w, const char *module, int64_t rows, int64_t cols,
                      bool *found);

/* n ones: the weights of a norm that has none. */
nb_status nb_base_ones(nb_base *b, const float **out, int64_t n);

/* gguf_base.c. All weights of the GGUF model b->dir, as they are stored (b->spec is set, the names are made). */
nb_status nb_base_load_gguf(nb_base *b);

/* quantize.c. The linear layers of a base with float weights in 4 bits: from the cache, or quantized now. */
nb_status nb_base_to_nf4(nb_base *b, const nb_base_options *o);
/* Their tensors in a file: declared, then quantized and written (with a progress bar). */
nb_status nb_base_declare_nf4(nb_base *b, nb_st_writer *w, bool double_quant);
nb_status nb_base_write_nf4(nb_base *b, nb_st_writer *w, bool double_quant);

/* hollow.c. Shapes alone, as they would be held (b->spec is set, config.json is read). */
nb_status nb_base_hollow(nb_base *b, const nb_base_options *o);

/* Every weight drawn anew (b->spec is set, no file is read). */
nb_status nb_base_reinit(nb_base *b, const nb_base_options *o);

#endif
