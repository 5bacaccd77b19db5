/* Datasets: the rows of a config entry, tokenized with a label per token, and the loader that makes batches
 * of them. Which tokens are trained on comes from where each came from (which field, which turn), never
 * from searching token ids. Tokenized rows live in a cache file keyed by the bytes of the data files, the
 * tokenizer, the template and every setting that matters. */
#ifndef NB_DATA_DATASET_H
#define NB_DATA_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "configs/config.h"
#include "core/batch.h"
#include "core/status.h"
#include "data/tokenizer.h"

/* Where every row and token went. These hold, or opening the dataset fails:
 *   rows_in = rows_out - rows_split_extra + rows_dropped_long + rows_dropped_duplicate
 *   tokens_in = tokens_out - tokens_overlap + tokens_truncated + tokens_dropped
 * and splitting alone changes no trained token: each is trained on once. */
typedef struct nb_ledger {
    int64_t rows_in, rows_out, rows_split_extra, rows_dropped_long, rows_dropped_duplicate;
    int64_t tokens_in, tokens_out, tokens_truncated, tokens_dropped, tokens_overlap, tokens_trained;
    int64_t longest;  /* tokens in the longest row, before any strategy */
    int64_t bytes_in; /* UTF-8 bytes of the text that became trained tokens: bits per byte */
} nb_ledger;
nb_status nb_ledger_check(const nb_ledger *l, const char *name);

typedef struct nb_row {
    const int32_t *ids, *labels; /* [n]; labels[i] is ids[i] or NB_IGNORE (not shifted); labels[0] is NB_IGNORE */
    int32_t n;
    int32_t prompt_n;            /* tokens before the last trained answer: the prompt for generation; 0 if none */
    int32_t trained;             /* labels that are not NB_IGNORE */
    const char *reference;       /* text of the last trained answer without its end token; "" for completion data */
    int64_t trained_bytes;       /* UTF-8 bytes of its trained text */
    const char *file;            /* where it came from */
    int64_t line;                /* line in that file, from 1; the row's number in a .json of columns */
} nb_row;

typedef struct nb_dataset nb_dataset;
/* Opens (building or reusing the cache) one datasets[] or test_datasets[] entry. `name` defaults to the path's last
 * part without its extension. c, entry and t are not needed afterwards. sequence_len: longest row in tokens, at
 * least 2. The cache lies in dataset_prepared_path (unset: nibble's cache folder; "none": in memory only); one that
 * cannot be written is a warning, one that does not match its checksum or its key is built anew. */
nb_status nb_dataset_open(nb_dataset **out, const nb_config *c, const nb_config_dataset *entry, const nb_tokenizer *t,
                          int64_t sequence_len);
void nb_dataset_free(nb_dataset *d);
const char *nb_dataset_name(const nb_dataset *d);
double nb_dataset_weight(const nb_dataset *d);
int64_t nb_dataset_rows(const nb_dataset *d);
void nb_dataset_row(const nb_dataset *d, int64_t i, nb_row *out);
const nb_ledger *nb_dataset_ledger(const nb_dataset *d);
const char *nb_dataset_sha256(const nb_dataset *d); /* of everything that made the rows; part of a run's identity */

/* All data of a config: training rows and held-out sets (test_datasets, or a val_set_size split named "val"). */
typedef struct nb_data {
    nb_dataset **train;
    int n_train;
    nb_dataset **held_out;
    int n_held_out;
    /* (dataset, row) of every training row that is not held out, in order: what loaders number as samples. */
    int32_t *sample_set;
    int64_t *sample_row;
    int64_t n_samples;
    char sha256[65];
} nb_data;
nb_status nb_data_open(nb_data *d, const nb_config *c, const nb_tokenizer *t, int64_t sequence_len);
void nb_data_free(nb_data *d);

/* Makes training batches. Everything is a pure function of (seed, step): resuming needs no state. A "bin" is one
 * packed sequence (or one row without packing) of at most sequence_len tokens; a micro-batch is micro_batch_size
 * bins; a step is gradient_accumulation_steps micro-batches for each process (the last of an epoch may be smaller).
 * Processes take turns: micro-batch i of a step is rank i % ranks's. A step has the same micro-batches for 2 processes
 * that accumulate 2 as for one that accumulates 4. */
typedef struct nb_loader nb_loader;
typedef struct nb_loader_options {
    int64_t sequence_len, micro_batch_size, accumulation;
    int rank, ranks;    /* this process, and how many there are; 0, 0: it is alone */
    bool packing, shuffle;
    double epochs;      /* num_epochs */
    int64_t max_steps;  /* 0: by epochs */
    uint64_t seed;
} nb_loader_options;
nb_status nb_loader_open(nb_loader **out, const nb_data *d, const nb_loader_options *o);
void nb_loader_free(nb_loader *l);
int64_t nb_loader_steps(const nb_loader *l);                        /* optimizer steps of the whole run */
double nb_loader_epoch_of(const nb_loader *l, int64_t step);        /* epochs completed after `step` steps */
int64_t nb_loader_steps_per_epoch(const nb_loader *l);              /* of the first epoch */
double nb_loader_fill(const nb_loader *l);                          /* tokens / bin capacity, first epoch */
/* Our micro-batches of step `step` (from 0): *n of them at *batches, valid until the next call; at the end of an epoch
 * there may be none. No allocation once opened. *trained = trained tokens of the whole step, all processes'. */
nb_status nb_loader_step(nb_loader *l, int64_t step, const nb_batch **batches, int *n, int64_t *trained);
/* The most micro-batches any process has in this step. */
int64_t nb_loader_rounds(nb_loader *l, int64_t step);
/* The samples of the whole step, all processes', in order; valid until the next step is asked for. */
const int64_t *nb_loader_samples(nb_loader *l, int64_t step, int64_t *n);

/* Batches over one held-out set in fixed order, whole rows, at most max_tokens tokens (a longer row alone is an
 * error): batch.sample holds row numbers. *batch valid until the next call; *done when there are no more. */
typedef struct nb_eval_iter nb_eval_iter;
nb_status nb_eval_iter_open(nb_eval_iter **out, const nb_dataset *d, int64_t max_tokens);
nb_status nb_eval_iter_next(nb_eval_iter *it, nb_batch *batch, bool *done);
void nb_eval_iter_free(nb_eval_iter *it);

#endif
