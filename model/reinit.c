/* Weights drawn as transformers initializes a new model: normal(0, initializer_range), norms 1, biases 0. A row
 * is a random stream of its own, so that neither threads nor the order of tensors change a number. */
#include <math.h>
#include <stdlib.h>

#include "core/mem.h"
#include "core/rng.h"
#include "model/base.h"

static uint64_t name_hash(const char *name) { /* FNV-1a */
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    return h;
}

static void store(void *data, nb_dtype dt, int64_t i, float x) {
    if (dt == NB_F32) ((float *)data)[i] = x;
    else ((uint16_t *)data)[i] = dt == NB_BF16 ? nb_f32_to_bf16(x) : nb_f32_to_f16(x);
}

static nb_status draw(nb_base *b, nb_weight *w, const char *module, int64_t rows, int64_t cols, nb_dtype dt,
                      double std, uint64_t seed) {
    void *data;
    NB_TRY(nb_base_buffer(b, &data, (size_t)(rows * cols) * (size_t)nb_dtype_size(dt), module));
    uint64_t index = name_hash(module);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        nb_rng r = nb_rng_open(seed, NB_RNG_INIT, index + (uint64_t)i);
        for (int64_t j = 0; j < cols; j++) store(data, dt, i * cols + j, (float)(std * nb_rng_normal(&r)));
    }
    *w = (nb_weight){.format = (nb_format)dt, .rows = rows, .cols = cols, .data = data};
    return NB_OK;
}

static nb_status constant(nb_base *b, const float **out, int64_t n, float x, const char *what) {
    void *p;
    NB_TRY(nb_base_buffer(b, &p, (size_t)n * sizeof(float), what));
    for (int64_t i = 0; i < n; i++) ((float *)p)[i] = x;
    *out = p;
    return NB_OK;
}

static nb_status norm(nb_base *b, const float **weight, const float **bias, int64_t n) {
    const nb_spec *s = &b->spec;
    NB_TRY(constant(b, weight, n, 1 - s->norm_offset, "norms"));
    return s->norm_kind == NB_NORM_LAYER && !s->bare_norm ? constant(b, bias, n, 0, "norms") : NB_OK;
}

nb_status nb_base_reinit(nb_base *b, const nb_base_options *o) {
    const nb_spec *s = &b->spec;
    nb_dtype dt = o->keep_f32 ? NB_F32 : s->dtype;
    int64_t C = s->hidden, rows, cols;
    double std = s->init_std, last = s->init_by_depth ? std / sqrt(2 * (double)s->layers) : std;
    NB_TRY(draw(b, &b->embed, nb_spec_embed_name(s), s->vocab, C, dt, std, o->seed));
    if (s->learned_positions)
        NB_TRY(draw(b, &b->positions, nb_spec_positions_name(s), s->context, C, dt, std, o->seed));
    if (s->tied) b->head.w = b->embed;
    else NB_TRY(draw(b, &b->head.w, b->head.name, s->vocab, C, dt, std, o->seed));
    NB_TRY(norm(b, &b->final_norm, &b->final_norm_bias, C));
    for (int64_t l = 0; l < s->layers; l++) {
        nb_base_layer *y = &b->layer[l];
        for (nb_norm_slot k = 0; k < NB_NORMS; k++)
            if (nb_spec_norm_size(s, k)) NB_TRY(norm(b, &y->norm[k], &y->norm_bias[k], nb_spec_norm_size(s, k)));
        for (int k = 0; k < nb_spec_slots(s); k++) {
            nb_base_linear *lin = &y->lin[k];
            nb_spec_linear_shape(s, l, k, &rows, &cols);
            if (!rows) continue;
            bool to_residual = k == NB_O || k == NB_DOWN;
            NB_TRY(draw(b, &lin->w, lin->name, rows, cols, dt, to_residual ? last : std, o->seed));
            if (nb_spec_linear_bias(s, k)) NB_TRY(constant(b, &lin->bias, rows, 0, "biases"));
        }
    }
    return NB_OK;
}
