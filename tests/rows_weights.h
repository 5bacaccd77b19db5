/* Frozen weights for checks of rows: drawn, laid out in any format, on the device, and their values on the host. */
#ifndef NB_TESTS_ROWS_WEIGHTS_H
#define NB_TESTS_ROWS_WEIGHTS_H

#include <string.h>

#include "tests/rows.h"

typedef struct weight_kind {
    nb_format format;
    /* of NF4 */
    int32_t blocksize;
    bool nested;    /* double quantization */
    nb_dtype dtype; /* of the weight when it was quantized */
} weight_kind;

/* Blocks of random bytes whose f16 scales are between 2^-8 and 2^-7, either sign. */
static inline uint8_t *rows_draw_blocks(nb_rowtest *t, nb_format f, int64_t n) {
    const bool two = f == NB_FMT_Q4_1 || f == NB_FMT_Q5_1 || f == NB_FMT_Q4_K || f == NB_FMT_Q5_K;
    const int64_t bytes = nb_format_bytes(f, n), block = nb_format_bytes(f, nb_format_block(f));
    const int64_t first = f == NB_FMT_Q6_K ? 208 : 0, second = two ? 2 : first;
    uint8_t *p = (uint8_t *)rows_draw_ids(t, bytes / 4 + 1, INT32_MAX);
    for (int64_t i = 3; i < bytes; i += 4) p[i] |= (uint8_t)(p[i - 1] << 7); /* ids have no sign */
    for (int64_t b = 0; b < bytes; b += block) {
        p[b + first + 1] = (uint8_t)(0x1c | (p[b + first + 1] & 0x83));
        p[b + second + 1] = (uint8_t)(0x1c | (p[b + second + 1] & 0x83));
    }
    return p;
}

/* *on_device describes the weight as rows take it. Returns its values [rows, cols] as nb_weight_decode has them, which
 * rows take as nb_round_bf16 of them when d->compute is BF16. */
static inline float *rows_weight(nb_rowtest *t, nb_weight *on_device, weight_kind kind, int64_t rows, int64_t cols) {
    const int64_t n = rows * cols;
    nb_weight here = {.format = kind.format, .rows = rows, .cols = cols}, there = here;
    float *values = rows_draw(t, n, 1, NB_F32);
    if (kind.format == NB_FMT_NF4) {
        const int64_t blocks = (n + kind.blocksize - 1) / kind.blocksize;
        uint8_t *packed = (uint8_t *)rows_draw_ids(t, n / 8 + 1, INT32_MAX);
        float *absmax = rows_draw(t, blocks, 1, NB_F32);
        for (int64_t b = 0; b < blocks; b++) absmax[b] = 0.05f + (absmax[b] < 0 ? -absmax[b] : absmax[b]);
        here.data = packed;
        there.data = rows_put_bytes(t, packed, (size_t)(n + 1) / 2);
        here.nf4 = (nb_nf4){.code = nb_nf4_code, .absmax = absmax, .blocksize = kind.blocksize, .nested_blocksize = 256,
                            .dtype = kind.dtype};
        there.nf4 = here.nf4;
        there.nf4.code = rows_put(t, nb_nf4_code, 16, NB_F32);
        there.nf4.absmax = kind.nested ? NULL : rows_put(t, absmax, blocks, NB_F32);
        if (kind.nested) {
            uint8_t *u8 = (uint8_t *)rows_draw_ids(t, blocks / 4 + 1, 1);
            float *nested = rows_draw(t, (blocks + 255) / 256, 0, NB_F32);
            nb_nf4_quantize_absmax(u8, nested, &here.nf4.nested_offset, absmax, blocks);
            here.nf4.absmax = NULL;
            here.nf4.absmax_u8 = u8;
            here.nf4.nested_absmax = nested;
            here.nf4.nested_code = nb_dynamic_code;
            there.nf4.absmax_u8 = rows_put_bytes(t, u8, (size_t)blocks);
            there.nf4.nested_absmax = rows_put(t, nested, (blocks + 255) / 256, NB_F32);
            there.nf4.nested_code = rows_put(t, nb_dynamic_code, 256, NB_F32);
            there.nf4.nested_offset = here.nf4.nested_offset;
        }
    } else if (kind.format > NB_FMT_NF4) {
        here.data = rows_draw_blocks(t, kind.format, n);
        there.data = rows_put_bytes(t, here.data, (size_t)nb_format_bytes(kind.format, n));
    } else if (kind.format == NB_FMT_F32) {
        here.data = values;
        there.data = rows_put(t, values, n, NB_F32);
    } else {
        uint16_t *half = (uint16_t *)rows_draw_ids(t, n / 2 + 1, 1);
        for (int64_t i = 0; i < n; i++)
            half[i] = kind.format == NB_FMT_BF16 ? nb_f32_to_bf16(values[i]) : nb_f32_to_f16(values[i]);
        here.data = half;
        there.data = rows_put_bytes(t, half, (size_t)n * sizeof *half);
    }
    float *decoded = rows_draw(t, n, 0, NB_F32);
    nb_weight_decode(decoded, cols, &here, 0, rows, 0, cols);
    *on_device = there;
    return decoded;
}

/* An operand of a product as d->compute has it. */
static inline float rows_operand(const nb_rowtest *t, float v) {
    return t->d->compute == NB_BF16 ? nb_round_bf16(v) : v;
}

/* How far a product's output may be off: its operands are known exactly, sums are f32. */
static inline double rows_product_tolerance(nb_dtype dtype) { return dtype == NB_BF16 ? 6e-3 : 2e-5; }

typedef struct weight_case {
    int64_t rows, cols;
    weight_kind kind;
} weight_case;

/* weight_fwd and weight_bwd at 1 to 70 tokens, into F32 and elements, setting and adding. */
static inline void rows_weight_products(nb_rowtest *t, const void *arg) {
    static const int64_t tokens[] = {1, 8, 9, 70};
    const weight_case *c = arg;
    const int64_t N = c->rows, K = c->cols, most = 70;
    const nb_dtype e = t->d->elem;
    nb_weight w;
    float *values = rows_weight(t, &w, c->kind, N, K);
    float *x = rows_draw(t, most * K, 1, NB_BF16), *dy = rows_draw(t, most * N, 1, NB_BF16);
    float *y0 = rows_draw(t, most * N, 1, NB_BF16), *dx0 = rows_draw(t, most * K, 1, NB_BF16);
    double *want_y = rows_doubles(t, most * N), *want_dx = rows_doubles(t, most * K);
    double *want = rows_doubles(t, most * (N + K));
    for (int64_t i = 0; i < most; i++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++) {
                double v = rows_operand(t, values[n * K + k]);
                want_y[i * N + n] += x[i * K + k] * v;
                want_dx[i * K + k] += dy[i * N + n] * v;
            }
    void *dev_x = rows_put(t, x, most * K, e), *dev_dy = rows_put(t, dy, most * N, e);
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->weight_ws(t->d, &w, most)));
    for (int i = 0; i < 4 * NB_LEN(tokens); i++) {
        const int64_t T = tokens[i / 4];
        const nb_dtype dtype = i & 1 ? NB_F32 : e;
        const float beta = i & 2 ? 1 : 0;
        void *y = beta != 0 ? rows_put(t, y0, T * N, dtype) : rows_out(t, T * N, dtype);
        rows_ok(t, t->d->k->weight_fwd(t->d, nb_mat_of(y, N, dtype), dev_x, &w, T, beta));
        for (int64_t j = 0; j < T * N; j++) want[j] = want_y[j] + (double)(beta * y0[j]);
        rows_compare(t, "y", y, want, T * N, dtype, rows_product_tolerance(dtype));
        if (i & 1) continue;
        void *dx = beta != 0 ? rows_put(t, dx0, T * K, e) : rows_out(t, T * K, e);
        rows_ok(t, t->d->k->weight_bwd(t->d, dx, dev_dy, &w, T, beta));
        for (int64_t j = 0; j < T * K; j++) want[j] = want_dx[j] + (double)(beta * dx0[j]);
        rows_compare(t, "dx", dx, want, T * K, e, rows_product_tolerance(e));
    }
}

#endif
