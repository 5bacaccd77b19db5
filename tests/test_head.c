/* lm_head_quant: the output head in 4 or 8 bits, tied and untied, on the processor and on a GPU. */
#include "core/cpu.h"
#include "core/file.h"
#include "eval/score.h"
#include "model/transformer.h"
#include "tests/test.h"
#include "tests/tiny_base.h"

enum { N = 40 };

static nb_base *load(const char *name, const char *more, nb_head_quant q) {
    nb_base_options o = {.quantized_cache = ""};
    nb_base *b;
    char *dir = tiny_base(name, more, 5);
    assert_ok(nb_base_load(&b, dir, &o));
    free(dir);
    assert_ok(nb_base_quantize_head(b, q, ""));
    return b;
}

static float *decoded(const nb_weight *w) {
    float *x = nb_malloc((size_t)(w->rows * w->cols) * sizeof *x);
    nb_weight_decode(x, w->cols, w, 0, w->rows, 0, w->cols);
    return x;
}

/* Hidden size 64: a whole number of int8 blocks. */
#define WIDE                                                                                                   \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 70, "              \
    "\"hidden_size\": 64, \"intermediate_size\": 36, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "   \
    "\"num_key_value_heads\": 2, \"head_dim\": 6, \"rms_norm_eps\": 1e-5, \"torch_dtype\": \"bfloat16\", "     \
    "\"max_position_embeddings\": 64, \"bos_token_id\": 1, \"eos_token_id\": 2, \"tie_word_embeddings\": "

static const struct {
    const char *name, *config;
    bool tied;
} bases[] = {{"tied", WIDE "true}", true}, {"untied", WIDE "false}", false}};

static void values_and_bytes(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(bases); i++)
        for (nb_head_quant q = NB_HEAD_NF4; q <= NB_HEAD_INT8; q++) {
            nb_base *stored = load(bases[i].name, bases[i].config, NB_HEAD_STORED),
                    *b = load(bases[i].name, bases[i].config, q);
            const int64_t n = 70 * 64;
            float *want = decoded(&stored->head.w), *got = decoded(&b->head.w), *embed = decoded(&b->embed);
            double err = nb_rel_error(got, want, n);
            assert_true(q == NB_HEAD_NF4 ? err > 0.01 && err < 0.12 : err > 1e-4 && err < 0.01);
            if (bases[i].tied) assert_memory_equal(embed, want, (size_t)n * sizeof *want);
            assert_ptr_equal(nb_base_stored_head(stored), &stored->head.w);
            assert_memory_equal(nb_base_stored_head(b)->data, stored->head.w.data, (size_t)n * 2);
            int64_t more = nb_base_bytes(b, false) - nb_base_bytes(stored, false);
            assert_int_equal(more, nb_weight_bytes(&b->head.w) - (bases[i].tied ? 0 : n * 2));
            free(want), free(got), free(embed);
            nb_base_free(stored);
            nb_base_free(b);
        }
}

/* The loss through the head: a little another than the stored head's, and the same on the processor and the GPU. */
static void losses(void **state) {
    (void)state;
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = (i * 37 + i * i) % 70;
    for (int i = 0; i < NB_LEN(bases); i++) {
        double loss[3][2];
        for (nb_head_quant q = NB_HEAD_STORED; q <= NB_HEAD_INT8; q++)
            for (int d = 0; d < 2; d++) {
                nb_base *b = load(bases[i].name, bases[i].config, q);
                nb_arena arena = {0};
                nb_score s;
                nb_dev *dev;
                nb_model *m;
                assert_ok(nb_dev_open(&dev, d ? "emu" : "cpu", NB_F32));
                assert_ok(nb_model_open(&m, b, dev, 64, 64));
                assert_ok(nb_score_ids(&s, m, &arena, ids, N));
                loss[q][d] = s.loss;
                nb_score_free(&s);
                nb_arena_free(&arena);
                nb_model_free(m);
                nb_dev_close(dev);
                nb_base_free(b);
            }
        for (nb_head_quant q = NB_HEAD_STORED; q <= NB_HEAD_INT8; q++)
            assert_close(loss[q][1] / loss[q][0], 1, 1e-4);
        assert_true(loss[NB_HEAD_NF4][0] != loss[NB_HEAD_STORED][0]);
        assert_true(loss[NB_HEAD_INT8][0] != loss[NB_HEAD_STORED][0]);
        assert_close(loss[NB_HEAD_NF4][0] / loss[NB_HEAD_STORED][0], 1, 0.05);
        assert_close(loss[NB_HEAD_INT8][0] / loss[NB_HEAD_STORED][0], 1, 0.005);
    }
}

/* The second time it comes from a file; one of another size is not used. */
static void from_the_cache(void **state) {
    (void)state;
    char *cache = nb_asprintf("%s/head-cache", nb_test_tmp()), *file = NULL, *dir = tiny_base("tied", bases[0].config, 5);
    nb_base_options o = {.quantized_cache = ""};
    for (nb_head_quant q = NB_HEAD_NF4; q <= NB_HEAD_INT8; q++) {
        float *first = NULL;
        for (int turn = 0; turn < 3; turn++) {
            nb_base *b;
            char **names;
            int n;
            assert_ok(nb_base_load(&b, dir, &o));
            assert_ok(nb_base_quantize_head(b, q, cache));
            float *x = decoded(&b->head.w);
            if (!turn) first = x;
            assert_memory_equal(x, first, 70 * 64 * sizeof *x);
            if (turn) free(x);
            nb_base_free(b);
            assert_ok(nb_list_dir(cache, &names, &n));
            assert_int_equal(n, 1);
            file = nb_path_join(cache, names[0]);
            if (turn == 1) assert_ok(nb_file_write(file, "short", 5)); /* the third turn makes it anew */
            if (turn == 2) assert_ok(nb_remove_tree(cache));
            free(names[0]), free(names), free(file);
        }
        free(first);
    }
    free(cache), free(dir);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    nb_base_options o = {.quantized_cache = ""};
    nb_base *b;
    char *dir = tiny_base("narrow", TINY_LLAMA "}", 5); /* a hidden size of 24: no whole block of 32 */
    assert_ok(nb_base_load(&b, dir, &o));
    free(dir);
    assert_fails(nb_base_quantize_head(b, NB_HEAD_INT8, ""), NB_EINPUT, "32");
    assert_ok(nb_base_quantize_head(b, NB_HEAD_NF4, ""));
    nb_base_free(b);
}

int main(void) {
    nb_threads_set(0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_and_bytes),
        cmocka_unit_test(losses),
        cmocka_unit_test(from_the_cache),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
