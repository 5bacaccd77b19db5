/* A frozen weight matrix as it lies in memory or in a mapped file, and how to read it.
 * Only this file's functions know the formats; products ask for panels of rows. */
#ifndef NB_KERNELS_WEIGHT_H
#define NB_KERNELS_WEIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/status.h"

/* From Q4_0 on: GGUF's formats of blocks (kernels/blocks.h). A row of theirs is whole blocks. */
typedef enum nb_format {
    NB_FMT_F32, NB_FMT_BF16, NB_FMT_F16, NB_FMT_NF4,
    NB_FMT_Q4_0, NB_FMT_Q4_1, NB_FMT_Q5_0, NB_FMT_Q5_1, NB_FMT_Q8_0, NB_FMT_Q4_K, NB_FMT_Q5_K, NB_FMT_Q6_K,
    NB_FMT_COUNT
} nb_format;
const char *nb_format_name(nb_format f); /* "f32", "bf16", "f16", "nf4", "q4_0", ... "q4_k", ... */
/* What a row has to be a multiple of: 32 or 256 for formats of blocks, else 1. */
int nb_format_block(nb_format f);
/* Bytes of n values, without NF4's statistics; n is a multiple of the block. */
int64_t nb_format_bytes(nb_format f, int64_t n);

/* NF4 as bitsandbytes stores it: the [rows, cols] matrix flattened row-major, blocks of `blocksize`
 * consecutive elements (a block may straddle rows, the last may be short), two elements a byte:
 *
 *      byte j     [ element 2j | element 2j+1 ]
 *                  bits 7..4     bits 3..0
 *
 * value(e) = round_to(dtype, code[nibble(e)] * absmax(e / blocksize)), and with double quantization
 * absmax(b) = nested_code[absmax_u8[b]] * nested_absmax[b / nested_blocksize] + nested_offset
 * (two roundings, no fused multiply-add). */
typedef struct nb_nf4 {
    const float *code;         /* [16] */
    const float *absmax;       /* [ceil(n/blocksize)], or NULL with double quantization */
    const uint8_t *absmax_u8;  /* [ceil(n/blocksize)], or NULL without */
    const float *nested_absmax, *nested_code; /* [ceil(blocks/nested_blocksize)], [256] */
    float nested_offset;
    int32_t blocksize, nested_blocksize;
    nb_dtype dtype;            /* dtype of the weight when it was quantized: values are rounded to it */
} nb_nf4;

typedef struct nb_weight {
    nb_format format;
    int64_t rows, cols; /* [out, in]: y = x W^T */
    const void *data;   /* borrowed: a mapped file or a buffer that outlives this */
    nb_nf4 nf4;         /* for NB_FMT_NF4 */
    struct nb_home *home; /* NULL: data is always there; else nb_weight_acquire brings it */
} nb_weight;

/* Where weights come from that are not always on the device: shared out over ranks, or kept elsewhere. */
typedef struct nb_home {
    /* Completes *w, a copy of the descriptor, with pointers that stay good until the next two layers were acquired. */
    nb_status (*acquire)(struct nb_home *h, nb_weight *w);
} nb_home;
/* *here = w with its data on the device. Linear layers begin with this; embedding and head have no home. */
nb_status nb_weight_acquire(const nb_weight *w, nb_weight *here);

/* out[i*ld + j] = W[row0+i, col0+j] in f32, for n_rows x n_cols. Any shape, any alignment. */
void nb_weight_decode(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                      int64_t n_cols);
/* Scale of block `b`. */
float nb_nf4_absmax(const nb_nf4 *q, int64_t b);
/* Bytes of the stored form, statistics included. */
int64_t nb_weight_bytes(const nb_weight *w);
/* Refuses a weight whose rows are not whole blocks of its format; `name` is what the message calls it. */
nb_status nb_weight_check(const nb_weight *w, const char *name);

extern const float nb_nf4_code[16];      /* bitsandbytes' NF4 levels */
extern const float nb_dynamic_code[256]; /* bitsandbytes' signed dynamic map (create_dynamic_map) */

/* Quantizes n elements to NF4 with blocks of 64, equal to bitsandbytes' CUDA quantizer where that is
 * defined (an all-zero block gets nibbles 7). x is F32, BF16 or F16. Written by the calling thread:
 * callers split work by blocks. packed [(n+1)/2], absmax [ceil(n/64)]. */
void nb_nf4_quantize(uint8_t *packed, float *absmax, const void *x, nb_dtype dtype, int64_t n);
/* Double quantization of n_blocks scales: u8 [n_blocks], nested_absmax [ceil(n_blocks/256)], offset. */
void nb_nf4_quantize_absmax(uint8_t *u8, float *nested_absmax, float *offset, const float *absmax, int64_t n_blocks);

#endif
