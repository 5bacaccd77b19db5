/* Unigram models, and SentencePiece's files: tokenizer.model and the precompiled character map. */
#include "tests/test.h"

#include "core/file.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/tokenizer.h"
#include "tests/tokenizer_fixture.h"

/* ---- tokenizer.model ----------------------------------------------------------------------------------- */

static void add_piece(nb_text *m, const char *s, float score, int type) {
    nb_text p = {0};
    nb_text_printf(&p, "\x0a%c%s", (int)strlen(s), s);
    nb_text_puts(&p, "\x15");
    nb_text_add(&p, (const char *)&score, 4);
    nb_text_printf(&p, "\x18%c", type);
    nb_text_printf(m, "\x0a%c", (int)p.n);
    nb_text_add(m, p.s, p.n);
    nb_text_free(&p);
}

/* Scores, not order, decide: "bc" joins before "ab". Runs of spaces shrink (remove_extra_whitespaces, the default). */
static void model_file(void **state) {
    (void)state;
    static const struct { const char *s; float score; int type; } pieces[] = {
        {"<unk>", 0, 2}, {"<s>", 0, 3}, {"</s>", 0, 3}, {META, -9, 1}, {"a", -9, 1}, {"b", -9, 1}, {"c", -9, 1},
        {"ab", -3, 1}, {"bc", -2, 1}, {META "a", -4, 1}, {"<u>", 0, 4}};
    nb_text m = {0};
    for (int i = 0; i < NB_LEN(pieces); i++) add_piece(&m, pieces[i].s, pieces[i].score, pieces[i].type);
    nb_text_add(&m, "\x12\x02\x18\x02", 4); /* trainer_spec { model_type: BPE } */
    nb_tokenizer *t;
    const char *path = fixture("m.model", m.s, m.n);
    assert_ok(nb_tokenizer_load(&t, path));
    expect(t, "abc", META "a|bc");
    expect(t, "  ab   ab ", META "|ab|" META "|ab");
    expect(t, "a<u>xyb", META "a|<u>|<unk>|b");
    expect(t, "<s>a", "<s>|" META "a");
    expect_n(t, "abc", 3, NB_TOK_SPECIAL, "<s>|" META "a|bc");
    assert_int_equal(nb_tokenizer_eos(t), 2);
    expect_decoded(t, (int32_t[]){1, 9, 8, 3, 4}, 5, true, "abc a");
    nb_tokenizer_free(t);

    for (size_t cut = 0; cut < m.n; cut++) /* no prefix crashes; those that end inside a field are refused */
        if (nb_tokenizer_load(&t, fixture("m.model", m.s, cut)) == NB_OK) nb_tokenizer_free(t);
    assert_fails(nb_tokenizer_load(&t, fixture("m.model", m.s, m.n - 1)), NB_EINPUT, "damaged");
    m.s[m.n - 1] = 3;
    assert_fails(nb_tokenizer_load(&t, fixture("m.model", m.s, m.n)), NB_EUNSUPPORTED, "other than BPE and Unigram");
    m.s[m.n - 1] = 1; /* the same pieces as Unigram: scores add up, and user-defined symbols always win */
    assert_ok(nb_tokenizer_load(&t, fixture("m.model", m.s, m.n)));
    expect(t, "abc", META "a|bc");
    expect(t, "cab", META "|c|ab");
    expect(t, "a<u>xyb", META "a|<u>|<unk>|b");
    expect_n(t, "a</s>", 5, NB_TOK_PLAIN, META "a|<unk>");
    assert_int_equal(nb_tokenizer_unk(t), 0);
    nb_tokenizer_free(t);
    nb_text_free(&m);
}

/* ---- Unigram ------------------------------------------------------------------------------------------- */

static nb_tokenizer *make_unigram(const char *sections, const char *model) {
    nb_tokenizer *t;
    char *json = nb_asprintf("{%s \"model\": {\"type\": \"Unigram\", %s}}", sections, model);
    assert_ok(nb_tokenizer_load(&t, fixture("t.json", json, strlen(json))));
    free(json);
    return t;
}

static void unigram(void **state) {
    (void)state;
    nb_tokenizer *t = make_unigram(
        "\"added_tokens\": [" TOKEN(7, "</s>", "") "],",
        "\"unk_id\": 0, \"byte_fallback\": true, \"vocab\": [[\"<unk>\", 0], [\"a\", -1], [\"b\", -2], [\"ab\", -2.5],"
        " [\"aba\", -4.5], [\"<0xC3>\", -30], [\"<0xA9>\", -30], [\"</s>\", 0]]");
    expect(t, "ab", "ab");
    expect(t, "aba", "ab|a"); /* -3.5 beats -4.5 */
    expect(t, "bab", "b|ab");
    expect(t, "a\xc3\xa9" "b", "a|<0xC3>|<0xA9>|b");
    expect(t, "axy\xc3\xa9" "b", "a|<unk>|b"); /* unknown together, and not all of them bytes */
    expect(t, "<0xC3>", "<0xC3>"); /* spelled out it is a piece like any other, as in the tokenizers library */
    expect(t, "a</s>b", "a|</s>|b");
    expect_n(t, "a</s>b", 6, NB_TOK_PLAIN, "a|<unk>|b");
    expect_n(t, "a</s>b", 6, 0, "a|</s>|b");
    static const int64_t starts[] = {0, 1, 1, 3};
    expect_starts(t, "a\xc3\xa9" "b", 0, starts, 4);
    nb_tokenizer_free(t);
    t = make_unigram("", "\"unk_id\": null, \"vocab\": [[\"a\", -1]]");
    nb_ids ids = {0};
    assert_fails(nb_tokenizer_encode(t, "aab", 3, 0, &ids), NB_EINPUT, "no piece for the character \"b\"");
    assert_int_equal(ids.n, 0);
    nb_ids_free(&ids);
    nb_tokenizer_free(t);
}

/* The best way through random texts, by trying all of them; long words are settled window by window. */
static double best_way(const char *s, char *way) {
    static const struct { const char *s; double score; } pieces[] = {
        {"a", -1}, {"b", -2.25}, {"ab", -2.75}, {"ba", -3.125}, {"aab", -4}, {"bb", -3.75}, {"abab", -5.0625}};
    double best = *s ? -1e9 : 0;
    char rest[256];
    if (!*s) *way = 0;
    for (int i = 0; i < NB_LEN(pieces); i++) {
        size_t n = strlen(pieces[i].s);
        if (strncmp(s, pieces[i].s, n)) continue;
        double score = pieces[i].score + best_way(s + n, rest);
        if (score <= best) continue;
        best = score;
        sprintf(way, "%s%s%s", pieces[i].s, *rest ? "|" : "", rest);
    }
    return best;
}

static void unigram_equals_definition(void **state) {
    (void)state;
    nb_tokenizer *t = make_unigram("", "\"unk_id\": null, \"vocab\": [[\"a\", -1], [\"b\", -2.25], [\"ab\", -2.75],"
                                       " [\"ba\", -3.125], [\"aab\", -4], [\"bb\", -3.75], [\"abab\", -5.0625]]");
    nb_rng rng = nb_rng_open(5, NB_RNG_TEST, 0);
    for (int round = 0; round < 300; round++) {
        char text[32], way[256];
        size_t n = 1 + nb_rng_below(&rng, 14);
        for (size_t i = 0; i < n; i++) text[i] = "aab"[nb_rng_below(&rng, 3)];
        text[n] = 0;
        double want = best_way(text, way), got = 0;
        nb_ids ids = {0};
        assert_ok(nb_tokenizer_encode(t, text, n, 0, &ids));
        static const double scores[] = {-1, -2.25, -2.75, -3.125, -4, -3.75, -5.0625};
        for (int64_t i = 0; i < ids.n; i++) got += scores[ids.id[i]];
        assert_true(got == want); /* eighths and sixteenths: sums are exact */
        nb_ids_free(&ids);
    }
    size_t n = 3 << 20;
    char *text = nb_malloc(n);
    nb_ids ids = {0};
    for (size_t i = 0; i < n; i++) text[i] = "abab"[i & 3];
    assert_ok(nb_tokenizer_encode(t, text, n, 0, &ids)); /* one word */
    assert_int_equal(ids.n, n / 4);
    assert_int_equal(ids.start[ids.n - 1], n - 4);
    nb_ids_free(&ids);
    free(text);
    nb_tokenizer_free(t);
}

/* ---- the precompiled character map --------------------------------------------------------------------- */

#define MAP(text) "{\"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": " text "}, "

/* "A" -> "a", "AB" -> "c" by hand: units 1 ^ label of the root's children and so on. */
static nb_status load_map(nb_tokenizer **t, const uint32_t *unit, uint32_t n, const char *texts, size_t texts_n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    nb_text blob = {0}, text = {0};
    uint32_t bytes = n * 4;
    nb_text_add(&blob, (const char *)&bytes, 4);
    nb_text_add(&blob, (const char *)unit, bytes);
    nb_text_add(&blob, texts, texts_n);
    for (size_t i = 0; i < blob.n; i += 3) {
        uint32_t x = 0;
        for (size_t k = 0; k < 3; k++) x = x << 8 | (i + k < blob.n ? (uint8_t)blob.s[i + k] : 0);
        for (int k = 0; k < 4; k++)
            nb_text_add(&text, i + (size_t)k > blob.n ? "=" : &digits[x >> (18 - 6 * k) & 63], 1);
    }
    char *json = nb_asprintf(MAP("\"%s\"") "\"model\": {\"type\": \"Unigram\", \"unk_id\": 0, \"vocab\":"
                             " [[\"?\", -1], [\"a\", -2], [\"c\", -3]]}}", text.s);
    nb_status st = nb_tokenizer_load(t, fixture("t.json", json, strlen(json)));
    free(json);
    nb_text_free(&blob);
    nb_text_free(&text);
    return st;
}

static void character_map(void **state) {
    (void)state;
    enum { BASE_A = 128, N = 256 };
    uint32_t unit[N] = {[0] = 1u << 10};
    nb_tokenizer *t;
    nb_ids ids = {0};
    unit[1 ^ 'A'] = 'A' | 1u << 8 | (uint32_t)((1 ^ 'A') ^ BASE_A) << 10;
    unit[BASE_A] = 1u << 31;                            /* value 0: "a" */
    unit[BASE_A ^ 'B'] = 'B' | 1u << 8 | (uint32_t)((BASE_A ^ 'B') ^ 250) << 10;
    unit[250] = 1u << 31 | 2;                           /* value 2: "c" */
    assert_ok(load_map(&t, unit, N, "a\0c", 4));
    expect(t, "Aca", "a|c|a");
    expect(t, "AB", "a|?"); /* graphemes: B is one of its own, though the map has both together */
    nb_tokenizer_free(t);
    assert_ok(load_map(&t, unit, N, "a\0c", 3)); /* the last text does not end: nobody asks for it */
    expect(t, "A", "a");
    nb_tokenizer_free(t);
    unit[BASE_A] = 1u << 31 | 77;
    assert_ok(load_map(&t, unit, N, "a\0c", 4));
    assert_fails(nb_tokenizer_encode(t, "A", 1, 0, &ids), NB_EINPUT, "points outside its texts");
    nb_tokenizer_free(t);
    unit[1 ^ 'A'] = 'A' | 1u << 8 | 0x3fffffu << 9; /* children far outside */
    assert_ok(load_map(&t, unit, N, "a\0c", 4));
    assert_fails(nb_tokenizer_encode(t, "A", 1, 0, &ids), NB_EINPUT, "points outside its texts");
    nb_tokenizer_free(t);
    unit[0] = 0x7fffffu << 9;
    assert_ok(load_map(&t, unit, N, "a\0c", 4));
    expect(t, "aA", "a|?");
    nb_tokenizer_free(t);
    assert_fails(load_map(&t, unit, N, "a\xff", 3), NB_EINPUT, "precompiled_charsmap is damaged");
    assert_fails(load_map(&t, unit, 0, "", 0), NB_EINPUT, "precompiled_charsmap is damaged");
}

/* ---- what is added, saved and refused ------------------------------------------------------------------ */

static void grows_and_saves(void **state) {
    (void)state;
    nb_tokenizer *t = make_unigram("", "\"unk_id\": 0, \"vocab\": [[\"?\", -1], [\"a\", -2], [\"b\", -3]]"), *u;
    int32_t id;
    char *copy = nb_path_join(nb_test_tmp(), "copy");
    assert_ok(nb_tokenizer_add(t, "<|end|>", true, &id));
    assert_int_equal(id, 3);
    assert_ok(nb_tokenizer_set_special(t, "eos_token", "<|end|>"));
    assert_ok(nb_mkdirs(copy));
    assert_ok(nb_tokenizer_save(t, copy));
    assert_ok(nb_tokenizer_load(&u, copy));
    expect(u, "ab<|end|>b", "a|b|<|end|>|b");
    assert_int_equal(nb_tokenizer_eos(u), 3);
    nb_tokenizer_free(u);
    nb_tokenizer_free(t);
    free(copy);
}

static void refuses_models(void **state) {
    (void)state;
    nb_tokenizer *t;
    static const struct { const char *model; nb_status st; const char *text; } models[] = {
        {"\"type\": \"WordPiece\", \"vocab\": {}", NB_EUNSUPPORTED, "model \"WordPiece\""},
        {"\"type\": \"WordLevel\", \"vocab\": {}", NB_EUNSUPPORTED, "model \"WordLevel\""},
        {"\"type\": \"Unigram\", \"vocab\": []", NB_EINPUT, "0 pieces"},
        {"\"type\": \"Unigram\", \"vocab\": {\"a\": 1}", NB_EINPUT, "should be an array"},
        {"\"type\": \"Unigram\", \"vocab\": [[\"a\"]]", NB_EINPUT, "vocab[0] should be [piece, score]"},
        {"\"type\": \"Unigram\", \"vocab\": [[\"a\", \"b\"]]", NB_EINPUT, "vocab[0] should be [piece, score]"},
        {"\"type\": \"Unigram\", \"vocab\": [[\"a\", 0], [\"a\", 0]]", NB_EINPUT, "has two ids, 0 and 1"},
        {"\"type\": \"Unigram\", \"unk_id\": 1, \"vocab\": [[\"a\", 0]]", NB_EINPUT, "unk_id"},
        {"\"type\": \"Unigram\", \"unk_id\": \"a\", \"vocab\": [[\"a\", 0]]", NB_EINPUT, "unk_id"},
        {"\"type\": \"Unigram\", \"alpha\": 0.1, \"vocab\": [[\"a\", 0]]", NB_EUNSUPPORTED, "alpha"}};
    for (int i = 0; i < NB_LEN(models); i++) {
        char *json = nb_asprintf("{\"model\": {%s}}", models[i].model);
        assert_fails(nb_tokenizer_load(&t, fixture("t.json", json, strlen(json))), models[i].st, models[i].text);
        free(json);
    }
    static const struct { const char *map, *text; } maps[] = {
        {"3", "should be a string"}, {"null", "should be a string"}, {"\"\"", "damaged (0 bytes"},
        {"\"AB!D\"", "not base64"},
        {"\"////fwAA\"", "damaged"}, {"\"BAAAAAAAAA==\"", "damaged"}};
    for (int i = 0; i < NB_LEN(maps); i++) {
        char *json = nb_asprintf(MAP("%s") "\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", -1]]}}",
                                 maps[i].map);
        assert_fails(nb_tokenizer_load(&t, fixture("t.json", json, strlen(json))), NB_EINPUT, maps[i].text);
        free(json);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_file),    cmocka_unit_test(unigram),         cmocka_unit_test(unigram_equals_definition),
        cmocka_unit_test(character_map), cmocka_unit_test(grows_and_saves), cmocka_unit_test(refuses_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
