/* Planning and running the graph inside memory that is allocated once. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/transformer.h"

nb_status nb_arena_grow(nb_arena *a, nb_dev *dev, size_t bytes) {
    if (bytes <= a->bytes) return NB_OK;
    nb_arena_free(a);
    a->dev = dev;
    NB_TRY(dev->be->alloc(dev, (void **)&a->base, bytes, "activations"));
    a->bytes = bytes;
    return NB_OK;
}

void nb_arena_free(nb_arena *a) {
    if (a->base) a->dev->be->free(a->dev, a->base, a->bytes);
    *a = (nb_arena){0};
}

/* The largest batch there can be: one segment of every token, every token trained. */
static nb_batch largest_batch(int32_t *zeros, nb_seg *seg, int64_t n) {
    *seg = (nb_seg){0, (int32_t)n, 0, (int32_t)n};
    return (nb_batch){.n = n, .ids = zeros, .targets = zeros, .pos = zeros, .sample = (const uint32_t *)zeros,
                      .segs = seg, .n_segs = 1, .n_trained = n, .kv_rows = zeros};
}

/* Runs the work once on the null device; leaves the placed plan and the scratch it needs in r->plan. */
static nb_status make_plan(nb_runner *r, nb_kv_cache *cache) {
    nb_model *m = r->model;
    nb_dev *real = m->dev, *null_dev;
    NB_TRY(nb_dev_open_null(&null_dev, real));
    int32_t *zeros = nb_calloc((size_t)r->max_tokens, sizeof *zeros);
    nb_seg seg;
    nb_batch b = largest_batch(zeros, &seg, r->max_tokens);
    if (cache && cache->rows > seg.kn) seg.kn = (int32_t)cache->rows;
    nb_graph g;
    nb_tape *t = r->tape;
    nb_tape_follow(t, &r->plan, NULL);
    t->dev = m->dev = null_dev;
    t->training = r->backward;
    nb_status st;
    if (r->max_logits) st = nb_model_logits(m, t, &b, cache, zeros, r->max_logits, &g);
    else st = nb_model_loss(m, t, &b, &r->rows, true, &g);
    if (st == NB_OK && r->backward) st = nb_backward(t, g.loss, NULL, 1);
    r->plan.ws = null_dev->ws_need;
    nb_tape_reset(t);
    t->dev = m->dev = real;
    nb_dev_close(null_dev);
    free(zeros);
    if (st == NB_OK) nb_plan_place(&r->plan);
    return st;
}

/* Parameters look untouched again: the planning run has marked their gradients written. */
static void forget_gradients(nb_tape *t) {
    for (int i = 0; i < t->max_nodes; i++)
        for (int j = 0; j < t->nodes[i].n_in; j++)
            if (t->nodes[i].in[j] && !t->nodes[i].in[j]->producer) t->nodes[i].in[j]->grad_written = false;
}

/* Tape, index arrays and plan; no memory of the device yet. */
static nb_status prepare(nb_runner **out, nb_model *m, int64_t max_tokens, int64_t max_logits, bool backward,
                         const nb_policy *policy, nb_kv_cache *cache) {
    nb_runner *r = NB_NEW(nb_runner);
    *r = (nb_runner){.model = m, .max_tokens = max_tokens, .max_logits = max_logits, .backward = backward};
    nb_status st = nb_tape_open(&r->tape, m->dev, nb_model_max_nodes(m));
    r->tape->grad = backward;
    if (policy) r->tape->policy = policy;
    if (st == NB_OK) st = nb_graph_rows_open(&r->rows, max_tokens);
    if (st == NB_OK) st = make_plan(r, cache);
    if (st != NB_OK) {
        nb_runner_free(r);
        return st;
    }
    forget_gradients(r->tape);
    *out = r;
    return NB_OK;
}

static nb_status open_runner(nb_runner **out, nb_model *m, nb_arena *arena, int64_t max_tokens, int64_t max_logits,
                             bool backward, const nb_policy *policy, nb_kv_cache *cache) {
    nb_runner *r;
    NB_TRY(prepare(&r, m, max_tokens, max_logits, backward, policy, cache));
    r->arena = arena;
    nb_status st = nb_arena_grow(arena, m->dev, r->plan.peak);
    if (st == NB_OK) st = nb_dev_reserve(m->dev, r->plan.ws);
    if (st != NB_OK) {
        nb_runner_free(r);
        return st;
    }
    *out = r;
    return NB_OK;
}

nb_status nb_runner_measure(nb_model *m, int64_t max_tokens, const nb_policy *policy, size_t *bytes) {
    nb_runner *r;
    NB_TRY(prepare(&r, m, max_tokens, 0, true, policy, NULL));
    *bytes = r->plan.peak;
    nb_runner_free(r);
    return NB_OK;
}

nb_status nb_runner_open_loss(nb_runner **out, nb_model *m, nb_arena *arena, int64_t max_tokens, bool backward,
                              const nb_policy *policy) {
    return open_runner(out, m, arena, max_tokens, 0, backward, policy, NULL);
}

nb_status nb_runner_open_logits(nb_runner **out, nb_model *m, nb_arena *arena, int64_t max_tokens, int64_t max_logits,
                                nb_kv_cache *cache) {
    return open_runner(out, m, arena, max_tokens, max_logits, false, NULL, cache);
}

void nb_runner_free(nb_runner *r) {
    if (!r) return;
    nb_tape_free(r->tape);
    nb_graph_rows_close(&r->rows);
    nb_plan_free(&r->plan);
    free(r);
}

size_t nb_runner_bytes(const nb_runner *r) { return r->plan.peak; }

/* Ids index the embedding and targets the logits: nothing outside the vocabulary may reach a kernel. */
static nb_status check_ids(const nb_runner *r, const nb_batch *b) {
    int64_t V = r->model->spec->vocab;
    for (int64_t i = 0; i < b->n; i++) {
        int32_t id = b->ids[i];
        if (id >= 0 && id < V && b->targets && b->targets[i] != NB_IGNORE) id = b->targets[i];
        if (id < 0 || id >= V)
            return nb_fail(NB_EINPUT, "token id %d is outside the model's vocabulary of %lld: the tokenizer or the data belong "
                           "to another model", id, (long long)V);
    }
    return NB_OK;
}

nb_status nb_runner_loss(nb_runner *r, const nb_batch *b, float grad_scale, double *loss_sum, float *nll) {
    nb_graph g;
    *loss_sum = 0;
    if (b->n > r->max_tokens)
        return nb_fail(NB_EINPUT, "a batch of %lld tokens where %lld were planned for", (long long)b->n,
                       (long long)r->max_tokens);
    NB_TRY(check_ids(r, b));
    nb_tape_follow(r->tape, &r->plan, r->arena->base);
    NB_TRY(nb_model_loss(r->model, r->tape, b, &r->rows, true, &g));
    if (!g.loss) return NB_OK;
    NB_TRY(r->model->dev->be->get(r->model->dev, r->rows.losses, g.loss->data, (size_t)r->rows.n * sizeof(float)));
    for (int64_t i = 0; i < r->rows.n; i++) *loss_sum += r->rows.losses[i];
    if (nll) memcpy(nll, r->rows.losses, (size_t)r->rows.n * sizeof *nll);
    return r->backward ? nb_backward(r->tape, g.loss, NULL, grad_scale) : NB_OK;
}

nb_status nb_runner_logits(nb_runner *r, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows, int64_t n,
                           float *logits) {
    nb_graph g;
    if (b->n > r->max_tokens || n > r->max_logits)
        return nb_fail(NB_EINPUT, "a batch of %lld tokens, %lld logits where %lld and %lld were planned for",
                       (long long)b->n, (long long)n, (long long)r->max_tokens, (long long)r->max_logits);
    NB_TRY(check_ids(r, b));
    nb_tape_follow(r->tape, &r->plan, r->arena->base);
    NB_TRY(nb_model_logits(r->model, r->tape, b, cache, rows, n, &g));
    return r->model->dev->be->get(r->model->dev, logits, g.logits->data,
                                  (size_t)(n * r->model->spec->vocab) * sizeof(float));
}
