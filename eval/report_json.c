/* The report as JSON. Shares are from 0 to 1, losses in nats; what was not measured is absent. */
#include <math.h>

#include "eval/report.h"

static json_t *number(double v) { return isfinite(v) ? json_real(v) : json_null(); }

static void put_string(json_t *o, const char *key, const char *s) {
    if (s) json_object_set_new(o, key, json_string(s)); /* text that is not UTF-8 (a path) is left out */
}

static json_t *measures_json(const nb_report_set *s) {
    json_t *all = json_object();
    for (int m = 0; m < NB_MEASURE_COUNT; m++) {
        double base = nb_measure_value(&s->base, (nb_measure)m);
        if (isnan(base)) continue;
        json_object_set_new(all, nb_measures[m].name, json_pack("{s:o}", "base", number(base)));
    }
    for (int j = 0; j < s->cmp.n; j++) {
        const nb_difference *d = &s->cmp.d[j];
        json_object_set_new(all, nb_measures[d->measure].name,
                            json_pack("{s:o, s:o, s:o, s:[o, o], s:o, s:s}", "base", number(d->base), "adapter",
                                      number(d->adapter), "difference", number(d->diff), "interval_95", number(d->low),
                                      number(d->high), "p", number(d->p), "verdict", nb_verdict_word(d->verdict)));
    }
    return all;
}

static json_t *row_json(const nb_heldout_result *r, const nb_row_result *row) {
    json_t *o = json_object();
    for (int m = 0; m < NB_METRIC_COUNT; m++)
        if (isfinite(row->score[m])) json_object_set_new(o, nb_metrics[m].name, json_real(row->score[m]));
    if (r->metrics > 1u << NB_METRIC_LOSS) {
        json_object_set_new(o, "stop", json_string(nb_stop_name(row->stop)));
        json_object_set_new(o, "answer_tokens", json_integer(row->answer_tokens));
        put_string(o, "answer", row->answer);
    }
    return o;
}

static json_t *rows_json(const nb_report_set *s) {
    json_t *all = json_array();
    for (int64_t i = 0; i < s->base.rows; i++) {
        const nb_row_result *b = &s->base.row[i];
        json_t *o = json_pack("{s:I, s:I}", "record", (json_int_t)b->line, "tokens", (json_int_t)b->tokens);
        put_string(o, "prompt", b->prompt);
        put_string(o, "reference", b->reference);
        json_object_set_new(o, "base", row_json(&s->base, b));
        if (s->adapter.rows) json_object_set_new(o, "adapter", row_json(&s->adapter, &s->adapter.row[i]));
        json_array_append_new(all, o);
    }
    return all;
}

static json_t *set_json(const nb_report_set *s) {
    json_t *o = json_pack("{s:I, s:I, s:I}", "rows", (json_int_t)s->base.rows, "trained_tokens",
                          (json_int_t)s->base.tokens, "trained_bytes", (json_int_t)s->base.bytes);
    put_string(o, "name", s->base.name);
    json_object_set_new(o, "measures", measures_json(s));
    if (s->adapter.rows) {
        const nb_difference *d = &s->cmp.d[s->cmp.headline];
        nb_text words = {0};
        nb_verdict_text(&words, d);
        json_object_set_new(o, "headline", json_string(nb_measures[d->measure].name));
        put_string(o, "verdict", words.s);
        json_object_set_new(o, "rows_won", json_integer(s->cmp.won));
        json_object_set_new(o, "rows_lost", json_integer(s->cmp.lost));
        json_object_set_new(o, "rows_same", json_integer(s->cmp.tied));
        nb_text_free(&words);
    }
    json_object_set_new(o, "per_row", rows_json(s));
    return o;
}

json_t *nb_report_json(const nb_report *r) {
    json_t *o = json_pack("{s:s, s:s, s:i}", "nibble", NB_VERSION, "date", r->date, "bootstrap_resamples",
                          r->adapter ? NB_RESAMPLES : 0), *sets = json_array();
    put_string(o, "base", r->base);
    put_string(o, "base_sha256", r->base_sha256);
    put_string(o, "weights", r->weights);
    put_string(o, "adapter", r->adapter);
    put_string(o, "config", r->config);
    for (int i = 0; i < r->n_sets; i++) json_array_append_new(sets, set_json(&r->sets[i]));
    json_object_set_new(o, "datasets", sets);
    return o;
}
