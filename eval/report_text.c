/* The table on the terminal:
 *
 *   support-heldout: 400 rows, 6213 trained tokens
 *                           base   adapter difference  [95 % interval]
 *     loss                1.2345    0.1234    -1.1111  [-1.2000, -1.0500]   better
 */
#include <string.h>

#include "eval/report.h"

static const char *color_of(nb_verdict v, bool color) {
    static const char *const code[] = {"", "\033[32m", "\033[31m"};
    return color ? code[v] : "";
}

static void row(nb_text *out, const nb_difference *d, bool color) {
    char base[24], adapter[24], diff[24], low[24], high[24], interval[64];
    nb_measure_text(base, d->measure, d->base);
    nb_measure_text(adapter, d->measure, d->adapter);
    nb_difference_text(diff, d->measure, d->diff);
    nb_difference_text(low, d->measure, d->low);
    nb_difference_text(high, d->measure, d->high);
    snprintf(interval, sizeof interval, "[%s, %s]", low, high);
    nb_text_printf(out, "  %-18s %9s %9s %10s  %-20s %s%s%s\n", nb_measures[d->measure].title, base, adapter, diff,
                   interval, color_of(d->verdict, color),
                   d->verdict == NB_SAME ? "no clear difference" : nb_verdict_word(d->verdict),
                   color && d->verdict != NB_SAME ? "\033[0m" : "");
}

static void base_rows(nb_text *out, const nb_heldout_result *r) {
    char value[24];
    for (int m = 0; m < NB_MEASURE_COUNT; m++) {
        double v = nb_measure_value(r, (nb_measure)m);
        nb_measure_text(value, (nb_measure)m, v);
        if (v == v) nb_text_printf(out, "  %-18s %9s\n", nb_measures[m].title, value);
    }
}

/* Answers that did not end by themselves are worth a word: the token limit may be too low. */
static void cut_answers(nb_text *out, const char *who, const nb_heldout_result *r) {
    int64_t cut = r->stopped[NB_STOP_LIMIT], full = r->stopped[NB_STOP_CONTEXT];
    if (r->metrics == 1u << NB_METRIC_LOSS || !(cut + full)) return;
    nb_text_printf(out, "  %s: %lld of %lld answers ran into max_new_tokens", who, (long long)cut, (long long)r->rows);
    if (full) nb_text_printf(out, ", %lld into the end of the context", (long long)full);
    nb_text_puts(out, "\n");
}

static void set_text(nb_text *out, const nb_report_set *s, bool color) {
    const nb_comparison *c = &s->cmp;
    nb_text_printf(out, "%s: %lld rows, %lld trained tokens\n", s->base.name, (long long)s->base.rows,
                   (long long)s->base.tokens);
    if (!s->adapter.rows) {
        nb_text_printf(out, "  %-18s %9s\n", "", "base");
        base_rows(out, &s->base);
        cut_answers(out, "base", &s->base);
        return;
    }
    nb_text_printf(out, "  %-18s %9s %9s %10s  %s\n", "", "base", "adapter", "difference", "[95 % interval]");
    for (int j = 0; j < c->n; j++) row(out, &c->d[j], color);
    nb_text_printf(out, "  rows by %s: %lld won, %lld lost, %lld the same\n",
                   nb_measures[c->d[c->headline].measure].title, (long long)c->won, (long long)c->lost,
                   (long long)c->tied);
    cut_answers(out, "base", &s->base);
    cut_answers(out, "adapter", &s->adapter);
    nb_text_printf(out, "  verdict: %s", color_of(c->d[c->headline].verdict, color));
    nb_verdict_text(out, &c->d[c->headline]);
    nb_text_puts(out, color ? "\033[0m\n" : "\n");
}

void nb_report_text(nb_text *out, const nb_report *r, bool color) {
    nb_text_printf(out, "base %s (%s)\n", r->base, r->weights);
    if (r->adapter) nb_text_printf(out, "adapter %s\n", r->adapter);
    for (int i = 0; i < r->n_sets; i++) {
        nb_text_puts(out, "\n");
        set_text(out, &r->sets[i], color);
    }
}
