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
#include "train/recompute.h"
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
    double balance;         /* the last step's load-balancing loss */
    int64_t first_step;
    bool stop;              /* early stopping */
    bool finished;          /* ... before we began: nothing is left to do */
} loop;

/* ---- ranks ---- */

/* Rank 0 writes and speaks for all; on the others the work is done when it is done there. */
static bool is_first(const loop *l) { return l->run.comm->rank == 0; }

/* The outcome of work that every rank did, or rank 0 for all of them: they go on together or stop together. */
static nb_status agree(const loop *l, nb_status st) { return nb_comm_agree(l->run.comm, st); }

/* The number of the signal that any rank has got, which then counts as everyone's; else 0. */
static nb_status common_signal(const loop *l, int *signal_number) {
    nb_comm *c = l->run.comm;
    double *all = nb_calloc((size_t)c->size, sizeof *all);
    nb_status st = nb_comm_list(c, nb_interrupted(), all);
    *signal_number = 0;
    for (int r = c->size - 1; r >= 0 && st == NB_OK; r--)
        if (all[r] > 0) *signal_number = (int)all[r];
    free(all);
    if (*signal_number) nb_interrupt_note(*signal_number);
    return st;
}

static nb_status write_metrics(const loop *l, json_t *line /* stolen */) {
    if (is_first(l)) return nb_metrics_write(l->metrics, l->c, line);
    json_decref(line);
    return NB_OK;
}

/* ---- one step ---- */

/* Names the documents of a step whose loss or gradient is not finite. */
static nb_status not_finite(const loop *l, double loss, double norm) {
    nb_text docs = {0};
    int64_t n;
    const int64_t *samples = nb_loader_samples(l->run.loader, l->s.step, &n);
    for (int64_t i = 0; i < n && docs.n < 200; i++)
        nb_text_printf(&docs, "%s%lld", docs.n ? ", " : "", (long long)samples[i]);
    nb_status st = nb_fail(
        NB_ENUMERIC,
        "step %lld: loss %g, gradient norm %g: nothing was updated. Samples of the step: %s. Lower "
        "learning_rate, set max_grad_norm, or look at these rows with `nibble data`; the last checkpoint is good",
        (long long)l->s.step + 1, loss, norm, docs.s ? docs.s : "none");
    nb_text_free(&docs);
    return st;
}

/* Ranks that share the base's layers out use them in step: one with nothing to train on runs a token whose gradient is
 * multiplied by 0. */
static nb_status go_along(nb_runner *runner) {
    static const int32_t zero[1];
    static const uint32_t sample[1];
    static const nb_seg seg = {0, 1, 0, 1};
    nb_batch b = {.n = 1, .ids = zero, .targets = zero, .pos = zero, .sample = sample, .segs = &seg, .n_segs = 1,
                  .n_trained = 1};
    double ignored;
    return nb_runner_loss(runner, &b, 0, &ignored, NULL);
}

/* Our share of a step: gradients, and in sums the loss, the number of tokens, and the load-balancing loss times trained
 * tokens. *trained is the whole step's. */
static nb_status our_share(loop *l, double sums[3], int64_t *trained) {
    nb_run *r = &l->run;
    const nb_batch *b;
    int n;
    NB_TRY(nb_loader_step(r->loader, l->s.step, &b, &n, trained));
    nb_optimizer_begin(&r->optimizer);
    r->train->tape->step = (uint32_t)l->s.step;
    int64_t rounds = r->model->weights.shared ? nb_loader_rounds(r->loader, l->s.step) : n;
    for (int64_t i = 0; i < rounds; i++) {
        double part = 0;
        bool idle = i >= n || !b[i].n_trained;
        if (!idle) NB_TRY(nb_runner_loss(r->train, &b[i], 1.0f / (float)*trained, &part, NULL));
        else if (r->model->weights.shared) NB_TRY(go_along(r->train));
        sums[0] += part;
        if (!idle) sums[2] += r->train->balance * (double)b[i].n_trained;
        if (i < n) sums[1] += (double)b[i].n;
    }
    return NB_OK;
}

static nb_status one_step(loop *l, double *loss, double *norm, double *rate) {
    nb_run *r = &l->run;
    int64_t trained = 0;
    double start = nb_now(), sums[4] = {0}; /* loss, tokens, load-balancing loss, ranks that failed */
    nb_status st = our_share(l, sums, &trained);
    if (r->model->weights.shared) { /* the others may be waiting for a layer */
        r->comm->broken |= st != NB_OK;
        NB_TRY(st);
    }
    sums[3] = st != NB_OK;
    NB_TRY(nb_comm_sum_f64(r->comm, sums, 4));
    if (sums[3] > 0) return agree(l, st);
    *loss = sums[0] / (double)trained;
    l->balance = sums[2] / (double)trained;
    if (!isfinite(*loss)) return not_finite(l, *loss, NAN);
    *rate = nb_schedule_rate(&l->schedule, l->s.step);
    st = nb_optimizer_step(&r->optimizer, l->s.step + 1, *rate, norm);
    r->comm->broken |= st != NB_OK; /* the others may be waiting for our gradients */
    NB_TRY(st);
    if (!isfinite(*norm)) return not_finite(l, *loss, *norm);
    l->s.step++;
    l->s.tokens += (int64_t)sums[1];
    double tps = sums[1] / (nb_now() - start);
    l->tps = l->tps > 0 ? 0.9 * l->tps + 0.1 * tps : tps;
    return NB_OK;
}

static nb_status log_step(loop *l, double loss, double norm, double rate) {
    const nb_config *c = l->c;
    double epoch = nb_loader_epoch_of(l->run.loader, l->s.step);
    json_t *m = json_pack("{s:I, s:f, s:f, s:f, s:f, s:I, s:f, s:I}", "step", (json_int_t)l->s.step, "epoch", epoch,
                          "loss", loss, "learning_rate", rate, "grad_norm", norm, "tokens", (json_int_t)l->s.tokens,
                          "tokens_per_second", l->tps, "peak_memory", (json_int_t)nb_peak_memory());
    if (l->run.model->n_sparse && l->run.model->aux_coef > 0)
        json_object_set_new(m, "router_aux_loss", json_real(l->balance));
    NB_TRY(write_metrics(l, m));
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
    nb_evaluation e;
    forget_eval(l);
    NB_TRY(nb_evaluate_held_out(r, &e));
    l->s.eval = e.metrics;
    nb_info("step %lld: held out: %s", (long long)l->s.step, e.text);
    free(e.text);
    NB_TRY(agree(l, write_metrics(l, json_pack("{s:I, s:f, s:O}", "step", (json_int_t)l->s.step, "epoch",
                                               nb_loader_epoch_of(r->loader, l->s.step), "eval", e.metrics))));
    bool better = !l->s.best_step || (e.higher_is_better ? e.chosen > l->s.best : e.chosen < l->s.best);
    if (better) {
        l->s.best = e.chosen;
        l->s.best_step = l->s.step;
        l->s.bad_evals = 0;
        return agree(l, is_first(l) ? nb_output_save_model(r, "best", l->s.step, e.metrics) : NB_OK);
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
    return agree(l, is_first(l) ? nb_checkpoint_prune(l->c, l->s.best_step) : NB_OK);
}

static nb_status leave_on_signal(loop *l) {
    int signal_number;
    NB_TRY(common_signal(l, &signal_number));
    NB_TRY(save(l));
    return nb_fail(NB_EINTERRUPTED,
                   "stopped by %s after step %lld of %lld; saved %s/checkpoint-%lld. Go on with the same command "
                   "(it resumes by itself)",
                   signal_number == SIGTERM ? "SIGTERM" : "SIGINT", (long long)l->s.step,
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
    int signal_number;
    NB_TRY(common_signal(l, &signal_number));
    if (signal_number) return leave_on_signal(l);
    return l->stop || due(l, c->save_strategy, c->save_steps, c->saves_per_epoch, s) ? save(l) : NB_OK;
}

static nb_status steps(loop *l) {
    if (l->s.eval_pending) NB_TRY(evaluate_and_save(l));
    while (l->s.step < l->run.total_steps && !l->stop) {
        double loss = 0, norm = 0, rate = 0;
        NB_TRY(one_step(l, &loss, &norm, &rate));
        NB_TRY(agree(l, log_step(l, loss, norm, rate)));
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
            nb_base_format(r->base),
            nb_dtype_name(r->dev->compute), r->dev->gemm);
    if (r->adapter->full) nb_info("training  all weights");
    else
        nb_info("training  LoRA r=%lld alpha=%g%s on %d modules: %.2f M parameters (%.2f %%)", (long long)r->adapter->r,
                r->adapter->alpha, r->adapter->dora     ? " (DoRA)"
                : r->adapter->rslora ? " (rsLoRA)" : "", r->adapter->n_attached,
                (double)nb_adapter_size(r->adapter) / 1e6,
                100.0 * (double)nb_adapter_size(r->adapter) / (double)nb_spec_parameters(s));
    nb_info("data      %lld rows; %lld steps of %lld x %lld sequences of up to %lld tokens, %.0f %% full",
            (long long)r->data.n_samples, (long long)r->total_steps, (long long)l->c->gradient_accumulation_steps,
            (long long)l->c->micro_batch_size, (long long)r->sequence_len, 100 * nb_loader_fill(r->loader));
    if (r->comm->size > 1)
        nb_info("processes %d (%s by %s): %lld sequences a step in all%s", r->comm->size, r->comm->name,
                r->comm->launch.by,
                (long long)(r->comm->size * l->c->gradient_accumulation_steps * l->c->micro_batch_size),
                r->model->weights.shared ? ", the base's layers and the optimizer's state shared out"
                : r->optimizer.shared    ? ", the optimizer's state shared out" : "");
    nb_memory_plan m = nb_run_memory(r);
    nb_info("memory    %s planned, %s of it activations", nb_bytes((double)m.total, buf),
            nb_bytes((double)r->arena.bytes, act));
    if (l->c->gradient_checkpointing != NB_CHECKPOINTING_FALSE) {
        nb_text text = {0};
        nb_recompute_text(r->recompute, s->layers, &text);
        nb_info("backward  computes again: %s", text.s);
        nb_text_free(&text);
    }
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

/* The end of a phase of the start: all is well on every rank, and no signal has come; there is nothing to save yet. The
 * wait may be long. */
static nb_status phase(const loop *l, nb_status st) {
    if (st == NB_OK && nb_interrupted())
        st = nb_fail(NB_EINTERRUPTED, "stopped before the first step; %s is as it was", l->c->output_dir);
    NB_TRY(nb_comm_wait(l->run.comm));
    return agree(l, st);
}

/* The first process of a machine goes ahead: it fills the caches of base and data, which the others then read. */
static nb_status in_turn(loop *l, nb_status (*work)(nb_run *)) {
    bool ahead = l->run.comm->local_rank == 0;
    NB_TRY(phase(l, ahead ? work(&l->run) : NB_OK));
    return l->run.comm->size > 1 ? phase(l, ahead ? NB_OK : work(&l->run)) : NB_OK;
}

static nb_status resume(loop *l, const char *from) {
    nb_run *r = &l->run;
    NB_TRY(phase(l, nb_checkpoint_load(r, &l->s, from)));
    l->stop = !l->s.eval_pending && out_of_patience(l);
    bool last = l->stop || l->s.step == r->total_steps;
    l->finished = last && !l->s.eval_pending && nb_output_is_finished(l->c, r->adapter->full);
    NB_TRY(nb_comm_broadcast(r->comm, &l->finished, sizeof l->finished, 0));
    if (!l->finished)
        nb_info("resuming  %s (step %lld of %lld)", from, (long long)l->s.step, (long long)r->total_steps);
    return NB_OK;
}

static nb_status begin_output(loop *l, bool overwrite) {
    if (!is_first(l)) return NB_OK;
    NB_TRY(nb_output_begin(l->c, overwrite, l->s.step, &l->lock));
    return nb_metrics_open(&l->metrics, l->c, &l->s);
}

static nb_status start(loop *l, const nb_train_options *o, char **resume_from) {
    nb_run *r = &l->run;
    NB_TRY(nb_run_open(r, l->c));
    NB_TRY(phase(l, nb_output_prepare(l->c, o->resume, o->overwrite, resume_from)));
    NB_TRY(in_turn(l, nb_run_open_base));
    NB_TRY(in_turn(l, nb_run_open_data));
    NB_TRY(in_turn(l, nb_run_open_model));
    NB_TRY(phase(l, nb_run_open_adapter(r)));
    if (*resume_from) NB_TRY(phase(l, nb_checkpoint_load_recompute(r, *resume_from)));
    NB_TRY(phase(l, nb_run_open_runners(r)));
    NB_TRY(phase(l, is_first(l) ? nb_output_space(r) : NB_OK));
    l->schedule = nb_schedule_of(l->c, r->total_steps);
    if (*resume_from) NB_TRY(resume(l, *resume_from));
    NB_TRY(nb_checkpoint_same_everywhere(r, &l->s));
    return l->finished ? NB_OK : phase(l, begin_output(l, o->overwrite));
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
    if (st == NB_OK && !l.finished) st = agree(&l, is_first(&l) ? finish(&l) : NB_OK);
    else if (l.run.comm) st = agree(&l, st);
    if (l.metrics) fclose(l.metrics);
    if (l.lock >= 0) close(l.lock);
    forget_eval(&l);
    free(resume_from);
    nb_run_close(&l.run);
    return st;
}
