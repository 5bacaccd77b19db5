#include "eval/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"

const nb_measure_info nb_measures[NB_MEASURE_COUNT] = {
    [NB_MEASURE_LOSS] = {"loss", "loss", true, false, false},
    [NB_MEASURE_PERPLEXITY] = {"perplexity", "perplexity", true, false, false},
    [NB_MEASURE_BITS_PER_BYTE] = {"bits_per_byte", "bits per byte", true, false, false},
    [NB_MEASURE_EXACT_MATCH] = {"exact_match", "exact match", false, true, true},
    [NB_MEASURE_F1] = {"f1", "token F1", false, true, false},
    [NB_MEASURE_ROUGE_L] = {"rouge_l", "ROUGE-L", false, true, false},
    [NB_MEASURE_REGEX] = {"regex", "regular expression", false, true, true},
    [NB_MEASURE_JSON_VALID] = {"json_valid", "valid JSON", false, true, true},
};
static const double LEVEL = 0.05;

static nb_metric metric_of(nb_measure m) { return (nb_metric)(m - NB_MEASURE_BITS_PER_BYTE); }

double nb_measure_value(const nb_heldout_result *r, nb_measure m) {
    return m == NB_MEASURE_LOSS ? r->loss : m == NB_MEASURE_PERPLEXITY ? r->perplexity
         : m == NB_MEASURE_BITS_PER_BYTE ? r->bits_per_byte : r->score[metric_of(m)];
}

const char *nb_verdict_word(nb_verdict v) {
    static const char *const word[] = {"no significant difference", "better", "worse"};
    return word[v];
}

/* ---- the statistics ---- */

static double statistic(nb_measure m, double sum, double weight) {
    return m == NB_MEASURE_PERPLEXITY ? exp(sum / weight) : sum / weight;
}

static double difference(nb_measure m, const double *sums) {
    return statistic(m, sums[1], sums[2]) - statistic(m, sums[0], sums[2]);
}

static int ascending(const void *x, const void *y) {
    double u = *(const double *)x, v = *(const double *)y;
    return (u > v) - (u < v);
}

/* Between the two nearest of the sorted values, linearly. */
static double quantile(const double *sorted, int n, double q) {
    double at = q * (n - 1);
    int i = (int)at;
    return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

/* Resample r: sums over n rows drawn with replacement, and sums of the differences under random signs. Rows are drawn
 * by scaling 32 bits, which favours no row by more than n / 2^32. Philox is called directly: this is where the time
 * goes, and four draws come at once. */
static void resample(const nb_difference *d, int k, const double *x, int64_t n, uint64_t seed, int r, int resamples,
                     double *diffs, int *extreme, const double *observed) {
    double sums[3 * NB_MEASURE_COUNT] = {0}, flipped[NB_MEASURE_COUNT] = {0};
    nb_rng rng = nb_rng_open(seed, NB_RNG_BOOTSTRAP, (uint64_t)r);
    uint32_t draw[4] = {0}, signs[4] = {0};
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) rng.counter[0] = (uint32_t)(i / 4), rng.counter[1] = 0, nb_philox(draw, rng.counter, rng.key);
        if (i % 128 == 0)
            rng.counter[0] = (uint32_t)(i / 128), rng.counter[1] = 1, nb_philox(signs, rng.counter, rng.key);
        const double *drawn = x + (int64_t)((uint64_t)draw[i % 4] * (uint64_t)n >> 32) * 3 * k;
        const double *row = x + i * 3 * k;
        double sign = signs[i / 32 % 4] >> (i % 32) & 1 ? 1 : -1;
        for (int j = 0; j < 3 * k; j++) sums[j] += drawn[j];
        for (int j = 0; j < k; j++) flipped[j] += sign * (row[3 * j + 1] - row[3 * j]);
    }
    for (int j = 0; j < k; j++) {
        diffs[(int64_t)j * resamples + r] = difference(d[j].measure, sums + 3 * j);
        /* sums of the same terms in other orders differ by rounding: as large is as large */
        if (fabs(flipped[j]) >= observed[j] * (1 - 1e-12)) {
#pragma omp atomic
            extreme[j]++;
        }
    }
}

/* McNemar's exact test: of the rows where exactly one model is right, each is a fair coin. */
static double mcnemar(const double *x, int k, int j, int64_t n) {
    int64_t more = 0, less = 0;
    for (int64_t i = 0; i < n; i++) {
        double diff = x[(i * k + j) * 3 + 1] - x[(i * k + j) * 3];
        more += diff > 0, less += diff < 0;
    }
    int64_t all = more + less, few = more < less ? more : less;
    double p = 0;
    for (int64_t i = 0; i <= few; i++)
        p += exp(lgamma((double)all + 1) - lgamma((double)i + 1) - lgamma((double)(all - i) + 1) - (double)all * M_LN2);
    return 2 * p < 1 ? 2 * p : 1;
}

void nb_compare_rows(nb_difference *d, int k, const double *x, int64_t n, int resamples, uint64_t seed) {
    double *diffs = nb_calloc((size_t)k * (size_t)resamples, sizeof *diffs);
    double sums[3 * NB_MEASURE_COUNT] = {0}, observed[NB_MEASURE_COUNT];
    int extreme[NB_MEASURE_COUNT] = {0};
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < 3 * k; j++) sums[j] += x[i * 3 * k + j];
    for (int j = 0; j < k; j++) {
        observed[j] = 0;
        for (int64_t i = 0; i < n; i++) observed[j] += x[(i * k + j) * 3 + 1] - x[(i * k + j) * 3];
        observed[j] = fabs(observed[j]);
        d[j].base = statistic(d[j].measure, sums[3 * j], sums[3 * j + 2]);
        d[j].adapter = statistic(d[j].measure, sums[3 * j + 1], sums[3 * j + 2]);
        d[j].diff = d[j].adapter - d[j].base;
    }
#pragma omp parallel for schedule(static)
    for (int r = 0; r < resamples; r++) resample(d, k, x, n, seed, r, resamples, diffs, extreme, observed);
    for (int j = 0; j < k; j++) {
        const nb_measure_info *info = &nb_measures[d[j].measure];
        double *sorted = diffs + (int64_t)j * resamples;
        qsort(sorted, (size_t)resamples, sizeof *sorted, ascending);
        d[j].low = quantile(sorted, resamples, LEVEL / 2);
        d[j].high = quantile(sorted, resamples, 1 - LEVEL / 2);
        d[j].p = info->binary ? mcnemar(x, k, j, n) : (1.0 + extreme[j]) / (1.0 + resamples);
        bool significant = d[j].p < LEVEL && (d[j].low > 0 || d[j].high < 0);
        d[j].verdict = !significant ? NB_SAME : (d[j].diff < 0) == info->lower_is_better ? NB_BETTER : NB_WORSE;
    }
    free(diffs);
}

/* ---- results to rows ---- */

static void put_row(double x[3], nb_measure m, const nb_row_result *base, const nb_row_result *adapter) {
    if (m == NB_MEASURE_BITS_PER_BYTE) {
        x[0] = base->loss_sum / M_LN2, x[1] = adapter->loss_sum / M_LN2, x[2] = (double)base->bytes;
    } else if (m < NB_MEASURE_BITS_PER_BYTE) {
        x[0] = base->loss_sum, x[1] = adapter->loss_sum, x[2] = (double)base->tokens;
    } else {
        x[0] = base->score[metric_of(m)], x[1] = adapter->score[metric_of(m)], x[2] = 1;
    }
}

int nb_compare_row(const nb_row_result *base, const nb_row_result *adapter, nb_measure m) {
    double x[3];
    put_row(x, m, base, adapter);
    int more = (x[1] > x[0]) - (x[1] < x[0]);
    return nb_measures[m].lower_is_better ? -more : more;
}

static nb_status check_pairs(const nb_heldout_result *base, const nb_heldout_result *adapter) {
    bool same = base->rows == adapter->rows && base->metrics == adapter->metrics && base->rows > 0;
    for (int64_t i = 0; same && i < base->rows; i++)
        same = base->row[i].row == adapter->row[i].row && base->row[i].tokens == adapter->row[i].tokens;
    if (same) return NB_OK;
    return nb_fail(NB_EINPUT,
                   "%s: base and adapter were not measured on the same rows (%lld and %lld): evaluate both with "
                   "the same data and tokenizer",
                   base->name, (long long)base->rows, (long long)adapter->rows);
}

nb_status nb_compare(nb_comparison *out, const nb_heldout_result *base, const nb_heldout_result *adapter,
                     uint64_t seed) {
    NB_TRY(check_pairs(base, adapter));
    *out = (nb_comparison){.rows = base->rows};
    for (int m = 0; m < NB_MEASURE_COUNT; m++)
        if (isfinite(nb_measure_value(base, (nb_measure)m)) && isfinite(nb_measure_value(adapter, (nb_measure)m))) {
            if (m > NB_MEASURE_BITS_PER_BYTE && !out->headline) out->headline = out->n;
            out->d[out->n++].measure = (nb_measure)m;
        }
    if (!out->n) return nb_fail(NB_EINPUT, "%s: no row has a trained token: there is nothing to compare", base->name);
    double *x = nb_calloc((size_t)base->rows * (size_t)out->n * 3, sizeof *x);
    for (int64_t i = 0; i < base->rows; i++)
        for (int j = 0; j < out->n; j++)
            put_row(x + (i * out->n + j) * 3, out->d[j].measure, &base->row[i], &adapter->row[i]);
    nb_compare_rows(out->d, out->n, x, base->rows, NB_RESAMPLES, seed);
    free(x);
    for (int64_t i = 0; i < base->rows; i++) {
        int sign = nb_compare_row(&base->row[i], &adapter->row[i], out->d[out->headline].measure);
        out->won += sign > 0, out->lost += sign < 0, out->tied += sign == 0;
    }
    return NB_OK;
}

/* ---- words ---- */

void nb_measure_text(char buf[24], nb_measure m, double value) {
    if (!isfinite(value)) snprintf(buf, 24, "-");
    else if (nb_measures[m].percent) snprintf(buf, 24, "%.1f %%", 100 * value);
    else if (m == NB_MEASURE_PERPLEXITY)
        snprintf(buf, 24, value < 1000 ? "%.2f" : value < 1e7 ? "%.0f" : "%.2e", value);
    else snprintf(buf, 24, "%.4f", value);
}

void nb_difference_text(char buf[24], nb_measure m, double diff) {
    double shown = nb_measures[m].percent ? 100 * diff : diff;
    int digits = nb_measures[m].percent ? 1 : m == NB_MEASURE_PERPLEXITY ? 2 : 4;
    if (fabs(shown) < 0.5 * pow(10, -digits)) shown = 0; /* "0.0", not "-0.0" */
    snprintf(buf, 24, fabs(shown) < 1e7 ? "%+.*f" : "%+.*e", digits, shown);
}

void nb_verdict_text(nb_text *out, const nb_difference *d) {
    char diff[24], low[24], high[24];
    nb_difference_text(diff, d->measure, d->diff);
    nb_difference_text(low, d->measure, d->low);
    nb_difference_text(high, d->measure, d->high);
    nb_text_printf(out, "%s: %s %s%s [%s, %s]", nb_verdict_word(d->verdict), nb_measures[d->measure].title, diff,
                   nb_measures[d->measure].percent ? " points" : "", low, high);
}
