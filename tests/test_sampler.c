/* Distributions worked out by hand from the filters' definitions, the order of the filters, ties, and draws. */
#include "core/mem.h"
#include "core/rng.h"
#include "generate/tops.h"
#include "tests/test.h"

enum { V = 5 };
/* exp of these is 8, 4, 2, 1, 1: probabilities 1/2, 1/4, 1/8, 1/16, 1/16 */
static const double eighths[V] = {8, 4, 2, 1, 1};

static void expect(nb_sampling o, const double *odds, const int32_t *history, int64_t n, const double *want) {
    nb_sampler s;
    float logits[V];
    double p[V];
    for (int i = 0; i < V; i++) logits[i] = (float)log(odds[i]);
    nb_sampler_open(&s, V);
    assert_ok(nb_sampler_distribution(&s, &o, logits, history, n, p));
    nb_sampler_close(&s);
    for (int i = 0; i < V; i++)
        if (!(fabs(p[i] - want[i]) < 1e-6)) fail_msg("token %d: %.9g, want %.9g", i, p[i], want[i]);
}
#define EXPECT(opt, ...) expect(opt, eighths, NULL, 0, (const double[V]){__VA_ARGS__})

static nb_sampling plain(void) {
    nb_sampling o = nb_sampling_greedy();
    o.temperature = 1;
    return o;
}

static void temperature(void **st) {
    (void)st;
    nb_sampling o = plain();
    EXPECT(o, .5, .25, .125, .0625, .0625);
    o.temperature = 0.5; /* odds squared: 64 16 4 1 1 of 86 */
    EXPECT(o, 64. / 86, 16. / 86, 4. / 86, 1. / 86, 1. / 86);
    o.temperature = 0;
    EXPECT(o, 1, 0, 0, 0, 0);
    expect(o, (const double[V]){1, 3, 2, 3, 3}, NULL, 0, (const double[V]){0, 1, 0, 0, 0}); /* lowest id of equals */
}

static void top_k(void **st) {
    (void)st;
    nb_sampling o = plain();
    o.top_k = 2;
    EXPECT(o, 2. / 3, 1. / 3, 0, 0, 0);
    o.top_k = 1;
    EXPECT(o, 1, 0, 0, 0, 0);
    o.top_k = 4; /* the fifth equals the fourth: both stay, as in Hugging Face */
    EXPECT(o, .5, .25, .125, .0625, .0625);
    o.top_k = 99;
    EXPECT(o, .5, .25, .125, .0625, .0625);
}

static void top_p(void **st) {
    (void)st;
    nb_sampling o = plain();
    o.top_p = 0.6; /* 1/2 is not enough, 3/4 is */
    EXPECT(o, 2. / 3, 1. / 3, 0, 0, 0);
    o.top_p = 0.4;
    EXPECT(o, 1, 0, 0, 0, 0);
    o.top_p = 1e-9; /* never empty */
    EXPECT(o, 1, 0, 0, 0, 0);
    o.top_p = 0.9; /* of two equals the lower id comes first */
    EXPECT(o, 8. / 15, 4. / 15, 2. / 15, 1. / 15, 0);
}

static void min_p(void **st) {
    (void)st;
    nb_sampling o = plain();
    o.min_p = 0.2;
    EXPECT(o, 8. / 14, 4. / 14, 2. / 14, 0, 0);
    o.min_p = 1;
    EXPECT(o, 1, 0, 0, 0, 0);
}

static void order_of_filters(void **st) {
    (void)st;
    nb_sampling o = plain();
    o.top_k = 2, o.top_p = 0.65; /* after top-k the first has 2/3: enough; before, 1/2 was not */
    EXPECT(o, 1, 0, 0, 0, 0);
    o = plain();
    o.temperature = 2, o.top_p = 0.6; /* roots: 2.828 2 1.414 1 1 of 8.243: .343 .243 .172 -> three are needed */
    EXPECT(o, 2.8284271 / 6.2426407, 2 / 6.2426407, 1.4142136 / 6.2426407, 0, 0);
    o.top_p = 1, o.min_p = 0.4; /* threshold on tempered probabilities: 1 / .707 / .5 / .354 */
    EXPECT(o, 2.8284271 / 6.2426407, 2 / 6.2426407, 1.4142136 / 6.2426407, 0, 0);
}

static void repetition_penalty(void **st) {
    (void)st;
    nb_sampling o = plain();
    o.repetition_penalty = 2;
    /* logits ln2, 0, -ln2, ln4, 0; tokens 0, 2 and 3 were seen, 3 twice (counts once): ln2/2, 0, -2 ln2, ln4/2, 0.
     * 9 and -1 are no tokens. */
    const double odds[V] = {2, 1, .5, 4, 1};
    const int32_t seen[] = {3, 0, 9, 2, -1, 3};
    double sum = sqrt(2) + 1 + .25 + 2 + 1;
    expect(o, odds, seen, 6, (const double[V]){sqrt(2) / sum, 1 / sum, .25 / sum, 2 / sum, 1 / sum});
    o.temperature = 0; /* greedy sees the penalty too: ln4 / 4 < ln2 */
    o.repetition_penalty = 4;
    expect(o, odds, (const int32_t[]){3}, 1, (const double[V]){1, 0, 0, 0, 0});
}

/* 40,000 draws: chi-square with 4 degrees of freedom; 18.5 is its 0.1 % point. */
static void draws_follow_the_distribution(void **st) {
    (void)st;
    nb_sampler s;
    nb_sampler_open(&s, V);
    nb_sampling filters[3] = {plain(), plain(), plain()};
    filters[1].top_k = 3;
    filters[2].top_p = 0.9;
    for (int f = 0; f < 3; f++) {
        int64_t seen[V] = {0}, draws = 40000;
        float logits[V];
        double p[V], chi = 0;
        for (int64_t d = 0; d < draws; d++) {
            int32_t token;
            for (int i = 0; i < V; i++) logits[i] = (float)log(eighths[i]);
            assert_ok(nb_sampler_next(&s, &filters[f], logits, NULL, d % 200, (uint64_t)(d / 200), &token));
            seen[token]++;
        }
        assert_ok(nb_sampler_distribution(&s, &filters[f], logits, NULL, 0, p));
        for (int i = 0; i < V; i++) {
            if (p[i] == 0) assert_int_equal(seen[i], 0);
            else chi += pow((double)seen[i] - p[i] * (double)draws, 2) / (p[i] * (double)draws);
        }
        if (!(chi < 18.5)) fail_msg("filter %d: chi-square %g", f, chi);
    }
    nb_sampler_close(&s);
}

static void draws_depend_on_seed_sequence_and_position_alone(void **st) {
    (void)st;
    nb_sampler one, other;
    nb_sampler_open(&one, 1000);
    nb_sampler_open(&other, 1000);
    nb_sampling o = plain();
    o.seed = 7;
    float *logits = nb_calloc(1000, sizeof *logits);
    int32_t first[50], token;
    int differ = 0;
    for (int i = 0; i < 50; i++) assert_ok(nb_sampler_next(&one, &o, logits, NULL, i, 3, &first[i]));
    for (int i = 49; i >= 0; i--) { /* another order, other draws between, another sampler */
        assert_ok(nb_sampler_next(&other, &o, logits, NULL, i, 4, &token));
        differ += token != first[i];
        assert_ok(nb_sampler_next(&other, &o, logits, NULL, i, 3, &token));
        assert_int_equal(token, first[i]);
    }
    assert_true(differ > 40);
    free(logits);
    nb_sampler_close(&one);
    nb_sampler_close(&other);
}

/* Against the definition by full sorting, on random logits with many equal values. */
static int by_weight(const void *x, const void *y) {
    const nb_candidate *u = x, *v = y;
    return u->logit > v->logit ? -1 : u->logit < v->logit ? 1 : u->id < v->id ? -1 : 1;
}

static void heap_equals_sorting(void **st) {
    (void)st;
    enum { N = 300 };
    nb_sampler s;
    nb_sampler_open(&s, N);
    uint32_t state = 12345;
    for (int trial = 0; trial < 200; trial++) {
        nb_sampling o = plain();
        o.top_k = trial % 3 ? 1 + trial % 40 : 0;
        o.top_p = trial % 2 ? 0.05 + 0.9 * (trial % 17) / 17 : 1;
        float logits[N];
        nb_candidate c[N];
        for (int i = 0; i < N; i++) {
            state = state * 1664525u + 1013904223u;
            logits[i] = (float)(state >> 24) / 40;
            c[i] = (nb_candidate){logits[i], i};
        }
        qsort(c, N, sizeof *c, by_weight);
        int k = o.top_k ? (int)o.top_k : N, kept = 0;
        while (k < N && c[k].logit == c[k - 1].logit) k++;
        double total = 0, mass = 0, p[N];
        for (int i = 0; i < k; i++) total += exp((double)c[i].logit);
        while (kept < k && (kept == 0 || o.top_p >= 1 || mass < o.top_p * total)) mass += exp((double)c[kept++].logit);
        assert_ok(nb_sampler_distribution(&s, &o, logits, NULL, 0, p));
        for (int i = 0; i < N; i++) assert_close(p[c[i].id], i < kept ? exp((double)c[i].logit) / mass : 0, 1e-9);
    }
    nb_sampler_close(&s);
}

/* The most likely tokens alone give the same draws as the whole row, or say that they cannot. least, most: how often,
 * of 100 draws, they can. */
static void most_likely_draw_the_same(void **st) {
    (void)st;
    enum { N = 3001, TRIALS = 100 };
    static const struct {
        double temperature, top_p, min_p, penalty, spread;
        int64_t top_k;
        bool ties;
        int least, most;
    } cases[] = {
        {0, 1, 0, 1, 8, 0, false, 100, 100}, {0, 1, 0, 1, 8, 0, true, 100, 100},     /* greedy */
        {1, 1, 0, 1, 8, 40, false, 100, 100}, {0.7, 0.9, 0.05, 1, 8, 40, false, 100, 100},
        {1, 1, 0, 1, 2, 40, true, 0, 20}, /* hundreds equal the 40th, except where most are masked */
        {1, 1, 0, 1, 8, 255, false, 100, 100}, {1, 1, 0, 1, 8, 256, false, 0, 0},    /* is the 257th equal? */
        {0.5, 0.9, 0, 1, 12, 0, false, 95, 100}, {0.5, 0.9, 0.01, 1, 12, 0, false, 95, 100},
        {5, 0.9, 0, 1, 8, 0, false, 0, 0},                                           /* spread over thousands */
        {1, 1, 0.2, 1, 8, 0, false, 95, 100}, {9, 1, 0.2, 1, 8, 0, false, 0, 0},
        {1, 1, 0, 1, 8, 0, false, 0, 0}, {1, 1, 0, 1.1, 8, 40, false, 0, 0}, {0, 1, 0, 1.1, 8, 0, false, 0, 0},
    };
    nb_dev *d;
    nb_tops tops;
    nb_sampler s;
    assert_ok(nb_dev_open(&d, "cpu", NB_F32));
    assert_ok(nb_tops_open(&tops, d, 1, N));
    nb_sampler_open(&s, N);
    float logits[N];
    for (int c = 0; c < NB_LEN(cases); c++) {
        int sure_of = 0;
        for (int trial = 0; trial < TRIALS; trial++) {
            nb_sampling o = {.temperature = cases[c].temperature, .top_k = cases[c].top_k, .top_p = cases[c].top_p,
                             .min_p = cases[c].min_p, .repetition_penalty = cases[c].penalty, .seed = (uint64_t)trial};
            nb_rng r = nb_rng_open(o.seed, NB_RNG_TEST, (uint64_t)c);
            for (int i = 0; i < N; i++) {
                logits[i] = (float)(cases[c].spread * nb_rng_normal(&r) / 4);
                if (cases[c].ties) logits[i] = rintf(logits[i]);
                if (trial % 5 == 0 && i % 3) logits[i] = -INFINITY;
            }
            int32_t of_top, of_all;
            bool sure;
            assert_ok(nb_tops_find(&tops, logits, 1, N, nb_sampling_rate(&o)));
            nb_top top = nb_tops_row(&tops, 0);
            nb_sampler_next_of_top(&s, &o, &top, trial, 7, &of_top, &sure);
            assert_ok(nb_sampler_next(&s, &o, logits, (int32_t[]){1, 2, 3}, 3, 7, &of_all));
            if (!sure) continue;
            sure_of++;
            assert_ok(nb_sampler_next(&s, &o, logits, NULL, trial, 7, &of_all));
            if (of_top != of_all) fail_msg("case %d, trial %d: token %d, wanted %d", c, trial, of_top, of_all);
        }
        if (sure_of < cases[c].least || sure_of > cases[c].most) fail_msg("case %d: sure of %d draws", c, sure_of);
    }
    /* few tokens, all at hand; and rows there is nothing to draw from */
    nb_sampling o = {.temperature = 1, .top_p = 0.9, .repetition_penalty = 1};
    nb_tops_close(&tops);
    assert_ok(nb_tops_open(&tops, d, 1, 40));
    s.vocab = 40;
    for (int trial = 0; trial < 50; trial++) {
        int32_t of_top, of_all;
        bool sure;
        for (int i = 0; i < 40; i++) logits[i] = (float)((i * 7 + trial) % 11);
        assert_ok(nb_tops_find(&tops, logits, 1, 40, 1));
        nb_top top = nb_tops_row(&tops, 0);
        nb_sampler_next_of_top(&s, &o, &top, trial, 7, &of_top, &sure);
        assert_ok(nb_sampler_next(&s, &o, logits, NULL, trial, 7, &of_all));
        assert_true(sure);
        assert_int_equal(of_top, of_all);
        logits[trial % 40] = trial % 2 ? NAN : INFINITY;
        assert_ok(nb_tops_find(&tops, logits, 1, 40, 1));
        top = nb_tops_row(&tops, 0);
        nb_sampler_next_of_top(&s, &o, &top, trial, 7, &of_top, &sure);
        assert_false(sure);
    }
    nb_sampler_close(&s);
    nb_tops_close(&tops);
    nb_dev_close(d);
}

static void bad_values(void **st) {
    (void)st;
    nb_sampling o = plain();
    assert_ok(nb_sampling_check(&o));
    o.temperature = -1;
    assert_fails(nb_sampling_check(&o), NB_EINPUT, "temperature");
    o.temperature = NAN;
    assert_fails(nb_sampling_check(&o), NB_EINPUT, "temperature");
    o = plain(), o.top_p = 0;
    assert_fails(nb_sampling_check(&o), NB_EINPUT, "top-p");
    o = plain(), o.top_k = -1;
    assert_fails(nb_sampling_check(&o), NB_EINPUT, "top-k");
    o = plain(), o.min_p = 1.5;
    assert_fails(nb_sampling_check(&o), NB_EINPUT, "min-p");
    o = plain(), o.repetition_penalty = 0;
    assert_fails(nb_sampling_check(&o), NB_EINPUT, "repetition-penalty");
    nb_sampler s;
    nb_sampler_open(&s, 3);
    int32_t token;
    float nan[3] = {0, NAN, 1}, none[3] = {-INFINITY, -INFINITY, -INFINITY}, some[3] = {-INFINITY, -9, -INFINITY};
    o = plain();
    assert_fails(nb_sampler_next(&s, &o, nan, NULL, 0, 0, &token), NB_ENUMERIC, "token 1");
    assert_fails(nb_sampler_next(&s, &o, none, NULL, 0, 0, &token), NB_ENUMERIC, "infinite");
    assert_ok(nb_sampler_next(&s, &o, some, NULL, 0, 0, &token));
    assert_int_equal(token, 1);
    nb_sampler_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature), cmocka_unit_test(top_k), cmocka_unit_test(top_p), cmocka_unit_test(min_p),
        cmocka_unit_test(order_of_filters), cmocka_unit_test(repetition_penalty),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(draws_depend_on_seed_sequence_and_position_alone),
        cmocka_unit_test(heap_equals_sorting), cmocka_unit_test(most_likely_draw_the_same),
        cmocka_unit_test(bad_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
