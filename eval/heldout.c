#include "eval/heldout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/interrupt.h"

/* ---- sets ---- */

nb_status nb_heldout_set_open(nb_heldout_set *s, const nb_dataset *data, const nb_config_dataset *entry) {
    *s = (nb_heldout_set){.data = data, .name = nb_dataset_name(data), .max_new_tokens = entry->max_new_tokens};
    NB_TRY(nb_metrics_parse(&s->metrics, (const char *const *)entry->metrics.v, entry->metrics.n, s->name));
    if (!(s->metrics & 1u << NB_METRIC_REGEX)) return NB_OK;
    if (!entry->regex)
        return nb_fail(NB_EINPUT, "%s: the metric regex needs an expression: give the data set a key `regex`", s->name);
    nb_status st = nb_regex_open(&s->regex, entry->regex);
    return st == NB_OK ? st : nb_prefix(st, "%s: ", s->name);
}

nb_status nb_heldout_sets_open(nb_heldout_set **out, const nb_data *d, const nb_config *c) {
    nb_heldout_set *sets = nb_calloc((size_t)d->n_held_out + 1, sizeof *sets);
    bool split = c->n_test_datasets != d->n_held_out;
    for (int i = 0; i < d->n_held_out; i++) {
        nb_status st = nb_heldout_set_open(&sets[i], d->held_out[i], split ? &c->datasets[0] : &c->test_datasets[i]);
        if (st == NB_OK) continue;
        nb_heldout_sets_free(sets, d->n_held_out);
        return st;
    }
    *out = sets;
    return NB_OK;
}

void nb_heldout_sets_free(nb_heldout_set *sets, int n) {
    for (int i = 0; i < n; i++) nb_regex_free(sets[i].regex);
    free(sets);
}

/* ---- the evaluator ---- */

/* Tokens the longest row needs: in a loss batch, and as prompt and answer. */
static void longest(const nb_heldout_set *s, int64_t *row_n, int64_t *sequence_n) {
    for (int64_t i = 0; i < nb_dataset_rows(s->data); i++) {
        nb_row row;
        nb_dataset_row(s->data, i, &row);
        if (row.n > *row_n) *row_n = row.n;
        if (nb_heldout_generates(s) && row.prompt_n + s->max_new_tokens > *sequence_n)
            *sequence_n = row.prompt_n + s->max_new_tokens;
    }
}

static int64_t slots_that_fit(const nb_model *m, int64_t slot_len, int64_t rows) {
    const nb_spec *s = m->spec;
    double slot_bytes = 2.0 * (double)(s->layers * s->kv_heads * s->head_dim * slot_len) * sizeof(float);
    int64_t fit = (int64_t)((double)(1 << 30) / slot_bytes), slots = 16;
    if (fit < slots) slots = fit < 1 ? 1 : fit;
    return rows < slots ? rows : slots;
}

nb_status nb_evaluator_open(nb_evaluator *e, nb_model *m, nb_arena *arena, const nb_tokenizer *t,
                            const nb_heldout_set *sets, int n_sets, const nb_evaluator_options *o) {
    int64_t row_n = 1, sequence_n = 0, rows = 1;
    for (int i = 0; i < n_sets; i++) {
        longest(&sets[i], &row_n, &sequence_n);
        if (nb_dataset_rows(sets[i].data) > rows) rows = nb_dataset_rows(sets[i].data);
    }
    *e = (nb_evaluator){.model = m, .tokenizer = t};
    e->max_tokens = o->batch_tokens > row_n ? o->batch_tokens : row_n;
    nb_status st;
    NB_GO(st, nb_runner_open_loss(&e->loss, m, arena, e->max_tokens, false, NULL), failed);
    if (!sequence_n) return NB_OK;
    nb_gen_options g = {.stop_ids = o->stop_ids, .n_stop_ids = o->n_stop_ids, .max_tokens = e->max_tokens};
    g.slot_len = sequence_n < m->positions ? sequence_n : m->positions;
    g.slots = o->slots ? o->slots : slots_that_fit(m, g.slot_len, rows);
    if (g.max_tokens < g.slots) g.max_tokens = g.slots;
    NB_GO(st, nb_generator_open(&e->generator, m, arena, t, &g), failed);
    return NB_OK;
failed:
    nb_evaluator_close(e);
    return st;
}

void nb_evaluator_close(nb_evaluator *e) {
    if (e->loss) nb_runner_free(e->loss);
    nb_generator_free(e->generator);
    *e = (nb_evaluator){0};
}

/* ---- loss ---- */

/* Ranks take turns: batches of the loss, and rows to answer. */
static bool is_our_turn(const nb_heldout_args *a, int64_t turn) {
    return !a->comm || turn % a->comm->size == a->comm->rank;
}

static nb_status measure_loss(nb_heldout_result *r, const nb_heldout_args *a, nb_eval_iter *it, float *nll) {
    nb_progress p;
    int64_t seen = 0, turn = 0;
    nb_progress_begin(&p, a->label ? a->label : r->name, (double)r->rows, "rows");
    for (bool done = false;;) {
        nb_batch b;
        double sum;
        NB_TRY(nb_eval_iter_next(it, &b, &done));
        if (done) break;
        if (!is_our_turn(a, turn++)) continue;
        NB_TRY(nb_runner_loss(a->evaluator->loss, &b, 0, &sum, nll));
        for (int64_t t = 0, k = 0; t < b.n; t++) { /* losses come in the order of the trained tokens */
            if (b.targets[t] == NB_IGNORE) continue;
            NB_ASSERT(b.sample[t] < (uint64_t)r->rows);
            nb_row_result *row = &r->row[b.sample[t]];
            row->loss_sum += nll[k++];
            row->tokens++;
        }
        nb_progress_set(&p, (double)(seen += b.n_segs), NULL);
        if (nb_interrupted()) return nb_fail(NB_EINTERRUPTED, "interrupted while evaluating %s", r->name);
    }
    nb_progress_end(&p);
    return NB_OK;
}

static nb_status check_losses(const nb_heldout_result *r) {
    for (int64_t i = 0; i < r->rows; i++) {
        if (isfinite(r->row[i].loss_sum)) continue;
        return nb_fail(NB_ENUMERIC, "%s, record %lld: the loss is not a finite number: the weights or the adapter are "
                       "damaged; try --dtype f32", r->name, (long long)r->row[i].line);
    }
    return NB_OK;
}

/* ---- answers ---- */

static nb_status score_row(nb_row_result *row, const nb_heldout_set *s, const char *answer, const char *reference) {
    static double (*const plain[NB_METRIC_COUNT])(const char *, const char *) = {
        [NB_METRIC_EXACT_MATCH] = nb_exact_match, [NB_METRIC_F1] = nb_token_f1, [NB_METRIC_ROUGE_L] = nb_rouge_l};
    for (int m = 0; m < NB_METRIC_COUNT; m++)
        if (s->metrics & 1u << m && plain[m]) row->score[m] = plain[m](answer, reference);
    if (s->metrics & 1u << NB_METRIC_JSON_VALID) row->score[NB_METRIC_JSON_VALID] = nb_json_valid(answer);
    if (s->metrics & 1u << NB_METRIC_REGEX)
        return nb_regex_score(s->regex, answer, reference, &row->score[NB_METRIC_REGEX]);
    return NB_OK;
}

static nb_status keep_result(nb_row_result *row, const nb_heldout_args *a, const nb_row *in, const nb_gen_result *g) {
    const char *answer = g->text.n ? g->text.s : "";
    row->stop = g->stop;
    row->answer_tokens = g->n;
    NB_TRY(score_row(row, a->set, answer, in->reference));
    if (!a->keep_texts) return NB_OK;
    nb_text prompt = {0};
    NB_TRY(nb_tokenizer_decode(a->evaluator->tokenizer, in->ids, in->prompt_n, true, &prompt));
    row->prompt = prompt.s ? prompt.s : nb_strdup("");
    row->reference = nb_strdup(in->reference);
    row->answer = nb_strdup(answer);
    return NB_OK;
}

/* requests[n].sequence is the row. */
static nb_status run_answers(nb_heldout_result *r, const nb_heldout_args *a, nb_gen_request *requests,
                             nb_gen_result *results, int64_t n) {
    nb_sampling greedy = nb_sampling_greedy();
    nb_progress p;
    double start = nb_now();
    nb_progress_begin(&p, a->label ? a->label : r->name, (double)n, "answers");
    nb_generator_forget(a->evaluator->generator);
    NB_TRY(nb_generate(a->evaluator->generator, &greedy, requests, n, results, &p));
    nb_progress_end(&p);
    r->generation_seconds = nb_now() - start;
    for (int64_t k = 0; k < n; k++) {
        nb_row in;
        int64_t i = (int64_t)requests[k].sequence;
        nb_dataset_row(a->set->data, i, &in);
        nb_status st = keep_result(&r->row[i], a, &in, &results[k]);
        if (st != NB_OK) return nb_prefix(st, "%s, record %lld: ", r->name, (long long)in.line);
    }
    return NB_OK;
}

static nb_status generate_answers(nb_heldout_result *r, const nb_heldout_args *a) {
    NB_ASSERT(a->evaluator->generator);
    nb_gen_request *requests = nb_calloc((size_t)r->rows + 1, sizeof *requests);
    nb_gen_result *results = nb_calloc((size_t)r->rows + 1, sizeof *results);
    nb_status st = NB_OK;
    int64_t n = 0;
    for (int64_t i = 0; i < r->rows && st == NB_OK; i++) {
        if (!is_our_turn(a, i)) continue;
        nb_row row;
        nb_dataset_row(a->set->data, i, &row);
        requests[n++] = (nb_gen_request){.prompt = row.ids, .prompt_n = row.prompt_n, .sequence = (uint64_t)i,
                                       .max_new_tokens = a->set->max_new_tokens};
        if (row.prompt_n < 1 || !row.reference)
            st = nb_fail(NB_EINPUT, "%s, record %lld has no prompt with an answer behind it, which exact_match, f1, "
                         "rouge_l, regex and json_valid need: leave `metrics: [loss]`, or use a type with prompts",
                         r->name, (long long)row.line);
    }
    if (st == NB_OK && n) st = run_answers(r, a, requests, results, n);
    for (int64_t i = 0; i < n; i++) nb_gen_result_free(&results[i]);
    free(requests);
    free(results);
    return st;
}

/* ---- all of it ---- */

/* Every rank gets every row: what a row was given where its turn was, added to the zeros of the other ranks. */
static nb_status merge(nb_heldout_result *r, const nb_heldout_args *a) {
    enum { FIRST_SCORE = 4, COLUMNS = FIRST_SCORE + NB_METRIC_COUNT };
    double *all = nb_calloc((size_t)r->rows, COLUMNS * sizeof *all), *x = all;
    for (int64_t i = 0; i < r->rows; i++, x += COLUMNS) {
        const nb_row_result *row = &r->row[i];
        x[0] = row->loss_sum, x[1] = (double)row->tokens;
        x[2] = (double)row->answer_tokens, x[3] = (double)row->stop;
        for (int m = NB_METRIC_LOSS + 1; m < NB_METRIC_COUNT; m++)
            if (r->metrics & 1u << m && is_our_turn(a, i)) x[FIRST_SCORE + m] = row->score[m];
    }
    nb_status st = nb_comm_sum_f64(a->comm, all, r->rows * COLUMNS);
    x = all;
    for (int64_t i = 0; i < r->rows && st == NB_OK; i++, x += COLUMNS) {
        nb_row_result *row = &r->row[i];
        row->loss_sum = x[0], row->tokens = (int64_t)x[1];
        row->answer_tokens = (int64_t)x[2], row->stop = (nb_stop)x[3];
        for (int m = NB_METRIC_LOSS + 1; m < NB_METRIC_COUNT; m++)
            if (r->metrics & 1u << m) row->score[m] = x[FIRST_SCORE + m];
    }
    free(all);
    return st;
}

nb_status nb_heldout_eval(nb_heldout_result *out, const nb_heldout_args *a) {
    const nb_heldout_set *s = a->set;
    double start = nb_now();
    *out = (nb_heldout_result){.name = nb_strdup(s->name), .metrics = s->metrics, .rows = nb_dataset_rows(s->data)};
    if (!out->rows) return nb_fail(NB_EINPUT, "%s: the held-out set is empty", s->name);
    out->row = nb_calloc((size_t)out->rows, sizeof *out->row);
    for (int64_t i = 0; i < out->rows; i++) {
        nb_row in;
        nb_dataset_row(s->data, i, &in);
        out->row[i] = (nb_row_result){.row = i, .line = in.line, .bytes = in.trained_bytes};
        for (int m = 0; m < NB_METRIC_COUNT; m++) out->row[i].score[m] = NAN;
    }
    nb_eval_iter *it;
    NB_TRY(nb_eval_iter_open(&it, s->data, a->evaluator->max_tokens));
    float *nll = nb_calloc((size_t)a->evaluator->max_tokens, sizeof *nll);
    nb_status st = measure_loss(out, a, it, nll);
    free(nll);
    nb_eval_iter_free(it);
    if (st == NB_OK && nb_heldout_generates(s)) st = generate_answers(out, a);
    if (a->comm) st = nb_comm_agree(a->comm, st);
    if (st == NB_OK && a->comm && a->comm->size > 1) st = merge(out, a);
    if (st == NB_OK) st = check_losses(out);
    if (st != NB_OK) return st;
    nb_heldout_summarize(out);
    out->seconds = nb_now() - start;
    return NB_OK;
}
