/* safetensors files and folders of shards, read through maps, every offset checked before use.
 * Format: u64 LE header length N, N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, data. The
 * tensors cover the data without gap or overlap. Messages name file, tensor and offset.
 * https://github.com/huggingface/safetensors */
#ifndef NB_MODEL_SAFETENSORS_H
#define NB_MODEL_SAFETENSORS_H

#include <jansson.h>

#include "core/dtype.h"
#include "core/file.h"
#include "core/status.h"

typedef struct nb_st_tensor {
    char *name;
    nb_dtype dtype;
    int n_dims;
    int64_t d[8];
    const void *data; /* in the map; foreign files need not align it to its dtype: copy, or nb_st_read_f32 */
    size_t bytes;
    int shard;        /* index into files */
} nb_st_tensor;

typedef struct nb_st {
    nb_map *files;
    int n_files;
    nb_st_tensor *tensors; /* sorted by name */
    int n_tensors;
    json_t *metadata;      /* __metadata__ of the first file, or NULL */
} nb_st;

nb_status nb_st_open_file(nb_st *s, const char *path);
/* DIR/STEM.safetensors.index.json if present, else DIR/STEM.safetensors ("model", "adapter_model"). */
nb_status nb_st_open_dir(nb_st *s, const char *dir, const char *stem);
void nb_st_close(nb_st *s);
const nb_st_tensor *nb_st_find(const nb_st *s, const char *name); /* NULL when absent */
/* Element i..i+n of a float tensor (F32, BF16, F16, F64) as f32. */
void nb_st_read_f32(const nb_st_tensor *t, float *out, int64_t first, int64_t n);
/* Rows first..first+n of the transpose of a float matrix, as f32: out [n, d[0]]. */
void nb_st_read_columns_f32(const nb_st_tensor *t, float *out, int64_t first, int64_t n);
/* Puts `prefix` before every tensor's name that has it not, but for `other`'s ("lm_head": lm_head.weight, ...). */
nb_status nb_st_add_prefix(nb_st *s, const char *prefix, const char *other);

const char *nb_st_dtype_name(nb_dtype dt);        /* the format's name, "BF16" */

/* Writing: declare every tensor, then give the data. Wider dtypes come first in the file, then names in order
 * (as the reference writer does): everything is aligned, and equal content gives equal bytes. Atomic: PATH
 * appears at nb_st_write_end. Fails before the first byte of data when the disk has too little room. */
typedef struct nb_st_writer nb_st_writer;
nb_status nb_st_write_begin(nb_st_writer **w, const char *path, const json_t *metadata /* borrowed, may be NULL */);
nb_status nb_st_write_declare(nb_st_writer *w, const char *name, nb_dtype dtype, int n_dims, const int64_t *d);
/* Data of a declared tensor, whole; order free, each exactly once. */
nb_status nb_st_write_data(nb_st_writer *w, const char *name, const void *data, size_t bytes);
nb_status nb_st_write_end(nb_st_writer *w);   /* frees w, also on failure */
void nb_st_write_abort(nb_st_writer *w);      /* frees w and removes the temporary file */

#endif
