/* GGUF models as a base: the same numbers as the folder they were made of, and what is refused. */
#include "adapters/export.h"
#include "adapters/merge.h"
#include "adapters/tokenizer_open.h"
#include "core/hash.h"
#include "model/gguf_base.h"
#include "model/gguf_map.h"
#include "tests/tiny_base.h"
#include "train/optimizer.h"

static char *tmp_path(const char *name) { return nb_path_join(nb_test_tmp(), name); }

/* The folder as a GGUF file; caller frees the path. */
static char *export_as(const char *dir, const char *type) {
    static int serial;
    char *name = nb_asprintf("base-%d.gguf", serial++), *path = tmp_path(name);
    nb_export_report r;
    assert_ok(nb_export_gguf(dir, "a model", path, nb_gguf_mix_find(type), true, &r));
    free(name);
    return path;
}

/* ---- numbers ---- */

/* Logits of every position of a text of n tokens, [n, V]; caller frees. The vocabulary's size, if wanted. */
static const char *device = "cpu"; /* or "emu": the GPU backend's code */
static float *logits_of(const char *path, int n, bool four_bits, int64_t *vocab) {
    nb_dev *dev;
    nb_base *b;
    nb_model *m;
    nb_arena arena = {0};
    nb_runner *r;
    nb_base_options o = {.quantized_cache = "", .load_in_4bit = four_bits, .double_quant = true};
    int32_t ids[64], pos[64];
    assert_ok(nb_dev_open(&dev, device, NB_F32));
    assert_ok(nb_base_load(&b, path, &o));
    assert_ok(nb_model_open(&m, b, dev, n, n));
    assert_ok(nb_runner_open_logits(&r, m, &arena, n, n, NULL));
    for (int i = 0; i < n; i++) ids[i] = (int32_t)((17 * i + 5) % b->spec.vocab), pos[i] = i;
    nb_seg seg = {0, n, 0, n};
    nb_batch batch = {.n = n, .ids = ids, .pos = pos, .sample = (const uint32_t *)pos, .segs = &seg, .n_segs = 1};
    float *logits = nb_malloc((size_t)(n * b->spec.vocab) * sizeof *logits);
    assert_ok(nb_runner_logits(r, &batch, NULL, pos, n, logits));
    if (vocab) *vocab = b->spec.vocab;
    nb_runner_free(r);
    nb_arena_free(&arena);
    nb_model_free(m);
    nb_base_free(b);
    nb_dev_close(dev);
    return logits;
}

static void expect_same_bits(const char *what, const char *dir, const char *file, int n, bool four_bits) {
    int64_t V, V2;
    float *want = logits_of(dir, n, four_bits, &V), *got = logits_of(file, n, four_bits, &V2);
    assert_int_equal(V, V2);
    if (memcmp(want, got, (size_t)(n * V) * sizeof *want) != 0)
        fail_msg("%s: logits differ by %.2g", what, nb_rel_error(got, want, n * V));
    free(want), free(got);
}

/* Windows that llama.cpp has no word for are left out of the file: fewer tokens than that see no difference. */
static const struct { const char *folder; int n; } families[] = {
    {"llama", 40}, {"llama3", 40}, {"mistral", 6}, {"smollm2", 40}, {"qwen2-yarn", 7}, {"qwen3", 40}, {"gemma", 40},
    {"phi3-longrope", 40}, {"phi", 40}, {"olmo", 40}, {"olmo2", 40}, {"gpt2", 40}, {"neox", 40}, {"neox-serial", 40},
    {"mixtral", 6},
};

static void test_families(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(families); i++) {
        char *dir = nb_path_join("tests/golden", families[i].folder), *file = export_as(dir, "f32");
        expect_same_bits(families[i].folder, dir, file, families[i].n, false);
        free(dir), free(file);
    }
}

#define OF_SIZE(architecture, type, layers, hidden, kv_heads)                                                      \
    "{\"architectures\": [\"" architecture "\"], \"model_type\": \"" type "\", \"num_hidden_layers\": " #layers ", " \
    "\"vocab_size\": 120, \"hidden_size\": " #hidden ", \"intermediate_size\": 36, \"num_attention_heads\": 4, "     \
    "\"num_key_value_heads\": " #kv_heads ", \"head_dim\": 12, \"max_position_embeddings\": 64, "                   \
    "\"torch_dtype\": \"float32\""
#define FAMILY(architecture, type, layers) OF_SIZE(architecture, type, layers, 24, 2)

/* What the golden folders lack. */
static const struct { const char *name, *config; } more[] = {
    {"llama3 in full", FAMILY("LlamaForCausalLM", "llama", 2) ", \"rope_theta\": 5e5, \"rope_scaling\": {"
     "\"rope_type\": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
     "\"original_max_position_embeddings\": 8192}}"},
    {"llama with biases", FAMILY("LlamaForCausalLM", "llama", 2) ", \"attention_bias\": true, \"mlp_bias\": true, "
     "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0}}"},
    {"gemma2", FAMILY("Gemma2ForCausalLM", "gemma2", 3) ", \"sliding_window\": 5, \"query_pre_attn_scalar\": 12, "
     "\"attn_logit_softcapping\": 4.0, \"final_logit_softcapping\": 3.0}"},
    {"gemma3", FAMILY("Gemma3ForCausalLM", "gemma3_text", 7) ", \"sliding_window\": 5, \"query_pre_attn_scalar\": 12, "
     "\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8.0}}"},
    {"smollm3", FAMILY("SmolLM3ForCausalLM", "smollm3", 5) "}"},
    {"phi3 with a window", FAMILY("Phi3ForCausalLM", "phi3", 2) ", \"sliding_window\": 9, "
     "\"partial_rotary_factor\": 0.5}"},
    {"mixtral, tied", FAMILY("MixtralForCausalLM", "mixtral", 3) ", \"num_local_experts\": 8, "
     "\"sliding_window\": null, \"tie_word_embeddings\": true}"},
    {"qwen2-moe", OF_SIZE("Qwen2MoeForCausalLM", "qwen2_moe", 2, 48, 2) ", \"num_experts\": 6, "
     "\"moe_intermediate_size\": 20, \"shared_expert_intermediate_size\": 28}"},
    {"qwen2-moe, tied, no biases", OF_SIZE("Qwen2MoeForCausalLM", "qwen2_moe", 2, 48, 2) ", \"num_experts\": 6, "
     "\"moe_intermediate_size\": 20, \"shared_expert_intermediate_size\": 28, \"qkv_bias\": false, "
     "\"tie_word_embeddings\": true}"},
    {"qwen3-moe", FAMILY("Qwen3MoeForCausalLM", "qwen3_moe", 2) ", \"num_experts\": 5, \"num_experts_per_tok\": 3, "
     "\"moe_intermediate_size\": 20, \"norm_topk_prob\": true}"},
    {"olmoe", OF_SIZE("OlmoeForCausalLM", "olmoe", 2, 48, 4) ", \"num_experts\": 7, \"num_experts_per_tok\": 3}"},
};

static char *with_tokenizer(char *dir) {
    char *to = nb_path_join(dir, "tokenizer.json");
    assert_ok(nb_file_copy("tests/golden/llama/tokenizer.json", to));
    free(to);
    return dir;
}

static void test_more_families(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(more); i++) {
        char *dir = with_tokenizer(tiny_base("family", more[i].config, 7)), *file = export_as(dir, "f32");
        expect_same_bits(more[i].name, dir, file, 40, false);
        free(dir), free(file);
    }
}

/* The factors of another rule than Llama 3's are kept as they are. */
static void test_other_factors(void **state) {
    (void)state;
    char *dir = with_tokenizer(tiny_base("factors", more[0].config, 7));
    nb_spec *s = NB_NEW(nb_spec);
    json_t *c;
    char *path = nb_path_join(dir, "config.json");
    assert_ok(nb_json_load(path, &c));
    json_object_set_new(json_object_get(c, "rope_scaling"), "low_freq_factor", json_real(1.5));
    assert_ok(nb_json_save(path, c));
    char *file = export_as(dir, "f32");
    assert_ok(nb_spec_load(s, file));
    assert_int_equal(s->rope[0].kind, NB_ROPE_LONGROPE);
    int64_t V;
    float *want = logits_of(dir, 40, false, &V), *got = logits_of(file, 40, false, NULL);
    assert_close(nb_rel_error(got, want, 40 * V), 0, 1e-5); /* the file has them as f32 */
    free(want), free(got), free(s), free(dir), free(path), free(file);
    json_decref(c);
}

/* Rounded weights are the same weights from either file, in NF4 too. */
static void test_types(void **state) {
    (void)state;
    static const char *const types[] = {"f16", "bf16"};
    for (int i = 0; i < NB_LEN(types); i++) {
        char *file = export_as("tests/golden/llama", types[i]), *back = tmp_path(i ? "bf16" : "f16");
        nb_session s;
        assert_ok(nb_session_open(&s, &(nb_session_options){.base = file, .dtype = "f32", .device = "cpu"}));
        assert_ok(nb_merge(&s, back, NB_MERGE_ORIGINAL)); /* no adapter: the base as a folder */
        nb_session_close(&s);
        expect_same_bits("as stored", back, file, 40, false);
        expect_same_bits("in 4 bits", back, file, 40, true);
        free(file), free(back);
    }
}

/* Files of llama.cpp's own converter. */
static void test_stories(void **state) {
    (void)state;
    const char *dir = VECTORS("stories260K-hf");
    expect_same_bits("stories260K", dir, VECTORS("gguf/stories260K-f32.gguf"), 60, false);
    int64_t V;
    float *want = logits_of(dir, 60, false, &V);
    for (int i = 0; i < 3; i++) {
        static const struct { const char *file; double most; } files[] = {
            {"gguf/stories260K-f16.gguf", 2e-3}, {"gguf/stories260K-bf16.gguf", 2e-2},
            {"gguf/stories260K-q8_0.gguf", 3e-2},
        };
        float *got = logits_of(VECTORS(files[i].file), 60, false, NULL);
        assert_close(nb_rel_error(got, want, 60 * V), 0, files[i].most);
        free(got);
    }
    free(want);
}

/* ---- adapters ---- */

/* The same adapter on the folder and on the file: merged, both have the same tensors. */
static void test_merge(void **state) {
    (void)state;
    char *file = export_as("tests/golden/gemma", "f32"), *out[2] = {tmp_path("from-hf"), tmp_path("from-gguf")};
    for (int i = 0; i < 2; i++) {
        nb_session s;
        nb_session_options o = {.base = i ? file : "tests/golden/gemma", .adapter = "tests/golden/gemma/adapter",
                                .dtype = "f32", .device = "cpu"};
        assert_ok(nb_session_open(&s, &o));
        assert_ok(nb_merge(&s, out[i], NB_MERGE_ORIGINAL));
        nb_session_close(&s);
    }
    nb_st a, b;
    assert_ok(nb_st_open_dir(&a, out[0], "model"));
    assert_ok(nb_st_open_dir(&b, out[1], "model"));
    assert_int_equal(a.n_tensors, b.n_tensors);
    for (int i = 0; i < a.n_tensors; i++) {
        const nb_st_tensor *t = &a.tensors[i], *u = nb_st_find(&b, t->name);
        assert_non_null(u);
        assert_int_equal(t->bytes, u->bytes);
        bool norm = strstr(t->name, "norm"); /* stored with 1 added, which rounds */
        if (!norm && memcmp(t->data, u->data, t->bytes) != 0) fail_msg("%s differs", t->name);
        for (size_t k = 0; norm && k < t->bytes / 4; k++)
            assert_close(((const float *)t->data)[k], ((const float *)u->data)[k], 0x1p-23);
    }
    nb_st_close(&a), nb_st_close(&b);
    expect_same_bits("merged", out[0], out[1], 40, false);
    free(file), free(out[0]), free(out[1]);
}

/* ---- training on blocks ---- */

enum { STEPS = 20, TOKENS = 24 };
typedef struct trainee {
    nb_dev *dev;
    nb_base *base;
    nb_model *model;
    nb_arena arena;
    nb_runner *runner;
    nb_adapter *adapter;
    nb_optimizer optimizer;
    float *floats; /* the base's weights, decoded */
} trainee;

static void decode_into(nb_weight *w, float **at) {
    if (!w->rows) return;
    nb_weight_decode(*at, w->cols, w, 0, w->rows, 0, w->cols);
    *w = (nb_weight){.format = NB_FMT_F32, .rows = w->rows, .cols = w->cols, .data = *at};
    *at += w->rows * w->cols;
}

/* decoded: on f32 weights that have the values of the blocks. */
static void open_trainee(trainee *t, const char *file, bool decoded) {
    static const char *const targets[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    *t = (trainee){0};
    assert_ok(nb_dev_open(&t->dev, "cpu", NB_F32));
    assert_ok(nb_base_load(&t->base, file, &(nb_base_options){0}));
    assert_true(t->base->in_blocks);
    if (decoded) {
        float *at = t->floats = nb_malloc((size_t)nb_spec_parameters(&t->base->spec) * 2 * sizeof *at);
        decode_into(&t->base->embed, &at);
        if (t->base->spec.tied) t->base->head.w = t->base->embed;
        else decode_into(&t->base->head.w, &at);
        for (int64_t l = 0; l < t->base->spec.layers; l++)
            for (int k = 0; k < nb_spec_slots(&t->base->spec); k++) decode_into(&t->base->layer[l].lin[k].w, &at);
    }
    assert_ok(nb_model_open(&t->model, t->base, t->dev, TOKENS, TOKENS));
    nb_lora_options o = {.r = 4, .alpha = 8, .targets = targets, .n_targets = NB_LEN(targets), .seed = 3};
    assert_ok(nb_adapter_new(&t->adapter, t->model, &o));
    assert_ok(nb_runner_open_loss(&t->runner, t->model, &t->arena, TOKENS, true, NULL));
    assert_ok(nb_optimizer_open(&t->optimizer, t->adapter, false, 1, NULL, false));
    t->optimizer.beta1 = 0.9, t->optimizer.beta2 = 0.999, t->optimizer.epsilon = 1e-8;
}

static void close_trainee(trainee *t) {
    nb_optimizer_close(&t->optimizer);
    nb_runner_free(t->runner);
    nb_adapter_free(t->adapter);
    nb_arena_free(&t->arena);
    nb_model_free(t->model);
    nb_base_free(t->base);
    nb_dev_close(t->dev);
    free(t->floats);
}

static double step(trainee *t, int number) {
    int32_t ids[TOKENS], targets[TOKENS], pos[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (7 * i + 3) % 41, targets[i] = (7 * (i + 1) + 3) % 41, pos[i] = i;
    nb_seg seg = {0, TOKENS, 0, TOKENS};
    nb_batch b = {.n = TOKENS, .ids = ids, .pos = pos, .sample = (const uint32_t *)pos, .segs = &seg, .n_segs = 1,
                  .targets = targets, .n_trained = TOKENS};
    double sum, norm;
    nb_optimizer_begin(&t->optimizer);
    assert_ok(nb_runner_loss(t->runner, &b, 1.0f / TOKENS, &sum, NULL));
    if (number) assert_ok(nb_optimizer_step(&t->optimizer, number, 3e-3, &norm));
    return sum / TOKENS;
}

static void expect_equal_gradients(const trainee *x, const trainee *y) {
    for (int i = 0; i < x->adapter->n_params; i++) {
        const nb_tensor *p = &x->adapter->params[i], *q = &y->adapter->params[i];
        int64_t n = nb_tensor_size(p);
        float *got = nb_malloc((size_t)n * sizeof *got), *want = nb_malloc((size_t)n * sizeof *want);
        assert_ok(nb_adapter_fetch(x->adapter, p, p->grad, got));
        assert_ok(nb_adapter_fetch(y->adapter, q, q->grad, want));
        double off = nb_rel_error(got, want, n);
        if (!(off <= 1e-4)) fail_msg("gradient of %s: off by %g", p->name, off);
        free(got), free(want);
    }
}

/* Rows of 256, so that every format applies; Llama's, so that rows of q and k move. */
#define WIDE                                                                                                      \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"num_hidden_layers\": 2, "            \
    "\"vocab_size\": 120, \"hidden_size\": 256, \"intermediate_size\": 256, \"num_attention_heads\": 4, "          \
    "\"num_key_value_heads\": 2, \"head_dim\": 64, \"max_position_embeddings\": 64, "                            \
    "\"torch_dtype\": \"float32\", \"tie_word_embeddings\": true}"

#define WIDE_EXPERTS                                                                                              \
    "{\"architectures\": [\"Qwen2MoeForCausalLM\"], \"model_type\": \"qwen2_moe\", \"num_hidden_layers\": 2, "      \
    "\"vocab_size\": 120, \"hidden_size\": 256, \"intermediate_size\": 256, \"num_attention_heads\": 4, "          \
    "\"num_key_value_heads\": 2, \"max_position_embeddings\": 64, \"torch_dtype\": \"float32\", "                  \
    "\"tie_word_embeddings\": true, \"num_experts\": 3, \"num_experts_per_tok\": 2, "                              \
    "\"moe_intermediate_size\": 256, \"shared_expert_intermediate_size\": 256}"

static void test_training(void **state) {
    (void)state;
    static const struct { const char *type; bool experts; } runs[] = {
        {"q8_0"}, {"q6_k"}, {"q4_k_m"}, {"q5_0"}, {"q4_0"}, {"q4_k_m", .experts = true}, {"q8_0", .experts = true},
    };
    char *wide = with_tokenizer(tiny_base("wide", WIDE, 7)),
         *experts = with_tokenizer(tiny_base("wide-experts", WIDE_EXPERTS, 7));
    for (int i = 0; i < NB_LEN(runs); i++) {
        char *file = export_as(runs[i].experts ? experts : wide, runs[i].type);
        trainee blocks, floats;
        double first = 0, last = 0;
        open_trainee(&blocks, file, false);
        open_trainee(&floats, file, true);
        for (int s = 1; s <= STEPS; s++) {
            last = step(&blocks, s);
            double want = step(&floats, s);
            if (s == 1) first = last;
            assert_close(last / want, 1, 1e-4);
        }
        if (!(last < 0.7 * first)) fail_msg("%s: the loss went from %g to %g", runs[i].type, first, last);
        step(&blocks, 0), step(&floats, 0); /* gradients of the trained adapter: those of A are not 0 any more */
        expect_equal_gradients(&blocks, &floats);
        close_trainee(&blocks), close_trainee(&floats);
        int64_t V;
        float *plain = logits_of(file, TOKENS, false, &V), *four = logits_of(file, TOKENS, true, NULL);
        assert_memory_equal(plain, four, (size_t)(TOKENS * V) * sizeof *plain); /* load_in_4bit changes nothing */
        free(plain), free(four), free(file);
    }
    free(wide), free(experts);
}

/* Slices of experts on a device with memory of its own. */
static void test_experts_on_device(void **state) {
    (void)state;
    enum { N = 9 };
    char *dir = with_tokenizer(tiny_base("on-device", WIDE_EXPERTS, 7)), *file = export_as(dir, "q4_k_m");
    int64_t V;
    float *want = logits_of(file, N, false, &V);
    device = "emu";
    float *got = logits_of(file, N, false, NULL);
    device = "cpu";
    assert_close(nb_rel_error(got, want, N * V), 0, 1e-4);
    free(want), free(got), free(dir), free(file);
}

/* ---- files ---- */

/* One model in three parts: its keys in the first, every third tensor in each. */
static void write_parts(const char *dir, const char *to) {
    nb_spec *s = NB_NEW(nb_spec);
    nb_st st;
    nb_gguf_plan p;
    assert_ok(nb_spec_load(s, dir));
    assert_ok(nb_st_open_dir(&st, dir, "model"));
    assert_ok(nb_gguf_plan_make(&p, s, &st));
    for (int part = 0; part < 3; part++) {
        char *path = nb_asprintf("%s/m-%05d-of-00003.gguf", to, part + 1);
        nb_gguf_writer *w;
        assert_ok(nb_gguf_write_begin(&w, path));
        if (!part) {
            nb_gguf_put_str(w, "general.architecture", nb_gguf_family_of(s)->name);
            nb_gguf_put_spec(w, s);
        }
        nb_gguf_put_u32(w, "split.no", (uint32_t)part);
        nb_gguf_put_u32(w, "split.count", 3);
        for (int i = part; i < p.n; i += 3) {
            const nb_gguf_item *it = &p.items[i];
            int64_t ne[3];
            nb_gguf_item_shape(it, ne);
            assert_ok(nb_gguf_write_declare(w, it->name, NB_GGUF_F32, it->n_dims, ne));
        }
        for (int i = part; i < p.n; i += 3) {
            const nb_gguf_item *it = &p.items[i];
            size_t n = (size_t)(it->rows * it->cols);
            float *x = nb_malloc(n * sizeof *x);
            nb_gguf_item_read(it, x, 0, it->rows);
            assert_ok(nb_gguf_write_data(w, x, n * sizeof *x));
            free(x);
        }
        assert_ok(nb_gguf_write_end(w));
        free(path);
    }
    nb_gguf_plan_free(&p);
    nb_st_close(&st);
    free(s);
}

static void test_parts(void **state) {
    (void)state;
    char *dir = tmp_path("parts"), *first, *second, *found, *third;
    nb_tokenizer *t;
    nb_base *b;
    assert_ok(nb_mkdirs(dir));
    write_parts("tests/golden/llama", dir);
    first = nb_path_join(dir, "m-00001-of-00003.gguf"), second = nb_path_join(dir, "m-00002-of-00003.gguf");
    third = nb_path_join(dir, "m-00003-of-00003.gguf");
    expect_same_bits("three parts", "tests/golden/llama", first, 40, false);
    expect_same_bits("a folder of parts", "tests/golden/llama", dir, 40, false);
    assert_ok(nb_base_resolve(dir, &found));
    assert_string_equal(found, first);
    free(found);
    nb_base_options o = {0};
    assert_fails(nb_base_load(&b, second, &o), NB_EINPUT, "is part 2 of 3: give the first");
    assert_fails(nb_tokenizer_open(&t, dir), NB_EINPUT, "no list of tokens");
    char *other = nb_path_join(dir, "other.gguf");
    assert_ok(nb_file_copy(first, other));
    assert_fails(nb_base_load(&b, dir, &o), NB_EINPUT, "has 2 GGUF models");
    assert_fails(nb_base_load(&b, other, &o), NB_EINPUT, "is one of 3 parts");
    assert_int_equal(remove(other), 0);
    assert_ok(nb_file_copy(second, third));
    assert_fails(nb_base_load(&b, first, &o), NB_EINPUT, "says it is part 2, its name says 3");
    assert_int_equal(remove(third), 0);
    assert_fails(nb_base_load(&b, first, &o), NB_EIO, "m-00003-of-00003.gguf");
    free(dir), free(first), free(second), free(third), free(other);
}

static void test_sha256(void **state) {
    (void)state;
    char *file = export_as("tests/golden/llama", "f32");
    nb_base *b;
    nb_hex hex;
    assert_ok(nb_base_load(&b, file, &(nb_base_options){0}));
    assert_ok(nb_sha256_file(file, hex));
    assert_string_equal(b->sha256, hex); /* what sha256sum says */
    assert_string_equal(b->dir, file);
    nb_base_free(b);
    assert_fails(nb_base_load(&b, file, &(nb_base_options){.reinit = true}), NB_EINPUT, "not a GGUF file");
    assert_fails(nb_base_quantize_dir(file, nb_test_tmp(), true), NB_EINPUT, "not empty");
    char *out = tmp_path("quantized");
    assert_fails(nb_base_quantize_dir(file, out, true), NB_EUNSUPPORTED, "--format hf");
    free(out), free(file);
}

/* ---- refusals ---- */

/* What llama.cpp's graphs of mixtures cannot be told. */
static void test_refused_experts(void **state) {
    (void)state;
    static const struct { const char *folder, *config, *text; } cases[] = {
        {"tests/golden/qwen2-moe", NULL, "mlp_only_layers: layer 1 has no experts"},
        {"tests/golden/qwen3-moe", NULL, "decoder_sparse_step, mlp_only_layers: layer 0 has no experts"},
        {"tests/golden/olmoe", NULL, "clip_qkv: no limit for q, k and v is what llama.cpp's olmoe has"},
        {NULL, FAMILY("Qwen3MoeForCausalLM", "qwen3_moe", 2) ", \"num_experts\": 5, \"num_experts_per_tok\": 3, "
         "\"moe_intermediate_size\": 20}", "norm_topk_prob: llama.cpp's qwen3moe always divides"},
        {NULL, OF_SIZE("OlmoeForCausalLM", "olmoe", 2, 48, 4) ", \"num_experts\": 9, \"norm_topk_prob\": true}",
         "norm_topk_prob: llama.cpp's olmoe never divides"},
        {NULL, OF_SIZE("OlmoeForCausalLM", "olmoe", 2, 48, 2) ", \"num_experts\": 9}",
         "num_key_value_heads: as many as heads"},
        {NULL, OF_SIZE("Qwen2MoeForCausalLM", "qwen2_moe", 2, 24, 2) ", \"num_experts\": 6, "
         "\"moe_intermediate_size\": 20, \"shared_expert_intermediate_size\": 28}", "head_dim: queries as wide as"},
    };
    char *out = tmp_path("no.gguf");
    for (int i = 0; i < NB_LEN(cases); i++) {
        char *dir = cases[i].folder ? nb_strdup(cases[i].folder)
                                    : with_tokenizer(tiny_base("refused", cases[i].config, 7));
        nb_export_report r;
        assert_fails(nb_export_gguf(dir, "no", out, NULL, true, &r), NB_EUNSUPPORTED, cases[i].text);
        free(dir);
    }
    assert_false(nb_file_exists(out));
    free(out);
}

/* Writes `with` over the first `what` of a file that was made of `folder`, and expects the message. */
static void refused(const char *folder, const char *what, const char *with, size_t n, size_t behind, nb_status code,
                    const char *text) {
    char *file = export_as(folder, "f32"), *data;
    size_t size, at = 0, len = strlen(what);
    nb_base *b;
    assert_ok(nb_file_read(file, &data, &size));
    while (at + len < size && memcmp(data + at, what, len) != 0) at++;
    if (at + len >= size) fail_msg("%s: no \"%s\"", folder, what);
    memcpy(data + at + behind, with, n);
    assert_ok(nb_file_write(file, data, size));
    nb_status st = nb_base_load(&b, file, &(nb_base_options){0});
    if (st != code || !strstr(nb_message(), text))
        fail_msg("%s in %s: status %d, \"%s\", want %d, \"%s\"", what, folder, st, nb_message(), code, text);
    free(data), free(file);
}
#define RENAMED(folder, what, with, code, text) refused("tests/golden/" folder, what, with, strlen(with), 0, code, text)
#define SET(folder, what, bytes, code, text) \
    refused("tests/golden/" folder, what, bytes, sizeof(bytes) - 1, sizeof(what) - 1, code, text)

static void test_refusals(void **state) {
    (void)state;
    RENAMED("llama", "llama.attention.value_length", "llama.attention.valuX_length", NB_EUNSUPPORTED,
            "valuX_length\" may change");
    RENAMED("llama", "llama.block_count", "llama.blokk_count", NB_EINPUT, "has no \"llama.block_count\"");
    RENAMED("llama", "llama.rope.dimension_count", "llama.rope.freq_base_swaaa", NB_EUNSUPPORTED, "may change");
    RENAMED("llama", "blk.0.attn_q.weight", "blk.0.attn_x.weight", NB_EINPUT, "has no tensor \"blk.0.attn_q.weight\"");
    RENAMED("llama", "token_embd.weight", "token_embx.weight", NB_EINPUT, "no whole model");
    RENAMED("qwen3", "qwen3", "qwenX", NB_EUNSUPPORTED,
            "architecture \"qwenX\" is not supported (supported in GGUF: llama, qwen2");
    RENAMED("llama", "model", "adapt", NB_EINPUT, "is \"adapt\", not a model");
    /* a u32 or f32 behind the kind of the value */
    SET("llama", "llama.embedding_length", "\4\0\0\0\0\0\0\0", NB_EINPUT, "embedding_length");
    SET("llama", "llama.embedding_length", "\4\0\0\0\x31\0\0\0", NB_ESHAPE, "token_embd.weight");
    SET("llama", "llama.block_count", "\4\0\0\0\xff\xff\xff\xff", NB_EINPUT, "num_hidden_layers");
    SET("llama", "llama.attention.head_count", "\6\0\0\0\0\0\0\0", NB_EUNSUPPORTED, "a whole number is wanted");
    SET("llama", "llama.attention.value_length", "\4\0\0\0\7\0\0\0", NB_EUNSUPPORTED, "is not key_length");
    SET("llama", "llama.rope.dimension_count", "\4\0\0\0\7\0\0\0", NB_EINPUT, "impossible");
    SET("llama", "llama.rope.freq_base", "\6\0\0\0\0\0\x80\x7f", NB_EINPUT, "not finite");
    SET("olmo", "olmo.attention.layer_norm_epsilon", "\6\0\0\0\0\0\0\x3f", NB_EUNSUPPORTED,
        "0.5: OlmoForCausalLM has 1e-05");
    SET("qwen2-yarn", "qwen2.rope.scaling.type\10\0\0\0\4\0\0\0\0\0\0\0", "barn", NB_EUNSUPPORTED, "\"barn\"");
    RENAMED("neox", "gptneox.use_parallel_residual", "gptneox.use_parallel_residuaX", NB_EINPUT,
            "has no \"gptneox.use_parallel_residual\"");
    RENAMED("neox", "blk.1.attn_qkv.weight", "blk.1.attn_qxv.weight", NB_EINPUT, "no tensor \"blk.1.attn_qkv.weight\"");
    char *not = tmp_path("not.gguf");
    nb_base *b;
    assert_ok(nb_file_write(not, "GGU", 3));
    assert_fails(nb_base_load(&b, not, &(nb_base_options){0}), NB_EINPUT, "not in GGUF");
    assert_ok(nb_file_write(not, "GGUF", 4));
    assert_fails(nb_base_load(&b, not, &(nb_base_options){0}), NB_EINPUT, "ends within");
    free(not);
}

/* Numbers of experts that the file's tensors do not have. A tensor's name is followed by its dimensions, as u64. */
static void test_refused_expert_counts(void **state) {
    (void)state;
    SET("mixtral", "llama.expert_count", "\4\0\0\0\0\0\0\0", NB_EUNSUPPORTED, "expert_used_count\" may change");
    SET("mixtral", "llama.expert_count", "\4\0\0\0\3\0\0\0", NB_ESHAPE, "has 4 experts, llama.expert_count is 3");
    SET("mixtral", "llama.expert_count", "\4\0\0\0\xff\xff\xff\xff", NB_ESHAPE, "llama.expert_count is 4294967295");
    SET("mixtral", "llama.expert_count", "\6\0\0\0\0\0\x80\x40", NB_EUNSUPPORTED, "expert_count\" may change");
    SET("mixtral", "llama.expert_used_count", "\4\0\0\0\0\0\0\0", NB_EINPUT, "has no \"llama.expert_used_count\"");
    SET("mixtral", "llama.expert_used_count", "\4\0\0\0\5\0\0\0", NB_EINPUT, "num_experts_per_tok\" is 5; 1 to 4");
    RENAMED("mixtral", "llama.expert_used_count", "llama.expert_group_coun", NB_EINPUT, "expert_used_count");
    RENAMED("mixtral", "blk.1.ffn_down_exps", "blk.1.ffn_down_expx", NB_EINPUT, "no tensor \"blk.1.ffn_down_exps.weight");
    RENAMED("mixtral", "blk.1.ffn_gate_exps", "blk.1.ffn_gate_expx", NB_EINPUT, "no tensor \"blk.1.ffn_gate_exps.weight");
    RENAMED("mixtral", "blk.0.ffn_gate_inp.", "blk.0.ffn_gate_imp.", NB_EINPUT, "no tensor \"blk.0.ffn_gate_inp.weight");
    SET("mixtral", "blk.0.ffn_gate_inp.weight", "\2\0\0\0\x20\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0", NB_ESHAPE,
        "\"blk.0.ffn_gate_inp.weight\" has shape [1, 1, 2, 32], its keys say [1, 4, 32]");
    SET("mixtral", "blk.0.ffn_up_exps.weight",
        "\3\0\0\0\x20\0\0\0\0\0\0\0\x18\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0", NB_ESHAPE,
        "\"blk.0.ffn_up_exps.weight\" has shape [1, 3, 24, 32], its keys say [4, 24, 32]");
    SET("mixtral", "llama.feed_forward_length", "\4\0\0\0\x17\0\0\0", NB_ESHAPE, "its keys say [4, 23, 32]");
}

static void put_byte(FILE *f, size_t at, int byte) {
    fseek(f, (long)at, SEEK_SET);
    fputc(byte, f);
    fflush(f);
}

/* Whatever a byte of the header becomes, loading ends with an answer. */
static void test_damaged(void **state) {
    (void)state;
    char *file = export_as("tests/golden/phi3-longrope", "f16");
    nb_gguf g;
    assert_ok(nb_gguf_open(&g, file));
    size_t header = (size_t)(g.tensors[0].data - g.map.data);
    for (int64_t i = 0; i < g.n_tensors; i++)
        if ((size_t)(g.tensors[i].data - g.map.data) < header) header = (size_t)(g.tensors[i].data - g.map.data);
    nb_gguf_close(&g);
    FILE *f = fopen(file, "r+b"); /* in place: writing it anew each time would wait for the disk */
    assert_non_null(f);
    int loaded = 0;
    for (size_t i = 8; i < header; i += 7) {
        nb_base *b;
        nb_tokenizer *t;
        fseek(f, (long)i, SEEK_SET);
        int old = fgetc(f);
        put_byte(f, i, old ^ (1 << i % 8));
        if (nb_base_load(&b, file, &(nb_base_options){0}) == NB_OK) nb_base_free(b), loaded++;
        if (nb_tokenizer_open(&t, file) == NB_OK) nb_tokenizer_free(t);
        put_byte(f, i, old);
    }
    fclose(f);
    assert_true(loaded > 50); /* names of tokens, tables that are not read */
    free(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),   cmocka_unit_test(test_more_families), cmocka_unit_test(test_other_factors),
        cmocka_unit_test(test_types),      cmocka_unit_test(test_stories),       cmocka_unit_test(test_merge),
        cmocka_unit_test(test_training),   cmocka_unit_test(test_experts_on_device),
        cmocka_unit_test(test_parts),      cmocka_unit_test(test_sha256),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_refused_experts), cmocka_unit_test(test_refused_expert_counts),
        cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
