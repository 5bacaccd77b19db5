/* A megabyte of everything through a tokenizer of every kind: the ids are those of Hugging Face's tokenizers, or for a
 * tokenizer.model of SentencePiece's, and they decode to the same texts. More in golden/tokenizers/make_golden.py.
 *   test_tokenizer_golden --write FILE    writes the text for that script */
#include "tests/test.h"

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "data/tokenizer.h"
#include "tests/mixed_text.h"

static nb_text document[MIXED_DOCUMENTS];
static json_t *golden;

static void expect_hash(const char *name, const char *what, int i, const void *data, size_t n, const json_t *want) {
    nb_hex hex;
    nb_sha256_of(n ? data : "", n, hex);
    hex[8] = 0;
    if (strcmp(hex, json_string_value(json_array_get(want, (size_t)i))))
        fail_msg("%s: the %s of document %d differ", name, what, i);
}

static void check(const char *name, const char *path, const json_t *want) {
    const json_t *texts = json_object_get(want, "texts");
    bool model = strcmp(nb_path_ext(path), ".json") != 0 && !nb_is_dir(path);
    nb_tokenizer *t;
    assert_ok(nb_tokenizer_load(&t, path));
    assert_int_equal(json_array_size(json_object_get(want, "ids")), MIXED_DOCUMENTS);
    for (int i = 0; i < MIXED_DOCUMENTS; i++) {
        nb_ids ids = {0};
        nb_text back = {0};
        assert_ok(nb_tokenizer_encode(t, document[i].s, document[i].n, model ? NB_TOK_PLAIN : NB_TOK_SPECIAL, &ids));
        expect_hash(name, "ids", i, ids.id, (size_t)ids.n * sizeof *ids.id, json_object_get(want, "ids"));
        for (int64_t k = 1; k < ids.n; k++) assert_true(ids.start[k] >= ids.start[k - 1]);
        assert_ok(nb_tokenizer_decode(t, ids.id, ids.n, false, &back));
        if (texts) expect_hash(name, "decoded texts", i, back.s, back.n, texts);
        nb_text_free(&back);
        nb_ids_free(&ids);
    }
    nb_tokenizer_free(t);
}

static void same_text(void **state) {
    (void)state;
    nb_sha256 h = nb_sha256_open();
    nb_hex hex;
    for (int i = 0; i < MIXED_DOCUMENTS; i++) nb_sha256_add(&h, document[i].s, document[i].n);
    nb_sha256_close(&h, hex);
    assert_string_equal(hex, json_string_value(json_object_get(golden, "sha256")));
}

/* Those of the tree, and with NIBBLE_VECTORS the real ones. */
static void check_all(bool real) {
    const char *name;
    json_t *want;
    int n = 0;
    json_object_foreach(json_object_get(golden, "tokenizers"), name, want) {
        char path[128];
        if (!strncmp(name, "tok/", 4) != real) continue;
        snprintf(path, sizeof path, "tests/golden/tokenizers/%s.json", name);
        check(name, real ? VECTORS(name) : path, want);
        n++;
    }
    assert_true(n > 10);
}
static void small(void **state) { (void)state; check_all(false); }
static void real(void **state) { (void)state; check_all(true); }

static int write_text(const char *path) {
    nb_text all = {0};
    for (int i = 0; i < MIXED_DOCUMENTS; i++) {
        uint64_t n = document[i].n;
        nb_text_add(&all, (const char *)&n, sizeof n);
        nb_text_add(&all, document[i].s, n);
    }
    nb_status st = nb_file_write(path, all.s, all.n);
    if (st != NB_OK) fprintf(stderr, "%s\n", nb_message());
    nb_text_free(&all);
    return st != NB_OK;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_text), cmocka_unit_test(small), cmocka_unit_test(real)};
    for (int i = 0; i < MIXED_DOCUMENTS; i++) mixed_document(i, &document[i]);
    if (argc == 3 && !strcmp(argv[1], "--write")) return write_text(argv[2]);
    if (nb_json_load("tests/golden/tokenizers/golden.json", &golden) != NB_OK) {
        fprintf(stderr, "%s\n", nb_message());
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < MIXED_DOCUMENTS; i++) nb_text_free(&document[i]);
    json_decref(golden);
    return failed;
}
