/* How long a training step takes: forward, backward, clipping, AdamW, through the runner that training uses, over
 * random tokens. What is kept is of the fastest step; the first one, which touches fresh memory, does not count. */
#ifndef NB_MEASURE_STEP_H
#define NB_MEASURE_STEP_H

#include "adapters/adapter.h"
#include "train/optimizer.h"

enum { NB_STEP_TIMES = 512 };

typedef struct nb_step {
    nb_model *model; /* these three are borrowed */
    nb_adapter *adapter;
    nb_optimizer *optimizer;
    nb_arena arena;
    nb_runner *runner;
    nb_batch batch;
    int64_t steps;                     /* so far */
    double best, best_optimizer;       /* seconds; best 1e30: no step has counted yet */
    double times[NB_STEP_TIMES];       /* of the steps that count, the first so many */
    nb_prof_row *prof, *best_prof;     /* [nb_op_count] of the step at hand, of the best */
    double flops;                      /* that a step's gradient needs: what is computed again is not among them */
} nb_step;

nb_status nb_step_open(nb_step *s, nb_model *m, nb_adapter *a, nb_optimizer *o, int64_t tokens,
                       const nb_recompute *recompute);
void nb_step_close(nb_step *s);
/* One step. On one thread of the host the time is the processor's own: other programs hardly count. Another device is
 * waited for around every operation. */
nb_status nb_step_run(nb_step *s);
int64_t nb_step_counted(const nb_step *s); /* steps that count */
double nb_step_median(const nb_step *s);   /* seconds */

#endif
