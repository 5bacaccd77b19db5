/* The training loop: steps, evaluation, saving, early stopping, signals. */
#ifndef NB_TRAIN_LOOP_H
#define NB_TRAIN_LOOP_H

#include "train/run.h"

typedef struct nb_train_options {
    const char *resume; /* "auto", "none", or a checkpoint's folder; NULL: the configuration's */
    bool overwrite;     /* delete what an earlier run left in output_dir */
} nb_train_options;

/* Trains as the configuration says. Leaves in output_dir: adapter/ (or model/ with adapter: full), best/ when
 * held-out data was evaluated, checkpoint-N/, metrics.jsonl, config.yaml (resolved). NB_EINTERRUPTED after a signal:
 * the step was finished and a checkpoint saved. */
nb_status nb_train(nb_config *c, const nb_train_options *o);

#endif
