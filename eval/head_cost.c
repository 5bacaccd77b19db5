#include "eval/head_cost.h"

#include "model/pieces.h"

/* The stored head where products can read it: the embedding, the base's memory, or a copy on the device. */
static nb_status stored_head(const nb_model *m, nb_weight *w, char **block, size_t *bytes) {
    nb_dev *dev = m->dev;
    nb_pieces count = {0};
    *w = m->spec->tied ? m->weights.embed : *nb_base_stored_head(m->base);
    if (m->spec->tied || dev->be->host_memory) return NB_OK;
    nb_pieces_weight(&count, w);
    NB_TRY(dev->be->alloc(dev, (void **)block, count.at, "the output head"));
    *bytes = count.at;
    nb_pieces copy = {.dev = dev, .to = *block, .address = *block};
    nb_pieces_weight(&copy, w);
    return copy.st;
}

static nb_status compare(nb_text *out, nb_evaluator *e, const nb_heldout_set *set, const nb_heldout_result *held) {
    nb_heldout_set loss_alone = *set;
    nb_heldout_result stored;
    loss_alone.metrics = 1u << NB_METRIC_LOSS;
    nb_heldout_args a = {.evaluator = e, .set = &loss_alone, .label = "the head as it is stored"};
    nb_status st = nb_heldout_eval(&stored, &a);
    if (st == NB_OK)
        nb_text_printf(out, "lm_head_quant %s: %s: perplexity of the base %.4f, %.4f with the head as it is stored "
                       "(%+.2f %%)\n", nb_head_quant_name(e->model->base->head_quant), set->name, held->perplexity,
                       stored.perplexity, 100 * (held->perplexity / stored.perplexity - 1));
    nb_heldout_result_free(&stored);
    return st;
}

nb_status nb_head_cost(nb_text *out, nb_model *m, nb_arena *arena, const nb_tokenizer *t, const nb_heldout_set *sets,
                       const nb_heldout_result *const *held, int n_sets) {
    nb_evaluator_options o = {.batch_tokens = 2048};
    nb_evaluator e = {0};
    char *block = NULL;
    size_t bytes = 0;
    const nb_weight quantized = m->weights.head;
    nb_weight stored;
    nb_status st = stored_head(m, &stored, &block, &bytes);
    m->weights.head = stored;
    m->changes++;
    if (st == NB_OK) st = nb_evaluator_open(&e, m, arena, t, sets, n_sets, &o);
    for (int i = 0; i < n_sets && st == NB_OK; i++) st = compare(out, &e, &sets[i], held[i]);
    if (e.model) nb_evaluator_close(&e);
    m->weights.head = quantized;
    m->changes++;
    if (block) m->dev->be->free(m->dev, block, bytes);
    return st;
}
