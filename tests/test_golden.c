/* nibble against transformers + PEFT + bitsandbytes (tests/golden): logits, losses, adapter gradients, 20 optimizer
 * steps, schedules. In f32, per tensor, at most 1e-4 relative. */
#include "adapters/adapter.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "model/safetensors.h"
#include "tests/test.h"
#include "train/optimizer.h"
#include "train/schedule.h"

enum { MAX = 256 };

typedef struct fixture {
    nb_dev *dev;
    nb_base *base;
    nb_model *model;
    nb_arena arena;
    nb_runner *runner;
    nb_adapter *adapter;
    json_t *golden;
    int32_t ids[MAX], targets[MAX], pos[MAX];
    uint32_t sample[MAX];
    nb_seg segs[8];
    nb_batch batch;
} fixture;

static char *path_in(const char *folder, const char *file) { return nb_asprintf("tests/golden/%s/%s", folder, file); }

/* Where the comparisons run; "emu" is the GPU backend's code. */
static const char *device = "cpu";

/* adapter: PEFT's in the folder, or all weights, or none. */
enum { NONE, PEFT, WHOLE };
static void open_folder(fixture *f, const char *folder, int with_adapter, bool backward) {
    memset(f, 0, sizeof *f);
    nb_base_options o = {.quantized_cache = "", .load_in_4bit = !strcmp(folder, "llama-bnb4"), .double_quant = true};
    char *golden = path_in(folder, "golden.json"), *adapter = path_in(folder, "adapter");
    assert_ok(nb_json_load(golden, &f->golden));
    const char *other = json_string_value(json_object_get(f->golden, "base_folder"));
    char *dir = path_in(other ? other : folder, "");
    assert_ok(nb_dev_open(&f->dev, device, NB_F32));
    assert_ok(nb_base_load(&f->base, dir, &o));
    int64_t positions = f->base->spec.learned_positions ? f->base->spec.context : MAX;
    assert_ok(nb_model_open(&f->model, f->base, f->dev, positions, 20));
    if (with_adapter == WHOLE) assert_ok(nb_adapter_new_full(&f->adapter, f->model));
    if (with_adapter == PEFT) assert_ok(nb_adapter_load(&f->adapter, f->model, adapter, backward));
    assert_ok(nb_runner_open_loss(&f->runner, f->model, &f->arena, MAX, backward,
                                  backward ? &nb_recompute_smart : NULL));
    free(dir), free(golden), free(adapter);
}

static void close_folder(fixture *f) {
    nb_runner_free(f->runner);
    nb_adapter_free(f->adapter);
    nb_arena_free(&f->arena);
    nb_model_free(f->model);
    nb_base_free(f->base);
    nb_dev_close(f->dev);
    json_decref(f->golden);
}

/* Puts the sequences of one golden batch behind one another; all: every next token counts, else where labels say. */
static void fill(fixture *f, const json_t *sequences, bool all) {
    nb_batch *b = &f->batch;
    *b = (nb_batch){.ids = f->ids, .targets = f->targets, .pos = f->pos, .sample = f->sample, .segs = f->segs};
    size_t s;
    json_t *seq;
    json_array_foreach(sequences, s, seq) {
        const json_t *ids = json_object_get(seq, "ids"), *labels = json_object_get(seq, "labels");
        int32_t n = (int32_t)json_array_size(ids), at = (int32_t)b->n;
        f->segs[b->n_segs++] = (nb_seg){at, n, at, n};
        for (int32_t i = 0; i < n; i++, b->n++) {
            f->ids[b->n] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
            f->pos[b->n] = i;
            f->sample[b->n] = (uint32_t)s;
            const json_t *next = json_array_get(all ? ids : labels, (size_t)i + 1);
            f->targets[b->n] = next ? (int32_t)json_integer_value(next) : NB_IGNORE;
            b->n_trained += f->targets[b->n] != NB_IGNORE;
        }
    }
}

static double number(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }
static double item(const json_t *o, const char *key, size_t i) {
    return json_number_value(json_array_get(json_object_get(o, key), i));
}

static const char *const folders[] = {"llama", "llama3", "mistral", "smollm2", "qwen2-yarn", "qwen3", "gemma", "gemma2",
                                      "gemma3", "phi3-longrope", "phi", "smollm3", "olmo", "olmo2", "neox",
                                      "neox-serial", "gpt2", "gpt2-scaled", "lora-patterns", "dora", "saved",
                                      "saved-tied", "ends", "ends-tied", "dora-dropout", "gpt2-saved", "mixtral",
                                      "qwen2-moe", "qwen3-moe", "olmoe", "llama-bnb4"};

static void check_logits(fixture *f, const json_t *want) {
    int64_t V = f->base->spec.vocab;
    const json_t *sequences = json_object_get(want, "sequences");
    nb_runner *r;
    assert_ok(nb_runner_open_logits(&r, f->model, &f->arena, MAX, 1, NULL));
    size_t s, k;
    json_t *seq, *at;
    json_array_foreach(sequences, s, seq) json_array_foreach(json_object_get(seq, "logits"), k, at) {
        int32_t row = f->segs[s].q0 + (int32_t)json_integer_value(json_object_get(at, "position"));
        float *got = nb_malloc((size_t)V * 4), *oracle = nb_malloc((size_t)V * 4);
        assert_ok(nb_runner_logits(r, &f->batch, NULL, &row, 1, got));
        for (int64_t v = 0; v < V; v++) oracle[v] = (float)item(at, "values", (size_t)v);
        assert_close(nb_rel_error(got, oracle, V), 0, 1e-4);
        free(got), free(oracle);
    }
    nb_runner_free(r);
}

static void check_losses(fixture *f, const json_t *want) {
    const json_t *batch = json_array_get(json_object_get(f->golden, "batches"), 0);
    double sum;
    float nll[MAX];
    fill(f, batch, true);
    assert_ok(nb_runner_loss(f->runner, &f->batch, 0, &sum, nll));
    assert_close(sum / (double)f->batch.n_trained / number(want, "loss"), 1, 1e-4);
    int64_t k = 0;
    size_t s;
    json_t *seq;
    json_array_foreach(json_object_get(want, "sequences"), s, seq) {
        int agree = 0;
        for (int i = 0; i + 1 < f->segs[s].qn; i++, k++) {
            assert_close(nll[k], item(seq, "nll", (size_t)i), 1e-4 * (1 + item(seq, "nll", (size_t)i)));
            agree += f->runner->index.best[k] == (int32_t)item(seq, "argmax", (size_t)i);
        }
        assert_int_equal(agree, f->segs[s].qn - 1);
    }
    check_logits(f, want);
    fill(f, batch, false);
    assert_ok(nb_runner_loss(f->runner, &f->batch, 0, &sum, NULL));
    assert_close(sum / (double)f->batch.n_trained / number(want, "masked_loss"), 1, 1e-4);
}

static void base_equals_transformers(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(folders); i++) {
        fixture f;
        open_folder(&f, folders[i], NONE, false);
        check_losses(&f, json_object_get(f.golden, "base"));
        close_folder(&f);
    }
}

static void adapter_equals_peft(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(folders); i++) {
        fixture f;
        open_folder(&f, folders[i], PEFT, false);
        check_losses(&f, json_object_get(f.golden, "adapter"));
        close_folder(&f);
    }
}

/* within: what the tensors named in it may differ by, twice the number, if that is more than 1e-4; NULL: nothing is named. */
static void compare_params(const fixture *f, const char *folder, const char *file, bool grads, const json_t *within) {
    char *path = path_in(folder, file);
    nb_st s;
    assert_ok(nb_st_open_file(&s, path));
    assert_int_equal(s.n_tensors, f->adapter->n_params);
    for (int i = 0; i < f->adapter->n_params; i++) {
        const nb_tensor *p = &f->adapter->params[i];
        const nb_st_tensor *t = nb_st_find(&s, p->name);
        if (!t) fail_msg("%s: %s lacks it", path, p->name);
        int64_t n = nb_tensor_size(p);
        float *want = nb_malloc((size_t)n * 4), *got = nb_malloc((size_t)n * 4);
        nb_st_read_f32(t, want, 0, n);
        assert_ok(nb_adapter_fetch(f->adapter, p, grads ? p->grad : p->data, got));
        double err = nb_rel_error(got, want, n);
        if (!(err <= fmax(1e-4, 2 * json_number_value(json_object_get(within, p->name)))))
            fail_msg("%s: %s is off by %g on %s", path, p->name, err, device);
        free(want), free(got);
    }
    nb_st_close(&s);
    free(path);
}

static void gradients_equal_peft(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(folders); i++) {
        fixture f;
        double sum;
        open_folder(&f, folders[i], PEFT, true);
        fill(&f, json_array_get(json_object_get(f.golden, "batches"), 0), false);
        assert_ok(nb_runner_loss(f.runner, &f.batch, 1.0f / (float)f.batch.n_trained, &sum, NULL));
        assert_close(f.runner->balance, number(f.golden, "balance_loss"), 2e-6); /* absent: 0 */
        compare_params(&f, folders[i], "grads.safetensors", true, NULL);
        close_folder(&f);
    }
}

static void the_gpus_code_equals_them_too(void **state) {
    if (!&nb_backend_emu) skip();
    device = "emu";
    adapter_equals_peft(state);
    gradients_equal_peft(state);
    device = "cpu";
}

/* 20 steps as golden.json's `kind` ran them. */
static void train(const char *folder, const char *kind) {
    fixture f;
    nb_optimizer o;
    open_folder(&f, folder, !strcmp(kind, "whole") ? WHOLE : PEFT, true);
    const json_t *want = json_object_get(f.golden, kind), *batches = json_object_get(f.golden, "batches");
    const json_t *adamw = json_object_get(f.golden, "adamw");
    double ratio = number(want, "ratio"); /* absent: 0 */
    assert_ok(nb_optimizer_open(&o, f.adapter, false, ratio ? ratio : 1, NULL, false));
    o.beta1 = number(adamw, "beta1"), o.beta2 = number(adamw, "beta2"), o.epsilon = number(adamw, "epsilon");
    o.weight_decay = number(want, "weight_decay");
    o.max_grad_norm = number(want, "max_grad_norm"); /* absent: 0 */
    for (int step = 0; step < 20; step++) {
        double sum, norm;
        fill(&f, json_array_get(batches, (size_t)step % json_array_size(batches)), false);
        f.runner->tape->step = (uint32_t)step;
        nb_optimizer_begin(&o);
        assert_ok(nb_runner_loss(f.runner, &f.batch, 1.0f / (float)f.batch.n_trained, &sum, NULL));
        assert_ok(nb_optimizer_step(&o, step + 1, item(want, "learning_rates", (size_t)step), &norm));
        assert_close(sum / (double)f.batch.n_trained / item(want, "losses", (size_t)step), 1, 1e-4);
        assert_close(norm / item(want, "grad_norms", (size_t)step), 1, 1e-3);
    }
    if (!strcmp(kind, "adamw")) compare_params(&f, folder, "trained.safetensors", false, json_object_get(want, "float32_error"));
    if (!strcmp(kind, "loraplus")) compare_params(&f, folder, "loraplus.safetensors", false, NULL);
    nb_optimizer_close(&o);
    close_folder(&f);
}

static void twenty_steps_equal_torch(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(folders) - 1; i++) train(folders[i], "adamw");
}

static void twenty_clipped_steps_equal_torch(void **state) {
    (void)state;
    for (int i = 0; i < NB_LEN(folders) - 1; i++) train(folders[i], "clipped");
}

static void twenty_loraplus_steps_equal_peft(void **state) {
    (void)state;
    train("lora-patterns", "loraplus");
    train("dora", "loraplus");
    train("saved", "loraplus");
}

/* adapter: full, with norms that have biases, or neither, and learned positions. */
static void twenty_whole_steps_equal_torch(void **state) {
    (void)state;
    static const char *const names[] = {"gpt2", "phi", "neox", "olmo"};
    for (int i = 0; i < NB_LEN(names); i++) train(names[i], "whole");
}

static void schedules_equal_transformers(void **state) {
    (void)state;
    json_t *all, *factors;
    const char *key;
    assert_ok(nb_json_load("tests/golden/schedules.json", &all));
    assert_true(json_object_size(all) > 3);
    json_object_foreach(all, key, factors) {
        char kind[64];
        long long warmup, total;
        assert_int_equal(sscanf(key, "%63[^/]/%lld/%lld", kind, &warmup, &total), 3);
        if (!strcmp(kind, "constant") && warmup)
            continue; /* transformers ignores the warm-up there; here it has a name of its own */
        int lr = !strncmp(kind, "cosine", 6) ? NB_LR_COSINE : !strcmp(kind, "linear") ? NB_LR_LINEAR : NB_LR_CONSTANT;
        nb_schedule s = {lr, 1, 0, warmup, total};
        for (size_t i = 0; i < json_array_size(factors); i++)
            assert_close(nb_schedule_rate(&s, (int64_t)i), json_number_value(json_array_get(factors, i)), 1e-6);
    }
    json_decref(all);
}

int main(void) {
    nb_threads_set(0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(base_equals_transformers),     cmocka_unit_test(adapter_equals_peft),
        cmocka_unit_test(gradients_equal_peft),         cmocka_unit_test(the_gpus_code_equals_them_too),
        cmocka_unit_test(twenty_steps_equal_torch),
        cmocka_unit_test(twenty_clipped_steps_equal_torch), cmocka_unit_test(schedules_equal_transformers),
        cmocka_unit_test(twenty_loraplus_steps_equal_peft),
        cmocka_unit_test(twenty_whole_steps_equal_torch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
