/* GGUF's formats of blocks: decoding against the gguf package, bit for bit, and encoding against ggml's, by what is
 * lost (tests/golden/blocks.safetensors). */
#include "core/cpu.h"
#include "core/mem.h"
#include "kernels/weight.h"
#include "model/gguf_map.h"
#include "model/safetensors.h"
#include "tests/test.h"
#if defined(__x86_64__)
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/avx2.h"
#endif

typedef void decode(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                    int64_t n_cols);

static const void *golden(const nb_st *st, nb_format f, const char *part) {
    char name[32];
    snprintf(name, sizeof name, "%s.%s", nb_format_name(f), part);
    const nb_st_tensor *t = nb_st_find(st, name);
    if (!t) fail_msg("tests/golden/blocks.safetensors lacks %s", name);
    return t->data;
}

/* Whole rows, and every part of a row that begins or ends within a group. */
static void check_format(const nb_st *st, nb_format f, decode *run) {
    enum { ROWS = 2, COLS = 512, GUARD = 8 };
    const nb_weight w = {.format = f, .rows = ROWS, .cols = COLS, .data = golden(st, f, "blocks")};
    const float *want = golden(st, f, "values");
    float out[ROWS * COLS + GUARD];
    run(out, COLS, &w, 0, ROWS, 0, COLS);
    assert_memory_equal(out, want, sizeof *want * ROWS * COLS);
    for (int64_t from = 0; from < COLS; from += from < 40 ? 1 : 37)
        for (int64_t n = 1; from + n <= COLS; n += n < 40 ? 1 : 41) {
            for (int i = 0; i < GUARD; i++) out[n + i] = -7;
            run(out, n, &w, 1, 1, from, n);
            if (memcmp(out, want + COLS + from, (size_t)n * sizeof *out) != 0)
                fail_msg("%s: values %d..%d", nb_format_name(f), (int)from, (int)(from + n));
            for (int i = 0; i < GUARD; i++) assert_true(out[n + i] == -7);
        }
}

static void test_decode(void **state) {
    (void)state;
    nb_st st;
    assert_ok(nb_st_open_file(&st, "tests/golden/blocks.safetensors"));
    for (nb_format f = NB_FMT_NF4 + 1; f < NB_FMT_COUNT; f++) {
        check_format(&st, f, nb_weight_decode);
#if defined(__x86_64__)
        if (nb_cpu_get()->avx2_fma) check_format(&st, f, nb_weight_decode_avx2);
        if (nb_cpu_get()->avx512) check_format(&st, f, nb_weight_decode_avx512);
#endif
    }
    nb_st_close(&st);
}

static void test_sizes(void **state) {
    (void)state;
    static const struct { nb_format f; const char *name; int block; int64_t bytes; /* of 512 values */ } want[] = {
        {NB_FMT_F32, "f32", 1, 2048},   {NB_FMT_F16, "f16", 1, 1024},   {NB_FMT_NF4, "nf4", 1, 256},
        {NB_FMT_Q4_0, "q4_0", 32, 288}, {NB_FMT_Q4_1, "q4_1", 32, 320}, {NB_FMT_Q5_0, "q5_0", 32, 352},
        {NB_FMT_Q5_1, "q5_1", 32, 384}, {NB_FMT_Q8_0, "q8_0", 32, 544}, {NB_FMT_Q4_K, "q4_k", 256, 288},
        {NB_FMT_Q5_K, "q5_k", 256, 352}, {NB_FMT_Q6_K, "q6_k", 256, 420},
    };
    for (int i = 0; i < NB_LEN(want); i++) {
        assert_string_equal(nb_format_name(want[i].f), want[i].name);
        assert_int_equal(nb_format_block(want[i].f), want[i].block);
        assert_int_equal(nb_format_bytes(want[i].f, 512), want[i].bytes);
    }
    nb_weight w = {.format = NB_FMT_Q4_K, .rows = 3, .cols = 512};
    assert_ok(nb_weight_check(&w, "a"));
    w.cols = 288;
    assert_fails(nb_weight_check(&w, "blk.0.attn_q.weight"), NB_EINPUT, "blk.0.attn_q.weight: q4_k has blocks of 256");
    w.format = NB_FMT_Q8_0;
    assert_ok(nb_weight_check(&w, "a"));
    w.cols = 33, w.format = NB_FMT_NF4;
    assert_ok(nb_weight_check(&w, "a"));
}

static const nb_gguf_type written[] = {NB_GGUF_Q4_0, NB_GGUF_Q5_0, NB_GGUF_Q5_1, NB_GGUF_Q8_0,
                                       NB_GGUF_Q4_K, NB_GGUF_Q5_K, NB_GGUF_Q6_K};

/* What encoding and decoding loses, as a part of the norm. */
static double loss(nb_gguf_type t, float *out, const float *x, int64_t n) {
    uint8_t *bytes = nb_malloc(nb_gguf_bytes(t, n));
    double error = 0, size = 0;
    nb_gguf_encode(t, bytes, x, n);
    nb_gguf_decode(t, out, bytes, n);
    for (int64_t i = 0; i < n; i++) {
        error += ((double)out[i] - x[i]) * ((double)out[i] - x[i]);
        size += (double)x[i] * x[i];
    }
    free(bytes);
    return size > 0 ? sqrt(error / size) : sqrt(error);
}

/* No more than llama.cpp loses of the same matrix. */
static void test_encode(void **state) {
    (void)state;
    nb_st st;
    float out[8 * 512];
    assert_ok(nb_st_open_file(&st, "tests/golden/blocks.safetensors"));
    for (int i = 0; i < NB_LEN(written); i++) {
        const float theirs = *(const float *)golden(&st, nb_gguf_type_format(written[i]), "error");
        const double ours = loss(written[i], out, nb_st_find(&st, "x")->data, NB_LEN(out));
        if (!(ours <= 1.0001 * (double)theirs && ours > 0.5 * (double)theirs))
            fail_msg("%s: %.5f is lost, ggml loses %.5f", nb_gguf_type_name(written[i]), ours, (double)theirs);
    }
    nb_st_close(&st);
}

/* Blocks of one value, of a few, with an outlier; what no scale can hold must still be a block. */
static void test_odd_blocks(void **state) {
    (void)state;
    float x[256], out[256];
    for (int i = 0; i < NB_LEN(written); i++) {
        const nb_gguf_type t = written[i];
        memset(x, 0, sizeof x);
        assert_true(loss(t, out, x, 256) == 0);
        for (int sign = -1; sign < 2; sign += 2) {
            for (int j = 0; j < 256; j++) x[j] = (float)sign * 0.37f;
            assert_true(loss(t, out, x, 256) < 0.02);
        }
        for (int j = 0; j < 256; j++) x[j] = j % 3 ? -0.25f : 0.5f;
        assert_true(loss(t, out, x, 256) < 0.035);
        for (int j = 0; j < 256; j++) x[j] = j == 100 ? -50 : 0.01f * (float)(j % 7);
        assert_true(loss(t, out, x, 256) < 0.02);
        for (int j = 0; j < 256; j++) x[j] = j % 2 ? 1e-9f : -3e-9f; /* below f16 */
        assert_true(loss(t, out, x, 256) <= 1.5);
        x[7] = NAN, x[40] = INFINITY, x[90] = -INFINITY, x[130] = 3e38f;
        loss(t, out, x, 256);
    }
}

/* As llama-quantize chooses: the head, attn_v and ffn_down in some layers, and types of smaller blocks. */
static void test_mixture(void **state) {
    (void)state;
    static const struct {
        const char *name, *dtype;
        int64_t cols;
        bool tied;
        nb_gguf_type want;
        int experts;
    } cases[] = {
        {"output.weight", "q4_k_m", 512, false, NB_GGUF_Q6_K},
        {"token_embd.weight", "q4_k_m", 512, false, NB_GGUF_Q4_K},
        {"token_embd.weight", "q4_k", 512, true, NB_GGUF_Q6_K},
        {"output.weight", "q4_0", 288, false, NB_GGUF_Q8_0},
        {"blk.0.attn_v.weight", "q4_k_m", 256, true, NB_GGUF_Q6_K},
        {"blk.0.attn_k.weight", "q4_k_m", 256, true, NB_GGUF_Q4_K},
        {"blk.3.ffn_down.weight", "q4_k_m", 256, true, NB_GGUF_Q6_K},
        {"blk.4.ffn_down.weight", "q4_k_m", 256, true, NB_GGUF_Q4_K},
        {"blk.6.ffn_down.weight", "q5_k_m", 256, true, NB_GGUF_Q6_K},
        {"blk.27.ffn_down.weight", "q4_k_m", 256, true, NB_GGUF_Q6_K},
        {"blk.28.attn_v.weight", "q4_k_m", 96, true, NB_GGUF_Q8_0},
        {"blk.5.attn_v.weight", "q4_k_m", 96, true, NB_GGUF_Q5_0},
        {"blk.5.attn_qkv.weight", "q4_k_m", 512, true, NB_GGUF_Q4_K},
        {"blk.6.attn_qkv.weight", "q4_k_m", 96, true, NB_GGUF_Q8_0},
        {"position_embd.weight", "q4_k_m", 512, true, NB_GGUF_F32},
        {"blk.5.attn_q.weight", "q5_k_m", 96, true, NB_GGUF_Q5_1},
        {"blk.5.attn_q.weight", "q6_k", 97, true, NB_GGUF_F16},
        {"blk.5.attn_q.weight", "q4_0", 97, true, NB_GGUF_F16},
        {"blk.0.attn_v.weight", "q8_0", 64, true, NB_GGUF_Q8_0},
        {"blk.3.ffn_down_exps.weight", "q4_k_m", 256, true, NB_GGUF_Q6_K, 6},
        {"blk.4.ffn_down_exps.weight", "q4_k_m", 256, true, NB_GGUF_Q4_K, 8},
        {"blk.27.ffn_down_shexp.weight", "q4_k_m", 256, true, NB_GGUF_Q6_K, 6},
        {"blk.0.ffn_gate_inp.weight", "q4_k_m", 256, true, NB_GGUF_F32, 6},
        {"blk.0.ffn_gate_inp.weight", "f16", 256, true, NB_GGUF_F32, 6},
        {"blk.0.ffn_gate_exps.weight", "q4_0", 64, true, NB_GGUF_Q4_0, 8},
        {"blk.5.attn_v.weight", "q4_0", 256, true, NB_GGUF_Q4_0, 6},
        {"blk.5.attn_v.weight", "q4_0", 256, true, NB_GGUF_Q8_0, 8},
        {"blk.5.attn_k.weight", "q4_k_m", 256, true, NB_GGUF_Q4_K, 6},
        {"blk.5.attn_k.weight", "q4_k_m", 256, true, NB_GGUF_Q8_0, 8},
        {"blk.5.attn_k.weight", "f16", 256, true, NB_GGUF_F16, 8},
        {"blk.5.attn_q.weight", "q4_k_m", 256, true, NB_GGUF_Q4_K, 8},
        {"blk.5.attn_output.weight", "q4_k_m", 256, true, NB_GGUF_Q5_K, 8},
        {"blk.5.attn_output.weight", "q4_0", 256, true, NB_GGUF_Q4_0, 8},
    };
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_gguf_item it = {.n_dims = 2, .rows = 4, .cols = cases[i].cols};
        it.part = nb_gguf_part_of(cases[i].name, 32, cases[i].experts, cases[i].tied);
        nb_gguf_type got = nb_gguf_item_type(&it, nb_gguf_mix_find(cases[i].dtype));
        if (got != cases[i].want)
            fail_msg("%s of %s is %s", cases[i].name, cases[i].dtype, nb_gguf_type_name(got));
        it.n_dims = 1, it.cols = 1;
        assert_int_equal(nb_gguf_item_type(&it, nb_gguf_mix_find(cases[i].dtype)), NB_GGUF_F32);
    }
    assert_null(nb_gguf_mix_find("q2_k"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode), cmocka_unit_test(test_sizes), cmocka_unit_test(test_encode),
        cmocka_unit_test(test_odd_blocks), cmocka_unit_test(test_mixture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
