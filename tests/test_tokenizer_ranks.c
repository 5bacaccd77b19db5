/* tokenizer.model as a list of ranks: what a folder says about it, what is saved, and what is refused. */
#include "tests/test.h"

#include "core/file.h"
#include "core/mem.h"
#include "data/tokenizer_export.h"
#include "tests/tokenizer_fixture.h"

/* ---- a list of cl100k's length: all bytes, all pairs of them, and triples ---- */

static void add_line(nb_text *out, const uint8_t *s, int n, int rank) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t x = (uint32_t)s[0] << 16 | (n > 1 ? (uint32_t)s[1] << 8 : 0) | (n > 2 ? s[2] : 0u);
    nb_text_printf(out, "%c%c%c%c %d\n", digits[x >> 18], digits[x >> 12 & 63], n > 1 ? digits[x >> 6 & 63] : '=',
                   n > 2 ? digits[x & 63] : '=', rank);
}

static nb_text make_list(int ranks) {
    nb_text out = {0};
    for (int i = 0; i < ranks; i++) {
        int k = i - 256, j = k - 65536, c = j / 676;
        uint8_t one[] = {(uint8_t)i}, two[] = {(uint8_t)(k >> 8), (uint8_t)k};
        uint8_t three[] = {(uint8_t)('a' + j % 26), (uint8_t)('a' + j / 26 % 26),
                           (uint8_t)(c < 26 ? 'a' + c : c < 52 ? 'A' + c - 26 : 128 + c)};
        add_line(&out, k < 0 ? one : j < 0 ? two : three, k < 0 ? 1 : j < 0 ? 2 : 3, i);
    }
    return out;
}

static const char *folder(const char *name, const nb_text *list, const char *config, const char *model_config) {
    static char dir[512];
    char path[600];
    snprintf(dir, sizeof dir, "%s/%s", nb_test_tmp(), name);
    assert_ok(nb_remove_tree(dir));
    assert_ok(nb_mkdirs(dir));
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    assert_ok(nb_file_write(path, list->s, list->n));
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (config) assert_ok(nb_file_write(path, config, strlen(config)));
    snprintf(path, sizeof path, "%s/config.json", dir);
    if (model_config) assert_ok(nb_file_write(path, model_config, strlen(model_config)));
    return dir;
}

/* Neighbours whose joined bytes have the lowest rank join first; a word that is a token is that token; digits by threes. */
static void joins_by_rank(void **state) {
    (void)state;
    nb_text list = make_list(100256);
    nb_tokenizer *t;
    assert_ok(nb_tokenizer_load(&t, folder("cl100k", &list, NULL, NULL)));
    assert_int_equal(nb_tokenizer_vocab_size(t), 100277);
    expect(t, "cab", "cab");
    expect(t, "cabd", "cab|d");   /* "ab", and then "cab" before "abd" */
    expect(t, "dabc", "dab|c");   /* the first letter counts least */
    expect(t, "abcab", "ab|cab"); /* two "ab"; then "cab" before "abc" */
    expect(t, "1234", "12|3|4");
    expect(t, "a<|endoftext|>\n", "a|<|endoftext|>|\xc4\x8a");
    /* "<|", and "do" before "en", "ex" and "ft"; then "ext" */
    expect_n(t, "<|endoftext|>", 13, NB_TOK_PLAIN, "<||en|do|ft|ext||>");
    assert_int_equal(nb_tokenizer_eos(t), 100257);
    assert_int_equal(nb_tokenizer_bos(t), -1);
    assert_false(nb_tokenizer_adds_bos(t));
    expect_decoded(t, (int32_t[]){100257, 0xe2, 0x82, 0xac}, 4, false, "<|endoftext|>\xe2\x82\xac");
    nb_tokenizer_free(t);
    nb_text_free(&list);
}

/* The folder's files go before what is known of the vocabulary. */
static void names_tokens(void **state) {
    (void)state;
    static const char short_context[] = "{\"max_position_embeddings\": 8192}";
    static const char eos_list[] = "{\"max_position_embeddings\": 131072, \"eos_token_id\": [128008, 128009]}";
    static const char own[] = "{\"added_tokens_decoder\": {\"128004\": {\"content\": \"<|pad|>\", \"special\": true},"
                              " \"128256\": {\"content\": \"<|image|>\", \"special\": true, \"rstrip\": true}},"
                              " \"eos_token\": \"<|eot_id|>\", \"pad_token\": \"<|pad|>\", \"add_bos_token\": false}";
    static const struct {
        const char *config, *model_config, *id4, *id5, *id10, *last;
        int size, eos, ends, first_end;
        bool bos;
    } cases[] = {
        {NULL, NULL, "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|python_tag|>",
         "<|reserved_special_token_247|>", 128256, 128001, 3, 128001, true},
        {NULL, short_context, "<|reserved_special_token_2|>", "<|reserved_special_token_3|>",
         "<|reserved_special_token_5|>", "<|reserved_special_token_250|>", 128256, 128001, 2, 128001, true},
        {NULL, eos_list, "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|python_tag|>",
         "<|reserved_special_token_247|>", 128256, 128008, 2, 128008, true},
        {own, NULL, "<|pad|>", "<|reserved_special_token_2|>", "<|python_tag|>", "<|reserved_special_token_247|>",
         128257, 128009, 1, 128009, false},
    };
    nb_text list = make_list(128000);
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_tokenizer *t;
        int n;
        assert_ok(nb_tokenizer_load(&t, folder("llama3", &list, cases[i].config, cases[i].model_config)));
        assert_int_equal(nb_tokenizer_vocab_size(t), cases[i].size);
        assert_string_equal(nb_tokenizer_token(t, 128000), "<|begin_of_text|>");
        assert_string_equal(nb_tokenizer_token(t, 128004), cases[i].id4);
        assert_string_equal(nb_tokenizer_token(t, 128005), cases[i].id5);
        assert_string_equal(nb_tokenizer_token(t, 128009), "<|eot_id|>");
        assert_string_equal(nb_tokenizer_token(t, 128010), cases[i].id10);
        assert_string_equal(nb_tokenizer_token(t, 128255), cases[i].last);
        assert_int_equal(nb_tokenizer_bos(t), 128000);
        assert_int_equal(nb_tokenizer_eos(t), cases[i].eos);
        assert_int_equal(nb_tokenizer_eos_ids(t, &n)[0], cases[i].first_end);
        assert_int_equal(n, cases[i].ends);
        assert_int_equal(nb_tokenizer_adds_bos(t), cases[i].bos);
        nb_tokenizer_free(t);
    }
    nb_text_free(&list);
}

/* ---- saving and GGUF ---- */

static void expect_same_lists(const nb_tokenizer *t, const nb_tokenizer *u, bool roles) {
    nb_token_list x, y;
    assert_int_equal(nb_tokenizer_vocab_size(t), nb_tokenizer_vocab_size(u));
    assert_ok(nb_tokenizer_list(t, nb_tokenizer_vocab_size(t), &x));
    assert_ok(nb_tokenizer_list(u, nb_tokenizer_vocab_size(u), &y));
    assert_string_equal(x.model, y.model);
    assert_string_equal(x.pre, y.pre);
    assert_int_equal(x.n_merges, y.n_merges);
    for (int64_t i = 0; i < x.n; i++) {
        assert_string_equal(x.token[i], y.token[i]);
        assert_int_equal(x.type[i], y.type[i]);
    }
    for (int64_t i = 0; i < x.n_merges; i++) assert_string_equal(x.merge[i], y.merge[i]);
    if (roles) assert_true(x.bos == y.bos && x.eos == y.eos && x.pad == y.pad && x.add_bos == y.add_bos);
    nb_token_list_free(&x);
    nb_token_list_free(&y);
}

static bool has(const char *dir, const char *name) {
    char *path = nb_path_join(dir, name);
    bool there = nb_file_exists(path);
    free(path);
    return there;
}

/* A saved folder has the list and the tokenizer.json that says the same; with a token added, only the latter. */
static void saves(void **state) {
    (void)state;
    nb_text list = make_list(128000);
    nb_tokenizer *t, *u;
    int32_t id;
    const char *from = folder("from", &list, NULL, NULL);
    char *to = nb_path_join(nb_test_tmp(), "to"), *json = nb_path_join(to, "tokenizer.json");
    char *model = nb_path_join(to, "tokenizer.model");
    assert_ok(nb_tokenizer_load(&t, from));
    for (int grown = 0; grown < 2; grown++) {
        if (grown) assert_ok(nb_tokenizer_add(t, "<|mine|>", true, &id));
        assert_ok(nb_remove_tree(to));
        assert_ok(nb_mkdirs(to));
        if (grown) assert_ok(nb_file_write(model, list.s, list.n)); /* as a copy of the base's folder has it */
        assert_ok(nb_tokenizer_save(t, to));
        assert_true(has(to, "tokenizer.json") && has(to, "tokenizer_config.json"));
        assert_int_equal(has(to, "tokenizer.model"), !grown);
        assert_ok(nb_tokenizer_load(&u, json));
        expect_same_lists(t, u, true);
        expect_n(u, "cabd<|eot_id|>", 14, NB_TOK_SPECIAL, "<|begin_of_text|>|cab|d|<|eot_id|>");
        nb_tokenizer_free(u);
        if (grown) continue;
        assert_ok(nb_tokenizer_load(&u, model));
        expect_same_lists(t, u, true);
        nb_tokenizer_free(u);
    }
    assert_int_equal(id, 128256);
    nb_tokenizer_free(t);
    free(to), free(json), free(model);
    nb_text_free(&list);
}

/* Llama 3's own: the tokens and merges of its tokenizer.json. */
static void equals_json(void **state) {
    (void)state;
    nb_tokenizer *t, *u;
    assert_ok(nb_tokenizer_load(&t, VECTORS("tok/llama3/tokenizer.model")));
    assert_ok(nb_tokenizer_load(&u, VECTORS("tok/llama3/tokenizer.json")));
    expect_same_lists(t, u, false); /* whose folder does not say what ends a text */
    nb_tokenizer_free(t);
    nb_tokenizer_free(u);
}

/* ---- what is refused ---- */

static void refuses(void **state) {
    (void)state;
    static const struct { const char *text, *message; nb_status st; } cases[] = {
        {"IQ== 0\nIg== 2\nIw== 1", "no rank for the byte 0x00", NB_EINPUT},
        {"IQ==", "line 1 should be a token", NB_EINPUT},
        {"IQ== ", "line 1 should be a token", NB_EINPUT},
        {"IQ== 0\nIg== x\n", "line 2 should be a token", NB_EINPUT},
        {"IQ== 0\nIg==  1\n", "line 2 should be a token", NB_EINPUT},
        {"IQ== 0\nI?== 1\n", "line 2 should be a token", NB_EINPUT},
        {"IQ== 0\n\n==== 1\n", "line 3 should be a token", NB_EINPUT},
        {"IQ== 0\r\nIg== 1 \r\n", "line 2 should be a token", NB_EINPUT},
        {"IQ== 0\nIg== -1\n", "line 2 should be a token", NB_EINPUT},
        {"IQ== 0\nIg== 99999999999999999999\n", "line 2", NB_EINPUT},
        {"IQ== 0\nIg== 2\n", "line 2: rank 2, but the file has 2 lines", NB_EINPUT},
        {"IQ== 0\nIg== 0\n", "line 2: rank 0 was there before", NB_EINPUT},
        {"IQ== 0\nIQ== 1\n", "line 2: this token has the rank 0 already", NB_EINPUT},
        {"IQ== 0\n\x01", "line 2 should be a token", NB_EINPUT},
    };
    nb_tokenizer *t;
    for (int i = 0; i < NB_LEN(cases); i++)
        assert_fails(nb_tokenizer_load(&t, fixture("r.model", cases[i].text, strlen(cases[i].text))), cases[i].st,
                     cases[i].message);
    nb_text list = make_list(300), longest = {0};
    assert_fails(nb_tokenizer_load(&t, fixture("r.model", list.s, list.n)), NB_EUNSUPPORTED, "of 300 ranks");
    for (int i = 0; i < 171; i++) nb_text_puts(&longest, "AAAA"); /* 513 bytes */
    nb_text_puts(&longest, " 0\n");
    assert_fails(nb_tokenizer_load(&t, fixture("r.model", longest.s, longest.n)), NB_EINPUT, "of at most 512 bytes");
    assert_fails(nb_tokenizer_load(&t, fixture("r.model", longest.s + 4, longest.n - 4)), NB_EINPUT, "no rank for");
    nb_text_puts(&list, "IQ== 299\n");
    assert_fails(nb_tokenizer_load(&t, fixture("r.model", list.s, list.n)), NB_EINPUT, "line 301: rank 299");
    nb_text_free(&list);
    nb_text_free(&longest);
    list = make_list(100256);
    assert_fails(nb_tokenizer_load(&t, folder("bad", &list, "{\"added_tokens_decoder\": {\"5\": {\"content\": \"<a>\"}}}",
                                              NULL)), NB_EINPUT, "have the same id 5");
    nb_text_free(&list);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(joins_by_rank), cmocka_unit_test(names_tokens),
                                       cmocka_unit_test(saves), cmocka_unit_test(equals_json),
                                       cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
