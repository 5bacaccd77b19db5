/* What a run leaves in its output_dir besides checkpoints, and what it finds there at the start. */
#ifndef NB_TRAIN_OUTPUT_H
#define NB_TRAIN_OUTPUT_H

#include <stdio.h>

#include "train/checkpoint.h"

/* Decides how to begin: *resume_from is the checkpoint to load (NULL: from the beginning; caller frees). Refuses to
 * write over what another run left unless `overwrite`. Touches nothing: mistakes in base or data may yet turn up. */
nb_status nb_output_prepare(const nb_config *c, const char *resume, bool overwrite, char **resume_from);
/* Has this very configuration left its result there already? Another (which may differ in what is made of the same
 * weights, load_best_model_at_end for one) has not. */
bool nb_output_is_finished(const nb_config *c, bool full);
/* All is well: makes output_dir, deletes what an earlier run left there (overwrite) or checkpoints of later steps than
 * `step`, and writes config.yaml (resolved). *lock is a descriptor that keeps other runs out until it is closed. */
nb_status nb_output_begin(const nb_config *c, bool overwrite, int64_t step, int *lock);
/* Room for two checkpoints and the adapter? */
nb_status nb_output_space(const nb_run *r);

/* metrics.jsonl, appended line by line; opened cut back to what the state knows. */
nb_status nb_metrics_open(FILE **f, const nb_config *c, const nb_train_state *s);
nb_status nb_metrics_write(FILE *f, const nb_config *c, json_t *line /* stolen */);

/* Saves the adapter (or the whole model) as OUTPUT_DIR/name; held_out may be NULL. */
nb_status nb_output_save_model(const nb_run *r, const char *name, int64_t step, const json_t *held_out);
/* Copies OUTPUT_DIR/from (a folder of files) to OUTPUT_DIR/to, replacing it. */
nb_status nb_output_copy_model(const nb_config *c, const char *from, const char *to);
size_t nb_peak_memory(void); /* bytes, of this process */

#endif
