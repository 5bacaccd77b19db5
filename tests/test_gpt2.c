/* What only GPT-2 has: linear weights stored as [in, out], names with and without "transformer.", masks among the
 * weights, positions that end. tests/test_golden.c compares what it computes. */
#include "adapters/adapter.h"
#include "model/base.h"
#include "tests/test.h"
#include "tests/tiny_base.h"

static const char golden[] = "tests/golden/gpt2";

static nb_base *load(const char *dir, nb_base_options o) {
    nb_base *b;
    o.quantized_cache = o.quantized_cache ? o.quantized_cache : "";
    assert_ok(nb_base_load(&b, dir, &o));
    return b;
}

static void same_weight(const nb_weight *x, const nb_weight *y) {
    assert_true(x->rows == y->rows && x->cols == y->cols && x->rows > 0);
    float *a = nb_malloc((size_t)(x->rows * x->cols) * 4), *b = nb_malloc((size_t)(x->rows * x->cols) * 4);
    nb_weight_decode(a, x->cols, x, 0, x->rows, 0, x->cols);
    nb_weight_decode(b, y->cols, y, 0, y->rows, 0, y->cols);
    assert_memory_equal(a, b, (size_t)(x->rows * x->cols) * 4);
    free(a), free(b);
}

static void same_base(const nb_base *x, const nb_base *y) {
    same_weight(&x->embed, &y->embed);
    same_weight(&x->positions, &y->positions);
    for (int64_t l = 0; l < x->spec.layers; l++) {
        for (nb_slot k = 0; k < NB_SLOTS; k++) {
            const nb_base_linear *p = &x->layer[l].lin[k], *q = &y->layer[l].lin[k];
            if (!p->name) continue;
            same_weight(&p->w, &q->w);
            assert_memory_equal(p->bias, q->bias, (size_t)p->w.rows * 4);
        }
        size_t bytes = (size_t)x->spec.hidden * 4;
        assert_memory_equal(x->layer[l].norm[NB_NORM2], y->layer[l].norm[NB_NORM2], bytes);
        assert_memory_equal(x->layer[l].norm_bias[NB_NORM1], y->layer[l].norm_bias[NB_NORM1], bytes);
    }
}

/* Every linear weight is the transpose of the file's, in both of the file's dtypes. */
static void weights_are_turned(void **state) {
    (void)state;
    static const char *const dirs[] = {"tests/golden/gpt2", "tests/golden/gpt2-scaled"};
    for (int d = 0; d < 2; d++) {
        nb_base *b = load(dirs[d], (nb_base_options){0});
        nb_st s;
        assert_ok(nb_st_open_dir(&s, b->dir, "model"));
        for (int64_t i = 0; i < b->spec.layers * NB_SLOTS; i++) {
            const nb_base_linear *lin = &b->layer[i / NB_SLOTS].lin[i % NB_SLOTS];
            if (!lin->name) continue;
            char *name = nb_asprintf("%s.weight", lin->name);
            const nb_st_tensor *t = nb_st_find(&s, name);
            float *row = nb_malloc((size_t)lin->w.cols * 4), *column = nb_malloc((size_t)lin->w.cols * 4);
            assert_true(t->d[0] == lin->w.cols && t->d[1] == lin->w.rows);
            for (int64_t r = 0; r < lin->w.rows; r++) {
                nb_weight_decode(row, lin->w.cols, &lin->w, r, 1, 0, lin->w.cols);
                nb_st_read_columns_f32(t, column, r, 1);
                assert_memory_equal(row, column, (size_t)lin->w.cols * 4);
                for (int64_t c = 0; c < lin->w.cols; c++) {
                    float x;
                    nb_st_read_f32(t, &x, c * lin->w.rows + r, 1);
                    assert_true(x == row[c]);
                }
            }
            free(row), free(column), free(name);
        }
        nb_st_close(&s);
        nb_base_free(b);
    }
}

/* As bitsandbytes quantizes a Conv1D: what is turned first is cut into blocks. In memory and from the cache. */
static void four_bits_are_of_turned_weights(void **state) {
    (void)state;
    char *cache = nb_path_join(nb_test_tmp(), "cache");
    nb_base *b = load(golden, (nb_base_options){0}), *memory = load(golden, (nb_base_options){.load_in_4bit = true});
    nb_base *first = load(golden, (nb_base_options){.load_in_4bit = true, .quantized_cache = cache});
    nb_base *again = load(golden, (nb_base_options){.load_in_4bit = true, .quantized_cache = cache});
    for (int64_t i = 0; i < b->spec.layers * NB_SLOTS; i++) {
        const nb_weight *w = &b->layer[i / NB_SLOTS].lin[i % NB_SLOTS].w;
        if (!w->rows) continue;
        int64_t n = w->rows * w->cols, blocks = n / 64;
        uint8_t *packed = nb_malloc((size_t)n / 2);
        float *absmax = nb_malloc((size_t)blocks * 4);
        nb_nf4_quantize(packed, absmax, w->data, NB_F32, n);
        const nb_base *four[] = {memory, first, again};
        for (int k = 0; k < 3; k++) {
            const nb_weight *q = &four[k]->layer[i / NB_SLOTS].lin[i % NB_SLOTS].w;
            assert_int_equal((int)q->format, NB_FMT_NF4);
            assert_true(q->rows == w->rows && q->cols == w->cols);
            assert_memory_equal(q->data, packed, (size_t)n / 2);
            assert_memory_equal(q->nf4.absmax, absmax, (size_t)blocks * 4);
        }
        free(packed), free(absmax);
    }
    nb_base_free(b), nb_base_free(memory), nb_base_free(first), nb_base_free(again);
    free(cache);
}

/* The golden folder as the first GPT-2 files are: no "transformer.", and each layer's mask. */
static char *bare_folder(const char *name) {
    char *dir = nb_path_join(nb_test_tmp(), name), *to = nb_path_join(dir, "model.safetensors");
    char *config = nb_path_join(dir, "config.json");
    nb_st s;
    nb_st_writer *w;
    float mask[64 * 64] = {0};
    int64_t square[4] = {1, 1, 64, 64};
    assert_ok(nb_mkdirs(dir));
    assert_ok(nb_file_copy("tests/golden/gpt2/config.json", config));
    assert_ok(nb_st_open_dir(&s, golden, "model"));
    assert_ok(nb_st_write_begin(&w, to, NULL));
    for (int i = 0; i < s.n_tensors; i++)
        assert_ok(nb_st_write_declare(w, s.tensors[i].name + strlen("transformer."), s.tensors[i].dtype,
                                      s.tensors[i].n_dims, s.tensors[i].d));
    assert_ok(nb_st_write_declare(w, "h.0.attn.bias", NB_F32, 4, square));
    assert_ok(nb_st_write_declare(w, "h.1.attn.bias", NB_F32, 4, square));
    for (int i = 0; i < s.n_tensors; i++) {
        const nb_st_tensor *t = &s.tensors[i];
        assert_ok(nb_st_write_data(w, t->name + strlen("transformer."), t->data, t->bytes));
    }
    assert_ok(nb_st_write_data(w, "h.0.attn.bias", mask, sizeof mask));
    assert_ok(nb_st_write_data(w, "h.1.attn.bias", mask, sizeof mask));
    assert_ok(nb_st_write_end(w));
    nb_st_close(&s);
    free(to), free(config);
    return dir;
}

static void names_without_prefix(void **state) {
    (void)state;
    char *dir = bare_folder("bare"), *four = nb_path_join(nb_test_tmp(), "bare4");
    nb_base *bare = load(dir, (nb_base_options){0}), *whole = load(golden, (nb_base_options){0}), *q, *again;
    same_base(bare, whole);
    for (int i = 0; i < bare->store->st.n_tensors; i++)
        assert_true(bare->store->used[i] == !nb_base_is_derived(&bare->store->st.tensors[i]));
    /* what is written from it has the names of the whole model */
    assert_ok(nb_base_quantize_dir(dir, four, true));
    again = load(four, (nb_base_options){.load_in_4bit = true});
    q = load(golden, (nb_base_options){.load_in_4bit = true, .double_quant = true});
    assert_non_null(nb_st_find(&again->store->st, "transformer.h.1.ln_2.bias"));
    assert_null(nb_st_find(&again->store->st, "transformer.h.1.attn.bias"));
    same_base(again, q);
    nb_base_free(bare), nb_base_free(whole), nb_base_free(again), nb_base_free(q);
    free(dir), free(four);
}

static void whole_models_are_stored_as_read(void **state) {
    (void)state;
    nb_dev *dev;
    nb_model *m;
    nb_adapter *a;
    char *dir = nb_path_join(nb_test_tmp(), "whole");
    nb_base *b = load(golden, (nb_base_options){0}), *again;
    assert_ok(nb_dev_open(&dev, "cpu", NB_F32));
    assert_ok(nb_model_open(&m, b, dev, 64, 64));
    assert_ok(nb_adapter_new_full(&a, m));
    assert_int_equal(nb_adapter_size(a), nb_spec_parameters(&b->spec));
    assert_ok(nb_adapter_save_full(a, dir, NB_F32, NULL));
    again = load(dir, (nb_base_options){0});
    same_base(b, again);
    assert_string_equal(b->sha256, again->sha256); /* config.json and the weights' file, byte for byte */
    nb_adapter_free(a);
    nb_model_free(m);
    nb_base_free(b), nb_base_free(again);
    nb_dev_close(dev);
    free(dir);
}

static void positions_end(void **state) {
    (void)state;
    nb_dev *dev;
    nb_model *m;
    nb_base *b = load(golden, (nb_base_options){0});
    assert_ok(nb_dev_open(&dev, "cpu", NB_F32));
    assert_fails(nb_model_open(&m, b, dev, 65, 64), NB_EINPUT, "64 positions");
    nb_base_free(b);
    nb_dev_close(dev);
}

/* Drawn anew as transformers does: what is added to the residual the smaller the deeper the model. */
static void drawn_by_depth(void **state) {
    (void)state;
    nb_base *b = load(golden, (nb_base_options){.reinit = true, .seed = 3, .keep_f32 = true});
    static const nb_slot slots[] = {NB_QKV, NB_O, NB_UP, NB_DOWN};
    for (int i = 0; i < 4; i++) {
        const nb_weight *w = &b->layer[1].lin[slots[i]].w;
        double sum = 0, want = 0.02 / (i % 2 ? sqrt(4) : 1);
        for (int64_t k = 0; k < w->rows * w->cols; k++) sum += pow(((const float *)w->data)[k], 2);
        assert_close(sqrt(sum / (double)(w->rows * w->cols)) / want, 1, 0.1);
    }
    assert_true(b->positions.rows == 64);
    assert_true(b->layer[0].norm[NB_NORM1][5] == 1 && b->layer[0].norm_bias[NB_NORM1][5] == 0);
    assert_true(b->final_norm[0] == 1 && b->final_norm_bias[0] == 0);
    nb_base_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_turned),    cmocka_unit_test(four_bits_are_of_turned_weights),
        cmocka_unit_test(names_without_prefix),  cmocka_unit_test(whole_models_are_stored_as_read),
        cmocka_unit_test(positions_end),         cmocka_unit_test(drawn_by_depth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
