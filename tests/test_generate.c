/* The generator and the held-out evaluation on a trained model of 260,000 parameters (shared vectors). */
#include "adapters/adapter.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/json.h"
#include "eval/heldout.h"
#include "tests/test.h"

typedef struct fixture {
    nb_dev *dev;
    nb_base *base;
    nb_tokenizer *tokenizer;
    nb_model *model;
    nb_arena arena;
    nb_generator *generator;
} fixture;

/* elsewhere: as if the device had memory of its own. four: a base in 4 bits, computing in bf16. */
static void open_model_on(fixture *f, bool elsewhere, bool four) {
    static nb_backend other;
    const char *dir = VECTORS("stories260K-hf");
    nb_base_options o = {.load_in_4bit = four, .double_quant = true, .quantized_cache = ""};
    *f = (fixture){0};
    assert_ok(nb_dev_open(&f->dev, "cpu", four ? NB_BF16 : NB_F32));
    other = *f->dev->be;
    other.host_memory = false;
    if (elsewhere) f->dev->be = &other;
    assert_ok(nb_base_load(&f->base, dir, &o));
    assert_ok(nb_tokenizer_load(&f->tokenizer, dir));
    assert_ok(nb_model_open(&f->model, f->base, f->dev, 512, 512));
}

static void open_model(fixture *f) { open_model_on(f, false, false); }

static void open_generator(fixture *f, nb_gen_options o) {
    nb_generator_free(f->generator);
    f->generator = NULL;
    assert_ok(nb_generator_open(&f->generator, f->model, &f->arena, f->tokenizer, &o));
}

static void close_model(fixture *f) {
    nb_generator_free(f->generator);
    nb_arena_free(&f->arena);
    nb_model_free(f->model);
    nb_tokenizer_free(f->tokenizer);
    nb_base_free(f->base);
    nb_dev_close(f->dev);
}

static json_t *load(const char *path) {
    json_t *v;
    assert_ok(nb_json_load(path, &v));
    return v;
}

static int64_t ids_of(const json_t *array, int32_t *out) {
    int64_t n = (int64_t)json_array_size(array);
    for (int64_t i = 0; i < n; i++) out[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    return n;
}

static nb_ids encode(const fixture *f, const char *text) {
    nb_ids ids = {0};
    assert_ok(nb_tokenizer_encode(f->tokenizer, text, strlen(text), NB_TOK_SPECIAL, &ids));
    return ids;
}

/* llama2.c's own greedy texts, with prompts read whole, in pieces of 3 tokens, and several sequences at once. */
static void greedy_texts_are_exact(void **st) {
    (void)st;
    fixture f;
    open_model(&f);
    json_t *all = load(VECTORS("stories260K/greedy_vectors.json")), *vectors = json_object_get(all, "vectors");
    static const struct { int64_t slots, max_tokens; } ways[] = {{1, 512}, {1, 3}, {2, 4}, {5, 64}};
    for (int w = 0; w < NB_LEN(ways); w++) {
        open_generator(&f, (nb_gen_options){.slots = ways[w].slots, .slot_len = 512, .max_tokens = ways[w].max_tokens});
        nb_gen_request q[6];
        nb_gen_result r[6];
        int32_t prompt[2][64], want[2][256];
        int64_t want_n[2];
        for (int i = 0; i < 6; i++) {
            const json_t *v = json_array_get(vectors, (size_t)i % 2);
            int64_t n = ids_of(json_object_get(v, "prompt_ids"), prompt[i % 2]);
            want_n[i % 2] = ids_of(json_object_get(v, "generated_ids"), want[i % 2]);
            q[i] = (nb_gen_request){.prompt = prompt[i % 2], .prompt_n = n, .max_new_tokens = want_n[i % 2]};
        }
        nb_sampling greedy = nb_sampling_greedy();
        assert_ok(nb_generate(f.generator, &greedy, q, 6, r, NULL));
        for (int i = 0; i < 6; i++) {
            assert_int_equal(r[i].n, want_n[i % 2]);
            assert_memory_equal(r[i].ids, want[i % 2], (size_t)r[i].n * sizeof(int32_t));
            assert_int_equal(r[i].stop, NB_STOP_LIMIT);
            nb_gen_result_free(&r[i]);
        }
    }
    json_decref(all);
    close_model(&f);
}

/* Where logits stay on the device and only the most likely tokens are fetched, texts are the same. */
static void fetched_tokens_are_the_same(void **st) {
    (void)st;
    static const nb_sampling ways[] = {
        {.top_p = 1, .repetition_penalty = 1},
        {.temperature = 1, .top_k = 40, .top_p = 0.95, .repetition_penalty = 1, .seed = 3},
        {.temperature = 0.8, .top_p = 0.9, .repetition_penalty = 1, .seed = 4},
        {.temperature = 1.5, .top_p = 1, .min_p = 0.05, .repetition_penalty = 1, .seed = 5},
        {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 6},
        {.temperature = 1, .top_k = 20, .top_p = 1, .repetition_penalty = 1.2, .seed = 7},
    };
    enum { WAYS = NB_LEN(ways), TEXTS = 3 };
    nb_gen_result r[2][WAYS][TEXTS];
    for (int elsewhere = 0; elsewhere < 2; elsewhere++) {
        fixture f;
        open_model_on(&f, elsewhere, false);
        open_generator(&f, (nb_gen_options){.slots = 2, .slot_len = 256, .max_tokens = 16});
        nb_ids prompt = encode(&f, "Once upon a time");
        nb_gen_request q[TEXTS];
        for (int i = 0; i < TEXTS; i++)
            q[i] = (nb_gen_request){.prompt = prompt.id, .prompt_n = prompt.n - i, .max_new_tokens = 100,
                                    .sequence = (uint64_t)i};
        for (int w = 0; w < WAYS; w++) assert_ok(nb_generate(f.generator, &ways[w], q, TEXTS, r[elsewhere][w], NULL));
        nb_ids_free(&prompt);
        close_model(&f);
    }
    for (int w = 0; w < WAYS; w++)
        for (int i = 0; i < TEXTS; i++) {
            nb_gen_result *here = &r[0][w][i], *there = &r[1][w][i];
            assert_int_equal(here->n, there->n);
            assert_memory_equal(here->ids, there->ids, (size_t)here->n * sizeof *here->ids);
            nb_gen_result_free(here), nb_gen_result_free(there);
        }
}

static void adapter_on_and_off(void **st) {
    (void)st;
    fixture f;
    nb_adapter *adapter;
    open_model(&f);
    json_t *want = load(VECTORS("stories260K-lora/expected.json"));
    int32_t ids[128];
    int64_t n = ids_of(json_object_get(want, "greedy_ids_100"), ids);
    int64_t prompt_n = (int64_t)json_array_size(json_object_get(want, "prompt_ids"));
    assert_ok(nb_adapter_load(&adapter, f.model, VECTORS("stories260K-lora"), false));
    nb_gen_request q = {.prompt = ids, .prompt_n = prompt_n, .max_new_tokens = n - prompt_n};
    nb_sampling greedy = nb_sampling_greedy();
    int equal[3];
    for (int i = 0; i < 3; i++) { /* with, without, with */
        nb_gen_result r;
        nb_adapter_enable(adapter, i != 1);
        open_generator(&f, (nb_gen_options){.slots = 1, .slot_len = 256, .max_tokens = 64});
        assert_ok(nb_generate(f.generator, &greedy, &q, 1, &r, NULL));
        equal[i] = r.n == n - prompt_n && !memcmp(r.ids, ids + prompt_n, (size_t)r.n * sizeof *ids);
        nb_gen_result_free(&r);
    }
    assert_true(equal[0] && !equal[1] && equal[2]);
    nb_adapter_free(adapter);
    json_decref(want);
    close_model(&f);
}

/* Sampled sequences: the same alone, among others, in other slots, and with other piece sizes. */
static void company(bool four) {
    fixture f;
    open_model_on(&f, false, four);
    static const char *const texts[] = {"Once upon a time", "The big dog was very", "Lily",
                                        "One day, Tom and his mom went to the", "She said", "A",
                                        "Ben had a red ball. He liked to", "It was dark"};
    nb_sampling o = {.temperature = 1, .top_k = 40, .top_p = 0.95, .repetition_penalty = 1.1, .seed = 11};
    nb_gen_request q[8];
    nb_gen_result alone[8], r[8];
    nb_ids ids[8];
    open_generator(&f, (nb_gen_options){.slots = 1, .slot_len = 128, .max_tokens = 128});
    for (int i = 0; i < 8; i++) {
        ids[i] = encode(&f, texts[i]);
        q[i] = (nb_gen_request){.prompt = ids[i].id, .prompt_n = ids[i].n, .max_new_tokens = 20 + 9 * (i % 3),
                                .sequence = (uint64_t)i};
        assert_ok(nb_generate(f.generator, &o, &q[i], 1, &alone[i], NULL));
    }
    static const struct { int64_t slots, max_tokens; } ways[] = {{8, 128}, {3, 5}, {2, 128}};
    for (int w = 0; w < NB_LEN(ways); w++) {
        open_generator(&f, (nb_gen_options){.slots = ways[w].slots, .slot_len = 128, .max_tokens = ways[w].max_tokens});
        assert_ok(nb_generate(f.generator, &o, q, 8, r, NULL));
        for (int i = 0; i < 8; i++) {
            assert_int_equal(r[i].n, alone[i].n);
            assert_memory_equal(r[i].ids, alone[i].ids, (size_t)r[i].n * sizeof(int32_t));
            nb_gen_result_free(&r[i]);
        }
    }
    for (int i = 0; i < 8; i++) nb_gen_result_free(&alone[i]), nb_ids_free(&ids[i]);
    close_model(&f);
}

static void company_changes_nothing(void **st) {
    (void)st;
    company(false);
    company(true);
}

typedef struct heard {
    nb_text text;
    int calls, limit;
} heard;

static bool hear(void *arg, const char *text, size_t n) {
    heard *h = arg;
    nb_text_add(&h->text, text, n);
    return ++h->calls != h->limit;
}

static nb_gen_result tell(fixture *f, const char *const *stop, int n_stop, const int32_t *stop_ids, int n_stop_ids,
                          heard *h) {
    open_generator(f, (nb_gen_options){.slots = 2, .slot_len = 200, .max_tokens = 64, .stop = stop, .n_stop = n_stop,
                                       .stop_ids = stop_ids, .n_stop_ids = n_stop_ids});
    nb_ids ids = encode(f, "Once upon a time");
    nb_gen_request q = {
        .prompt = ids.id, .prompt_n = ids.n, .max_new_tokens = 60, .on_text = h ? hear : NULL, .arg = h};
    nb_sampling greedy = nb_sampling_greedy();
    nb_gen_result r;
    assert_ok(nb_generate(f->generator, &greedy, &q, 1, &r, NULL));
    nb_ids_free(&ids);
    return r;
}

/* The greedy text goes on ", there was a little girl named Lily. She loved to play outside in the park. ..." */
static void stopping(void **st) {
    (void)st;
    fixture f;
    open_model(&f);
    nb_gen_result full = tell(&f, NULL, 0, NULL, 0, NULL);
    assert_int_equal(full.stop, NB_STOP_LIMIT);
    assert_non_null(strstr(full.text.s, "girl named Lily. She"));
    static const char *const stops[][2] = {{"Lily. She l", "zzz"}, {"y. S", "Lily"}, {"d to", "to p"},
                                           {" little", "e g"}};
    for (int i = 0; i < NB_LEN(stops); i++) { /* across tokens; the text is cut before the first of them */
        heard h = {0};
        nb_gen_result r = tell(&f, stops[i], 2, NULL, 0, &h);
        const char *a = strstr(full.text.s, stops[i][0]), *b = strstr(full.text.s, stops[i][1]);
        size_t want = (size_t)((b && b < a ? b : a) - full.text.s);
        assert_int_equal(r.stop, NB_STOP_STRING);
        assert_int_equal(r.text.n, want);
        assert_memory_equal(r.text.s, full.text.s, want);
        assert_int_equal(h.text.n, want); /* nothing of it was shown */
        assert_memory_equal(h.text.s, r.text.s, want);
        assert_true(h.calls > 3); /* and what was certain was not held back */
        nb_text_free(&h.text);
        nb_gen_result_free(&r);
    }
    heard some = {.limit = 5};
    nb_gen_result r = tell(&f, NULL, 0, NULL, 0, &some);
    assert_int_equal(r.stop, NB_STOP_CALLER);
    assert_int_equal(some.calls, 5);
    nb_gen_result_free(&r);
    nb_text_free(&some.text);
    int32_t stop_ids[] = {3, full.ids[20]}; /* a token of the text, where it first comes */
    int64_t first = 0;
    while (full.ids[first] != stop_ids[1]) first++;
    r = tell(&f, NULL, 0, stop_ids, 2, NULL);
    assert_int_equal(r.stop, NB_STOP_TOKEN);
    assert_int_equal(r.n, first);
    nb_gen_result_free(&r);
    nb_gen_result_free(&full);
    close_model(&f);
}

static void context_end_and_bad_requests(void **st) {
    (void)st;
    fixture f;
    open_model(&f);
    open_generator(&f, (nb_gen_options){.slots = 1, .slot_len = 16, .max_tokens = 8});
    nb_ids ids = encode(&f, "Once upon a time");
    nb_gen_request q = {.prompt = ids.id, .prompt_n = ids.n, .max_new_tokens = 100};
    nb_sampling greedy = nb_sampling_greedy();
    nb_gen_result r;
    assert_ok(nb_generate(f.generator, &greedy, &q, 1, &r, NULL));
    assert_int_equal(r.stop, NB_STOP_CONTEXT);
    assert_int_equal(r.n, 16 - ids.n);
    nb_gen_result_free(&r);
    int32_t many[16] = {1, 2, 3};
    q = (nb_gen_request){.prompt = many, .prompt_n = 16, .max_new_tokens = 1};
    assert_fails(nb_generate(f.generator, &greedy, &q, 1, &r, NULL), NB_EINPUT, "has 16 tokens");
    q.prompt_n = 0;
    assert_fails(nb_generate(f.generator, &greedy, &q, 1, &r, NULL), NB_EINPUT, "empty");
    q.prompt_n = 3, q.max_new_tokens = 0;
    assert_ok(nb_generate(f.generator, &greedy, &q, 1, &r, NULL));
    assert_int_equal(r.n, 0);
    const char *nothing = "";
    nb_generator *g;
    nb_gen_options o = {.slots = 1, .slot_len = 513, .max_tokens = 8};
    assert_fails(nb_generator_open(&g, f.model, &f.arena, f.tokenizer, &o), NB_EINPUT, "513");
    o = (nb_gen_options){.slots = 1, .slot_len = 16, .max_tokens = 8, .stop = &nothing, .n_stop = 1};
    assert_fails(nb_generator_open(&g, f.model, &f.arena, f.tokenizer, &o), NB_EINPUT, "stop string is empty");
    nb_ids_free(&ids);
    close_model(&f);
}

/* A chat's next turn continues what the slot holds: the same answer, without reading the prompt again. */
static void kept_prefixes_change_nothing(void **st) {
    (void)st;
    fixture f;
    open_model(&f);
    nb_sampling greedy = nb_sampling_greedy();
    nb_ids first = encode(&f, "Once upon a time"), second = encode(&f, "Once upon a day there was a");
    nb_gen_result want[3], r;
    for (int keep = 0; keep < 2; keep++) {
        open_generator(&f, (nb_gen_options){.slots = 1, .slot_len = 200, .max_tokens = 4, .keep_prefix = keep});
        for (int i = 0; i < 3; i++) { /* the first prompt, one that shares its beginning, the first again */
            const nb_ids *p = i == 1 ? &second : &first;
            nb_gen_request q = {.prompt = p->id, .prompt_n = p->n, .max_new_tokens = 30};
            assert_ok(nb_generate(f.generator, &greedy, &q, 1, keep ? &r : &want[i], NULL));
            if (!keep) continue;
            assert_string_equal(r.text.s, want[i].text.s);
            nb_gen_result_free(&r);
        }
    }
    for (int i = 0; i < 3; i++) nb_gen_result_free(&want[i]);
    nb_ids_free(&first), nb_ids_free(&second);
    close_model(&f);
}

/* ---- held-out evaluation ---- */

static nb_dataset *open_data(const fixture *f, nb_config *c, const char *text, int type, const char *metric) {
    char *path = nb_path_join(nb_test_tmp(), "heldout.jsonl");
    assert_ok(nb_file_write(path, text, strlen(text)));
    nb_config_init(c);
    c->dataset_prepared_path = nb_path_join(nb_test_tmp(), "prepared");
    nb_config_dataset *d = nb_config_add_dataset(c, true);
    free(d->path); /* the table's defaults are strings too */
    d->path = path;
    d->type = type;
    d->max_new_tokens = 12;
    if (metric) {
        for (int i = 0; i < d->metrics.n; i++) free(d->metrics.v[i]);
        free(d->metrics.v);
        d->metrics = (nb_strs){.v = nb_calloc(1, sizeof(char *)), .n = 1};
        d->metrics.v[0] = nb_strdup(metric);
    }
    nb_config_derive(c);
    nb_dataset *data;
    assert_ok(nb_dataset_open(&data, c, &c->test_datasets[0], f->tokenizer, 128));
    return data;
}

static void loss_of_rows(void **st) {
    (void)st;
    fixture f;
    nb_config c;
    open_model(&f);
    nb_dataset *data = open_data(&f, &c,
                                 "{\"text\": \"Once upon a time there was a cat.\"}\n{\"text\": \"The dog ran.\"}\n"
                                 "{\"text\": \"Lily and Tom went to the park to play with the ball.\"}\n",
                                 NB_DATA_COMPLETION, NULL);
    nb_heldout_set set;
    nb_evaluator e;
    nb_evaluator_options o = {.batch_tokens = 1};
    assert_ok(nb_heldout_set_open(&set, data, &c.test_datasets[0]));
    nb_heldout_result r[2];
    for (int i = 0; i < 2; i++, o.batch_tokens = 512) { /* one row a batch, all rows in one */
        nb_heldout_args a = {.evaluator = &e, .set = &set};
        assert_ok(nb_evaluator_open(&e, f.model, &f.arena, f.tokenizer, &set, 1, &o));
        assert_null(e.generator);
        assert_ok(nb_heldout_eval(&r[i], &a));
        nb_evaluator_close(&e);
    }
    assert_int_equal(r[0].rows, 3);
    assert_true(r[0].loss > 0.5 && r[0].loss < 4);
    assert_close(r[0].perplexity, exp(r[0].loss), 1e-12);
    assert_true(r[0].bytes > 80 && r[0].bits_per_byte > 0.2 && r[0].bits_per_byte < 3);
    for (int i = 0; i < 3; i++) {
        assert_close(r[0].row[i].loss_sum, r[1].row[i].loss_sum, 0);
        nb_row row; /* against the row alone, by hand */
        nb_dataset_row(data, i, &row);
        int32_t pos[128], targets[128];
        uint32_t sample[128] = {0};
        nb_seg seg = {0, row.n, 0, row.n};
        nb_batch b = {
            .n = row.n, .ids = row.ids, .targets = targets, .pos = pos, .sample = sample, .segs = &seg, .n_segs = 1};
        for (int t = 0; t < row.n; t++) {
            pos[t] = t;
            targets[t] = t + 1 < row.n ? row.labels[t + 1] : NB_IGNORE;
            b.n_trained += targets[t] != NB_IGNORE;
        }
        nb_runner *runner;
        double sum;
        assert_ok(nb_runner_open_loss(&runner, f.model, &f.arena, 128, false, NULL));
        assert_ok(nb_runner_loss(runner, &b, 0, &sum, NULL));
        nb_runner_free(runner);
        assert_int_equal(r[0].row[i].tokens, b.n_trained);
        assert_close(r[0].row[i].loss_sum, sum, 1e-4);
    }
    nb_heldout_result_free(&r[0]), nb_heldout_result_free(&r[1]);
    nb_dataset_free(data);
    nb_config_free(&c);
    close_model(&f);
}

static void answers_are_scored(void **st) {
    (void)st;
    fixture f;
    nb_config c;
    open_model(&f);
    nb_gen_result known;
    nb_ids ids = encode(&f, "Once upon a time");
    open_generator(&f, (nb_gen_options){.slots = 1, .slot_len = 128, .max_tokens = 64});
    nb_gen_request q = {.prompt = ids.id, .prompt_n = ids.n, .max_new_tokens = 12};
    nb_sampling greedy = nb_sampling_greedy();
    assert_ok(nb_generate(f.generator, &greedy, &q, 1, &known, NULL));
    char *text = nb_asprintf("{\"prompt\": \"Once upon a time\", \"completion\": \"%s\"}\n"
                             "{\"prompt\": \"Once upon a time\", \"completion\": \"something else\"}\n", known.text.s);
    nb_dataset *data = open_data(&f, &c, text, NB_DATA_PROMPT_COMPLETION, "exact_match");
    nb_heldout_set set;
    nb_evaluator e;
    nb_evaluator_options o = {0};
    nb_heldout_result r;
    assert_ok(nb_heldout_set_open(&set, data, &c.test_datasets[0]));
    assert_ok(nb_evaluator_open(&e, f.model, &f.arena, f.tokenizer, &set, 1, &o));
    nb_heldout_args a = {.evaluator = &e, .set = &set, .keep_texts = true};
    assert_ok(nb_heldout_eval(&r, &a));
    assert_close(r.row[0].score[NB_METRIC_EXACT_MATCH], 1, 0);
    assert_close(r.row[1].score[NB_METRIC_EXACT_MATCH], 0, 0);
    assert_close(r.score[NB_METRIC_EXACT_MATCH], 0.5, 0);
    assert_string_equal(r.row[1].reference, "something else");
    assert_string_equal(r.row[1].answer, known.text.s);
    assert_non_null(strstr(r.row[1].prompt, "Once upon a time"));
    assert_int_equal(r.row[1].answer_tokens, 12);
    assert_int_equal(r.stopped[NB_STOP_LIMIT], 2);
    nb_heldout_result_free(&r);
    nb_evaluator_close(&e);
    nb_dataset_free(data);
    nb_config_free(&c);
    data = open_data(&f, &c, "{\"text\": \"no prompt\"}\n", NB_DATA_COMPLETION, "f1");
    assert_ok(nb_heldout_set_open(&set, data, &c.test_datasets[0]));
    assert_ok(nb_evaluator_open(&e, f.model, &f.arena, f.tokenizer, &set, 1, &o));
    assert_fails(nb_heldout_eval(&r, &a), NB_EINPUT, "record 1 has no prompt");
    nb_heldout_result_free(&r);
    nb_evaluator_close(&e);
    nb_dataset_free(data);
    nb_config_free(&c);
    free(text);
    nb_gen_result_free(&known);
    nb_ids_free(&ids);
    close_model(&f);
}

int main(void) {
    nb_threads_set(1); /* the model is tiny: threads only wait for each other */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_texts_are_exact), cmocka_unit_test(fetched_tokens_are_the_same), cmocka_unit_test(adapter_on_and_off),
        cmocka_unit_test(company_changes_nothing), cmocka_unit_test(stopping),
        cmocka_unit_test(context_end_and_bad_requests), cmocka_unit_test(kept_prefixes_change_nothing),
        cmocka_unit_test(loss_of_rows), cmocka_unit_test(answers_are_scored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
