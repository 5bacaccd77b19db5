#include "tests/test.h"

#include "core/file.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/spec.h"

static char *dir;

static int make_dir(void **state) {
    (void)state;
    dir = nb_path_join(nb_test_tmp(), "spec");
    return nb_mkdirs(dir) == NB_OK ? 0 : -1;
}

static int drop_dir(void **state) {
    (void)state;
    free(dir);
    return 0;
}

static nb_status load(nb_spec *s, const char *text) {
    char *path = nb_path_join(dir, "config.json");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    free(path);
    return nb_spec_load(s, dir);
}

#define NAMED(arch, type) "{\"architectures\": [\"" arch "\"], \"model_type\": \"" type "\""
#define SIZES                                                                                             \
    ", \"vocab_size\": 512, \"hidden_size\": 48, \"intermediate_size\": 80, \"num_hidden_layers\": 2, "    \
    "\"num_attention_heads\": 4"
#define LLAMA NAMED("LlamaForCausalLM", "llama") SIZES
#define GPT2                                                                                                     \
    NAMED("GPT2LMHeadModel", "gpt2") ", \"vocab_size\": 512, \"n_embd\": 48, \"n_layer\": 2, \"n_head\": 4"
#define MISTRAL NAMED("MistralForCausalLM", "mistral") SIZES ", \"num_key_value_heads\": 2"

static void class_defaults(void **state) {
    (void)state;
    nb_spec s;
    assert_ok(load(&s, LLAMA "}"));
    assert_string_equal(s.family, "llama");
    assert_string_equal(s.architecture, "LlamaForCausalLM");
    assert_int_equal(s.kv_heads, 4);
    assert_int_equal(s.head_dim, 12);
    assert_int_equal(s.context, 2048);
    assert_int_equal(s.window, 0);
    assert_int_equal((int)s.act, NB_ACT_SILU);
    assert_int_equal((int)s.dtype, NB_F32);
    assert_true(!s.tied && !s.qkv_bias && !s.o_bias && !s.mlp_bias);
    assert_close(s.norm_eps, 1e-6, 1e-12);
    assert_close(s.attn_scale, 1 / sqrt(12), 1e-7);
    assert_close(s.rope[0].theta, 1e4, 0);
    assert_close(s.init_std, 0.02, 1e-8);
    assert_int_equal(s.rope[0].rot, 12);
    assert_true(s.embed_scale == 1 && s.norm_offset == 0 && s.logit_softcap == 0 && s.attn_softcap == 0);
    assert_true(s.bos == -1 && s.eos == -1);
    assert_ok(load(&s, MISTRAL "}"));
    assert_int_equal(s.window, 4096); /* an absent key is the class default, null is none */
    assert_int_equal(s.context, 131072);
    assert_ok(load(&s, MISTRAL ", \"sliding_window\": null}"));
    assert_int_equal(s.window, 0);
    assert_ok(load(&s, MISTRAL ", \"sliding_window\": 8}"));
    assert_int_equal(s.window, 8);
    assert_fails(load(&s, NAMED("MistralForCausalLM", "mistral") SIZES "}"), NB_EINPUT, "num_key_value_heads 8");
    assert_ok(load(&s, NAMED("MistralForCausalLM", "mistral") SIZES ", \"num_key_value_heads\": null}"));
    assert_int_equal(s.kv_heads, 4);
}

static void spellings(void **state) {
    (void)state;
    nb_spec s;
    assert_ok(load(&s, LLAMA ", \"head_dim\": null, \"num_key_value_heads\": null, \"torch_dtype\": \"bfloat16\", "
                       "\"rope_scaling\": null, \"rope_theta\": 500000, \"bos_token_id\": 1, \"eos_token_id\": [2, 3], "
                       "\"attention_bias\": true, \"mlp_bias\": true, \"tie_word_embeddings\": true}"));
    assert_int_equal(s.head_dim, 12);
    assert_int_equal((int)s.dtype, NB_BF16);
    assert_close(s.rope[0].theta, 5e5, 0);
    assert_true(s.bos == 1 && s.eos == 2 && s.qkv_bias && s.o_bias && s.mlp_bias && s.tied);
    assert_ok(load(&s, LLAMA ", \"head_dim\": 16, \"dtype\": \"float16\", \"hidden_act\": \"gelu_pytorch_tanh\", "
                       "\"rope_parameters\": {\"rope_theta\": 250000.0, \"rope_type\": \"default\"}}"));
    assert_int_equal(s.head_dim, 16);
    assert_int_equal((int)s.dtype, NB_F16);
    assert_int_equal((int)s.act, NB_ACT_GELU_TANH);
    assert_close(s.rope[0].theta, 250000, 0);
    assert_ok(load(&s, LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}"));
    assert_int_equal((int)s.rope[0].kind, NB_ROPE_LINEAR);
    /* llama3: the context before scaling is the top-level key, else the dictionary's, else the context */
    const char *scaling = ", \"max_position_embeddings\": 128, \"rope_scaling\": {\"rope_type\": \"llama3\", "
                          "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0";
    static const struct {
        const char *inside, *outside;
        int64_t want;
    } contexts[] = {{"", "", 128},
                    {", \"original_max_position_embeddings\": 32", "", 32},
                    {", \"original_max_position_embeddings\": 32", ", \"original_max_position_embeddings\": 64", 64}};
    for (int i = 0; i < NB_LEN(contexts); i++) {
        char *text = nb_asprintf("%s%s%s}%s}", LLAMA, scaling, contexts[i].inside, contexts[i].outside);
        assert_ok(load(&s, text));
        assert_int_equal(s.rope[0].original_context, contexts[i].want);
        free(text);
    }
}

static void gpt2_has_names_of_its_own(void **state) {
    (void)state;
    nb_spec s;
    assert_ok(load(&s, GPT2 "}"));
    assert_true(s.hidden == 48 && s.layers == 2 && s.heads == 4 && s.kv_heads == 4 && s.head_dim == 12);
    assert_true(s.mlp_hidden == 192 && s.context == 1024 && s.tied && s.learned_positions && s.stored_transposed);
    assert_true(s.act == NB_ACT_GELU_TANH && s.qkv_bias && s.o_bias && s.mlp_bias && s.layer[1].rope == -1);
    assert_close(s.norm_eps, 1e-5, 1e-12);
    assert_close(s.attn_scale, 1 / sqrt(12), 1e-7);
    /* embedding and positions; two layers of 12 C^2 + 13 C; the last norm */
    assert_int_equal(nb_spec_parameters(&s), (512 + 1024) * 48 + 2 * (12 * 48 * 48 + 13 * 48) + 2 * 48);
    assert_ok(load(&s, GPT2 ", \"n_inner\": 80, \"n_positions\": 64, \"activation_function\": \"relu\", "
                       "\"layer_norm_epsilon\": 1e-6, \"scale_attn_weights\": false, \"hidden_act\": \"silu\", "
                       "\"scale_attn_by_inverse_layer_idx\": true, \"intermediate_size\": 7}"));
    assert_true(s.mlp_hidden == 80 && s.context == 64 && s.act == NB_ACT_RELU && s.attn_scale == 1 && s.scale_by_layer);
    assert_close(s.norm_eps, 1e-6, 1e-12);
    assert_ok(load(&s, NAMED("GPT2LMHeadModel", "gpt2") SIZES ", \"n_inner\": null}")); /* attribute_map */
    assert_true(s.hidden == 48 && s.heads == 4 && s.mlp_hidden == 192);
}

static void refusals(void **state) {
    (void)state;
    static const struct {
        const char *config;
        nb_status status;
        const char *text;
    } cases[] = {
        {NAMED("Qwen9ForCausalLM", "qwen9") "}", NB_EUNSUPPORTED, "\"Qwen9ForCausalLM\" with model_type \"qwen9\""},
        {NAMED("LlamaForCausalLM", "mistral") "}", NB_EUNSUPPORTED, "\"LlamaForCausalLM\" with model_type \"mistral\""},
        {"{\"model_type\": \"llama\"}", NB_EUNSUPPORTED, "architectures[0] (none)"},
        {"{}", NB_EUNSUPPORTED, "model_type (none)"},
        {"[]", NB_EINPUT, "should be a JSON object"},
        {"{", NB_EINPUT, "config.json:1:"},
        {NAMED("LlamaForCausalLM", "llama") "}", NB_EINPUT, "no \"vocab_size\""},
        {LLAMA ", \"hidden_act\": \"quick_gelu\"}", NB_EUNSUPPORTED, "\"quick_gelu\""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"ntk\", \"factor\": 2}}", NB_EUNSUPPORTED, "\"ntk\""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"yarn\"}}", NB_EINPUT, "needs a \"factor\""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"beta_fast\": 1, \"beta_slow\": 2}}", NB_EINPUT,
         "beta_fast"},
        {LLAMA ", \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1], \"long_factor\": []}}", NB_EINPUT,
         "short_factor"},
        {LLAMA ", \"rope_scaling\": {\"type\": \"linear\"}}", NB_EINPUT, "needs a \"factor\""},
        {LLAMA ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 4, "
               "\"high_freq_factor\": 4}}", NB_EINPUT, "high_freq_factor"},
        {LLAMA ", \"rope_scaling\": 3}", NB_EINPUT, "should be an object"},
        {LLAMA ", \"rope_parameters\": {\"full_attention\": {}}}", NB_EUNSUPPORTED, "full_attention"},
        {LLAMA ", \"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", NB_EUNSUPPORTED, "partial_rotary_factor"},
        {LLAMA ", \"partial_rotary_factor\": 0.5}", NB_EUNSUPPORTED, "partial_rotary_factor"},
        {LLAMA ", \"clip_qkv\": 8}", NB_EUNSUPPORTED, "\"clip_qkv\": 8"},
        {LLAMA ", \"logit_scale\": 0.0625}", NB_EUNSUPPORTED, "\"logit_scale\""},
        {LLAMA ", \"embedding_multiplier\": 12.0}", NB_EUNSUPPORTED, "\"embedding_multiplier\""},
        {LLAMA ", \"residual_multiplier\": 0.22}", NB_EUNSUPPORTED, "\"residual_multiplier\""},
        {LLAMA ", \"attention_multiplier\": 0.01}", NB_EUNSUPPORTED, "\"attention_multiplier\""},
        {LLAMA ", \"use_qk_norm\": true}", NB_EUNSUPPORTED, "\"use_qk_norm\": true"},
        {LLAMA ", \"num_local_experts\": 8}", NB_EUNSUPPORTED, "\"num_local_experts\": 8"},
        {LLAMA ", \"sliding_window\": 16}", NB_EUNSUPPORTED, "sliding_window 16"},
        {LLAMA ", \"layer_types\": [\"full_attention\", \"sliding_attention\"]}", NB_EUNSUPPORTED, "layer_types[1]"},
        {LLAMA ", \"layer_types\": [\"full_attention\"]}", NB_EINPUT, "1 entries for 2 layers"},
        {LLAMA ", \"torch_dtype\": \"float64\"}", NB_EUNSUPPORTED, "\"float64\""},
        {LLAMA ", \"num_key_value_heads\": 3}", NB_EINPUT, "no multiple of num_key_value_heads 3"},
        {LLAMA ", \"num_key_value_heads\": 0}", NB_EINPUT, "\"num_key_value_heads\" is 0"},
        {LLAMA ", \"head_dim\": 7}", NB_EINPUT, "odd"},
        {LLAMA ", \"head_dim\": -2}", NB_EINPUT, "\"head_dim\" is -2"},
        {LLAMA ", \"rms_norm_eps\": \"small\"}", NB_EINPUT, "\"rms_norm_eps\" should be a number"},
        {LLAMA ", \"rms_norm_eps\": -1}", NB_EINPUT, "rms_norm_eps"},
        {LLAMA ", \"rope_theta\": 0}", NB_EINPUT, "rope_theta"},
        {LLAMA ", \"tie_word_embeddings\": 1}", NB_EINPUT, "tie_word_embeddings"},
        {MISTRAL ", \"sliding_window\": -1}", NB_EINPUT, "sliding_window -1"},
        {LLAMA ", \"head_dim\": 12, \"head_dim\": 12}", NB_EINPUT, "duplicate"},
        {LLAMA ", \"scale_attn_by_inverse_layer_idx\": true}", NB_EUNSUPPORTED, "scale_attn_by_inverse_layer_idx"},
        {GPT2 ", \"add_cross_attention\": true}", NB_EUNSUPPORTED, "add_cross_attention"},
        {GPT2 ", \"pruned_heads\": {\"0\": [1]}}", NB_EUNSUPPORTED, "pruned_heads"},
        {GPT2 ", \"activation_function\": \"tanh\"}", NB_EUNSUPPORTED, "\"tanh\""},
        {GPT2 ", \"scale_attn_weights\": 1}", NB_EINPUT, "scale_attn_weights"},
        {GPT2 ", \"n_positions\": 0}", NB_EINPUT, "max_position_embeddings"},
        {NAMED("GPT2LMHeadModel", "gpt2") ", \"vocab_size\": 512, \"n_embd\": 9223372036854775807, \"n_layer\": 2, "
                                          "\"n_head\": 1}", NB_EINPUT, "hidden_size"},
    };
    nb_spec s;
    for (int i = 0; i < NB_LEN(cases); i++) {
        assert_fails(load(&s, cases[i].config), cases[i].status, cases[i].text);
        assert_non_null(strstr(nb_message(), dir));
    }
    assert_ok(load(&s, LLAMA ", \"clip_qkv\": null, \"logit_scale\": 1.0, \"use_qk_norm\": false, \"num_experts\": 0, "
                       "\"no_rope_layers\": [], \"sliding_window\": null, \"layer_types\": [\"full_attention\", \"full_attention\"]}"));
    assert_fails(nb_spec_load(&s, "/nowhere"), NB_EINPUT, "not a model folder");
    assert_fails(nb_spec_load(&s, nb_test_tmp()), NB_EINPUT, "no config.json");
}

static void huge_sizes(void **state) {
    (void)state;
    static const char *const keys[] = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                       "num_attention_heads", "num_key_value_heads", "head_dim",
                                       "max_position_embeddings"};
    static const char *const values[] = {"9223372036854775807", "2147483648", "-1"};
    nb_spec s;
    for (int i = 0; i < NB_LEN(keys); i++)
        for (int k = 0; k < NB_LEN(values); k++) {
            nb_text t = {0};
            nb_text_puts(&t, NAMED("LlamaForCausalLM", "llama"));
            for (int j = 0; j < NB_LEN(keys); j++)
                nb_text_printf(&t, ", \"%s\": %s", keys[j], i == j ? values[k] : "8");
            nb_text_puts(&t, "}");
            assert_fails(load(&s, t.s), NB_EINPUT, keys[i]);
            nb_text_free(&t);
        }
}

/* Values of transformers 4.57 (modeling_rope_utils), every eighth. */
static void rope_frequencies(void **state) {
    (void)state;
    static const nb_rope_spec plain = {.kind = NB_ROPE_DEFAULT, .theta = 1e4, .rot = 64},
                              linear = {.kind = NB_ROPE_LINEAR, .theta = 1e4, .factor = 2, .rot = 64},
                              llama32 = {.kind = NB_ROPE_LLAMA3, .theta = 5e5, .factor = 32, .low_freq_factor = 1,
                                         .high_freq_factor = 4, .original_context = 8192, .rot = 64},
                              small = {.kind = NB_ROPE_LLAMA3, .theta = 5e5, .factor = 8, .low_freq_factor = 1,
                                       .high_freq_factor = 4, .original_context = 32, .rot = 16},
                              yarn = {.kind = NB_ROPE_YARN, .theta = 1e6, .factor = 4, .beta_fast = 32, .beta_slow = 1,
                                      .truncate = true, .original_context = 32768, .rot = 64},
                              dynamic = {.kind = NB_ROPE_DYNAMIC, .theta = 1e4, .factor = 2, .original_context = 2048,
                                         .rot = 64};
    nb_rope_spec longrope = {.kind = NB_ROPE_LONGROPE, .theta = 1e4, .original_context = 4096, .rot = 64};
    for (int j = 0; j < 32; j++) {
        longrope.factors[0][j] = 1 + 0.05f * (float)j;
        longrope.factors[1][j] = 1 + 0.5f * (float)j;
    }
    const struct {
        const nb_rope_spec *r;
        int64_t length;
        double want[8];
    } cases[] = {
        {&llama32, 0, {1, 0.193922758, 0.0376060307, 0.00729266508, 0.000429556705, 8.57025589e-06, 1.66196742e-06,
                       3.22293289e-07}},
        {&small, 0, {1, 0.0242403448, 0.00470075384, 0.000911583134, 0.000176776681, 3.42810235e-05, 6.64786967e-06,
                     1.28917316e-06}},
        {&linear, 0, {0.5, 0.158113882, 0.05, 0.0158113883, 0.005, 0.00158113883, 0.0005, 0.000158113883}},
        {&plain, 0, {1, 0.316227766, 0.1, 0.0316227766, 0.01, 0.00316227766, 0.001, 0.000316227766}},
        {&yarn, 0, {1, 0.177827939, 0.0316227786, 0.00515479548, 0.000583333371, 4.44569851e-05, 7.90569356e-06,
                    1.40585337e-06}},
        {&dynamic, 512, {1, 0.316227766, 0.1, 0.0316227766, 0.01, 0.00316227766, 0.001, 0.000316227766}},
        {&dynamic, 8192, {1, 0.246011317, 0.0605215691, 0.0148889907, 0.00366286025, 0.000901105115, 0.000221682058,
                          5.45362964e-05}},
        {&longrope, 100, {1, 0.263523132, 0.0714285746, 0.0197642352, 0.00555555569, 0.00158113893, 0.000454545458,
                          0.000131761568}},
        {&longrope, 5000, {1, 0.10540925, 0.0199999996, 0.0045175394, 0.00111111114, 0.000287479779, 7.69230755e-05,
                           2.10818507e-05}},
    };
    for (int i = 0; i < NB_LEN(cases); i++) {
        double f[32];
        nb_rope_inv_freq(cases[i].r, cases[i].length, f);
        for (int k = 0; k < 8; k++) {
            double want = cases[i].want[k];
            assert_close(f[k * cases[i].r->rot / 16], want, 5e-7 * want); /* theirs are f32 */
        }
    }
}

static void names_and_shapes(void **state) {
    (void)state;
    nb_spec s;
    assert_ok(load(&s, MISTRAL ", \"head_dim\": 16}"));
    char *q = nb_spec_linear_name(&s, 31, NB_GATE), *n = nb_spec_norm_name(&s, 0, NB_NORM2);
    assert_string_equal(q, "model.layers.31.mlp.gate_proj");
    assert_string_equal(n, "model.layers.0.post_attention_layernorm");
    free(q);
    free(n);
    static const int64_t shape[NB_SLOTS][2] = {
        [NB_Q] = {64, 48},    [NB_K] = {32, 48},  [NB_V] = {32, 48},   [NB_O] = {48, 64},
        [NB_GATE] = {80, 48}, [NB_UP] = {80, 48}, [NB_DOWN] = {48, 80}};
    int64_t rows, cols;
    for (nb_slot k = 0; k < NB_SLOTS; k++) {
        nb_spec_linear_shape(&s, 0, k, &rows, &cols);
        assert_true(rows == shape[k][0] && cols == shape[k][1]);
    }
    /* 2 * 512*48 embedding and head; 2 layers of q, o: 64*48 each, k, v: 32*48 each, mlp 3*80*48, norms 2*48; 48 */
    assert_int_equal(nb_spec_parameters(&s), 2 * 24576 + 2 * (6144 + 3072 + 11520 + 96) + 48);
}

static void vectors(void **state) {
    (void)state;
    nb_spec s;
    assert_ok(nb_spec_load(&s, VECTORS("stories260K-hf")));
    assert_int_equal(nb_spec_parameters(&s), 260032);
    assert_ok(nb_spec_load(&s, VECTORS("tiny/llama3")));
    assert_true(s.rope[0].kind == NB_ROPE_LLAMA3 && s.rope[0].original_context == 32 && s.head_dim == 16 && s.tied);
    assert_ok(nb_spec_load(&s, VECTORS("tiny/mistral")));
    assert_int_equal(s.window, 8);
    assert_ok(nb_spec_load(&s, VECTORS("tiny/mixtral")));
    assert_true(s.experts == 4 && s.top_k == 2 && s.renorm_topk && s.expert_hidden == 80 && !s.shared_hidden);
    assert_ok(nb_spec_load(&s, VECTORS("tiny/qwen2_moe")));
    assert_true(s.experts == 6 && s.expert_hidden == 32 && s.shared_hidden == 64 && s.qkv_bias);
}

static void mutations(void **state) {
    (void)state;
    static const char config[] = LLAMA ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "
                                       "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0}, \"head_dim\": 12, "
                                       "\"torch_dtype\": \"bfloat16\", \"eos_token_id\": [1, 2]}";
    nb_rng r = nb_rng_open(2, NB_RNG_TEST, 0);
    for (int i = 0; i < 2000; i++) {
        char copy[sizeof config];
        memcpy(copy, config, sizeof config);
        for (uint64_t k = nb_rng_below(&r, 3) + 1; k > 0; k--)
            copy[nb_rng_below(&r, sizeof config - 1)] = "0123456789-[]{},:\"eE."[nb_rng_below(&r, 21)];
        nb_spec s;
        if (load(&s, copy) == NB_OK) assert_ok(nb_spec_check(&s, "mutant"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(class_defaults),   cmocka_unit_test(spellings),        cmocka_unit_test(refusals),
        cmocka_unit_test(gpt2_has_names_of_its_own),
        cmocka_unit_test(huge_sizes),       cmocka_unit_test(rope_frequencies), cmocka_unit_test(names_and_shapes),
        cmocka_unit_test(vectors),          cmocka_unit_test(mutations),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
