/* The transformer against shared/vectors/tiny (NumPy and torch in float64) and its own invariants. */
#include "adapters/adapter.h"
#include "autograd/ops.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "model/safetensors.h"
#include "tests/test.h"

typedef struct fixture {
    nb_dev *dev;
    nb_base *base;
    nb_model *model;
    nb_arena arena;
    nb_runner *runner;
    nb_adapter *adapter;
    int32_t ids[64], targets[64], pos[64];
    uint32_t sample[64];
    nb_seg seg;
    nb_batch batch;
} fixture;

static void open_base(fixture *f, const char *dir) {
    *f = (fixture){0};
    nb_base_options o = {.quantized_cache = ""};
    assert_ok(nb_dev_open(&f->dev, "cpu", NB_F32));
    assert_ok(nb_base_load(&f->base, dir, &o));
    assert_ok(nb_model_open(&f->model, f->base, f->dev, 64, 64));
}

static void close_all(fixture *f) {
    nb_runner_free(f->runner);
    nb_adapter_free(f->adapter);
    nb_arena_free(&f->arena);
    nb_model_free(f->model);
    nb_base_free(f->base);
    nb_dev_close(f->dev);
}

static void one_sequence(fixture *f, const json_t *ids, int first_target) {
    int n = (int)json_array_size(ids);
    assert_true(n <= 64);
    f->batch = (nb_batch){
        .n = n, .ids = f->ids, .targets = f->targets, .pos = f->pos, .sample = f->sample, .segs = &f->seg, .n_segs = 1};
    f->seg = (nb_seg){0, n, 0, n};
    for (int i = 0; i < n; i++) {
        f->ids[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
        f->pos[i] = i;
        f->sample[i] = 0;
    }
    for (int i = 0; i < n; i++) {
        f->targets[i] = i + 1 < n && i + 1 >= first_target ? f->ids[i + 1] : NB_IGNORE;
        f->batch.n_trained += f->targets[i] != NB_IGNORE;
    }
}

static const char *const families[] = {"llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma",
                                       "gemma2", "olmo2",  "phi3",    "phi2",  "olmo",  "mixtral", "qwen2_moe"};

static const char *tiny(const char *family, const char *file) {
    char rel[128];
    snprintf(rel, sizeof rel, "tiny/%s/%s", family, file);
    return VECTORS(rel);
}

static void losses_equal_the_oracle(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(families); i++) {
        const char *family = families[i];
        fixture f;
        json_t *want;
        open_base(&f, tiny(family, ""));
        assert_ok(nb_json_load(tiny(family, "expected.json"), &want));
        one_sequence(&f, json_object_get(want, "ids"), 1);
        assert_ok(nb_runner_open_loss(&f.runner, f.model, &f.arena, 64, false, NULL));
        double sum;
        float nll[64];
        assert_ok(nb_runner_loss(f.runner, &f.batch, 0, &sum, nll));
        for (int j = 0; j < f.batch.n_trained; j++)
            assert_close(nll[j], json_number_value(json_array_get(json_object_get(want, "nll"), (size_t)j)), 1e-4);
        assert_close(sum / (double)f.batch.n_trained, json_number_value(json_object_get(want, "loss_mean_next_token")),
                     1e-5);
        json_decref(want);
        close_all(&f);
    }
}

static void logits_equal_the_oracle(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(families); i++) {
        const char *family = families[i];
        fixture f;
        json_t *want;
        open_base(&f, tiny(family, ""));
        assert_ok(nb_json_load(tiny(family, "expected.json"), &want));
        one_sequence(&f, json_object_get(want, "ids"), 1);
        assert_ok(nb_runner_open_logits(&f.runner, f.model, &f.arena, 64, 2, NULL));
        int64_t V = f.base->spec.vocab;
        float *logits = nb_malloc((size_t)(2 * V) * 4), *oracle = nb_malloc((size_t)V * 4);
        int32_t rows[2] = {12, (int32_t)f.batch.n - 1};
        assert_ok(nb_runner_logits(f.runner, &f.batch, NULL, rows, 2, logits));
        for (int r = 0; r < 2; r++) {
            const json_t *list = json_object_get(want, r ? "logits_last" : "logits_pos12");
            for (int64_t v = 0; v < V; v++) oracle[v] = (float)json_number_value(json_array_get(list, (size_t)v));
            assert_close(nb_rel_error(logits + r * V, oracle, V), 0, 1e-5);
        }
        free(logits), free(oracle);
        json_decref(want);
        close_all(&f);
    }
}

/* Gradient of one adapter tensor against the oracle's. */
static void check_gradients(const fixture *f, const nb_st *grads) {
    for (int p = 0; p < f->adapter->n_params; p++) {
        const nb_tensor *t = &f->adapter->params[p];
        const nb_st_tensor *want = nb_st_find(grads, t->name);
        if (!want) fail_msg("no oracle gradient for %s", t->name);
        int64_t n = nb_tensor_size(t);
        float *w = nb_malloc((size_t)n * 4);
        nb_st_read_f32(want, w, 0, n);
        double err = nb_rel_error(t->grad, w, n);
        if (!(err <= 1e-4)) fail_msg("%s: gradient off by %g", t->name, err);
        free(w);
    }
}

static void adapter_gradients_and_ten_steps(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(families) * 2; i++) {
        const char *family = families[i / 2];
        const nb_recompute *policy = i % 2 ? &nb_recompute_smart : &nb_recompute_none;
        fixture f;
        json_t *want;
        nb_st grads;
        open_base(&f, tiny(family, ""));
        assert_ok(nb_json_load(tiny(family, "lora/expected.json"), &want));
        assert_ok(nb_st_open_file(&grads, tiny(family, "lora/grads.safetensors")));
        assert_ok(nb_adapter_load(&f.adapter, f.model, tiny(family, "lora"), true));
        one_sequence(&f, json_object_get(want, "ids"), 7);
        assert_ok(nb_runner_open_loss(&f.runner, f.model, &f.arena, 64, true, policy));
        const json_t *adamw = json_object_get(want, "adamw");
        const json_t *losses = json_object_get(adamw, "losses_before_each_step_and_after_10");
        double lr = json_number_value(json_object_get(adamw, "lr"));
        float *m = nb_calloc((size_t)f.adapter->n, 4), *v = nb_calloc((size_t)f.adapter->n, 4);
        for (int step = 0; step <= 10; step++) {
            double sum;
            for (int p = 0; p < f.adapter->n_params; p++) f.adapter->params[p].grad_written = false;
            assert_ok(nb_runner_loss(f.runner, &f.batch, 1.0f / (float)f.batch.n_trained, &sum, NULL));
            double loss = sum / (double)f.batch.n_trained,
                   oracle = json_number_value(json_array_get(losses, (size_t)step));
            assert_close(loss / oracle, 1, 1e-4);
            if (step == 0) check_gradients(&f, &grads);
            nb_update u = {.bias1 = 1 - pow((double)0.9f, step + 1), .bias2 = 1 - pow((double)0.999f, step + 1),
                           .lr = (float)lr};
            assert_ok(f.dev->k->adamw(f.dev, f.adapter->data, m, v, f.adapter->grad, f.adapter->n, &u, 0.9f, 0.999f,
                                      1e-8f, 0.01f));
        }
        free(m), free(v);
        nb_st_close(&grads);
        json_decref(want);
        close_all(&f);
    }
}

int main(void) {
    nb_threads_set(0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_equal_the_oracle),
        cmocka_unit_test(logits_equal_the_oracle),
        cmocka_unit_test(adapter_gradients_and_ten_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
