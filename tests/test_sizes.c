/* The configurations in configs/ at their models' real sizes, from config.json alone: parameters as published (the sums of
 * the shapes in the models' safetensors files), and the memory of a run planned without a weight. */
#include "tests/test.h"

#include "configs/config.h"
#include "core/file.h"
#include "core/mem.h"
#include "model/weights.h"
#include "train/run.h"

#define EIGHT(x) #x ", " #x ", " #x ", " #x ", " #x ", " #x ", " #x ", " #x
#define FACTORS(x) "[" EIGHT(x) ", " EIGHT(x) ", " EIGHT(x) ", " EIGHT(x) ", " EIGHT(x) ", " EIGHT(x) "]"

static const struct size {
    const char *yaml, *type, *architecture, *config;
    int64_t parameters;
    double active; /* of a mixture, a token's, 10^9, as its authors say it; 0: all */
} sizes[] = {
    {"qlora-mixtral-8x7b", "mixtral", "MixtralForCausalLM",
     "\"hidden_size\": 4096, \"intermediate_size\": 14336, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     "\"num_key_value_heads\": 8, \"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 32000,"
     "\"max_position_embeddings\": 32768, \"rope_theta\": 1e6, \"sliding_window\": null", 46702792704, 12.9},
    {"qlora-qwen1.5-moe-a2.7b", "qwen2_moe", "Qwen2MoeForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 5632, \"moe_intermediate_size\": 1408, \"num_hidden_layers\": 24,"
     "\"shared_expert_intermediate_size\": 5632, \"num_attention_heads\": 16, \"num_key_value_heads\": 16,"
     "\"num_experts\": 60, \"num_experts_per_tok\": 4, \"norm_topk_prob\": false, \"decoder_sparse_step\": 1,"
     "\"vocab_size\": 151936, \"max_position_embeddings\": 8192, \"rope_theta\": 1e6, \"max_window_layers\": 21,"
     "\"sliding_window\": 32768, \"use_sliding_window\": false, \"tie_word_embeddings\": false", 14315784192, 2.7},
    {"qlora-qwen3-30b-a3b", "qwen3_moe", "Qwen3MoeForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 6144, \"moe_intermediate_size\": 768, \"num_hidden_layers\": 48,"
     "\"num_attention_heads\": 32, \"num_key_value_heads\": 4, \"head_dim\": 128, \"num_experts\": 128,"
     "\"num_experts_per_tok\": 8, \"norm_topk_prob\": true, \"decoder_sparse_step\": 1, \"mlp_only_layers\": [],"
     "\"vocab_size\": 151936, \"max_position_embeddings\": 40960, \"rope_theta\": 1e6, \"use_sliding_window\": false,"
     "\"tie_word_embeddings\": false", 30532122624, 3.3},
    {"qlora-olmoe-1b-7b", "olmoe", "OlmoeForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 1024, \"num_hidden_layers\": 16, \"num_attention_heads\": 16,"
     "\"num_key_value_heads\": 16, \"num_experts\": 64, \"num_experts_per_tok\": 8, \"norm_topk_prob\": false,"
     "\"clip_qkv\": null, \"vocab_size\": 50304, \"max_position_embeddings\": 4096, \"tie_word_embeddings\": false",
     6919161856, 1.3},
    {"qlora-llama3.2-1b", "llama", "LlamaForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 8192, \"num_hidden_layers\": 16, \"num_attention_heads\": 32,"
     "\"num_key_value_heads\": 8, \"head_dim\": 64, \"vocab_size\": 128256, \"max_position_embeddings\": 131072,"
     "\"rope_theta\": 5e5, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": 1.0,"
     "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, \"tie_word_embeddings\": true",
     1235814400, 0},
    {"lora-tinyllama", "llama", "LlamaForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 5632, \"num_hidden_layers\": 22, \"num_attention_heads\": 32,"
     "\"num_key_value_heads\": 4, \"vocab_size\": 32000, \"max_position_embeddings\": 2048", 1100048384, 0},
    {"qlora-mistral-7b", "mistral", "MistralForCausalLM",
     "\"hidden_size\": 4096, \"intermediate_size\": 14336, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     "\"num_key_value_heads\": 8, \"vocab_size\": 32768, \"max_position_embeddings\": 32768, \"rope_theta\": 1e6,"
     "\"sliding_window\": null", 7248023552, 0},
    {"qlora-qwen2.5-1.5b", "qwen2", "Qwen2ForCausalLM",
     "\"hidden_size\": 1536, \"intermediate_size\": 8960, \"num_hidden_layers\": 28, \"num_attention_heads\": 12,"
     "\"num_key_value_heads\": 2, \"vocab_size\": 151936, \"max_position_embeddings\": 32768, \"rope_theta\": 1e6,"
     "\"use_sliding_window\": false, \"sliding_window\": 32768, \"max_window_layers\": 21, \"tie_word_embeddings\": true",
     1543714304, 0},
    {"qlora-qwen3-1.7b", "qwen3", "Qwen3ForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 6144, \"num_hidden_layers\": 28, \"num_attention_heads\": 16,"
     "\"num_key_value_heads\": 8, \"head_dim\": 128, \"vocab_size\": 151936, \"max_position_embeddings\": 40960,"
     "\"rope_theta\": 1e6, \"tie_word_embeddings\": true", 1720574976, 0},
    {"qlora-gemma-2b", "gemma", "GemmaForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 16384, \"num_hidden_layers\": 18, \"num_attention_heads\": 8,"
     "\"num_key_value_heads\": 1, \"head_dim\": 256, \"vocab_size\": 256000, \"max_position_embeddings\": 8192,"
     "\"hidden_act\": \"gelu\"", 2506172416, 0},
    {"qlora-gemma2-2b", "gemma2", "Gemma2ForCausalLM",
     "\"hidden_size\": 2304, \"intermediate_size\": 9216, \"num_hidden_layers\": 26, \"num_attention_heads\": 8,"
     "\"num_key_value_heads\": 4, \"head_dim\": 256, \"vocab_size\": 256000, \"max_position_embeddings\": 8192,"
     "\"sliding_window\": 4096, \"query_pre_attn_scalar\": 256", 2614341888, 0},
    {"qlora-gemma3-1b", "gemma3_text", "Gemma3ForCausalLM",
     "\"hidden_size\": 1152, \"intermediate_size\": 6912, \"num_hidden_layers\": 26, \"num_attention_heads\": 4,"
     "\"num_key_value_heads\": 1, \"head_dim\": 256, \"vocab_size\": 262144, \"max_position_embeddings\": 32768,"
     "\"sliding_window\": 512, \"sliding_window_pattern\": 6, \"query_pre_attn_scalar\": 256", 999885952, 0},
    {"qlora-phi2", "phi", "PhiForCausalLM",
     "\"hidden_size\": 2560, \"intermediate_size\": 10240, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     "\"num_key_value_heads\": 32, \"partial_rotary_factor\": 0.4, \"vocab_size\": 51200,"
     "\"max_position_embeddings\": 2048, \"hidden_act\": \"gelu_new\"", 2779683840, 0},
    {"qlora-phi3.5-mini", "phi3", "Phi3ForCausalLM",
     "\"hidden_size\": 3072, \"intermediate_size\": 8192, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     "\"num_key_value_heads\": 32, \"vocab_size\": 32064, \"max_position_embeddings\": 131072,"
     "\"original_max_position_embeddings\": 4096, \"sliding_window\": 262144, \"rope_scaling\": {\"type\": \"longrope\","
     "\"short_factor\": " FACTORS(1.5) ", \"long_factor\": " FACTORS(30.5) "}", 3821079552, 0},
    {"qlora-olmo-1b", "olmo", "OlmoForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 8192, \"num_hidden_layers\": 16, \"num_attention_heads\": 16,"
     "\"num_key_value_heads\": 16, \"vocab_size\": 50304, \"max_position_embeddings\": 2048, \"clip_qkv\": null,"
     "\"tie_word_embeddings\": true", 1176764416, 0},
    {"qlora-olmo2-7b", "olmo2", "Olmo2ForCausalLM",
     "\"hidden_size\": 4096, \"intermediate_size\": 11008, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     "\"num_key_value_heads\": 32, \"vocab_size\": 100352, \"max_position_embeddings\": 4096, \"rope_theta\": 5e5,"
     "\"tie_word_embeddings\": false", 7298617344, 0},
    {"qlora-smollm2-135m", "llama", "LlamaForCausalLM",
     "\"hidden_size\": 576, \"intermediate_size\": 1536, \"num_hidden_layers\": 30, \"num_attention_heads\": 9,"
     "\"num_key_value_heads\": 3, \"vocab_size\": 49152, \"max_position_embeddings\": 8192, \"rope_theta\": 1e5,"
     "\"tie_word_embeddings\": true", 134515008, 0},
    {"qlora-smollm3-3b", "smollm3", "SmolLM3ForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 11008, \"num_hidden_layers\": 36, \"num_attention_heads\": 16,"
     "\"num_key_value_heads\": 4, \"vocab_size\": 128256, \"max_position_embeddings\": 65536, \"rope_theta\": 5e6,"
     "\"no_rope_layer_interval\": 4, \"tie_word_embeddings\": true", 3075098624, 0},
    {"qlora-gpt2", "gpt2", "GPT2LMHeadModel",
     "\"n_embd\": 768, \"n_layer\": 12, \"n_head\": 12, \"n_positions\": 1024, \"n_ctx\": 1024, \"vocab_size\": 50257,"
     "\"activation_function\": \"gelu_new\"", 124439808, 0},
    {"qlora-pythia-1.4b", "gpt_neox", "GPTNeoXForCausalLM",
     "\"hidden_size\": 2048, \"intermediate_size\": 8192, \"num_hidden_layers\": 24, \"num_attention_heads\": 16,"
     "\"rotary_pct\": 0.25, \"rotary_emb_base\": 10000, \"use_parallel_residual\": true, \"vocab_size\": 50304,"
     "\"max_position_embeddings\": 2048, \"hidden_act\": \"gelu\", \"tie_word_embeddings\": false", 1414647808, 0},
};

static const char *folder(const struct size *z) {
    static char dir[400];
    char path[420];
    snprintf(dir, sizeof dir, "%s/%s", nb_test_tmp(), z->yaml);
    snprintf(path, sizeof path, "%s/config.json", dir);
    char *json = nb_asprintf("{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"torch_dtype\": \"bfloat16\", %s}",
                             z->architecture, z->type, z->config);
    assert_ok(nb_mkdirs(dir));
    assert_ok(nb_file_write(path, json, strlen(json)));
    free(json);
    return dir;
}

/* A small rank: adapters are made in earnest. */
static void load(nb_config *c, const struct size *z, const char *dir) {
    char *base = nb_asprintf("base_model=%s", dir), *yaml = nb_asprintf("configs/%s.yaml", z->yaml);
    assert_ok(nb_config_load(c, yaml, (const char *[]){base, "memory_limit=400GB", "device=cpu", "lora_r=2"}, 4));
    free(base), free(yaml);
}

/* Linear layers in 4 bits (a byte of scale for 64, 4 bytes for 256 such bytes), embeddings and head in 16. */
static double expected_bytes(const nb_spec *s, bool in_4bit) {
    double whole = (double)(s->tied ? 1 : 2) * (double)(s->vocab * s->hidden);
    if (s->learned_positions) whole += (double)(s->context * s->hidden);
    double linear = (double)nb_spec_parameters(s) - whole;
    return 2 * whole + linear * (in_4bit ? 0.5 + 1 / 64.0 + 4 / 64.0 / 256 : 2);
}

static void check(nb_run *r, const struct size *z) {
    r->planning = true;
    if (nb_run_open_base(r) != NB_OK || nb_run_open_model(r) != NB_OK || nb_run_open_adapter(r) != NB_OK ||
        nb_run_open_runners(r) != NB_OK)
        fail_msg("%s: %s", z->yaml, nb_message());
    const nb_spec *s = &r->base->spec;
    const nb_memory_plan m = nb_run_memory(r);
    const double n = (double)nb_spec_parameters(s), active = (double)nb_spec_active_parameters(s);
    const double bytes = expected_bytes(s, r->config->load_in_4bit);
    if (nb_spec_parameters(s) != z->parameters) fail_msg("%s has %.0f parameters", z->yaml, n);
    if (!(fabs(active - (z->active > 0 ? z->active * 1e9 : n)) <= 0.06e9))
        fail_msg("%s: %.0f parameters are active", z->yaml, active);
    if (!(fabs((double)m.base - bytes) <= 0.005 * bytes))
        fail_msg("%s: the base has %zu bytes, not %.0f", z->yaml, m.base, bytes);
    assert_true(r->base->hollow && !r->tokenizer && m.adapter && m.activations > m.adapter / 2);
    assert_true(m.total > m.base + 4 * m.adapter && m.total < 200e9);
}

static void plans(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(sizes); i++) {
        nb_config c;
        nb_run r;
        load(&c, &sizes[i], folder(&sizes[i]));
        assert_ok(nb_run_open(&r, &c));
        check(&r, &sizes[i]);
        nb_run_close(&r);
        nb_config_free(&c);
    }
}

/* Training still wants the weights. */
static void only_plans(void **state) {
    (void)state;
    nb_config c;
    nb_run r;
    load(&c, &sizes[NB_LEN(sizes) - 1], folder(&sizes[NB_LEN(sizes) - 1]));
    assert_ok(nb_run_open(&r, &c));
    assert_fails(nb_run_open_base(&r), NB_EINPUT, "has neither model.safetensors nor");
    nb_run_close(&r);
    nb_config_free(&c);
}

/* Every configuration in configs/ is read without a complaint, and those of models are above. */
static void all_are_read(void **state) {
    (void)state;
    char **names;
    int n, models = 0;
    setenv("NIBBLE_CORPORA", "corpora", 0);
    assert_ok(nb_list_dir("configs", &names, &n));
    for (int i = 0; i < n; i++) {
        nb_config c;
        char *path = nb_path_join("configs", names[i]);
        bool known = false;
        if (!strcmp(nb_path_ext(path), ".yaml")) {
            assert_ok(nb_config_load(&c, path, NULL, 0));
            nb_config_free(&c);
            for (int k = 0; k < NB_LEN(sizes); k++) {
                size_t length = strlen(sizes[k].yaml);
                known |= !strncmp(names[i], sizes[k].yaml, length) && !strcmp(names[i] + length, ".yaml");
            }
            if (!known && strstr(names[i], "lora-")) fail_msg("%s: of which size is its model?", names[i]);
            models += known;
        }
        free(path), free(names[i]);
    }
    assert_int_equal(models, NB_LEN(sizes));
    free(names);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(plans), cmocka_unit_test(only_plans),
                                       cmocka_unit_test(all_are_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
