/* The course of a training run, from its metrics.jsonl: one JSON object a line,
 *   {"step": 10, "epoch": 0.4, "loss": 1.9, "learning_rate": 1e-3, "grad_norm": 0.7, "tokens_per_second": 5e4, ...}
 *   {"step": 50, "epoch": 2, "eval": {"heldout/loss": 0.31, "heldout/exact_match": 0.9}} */
#ifndef NB_EVAL_CURVES_H
#define NB_EVAL_CURVES_H

#include <stdbool.h>

#include "core/status.h"

typedef struct nb_series {
    char *name;    /* "loss", or of evaluations "heldout/loss" */
    bool eval;
    double *x, *y; /* [n] step, value; finite */
    int n, cap;
} nb_series;

typedef struct nb_curves {
    nb_series *s;
    int n, cap;
} nb_curves;

/* Every number of every line, by name; null and other values are passed over. A last line cut short (a run that is
 * being written) is left out; any other line that is no JSON object: NB_EINPUT with its number. */
nb_status nb_curves_load(nb_curves *c, const char *path);
void nb_curves_free(nb_curves *c);
const nb_series *nb_curves_find(const nb_curves *c, const char *name, bool eval); /* NULL: none */

#endif
