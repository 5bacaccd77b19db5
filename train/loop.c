#include "train/loop.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/interrupt.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "train/evaluate.h"
#include "train/output.h"
#include "train/schedule.h"

typedef struct loop {
    nb_run run;
    nb_config *c;
    nb_schedule schedule;
    nb_train_state s;
    FILE *metrics;
    int lock;               /* on output_dir; -1: none */
    nb_progress bar;
    double started, tps;    /* seconds; tokens per second, smoothed */
    int64_t first_step;
    bool stop;              /* early stopping */
    bool finished;          /* ... before we began: nothing is left to do */
} loop;

/* ---- one step ---- */

/* Names the documents of a step whose loss or gradient is not finite. */
static nb_status not_finite(const loop *l, const nb_batch *b, int n, double loss, double norm) {
    nb_text docs = {0};
    uint32_t last = UINT32_MAX;
    for (int i = 0; i < n; i++)
        for (int64_t t = 0; t < b[i].n && docs.n < 200; t++)
            if (b[i].sample[t] != last) nb_text_printf(&docs, "%s%u", docs.n ? ", " : "", last = b[i].sample[t]);
    nb_status st = nb_fail(
        NB_ENUMERIC,
        "step %lld: loss %g, gradient norm %g: nothing was updated. Samples of the step: %s. Lower "
        "learning_rate, set max_grad_norm, or look at these rows with `nibble data`; the last checkpoint is good",
        (long long)l->s.step + 1, loss, norm, docs.s ? docs.s : "none");
    nb_text_free(&docs);
    return st;
}

static nb_status one_step(loop *l, double *loss, double *norm, double *rate) {
    nb_run *r = &l->run;
    const nb_batch *b;
    int n;
    int64_t trained, tokens = 0;
    double start = nb_now(), sum = 0;
    NB_TRY(nb_loader_step(r->loader, l->s.step, &b, &n, &trained));
    nb_optimizer_begin(&r->optimizer);
    r->train->tape->step = (uint32_t)l->s.step;
    for (int i = 0; i < n; i++) {
        double part;
        NB_TRY(nb_runner_loss(r->train, &b[i], 1.0f / (float)trained, &part, NULL));
        sum += part;
        tokens += b[i].n;
    }
    *loss = sum / (double)trained;
    if (!isfinite(*loss)) return not_finite(l, b, n, *loss, NAN);
    *rate = nb_schedule_rate(&l->schedule, l->s.step);
    NB_TRY(nb_optimizer_step(&r->optimizer, l->s.step + 1, *rate, norm));
    if (!isfinite(*norm)) return not_finite(l, b, n, *loss, *norm);
    l->s.step++;
    l->s.tokens += tokens;
    double tps = (double)tokens / (nb_now() - start);
    l->tps = l->tps > 0 ? 0.9 * l->tps + 0.1 * tps : tps;
    return NB_OK;
}

static nb_status log_step(loop *l, double loss, double norm, double rate) {
    const nb_config *c = l->c;
    double epoch = nb_loader_epoch_of(l->run.loader, l->s.step);
    NB_TRY(nb_metrics_write(l->metrics, c,
                            json_pack("{s:I, s:f, s:f, s:f, s:f, s:I, s:f, s:I}", "step", (json_int_t)l->s.step,
                                      "epoch", epoch, "loss", loss, "learning_rate", rate, "grad_norm", norm, "tokens",
                                      (json_int_t)l->s.tokens, "tokens_per_second", l->tps, "peak_memory",
                                      (json_int_t)nb_peak_memory())));
    char note[128], left[16];
    snprintf(note, sizeof note, "loss %.4f, lr %.2e, |g| %.3f, %.0f tok/s", loss, rate, norm, l->tps);
    if (nb_stderr_is_tty()) {
        nb_progress_set(&l->bar, (double)l->s.step, note);
    } else if (l->s.step % c->logging_steps == 0 || l->s.step == l->run.total_steps) {
        double done = (double)(l->s.step - l->first_step), todo = (double)(l->run.total_steps - l->s.step);
        nb_info("step %lld/%lld  epoch %.2f  %s  %s left", (long long)l->s.step, (long long)l->run.total_steps, epoch,
                note, nb_duration((nb_now() - l->started) / done * todo, left));
    }
    if (c->loss_watchdog_threshold > 0) {
        l->s.watchdog = loss > c->loss_watchdog_threshold ? l->s.watchdog + 1 : 0;
        if (l->s.watchdog >= c->loss_watchdog_patience)
            return nb_fail(NB_ENUMERIC,
                           "step %lld: the loss was above loss_watchdog_threshold %g for %lld steps: stopped; the last "
                           "checkpoint is good",
                           (long long)l->s.step, c->loss_watchdog_threshold, (long long)l->s.watchdog);
    }
    return NB_OK;
}

/* ---- evaluation, saving ---- */

/* Is something that happens `per_epoch` times an epoch, or every `steps` steps, due after step s? */
static bool due(const loop *l, int when, int64_t steps, int64_t per_epoch, int64_t s) {
    if (when == NB_WHEN_NO) return false;
    if (s == l->run.total_steps) return true;
    if (when == NB_WHEN_STEPS) return steps > 0 && s % steps == 0;
    double k = (double)(per_epoch > 0 ? per_epoch : 1);
    return floor(nb_loader_epoch_of(l->run.loader, s) * k + 1e-9) >
           floor(nb_loader_epoch_of(l->run.loader, s - 1) * k + 1e-9);
}

static void forget_eval(loop *l) {
    json_decref(l->s.eval);
    l->s.eval = NULL;
}

static bool out_of_patience(const loop *l) {
    return l->c->early_stopping_patience && l->s.bad_evals >= l->c->early_stopping_patience;
}

static nb_status evaluate(loop *l) {
    nb_run *r = &l->run;
    const nb_config *c = l->c;
    nb_evaluation e;
    forget_eval(l);
    NB_TRY(nb_evaluate_held_out(r, &e));
    l->s.eval = e.metrics;
    nb_info("step %lld: held out: %s", (long long)l->s.step, e.text);
    free(e.text);
    NB_TRY(nb_metrics_write(l->metrics, c, json_pack("{s:I, s:f, s:O}", "step", (json_int_t)l->s.step, "epoch",
                                                     nb_loader_epoch_of(r->loader, l->s.step), "eval", e.metrics)));
    bool better = !l->s.best_step || (e.higher_is_better ? e.chosen > l->s.best : e.chosen < l->s.best);
    if (better) {
        l->s.best = e.chosen;
        l->s.best_step = l->s.step;
        l->s.bad_evals = 0;
        return nb_output_save_model(r, "best", l->s.step, e.metrics);
    }
    l->s.bad_evals++;
    if (out_of_patience(l)) {
        nb_info("stopping early: %s has not improved for %lld evaluations (best %.4f at step %lld)", e.chosen_name,
                (long long)l->s.bad_evals, l->s.best, (long long)l->s.best_step);
        l->stop = true;
    }
    return NB_OK;
}

static nb_status save(loop *l) {
    NB_TRY(nb_checkpoint_save(&l->run, &l->s));
    return nb_checkpoint_prune(l->c, l->s.best_step);
}

static nb_status leave_on_signal(loop *l) {
    NB_TRY(save(l));
    return nb_fail(NB_EINTERRUPTED,
                   "stopped by %s after step %lld of %lld; saved %s/checkpoint-%lld. Go on with the same command "
                   "(it resumes by itself)",
                   nb_interrupted() == SIGTERM ? "SIGTERM" : "SIGINT", (long long)l->s.step,
                   (long long)l->run.total_steps, l->c->output_dir, (long long)l->s.step);
}

/* ---- the run ---- */

/* After a step, or first thing on resuming where a signal had cut it short. */
static nb_status evaluate_and_save(loop *l) {
    const nb_config *c = l->c;
    int64_t s = l->s.step;
    if (l->run.data.n_held_out &&
        (l->s.eval_pending || due(l, c->eval_strategy, c->eval_steps, c->evals_per_epoch, s))) {
        l->s.eval_pending = true;
        nb_status st = evaluate(l);
        if (st == NB_EINTERRUPTED) return leave_on_signal(l);
        NB_TRY(st);
        l->s.eval_pending = false;
    }
    if (nb_interrupted()) return leave_on_signal(l);
    return l->stop || due(l, c->save_strategy, c->save_steps, c->saves_per_epoch, s) ? save(l) : NB_OK;
}

static nb_status steps(loop *l) {
    if (l->s.eval_pending) NB_TRY(evaluate_and_save(l));
    while (l->s.step < l->run.total_steps && !l->stop) {
        double loss, norm = 0, rate = 0;
        NB_TRY(one_step(l, &loss, &norm, &rate));
        NB_TRY(log_step(l, loss, norm, rate));
        forget_eval(l);
        NB_TRY(evaluate_and_save(l));
    }
    return NB_OK;
}

static void greet(const loop *l) {
    const nb_run *r = &l->run;
    const nb_spec *s = &r->base->spec;
    char buf[16], act[16];
    if (!r->dev->be->host_memory) nb_info("device    %s", r->dev->label);
    nb_info("base      %s: %s, %.1f M parameters, %s, computing in %s (%s)", r->base->dir, s->family,
            (double)nb_spec_parameters(s) / 1e6,
            r->base->quantized ? "NF4" : nb_format_name(r->base->layer[0].lin[0].w.format),
            nb_dtype_name(r->dev->compute), r->dev->gemm);
    if (r->adapter->full) nb_info("training  all weights");
    else
        nb_info("training  LoRA r=%lld alpha=%g%s on %d modules: %.2f M parameters (%.2f %%)", (long long)r->adapter->r,
                r->adapter->alpha, r->adapter->rslora ? " (rsLoRA)" : "", r->adapter->n_attached,
                (double)nb_adapter_size(r->adapter) / 1e6,
                100.0 * (double)nb_adapter_size(r->adapter) / (double)nb_spec_parameters(s));
    nb_info("data      %lld rows; %lld steps of %lld x %lld sequences of up to %lld tokens, %.0f %% full",
            (long long)r->data.n_samples, (long long)r->total_steps, (long long)l->c->gradient_accumulation_steps,
            (long long)l->c->micro_batch_size, (long long)r->sequence_len, 100 * nb_loader_fill(r->loader));
    nb_memory_plan m = nb_run_memory(r);
    nb_info("memory    %s planned, %s of it activations", nb_bytes((double)m.total, buf),
            nb_bytes((double)r->arena.bytes, act));
}

/* The final weights go to adapter/ (model/ with adapter: full): the last ones, or the best with
 * load_best_model_at_end. */
static nb_status finish(loop *l) {
    nb_run *r = &l->run;
    const char *name = r->adapter->full ? "model" : "adapter";
    char *best = nb_path_join(l->c->output_dir, "best"), took[16];
    nb_status st = NB_OK;
    if (l->c->load_best_model_at_end && l->s.best_step && l->s.best_step != l->s.step && nb_is_dir(best)) {
        st = nb_output_copy_model(l->c, "best", name);
        nb_info("the best step was %lld: %s/%s is a copy of %s", (long long)l->s.best_step, l->c->output_dir, name,
                best);
    } else {
        st = nb_output_save_model(r, name, l->s.step, l->s.eval);
    }
    if (st == NB_OK)
        nb_info("done      %lld steps in %s; %s/%s", (long long)l->s.step, nb_duration(nb_now() - l->started, took),
                l->c->output_dir, name);
    if (st == NB_OK) {
        char peak[16], planned[16];
        nb_info("memory    %s at the peak; %s were planned, without the program, its libraries and the data",
                nb_bytes((double)nb_peak_memory(), peak), nb_bytes((double)nb_run_memory(r).total, planned));
    }
    free(best);
    return st;
}

/* Before the first step there is nothing to save. */
static nb_status not_interrupted(const loop *l) {
    if (!nb_interrupted()) return NB_OK;
    return nb_fail(NB_EINTERRUPTED, "stopped before the first step; %s is as it was", l->c->output_dir);
}

static nb_status start(loop *l, const nb_train_options *o, char **resume_from) {
    nb_run *r = &l->run;
    NB_TRY(nb_output_prepare(l->c, o->resume, o->overwrite, resume_from));
    NB_TRY(nb_run_open_model(r, l->c));
    NB_TRY(not_interrupted(l));
    NB_TRY(nb_run_open_adapter(r));
    NB_TRY(not_interrupted(l));
    NB_TRY(nb_run_open_data(r));
    NB_TRY(not_interrupted(l));
    NB_TRY(nb_run_open_runners(r));
    NB_TRY(not_interrupted(l));
    NB_TRY(nb_output_space(r));
    l->schedule = nb_schedule_of(l->c, r->total_steps);
    if (*resume_from) {
        NB_TRY(nb_checkpoint_load(r, &l->s, *resume_from));
        l->stop = !l->s.eval_pending && out_of_patience(l);
        bool last = l->stop || l->s.step == r->total_steps;
        l->finished = last && !l->s.eval_pending && nb_output_is_finished(l->c, r->adapter->full);
        if (l->finished) return NB_OK;
        nb_info("resuming  %s (step %lld of %lld)", *resume_from, (long long)l->s.step, (long long)r->total_steps);
    }
    NB_TRY(nb_output_begin(l->c, o->overwrite, l->s.step, &l->lock));
    return nb_metrics_open(&l->metrics, l->c, &l->s);
}

nb_status nb_train(nb_config *c, const nb_train_options *o) {
    loop l = {.c = c, .lock = -1};
    char *resume_from = NULL;
    nb_interrupt_install();
    nb_status st = start(&l, o, &resume_from);
    if (st == NB_OK && l.finished) {
        nb_info("complete  %s holds this run's result after %lld steps: nothing is left to do (--overwrite starts anew)",
                c->output_dir, (long long)l.s.step);
    } else if (st == NB_OK) {
        greet(&l);
        l.first_step = l.s.step;
        l.started = nb_now();
        nb_progress_begin(&l.bar, "train", (double)l.run.total_steps, "steps");
        st = steps(&l);
        nb_progress_end(&l.bar);
    }
    if (st == NB_OK && !l.finished) st = finish(&l);
    if (l.metrics) fclose(l.metrics);
    if (l.lock >= 0) close(l.lock);
    forget_eval(&l);
    free(resume_from);
    nb_run_close(&l.run);
    return st;
}
