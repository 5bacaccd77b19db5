/* A base of which only config.json is there: matrices of the right shapes and formats that all lie in one block of zeros,
 * which is never written and takes no memory. Enough for `nibble info` and `nibble plan`. */
#include <stdlib.h>

#include "core/json.h"
#include "core/mem.h"
#include "model/base.h"

enum { HEAD_AT = 64 }; /* the head begins elsewhere than the embedding: it is not tied */

static nb_weight matrix(const nb_base *b, const void *zeros, int64_t rows, int64_t cols, bool in_4bit) {
    nb_weight w = {.format = (nb_format)b->spec.dtype, .rows = rows, .cols = cols, .data = zeros};
    if (!in_4bit) return w;
    w.format = NB_FMT_NF4;
    w.nf4 = (nb_nf4){.code = nb_nf4_code, .blocksize = 64, .dtype = b->spec.dtype};
    if (!b->double_quant) return w.nf4.absmax = zeros, w;
    w.nf4.absmax_u8 = zeros, w.nf4.nested_absmax = zeros;
    w.nf4.nested_code = nb_dynamic_code, w.nf4.nested_blocksize = 256;
    return w;
}

/* Bytes of the largest matrix; vectors are shorter. */
static int64_t largest(const nb_spec *s) {
    int64_t most = s->vocab * s->hidden, rows, cols;
    if (s->learned_positions && s->context * s->hidden > most) most = s->context * s->hidden;
    for (int64_t l = 0; l < s->layers; l++)
        for (int k = 0; k < nb_spec_slots(s); k++) {
            nb_spec_linear_shape(s, l, k, &rows, &cols);
            if (rows * cols > most) most = rows * cols;
        }
    return most * (int64_t)sizeof(float);
}

/* Were the weights saved in 4 bits? */
static nb_status read_quantization(nb_base *b) {
    char *path = nb_path_join(b->dir, "config.json");
    json_t *c;
    nb_status st = nb_json_load(path, &c);
    const json_t *q = st == NB_OK ? json_object_get(c, "quantization_config") : NULL;
    if (json_is_object(q)) {
        b->prequantized = b->quantized = true;
        b->double_quant = false;
        st = nb_json_bool(q, "bnb_4bit_use_double_quant", &b->double_quant, path);
    }
    if (st == NB_OK) st = nb_sha256_file(path, b->sha256);
    json_decref(c);
    free(path);
    return st;
}

nb_status nb_base_hollow(nb_base *b, const nb_base_options *o) {
    const nb_spec *s = &b->spec;
    char *zeros;
    int64_t rows, cols;
    b->hollow = true;
    b->quantized = o->load_in_4bit, b->double_quant = o->double_quant;
    NB_TRY(read_quantization(b));
    NB_TRY(nb_base_buffer(b, (void **)&zeros, (size_t)largest(s) + HEAD_AT, "weights that are not there"));
    const float *vector = (const float *)(const void *)zeros;
    b->embed = matrix(b, zeros, s->vocab, s->hidden, false);
    if (s->learned_positions) b->positions = matrix(b, zeros, s->context, s->hidden, false);
    b->head.w = s->tied ? b->embed : matrix(b, zeros + HEAD_AT, s->vocab, s->hidden, false);
    if (s->head_bias) b->head.bias = vector;
    b->final_norm = vector, b->final_norm_bias = s->norm_kind == NB_NORM_LAYER ? vector : NULL;
    for (int64_t l = 0; l < s->layers; l++) {
        nb_base_layer *y = &b->layer[l];
        for (nb_norm_slot k = 0; k < NB_NORMS; k++)
            if (nb_spec_norm_size(s, k)) y->norm[k] = vector, y->norm_bias[k] = b->final_norm_bias;
        for (int k = 0; k < nb_spec_slots(s); k++) {
            nb_spec_linear_shape(s, l, k, &rows, &cols);
            if (!rows) continue;
            y->lin[k].w = matrix(b, zeros, rows, cols, b->quantized && !nb_spec_stays_float(k));
            if (nb_spec_linear_bias(s, k)) y->lin[k].bias = vector;
        }
    }
    return NB_OK;
}
