#include "tests/test.h"

#include "core/cpu.h"
#include "model/weights.h"
#include "tests/tiny_base.h"

static const nb_base_options plain = {0};

static float element(const nb_weight *w, int64_t i) {
    if (w->format == NB_FMT_F32) return ((const float *)w->data)[i];
    uint16_t h = ((const uint16_t *)w->data)[i];
    return w->format == NB_FMT_BF16 ? nb_bf16_to_f32(h) : nb_f16_to_f32(h);
}

/* Every weight of `b` is what the folder's file holds, in the file's own dtype. */
static void check_against_file(const nb_base *b) {
    nb_st s;
    assert_ok(nb_st_open_dir(&s, b->dir, "model"));
    for (int64_t l = 0; l < b->spec.layers; l++)
        for (nb_slot k = 0; k < NB_SLOTS; k++) {
            const nb_base_linear *lin = &b->layer[l].lin[k];
            char *name = nb_asprintf("%s.weight", lin->name);
            const nb_st_tensor *t = nb_st_find(&s, name);
            assert_non_null(t);
            assert_int_equal(t->d[0], lin->w.rows);
            assert_int_equal(t->d[1], lin->w.cols);
            assert_int_equal((int)lin->w.format, (int)t->dtype);
            assert_memory_equal(lin->w.data, t->data, t->bytes);
            free(name);
        }
    const nb_st_tensor *e = nb_st_find(&s, nb_spec_embed_name(&b->spec));
    assert_null(e);
    e = nb_st_find(&s, "model.embed_tokens.weight");
    assert_memory_equal(b->embed.data, e->data, e->bytes);
    nb_st_close(&s);
}

static void loads_own_folders(void **state) {
    (void)state;
    static const char *const configs[] = {
        TINY_LLAMA "}",
        TINY_LLAMA ", \"attention_bias\": true, \"mlp_bias\": true}",
        "{\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", \"vocab_size\": 7, \"dtype\": "
        "\"float32\", \"hidden_size\": 8, \"intermediate_size\": 3, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 2, \"num_key_value_heads\": null, \"tie_word_embeddings\": false}",
    };
    for (int i = 0; i < NB_LEN(configs); i++) {
        char *dir = tiny_base("own", configs[i], (uint64_t)i);
        nb_base *b;
        assert_ok(nb_base_load(&b, dir, &plain));
        check_against_file(b);
        assert_int_equal(strlen(b->sha256), 64);
        assert_true((b->layer[0].lin[NB_Q].bias != NULL) == b->spec.qkv_bias);
        assert_true((b->layer[0].lin[NB_DOWN].bias != NULL) == b->spec.mlp_bias);
        assert_true((b->head.w.data == b->embed.data) == b->spec.tied);
        nb_base_free(b);
        free(dir);
    }
}

static void loads_vectors(void **state) {
    (void)state;
    static const char *const folders[] = {"stories260K-hf", "stories260K-hf-bf16-sharded", "tiny/llama2", "tiny/llama3",
                                          "tiny/mistral"};
    for (int i = 0; i < NB_LEN(folders); i++) {
        nb_base *b;
        assert_ok(nb_base_load(&b, VECTORS(folders[i]), &plain));
        check_against_file(b);
        nb_base_free(b);
    }
}

static void reinit_is_independent_of_threads(void **state) {
    (void)state;
    char *dir = tiny_base("reinit", TINY_LLAMA ", \"initializer_range\": 0.5}", 1);
    char *file = nb_path_join(dir, "model.safetensors");
    assert_ok(nb_remove_tree(file)); /* none is needed */
    nb_base *x, *y, *z, *bf;
    nb_base_options o = {.reinit = true, .seed = 7, .keep_f32 = true}, other = o, half = o;
    other.seed = 8;
    half.keep_f32 = false;
    nb_threads_set(1);
    assert_ok(nb_base_load(&x, dir, &o));
    nb_threads_set(3);
    assert_ok(nb_base_load(&y, dir, &o));
    assert_ok(nb_base_load(&z, dir, &other));
    assert_ok(nb_base_load(&bf, dir, &half));
    nb_threads_set(0);
    assert_int_equal(x->embed.format, NB_FMT_F32);
    assert_int_equal(bf->embed.format, NB_FMT_BF16);
    assert_string_equal(x->sha256, y->sha256);
    assert_string_not_equal(x->sha256, z->sha256);
    double sum = 0, squares = 0;
    int64_t n = 0, equal = 0;
    for (nb_slot k = 0; k < NB_SLOTS; k++) {
        const nb_weight *w = &x->layer[1].lin[k].w;
        for (int64_t i = 0; i < w->rows * w->cols; i++, n++) {
            float v = element(w, i);
            sum += v, squares += (double)v * v;
            assert_true(v == element(&y->layer[1].lin[k].w, i));
            equal += v == element(&z->layer[1].lin[k].w, i);
            assert_true(nb_round_bf16(v) == element(&bf->layer[1].lin[k].w, i));
        }
    }
    assert_int_equal(equal, 0);
    assert_close(sum / (double)n, 0, 0.03);
    assert_close(sqrt(squares / (double)n), 0.5, 0.02);
    assert_true(element(&x->layer[0].lin[NB_Q].w, 0) != element(&x->layer[1].lin[NB_Q].w, 0));
    assert_true(x->final_norm[3] == 1 && x->layer[0].norm[NB_NORM2][0] == 1);
    nb_base_free(x);
    nb_base_free(y);
    nb_base_free(z);
    nb_base_free(bf);
    free(file);
    free(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_own_folders),
        cmocka_unit_test(loads_vectors),
        cmocka_unit_test(reinit_is_independent_of_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
