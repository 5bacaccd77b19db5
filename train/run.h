/* Everything a run is made of, set up from its configuration in one place: `nibble train`, `plan` and `eval CONFIG`
 * all begin here. */
#ifndef NB_TRAIN_RUN_H
#define NB_TRAIN_RUN_H

#include "adapters/adapter.h"
#include "configs/config.h"
#include "data/dataset.h"
#include "data/chat.h"
#include "data/tokenizer.h"
#include "eval/heldout.h"
#include "kernels/comm.h"
#include "model/transformer.h"
#include "train/optimizer.h"

typedef struct nb_run {
    nb_config *config; /* borrowed */
    nb_comm *comm;     /* the processes that train together; often this one alone */
    nb_dev *dev;
    nb_base *base;
    nb_tokenizer *tokenizer;
    nb_model *model;
    nb_adapter *adapter;
    nb_optimizer optimizer;
    nb_data data;
    nb_loader *loader;
    nb_arena arena;
    nb_runner *train;
    const nb_chat_template *chat; /* NULL: none known, none needed */
    nb_heldout_set *held_out;     /* [data.n_held_out] what is wanted of each held-out set */
    nb_evaluator evaluator;       /* model NULL: nothing is held out */
    bool planning;          /* set after nb_run_open: config.json alone will do for a base, and then for a tokenizer */
    bool own_tokenizer;     /* not the base's: it is saved with what is trained */
    int64_t sequence_len;   /* resolved */
    nb_recompute recompute; /* what gradient_checkpointing has come to */
    bool chosen_before;     /* recompute is that of the checkpoint to go on from */
    int64_t total_steps;
    int32_t *added_tokens;  /* ids trained as rows */
    int n_added_tokens;
} nb_run;

/* Who trains, and where: the processes and the device. */
nb_status nb_run_open(nb_run *r, nb_config *c);
/* What is quickly looked at, in this order: the base's files, the tokenizer (with added tokens; NULL with a hollow base that
 * has none), the template; then the data sets with what is wanted of them, and the loader. */
nb_status nb_run_open_base(nb_run *r);
nb_status nb_run_open_data(nb_run *r);
/* The base's weights, quantized perhaps, and the model on them. */
nb_status nb_run_open_model(nb_run *r);
/* The adapter (new, from lora_model_dir, or full) and its optimizer. */
nb_status nb_run_open_adapter(nb_run *r);
/* Plans and allocates the memory of training and evaluation; refuses what does not fit. */
nb_status nb_run_open_runners(nb_run *r);
void nb_run_close(nb_run *r);

/* Bytes by class, known before step 1. activations: one block that training, evaluation and generation use in turn;
 * generation: what answering needs besides. The program, its libraries and the data come on top. */
typedef struct nb_memory_plan {
    size_t base, adapter, gradients, optimizer, activations, generation, scratch, tables, total;
    bool partly; /* the base alone is known: it does not fit */
} nb_memory_plan;
nb_memory_plan nb_run_memory(const nb_run *r);
/* Bytes a run may take: memory_limit, else what the device has. now: on the processor, what is free at the moment. */
nb_status nb_run_memory_limit(const nb_run *r, bool now, size_t *limit);
/* "base 3.1 MiB, adapter ..., total ..." on several lines. */
void nb_memory_plan_text(const nb_memory_plan *m, nb_text *out);
/* What an adapter was trained from: goes into its folder as nibble_manifest.json. Caller json_decref's. */
json_t *nb_run_manifest(const nb_run *r, int64_t step, const json_t *held_out);

#endif
