/* The tokenizer against ids of Hugging Face's tokenizers library and of SentencePiece, on real tokenizers. */
#include "tests/test.h"

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/mem.h"
#include "data/tokenizer.h"

static void expect_ids(const char *what, const json_t *want, const nb_ids *got, const char *text) {
    bool same = (int64_t)json_array_size(want) == got->n;
    for (int64_t i = 0; i < got->n && same; i++)
        same = json_integer_value(json_array_get(want, (size_t)i)) == got->id[i];
    if (same) return;
    nb_text list = {0};
    for (int64_t i = 0; i < got->n && i < 60; i++) nb_text_printf(&list, " %d", got->id[i]);
    fail_msg("%s: \"%.80s\": got%s, want %.300s", what, text, list.s ? list.s : "", json_dumps(want, JSON_COMPACT));
}

/* Starts never decrease and stay inside the text. */
static void expect_starts(const nb_ids *x, size_t n) {
    for (int64_t i = 0; i < x->n; i++) {
        assert_true(x->start[i] >= (i ? x->start[i - 1] : 0));
        assert_true(x->start[i] <= (int64_t)n);
    }
}

static void stream(const nb_tokenizer *t, const nb_ids *ids, bool skip, nb_text *out) {
    nb_decoder *d = nb_decoder_open(t, skip);
    for (int64_t i = 0; i < ids->n; i++) {
        assert_ok(nb_decoder_push(d, ids->id[i], out));
    }
    nb_decoder_flush(d, out);
    nb_decoder_free(d);
}

static void check_text(const nb_tokenizer *t, const char *name, const json_t *v, const json_t *want, int flags) {
    const char *text = json_string_value(json_object_get(v, "text"));
    size_t n = json_string_length(json_object_get(v, "text"));
    nb_ids ids = {0};
    assert_ok(nb_tokenizer_encode(t, text, n, flags, &ids));
    expect_ids(name, want, &ids, text);
    expect_starts(&ids, n);
    nb_ids_free(&ids);
}

static void check_decoded(const nb_tokenizer *t, const char *name, const json_t *v, const json_t *list, bool skip) {
    const char *want = json_string_value(json_object_get(v, "decoded"));
    size_t n = json_string_length(json_object_get(v, "decoded"));
    nb_ids ids = {0};
    nb_text whole = {0}, parts = {0};
    for (size_t i = 0; i < json_array_size(list); i++)
        nb_ids_add(&ids, (int32_t)json_integer_value(json_array_get(list, i)), 0);
    assert_ok(nb_tokenizer_decode(t, ids.id, ids.n, skip, &whole));
    if (whole.n != n || (n && memcmp(whole.s, want, n)))
        fail_msg("%s: decoded \"%s\", want \"%s\"", name, whole.s, want);
    stream(t, &ids, skip, &parts);
    if (parts.n != n || (n && memcmp(parts.s, want, n)))
        fail_msg("%s: streamed \"%s\", want \"%s\"", name, parts.s, want);
    nb_text_free(&whole);
    nb_text_free(&parts);
    nb_ids_free(&ids);
}

static void check_long(const nb_tokenizer *t, const char *name, const json_t *v, int flags) {
    const char *file = json_string_value(json_object_get(v, "file")), *rel = strstr(file, "corpora/");
    const json_t *sha = json_object_get(v, "bytes_sha256");
    const char *dir = getenv("NIBBLE_CORPORA");
    char *path, *text;
    size_t n;
    if (!rel || !dir) return; /* the third text is not among the corpora */
    path = nb_path_join(dir, rel + strlen("corpora/"));
    assert_ok(nb_file_read(path, &text, &n));
    nb_hex hex;
    nb_sha256_of(text, n, hex);
    if (sha) assert_string_equal(hex, json_string_value(sha));
    nb_ids ids = {0};
    assert_ok(nb_tokenizer_encode(t, text, n, flags, &ids));
    assert_int_equal(ids.n, json_integer_value(json_object_get(v, "n_tokens")));
    nb_sha256_of(ids.id, (size_t)ids.n * 4, hex);
    if (strcmp(hex, json_string_value(json_object_get(v, "ids_le_int32_sha256"))))
        fail_msg("%s: %s differs", name, file);
    expect_starts(&ids, n);
    nb_ids_free(&ids);
    free(text);
    free(path);
}

/* vectors.json: the library's ids of 121 texts with and without special tokens, and hashes of books. */
static void check_folder(const char *rel) {
    char *path = nb_path_join(VECTORS(rel), "vectors.json");
    json_t *root, *v;
    nb_tokenizer *t;
    size_t i;
    assert_ok(nb_json_load(path, &root));
    assert_ok(nb_tokenizer_load(&t, VECTORS(rel)));
    assert_true(json_array_size(json_object_get(root, "vectors")) > 100);
    json_array_foreach(json_object_get(root, "vectors"), i, v) {
        check_text(t, rel, v, json_object_get(v, "ids"), NB_TOK_SPECIAL);
        check_text(t, rel, v, json_object_get(v, "ids_nospecial"), 0);
        check_decoded(t, rel, v, json_object_get(v, "ids_nospecial"), false);
    }
    json_array_foreach(json_object_get(root, "long_texts"), i, v) check_long(t, rel, v, 0);
    nb_tokenizer_free(t);
    json_decref(root);
    free(path);
}

#define FOLDER(name, rel) static void name(void **state) { (void)state; check_folder(rel); }
FOLDER(folder_llama2, "tok/llama2")
FOLDER(folder_llama3, "tok/llama3")
FOLDER(folder_qwen25, "tok/qwen2.5")
FOLDER(folder_smollm2, "tok/smollm2")
FOLDER(folder_gpt2, "tok/gpt2")
FOLDER(folder_phi2, "tok/phi-2")
FOLDER(folder_phi3, "tok/phi-3")
FOLDER(folder_phi3_mini, "tok/phi-3-mini")
FOLDER(folder_phi4_mini, "tok/phi-4-mini")
FOLDER(folder_gptneox, "tok/olmo1-gptneox")
FOLDER(folder_pair_merges, "tok/tiny-random-llama")
FOLDER(folder_gemma_cropped, "tok/gemma-cropped")
FOLDER(folder_stories, "stories260K-hf")

/* tokenizer.model against SentencePiece, which knows no special tokens in text. */
static void model_llama2(void **state) {
    (void)state;
    json_t *root, *v;
    nb_tokenizer *t;
    size_t i;
    assert_ok(nb_json_load(VECTORS("tok/llama2/tokenizer.model.vectors.json"), &root));
    assert_ok(nb_tokenizer_load(&t, VECTORS("tok/llama2/tokenizer.model")));
    assert_int_equal(nb_tokenizer_vocab_size(t), 32000);
    json_array_foreach(json_object_get(root, "vectors"), i, v) {
        check_text(t, "llama2 tokenizer.model", v, json_object_get(v, "ids"), NB_TOK_PLAIN);
        check_decoded(t, "llama2 tokenizer.model", v, json_object_get(v, "ids"), true);
    }
    json_array_foreach(json_object_get(root, "long_texts"), i, v) check_long(t, "tokenizer.model", v, NB_TOK_PLAIN);
    assert_int_equal(nb_tokenizer_bos(t), 1);
    assert_true(nb_tokenizer_adds_bos(t) && !nb_tokenizer_adds_eos(t));
    nb_tokenizer_free(t);
    json_decref(root);
}

/* With special tokens read from the text, tokenizer.model gives what tokenizer.json gives. */
static void model_stories(void **state) {
    (void)state;
    json_t *root, *v;
    nb_tokenizer *t;
    size_t i;
    assert_ok(nb_json_load(VECTORS("stories260K-hf/vectors.json"), &root));
    assert_ok(nb_tokenizer_load(&t, VECTORS("stories260K-hf/tokenizer.model")));
    json_array_foreach(json_object_get(root, "vectors"), i, v) {
        check_text(t, "stories tokenizer.model", v, json_object_get(v, "ids"), NB_TOK_SPECIAL);
        check_text(t, "stories tokenizer.model", v, json_object_get(v, "ids_nospecial"), 0);
    }
    json_array_foreach(json_object_get(root, "long_texts"), i, v) check_long(t, "tokenizer.model", v, 0);
    nb_tokenizer_free(t);
    json_decref(root);
}

/* Unigram models against SentencePiece itself. */
static void check_spm(const char *name) {
    char file[160], vectors[180];
    json_t *root, *v;
    nb_tokenizer *t;
    size_t i;
    snprintf(file, sizeof file, "tok/spm/%s.model", name);
    snprintf(vectors, sizeof vectors, "%s.vectors.json", file);
    assert_ok(nb_json_load(VECTORS(vectors), &root));
    assert_ok(nb_tokenizer_load(&t, VECTORS(file)));
    assert_true(json_array_size(json_object_get(root, "vectors")) > 100);
    json_array_foreach(json_object_get(root, "vectors"), i, v) {
        check_text(t, name, v, json_object_get(v, "ids"), NB_TOK_PLAIN);
        /* SentencePiece writes " \xe2\x81\x87 " for what is unknown */
        if (strstr(json_string_value(json_object_get(v, "decoded")), "\xe2\x81\x87")) continue;
        check_decoded(t, name, v, json_object_get(v, "ids"), true);
    }
    json_array_foreach(json_object_get(root, "long_texts"), i, v) check_long(t, name, v, NB_TOK_PLAIN);
    nb_tokenizer_free(t);
    json_decref(root);
}

#define SPM(name, file) static void name(void **state) { (void)state; check_spm(file); }
SPM(spm_albert, "albert_spiece")
SPM(spm_plain, "test_sentencepiece")
SPM(spm_bytes, "test_sentencepiece_with_bytefallback")
SPM(spm_m, "torchtune_m")
SPM(spm_t5, "torchtune_t5_sentencepiece")

/* What transformers.js expects of the same tokenizers. */
static void check_transformersjs(const char *file, const char *model, const char *folder, int flags, bool decode) {
    json_t *root, *v;
    nb_tokenizer *t;
    const char *key;
    int n = 0;
    assert_ok(nb_json_load(VECTORS(file), &root));
    assert_ok(nb_tokenizer_load(&t, VECTORS(folder)));
    json_object_foreach(json_object_get(root, model), key, v) {
        if (!json_is_string(json_object_get(v, "text"))) continue;
        check_text(t, model, v, json_object_get(v, "ids"), flags);
        if (decode) check_decoded(t, model, v, json_object_get(v, "ids"), false);
        n++;
    }
    assert_true(n > 10);
    nb_tokenizer_free(t);
    json_decref(root);
}

static void transformersjs(void **state) {
    (void)state;
    check_transformersjs("transformersjs/llama.json", "Xenova/llama-tokenizer", "tok/llama2", NB_TOK_SPECIAL, true);
    check_transformersjs("transformersjs/llama.json", "Xenova/llama3-tokenizer", "tok/llama3", 0, false);
    /* GPT-2's expected decodings are tidied up (" ." -> "."), which nibble never does */
    check_transformersjs("transformersjs/gpt2.json", "Xenova/gpt2", "tok/gpt2", NB_TOK_SPECIAL, false);
    check_transformersjs("transformersjs/gpt2.json", "openai-community/gpt2", "tok/gpt2", NB_TOK_SPECIAL, false);
    check_transformersjs("transformersjs/falcon.json", "tiiuae/falcon-rw-1b", "tok/gpt2", NB_TOK_SPECIAL, false);
    check_transformersjs("transformersjs/llama.json", "Xenova/llama3-tokenizer-new", "tok/llama3", NB_TOK_SPECIAL,
                        false);
    check_transformersjs("transformersjs/qwen2.json", "Xenova/Qwen1.5-0.5B-Chat", "tok/qwen2.5", NB_TOK_SPECIAL, true);
}

/* llama.cpp's vocabulary tests: texts separated by a line, ids one line each. */
static void check_llamacpp(const char *rel, const char *folder) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char name[128], *texts, *ids_text;
    size_t n;
    nb_tokenizer *t;
    int count = 0;
    snprintf(name, sizeof name, "llamacpp-vocab/%s.gguf.out", rel);
    assert_ok(nb_file_read(VECTORS("llamacpp-vocab/ggml-vocab-llama-spm.gguf.inp"), &texts, &n));
    assert_ok(nb_file_read(VECTORS(name), &ids_text, &n));
    assert_ok(nb_tokenizer_load(&t, VECTORS(folder)));
    for (char *s = texts, *line = ids_text; s;) {
        char *end = strstr(s, separator), *eol = strchr(line, '\n'), *next = line;
        nb_ids ids = {0};
        if (!end) break; /* behind the last separator there is no text */
        if (eol) *eol = 0;
        assert_ok(nb_tokenizer_encode(t, s, (size_t)(end - s), 0, &ids));
        for (int64_t i = 0; i < ids.n; i++) {
            long want = strtol(next, &next, 10);
            if (want != ids.id[i])
                fail_msg("%s: \"%.*s\": id %lld is %d, want %ld", rel, (int)(end - s), s, (long long)i, ids.id[i],
                         want);
        }
        assert_int_equal(strspn(next, " \r"), strlen(next));
        nb_ids_free(&ids);
        s = end + strlen(separator);
        line = eol + 1;
        count++;
    }
    assert_true(count > 40);
    nb_tokenizer_free(t);
    free(texts);
    free(ids_text);
}

static void llamacpp(void **state) {
    (void)state;
    check_llamacpp("ggml-vocab-llama-spm", "tok/llama2");
    check_llamacpp("ggml-vocab-phi-3", "tok/phi-3");
    check_llamacpp("ggml-vocab-gpt-2", "tok/gpt2");
    check_llamacpp("ggml-vocab-llama-bpe", "tok/llama3");
    check_llamacpp("ggml-vocab-qwen2", "tok/qwen2.5");
}

/* T5's ids end in </s>, which its class adds and the model file does not ask for. */
static void transformersjs_t5(void **state) {
    (void)state;
    static const char *const models[] = {"Xenova/t5-small", "google-t5/t5-small"};
    json_t *root, *v;
    nb_tokenizer *t;
    const char *key;
    assert_ok(nb_json_load(VECTORS("transformersjs/t5.json"), &root));
    assert_ok(nb_tokenizer_load(&t, VECTORS("tok/spm/torchtune_t5_sentencepiece.model")));
    for (int i = 0; i < NB_LEN(models); i++)
        json_object_foreach(json_object_get(root, models[i]), key, v) {
            json_t *ids = json_copy(json_object_get(v, "ids"));
            assert_int_equal(json_integer_value(json_array_get(ids, json_array_size(ids) - 1)), nb_tokenizer_eos(t));
            json_array_remove(ids, json_array_size(ids) - 1);
            check_text(t, key, v, ids, 0);
            json_decref(ids);
        }
    nb_tokenizer_free(t);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folder_stories),    cmocka_unit_test(folder_llama2),      cmocka_unit_test(folder_llama3),
        cmocka_unit_test(folder_qwen25),     cmocka_unit_test(folder_smollm2),     cmocka_unit_test(folder_gpt2),
        cmocka_unit_test(folder_phi2),       cmocka_unit_test(folder_phi3),        cmocka_unit_test(folder_phi3_mini),
        cmocka_unit_test(folder_phi4_mini),  cmocka_unit_test(folder_gptneox),     cmocka_unit_test(folder_pair_merges),
        cmocka_unit_test(folder_gemma_cropped), cmocka_unit_test(model_llama2),    cmocka_unit_test(model_stories),
        cmocka_unit_test(spm_albert),        cmocka_unit_test(spm_plain),          cmocka_unit_test(spm_bytes),
        cmocka_unit_test(spm_m),             cmocka_unit_test(spm_t5),             cmocka_unit_test(transformersjs),
        cmocka_unit_test(transformersjs_t5), cmocka_unit_test(llamacpp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
