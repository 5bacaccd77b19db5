/* Values worked out by hand from the rules of SQuAD's evaluation and of ROUGE-L,
 * which are restated beside them. */
#include "core/rng.h"
#include "eval/metrics.h"
#include "tests/test.h"

static void exact_match(void **st) {
    (void)st;
    assert_close(nb_exact_match("yes", "yes"), 1, 0);
    assert_close(nb_exact_match(" \n yes\t", "yes\r\n"), 1, 0);
    assert_close(nb_exact_match("Yes", "yes"), 0, 0); /* case counts */
    assert_close(nb_exact_match("a  b", "a b"), 0, 0); /* inner white space counts */
    assert_close(nb_exact_match("yes", "yes."), 0, 0);
    assert_close(nb_exact_match("", ""), 1, 0);
    assert_close(nb_exact_match("  ", ""), 1, 0);
    assert_close(nb_exact_match("", "x"), 0, 0);
}

static void token_f1(void **st) {
    (void)st;
    assert_close(nb_token_f1("The cat sat.", "a cat SAT!"), 1, 1e-12); /* articles, case and punctuation go */
    assert_close(nb_token_f1("cat dog", "cat bird fish"), 2 * .5 * (1. / 3) / (.5 + 1. / 3), 1e-12);
    assert_close(nb_token_f1("a b b", "b b b c"), 2 * 1. * .5 / 1.5, 1e-12); /* b b | b b b c: the multiset counts */
    assert_close(nb_token_f1("don't", "dont"), 1, 0); /* punctuation is taken out, it does not split */
    assert_close(nb_token_f1("", ""), 1, 0);
    assert_close(nb_token_f1("the", ""), 1, 0); /* no words on both sides */
    assert_close(nb_token_f1("", "word"), 0, 0);
    assert_close(nb_token_f1("word", ""), 0, 0);
    assert_close(nb_token_f1("ÄPFEL «und» Birnen", "äpfel und"), 2 * (2. / 3) / (2. / 3 + 1), 1e-12);
    assert_close(nb_token_f1("one\xC2\xA0two", "two one"), 1, 0); /* a no-break space is white space */
    assert_close(nb_token_f1("x\xFF\xFF y", "y"), 2 * .5 / 1.5, 1e-12); /* bytes that are no UTF-8 do no harm */
}

static void rouge_l(void **st) {
    (void)st;
    /* the cat is on the mat | the cat sat on the mat: the cat on the mat, 5 of 6 and 5 of 6 */
    assert_close(nb_rouge_l("The cat is on the mat.", "the cat sat on the mat"), 5. / 6, 1e-12);
    assert_close(nb_rouge_l("a b c d", "d c b a"), 1. / 4, 1e-12); /* order counts */
    assert_close(nb_rouge_l("police killed the gunman", "the gunman killed police"), 2. / 4, 1e-12);
    assert_close(nb_rouge_l("x-y", "x y z"), 2 * 1. * (2. / 3) / (5. / 3), 1e-12); /* punctuation splits */
    assert_close(nb_rouge_l("don't", "dont"), 0, 0);
    assert_close(nb_rouge_l("", "x"), 0, 0);
    assert_close(nb_rouge_l("x", ""), 0, 0);
    assert_close(nb_rouge_l("", ""), 0, 0);
    assert_close(nb_rouge_l("Straße 5", "STRASSE 5"), .5, 1e-12); /* lower case is not case folding */
}

/* The longest common subsequence against plain recursion, on short random sequences. */
static int lcs(const char *x, const char *y) {
    if (!*x || !*y) return 0;
    if (*x == *y) return 1 + lcs(x + 1, y + 1);
    int skip_x = lcs(x + 1, y), skip_y = lcs(x, y + 1);
    return skip_x > skip_y ? skip_x : skip_y;
}

static void rouge_l_equals_its_definition(void **st) {
    (void)st;
    nb_rng r = nb_rng_open(1, NB_RNG_TEST, 0);
    for (int trial = 0; trial < 300; trial++) {
        char word[2][16], text[2][32];
        int n[2];
        for (int side = 0; side < 2; side++) {
            n[side] = 1 + (int)nb_rng_below(&r, 8);
            for (int i = 0; i < n[side]; i++) {
                word[side][i] = (char)('a' + nb_rng_below(&r, 3));
                text[side][2 * i] = word[side][i], text[side][2 * i + 1] = ' ';
            }
            word[side][n[side]] = text[side][2 * n[side]] = 0;
        }
        assert_close(nb_rouge_l(text[0], text[1]), 2. * lcs(word[0], word[1]) / (n[0] + n[1]), 1e-12);
    }
}

static void json_valid(void **st) {
    (void)st;
    const char *good[] = {"{}", " [1, 2.5e3, \"x\"] \n", "{\"a\": {\"b\": [true, null]}}", "3", "\"text\"",
                          "123456789012345678901234567890", "\"\\u0000\""};
    const char *bad[] = {"", "{", "{\"a\": 1,}", "{a: 1}", "{} {}", "[1] and more", "'x'", "```json\n{}\n```", "nul"};
    for (int i = 0; i < NB_LEN(good); i++)
        if (nb_json_valid(good[i]) != 1) fail_msg("refused: %s", good[i]);
    for (int i = 0; i < NB_LEN(bad); i++)
        if (nb_json_valid(bad[i]) != 0) fail_msg("accepted: %s", bad[i]);
}

static double regex(const char *pattern, const char *answer, const char *reference) {
    nb_regex *r;
    double score = NAN;
    assert_ok(nb_regex_open(&r, pattern));
    assert_ok(nb_regex_score(r, answer, reference, &score));
    nb_regex_free(r);
    return score;
}

static void regular_expressions(void **st) {
    (void)st;
    assert_close(regex("o w", "hello world", ""), 1, 0); /* anywhere in the answer */
    assert_close(regex("^world", "hello world", ""), 0, 0);
    assert_close(regex("(yes|no)", "no", "yes"), 1, 0); /* a group without the name is no answer */
    assert_close(regex("^\\w+$", "größe", ""), 1, 0);   /* Unicode */
    const char *gsm = "#### (?<answer>-?[0-9.,]+)";
    assert_close(regex(gsm, "so it is\n#### 42", "because\n#### 42"), 1, 0);
    assert_close(regex(gsm, "#### 41", "#### 42"), 0, 0);
    assert_close(regex(gsm, "42", "#### 42"), 0, 0);
    assert_close(regex(gsm, "#### 42", "42"), 0, 0);
    nb_regex *r;
    double score;
    assert_fails(nb_regex_open(&r, "ab(c"), NB_EINPUT, "at character 5");
    assert_ok(nb_regex_open(&r, "(a+)+$")); /* explodes: PCRE2's limit stops it */
    assert_fails(nb_regex_score(r, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "", &score), NB_EINPUT,
                 "simpler");
    nb_regex_free(r);
    nb_regex_free(NULL);
}

static void names(void **st) {
    (void)st;
    unsigned set;
    const char *two[] = {"exact_match", "json_valid"}, *wrong[] = {"exact-math"};
    assert_ok(nb_metrics_parse(&set, two, 2, "--metrics"));
    assert_int_equal(set, 1u << NB_METRIC_LOSS | 1u << NB_METRIC_EXACT_MATCH | 1u << NB_METRIC_JSON_VALID);
    assert_ok(nb_metrics_parse(&set, NULL, 0, "--metrics"));
    assert_int_equal(set, 1u << NB_METRIC_LOSS);
    assert_fails(nb_metrics_parse(&set, wrong, 1, "--metrics"), NB_EINPUT, "did you mean 'exact_match'");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_match), cmocka_unit_test(token_f1), cmocka_unit_test(rouge_l),
        cmocka_unit_test(rouge_l_equals_its_definition), cmocka_unit_test(json_valid),
        cmocka_unit_test(regular_expressions), cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
