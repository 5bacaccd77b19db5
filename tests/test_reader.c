/* Data files as records: every format, folders, and what is wrong with a file. */
#include "tests/test.h"

#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/reader.h"

/* A file in the test's folder. */
static const char *put(const char *name, const char *text) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", nb_test_tmp(), name);
    assert_ok(nb_file_write(path, text, strlen(text)));
    return path;
}

/* The rows a file gives, as compact JSON lines with their line numbers. */
static void expect_rows(const char *path, const char *want) {
    nb_reader r;
    nb_text t = {0};
    nb_text_puts(&t, "");
    assert_ok(nb_reader_open(&r, path));
    for (int64_t i = 0; i < r.n; i++) {
        json_t *obj;
        assert_ok(nb_record_parse(&r, i, &obj));
        char *text = json_dumps(obj, JSON_COMPACT | JSON_SORT_KEYS);
        nb_text_printf(&t, "%lld %s\n", (long long)r.records[i].line, text);
        free(text);
        json_decref(obj);
    }
    assert_string_equal(t.s, want);
    nb_text_free(&t);
    nb_reader_close(&r);
}

static void test_reader_formats(void **s) {
    (void)s;
    expect_rows(put("a.jsonl", "\xEF\xBB\xBF{\"a\": 1}\r\n\n  {\"a\": \"x\\ny\"}"),
                "1 {\"a\":1}\n3 {\"a\":\"x\\ny\"}\n");
    expect_rows(put("a.json", "\n[ {\"a\": \"],{\"},\n {\"a\":\n [1,{\"b\":\"\\\"\"}]} \n]\n"),
                "2 {\"a\":\"],{\"}\n3 {\"a\":[1,{\"b\":\"\\\"\"}]}\n");
    expect_rows(put("c.json", "{\"a\": [1, 2], \"b\": [\"x\", null]}"),
                "1 {\"a\":1,\"b\":\"x\"}\n2 {\"a\":2,\"b\":null}\n");
    expect_rows(put("a.csv", "text,label\r\nplain,1\n\"a, \"\"quoted\"\"\nline\",2\r\n\n,\n last,\"3\""),
                "2 {\"label\":\"1\",\"text\":\"plain\"}\n3 {\"label\":\"2\",\"text\":\"a, \\\"quoted\\\"\\nline\"}\n"
                "6 {\"label\":\"\",\"text\":\"\"}\n7 {\"label\":\"3\",\"text\":\" last\"}\n");
    expect_rows(put("a.tsv", "a\tb\n1,5\t2\n"), "2 {\"a\":\"1,5\",\"b\":\"2\"}\n");
    expect_rows(put("a.txt", "one\ntwo\n"), "1 {\"text\":\"one\\ntwo\\n\"}\n");
}

static void test_reader_folder(void **s) {
    (void)s;
    char dir[400], sub[420];
    snprintf(dir, sizeof dir, "%s/folder", nb_test_tmp());
    snprintf(sub, sizeof sub, "%s/m", dir);
    assert_ok(nb_mkdirs(sub));
    put("folder/z.md", "last");
    put("folder/a.jsonl", "{\"text\": \"first\"}");
    put("folder/m/inner.txt", "middle");
    put("folder/.hidden.txt", "no");
    put("folder/picture.png", "no");
    expect_rows(dir, "1 {\"text\":\"first\"}\n1 {\"text\":\"middle\"}\n1 {\"text\":\"last\"}\n");
}

static void test_reader_errors(void **s) {
    (void)s;
    const struct {
        const char *name, *text, *message;
    } cases[] = {
        {"e1.jsonl", "", "is empty"},
        {"e2.jsonl", "\n \n", "is empty"},
        {"e3.txt", "ab\ncaf\xE9", "e3.txt:2: invalid UTF-8 at byte offset 6 (byte 0xE9)"},
        {"e4.json", "[{\"a\": 1}, {\"a\": ", "e4.json:1: the array is not closed"},
        {"e5.json", "{\"a\": 1}\n{\"a\": 2}\n", "name the file .jsonl"},
        {"e6.json", "{\"a\": [1], \"b\": [1, 2]}", "column \"a\" has 1 values, column \"b\" has 2"},
        {"e7.csv", "a,b\n1,2,3\n", "e7.csv:2: 3 fields, but the header row names 2"},
        {"e8.csv", "a,b\n1,2\n\"x,2\n", "e8.csv:3: a quoted field is never closed"},
        {"e9.csv", "a,a\n", "two columns are called \"a\""},
        {"e10.csv", "a,b\n\"x\" y,2\n", "e10.csv:2: text behind a closing quote"},
        {"e11.parquet", "x", "unknown extension \".parquet\""},
        {"e12.txt", "\xFF\xFEh\0i\0", "UTF-16"},
        {"e13.json", "[1,2]]", "behind the end"},
        {"e14.json", "\n3", "e14.json:2: wanted '['"},
    };
    nb_reader r;
    for (int i = 0; i < NB_LEN(cases); i++)
        assert_fails(nb_reader_open(&r, put(cases[i].name, cases[i].text)), NB_EINPUT, cases[i].message);
    assert_fails(nb_reader_open(&r, "/nowhere/at/all.jsonl"), NB_EIO, "/nowhere/at/all.jsonl: no such file");
    json_t *obj;
    assert_ok(nb_reader_open(&r, put("bad.jsonl", "{\"a\": 1}\n{\"a\": \n[1]\n")));
    assert_fails(nb_record_parse(&r, 1, &obj), NB_EINPUT, "bad.jsonl:2:");
    assert_fails(nb_record_parse(&r, 2, &obj), NB_EINPUT, "bad.jsonl:3: a row should be an object");
    nb_reader_close(&r);
}

/* Damaged files of every kind: an error or other rows, never a crash (run with SAN=1 to see more). */
static void test_reader_survives_damage(void **s) {
    (void)s;
    const struct {
        const char *name, *text;
    } seeds[] = {{"f.jsonl", "{\"text\": \"a \\\"b\\u00e9\"}\n{\"m\": [{\"r\": 1}, null]}\n"},
                 {"f.json", "[{\"a\": \"],{\"}, {\"a\": [1, {\"b\": \"\\\"\"}]}]"},
                 {"g.json", "{\"a\": [1, 2], \"b\": [\"x\", null]}"},
                 {"f.csv", "text,label\r\nplain,1\n\"a, \"\"q\"\"\nline\",2\r\n,\n"}};
    static const char bytes[] = "\"{}[],:\\\n\r \xC3\xFF\x00";
    nb_rng rng = nb_rng_open(5, NB_RNG_TEST, 4);
    int64_t rows = 0, refused = 0;
    for (int i = 0; i < 4000; i++) {
        char text[200], path[512];
        size_t n = strlen(seeds[i % 4].text), at = nb_rng_below(&rng, n);
        memcpy(text, seeds[i % 4].text, n);
        for (uint64_t k = 0; k <= nb_rng_below(&rng, 3); k++)
            text[nb_rng_below(&rng, n)] = bytes[nb_rng_below(&rng, sizeof bytes)];
        if (i % 3 == 0) n = at;
        snprintf(path, sizeof path, "%s/%s", nb_test_tmp(), seeds[i % 4].name);
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        fwrite(text, 1, n, f);
        fclose(f);
        nb_reader r;
        if (nb_reader_open(&r, path) != NB_OK) {
            assert_non_null(strstr(nb_message(), seeds[i % 4].name));
            refused++;
            continue;
        }
        for (int64_t k = 0; k < r.n; k++) {
            json_t *obj;
            if (nb_record_parse(&r, k, &obj) == NB_OK) json_decref(obj), rows++;
        }
        nb_reader_close(&r);
    }
    assert_true(rows > 500 && refused > 500);
}

int main(void) {
    nb_log_set_level(NB_LOG_QUIET);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reader_formats),
        cmocka_unit_test(test_reader_folder),
        cmocka_unit_test(test_reader_errors),
        cmocka_unit_test(test_reader_survives_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
