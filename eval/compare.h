/* Did the adapter help? Two models on the same rows: the difference of every measure, a 95 % interval, a test, and
 * a verdict in words.
 *
 * Interval: paired bootstrap (Efron, 1979): rows are drawn with replacement, both models on the same ones, and the
 * difference is worked out anew; the interval holds the middle 95 % of the differences.
 * Test: if the two models were equally good, the sign of each row's difference would be chance. p is the share of
 * sign patterns that give a difference at least as large (a randomization test; for measures that are 0 or 1 it is
 * McNemar's exact test). It does not rise above its level however few rows differ, which intervals alone do.
 * A difference is called significant when p < 0.05 and the interval excludes 0. */
#ifndef NB_EVAL_COMPARE_H
#define NB_EVAL_COMPARE_H

#include "eval/heldout.h"

/* What is compared: a measure is sum(numerators) / sum(weights) over rows, or exp of it. */
typedef enum nb_measure {
    NB_MEASURE_LOSS,
    NB_MEASURE_PERPLEXITY,
    NB_MEASURE_BITS_PER_BYTE,
    NB_MEASURE_EXACT_MATCH, /* from here: NB_MEASURE_BITS_PER_BYTE + nb_metric */
    NB_MEASURE_F1,
    NB_MEASURE_ROUGE_L,
    NB_MEASURE_REGEX,
    NB_MEASURE_JSON_VALID,
    NB_MEASURE_COUNT
} nb_measure;

typedef struct nb_measure_info {
    const char *name, *title; /* "bits_per_byte", "bits per byte" */
    bool lower_is_better;
    bool percent;             /* shown times 100; differences are points */
    bool binary;
} nb_measure_info;
extern const nb_measure_info nb_measures[NB_MEASURE_COUNT];

/* The value of a measure in a result; NAN when it was not measured. */
double nb_measure_value(const nb_heldout_result *r, nb_measure m);

typedef enum nb_verdict { NB_SAME, NB_BETTER, NB_WORSE } nb_verdict; /* NB_SAME: no significant difference */
const char *nb_verdict_word(nb_verdict v); /* "no significant difference", "better", "worse" */

typedef struct nb_difference {
    nb_measure measure;
    double base, adapter, diff; /* diff = adapter - base */
    double low, high;           /* 95 % interval of diff */
    double p;
    nb_verdict verdict;
} nb_difference;

typedef struct nb_comparison {
    nb_difference d[NB_MEASURE_COUNT];
    int n;
    int headline;              /* d[headline]: the first measure of answers, or the loss */
    int64_t won, lost, tied;   /* rows by the headline's measure */
    int64_t rows;
} nb_comparison;

enum { NB_RESAMPLES = 10000 };

/* Both results over the same rows of the same set, or NB_EINPUT. Same seed, same numbers, for any thread count. */
nb_status nb_compare(nb_comparison *out, const nb_heldout_result *base, const nb_heldout_result *adapter,
                     uint64_t seed);

/* +1 when the adapter did better on this row by measure m, -1 worse, 0 the same. */
int nb_compare_row(const nb_row_result *base, const nb_row_result *adapter, nb_measure m);

/* "better: exact match +91.2 points [88.1, 94.0]" */
void nb_verdict_text(nb_text *out, const nb_difference *d);
/* A value ("93.4 %", "1.2345"), a difference ("+91.2", "-0.5234") as reports print them. */
void nb_measure_text(char buf[24], nb_measure m, double value);
void nb_difference_text(char buf[24], nb_measure m, double diff);

/* The statistics alone. numerators and weights of row i for k measures: x[(i * k + j) * 3 + {0 base, 1 adapter,
 * 2 weight}]; d[j].measure says how to take it (exp for perplexity, McNemar for binary ones). */
void nb_compare_rows(nb_difference *d, int k, const double *x, int64_t n, int resamples, uint64_t seed);

#endif
