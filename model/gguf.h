/* GGUF version 3, the file format of llama.cpp: written as a stream, read through a map with every count, length and
 * offset checked before use.
 *
 *   "GGUF" u32 version u64 tensors u64 keys | keys: string, u32 type, value | tensors: string, u32 n, u64 ne[n],
 *   u32 type, u64 offset | zeros up to the alignment | data, every tensor padded to the alignment
 *
 * Little endian, strings with a u64 length in front. ne[0] is the dimension that runs fastest: a [rows, cols] matrix of
 * safetensors has ne = {cols, rows} and the same bytes. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#ifndef NB_MODEL_GGUF_H
#define NB_MODEL_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "core/file.h"
#include "core/status.h"
#include "kernels/weight.h"

/* Tensor types, by their numbers in the file. */
typedef enum nb_gguf_type {
    NB_GGUF_F32 = 0, NB_GGUF_F16 = 1, NB_GGUF_Q4_0 = 2, NB_GGUF_Q4_1 = 3, NB_GGUF_Q5_0 = 6, NB_GGUF_Q5_1 = 7,
    NB_GGUF_Q8_0 = 8, NB_GGUF_Q4_K = 12, NB_GGUF_Q5_K = 13, NB_GGUF_Q6_K = 14, NB_GGUF_BF16 = 30
} nb_gguf_type;
enum { NB_GGUF_MAX_DIMS = 4, NB_GGUF_MAX_NAME = 63, NB_GGUF_ALIGN = 32, NB_GGUF_BLOCK = 32 /* Q8_0: values a block */ };

const char *nb_gguf_type_name(nb_gguf_type t); /* "f32", "q8_0", "q4_k", ...; NULL: one that is not read */
bool nb_gguf_type_find(const char *name, nb_gguf_type *t);
bool nb_gguf_type_written(nb_gguf_type t); /* can nb_gguf_encode make it? */
/* A weight's format with the same bytes (kernels/weight.h): its block is what a row is a multiple of. */
nb_format nb_gguf_type_format(nb_gguf_type t);
/* Bytes of n values; n is a multiple of the type's block. */
size_t nb_gguf_bytes(nb_gguf_type t, int64_t n);
/* n values (whole blocks) to a type (F32, F16, BF16, Q8_0) and from any. Q8_0: per 32 values an f16 scale
 * d = max|x| / 127 and bytes round(x / d), halves away from 0. */
void nb_gguf_encode(nb_gguf_type t, void *out, const float *x, int64_t n);
void nb_gguf_decode(nb_gguf_type t, float *out, const void *data, int64_t n);

/* ---- reading ---- */

/* Kinds of values, by their numbers in the file. */
typedef enum nb_gguf_kind {
    NB_GGUF_KU8, NB_GGUF_KI8, NB_GGUF_KU16, NB_GGUF_KI16, NB_GGUF_KU32, NB_GGUF_KI32, NB_GGUF_KF32, NB_GGUF_KBOOL,
    NB_GGUF_KSTR, NB_GGUF_KARRAY, NB_GGUF_KU64, NB_GGUF_KI64, NB_GGUF_KF64, NB_GGUF_KINDS
} nb_gguf_kind;

typedef struct nb_gguf_key {
    char *name;
    nb_gguf_kind kind, of;  /* of: an array's elements */
    uint64_t n;             /* elements of an array; bytes of a string */
    const uint8_t *data;    /* in the map, unaligned; strings in an array still have their lengths in front */
} nb_gguf_key;

typedef struct nb_gguf_tensor {
    char *name;
    nb_gguf_type type;
    int n_dims;
    int64_t ne[NB_GGUF_MAX_DIMS]; /* 1 beyond n_dims */
    const uint8_t *data;
    size_t bytes;
} nb_gguf_tensor;

typedef struct nb_gguf {
    nb_map map;
    nb_gguf_key *keys;
    int64_t n_keys;
    nb_gguf_tensor *tensors; /* sorted by name */
    int64_t n_tensors;
} nb_gguf;

nb_status nb_gguf_open(nb_gguf *g, const char *path);
void nb_gguf_close(nb_gguf *g);
const nb_gguf_key *nb_gguf_find_key(const nb_gguf *g, const char *name);       /* NULL when absent */
const nb_gguf_tensor *nb_gguf_find_tensor(const nb_gguf *g, const char *name); /* NULL when absent */
/* A whole number or bool; false when the key is absent or something else. */
bool nb_gguf_int(const nb_gguf *g, const char *name, int64_t *out);
bool nb_gguf_real(const nb_gguf *g, const char *name, double *out); /* F32 or F64 */
/* A copy of a string (caller frees); NULL when the key is absent or something else. */
char *nb_gguf_str(const nb_gguf *g, const char *name);
/* Copies of lists (caller frees them, and every string); false, nothing to free, when the key is absent, something
 * else, or has a string with a NUL. */
bool nb_gguf_strs(const nb_gguf *g, const char *name, char ***out, int64_t *n);
bool nb_gguf_f32s(const nb_gguf *g, const char *name, float **out, int64_t *n);
bool nb_gguf_i32s(const nb_gguf *g, const char *name, int32_t **out, int64_t *n); /* of I32 or U32 */

/* ---- writing ---- */

/* Keys first, then every tensor declared, then the data of all in that order, in pieces of any size. Atomic: PATH
 * appears at nb_gguf_write_end. Fails before the first byte of data when the disk has too little room. */
typedef struct nb_gguf_writer nb_gguf_writer;
nb_status nb_gguf_write_begin(nb_gguf_writer **w, const char *path);
void nb_gguf_put_u32(nb_gguf_writer *w, const char *key, uint32_t v);
void nb_gguf_put_f32(nb_gguf_writer *w, const char *key, float v);
void nb_gguf_put_bool(nb_gguf_writer *w, const char *key, bool v);
void nb_gguf_put_str(nb_gguf_writer *w, const char *key, const char *s);
void nb_gguf_put_strs(nb_gguf_writer *w, const char *key, const char *const *s, int64_t n);
void nb_gguf_put_f32s(nb_gguf_writer *w, const char *key, const float *v, int64_t n);
void nb_gguf_put_i32s(nb_gguf_writer *w, const char *key, const int32_t *v, int64_t n);
/* Refuses names that are too long. ne[0] is a multiple of the type's block. */
nb_status nb_gguf_write_declare(nb_gguf_writer *w, const char *name, nb_gguf_type type, int n_dims, const int64_t *ne);
nb_status nb_gguf_write_data(nb_gguf_writer *w, const void *data, size_t bytes);
nb_status nb_gguf_write_end(nb_gguf_writer *w); /* frees w, also on failure */
void nb_gguf_write_abort(nb_gguf_writer *w);    /* frees w and removes the temporary file */

#endif
