/* The NF4 quantizer and decoder against their definitions and against bitsandbytes (tests/golden/nf4). */
#include "core/cpu.h"
#include "core/dtype.h"
#include "core/mem.h"
#include "core/rng.h"
#include "kernels/cpu/gemm.h"
#include "core/json.h"
#include "kernels/weight.h"
#include "model/safetensors.h"
#include "tests/test.h"
#if defined(__x86_64__)
#include "kernels/cpu/avx512.h"
#endif

/* bitsandbytes' thresholds as it writes them; a scaled value gets the number of thresholds it exceeds. */
static const float thresholds[15] = {
    -0.8480964004993439f,  -0.6106329262256622f,   -0.4599952697753906f, -0.33967943489551544f, -0.23460740596055984f,
    -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f,   0.2035212516784668f,
    0.2920137718319893f,   0.3893125355243683f,    0.5016634166240692f,  0.6427869200706482f,   0.8614784181118011f,
};

static int level_of(double ratio) {
    int n = 0;
    for (int t = 0; t < 15; t++) n += ratio > (double)thresholds[t];
    return n;
}

static int nibble(const uint8_t *packed, int64_t e) { return e & 1 ? packed[e / 2] & 15 : packed[e / 2] >> 4; }

static void test_codes(void **state) {
    (void)state;
    for (int t = 0; t < 15; t++) {
        assert_true(nb_nf4_code[t] < nb_nf4_code[t + 1]);
        /* within one unit in the last place of the middle of the two levels */
        assert_close(thresholds[t], ((double)nb_nf4_code[t] + nb_nf4_code[t + 1]) / 2, 6.1e-8);
    }
    for (int i = 0; i < 255; i++) assert_true(nb_dynamic_code[i] < nb_dynamic_code[i + 1]);
    /* The dynamic map by its definition. */
    int found = 0;
    for (int i = 0; i < 7; i++)
        for (int j = 0; j < 1 << i; j++) {
            double step = 0.9 / (1 << i), want = (0.1 + step * (j + 0.5)) * pow(10, i - 6), best = 1e9;
            for (int c = 0; c < 256; c++) best = fmin(best, fabs(nb_dynamic_code[c] - want));
            assert_close(best / want, 0, 3e-7);
            best = 1e9;
            for (int c = 0; c < 256; c++) best = fmin(best, fabs(nb_dynamic_code[c] + want));
            assert_close(best / want, 0, 3e-7);
            found += 2;
        }
    assert_int_equal(found, 254);
    assert_true(nb_dynamic_code[127] == 0 && nb_dynamic_code[255] == 1);
}

/* Every ratio two bf16 significands can form, both signs, against exact (double) arithmetic: no rounding of the
 * reciprocal or the product may ever reach a threshold. */
static void test_bf16_ratios(void **state) {
    (void)state;
    int64_t n = 0;
    double nearest = 1e9; /* distance of a ratio to a threshold, in units of the threshold's last place */
    for (int shift = 0; shift < 10; shift++)
        for (int m2 = 128; m2 < 256; m2++)
            for (int m1 = 128; m1 < 256; m1 += 31) {
                float x[64] = {(float)m2};
                for (int i = 1; i < 64; i++) {
                    int m = m1 + (i - 1) % 31;
                    float v = ldexpf((float)(m < 256 ? m : 255), -shift);
                    if (v > (float)m2) v = (float)m2;
                    x[i] = i > 31 ? -v : v;
                }
                uint16_t h[64];
                for (int i = 0; i < 64; i++) {
                    h[i] = nb_f32_to_bf16(x[i]);
                    assert_true(nb_bf16_to_f32(h[i]) == x[i]);
                }
                uint8_t packed[32];
                float absmax;
                nb_nf4_quantize(packed, &absmax, h, NB_BF16, 64);
                assert_true(absmax == (float)m2);
                for (int i = 0; i < 64; i++, n++) {
                    double ratio = (double)x[i] / m2;
                    if (nibble(packed, i) != level_of(ratio))
                        fail_msg("%g / %d: level %d, want %d", x[i], m2, nibble(packed, i), level_of(ratio));
                    for (int t = 0; t < 15; t++)
                        nearest = fmin(nearest, fabs(ratio - thresholds[t]) / ldexp(1, ilogbf(thresholds[t]) - 23));
                }
            }
    assert_true(n > 300000);
    assert_true(nearest > 14 && nearest < 15);
}

static void test_ties_go_down(void **state) {
    (void)state;
    for (int t = 0; t < 15; t++) {
        float x[3] = {1, thresholds[t], nextafterf(thresholds[t], 2)}, absmax;
        uint8_t packed[2];
        nb_nf4_quantize(packed, &absmax, x, NB_F32, 3);
        assert_int_equal(nibble(packed, 0), 15);
        assert_int_equal(nibble(packed, 1), t);
        assert_int_equal(nibble(packed, 2), t + 1);
        assert_int_equal(nibble(packed, 3), 7); /* odd n: a quantized zero */
    }
}

static void test_zero_and_short_blocks(void **state) {
    (void)state;
    float x[64 + 64 + 5] = {0}, absmax[3];
    uint8_t packed[68];
    memset(packed, 0xEE, sizeof packed);
    x[64] = -2, x[128] = 0.5f, x[132] = -0.5f;
    nb_nf4_quantize(packed, absmax, x, NB_F32, 133);
    for (int i = 0; i < 32; i++) assert_int_equal(packed[i], 0x77);
    assert_true(absmax[0] == 0 && absmax[1] == 2 && absmax[2] == 0.5f);
    assert_int_equal(packed[32], 0x07);
    assert_int_equal(packed[64], 0xF7);
    assert_int_equal(packed[66], 0x07);
    assert_int_equal(packed[67], 0xEE); /* (133+1)/2 = 67 bytes, no more */
}

static float *random_normal(int64_t n, uint64_t seed) {
    nb_rng r = nb_rng_open(seed, NB_RNG_TEST, 0);
    float *x = nb_calloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(0.02 * nb_rng_normal(&r));
    return x;
}

/* Quantizing what was decoded gives the same bytes: the block's largest value is a level itself. */
static void test_idempotent(void **state) {
    (void)state;
    static const int64_t sizes[] = {64, 640, 7 * 33, 1, 63, 65, 4097};
    for (int s = 0; s < NB_LEN(sizes); s++) {
        int64_t n = sizes[s], blocks = (n + 63) / 64, bytes = (n + 1) / 2;
        float *x = random_normal(n, 21), *again = nb_calloc((size_t)n, sizeof *again),
              *absmax = nb_calloc((size_t)blocks * 2, 4);
        uint8_t *packed = nb_malloc((size_t)bytes * 2);
        nb_nf4_quantize(packed, absmax, x, NB_F32, n);
        nb_weight w = {.format = NB_FMT_NF4, .rows = 1, .cols = n, .data = packed,
                       .nf4 = {.code = nb_nf4_code, .absmax = absmax, .blocksize = 64, .dtype = NB_F32}};
        nb_weight_decode(again, n, &w, 0, 1, 0, n);
        nb_nf4_quantize(packed + bytes, absmax + blocks, again, NB_F32, n);
        assert_memory_equal(packed, packed + bytes, (size_t)bytes);
        assert_memory_equal(absmax, absmax + blocks, (size_t)blocks * 4);
        assert_int_equal(nb_weight_bytes(&w), bytes + (16 + blocks) * 4);
        free(x), free(again), free(absmax), free(packed);
    }
}

/* What a decoder must give, one element at a time from the drawing in weight.h. */
static float value_of(const nb_weight *w, int64_t e) {
    const nb_nf4 *q = &w->nf4;
    float absmax = q->absmax ? q->absmax[e / 64]
                             : q->nested_code[q->absmax_u8[e / 64]] * q->nested_absmax[e / 64 / 256];
    if (!q->absmax) absmax = absmax + q->nested_offset;
    float v = q->code[nibble(w->data, e)] * absmax;
    return q->dtype == NB_BF16 ? nb_round_bf16(v) : q->dtype == NB_F16 ? nb_f16_to_f32(nb_f32_to_f16(v)) : v;
}

typedef void decoder(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                     int64_t n_cols);

static void check_decoder(decoder *decode, const nb_weight *w) {
    enum { LD = 330 };
    float *out = nb_calloc(64 * LD, sizeof *out);
    nb_rng r = nb_rng_open(5, NB_RNG_TEST, 1);
    for (int trial = 0; trial < 60; trial++) {
        int64_t row0 = (int64_t)nb_rng_below(&r, (uint64_t)w->rows),
                col0 = (int64_t)nb_rng_below(&r, (uint64_t)w->cols);
        int64_t rows = 1 + (int64_t)nb_rng_below(&r, (uint64_t)(w->rows - row0));
        int64_t cols = 1 + (int64_t)nb_rng_below(&r, (uint64_t)(w->cols - col0));
        if (trial == 0) row0 = col0 = 0, rows = w->rows, cols = w->cols;
        for (int i = 0; i < 64 * LD; i++) out[i] = -77;
        decode(out, LD, w, row0, rows, col0, cols);
        for (int64_t i = 0; i < 64; i++)
            for (int64_t j = 0; j < LD; j++) {
                bool in = i < rows && j < cols;
                float want = in ? value_of(w, (row0 + i) * w->cols + col0 + j) : -77;
                if (!(out[i * LD + j] == want))
                    fail_msg("[%lld,%lld] of rows %lld+%lld, columns %lld+%lld: %.9g, want %.9g", (long long)i,
                             (long long)j, (long long)row0, (long long)rows, (long long)col0, (long long)cols,
                             out[i * LD + j], want);
            }
    }
    free(out);
}

static void test_decode(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{64, 320}, {13, 65}, {7, 33}, {1, 1}, {5, 192}, {40, 100}};
    static const nb_dtype dtypes[] = {NB_F32, NB_BF16, NB_F16};
    for (int s = 0; s < NB_LEN(shapes) * 6; s++) {
        int64_t rows = shapes[s / 6][0], cols = shapes[s / 6][1], n = rows * cols, blocks = (n + 63) / 64;
        float *x = random_normal(n, 31), *absmax = nb_calloc((size_t)blocks, 4),
              *nested = nb_calloc((size_t)blocks / 256 + 1, 4);
        uint8_t *packed = nb_malloc((size_t)(n + 1) / 2), *u8 = nb_malloc((size_t)blocks);
        nb_nf4_quantize(packed, absmax, x, NB_F32, n);
        nb_weight w = {.format = NB_FMT_NF4, .rows = rows, .cols = cols, .data = packed,
                       .nf4 = {.code = nb_nf4_code, .absmax = absmax, .blocksize = 64, .dtype = dtypes[s % 3]}};
        if (s % 6 >= 3) {
            w.nf4.absmax = NULL, w.nf4.absmax_u8 = u8, w.nf4.nested_absmax = nested,
            w.nf4.nested_code = nb_dynamic_code;
            w.nf4.nested_blocksize = 256;
            nb_nf4_quantize_absmax(u8, nested, &w.nf4.nested_offset, absmax, blocks);
        }
        check_decoder(nb_weight_decode, &w);
#if defined(__x86_64__)
        if (nb_cpu_get()->avx2_fma) check_decoder(nb_weight_decode_avx2, &w);
        if (nb_cpu_get()->avx512) check_decoder(nb_weight_decode_avx512, &w);
#endif
        free(x), free(absmax), free(nested), free(packed), free(u8);
    }
}

/* Scales: each byte is a nearest code, ties to the even one, and the offset is the mean. */
static void test_double_quantization(void **state) {
    (void)state;
    enum { N = 1000 };
    float absmax[N], nested[4], offset;
    uint8_t u8[N];
    nb_rng r = nb_rng_open(3, NB_RNG_TEST, 2);
    double mean = 0;
    for (int i = 0; i < N; i++) mean += absmax[i] = (float)(0.05 + 0.01 * nb_rng_normal(&r));
    nb_nf4_quantize_absmax(u8, nested, &offset, absmax, N);
    assert_close(offset, mean / N, 1e-8);
    for (int i = 0; i < N; i++) {
        float max = 0;
        for (int j = i / 256 * 256; j < N && j < (i / 256 + 1) * 256; j++) max = fmaxf(max, fabsf(absmax[j] - offset));
        assert_true(nested[i / 256] == max);
        double v = (absmax[i] - offset) / (double)max, best = 9;
        for (int c = 0; c < 256; c++) best = fmin(best, fabs(nb_dynamic_code[c] - v));
        assert_close(fabs(nb_dynamic_code[u8[i]] - v), best, 2e-7);
        const nb_nf4 q = {.absmax_u8 = u8,
                          .nested_absmax = nested,
                          .nested_code = nb_dynamic_code,
                          .nested_offset = offset,
                          .blocksize = 64,
                          .nested_blocksize = 256};
        assert_close(nb_nf4_absmax(&q, i), absmax[i], 0.008 * max);
    }
    /* Exact codes come back; halfway between two, the even index. The mean must be 0 and the largest value 1. */
    float exact[256];
    for (int i = 0; i < 127; i++) exact[i] = nb_dynamic_code[128 + i], exact[i + 127] = -exact[i];
    exact[254] = 1, exact[255] = -1;
    nb_nf4_quantize_absmax(u8, nested, &offset, exact, 256);
    assert_true(offset == 0 && nested[0] == 1);
    for (int i = 0; i < 255; i++) assert_true(nb_dynamic_code[u8[i]] == exact[i]);
    assert_int_equal(u8[255], 0); /* there is no -1: its nearest code */
    float tie[4] = {1, -1, (nb_dynamic_code[200] + nb_dynamic_code[201]) / 2,
                    -(nb_dynamic_code[200] + nb_dynamic_code[201]) / 2};
    nb_nf4_quantize_absmax(u8, nested, &offset, tie, 4);
    assert_true(offset == 0);
    assert_int_equal(u8[2], 200);
    assert_int_equal(u8[3] % 2, 0);
    /* Equal scales: nothing is left to quantize. */
    float same[3] = {0.25f, 0.25f, 0.25f};
    nb_nf4_quantize_absmax(u8, nested, &offset, same, 3);
    assert_true(offset == 0.25f && nested[0] == 0 && u8[0] == 127 && u8[2] == 127);
}

static const void *golden(const nb_st *st, const char *name, const char *part) {
    char full[64];
    snprintf(full, sizeof full, "%s.%s", name, part);
    const nb_st_tensor *t = nb_st_find(st, full);
    if (!t) fail_msg("tests/golden/nf4 lacks %s", full);
    return t->data;
}

/* One matrix: nibbles, scales and their bytes as bitsandbytes makes them, decoded values bit for bit. */
static void check_golden(const nb_st *st, const char *name, int64_t rows, int64_t cols) {
    int64_t n = rows * cols, blocks = (n + 63) / 64, nested_blocks = (blocks + 255) / 256;
    uint8_t *packed = nb_malloc((size_t)(n + 1) / 2), *u8 = nb_malloc((size_t)blocks);
    float *absmax = nb_calloc((size_t)blocks, 4), *nested = nb_calloc((size_t)nested_blocks, 4), offset;
    float *out = nb_calloc((size_t)n, 4);
    const float *want_absmax = golden(st, name, "absmax"), *want_nested = golden(st, name, "nested_absmax");
    const uint8_t *want_u8 = golden(st, name, "absmax_u8");

    nb_nf4_quantize(packed, absmax, golden(st, name, "weight"), NB_BF16, n);
    assert_memory_equal(packed, golden(st, name, "packed"), (size_t)(n + 1) / 2);
    for (int64_t b = 0; b < blocks; b++) /* its portable operator stores 1e-38 for a block of zeros, its CUDA one 0 */
        if (absmax[b] != want_absmax[b]) assert_true(absmax[b] == 0 && want_absmax[b] == 1e-38f);

    /* The mean is summed in another order there: the bytes agree, the two floats to rounding. */
    nb_nf4_quantize_absmax(u8, nested, &offset, want_absmax, blocks);
    assert_memory_equal(u8, want_u8, (size_t)blocks);
    assert_close(offset, *(const float *)golden(st, name, "nested_offset"), 2e-7 * fabs(offset));
    for (int64_t b = 0; b < nested_blocks; b++) assert_close(nested[b], want_nested[b], 4e-7 * fabs(offset));

    nb_weight w = {.format = NB_FMT_NF4, .rows = rows, .cols = cols, .data = packed,
                   .nf4 = {.code = nb_nf4_code, .absmax = want_absmax, .blocksize = 64, .nested_blocksize = 256,
                           .dtype = NB_BF16}};
    for (int twice = 0; twice < 2; twice++) {
        if (twice) {
            w.nf4.absmax = NULL, w.nf4.absmax_u8 = want_u8, w.nf4.nested_absmax = want_nested;
            w.nf4.nested_code = nb_dynamic_code;
            w.nf4.nested_offset = *(const float *)golden(st, name, "nested_offset");
        }
        const uint16_t *want = golden(st, name, twice ? "double" : "plain");
        nb_weight_decode(out, cols, &w, 0, rows, 0, cols);
        for (int64_t i = 0; i < n; i++)
            if (!(out[i] == nb_bf16_to_f32(want[i])))
                fail_msg("%s[%lld] decodes to %.9g, want %.9g", name, (long long)i, out[i], nb_bf16_to_f32(want[i]));
    }
    free(packed), free(u8), free(absmax), free(nested), free(out);
}

static void test_bitsandbytes(void **state) {
    (void)state;
    nb_st st;
    json_t *index;
    assert_ok(nb_st_open_file(&st, "tests/golden/nf4/cases.safetensors"));
    assert_ok(nb_json_load("tests/golden/nf4/cases.json", &index));
    assert_memory_equal(nb_st_find(&st, "quant_map")->data, nb_nf4_code, sizeof nb_nf4_code);
    assert_memory_equal(nb_st_find(&st, "nested_quant_map")->data, nb_dynamic_code, sizeof nb_dynamic_code);
    json_t *cases = json_object_get(index, "cases"), *c;
    size_t i;
    json_array_foreach(cases, i, c) {
        int64_t rows = 0, cols = 0;
        const char *name = NULL;
        assert_ok(nb_json_str(c, "name", &name, "cases.json"));
        assert_ok(nb_json_int(c, "rows", &rows, "cases.json"));
        assert_ok(nb_json_int(c, "columns", &cols, "cases.json"));
        check_golden(&st, name, rows, cols);
    }
    assert_true(i >= 8);
    json_decref(index);
    nb_st_close(&st);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes),           cmocka_unit_test(test_bf16_ratios), cmocka_unit_test(test_ties_go_down),
        cmocka_unit_test(test_zero_and_short_blocks), cmocka_unit_test(test_idempotent), cmocka_unit_test(test_decode),
        cmocka_unit_test(test_double_quantization), cmocka_unit_test(test_bitsandbytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
