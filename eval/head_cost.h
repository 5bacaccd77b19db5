/* What lm_head_quant costs: the perplexity of held-out sets with the head as it is held, and as it is stored. */
#ifndef NB_EVAL_HEAD_COST_H
#define NB_EVAL_HEAD_COST_H

#include "core/mem.h"
#include "eval/heldout.h"

/* A line a set. held[n_sets]: what evaluating m, its head quantized, has given already. */
nb_status nb_head_cost(nb_text *out, nb_model *m, nb_arena *arena, const nb_tokenizer *t, const nb_heldout_set *sets,
                       const nb_heldout_result *const *held, int n_sets);

#endif
