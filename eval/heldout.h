/* A model on a held-out set: loss of every row, and answers generated and scored. Fixed order, the whole set, no
 * randomness: two evaluations of the same model give the same numbers. */
#ifndef NB_EVAL_HELDOUT_H
#define NB_EVAL_HELDOUT_H

#include <stdbool.h>

#include "configs/config.h"
#include "data/dataset.h"
#include "eval/metrics.h"
#include "generate/generate.h"
#include "kernels/comm.h"
#include "model/transformer.h"

/* A set and what is wanted of it. */
typedef struct nb_heldout_set {
    const nb_dataset *data; /* borrowed */
    const char *name;       /* borrowed: nb_dataset_name() */
    unsigned metrics;       /* bits, NB_METRIC_LOSS always */
    int64_t max_new_tokens;
    nb_regex *regex;        /* owned; for NB_METRIC_REGEX */
} nb_heldout_set;
/* What a config entry wants of its set. */
nb_status nb_heldout_set_open(nb_heldout_set *s, const nb_dataset *data, const nb_config_dataset *entry);
/* The held-out sets of a run, in order: test_datasets, or the val_set_size split, which takes its wishes from the
 * first entry of datasets. *out is malloc'd, d->n_held_out long. */
nb_status nb_heldout_sets_open(nb_heldout_set **out, const nb_data *d, const nb_config *c);
void nb_heldout_sets_free(nb_heldout_set *sets, int n);
static inline bool nb_heldout_generates(const nb_heldout_set *s) { return s->metrics > 1u << NB_METRIC_LOSS; }

/* The memory an evaluation works in, taken once: before step 1 of a training run. */
typedef struct nb_evaluator {
    nb_model *model;              /* borrowed */
    const nb_tokenizer *tokenizer; /* borrowed */
    nb_runner *loss;
    nb_generator *generator;      /* NULL when no set asks for answers */
    int64_t max_tokens;           /* of a loss batch */
} nb_evaluator;

typedef struct nb_evaluator_options {
    int64_t batch_tokens; /* of a loss batch; raised to the longest row */
    int64_t slots;        /* answers generated at once; 0: 16, fewer when the KV cache would pass 1 GiB */
    const int32_t *stop_ids; /* nb_stop_ids(), and eot_tokens */
    int n_stop_ids;
} nb_evaluator_options;
/* Fits the sets: longest row, longest prompt + max_new_tokens (both within the model's positions). */
nb_status nb_evaluator_open(nb_evaluator *e, nb_model *m, nb_arena *arena, const nb_tokenizer *t,
                            const nb_heldout_set *sets, int n_sets, const nb_evaluator_options *o);
void nb_evaluator_close(nb_evaluator *e);

typedef struct nb_row_result {
    int64_t row, line;       /* in the set, from 0; in its file, from 1 */
    double loss_sum;         /* nats over its trained tokens */
    int64_t tokens, bytes;   /* trained */
    double score[NB_METRIC_COUNT]; /* NAN where not measured; [NB_METRIC_LOSS] = loss_sum / tokens */
    nb_stop stop;            /* how the answer ended, if one was generated */
    int64_t answer_tokens;
    char *prompt, *reference, *answer; /* NULL unless texts were kept */
} nb_row_result;

typedef struct nb_heldout_result {
    char *name;
    unsigned metrics;
    nb_row_result *row;      /* [rows] in the set's order */
    int64_t rows, tokens, bytes, answer_tokens;
    double loss;             /* sum of the rows' loss / sum of their trained tokens */
    double perplexity;       /* exp(loss) */
    double bits_per_byte;    /* NAN when the set's bytes are not known (tokenized data) */
    double score[NB_METRIC_COUNT]; /* means over rows; NAN where not measured; [NB_METRIC_LOSS] = loss */
    int64_t stopped[NB_STOP_CALLER + 1]; /* answers by how they ended */
    double seconds, generation_seconds;
} nb_heldout_result;

typedef struct nb_heldout_args {
    nb_evaluator *evaluator;
    const nb_heldout_set *set;
    const char *label; /* of the progress bar; NULL: the set's name */
    bool keep_texts;   /* prompts, references and answers, for reports */
    nb_comm *comm;     /* ranks that share the work, all of which call this and get the same; NULL: we alone */
} nb_heldout_args;
/* out must be freed with nb_heldout_result_free, after an error too. A row without an answer to compare with, when a
 * metric needs one: NB_EINPUT. A loss that is not finite: NB_ENUMERIC naming the row. */
nb_status nb_heldout_eval(nb_heldout_result *out, const nb_heldout_args *a);
void nb_heldout_result_free(nb_heldout_result *r);

/* Fills sums and means from r->row, r->rows and r->metrics: for results put together elsewhere. */
void nb_heldout_summarize(nb_heldout_result *r);

#endif
