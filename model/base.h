/* Shared by the files that fill an nb_base: weights.c, reinit.c, quantize.c, nf4_file.c. */
#ifndef NB_MODEL_BASE_H
#define NB_MODEL_BASE_H

#include "model/safetensors.h"
#include "model/weights.h"

struct nb_base_store {
    nb_st st, cache; /* the folder's weights; the file of quantized ones */
    bool *used;      /* [st.n_tensors] */
    struct {
        void *p;
        size_t bytes;
    } *bufs;
    int n_bufs, cap;
};

/* A zeroed buffer that lives as long as the base. */
nb_status nb_base_buffer(nb_base *b, void **out, size_t bytes, const char *what);
/* The tensor's data where it can be used as it lies: in the map, or copied when unaligned. */
nb_status nb_base_data(nb_base *b, const nb_st_tensor *t, const void **out);
/* Finds a tensor of this shape (d1 = 0: one dimension) or fails naming file, tensor and the nearest name. */
nb_status nb_base_find(nb_base *b, const nb_st *s, const char *name, int64_t d0, int64_t d1,
                       const nb_st_tensor **out);
/* Fails when a weight that is to be computed with is not F32, BF16 or F16. */
nb_status nb_base_check_float(const nb_st *s, const nb_st_tensor *t);

/* Every weight drawn anew (b->spec is set, no file is read). */
nb_status nb_base_reinit(nb_base *b, const nb_base_options *o);

#endif
