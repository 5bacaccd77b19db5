/* Small tokenizers written by the tests themselves. */
#ifndef NB_TESTS_TOKENIZER_FIXTURE_H
#define NB_TESTS_TOKENIZER_FIXTURE_H

#include "core/file.h"
#include "core/mem.h"
#include "data/tokenizer.h"
#include "tests/test.h"

#define META "\xe2\x96\x81"

static inline const char *fixture(const char *name, const void *data, size_t n) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", nb_test_tmp(), name);
    assert_ok(nb_file_write(path, data, n));
    return path;
}

/* A tokenizer.json of `sections` (normalizer and the like, each ending in a comma) and `model` (fields of the BPE). */
static inline nb_status load_json(nb_tokenizer **t, const char *sections, const char *model) {
    char *json = nb_asprintf("{%s \"model\": {\"type\": \"BPE\", %s}}", sections, model);
    const char *path = fixture("t.json", json, strlen(json));
    nb_status st = nb_tokenizer_load(t, path);
    free(json);
    return st;
}

/* "vocab": tokens separated by spaces, ids in order from 0 */
static inline char *vocab(const char *tokens) {
    nb_text out = {0};
    char *copy = nb_strdup(tokens), *save = NULL;
    int id = 0;
    nb_text_puts(&out, "\"vocab\": {");
    for (char *s = strtok_r(copy, " ", &save); s; s = strtok_r(NULL, " ", &save))
        nb_text_printf(&out, "%s\"%s\": %d", id ? ", " : "", s, id), id++;
    nb_text_puts(&out, "}");
    free(copy);
    return out.s;
}

static inline nb_tokenizer *make(const char *sections, const char *tokens, const char *rest) {
    nb_tokenizer *t;
    char *v = vocab(tokens), *model = nb_asprintf("%s, %s", v, rest);
    assert_ok(load_json(&t, sections, model));
    free(v);
    free(model);
    return t;
}

/* The text's tokens in their string form, separated by '|'. */
static inline void expect_n(const nb_tokenizer *t, const char *text, size_t n, int flags, const char *want) {
    nb_ids ids = {0};
    nb_text got = {0};
    nb_text_puts(&got, "");
    assert_ok(nb_tokenizer_encode(t, text, n, flags, &ids));
    for (int64_t i = 0; i < ids.n; i++) nb_text_printf(&got, "%s%s", i ? "|" : "", nb_tokenizer_token(t, ids.id[i]));
    assert_string_equal(got.s, want);
    nb_text_free(&got);
    nb_ids_free(&ids);
}
static inline void expect(const nb_tokenizer *t, const char *text, const char *want) {
    expect_n(t, text, strlen(text), 0, want);
}

static inline void expect_starts(const nb_tokenizer *t, const char *text, int flags, const int64_t *want, int n) {
    nb_ids ids = {0};
    assert_ok(nb_tokenizer_encode(t, text, strlen(text), flags, &ids));
    assert_int_equal(ids.n, n);
    for (int i = 0; i < n; i++) assert_int_equal(ids.start[i], want[i]);
    nb_ids_free(&ids);
}

static inline void expect_decoded(const nb_tokenizer *t, const int32_t *ids, int n, bool skip, const char *want) {
    nb_text out = {0};
    nb_text_puts(&out, "");
    assert_ok(nb_tokenizer_decode(t, ids, n, skip, &out));
    assert_string_equal(out.s, want);
    nb_text_free(&out);
}

#define TOKEN(id, text, more) "{\"id\": " #id ", \"content\": \"" text "\", \"special\": true" more "}"

#endif
