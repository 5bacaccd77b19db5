/* Checkpoints: OUTPUT_DIR/checkpoint-STEP holds all that is needed to go on as if nothing had happened.
 *
 *   state.safetensors    param, exp_avg, exp_avg_sq: the flat buffers, f32; of 8-bit state also the bytes and the scales
 *   trainer_state.json   step, best metric, counters, what is recomputed, sha256 of state.safetensors, and what the run is: the resolved
 *                        configuration and the sha256 of base, tokenizer and data
 *   adapter/             the same weights as a PEFT folder (not with adapter: full)
 *
 * A checkpoint is written beside its name, synced and renamed: it is whole or not there. Data order and dropout are
 * functions of the step, so no other state exists. */
#ifndef NB_TRAIN_CHECKPOINT_H
#define NB_TRAIN_CHECKPOINT_H

#include "train/run.h"

typedef struct nb_train_state {
    int64_t step;         /* optimizer steps done */
    int64_t tokens;       /* trained so far, prompts included */
    double best;          /* best value of the metric; meaningless while best_step is 0 */
    int64_t best_step, bad_evals, watchdog;
    bool eval_pending;    /* a signal cut the evaluation after this step short: it comes first on resuming */
    json_t *eval;         /* held-out metrics of the weights as they are now, or NULL; owned */
} nb_train_state;

/* Every rank takes part, rank 0 writes; what is shared out is whole in the file, for any number of ranks to go on. */
nb_status nb_checkpoint_save(const nb_run *r, const nb_train_state *s);
/* Deletes the oldest beyond save_total_limit (0: none); the best step's is kept besides. */
nb_status nb_checkpoint_prune(const nb_config *c, int64_t best_step);
/* Newest checkpoint of output_dir whose state is whole (broken ones are warned about and passed over); *dir NULL if
 * there is none. Caller frees. Refuses an output_dir with nothing but broken ones. */
nb_status nb_checkpoint_find(const char *output_dir, char **dir);
/* Deletes the checkpoints of later steps than `step`: broken ones that were passed over, and those that an earlier
 * checkpoint was chosen instead of. They would crowd out the new ones and disagree with metrics.jsonl. */
nb_status nb_checkpoint_drop_later(const nb_config *c, int64_t step);
/* What the run computed again in the backward pass when it left the checkpoint: r->recompute, for gradient_checkpointing:
 * auto to choose the same. One that does not say leaves it open. */
nb_status nb_checkpoint_load_recompute(nb_run *r, const char *dir);
/* Reads a checkpoint into the run, on every rank. One of another run is refused with the differences. */
nb_status nb_checkpoint_load(nb_run *r, nb_train_state *s, const char *dir);
/* Do all ranks see the same configuration, base, tokenizer, data and step? */
nb_status nb_checkpoint_same_everywhere(const nb_run *r, const nb_train_state *s);
/* Bytes a checkpoint takes. */
uint64_t nb_checkpoint_bytes(const nb_run *r);

#endif
