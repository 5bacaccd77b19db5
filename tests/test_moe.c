/* Mixtures of experts beyond what tests/test_golden.c holds against transformers: tokens do not feel each other, bits do
 * not depend on threads or on what is computed again, a cache gives what a whole run gives, routers stay float. */
#include "adapters/adapter.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "tests/test.h"
#include "tests/tiny_base.h"

enum { N = 24, V = 96 };
#define MIXTRAL "tests/golden/mixtral"
#define QWEN2 "tests/golden/qwen2-moe"

static const char *const folders[] = {MIXTRAL, QWEN2, "tests/golden/qwen3-moe", "tests/golden/olmoe"};

typedef struct fixture {
    nb_dev *dev;
    nb_base *base;
    nb_model *model;
    nb_arena arena;
    nb_runner *runner;
    nb_adapter *adapter;
    int32_t ids[2 * N], targets[2 * N], pos[2 * N];
    uint32_t sample[2 * N];
    nb_seg segs[2];
    nb_batch batch;
} fixture;

static void open_folder(fixture *f, const char *dir, bool four) {
    memset(f, 0, sizeof *f);
    nb_base_options o = {.quantized_cache = "", .load_in_4bit = four, .double_quant = true};
    assert_ok(nb_dev_open(&f->dev, "cpu", NB_F32));
    assert_ok(nb_base_load(&f->base, dir, &o));
    assert_ok(nb_model_open(&f->model, f->base, f->dev, 2 * N, 2 * N));
}

static void open_training(fixture *f, const char *dir, const nb_recompute *recompute, double dropout) {
    open_folder(f, dir, true);
    nb_lora_options o = {.r = 2, .alpha = 4, .dropout = dropout, .seed = 7};
    assert_ok(nb_adapter_new(&f->adapter, f->model, &o));
    for (int i = 0; i < f->adapter->n_params; i++) /* B is not zero, else A has no gradient */
        for (int64_t j = 0; j < nb_tensor_size(&f->adapter->params[i]); j++)
            ((float *)f->adapter->params[i].data)[j] += 0.05f * (float)((i + j * 7) % 5 - 2);
    assert_ok(nb_runner_open_loss(&f->runner, f->model, &f->arena, 2 * N, true, recompute));
    f->runner->tape->seed = 3;
}

static void close_all(fixture *f) {
    nb_runner_free(f->runner);
    nb_adapter_free(f->adapter);
    nb_arena_free(&f->arena);
    nb_model_free(f->model);
    nb_base_free(f->base);
    nb_dev_close(f->dev);
}

/* Documents of these lengths behind one another; `salt` changes the tokens of the first. */
static void fill(fixture *f, int n0, int n1, int salt) {
    f->batch = (nb_batch){.ids = f->ids, .targets = f->targets, .pos = f->pos, .sample = f->sample, .segs = f->segs};
    for (int d = 0; d < 2; d++) {
        int n = d ? n1 : n0, at = (int)f->batch.n;
        if (n) f->segs[f->batch.n_segs++] = (nb_seg){at, n, at, n};
        for (int i = 0; i < n; i++, f->batch.n++) {
            f->ids[f->batch.n] = 3 + (i * (d ? 11 : 17 + salt) + 5 * d) % (V - 3);
            f->targets[f->batch.n] = 3 + (i * 13 + d) % (V - 3);
            f->pos[f->batch.n] = i;
            f->sample[f->batch.n] = (uint32_t)d;
        }
    }
    f->batch.n_trained = f->batch.n;
}

static void run(fixture *f, float *nll) {
    double sum;
    for (int i = 0; f->adapter && i < f->adapter->n_params; i++) f->adapter->params[i].grad_written = false;
    assert_ok(nb_runner_loss(f->runner, &f->batch, 1.0f / (float)f->batch.n_trained, &sum, nll));
}

static void documents_do_not_feel_each_other(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(folders); i++) {
        fixture f;
        float alone[N], beside[2 * N], changed[2 * N];
        open_folder(&f, folders[i], i % 2);
        assert_ok(nb_runner_open_loss(&f.runner, f.model, &f.arena, 2 * N, false, NULL));
        fill(&f, 0, 17, 0);
        run(&f, alone);
        fill(&f, N, 17, 0);
        run(&f, beside);
        fill(&f, N, 17, 4);
        run(&f, changed);
        assert_memory_equal(alone, beside + N, 17 * sizeof(float));
        assert_memory_equal(alone, changed + N, 17 * sizeof(float));
        assert_memory_not_equal(beside, changed, N * sizeof(float));
        close_all(&f);
    }
}

/* Gradients have the same bits for any number of threads, and whatever is computed again. */
static void the_same_bits(void **state) {
    (void)state;
    const nb_recompute *const ways[] = {&nb_recompute_none, &nb_recompute_smart, &nb_recompute_full};
    for (int i = 0; i < 2; i++) {
        float *first = NULL;
        for (int w = 0; w < 4; w++) {
            fixture f;
            nb_threads_set(w == 3 ? 1 : 3);
            open_training(&f, folders[i], ways[w % 3], 0.2);
            fill(&f, N, 19, 0);
            run(&f, NULL);
            size_t bytes = (size_t)f.adapter->n * sizeof(float);
            if (!first) {
                first = nb_malloc(bytes);
                memcpy(first, f.adapter->grad, bytes);
            }
            assert_memory_equal(first, f.adapter->grad, bytes);
            close_all(&f);
        }
        free(first);
    }
    nb_threads_set(0);
}

/* A batch of one token reaches few experts: the gradients of the others are 0, not what an earlier batch left. */
static void experts_without_tokens(void **state) {
    (void)state;
    fixture f;
    open_training(&f, MIXTRAL, &nb_recompute_smart, 0);
    fill(&f, N, N, 0);
    run(&f, NULL);
    fill(&f, 1, 0, 0);
    run(&f, NULL);
    int reached = 0, zero = 0;
    for (int i = 0; i < f.adapter->n_params; i++) {
        const nb_tensor *p = &f.adapter->params[i];
        if (!strstr(p->name, ".experts.")) continue;
        double sum = 0;
        for (int64_t j = 0; j < nb_tensor_size(p); j++) sum += fabs((double)((float *)p->grad)[j]);
        if (sum > 0) reached++;
        else zero++;
    }
    assert_int_equal(reached, 2 * 2 * 6); /* in 2 layers 2 of 4 experts, each with A and B of 3 weights */
    assert_int_equal(zero, 2 * 2 * 6);
    close_all(&f);
}

/* The logits of a sequence given whole, and token by token over a cache. */
static void a_cache_gives_the_same(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(folders); i++) {
        fixture f;
        nb_kv_cache cache;
        nb_runner *whole, *steps;
        float want[V], got[V];
        open_folder(&f, folders[i], false);
        assert_ok(nb_kv_cache_open(&cache, f.model, N));
        assert_ok(nb_runner_open_logits(&whole, f.model, &f.arena, N, 1, NULL));
        assert_ok(nb_runner_open_logits(&steps, f.model, &f.arena, N, 1, &cache));
        fill(&f, N, 0, 0);
        int32_t last = N - 1, none = 0, rows[N];
        for (int k = 0; k < N; k++) rows[k] = k;
        assert_ok(nb_runner_logits(whole, &f.batch, NULL, &last, 1, want));
        for (int at = 0; at < N; at += at ? 1 : 7) {
            int n = at ? 1 : 7;
            nb_seg seg = {0, n, 0, at + n};
            nb_batch b = {.n = n, .ids = f.ids + at, .pos = f.pos + at, .sample = f.sample + at, .segs = &seg,
                          .n_segs = 1, .kv_rows = rows + at};
            none = n - 1;
            assert_ok(nb_runner_logits(steps, &b, &cache, &none, 1, got));
        }
        assert_close(nb_rel_error(got, want, V), 0, 1e-6);
        nb_kv_cache_close(&cache);
        nb_runner_free(whole);
        nb_runner_free(steps);
        close_all(&f);
    }
}

static void routers_stay_float(void **state) {
    (void)state;
    fixture f;
    open_folder(&f, QWEN2, true);
    for (int k = 0; k < nb_spec_slots(&f.base->spec); k++) {
        const nb_base_linear *lin = &f.base->layer[0].lin[k];
        if (!lin->name) continue;
        bool router = strstr(lin->name, "mlp.gate") && !strstr(lin->name, "gate_proj");
        router |= strstr(lin->name, "shared_expert_gate") != NULL;
        assert_int_equal(lin->w.format, router ? NB_FMT_F32 : NB_FMT_NF4);
        assert_int_equal(nb_spec_stays_float(k), router);
    }
    char *four = nb_path_join(nb_test_tmp(), "four"), *config = nb_path_join(four, "config.json");
    nb_base *b;
    json_t *c;
    assert_ok(nb_base_quantize_dir(QWEN2, four, true));
    assert_ok(nb_base_load(&b, four, &(nb_base_options){.load_in_4bit = true, .double_quant = true}));
    assert_same_values(f.base, b);
    assert_ok(nb_json_load(config, &c));
    const json_t *skip = json_object_get(json_object_get(c, "quantization_config"), "llm_int8_skip_modules");
    assert_int_equal(json_array_size(skip), 3);
    assert_string_equal(json_string_value(json_array_get(skip, 1)), "gate");
    json_decref(c);
    nb_base_free(b);
    free(four), free(config);
    close_all(&f);
}

static void adapters_leave_routers_alone(void **state) {
    (void)state;
    fixture f;
    nb_lora_options o = {.r = 2, .alpha = 4};
    open_folder(&f, QWEN2, false);
    assert_ok(nb_adapter_new(&f.adapter, f.model, &o));
    /* 3 layers: q, k, v, o; a dense MLP in one, 5 experts and a shared one in two */
    assert_int_equal(f.adapter->n_attached, 3 * 4 + 3 + 2 * 6 * 3);
    assert_int_equal(f.adapter->n_targets, 7);
    nb_adapter_free(f.adapter);
    static const char *const gate[] = {"gate", "shared_expert_gate"};
    o.targets = gate, o.n_targets = 2;
    assert_ok(nb_adapter_new(&f.adapter, f.model, &o));
    assert_int_equal(f.adapter->n_attached, 4);
    nb_adapter_free(f.adapter);
    f.adapter = NULL;
    nb_adapter *refused;
    assert_fails(nb_adapter_new(&refused, f.model, &(nb_lora_options){.r = 2, .alpha = 4, .dora = true}), NB_EUNSUPPORTED,
                 "DoRA on a mixture's experts");
    close_all(&f);
}

#define QWEN3                                                                                                     \
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\", \"vocab_size\": 40, "           \
    "\"hidden_size\": 24, \"intermediate_size\": 36, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, "       \
    "\"num_experts\": 6, \"moe_intermediate_size\": 10"

static nb_status load(nb_spec *s, const char *rest) {
    char *config = nb_path_join(nb_test_tmp(), "config.json"), *text = nb_asprintf("%s%s}", QWEN3, rest);
    assert_ok(nb_file_write(config, text, strlen(text)));
    free(config), free(text);
    return nb_spec_load(s, nb_test_tmp());
}

static void configurations(void **state) {
    (void)state;
    nb_spec s;
    assert_ok(load(&s, ", \"num_experts_per_tok\": 2, \"decoder_sparse_step\": 2, \"mlp_only_layers\": [3]"));
    assert_true(!s.layer[0].sparse && s.layer[1].sparse && !s.layer[2].sparse && !s.layer[3].sparse);
    assert_true(s.experts == 6 && s.top_k == 2 && s.expert_hidden == 10 && !s.renorm_topk && s.aux_coef == 0);
    /* q, o 24*24; k, v as many heads; norms; a dense MLP in 3 layers, in one a router and 6 experts */
    int64_t attention = 4 * 24 * 24, norms = 2 * 24 + 2 * 6, dense = 3 * 24 * 36, expert = 3 * 24 * 10, rest = 2 * 40 * 24 + 24;
    assert_int_equal(nb_spec_parameters(&s), rest + 4 * (attention + norms) + 3 * dense + 6 * 24 + 6 * expert);
    assert_int_equal(nb_spec_active_parameters(&s), rest + 4 * (attention + norms) + 3 * dense + 6 * 24 + 2 * expert);
    assert_ok(load(&s, ", \"num_experts_per_tok\": 2, \"output_router_logits\": true, \"norm_topk_prob\": true"));
    assert_true(s.renorm_topk && s.layer[0].sparse && s.aux_coef == 0.001f);
    static const struct {
        const char *rest, *text;
    } wrong[] = {
        {", \"num_experts_per_tok\": 7", "\"num_experts_per_tok\" is 7; 1 to 6"},
        {", \"num_experts_per_tok\": 0", "\"num_experts_per_tok\" is 0"},
        {", \"num_experts_per_tok\": 2, \"decoder_sparse_step\": 0", "decoder_sparse_step 0"},
        {", \"num_experts_per_tok\": 2, \"mlp_only_layers\": [true]", "mlp_only_layers[0]"},
        {", \"num_experts_per_tok\": 2, \"router_aux_loss_coef\": -1", "router_aux_loss_coef -1"},
    };
    for (int i = 0; i < NB_LEN(wrong); i++) assert_fails(load(&s, wrong[i].rest), NB_EINPUT, wrong[i].text);
    assert_fails(load(&s, ", \"router_jitter_noise\": 0.1"), NB_EUNSUPPORTED, "router_jitter_noise");
}

int main(void) {
    nb_threads_set(0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_do_not_feel_each_other), cmocka_unit_test(the_same_bits),
        cmocka_unit_test(experts_without_tokens),           cmocka_unit_test(a_cache_gives_the_same),
        cmocka_unit_test(routers_stay_float),               cmocka_unit_test(adapters_leave_routers_alone),
        cmocka_unit_test(configurations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
