/* The tokenizer on small tokenizers written by the tests themselves: merging, splitting, added tokens, fallbacks,
 * decoding, provenance, saving, and what damaged files and texts get for an answer. Real tokenizers:
 * test_tokenizer_vectors.c. */
#include "tests/test.h"

#include <omp.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/tokenizer.h"
#include "tests/tokenizer_fixture.h"

#define BYTES_PRE "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
#define BYTES_DEC "\"decoder\": {\"type\": \"ByteLevel\"},"

/* ---- merging ------------------------------------------------------------------------------------------- */

static void merges_by_rank(void **state) {
    (void)state;
    nb_tokenizer *t = make(BYTES_PRE, "h e l o a \u0120 ll he hell hello \u0120hello aa",
                           "\"merges\": [\"l l\", \"h e\", [\"he\", \"ll\"], \"hell o\", \"\u0120 hello\", \"a a\"]");
    expect(t, "", "");
    expect(t, "hello hello", "hello|\u0120hello");
    expect(t, "hell", "hell");
    expect(t, "helo", "he|l|o");
    expect(t, "aaa", "aa|a");
    expect(t, "h\xc3\xa9llo", "h|ll|o"); /* no such bytes in the vocabulary and no unk: dropped */
    nb_tokenizer_free(t);
}

/* The merge loop by its definition, on the string forms: join the leftmost pair of lowest rank until none is left. */
typedef struct rule { const char *left, *right; } rule;
static int by_definition(const rule *rules, int n_rules, const char *text, char part[][64]) {
    int n = 0;
    for (size_t i = 0; text[i]; n++) {
        size_t len = (uint8_t)text[i] < 0x80 ? 1 : 3;
        memcpy(part[n], text + i, len);
        part[n][len] = 0;
        i += len;
    }
    for (int r = 0; r < n_rules; r++)
        for (int i = 0; i + 1 < n; i++) {
            if (strcmp(part[i], rules[r].left) || strcmp(part[i + 1], rules[r].right)) continue;
            memcpy(part[i] + strlen(part[i]), rules[r].right, strlen(rules[r].right) + 1);
            memmove(part[i + 1], part[i + 2], (size_t)(n - i - 2) * sizeof part[0]);
            n--;
            r = -1; /* start over with the lowest rank */
            break;
        }
    return n;
}

/* Scanned words, heaped words, words cut at seams and words from the cache all equal the definition. */
static void merges_equal_definition(void **state) {
    (void)state;
    static const rule rules[] = {{"a", "b"}, {"b", "a"}, {META, "a"}, {"ab", "ab"}, {"a", "a"}, {META "a", "b"},
                                 {"b", "b"}, {"abab", "a"}, {"c", "a"}, {"aa", "bb"}, {META, META}, {"bb", "c"}};
    static const char *const letters[] = {"a", "b", "c", META};
    static char part[700][64];
    nb_tokenizer *t =
        make("", "a b c " META " ab ba " META "a abab aa " META "ab bb ababa ca aabb " META META " bbc",
             "\"merges\": [\"a b\", \"b a\", \"" META " a\", \"ab ab\", \"a a\", \"" META "a b\", \"b b\", \"abab a\","
             " \"c a\", \"aa bb\", \"" META " " META "\", \"bb c\"]");
    nb_rng rng = nb_rng_open(3, NB_RNG_TEST, 0);
    for (int round = 0; round < 400; round++) {
        nb_text text = {0}, want = {0};
        int len = 1 + (int)nb_rng_below(&rng, round % 10 ? 40 : 600), few = 1 + (int)nb_rng_below(&rng, 4);
        for (int i = 0; i < len; i++) nb_text_puts(&text, letters[nb_rng_below(&rng, (uint64_t)few)]);
        int n = by_definition(rules, NB_LEN(rules), text.s, part);
        for (int i = 0; i < n; i++) nb_text_printf(&want, "%s%s", i ? "|" : "", part[i]);
        expect(t, text.s, want.s);
        nb_text_free(&text);
        nb_text_free(&want);
    }
    nb_tokenizer_free(t);
}

/* One word of 2 MB: a quadratic loop would take hours. */
static void merges_long_word(void **state) {
    (void)state;
    nb_tokenizer *t = make("", "a b aa aaaa ab", "\"merges\": [\"a a\", \"aa aa\", \"a b\"]");
    size_t n = 2 << 20;
    char *text = nb_malloc(n);
    nb_ids ids = {0};
    memset(text, 'a', n);
    assert_ok(nb_tokenizer_encode(t, text, n, 0, &ids));
    assert_int_equal(ids.n, n / 4);
    assert_int_equal(ids.start[1000], 4000);
    nb_ids_free(&ids);
    free(text);
    nb_tokenizer_free(t);
}

static void ignores_merges(void **state) {
    (void)state;
    nb_tokenizer *t = make(BYTES_PRE, "a b c ab abc", "\"ignore_merges\": true, \"merges\": [\"a b\"]");
    expect(t, "abc", "abc"); /* no merge makes it, but the whole word is a token */
    expect(t, "abca", "ab|c|a");
    nb_tokenizer_free(t);
}

/* ---- unknown characters -------------------------------------------------------------------------------- */

static void fallbacks(void **state) {
    (void)state;
    nb_tokenizer *t = make("", "<unk> a b <0xC3> <0xA9>",
                           "\"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": true, \"merges\": []");
    expect(t, "a\xc3\xa9" "b", "a|<0xC3>|<0xA9>|b");
    expect(t, "axyb", "a|<unk>|b"); /* x and y have no byte tokens: one fused unknown */
    expect(t, "\xc3\xa8", "<unk>");
    nb_tokenizer_free(t);
    t = make("", "<unk> a b", "\"unk_token\": \"<unk>\", \"fuse_unk\": false, \"merges\": []");
    expect(t, "axyb", "a|<unk>|<unk>|b");
    assert_int_equal(nb_tokenizer_unk(t), 0);
    nb_tokenizer_free(t);
}

/* ---- splitting ----------------------------------------------------------------------------------------- */

static void split_behaviors(void **state) {
    (void)state;
    static const struct { const char *behavior, *want; } cases[] = {
        {"Removed", "the|final|countdown"},
        {"Isolated", "the|-|final|-|-|countdown"},
        {"MergedWithPrevious", "the-|final-|-|countdown"},
        {"MergedWithNext", "the|-final|-|-countdown"},
        {"Contiguous", "the|-|final|--|countdown"}};
    for (int i = 0; i < NB_LEN(cases); i++)
        for (int inverted = 0; inverted < 2; inverted++) {
            char *pre = nb_asprintf("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {%s}, \"behavior\": \"%s\","
                                    " \"invert\": %s},", inverted ? "\"Regex\": \"[^-]+\"" : "\"String\": \"-\"",
                                    cases[i].behavior, inverted ? "true" : "false");
            nb_tokenizer *t = make(pre, "the final countdown - -- the- final- -final -countdown",
                                   "\"ignore_merges\": true, \"merges\": []");
            /* inverted, two dashes are one stretch between matches */
            if (!inverted || i == 0 || i == 4) expect(t, "the-final--countdown", cases[i].want);
            nb_tokenizer_free(t);
            free(pre);
        }
}

static void split_regexes(void **state) {
    (void)state;
    nb_tokenizer *t =
        make(BYTES_PRE, "I 'm \u0120here \u0120\u0120 12 . \u0120 x", "\"ignore_merges\": true, \"merges\": []");
    expect(t, "I'm here   x", "I|'m|\u0120here|\u0120\u0120|\u0120|x");
    expect(t, "12.", "12|.");
    nb_tokenizer_free(t);
    t = make("\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", "
             "\"individual_digits\": true},"
             " {\"type\": \"Metaspace\", \"replacement\": \"" META "\", \"add_prefix_space\": true}]},",
             META "a " META "b " META "1 " META "2 " META, "\"ignore_merges\": true, \"merges\": []");
    expect(t, "a b12", META "a|" META "b|" META "1|" META "2");
    nb_tokenizer_free(t);
    t = make("\"pre_tokenizer\": {\"type\": \"Whitespace\"},", "ab , c", "\"ignore_merges\": true, \"merges\": []");
    expect(t, " ab, c\n", "ab|,|c");
    nb_tokenizer_free(t);
}

/* ---- normalizers and added tokens ---------------------------------------------------------------------- */

#define LLAMA_NORM                                                                                                     \
    "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"" META "\"},"   \
    " {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"" META "\"}]},"
#define LLAMA_DEC                                                                                                      \
    "\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": \"" META   \
    "\"},"                                                                                                             \
    " \"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}, {\"type\": \"Strip\", \"content\": \" " \
    "\","                                                                                                              \
    " \"start\": 1, \"stop\": 0}]},"

static void normalizers(void **state) {
    (void)state;
    static const int64_t starts[] = {0, 0, 1, 2};
    nb_tokenizer *t = make(LLAMA_NORM, META " a b", "\"merges\": []");
    expect(t, "a b", META "|a|" META "|b");
    expect_starts(t, "a b", 0, starts, 4);
    nb_tokenizer_free(t);
    t = make(
        "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": \"Lowercase\"},"
        " {\"type\": \"Strip\", \"strip_left\": true, \"strip_right\": false}]},",
        "\xc3\xa9 a \xed\x95\x9c", "\"merges\": []");
    expect(t, " Ae\xcc\x81 ", "a|\xc3\xa9");                                    /* e + combining acute */
    expect(t, "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab" "A", "\xed\x95\x9c|a");    /* three jamo, one syllable */
    static const int64_t composed[] = {1, 2, 5};
    expect_starts(t, " Ae\xcc\x81" "A", 0, composed, 3);
    nb_tokenizer_free(t);
}

static void added_tokens(void **state) {
    (void)state;
    nb_tokenizer *t = make(
        "\"added_tokens\": [" TOKEN(10, "<s>", "") "," TOKEN(11, "<r>", ", \"rstrip\": true") "," TOKEN(
            12, "<l>",
            ", \"lstrip\": true") "," TOKEN(13, "ab",
                                            ", \"single_word\": true") ","
                                                                       "{\"id\": 14, \"content\": \"zz\", \"special\": "
                                                                       "false, \"normalized\": true}, " TOKEN(
                                                                           15, "<s>>",
                                                                           "") "]," LLAMA_NORM
                                                                               "\"post_processor\": {\"type\": "
                                                                               "\"TemplateProcessing\", \"single\": "
                                                                               "[{\"SpecialToken\":"
                                                                               " {\"id\": \"<s>\"}}, {\"Sequence\": "
                                                                               "{\"id\": \"A\"}}], \"special_tokens\": "
                                                                               "{\"<s>\": {\"ids\": [10]}}},",
        META " a b < s > r l z x", "\"merges\": []");
    assert_int_equal(nb_tokenizer_vocab_size(t), 16);
    expect(t, "a<s>b", META "|a|<s>|" META "|b"); /* the prefix comes again behind a special token */
    expect(t, "a<s>>b", META "|a|<s>>|" META "|b"); /* the longest token wins */
    expect(t, "a <r>  b", META "|a|" META "|<r>|" META "|b");
    expect(t, "a  <l> b", META "|a|<l>|" META "|" META "|b");
    expect(t, "ab xab ab", "ab|" META "|" META "|x|a|b|" META "|ab");
    expect(t, "azz", META "|a|z|z"); /* "zz" is looked for behind the normalizer, where it reads "▁zz" */
    expect(t, "zz", "zz");
    expect_n(t, "<s>", 3, NB_TOK_PLAIN, META "|<|s|>");
    expect_n(t, "a", 1, NB_TOK_SPECIAL, "<s>|" META "|a");
    expect_n(t, "", 0, NB_TOK_SPECIAL, "<s>");
    static const int64_t starts[] = {0, 0, 0, 1, 4, 4};
    expect_starts(t, "a<s>b", NB_TOK_SPECIAL, starts, 6);
    assert_true(nb_tokenizer_is_special(t, 10) && !nb_tokenizer_is_special(t, 14) && !nb_tokenizer_is_special(t, 99));
    nb_tokenizer_free(t);
}

/* ---- decoding ------------------------------------------------------------------------------------------ */

static void decoding(void **state) {
    (void)state;
    nb_tokenizer *t = make("\"added_tokens\": [" TOKEN(0, "<s>", "") "]," LLAMA_DEC,
                           "<s> " META " a <0xF0> <0x9F> <0x98> <0x80> " META "a", "\"merges\": []");
    static const int32_t text[] = {0, 7, 1, 2, 3, 4, 5, 6, 2}, cut[] = {7, 3, 4, 2}, odd[] = {2, 500, 2};
    expect_decoded(t, text, 9, true, "a a\xf0\x9f\x98\x80" "a");
    expect_decoded(t, text, 9, false, "<s> a a\xf0\x9f\x98\x80" "a");
    expect_decoded(t, cut, 4, true, "a\xef\xbf\xbd\xef\xbf\xbd" "a");
    expect_decoded(t, odd, 3, true, "aa"); /* a row that only pads the embedding */
    assert_fails(nb_tokenizer_decode(t, (int32_t[]){-5}, 1, true, &(nb_text){0}), NB_EINPUT, "-5");

    nb_text out = {0};
    nb_decoder *d = nb_decoder_open(t, true);
    for (int i = 0; i < 7; i++) assert_ok(nb_decoder_push(d, text[i], &out));
    assert_string_equal(out.s, "a a"); /* three bytes of four are held back */
    assert_ok(nb_decoder_push(d, text[7], &out));
    assert_string_equal(out.s, "a a\xf0\x9f\x98\x80");
    assert_ok(nb_decoder_push(d, 3, &out));
    nb_decoder_flush(d, &out);
    assert_string_equal(out.s, "a a\xf0\x9f\x98\x80\xef\xbf\xbd");
    out.n = 0;
    assert_ok(nb_decoder_push(d, 7, &out)); /* as new: the first space goes again */
    assert_string_equal(out.s, "a");
    nb_decoder_free(d);
    nb_text_free(&out);
    nb_tokenizer_free(t);
}

/* Every byte string goes through a byte-level tokenizer and back; streamed pieces are valid UTF-8 each. */
static void decoding_bytes(void **state) {
    (void)state;
    nb_text tokens = {0};
    for (int b = 0; b < 256; b++) {
        int c = b < 33 ? 256 + b : b < 127 ? b : b < 161 ? 289 + b - 127 : b == 173 ? 323 : b;
        if (c == '"' || c == '\\') nb_text_printf(&tokens, "\\%c ", c);
        else if (c < 128) nb_text_printf(&tokens, "%c ", c);
        else nb_text_printf(&tokens, "%c%c ", 0xc0 | c >> 6, 0x80 | (c & 63));
    }
    nb_tokenizer *t = make(BYTES_PRE BYTES_DEC, tokens.s, "\"merges\": []");
    static const char text[] = "Zw\xc3\xb6lf \xe2\x82\xac\t\xf0\x9f\x98\x80 \"\\\"\n";
    nb_ids ids = {0};
    nb_text whole = {0}, parts = {0};
    assert_ok(nb_tokenizer_encode(t, text, sizeof text - 1, 0, &ids));
    assert_int_equal(ids.n, sizeof text - 1);
    assert_ok(nb_tokenizer_decode(t, ids.id, ids.n, false, &whole));
    assert_string_equal(whole.s, text);
    nb_decoder *d = nb_decoder_open(t, false);
    for (int64_t i = 0; i < ids.n; i++) {
        size_t before = parts.n;
        assert_ok(nb_decoder_push(d, ids.id[i], &parts));
        if (parts.n > before) assert_true(((uint8_t)parts.s[before] & 0xc0) != 0x80);
    }
    nb_decoder_free(d);
    assert_string_equal(parts.s, text);
    expect_decoded(t, (int32_t[]){0xe2, 0x82, 'a', 0xff, 0xc3}, 5, false, "\xef\xbf\xbd" "a\xef\xbf\xbd\xef\xbf\xbd");
    nb_text_free(&whole);
    nb_text_free(&parts);
    nb_text_free(&tokens);
    nb_ids_free(&ids);
    nb_tokenizer_free(t);
}

/* ---- the folder ---------------------------------------------------------------------------------------- */

static void folder(void **state) {
    (void)state;
    static const char *const files[][2] = {
        {"tokenizer.json",
         "{\"added_tokens\": [{\"id\": 0, \"content\": \"<s>\", \"special\": true}], \"model\": {\"type\": \"BPE\","
         " \"vocab\": {\"<s>\": 0, \"</s>\": 1, \"a\": 2, \"b\": 3}, \"merges\": []}}"},
        {"tokenizer_config.json",
         "{\"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": \"</s>\", \"model_max_length\":"
         " 1000000000000000019884624838656, \"chat_template\": \"{{ x }}\"}"},
        {"special_tokens_map.json", "{\"pad_token\": \"b\", \"eos_token\": \"a\"}"},
        {"generation_config.json", "{\"eos_token_id\": [3, 1]}"}};
    char *dir = nb_path_join(nb_test_tmp(), "folder"), *copy = nb_path_join(nb_test_tmp(), "copy");
    nb_tokenizer *t, *u;
    int n;
    int32_t id;
    assert_ok(nb_mkdirs(dir));
    assert_ok(nb_mkdirs(copy));
    for (int i = 0; i < NB_LEN(files); i++) {
        char *path = nb_path_join(dir, files[i][0]);
        assert_ok(nb_file_write(path, files[i][1], strlen(files[i][1])));
        free(path);
    }
    assert_ok(nb_tokenizer_load(&t, dir));
    assert_int_equal(nb_tokenizer_bos(t), 0);
    assert_int_equal(nb_tokenizer_eos(t), 1);
    assert_int_equal(nb_tokenizer_pad(t), 3);
    assert_int_equal(nb_tokenizer_unk(t), -1);
    assert_string_equal(nb_tokenizer_chat_template(t), "{{ x }}");
    assert_int_equal(nb_tokenizer_eos_ids(t, &n)[0], 3);
    assert_int_equal(n, 2);
    assert_false(nb_tokenizer_adds_bos(t));
    assert_int_equal(nb_tokenizer_token_id(t, "nothing"), -1);
    assert_null(nb_tokenizer_token(t, 77));

    nb_hex before;
    memcpy(before, nb_tokenizer_sha256(t), sizeof before);
    assert_ok(nb_tokenizer_add(t, "a", false, &id));
    assert_int_equal(id, 2);
    assert_ok(nb_tokenizer_add(t, "<|end|>", true, &id));
    assert_int_equal(id, 4);
    assert_ok(nb_tokenizer_add(t, "<|end|>", true, &id));
    assert_int_equal(id, 4);
    assert_ok(nb_tokenizer_set_special(t, "eos_token", "<|end|>"));
    assert_ok(nb_tokenizer_set_special(t, "pad_token", "<pad>"));
    assert_fails(nb_tokenizer_set_special(t, "end", "x"), NB_EINPUT, "want bos_token");
    assert_int_equal(nb_tokenizer_vocab_size(t), 6);
    assert_int_equal(nb_tokenizer_eos_ids(t, &n)[0], 4);
    assert_int_equal(n, 3);
    assert_string_not_equal(before, nb_tokenizer_sha256(t));
    expect(t, "a<|end|>b", "a|<|end|>|b");

    assert_ok(nb_tokenizer_save(t, copy));
    assert_ok(nb_tokenizer_load(&u, copy));
    expect(u, "a<|end|>b", "a|<|end|>|b");
    assert_int_equal(nb_tokenizer_eos(u), 4);
    assert_int_equal(nb_tokenizer_pad(u), 5);
    assert_int_equal(nb_tokenizer_bos(u), 0);
    assert_true(nb_tokenizer_is_special(u, 4));
    assert_string_equal(nb_tokenizer_chat_template(u), "{{ x }}");
    nb_tokenizer_free(u);
    nb_tokenizer_free(t);
    free(dir);
    free(copy);
}

static void threads(void **state) {
    (void)state;
    nb_tokenizer *t = make(BYTES_PRE, "a b \u0120 ab \u0120ab", "\"merges\": [\"a b\", \"\u0120 ab\"]");
    int wrong = 0;
#pragma omp parallel for num_threads(4) reduction(+ : wrong)
    for (int i = 0; i < 200; i++) {
        nb_ids ids = {0};
        nb_text text = {0};
        for (int k = 0; k <= i; k++) nb_text_puts(&text, "ab ");
        if (nb_tokenizer_encode(t, text.s, text.n, 0, &ids) != NB_OK || ids.n != i + 2) wrong++;
        nb_text_free(&text);
        nb_ids_free(&ids);
    }
    assert_int_equal(wrong, 0);
    nb_tokenizer_free(t);
}

/* ---- refusals ------------------------------------------------------------------------------------------ */

#define AB "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]"

static void refuses_files(void **state) {
    (void)state;
    static const struct { const char *sections, *model; nb_status st; const char *text;
    } cases[] = {
        {"", "\"vocab\": {\"a\": 99999999}, \"merges\": []", NB_EINPUT, "99999999"},
        {"", "\"vocab\": {\"a\": -1}, \"merges\": []", NB_EINPUT, "-1"},
        {"", "\"vocab\": {\"a\": 1, \"b\": 1}, \"merges\": []", NB_EINPUT, "same id 1"},
        {"", "\"vocab\": {\"a\": \"x\"}, \"merges\": []", NB_EINPUT, "should be an integer"},
        {"", "\"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]", NB_EINPUT, "the second is not in the vocabulary"},
        {"", "\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]", NB_EINPUT, "merge 0"},
        {"", "\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", 3]]", NB_EINPUT, "merge 0"},
        {"", AB ", \"unk_token\": \"u\"", NB_EINPUT, "unk_token \"u\""},
        {"", AB ", \"end_of_word_suffix\": \"</w>\"", NB_EUNSUPPORTED, "end_of_word_suffix"},
        {"", AB ", \"dropout\": 0.1", NB_EUNSUPPORTED, "dropout"},
        {"", AB ", \"novelty\": 1", NB_EUNSUPPORTED, "novelty"},
        {"\"extra\": 1,", AB, NB_EUNSUPPORTED, "extra"},
        {"\"added_tokens\": [{\"id\": 0, \"content\": \"x\"}],", AB, NB_EINPUT, "same id 0"},
        {"\"added_tokens\": [{\"id\": 7, \"content\": \"a\"}],", AB, NB_EINPUT, "id 0 elsewhere"},
        {"\"normalizer\": {\"type\": \"BertNormalizer\"},", AB, NB_EUNSUPPORTED, "normalizer \"BertNormalizer\""},
        {"\"normalizer\": {\"type\": \"Sequence\"},", AB, NB_EINPUT, "normalizers"},
        {"\"pre_tokenizer\": {\"type\": \"UnicodeScripts\"},", AB, NB_EUNSUPPORTED, "pre_tokenizer \"UnicodeScripts\""},
        {"\"pre_tokenizer\": {\"type\": \"CharDelimiterSplit\", \"delimiter\": \"\"},", AB, NB_EINPUT, "a delimiter"},
        {"\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a\"}, \"behavior\": \"Isolated\"},", AB,
         NB_EINPUT, "bad regular expression"},
        {"\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a&&b]\"}, \"behavior\": \"Isolated\"},",
         AB, NB_EUNSUPPORTED, "&&"},
        {"\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a{1,3}+\"}, \"behavior\": \"Isolated\"},",
         AB, NB_EUNSUPPORTED, "{n,m}+"},
        {"\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": \"Odd\"},", AB,
         NB_EUNSUPPORTED, "Odd"},
        {"\"post_processor\": {\"type\": \"RobertaProcessing\"},", AB, NB_EINPUT, "\"cls\" should be"},
        {"\"post_processor\": {\"type\": \"Custom\"},", AB, NB_EUNSUPPORTED, "post_processor \"Custom\""},
        {"\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"q\"}}, "
         "{\"Sequence\": {}}],"
         " \"special_tokens\": {\"q\": {\"ids\": [50]}}},",
         AB, NB_EINPUT, "id 50"},
        {"\"decoder\": {\"type\": \"CTC\"},", AB, NB_EUNSUPPORTED, "decoder \"CTC\""}};
    nb_tokenizer *t;
    for (int i = 0; i < NB_LEN(cases); i++) {
        assert_fails(load_json(&t, cases[i].sections, cases[i].model), cases[i].st, cases[i].text);
        assert_non_null(strstr(nb_message(), "t.json"));
        assert_null(t);
    }
    static const char half[] = "{\"model\":\n {\"ty";
    assert_fails(nb_tokenizer_load(&t, fixture("t.json", half, strlen(half))), NB_EINPUT, "t.json:2:");
    assert_fails(nb_tokenizer_load(&t, "/nowhere/tokenizer.json"), NB_EIO, "nowhere");
    assert_fails(nb_tokenizer_load(&t, nb_test_tmp()), NB_EINPUT, "no tokenizer.json and no tokenizer.model");
    nb_text deep = {0};
    for (int i = 0; i < 30; i++) nb_text_puts(&deep, "{\"type\": \"Sequence\", \"normalizers\": [");
    for (int i = 0; i < 30; i++) nb_text_puts(&deep, "]}");
    char *sections = nb_asprintf("\"normalizer\": %s,", deep.s);
    assert_fails(load_json(&t, sections, AB), NB_EINPUT, "nested deeper");
    nb_text_free(&deep);
    free(sections);
}

static void refuses_texts(void **state) {
    (void)state;
    nb_tokenizer *t = make("", "a", "\"merges\": []");
    static const struct { const char *s; size_t n; const char *at; } cases[] = {
        {"abc\xff", 4, "byte 3 (0xff)"}, {"a\xc3", 2, "byte 1"}, {"\xed\xa0\x80", 3, "byte 0"},
        {"aaaaaaaaaaaa\xf4\x90\x80\x80", 16, "byte 12"}, {"\xc0\x80", 2, "byte 0"}};
    nb_ids ids = {0};
    nb_ids_add(&ids, 5, 0);
    for (int i = 0; i < NB_LEN(cases); i++)
        assert_fails(nb_tokenizer_encode(t, cases[i].s, cases[i].n, 0, &ids), NB_EINPUT, cases[i].at);
    assert_int_equal(ids.n, 1);
    expect_n(t, "a\0a", 3, 0, "a|a"); /* NUL is a character like any other; this vocabulary lacks it */
    nb_tokenizer_free(t);

    /* an expression that would run for ages is stopped */
    t = make("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(?:(?:a|b|ab)+)+c\"}, \"behavior\": "
             "\"Isolated\"},",
             "a b", "\"merges\": []");
    char text[201];
    for (int i = 0; i < 200; i++) text[i] = "ab"[i & 1];
    memcpy(text + 198, "!c", 2); /* PCRE2 knows that without any c there is no match */
    assert_fails(nb_tokenizer_encode(t, text, 200, 0, &ids), NB_EINPUT, "gave up at byte 0");
    assert_int_equal(ids.n, 1);
    nb_ids_free(&ids);
    nb_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_by_rank),   cmocka_unit_test(merges_equal_definition),
        cmocka_unit_test(merges_long_word), cmocka_unit_test(ignores_merges),
        cmocka_unit_test(fallbacks),        cmocka_unit_test(split_behaviors),
        cmocka_unit_test(split_regexes),    cmocka_unit_test(normalizers),
        cmocka_unit_test(added_tokens),     cmocka_unit_test(decoding),
        cmocka_unit_test(decoding_bytes),   cmocka_unit_test(folder),
        cmocka_unit_test(threads),
        cmocka_unit_test(refuses_files),    cmocka_unit_test(refuses_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
