#include "train/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/interrupt.h"
#include "core/json.h"
#include "core/mem.h"

/* metric_for_best_model: NAME/METRIC, or "loss" (the mean over all sets). */
static nb_status choose(const nb_run *r, nb_evaluation *e) {
    const char *want = r->config->metric_for_best_model;
    e->chosen_name = want && *want && strcmp(want, "eval_loss") != 0 ? want : "loss";
    const json_t *v = json_object_get(e->metrics, e->chosen_name);
    if (!v)
        return nb_fail(
            NB_EINPUT,
            "metric_for_best_model: \"%s\" is not among the metrics (NAME/loss, NAME/exact_match, ... of the held-out "
            "sets)",
            e->chosen_name);
    const char *metric = strrchr(e->chosen_name, '/');
    metric = metric ? metric + 1 : e->chosen_name;
    e->higher_is_better = strcmp(metric, "loss") && strcmp(metric, "perplexity") && strcmp(metric, "bits_per_byte");
    e->chosen = json_number_value(v);
    return NB_OK;
}

static void put(json_t *metrics, const char *set, const char *metric, double value) {
    char *key = nb_asprintf("%s/%s", set, metric);
    if (isfinite(value)) json_object_set_new(metrics, key, json_real(value));
    free(key);
}

static void describe(nb_evaluation *e, nb_text *text, const nb_heldout_result *h) {
    put(e->metrics, h->name, "loss", h->loss);
    put(e->metrics, h->name, "perplexity", h->perplexity);
    put(e->metrics, h->name, "bits_per_byte", h->bits_per_byte);
    nb_text_printf(text, "%s%s loss %.4f (perplexity %.2f)", text->n ? "; " : "", h->name, h->loss, h->perplexity);
    for (int m = NB_METRIC_LOSS + 1; m < NB_METRIC_COUNT; m++) {
        if (!(h->metrics >> m & 1)) continue;
        put(e->metrics, h->name, nb_metrics[m].name, h->score[m]);
        nb_text_printf(text, ", %s %.1f %%", nb_metrics[m].name, 100 * h->score[m]);
    }
}

/* Keys in the order in which they come back from a checkpoint: what is made of them is then the same bytes. */
static json_t *sorted(json_t *metrics) {
    char *text = json_dumps(metrics, JSON_SORT_KEYS);
    json_t *same = json_loads(text, 0, NULL);
    free(text);
    json_decref(metrics);
    return same;
}

nb_status nb_evaluate_held_out(nb_run *r, nb_evaluation *e) {
    *e = (nb_evaluation){.metrics = json_object()};
    nb_text text = {0};
    double all = 0;
    nb_status st = NB_OK;
    if (r->evaluator.generator) nb_generator_forget(r->evaluator.generator);
    for (int i = 0; i < r->data.n_held_out && st == NB_OK; i++) {
        nb_heldout_result h;
        /* Ranks that share the base's layers out use them in step: each does all of it, a signal waits, and after a
         * failure that may be ours alone the others would wait for ever. */
        bool in_step = r->model->weights.shared != NULL;
        nb_heldout_args a = {
            .evaluator = &r->evaluator, .set = &r->held_out[i], .comm = in_step ? NULL : r->comm};
        nb_interrupt_hold(in_step);
        st = nb_heldout_eval(&h, &a);
        nb_interrupt_hold(false);
        if (in_step && (st == NB_EIO || st == NB_ENOMEM)) r->comm->broken = true;
        if (st == NB_ENUMERIC)
            st = nb_fail(
                NB_ENUMERIC,
                "%s: the held-out loss is not finite: lower learning_rate or set max_grad_norm; the last checkpoint "
                "is good",
                r->held_out[i].name);
        if (st == NB_OK) describe(e, &text, &h);
        all += h.loss;
        nb_heldout_result_free(&h);
    }
    if (st == NB_OK) {
        json_object_set_new(e->metrics, "loss", json_real(all / r->data.n_held_out));
        e->metrics = sorted(e->metrics);
        st = choose(r, e);
    }
    e->text = text.s;
    if (st != NB_OK) {
        json_decref(e->metrics);
        nb_text_free(&text);
        *e = (nb_evaluation){0};
    }
    return st;
}
