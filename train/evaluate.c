#include "train/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "core/mem.h"

static nb_status mean_loss(nb_run *r, const nb_dataset *d, double *sum, int64_t *trained) {
    nb_eval_iter *it;
    nb_batch b;
    bool done = false;
    *sum = 0;
    *trained = 0;
    NB_TRY(nb_eval_iter_open(&it, d, r->eval->max_tokens));
    nb_status st = nb_eval_iter_next(it, &b, &done);
    while (st == NB_OK && !done) {
        double part;
        st = nb_runner_loss(r->eval, &b, 0, &part, NULL);
        *sum += part;
        *trained += b.n_trained;
        if (st == NB_OK) st = nb_eval_iter_next(it, &b, &done);
    }
    nb_eval_iter_free(it);
    return st;
}

/* metric_for_best_model: NAME/METRIC, or "loss" (the mean over all sets). */
static nb_status choose(const nb_run *r, nb_evaluation *e) {
    const char *want = r->config->metric_for_best_model;
    e->chosen_name = want && *want && strcmp(want, "eval_loss") != 0 ? want : "loss";
    const json_t *v = json_object_get(e->metrics, e->chosen_name);
    if (!v)
        return nb_fail(NB_EINPUT, "metric_for_best_model: \"%s\" is not among the metrics (NAME/loss, NAME/exact_match, ... of the held-out "
                       "sets)", e->chosen_name);
    const char *metric = strrchr(e->chosen_name, '/');
    metric = metric ? metric + 1 : e->chosen_name;
    e->higher_is_better = strcmp(metric, "loss") && strcmp(metric, "perplexity") && strcmp(metric, "bits_per_byte");
    e->chosen = json_number_value(v);
    return NB_OK;
}

nb_status nb_evaluate_held_out(nb_run *r, nb_evaluation *e) {
    *e = (nb_evaluation){.metrics = json_object()};
    nb_text text = {0};
    double all = 0;
    nb_status st = NB_OK;
    for (int i = 0; i < r->data.n_held_out && st == NB_OK; i++) {
        const nb_dataset *d = r->data.held_out[i];
        double sum;
        int64_t trained;
        st = mean_loss(r, d, &sum, &trained);
        if (st == NB_OK && !trained) st = nb_fail(NB_EINPUT, "held-out set %s has no trained token", nb_dataset_name(d));
        if (st != NB_OK) break;
        double loss = sum / (double)trained;
        char *key = nb_asprintf("%s/loss", nb_dataset_name(d));
        json_object_set_new(e->metrics, key, json_real(loss));
        nb_text_printf(&text, "%s%s %.4f (perplexity %.2f)", i ? ", " : "", key, loss, exp(loss));
        free(key);
        all += loss;
    }
    if (st == NB_OK) {
        json_object_set_new(e->metrics, "loss", json_real(all / r->data.n_held_out));
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
