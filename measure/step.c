#include "measure/step.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/cpu.h"
#include "core/mem.h"
#include "core/rng.h"
#include "measure/median.h"

static const nb_step *timed; /* whose device the clock waits for */

static double clock_now(void) {
    struct timespec t;
    float one;
    const nb_dev *dev = timed->model->dev;
    if (!dev->be->host_memory) (void)dev->be->get(timed->model->dev, &one, timed->adapter->data, sizeof one);
    clock_gettime(dev->be->host_memory && nb_threads() == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One document of random tokens, each of them trained on. */
static void make_batch(nb_batch *b, int64_t tokens, int64_t vocab) {
    nb_rng rng = nb_rng_open(1, NB_RNG_TEST, 0);
    int32_t *ids = nb_calloc((size_t)tokens * 3, sizeof *ids), *targets = ids + tokens, *pos = targets + tokens;
    nb_seg *seg = NB_NEW(nb_seg);
    for (int64_t i = 0; i < tokens; i++) {
        ids[i] = (int32_t)nb_rng_below(&rng, (uint64_t)vocab), pos[i] = (int32_t)i;
        targets[i] = (int32_t)nb_rng_below(&rng, (uint64_t)vocab);
    }
    *seg = (nb_seg){0, (int32_t)tokens, 0, (int32_t)tokens};
    *b = (nb_batch){.n = tokens, .ids = ids, .targets = targets, .pos = pos, .segs = seg, .n_segs = 1,
                    .n_trained = tokens, .sample = nb_calloc((size_t)tokens, sizeof *b->sample)};
}

nb_status nb_step_open(nb_step *s, nb_model *m, nb_adapter *a, nb_optimizer *o, int64_t tokens,
                       const nb_recompute *recompute) {
    nb_need need;
    *s = (nb_step){.model = m, .adapter = a, .optimizer = o, .best = 1e30};
    NB_TRY(nb_runner_measure(m, tokens, &nb_recompute_none, &need));
    NB_TRY(nb_runner_open_loss(&s->runner, m, &s->arena, tokens, true, recompute));
    s->flops = need.flops;
    make_batch(&s->batch, tokens, m->spec->vocab);
    s->prof = nb_calloc((size_t)nb_op_count * 2, sizeof *s->prof);
    s->best_prof = s->prof + nb_op_count;
    s->runner->tape->prof = s->prof;
    s->runner->tape->clock = clock_now;
    return NB_OK;
}

void nb_step_close(nb_step *s) {
    nb_runner_free(s->runner);
    nb_arena_free(&s->arena);
    free((void *)(uintptr_t)s->batch.ids), free((void *)(uintptr_t)s->batch.segs);
    free((void *)(uintptr_t)s->batch.sample);
    free(s->prof);
    *s = (nb_step){0};
}

nb_status nb_step_run(nb_step *s) {
    timed = s;
    double loss, norm, start = clock_now();
    memset(s->prof, 0, (size_t)nb_op_count * sizeof *s->prof);
    nb_optimizer_begin(s->optimizer);
    NB_TRY(nb_runner_loss(s->runner, &s->batch, 1.0f / (float)s->batch.n_trained, &loss, NULL));
    double middle = clock_now();
    NB_TRY(nb_optimizer_step(s->optimizer, ++s->steps, 1e-4, &norm));
    double end = clock_now();
    if (!(loss > 0 && loss < 1e3 * (double)s->batch.n))
        return nb_fail(NB_ENUMERIC, "a loss of %g over %lld tokens: the step is wrong", loss, (long long)s->batch.n);
    if (s->steps == 1) {
        for (int i = 0; i < nb_op_count; i++) s->flops += s->prof[i].backward.flops;
        return NB_OK;
    }
    if (s->steps - 2 < NB_STEP_TIMES) s->times[s->steps - 2] = end - start;
    if (end - start >= s->best) return NB_OK;
    s->best = end - start;
    s->best_optimizer = end - middle;
    memcpy(s->best_prof, s->prof, (size_t)nb_op_count * sizeof *s->prof);
    return NB_OK;
}

int64_t nb_step_counted(const nb_step *s) { return s->steps > 1 ? s->steps - 1 : 0; }

double nb_step_median(const nb_step *s) {
    int64_t n = nb_step_counted(s);
    return nb_median(s->times, n < NB_STEP_TIMES ? n : NB_STEP_TIMES);
}
