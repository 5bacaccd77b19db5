/* The statistics of the comparison: what is known is found, and chance is not called an effect. */
#include "core/cpu.h"
#include "core/mem.h"
#include "core/rng.h"
#include "eval/compare.h"
#include "tests/test.h"

enum { TRIALS = 400, RESAMPLES = 400 };

/* One measure over n rows; fills rows by `make`, returns what the comparison says. */
typedef void (*maker)(nb_rng *r, double row[3], void *arg);
static nb_difference compare_made(nb_measure m, int64_t n, maker make, void *arg, uint64_t seed) {
    nb_difference d = {.measure = m};
    double *x = nb_calloc((size_t)n, 3 * sizeof *x);
    nb_rng r = nb_rng_open(seed, NB_RNG_TEST, (uint64_t)m);
    for (int64_t i = 0; i < n; i++) make(&r, x + 3 * i, arg);
    nb_compare_rows(&d, 1, x, n, RESAMPLES, seed);
    free(x);
    return d;
}

/* A/A: both sides are drawn alike. rate = share of rows on which they differ at all. */
static void equal_answers(nb_rng *r, double row[3], void *rate) {
    row[0] = nb_rng_uniform(r) < 0.4, row[1] = row[0], row[2] = 1;
    if (nb_rng_uniform(r) < *(double *)rate) row[nb_rng_below(r, 2)] = 1 - row[0];
}
/* Row losses: tokens vary, the difference has heavy tails. */
static void equal_losses(nb_rng *r, double row[3], void *arg) {
    (void)arg;
    row[2] = 1 + (double)nb_rng_below(r, 60);
    row[0] = row[2] * (2 + 0.5 * nb_rng_normal(r));
    row[1] = row[0] + sqrt(row[2]) * pow(nb_rng_normal(r), 3);
}
static void equal_scores(nb_rng *r, double row[3], void *arg) { /* F1: in [0, 1], many the same */
    (void)arg;
    row[0] = nb_rng_uniform(r), row[1] = nb_rng_below(r, 2) ? row[0] : nb_rng_uniform(r), row[2] = 1;
}

static void expect_few_false_alarms(const char *what, nb_measure m, int64_t n, maker make, void *arg) {
    int alarms = 0;
    for (int t = 0; t < TRIALS; t++) alarms += compare_made(m, n, make, arg, (uint64_t)(t + 1)).verdict != NB_SAME;
    print_message("%s: %.1f %% false alarms\n", what, 100.0 * alarms / TRIALS);
    if (!(alarms <= 0.07 * TRIALS)) fail_msg("%s: %d of %d A/A comparisons found a difference", what, alarms, TRIALS);
}

static void equal_models_seldom_differ(void **st) {
    (void)st;
    double often = 0.3, seldom = 0.015; /* seldom: 400 rows, 6 differ: where intervals alone are wrong most */
    expect_few_false_alarms("exact match, 200 rows, 30 % differ", NB_MEASURE_EXACT_MATCH, 200, equal_answers, &often);
    expect_few_false_alarms("exact match, 400 rows, 1.5 % differ", NB_MEASURE_EXACT_MATCH, 400, equal_answers, &seldom);
    expect_few_false_alarms("loss, 100 rows", NB_MEASURE_LOSS, 100, equal_losses, NULL);
    expect_few_false_alarms("loss, 12 rows", NB_MEASURE_LOSS, 12, equal_losses, NULL);
    expect_few_false_alarms("perplexity, 100 rows", NB_MEASURE_PERPLEXITY, 100, equal_losses, NULL);
    expect_few_false_alarms("F1, 150 rows", NB_MEASURE_F1, 150, equal_scores, NULL);
}

static void better_loss(nb_rng *r, double row[3], void *arg) {
    row[2] = 10;
    row[0] = 10 * (3 + nb_rng_normal(r));
    row[1] = row[0] - 10 * (*(double *)arg + 0.2 * nb_rng_normal(r));
}
static void better_answers(nb_rng *r, double row[3], void *arg) {
    row[0] = nb_rng_uniform(r) < 0.3, row[1] = nb_rng_uniform(r) < 0.3 + *(double *)arg, row[2] = 1;
}

static void known_effects_are_found(void **st) {
    (void)st;
    int covered = 0, found = 0;
    for (int t = 0; t < 200; t++) {
        double gain = 0.1;
        nb_difference d = compare_made(NB_MEASURE_LOSS, 150, better_loss, &gain, (uint64_t)t + 1);
        covered += d.low <= -gain && -gain <= d.high;
        found += d.verdict == NB_BETTER;
    }
    assert_true(found >= 198); /* 0.1 is 6 standard errors */
    assert_true(covered >= 180 && covered <= 199); /* 95 % of 200 intervals hold the truth, give or take */
    double lift = 0.3, drop = -0.25;
    assert_int_equal(compare_made(NB_MEASURE_EXACT_MATCH, 200, better_answers, &lift, 1).verdict, NB_BETTER);
    assert_int_equal(compare_made(NB_MEASURE_EXACT_MATCH, 200, better_answers, &drop, 1).verdict, NB_WORSE);
    double loss_up = -0.1;
    assert_int_equal(compare_made(NB_MEASURE_LOSS, 150, better_loss, &loss_up, 1).verdict, NB_WORSE);
}

/* b = 1 row won by the base, c = 7 by the adapter: p = 2 (1 + 8) / 2^8 = 0.0703125; 0 and 6: 2 / 2^6. */
static void mcnemar_by_hand(void **st) {
    (void)st;
    static const struct { int won, lost; double p; } cases[] = {
        {7, 1, 18. / 256}, {1, 7, 18. / 256}, {6, 0, 2. / 64}, {4, 0, 2. / 16}, {3, 3, 1}, {0, 0, 1}};
    for (int c = 0; c < NB_LEN(cases); c++) {
        double x[3 * 50];
        for (int i = 0; i < 50; i++) {
            bool won = i < cases[c].won, lost = !won && i < cases[c].won + cases[c].lost;
            x[3 * i] = won ? 0 : lost ? 1 : i % 2, x[3 * i + 1] = won ? 1 : lost ? 0 : i % 2, x[3 * i + 2] = 1;
        }
        nb_difference d = {.measure = NB_MEASURE_EXACT_MATCH};
        nb_compare_rows(&d, 1, x, 50, RESAMPLES, 1);
        assert_close(d.p, cases[c].p, 1e-12);
        assert_close(d.diff, (cases[c].won - cases[c].lost) / 50., 1e-12);
        assert_int_equal(d.verdict, cases[c].p < 0.05 ? NB_BETTER : NB_SAME);
    }
}

/* ---- whole results ---- */

static nb_heldout_result result(int64_t rows, double loss_shift, int right_of_10) {
    nb_heldout_result r = {.name = nb_strdup("set"), .rows = rows,
                           .metrics = 1u << NB_METRIC_LOSS | 1u << NB_METRIC_EXACT_MATCH};
    r.row = nb_calloc((size_t)rows, sizeof *r.row);
    for (int64_t i = 0; i < rows; i++) {
        r.row[i] = (nb_row_result){.row = i, .line = i + 1, .tokens = 1 + i % 3, .bytes = 4 * (1 + i % 3)};
        r.row[i].loss_sum =
            (double)r.row[i].tokens * (2 + 0.01 * (double)(i % 7) + loss_shift * (1 + 0.1 * (double)(i % 2)));
        for (int m = 0; m < NB_METRIC_COUNT; m++) r.row[i].score[m] = NAN;
        r.row[i].score[NB_METRIC_EXACT_MATCH] = (i * 7 % 10) < right_of_10;
    }
    nb_heldout_summarize(&r);
    return r;
}

static void results_are_summed_and_compared(void **st) {
    (void)st;
    nb_heldout_result base = result(300, 0, 1), adapter = result(300, -1, 9);
    double sum = 0, tokens = 0;
    for (int64_t i = 0; i < 300; i++) sum += base.row[i].loss_sum, tokens += (double)base.row[i].tokens;
    assert_close(base.loss, sum / tokens, 1e-12);
    assert_close(base.perplexity, exp(base.loss), 1e-9);
    assert_close(base.bits_per_byte, base.loss / log(2) / 4, 1e-12); /* four bytes a token */
    assert_close(base.score[NB_METRIC_EXACT_MATCH], 0.1, 1e-12);
    assert_true(isnan(base.score[NB_METRIC_F1]));
    nb_comparison c;
    assert_ok(nb_compare(&c, &base, &adapter, 1));
    assert_int_equal(c.n, 4); /* loss, perplexity, bits per byte, exact match */
    assert_int_equal(c.d[c.headline].measure, NB_MEASURE_EXACT_MATCH);
    assert_int_equal(c.won, 240);
    assert_int_equal(c.lost, 0);
    assert_int_equal(c.tied, 60);
    for (int j = 0; j < c.n; j++) {
        assert_int_equal(c.d[j].verdict, NB_BETTER);
        assert_close(c.d[j].base, nb_measure_value(&base, c.d[j].measure), 1e-12);
        assert_close(c.d[j].adapter, nb_measure_value(&adapter, c.d[j].measure), 1e-12);
        assert_true(c.d[j].low <= c.d[j].diff && c.d[j].diff <= c.d[j].high);
    }
    nb_text t = {0};
    nb_verdict_text(&t, &c.d[c.headline]);
    assert_non_null(strstr(t.s, "better: exact match +80.0 points ["));
    nb_text_free(&t);
    nb_comparison again, other; /* the seed decides, not the threads */
    nb_threads_set(3);
    assert_ok(nb_compare(&again, &base, &adapter, 1));
    nb_threads_set(1);
    assert_ok(nb_compare(&other, &base, &adapter, 2));
    assert_memory_equal(&again.d[0], &c.d[0], sizeof c.d[0]);
    assert_true(other.d[0].low != c.d[0].low);
    nb_heldout_result_free(&adapter);
    adapter = result(299, 0, 1);
    assert_fails(nb_compare(&c, &base, &adapter, 1), NB_EINPUT, "same rows");
    nb_heldout_result_free(&adapter);
    adapter = result(300, 0, 1);
    assert_ok(nb_compare(&c, &base, &adapter, 1)); /* the very same model */
    for (int j = 0; j < c.n; j++) {
        assert_int_equal(c.d[j].verdict, NB_SAME);
        assert_close(c.d[j].p, 1, 1e-12);
    }
    nb_heldout_result_free(&base);
    nb_heldout_result_free(&adapter);
}

static void words(void **st) {
    (void)st;
    nb_text t = {0};
    nb_difference d = {NB_MEASURE_EXACT_MATCH, .002, .914, .912, .881, .940, .0001, NB_BETTER};
    nb_verdict_text(&t, &d);
    assert_string_equal(t.s, "better: exact match +91.2 points [+88.1, +94.0]");
    t.n = 0;
    d = (nb_difference){NB_MEASURE_LOSS, 2, 1.99996, -.00004, -.01, .02, .6, NB_SAME};
    nb_verdict_text(&t, &d);
    assert_string_equal(t.s, "no significant difference: loss +0.0000 [-0.0100, +0.0200]");
    nb_text_free(&t);
    char buf[24];
    nb_measure_text(buf, NB_MEASURE_F1, 0.934);
    assert_string_equal(buf, "93.4 %");
    nb_measure_text(buf, NB_MEASURE_PERPLEXITY, 12.345);
    assert_string_equal(buf, "12.35"); /* 12.345 in binary is a little more */
    nb_measure_text(buf, NB_MEASURE_BITS_PER_BYTE, NAN);
    assert_string_equal(buf, "-");
}

int main(void) {
    nb_threads_set(1); /* thousands of small comparisons: starting threads would take longer than they do */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_models_seldom_differ), cmocka_unit_test(known_effects_are_found),
        cmocka_unit_test(mcnemar_by_hand), cmocka_unit_test(results_are_summed_and_compared), cmocka_unit_test(words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
