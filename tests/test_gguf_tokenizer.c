/* Tokenizers of GGUF files: the same ids as llama.cpp's, and as the tokenizer that a list was made of. */
#include "adapters/export.h"
#include "adapters/tokenizer_open.h"
#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "data/tokenizer_export.h"
#include "tests/test.h"

static char *tmp_path(const char *name) { return nb_path_join(nb_test_tmp(), name); }

static void expect_ids(const nb_tokenizer *t, const char *name, const char *text, size_t n, const int32_t *want,
                       int64_t n_want) {
    nb_ids ids = {0};
    assert_ok(nb_tokenizer_encode(t, text, n, 0, &ids));
    if (ids.n != n_want || (n_want && memcmp(ids.id, want, (size_t)n_want * sizeof *want) != 0))
        fail_msg("%s: \"%.*s\" has other ids", name, (int)n, text);
    nb_ids_free(&ids);
}

/* The texts of NAME.inp, parted by lines of their own, and the ids that llama.cpp has for them, a line each. */
static void check_vocabulary(const char *name) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char *rel = nb_asprintf("llamacpp-vocab/ggml-vocab-%s.gguf", name), *in = nb_asprintf("%s.inp", VECTORS(rel)),
         *out = nb_asprintf("%s.out", VECTORS(rel)), *texts, *lines;
    size_t n;
    int count = 0;
    nb_tokenizer *t;
    assert_ok(nb_tokenizer_open(&t, VECTORS(rel)));
    assert_ok(nb_file_read(in, &texts, &n));
    assert_ok(nb_file_read(out, &lines, &n));
    char *text = texts, *line = lines, *end;
    for (; (end = strstr(text, mark)); text = end + strlen(mark), count++) {
        int32_t want[256];
        int64_t n_want = 0;
        char *stop = strchr(line, '\n'), *p = line;
        assert_non_null(stop);
        while (p + strspn(p, " ") < stop) want[n_want++] = (int32_t)strtol(p, &p, 10);
        line = stop + 1;
        expect_ids(t, name, text, (size_t)(end - text), want, n_want);
    }
    assert_true(count > 40);
    nb_tokenizer_free(t);
    free(texts), free(lines), free(rel), free(in), free(out);
}

static void test_llamacpp_vocabularies(void **state) {
    (void)state;
    check_vocabulary("gpt-2");
    check_vocabulary("llama-spm");
    check_vocabulary("phi-3");
}

/* Equal ids on texts of many kinds, and the same text back. */
static void expect_equal_tokenizers(const char *name, const nb_tokenizer *a, const nb_tokenizer *b) {
    json_t *texts, *v;
    size_t i;
    assert_ok(nb_json_load(VECTORS("tok/texts.json"), &texts));
    assert_true(json_array_size(texts) > 50);
    json_array_foreach(texts, i, v) {
        const char *s = json_string_value(v);
        size_t n = json_string_length(v);
        nb_ids x = {0};
        nb_text first = {0}, second = {0};
        assert_ok(nb_tokenizer_encode(a, s, n, 0, &x));
        expect_ids(b, name, s, n, x.id, x.n);
        assert_ok(nb_tokenizer_decode(a, x.id, x.n, false, &first));
        assert_ok(nb_tokenizer_decode(b, x.id, x.n, false, &second));
        assert_int_equal(first.n, second.n);
        if (first.n) assert_memory_equal(first.s, second.s, first.n);
        nb_ids_free(&x);
        nb_text_free(&first), nb_text_free(&second);
    }
    json_decref(texts);
}

static void expect_equal_roles(const nb_tokenizer *a, const nb_tokenizer *b) {
    assert_int_equal(nb_tokenizer_bos(a), nb_tokenizer_bos(b));
    assert_int_equal(nb_tokenizer_eos(a), nb_tokenizer_eos(b));
    assert_int_equal(nb_tokenizer_pad(a), nb_tokenizer_pad(b));
    assert_int_equal(nb_tokenizer_adds_bos(a), nb_tokenizer_adds_bos(b));
    assert_int_equal(nb_tokenizer_adds_eos(a), nb_tokenizer_adds_eos(b));
    const char *x = nb_tokenizer_chat_template(a), *y = nb_tokenizer_chat_template(b);
    assert_true(!x == !y && (!x || !strcmp(x, y)));
}

/* A tokenizer, made into a list and back, and saved and loaded, is the same tokenizer. */
static void test_lists(void **state) {
    (void)state;
    static const char *const names[] = {"llama3", "qwen2.5", "smollm2", "gpt2", "phi-2", "phi-4-mini", "olmo1-gptneox",
                                        "llama2", "phi-3", "phi-3-mini", "gemma-cropped"};
    char *dir = tmp_path("tokenizer");
    assert_ok(nb_mkdirs(dir));
    for (int i = 0; i < NB_LEN(names); i++) {
        char *rel = nb_path_join("tok", names[i]);
        nb_tokenizer *t, *made, *saved;
        nb_token_list l;
        assert_ok(nb_tokenizer_load(&t, VECTORS(rel)));
        assert_ok(nb_tokenizer_list(t, nb_tokenizer_vocab_size(t) + 3, &l));
        l.strips_right = !strcmp(names[i], "phi-3-mini") || !strcmp(names[i], "phi-4-mini"); /* by the model's name */
        assert_ok(nb_tokenizer_from_list(&made, &l, names[i]));
        assert_ok(nb_tokenizer_save(made, dir));
        assert_ok(nb_tokenizer_load(&saved, dir));
        assert_int_equal(nb_tokenizer_vocab_size(made), nb_tokenizer_vocab_size(t));
        expect_equal_tokenizers(names[i], t, made);
        expect_equal_tokenizers(names[i], made, saved);
        expect_equal_roles(t, made);
        expect_equal_roles(made, saved);
        nb_token_list_free(&l);
        nb_tokenizer_free(t), nb_tokenizer_free(made), nb_tokenizer_free(saved);
        free(rel);
    }
    free(dir);
}

/* Added tokens and roles of a tokenizer that came from a list are saved with it. */
static void test_list_grows(void **state) {
    (void)state;
    char *file = tmp_path("llama.gguf"), *dir = tmp_path("grown");
    nb_export_report r;
    nb_tokenizer *t, *saved;
    int32_t id;
    assert_ok(nb_mkdirs(dir));
    assert_ok(nb_export_gguf("tests/golden/llama", "a model", file, NULL, true, &r));
    assert_ok(nb_tokenizer_open(&t, file));
    int n = nb_tokenizer_vocab_size(t);
    assert_ok(nb_tokenizer_add(t, "<box>", true, &id));
    assert_int_equal(id, n);
    assert_ok(nb_tokenizer_set_special(t, "pad_token", "<box>"));
    assert_ok(nb_tokenizer_save(t, dir));
    assert_ok(nb_tokenizer_load(&saved, dir));
    assert_int_equal(nb_tokenizer_token_id(saved, "<box>"), n);
    assert_int_equal(nb_tokenizer_pad(saved), n);
    nb_tokenizer_free(t), nb_tokenizer_free(saved);
    free(file), free(dir);
}

static void test_bad_lists(void **state) {
    (void)state;
    char *tokens[] = {"a", "b", "ab", "a"}, *merges[] = {"a b"};
    float scores[] = {0, 0, -1, NAN};
    int32_t types[] = {1, 1, 1, 1};
    nb_token_list l = {.model = "gpt2", .pre = "gpt-2", .n = 3, .token = tokens, .type = types, .merge = merges,
                       .n_merges = 1, .bos = 7, .eos = -1, .unk = -1, .pad = -1};
    nb_tokenizer *t;
    assert_ok(nb_tokenizer_from_list(&t, &l, "list"));
    expect_ids(t, "small", "ab", 2, (int32_t[]){2}, 1);
    assert_int_equal(nb_tokenizer_bos(t), -1);
    nb_tokenizer_free(t);
    l.n = 4;
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EINPUT, "two ids");
    l.n = 3, merges[0] = "ab";
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EINPUT, "merge 0 is not two tokens");
    merges[0] = "a c";
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EINPUT, "not in the vocabulary");
    merges[0] = "a b", types[1] = 9;
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EINPUT, "token 1 has the unknown type 9");
    types[1] = 1, tokens[0] = "\xff";
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EINPUT, "not valid UTF-8");
    tokens[0] = "a", l.pre = "falcon";
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EUNSUPPORTED, "tokenizer.ggml.pre \"falcon\" is not known");
    l.model = "t5";
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EUNSUPPORTED, "tokenizer.ggml.model \"t5\"");
    l.model = "llama";
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EINPUT, "scores are missing");
    l.score = scores, l.n = 4;
    assert_fails(nb_tokenizer_from_list(&t, &l, "list"), NB_EINPUT, "not finite");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llamacpp_vocabularies), cmocka_unit_test(test_lists), cmocka_unit_test(test_list_grows),
        cmocka_unit_test(test_bad_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
