/* Held-out evaluation during training. */
#ifndef NB_TRAIN_EVALUATE_H
#define NB_TRAIN_EVALUATE_H

#include "train/run.h"

typedef struct nb_evaluation {
    json_t *metrics;         /* {"NAME/loss": x, ..., "loss": mean over sets}; caller json_decref's */
    char *text;              /* one line for the terminal; caller frees */
    double chosen;           /* value of metric_for_best_model */
    const char *chosen_name;
    bool higher_is_better;
} nb_evaluation;

nb_status nb_evaluate_held_out(nb_run *r, nb_evaluation *e);

#endif
