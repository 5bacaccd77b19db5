#include "measure/random_base.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/base.h"

const nb_shape nb_shapes[] = {
    {"tiny", "a tiny Llama", 2, 64, 96, 4, 2, 16, 512},
    {"sample-base", "the sample base", 6, 256, 640, 8, 4, 32, 4096},
    {"smollm2-135m", "SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152},
    {"smollm2-360m", "SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152},
    {"tinyllama-1.1b", "TinyLlama-1.1B", 22, 2048, 5632, 32, 4, 64, 32000},
    {"llama-3.2-1b", "Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256},
    {"llama-3.2-3b", "Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256},
    {"llama-3.1-8b", "Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256},
};
const int nb_n_shapes = NB_LEN(nb_shapes);

nb_status nb_shape_find(const nb_shape **out, const char *name) {
    nb_text list = {0};
    for (int i = 0; i < nb_n_shapes; i++) {
        if (!strcmp(nb_shapes[i].name, name)) {
            *out = &nb_shapes[i];
            nb_text_free(&list);
            return NB_OK;
        }
        nb_text_printf(&list, "%s %s", i ? "," : "", nb_shapes[i].name);
    }
    nb_status st = nb_fail(NB_EINPUT, "no shape '%s'; there are%s", name, list.s);
    nb_text_free(&list);
    return st;
}

/* About normal(0, 0.02): the sum of four uniform numbers. */
static void draw(float *x, int64_t n, uint32_t seed) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        uint32_t h = ((uint32_t)i + 1) * 0x9E3779B1u ^ seed * 0x85EBCA77u;
        h = (h ^ h >> 15) * 0x2C1B3C6Du;
        h = (h ^ h >> 12) * 0x297A2D39u;
        h ^= h >> 15;
        int sum = (int)(h & 255) + (int)(h >> 8 & 255) + (int)(h >> 16 & 255) + (int)(h >> 24) - 510;
        x[i] = (float)sum * (0.02f / 148);
    }
}

static nb_status to_nf4(nb_base *b, nb_weight *w, const float *x) {
    const int64_t n = w->rows * w->cols, blocks = (n + 63) / 64, part = 64 * 1024;
    uint8_t *packed, *u8;
    float *nested, *absmax, offset;
    NB_TRY(nb_base_buffer(b, (void **)&packed, (size_t)(n + 1) / 2, "random weights"));
    NB_TRY(nb_base_buffer(b, (void **)&u8, (size_t)blocks, "random weights"));
    NB_TRY(nb_base_buffer(b, (void **)&nested, (size_t)(blocks + 255) / 256 * sizeof *nested, "random weights"));
    NB_TRY(nb_big_alloc((void **)&absmax, (size_t)blocks * sizeof *absmax, "random weights"));
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i += part)
        nb_nf4_quantize(packed + i / 2, absmax + i / 64, x + i, NB_F32, n - i < part ? n - i : part);
    nb_nf4_quantize_absmax(u8, nested, &offset, absmax, blocks);
    nb_big_free(absmax, (size_t)blocks * sizeof *absmax);
    w->data = packed;
    w->nf4 = (nb_nf4){.code = nb_nf4_code, .absmax_u8 = u8, .nested_absmax = nested, .nested_code = nb_dynamic_code,
                      .nested_offset = offset, .blocksize = 64, .nested_blocksize = 256, .dtype = NB_BF16};
    return NB_OK;
}

static nb_status to_bf16(nb_base *b, nb_weight *w, const float *x) {
    const int64_t n = w->rows * w->cols;
    uint16_t *h;
    NB_TRY(nb_base_buffer(b, (void **)&h, (size_t)n * sizeof *h, "random weights"));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) h[i] = nb_f32_to_bf16(x[i]);
    w->data = h;
    return NB_OK;
}

static nb_status matrix(nb_base *b, nb_weight *w, nb_format format, int64_t rows, int64_t cols, uint32_t seed) {
    const size_t bytes = (size_t)(rows * cols) * sizeof(float);
    float *x;
    *w = (nb_weight){.format = format, .rows = rows, .cols = cols};
    NB_TRY(format == NB_FMT_F32 ? nb_base_buffer(b, (void **)&x, bytes, "random weights")
                                : nb_big_alloc((void **)&x, bytes, "random weights"));
    draw(x, rows * cols, seed);
    w->data = x;
    if (format == NB_FMT_F32) return NB_OK;
    nb_status st = format == NB_FMT_BF16 ? to_bf16(b, w, x) : to_nf4(b, w, x);
    nb_big_free(x, bytes);
    return st;
}

static nb_spec spec_of(const nb_shape *s, int64_t context) {
    return (nb_spec){.family = "llama", .architecture = "LlamaForCausalLM", .vocab = s->vocab, .hidden = s->hidden,
                     .mlp_hidden = s->mlp, .layers = s->layers, .heads = s->heads, .kv_heads = s->kv_heads,
                     .head_dim = s->head_dim, .context = context, .norm_eps = 1e-5f, .embed_scale = 1,
                     .attn_scale = (float)(1 / sqrt((double)s->head_dim)), .act = NB_ACT_SILU, .tied = true,
                     .dtype = NB_BF16, .bos = -1, .eos = -1, .init_std = 0.02f, .pre_norm = true,
                     .rope = {{.kind = NB_ROPE_DEFAULT, .theta = 10000, .attention = 1, .rot = (int)s->head_dim}}};
}

static nb_status fill(nb_base *b, const nb_shape *s, nb_format format) {
    float *ones;
    NB_TRY(nb_spec_check(&b->spec, s->name));
    NB_TRY(nb_base_buffer(b, (void **)&ones, (size_t)s->hidden * sizeof *ones, "random weights"));
    for (int64_t i = 0; i < s->hidden; i++) ones[i] = 1;
    NB_TRY(matrix(b, &b->embed, NB_FMT_BF16, s->vocab, s->hidden, 1));
    b->head.w = b->embed;
    b->final_norm = ones;
    for (int64_t l = 0; l < s->layers; l++) {
        for (nb_norm_slot k = 0; k < NB_NORMS; k++) b->layer[l].norm[k] = nb_spec_norm_size(&b->spec, k) ? ones : NULL;
        for (nb_slot k = 0; k < NB_SLOTS; k++) {
            nb_base_linear *lin = &b->layer[l].lin[k];
            int64_t rows, cols;
            nb_spec_linear_shape(&b->spec, l, k, &rows, &cols);
            NB_TRY(matrix(b, &lin->w, format, rows, cols, (uint32_t)(l * NB_SLOTS + k + 2)));
        }
    }
    return NB_OK;
}

nb_status nb_base_random(nb_base **out, const nb_shape *s, nb_format format, int64_t context) {
    nb_base *b = NB_NEW(nb_base);
    b->store = NB_NEW(struct nb_base_store);
    b->spec = spec_of(s, context);
    b->quantized = format == NB_FMT_NF4, b->double_quant = true;
    b->dir = nb_strdup(s->name);
    b->head.name = nb_strdup(nb_spec_head_name(&b->spec));
    nb_base_make_room(b);
    nb_base_name_linear(b);
    nb_status st = fill(b, s, format);
    *out = st == NB_OK ? b : NULL;
    if (st != NB_OK) nb_base_free(b);
    return st;
}
