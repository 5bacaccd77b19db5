/* Row types, masks, prepared datasets and their cache. (Files: test_reader.c; the loader: test_loader.c.) */
#include "tests/test.h"

#include <sys/stat.h>

#include "core/batch.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/dataset.h"

static nb_tokenizer *tok;

static int setup(void **s) {
    (void)s;
    nb_log_set_level(NB_LOG_QUIET);
    if (nb_tokenizer_load(&tok, "data/samples/base") != NB_OK) {
        print_message("%s\n", nb_message());
        return -1;
    }
    return 0;
}

static int teardown(void **s) {
    (void)s;
    nb_tokenizer_free(tok);
    return 0;
}

/* A file in the test's folder; two paths may be in use at once. */
static const char *put_n(const char *name, const char *text, size_t n) {
    static char path[4][512];
    static int turn;
    char *p = path[turn++ & 3];
    snprintf(p, sizeof path[0], "%s/%s", nb_test_tmp(), name);
    assert_ok(nb_file_write(p, text, n));
    return p;
}

static const char *put(const char *name, const char *text) {
    return put_n(name, text, strlen(text));
}

static nb_config config(void) {
    nb_config c;
    nb_config_init(&c);
    free(c.dataset_prepared_path);
    c.dataset_prepared_path = nb_strdup("none");
    return c;
}

static nb_config_dataset *entry(nb_config *c, const char *path, int type) {
    nb_config_dataset *e = nb_config_add_dataset(c, false);
    free(e->path);
    e->path = nb_strdup(path);
    e->type = type;
    return e;
}

static nb_dataset *open_set(const nb_config *c, int64_t sequence_len) {
    nb_dataset *d;
    assert_ok(nb_dataset_open(&d, c, &c->datasets[0], tok, sequence_len));
    return d;
}

/* The trained tokens as text, a '|' between runs; end tokens included. */
static char *trained_text(const nb_row *r) {
    nb_text t = {0};
    nb_text_puts(&t, "");
    for (int32_t i = 0; i < r->n; i++) {
        if (r->labels[i] == NB_IGNORE) continue;
        assert_int_equal(r->labels[i], r->ids[i]);
        if (t.n && r->labels[i - 1] == NB_IGNORE) nb_text_puts(&t, "|");
        assert_ok(nb_tokenizer_decode(tok, &r->ids[i], 1, false, &t));
    }
    return t.s;
}

static void expect_text(const nb_dataset *d, int64_t i, const char *whole) {
    nb_row r;
    nb_text t = {0};
    nb_dataset_row(d, i, &r);
    assert_ok(nb_tokenizer_decode(tok, r.ids, r.n, false, &t));
    assert_string_equal(t.s, whole);
    nb_text_free(&t);
}

static void expect_row(const nb_dataset *d, int64_t i, const char *whole, const char *trained, const char *prompt,
                       const char *reference) {
    nb_row r;
    nb_text t = {0};
    expect_text(d, i, whole);
    nb_dataset_row(d, i, &r);
    char *got = trained_text(&r);
    assert_string_equal(got, trained);
    t.n = 0;
    nb_text_puts(&t, "");
    assert_ok(nb_tokenizer_decode(tok, r.ids, r.prompt_n, false, &t));
    assert_string_equal(t.s, prompt);
    assert_string_equal(r.reference, reference);
    assert_int_equal(r.labels[0], NB_IGNORE);
    free(got);
    nb_text_free(&t);
}

/* ---- types ---- */

static void test_completion(void **s) {
    (void)s;
    nb_config c = config();
    entry(&c, put("t.jsonl", "{\"text\": \"Once upon a time\"}\n{\"text\": \"see <|im_end|> here\"}\n"),
          NB_DATA_COMPLETION);
    nb_dataset *d = open_set(&c, 64);
    nb_row r;
    nb_ids ids = {0};
    nb_dataset_row(d, 0, &r);
    assert_ok(nb_tokenizer_encode(tok, "Once upon a time", 16, NB_TOK_SPECIAL, &ids));
    if (ids.id[ids.n - 1] != nb_tokenizer_eos(tok)) nb_ids_add(&ids, nb_tokenizer_eos(tok), 16);
    assert_int_equal(r.n, ids.n);
    assert_memory_equal(r.ids, ids.id, (size_t)r.n * 4);
    assert_memory_equal(r.labels + 1, ids.id + 1, (size_t)(r.n - 1) * 4);
    assert_int_equal(r.labels[0], NB_IGNORE);
    assert_int_equal(r.prompt_n, 0);
    assert_string_equal(r.reference, "");
    assert_int_equal(r.trained, r.n - 1);
    int64_t first = nb_tokenizer_adds_bos(tok) ? 0 : ids.start[1];
    assert_int_equal(r.trained_bytes, 16 - first);
    assert_string_equal(nb_dataset_name(d), "t");
    nb_dataset_row(d, 1, &r); /* a control token spelled out in data is text */
    for (int32_t i = 0; i < r.n; i++) assert_true(r.ids[i] != nb_tokenizer_token_id(tok, "<|im_end|>"));
    assert_int_equal(r.line, 2);
    nb_ids_free(&ids);
    nb_dataset_free(d);
    nb_config_free(&c);
}

static void test_prompt_completion(void **s) {
    (void)s;
    nb_config c = config();
    entry(&c, put("pc.csv", "prompt,completion\nWhat is it?,\" A cat, maybe\"\nSay nothing.,\n"),
          NB_DATA_PROMPT_COMPLETION);
    nb_dataset *d = open_set(&c, 64);
    expect_row(d, 0, "What is it? A cat, maybe<|endoftext|>", " A cat, maybe<|endoftext|>", "What is it?",
               " A cat, maybe");
    expect_row(d, 1, "Say nothing.<|endoftext|>", "<|endoftext|>", "Say nothing.", "");
    nb_row r;
    nb_dataset_row(d, 0, &r);
    assert_int_equal(r.trained_bytes, 13);
    nb_dataset_free(d);
    c.train_on_inputs = true;
    d = open_set(&c, 64);
    nb_dataset_row(d, 0, &r);
    assert_int_equal(r.trained, r.n - 1);
    assert_string_equal(r.reference, " A cat, maybe");
    nb_dataset_free(d);
    nb_config_free(&c);
}

/* A token that begins in the prompt and ends in the completion belongs to the prompt. */
static void test_boundary_inside_a_token(void **s) {
    (void)s;
    nb_config c = config();
    entry(&c, put("b.jsonl", "{\"prompt\": \"He said th\", \"completion\": \"e house\"}"), NB_DATA_PROMPT_COMPLETION);
    nb_dataset *d = open_set(&c, 64);
    nb_ids ids = {0};
    assert_ok(nb_tokenizer_encode(tok, "He said the house", 17, 0, &ids));
    int64_t first = 0;
    while (ids.start[first] < 10) first++;
    nb_row r;
    nb_dataset_row(d, 0, &r);
    assert_memory_equal(r.ids, ids.id, (size_t)ids.n * 4);
    assert_int_equal(r.prompt_n, first);
    assert_string_equal(r.reference, &"He said the house"[ids.start[first]]);
    for (int32_t i = 0; i < r.n; i++) assert_int_equal(r.labels[i] != NB_IGNORE, i >= first);
    nb_ids_free(&ids);
    nb_dataset_free(d);
    nb_config_free(&c);
}

#define BELOW "Below is an instruction that describes a task"
#define REQUEST "Write a response that appropriately completes the request.\n\n### Instruction:\n"
static void test_alpaca(void **s) {
    (void)s;
    nb_config c = config();
    entry(&c,
          put("al.json", "[{\"instruction\": \"Add.\", \"input\": \"1 2\", \"output\": 3},"
                         " {\"instruction\": \"Hi\", \"output\": \"Hello\"},"
                         " {\"instruction\": \"Hi\", \"input\": \"\", \"output\": \"Ho\", \"system\": \"Sing.\"}]"),
          NB_DATA_ALPACA);
    nb_dataset *d = open_set(&c, 256);
    expect_row(d, 0,
               BELOW ", paired with an input that provides further context. " REQUEST
                     "Add.\n\n### Input:\n1 2\n\n### Response:\n"
                     "3<|endoftext|>",
               "3<|endoftext|>",
               BELOW ", paired with an input that provides further context. " REQUEST
                     "Add.\n\n### Input:\n1 2\n\n### Response:\n",
               "3");
    expect_row(d, 1, BELOW ". " REQUEST "Hi\n\n### Response:\nHello<|endoftext|>", "Hello<|endoftext|>",
               BELOW ". " REQUEST "Hi\n\n### Response:\n", "Hello");
    expect_row(d, 2, "Sing.\n\n### Instruction:\nHi\n\n### Response:\nHo<|endoftext|>", "Ho<|endoftext|>",
               "Sing.\n\n### Instruction:\nHi\n\n### Response:\n", "Ho");
    nb_dataset_free(d);
    nb_config_free(&c);
}

static void test_tokenized(void **s) {
    (void)s;
    nb_config c = config();
    entry(&c,
          put("tk.jsonl",
              "{\"input_ids\": [5, 6, 7, 8, 9], \"labels\": [-100, -100, 7, -100, 9]}\n{\"input_ids\": [4, 5, 6]}\n"),
          NB_DATA_TOKENIZED);
    nb_dataset *d = open_set(&c, 64);
    nb_row r;
    nb_dataset_row(d, 0, &r);
    const int32_t labels[] = {-100, -100, 7, -100, 9}, ids[] = {5, 6, 7, 8, 9};
    assert_int_equal(r.n, 5);
    assert_memory_equal(r.ids, ids, sizeof ids);
    assert_memory_equal(r.labels, labels, sizeof labels);
    assert_int_equal(r.prompt_n, 4);
    nb_dataset_row(d, 1, &r);
    assert_int_equal(r.trained, 2);
    assert_int_equal(r.prompt_n, 0);
    nb_dataset_free(d);
    nb_config_free(&c);
}

static void test_row_errors(void **s) {
    (void)s;
    const struct {
        int type;
        const char *text, *message;
    } cases[] = {
        {NB_DATA_COMPLETION, "{\"text\": \"ok\"}\n{\"txt\": \"x\", \"id\": 3}",
         "x.jsonl:2: no field \"text\" in this row, which has \"txt\", "
         "\"id\"; say which field holds it: field_text: txt"},
        {NB_DATA_COMPLETION, "{\"text\": null}", "\"text\" (null)"},
        {NB_DATA_COMPLETION, "{\"text\": \"\"}", "x.jsonl:1: the text of this row is empty"},
        {NB_DATA_COMPLETION, "{\"text\": [1]}", "field \"text\" should be text, not array"},
        {NB_DATA_PROMPT_COMPLETION, "{\"prompt\": \"x\"}", "field_completion: NAME"},
        {NB_DATA_CHAT_TEMPLATE, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
         "x.jsonl:1: nothing in this row is trained on"},
        {NB_DATA_CHAT_TEMPLATE, "{\"messages\": []}", "x.jsonl:1: the conversation has no messages"},
        {NB_DATA_CHAT_TEMPLATE, "{\"conversations\": []}", "field_messages"},
        {NB_DATA_CHAT_TEMPLATE, "{\"messages\": [{\"role\": \"bot\", \"content\": \"x\"}]}",
         "message 1 has the unknown role \"bot\""},
        {NB_DATA_CHAT_TEMPLATE, "{\"messages\": [{\"from\": \"user\", \"value\": \"x\"}]}",
         "message_property_mappings: {role: from}"},
        {NB_DATA_CHAT_TEMPLATE, "{\"messages\": [\"x\"]}", "message 1 should be an object"},
        {NB_DATA_TOKENIZED, "{\"input_ids\": [1, 99999999]}", "input_ids[1] should be a token id from 0 to"},
        {NB_DATA_TOKENIZED, "{\"input_ids\": [1, 2], \"labels\": [-100]}", "2 input_ids but 1 labels"},
        {NB_DATA_TOKENIZED, "{\"input_ids\": [1, 2], \"labels\": [2, -100]}", "labels[0] should be -100"},
        {NB_DATA_TOKENIZED, "{\"input_ids\": [1, 2], \"labels\": [1, -100]}", "nothing in this row is trained on"},
    };
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_config c = config();
        nb_dataset *d;
        entry(&c, put("x.jsonl", cases[i].text), cases[i].type);
        assert_fails(nb_dataset_open(&d, &c, &c.datasets[0], tok, 64), NB_EINPUT, cases[i].message);
        nb_config_free(&c);
    }
}

/* ---- too long, twice, and the ledger ---- */

static const char *number_rows(const char *name, int rows, int longest, uint64_t seed) {
    nb_rng rng = nb_rng_open(seed, NB_RNG_TEST, 0);
    nb_text t = {0};
    for (int i = 0; i < rows; i++) {
        int n = 2 + (int)nb_rng_below(&rng, (uint64_t)longest - 1), masked = (int)nb_rng_below(&rng, (uint64_t)n - 1);
        nb_text ids = {0}, labels = {0};
        for (int k = 0; k < n; k++) {
            int id = (int)nb_rng_below(&rng, 3); /* few, so that short rows repeat */
            nb_text_printf(&ids, "%s%d", k ? "," : "", id);
            nb_text_printf(&labels, "%s%d", k ? "," : "", k <= masked ? NB_IGNORE : id);
        }
        nb_text_printf(&t, "{\"input_ids\":[%s],\"labels\":[%s]}\n", ids.s, labels.s);
        nb_text_free(&ids);
        nb_text_free(&labels);
    }
    const char *path = put_n(name, t.s, t.n);
    nb_text_free(&t);
    return path;
}

static void test_ledger(void **s) {
    (void)s;
    const int strategies[] = {NB_EXCESS_SPLIT, NB_EXCESS_TRUNCATE, NB_EXCESS_DROP};
    for (int trial = 0; trial < 60; trial++) {
        nb_config c = config();
        nb_config_dataset *e =
            entry(&c, number_rows("n.jsonl", 1 + trial * 3, 4 + trial % 30, (uint64_t)trial), NB_DATA_TOKENIZED);
        c.excess_length_strategy = strategies[trial % 3];
        c.dataset_exact_deduplication = trial % 2;
        e->chunk_overlap = trial % 4;
        nb_dataset *d, *whole;
        nb_status st = nb_dataset_open(&d, &c, e, tok, 7 + trial % 5);
        c.excess_length_strategy = NB_EXCESS_DROP;
        whole = open_set(&c, 100000);
        const nb_ledger *w = nb_dataset_ledger(whole);
        if (st != NB_OK) { /* every row too long for "drop" or trained only behind the cut */
            assert_non_null(strstr(nb_message(), "no row is left"));
        } else {
            const nb_ledger *l = nb_dataset_ledger(d);
            int64_t rows = nb_dataset_rows(d), tokens = 0, trained = 0, longest = 0;
            for (int64_t i = 0; i < rows; i++) {
                nb_row r;
                nb_dataset_row(d, i, &r);
                tokens += r.n;
                trained += r.trained;
                longest = r.n > longest ? r.n : longest;
                int32_t count = 0;
                for (int32_t k = 1; k < r.n; k++) count += r.labels[k] != NB_IGNORE;
                assert_int_equal(count, r.trained);
                assert_true(count > 0);
            }
            assert_ok(nb_ledger_check(l, "d"));
            assert_int_equal(l->rows_in, 1 + trial * 3);
            assert_int_equal(l->rows_out, rows);
            assert_int_equal(l->tokens_out, tokens);
            assert_int_equal(l->tokens_trained, trained);
            assert_true(longest <= 7 + trial % 5);
            assert_int_equal(l->tokens_in, w->tokens_in);
            assert_int_equal(l->rows_dropped_duplicate, w->rows_dropped_duplicate);
            if (strategies[trial % 3] == NB_EXCESS_SPLIT) assert_int_equal(l->tokens_trained, w->tokens_trained);
            else assert_true(l->tokens_trained <= w->tokens_trained);
            nb_dataset_free(d);
        }
        nb_dataset_free(whole);
        nb_config_free(&c);
    }
    nb_ledger wrong = {.rows_in = 2, .rows_out = 1};
    assert_fails(nb_ledger_check(&wrong, "d"), NB_EINPUT, "does not balance");
}

static void test_split_loses_nothing(void **s) {
    (void)s;
    nb_config c = config();
    nb_text text = {0};
    for (int i = 0; i < 200; i++) nb_text_printf(&text, "Line %d of the story.\n", i);
    nb_config_dataset *e = entry(&c, put("long.txt", text.s), NB_DATA_COMPLETION);
    nb_dataset *whole = open_set(&c, 100000), *d;
    assert_fails(nb_dataset_open(&d, &c, e, tok, 32), NB_EINPUT, "excess_length_strategy: split");
    c.excess_length_strategy = NB_EXCESS_SPLIT;
    nb_row all, r;
    nb_dataset_row(whole, 0, &all);
    for (int overlap = 0; overlap < 9; overlap += 4) {
        e->chunk_overlap = overlap;
        d = open_set(&c, 32);
        int64_t at = 0, step = overlap > 1 ? overlap : 1;
        for (int64_t i = 0; i < nb_dataset_rows(d); i++) {
            nb_dataset_row(d, i, &r);
            if (i) at -= step;
            assert_memory_equal(r.ids, all.ids + at, (size_t)r.n * 4);
            for (int32_t k = 0; k < r.n; k++) assert_int_equal(r.labels[k] == NB_IGNORE, i ? k < step : k < 1);
            at += r.n;
        }
        assert_int_equal(at, all.n);
        assert_int_equal(nb_dataset_ledger(d)->tokens_trained, all.trained);
        assert_int_equal(nb_dataset_ledger(d)->bytes_in, all.trained_bytes);
        nb_dataset_free(d);
    }
    e->chunk_overlap = 32;
    assert_fails(nb_dataset_open(&d, &c, e, tok, 32), NB_EINPUT, "chunk.overlap 32");
    nb_dataset_free(whole);
    nb_text_free(&text);
    nb_config_free(&c);
}

static void test_raise_names_the_longest(void **s) {
    (void)s;
    nb_config c = config();
    nb_dataset *d;
    nb_config_dataset *e =
        entry(&c, put("r.jsonl", "{\"input_ids\":[1,2,3]}\n{\"input_ids\":[1,2,3,4,5,6]}\n{\"input_ids\":[1,2,3,4,5]}"),
              NB_DATA_TOKENIZED);
    assert_fails(nb_dataset_open(&d, &c, e, tok, 4), NB_EINPUT,
                 "2 of 3 rows are longer than sequence_len 4; the longest has 6 tokens");
    assert_non_null(strstr(nb_message(), "r.jsonl:2"));
    assert_non_null(strstr(nb_message(), "sequence_len: 6"));
    nb_config_free(&c);
}

/* ---- cache ---- */

static void test_cache(void **s) {
    (void)s;
    char folder[300], file[600], **names;
    int n;
    struct stat before, after;
    nb_config c = config();
    snprintf(folder, sizeof folder, "%s/prepared", nb_test_tmp());
    free(c.dataset_prepared_path);
    c.dataset_prepared_path = nb_strdup(folder);
    entry(&c, put("c.jsonl", "{\"text\": \"one two\"}\n{\"text\": \"three\"}\n"), NB_DATA_COMPLETION);
    nb_dataset *d = open_set(&c, 64);
    nb_hex first;
    memcpy(first, nb_dataset_sha256(d), sizeof first);
    nb_dataset_free(d);
    assert_ok(nb_list_dir(folder, &names, &n));
    assert_int_equal(n, 1);
    snprintf(file, sizeof file, "%s/%s", folder, names[0]);
    assert_int_equal(stat(file, &before), 0);
    d = open_set(&c, 64); /* from the cache: the file stays the same one */
    expect_text(d, 1, "three<|endoftext|>");
    assert_int_equal(stat(file, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_string_equal(nb_dataset_sha256(d), first);
    nb_dataset_free(d);

    char *data;
    size_t size;
    assert_ok(nb_file_read(file, &data, &size));
    for (int trial = 0; trial < 40; trial++) { /* one byte wrong anywhere, or the end missing: seen and built anew */
        size_t at = (size_t)trial * size / 40, keep = trial % 5 == 4 ? at : size;
        data[at] ^= 4;
        assert_ok(nb_file_write(file, data, keep));
        data[at] ^= 4;
        d = open_set(&c, 64);
        assert_int_equal(nb_dataset_rows(d), 2);
        assert_string_equal(nb_dataset_sha256(d), first);
        nb_dataset_free(d);
        char *again;
        size_t again_size;
        assert_ok(nb_file_read(file, &again, &again_size));
        assert_int_equal(again_size, size);
        assert_memory_equal(again, data, size);
        free(again);
    }
    free(data);

    put("c.jsonl", "{\"text\": \"one two\"}\n{\"text\": \"thref\"}\n"); /* one byte of the data */
    d = open_set(&c, 64);
    assert_string_not_equal(nb_dataset_sha256(d), first);
    expect_text(d, 1, "thref<|endoftext|>");
    nb_dataset_free(d);
    put("c.jsonl", "{\"text\": \"one two\"}\n{\"text\": \"three\"}\n");
    c.train_on_inputs = true; /* a setting */
    d = open_set(&c, 64);
    assert_string_not_equal(nb_dataset_sha256(d), first);
    nb_dataset_free(d);
    for (int i = 0; i < n; i++) free(names[i]);
    free(names);
    nb_config_free(&c);
}

static void test_threads_agree(void **s) {
    (void)s;
    nb_config c = config();
    entry(&c, number_rows("par.jsonl", 3000, 40, 9), NB_DATA_TOKENIZED);
    nb_row x, y;
    nb_threads_set(1);
    nb_dataset *one = open_set(&c, 64);
    nb_threads_set(4);
    nb_dataset *four = open_set(&c, 64);
    nb_threads_set(0);
    assert_int_equal(nb_dataset_rows(one), 3000);
    for (int64_t i = 0; i < 3000; i++) {
        nb_dataset_row(one, i, &x);
        nb_dataset_row(four, i, &y);
        assert_int_equal(x.n, y.n);
        assert_int_equal(x.line, i + 1);
        assert_int_equal(y.line, i + 1);
        assert_memory_equal(x.ids, y.ids, (size_t)x.n * 4);
        assert_memory_equal(x.labels, y.labels, (size_t)x.n * 4);
    }
    nb_dataset_free(one);
    nb_dataset_free(four);
    nb_config_free(&c);
}

/* Of several bad rows the first is named, whatever the threads do. */
static void test_first_error(void **s) {
    (void)s;
    nb_text t = {0};
    for (int i = 1; i <= 500; i++) nb_text_printf(&t, i >= 217 ? "{\"no\": 1}\n" : "{\"text\": \"x y\"}\n");
    nb_config c = config();
    nb_dataset *d;
    entry(&c, put("many.jsonl", t.s), NB_DATA_COMPLETION);
    assert_fails(nb_dataset_open(&d, &c, &c.datasets[0], tok, 64), NB_EINPUT, "many.jsonl:217:");
    nb_text_free(&t);
    nb_config_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_completion),
        cmocka_unit_test(test_prompt_completion),
        cmocka_unit_test(test_boundary_inside_a_token),
        cmocka_unit_test(test_alpaca),
        cmocka_unit_test(test_tokenized),
        cmocka_unit_test(test_row_errors),
        cmocka_unit_test(test_ledger),
        cmocka_unit_test(test_split_loses_nothing),
        cmocka_unit_test(test_raise_names_the_longest),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_threads_agree),
        cmocka_unit_test(test_first_error),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
