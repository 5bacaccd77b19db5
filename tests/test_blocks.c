/* GGUF's formats of blocks: decoding against the gguf package (tests/golden/blocks.safetensors), bit for bit. */
#include "core/cpu.h"
#include "core/mem.h"
#include "kernels/weight.h"
#include "model/safetensors.h"
#include "tests/test.h"
#if defined(__x86_64__)
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/decode_avx2.h"
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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decode), cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
