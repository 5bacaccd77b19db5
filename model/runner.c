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
static nb_batch largest_batch(int64_t n) {
    return (nb_batch){.n = n, .n_segs = 1, .n_trained = n, .pairs = 0.5 * (double)n * (double)n};
}

/* ---- index arrays ---- */

enum { ARRAYS = 6, PIECE = 64 /* elements: every array begins on a 256-byte boundary */ };

static int64_t piece_size(int64_t n) { return (n + PIECE - 1) / PIECE * PIECE; }

static nb_status open_indices(nb_indices *x, nb_dev *dev, int64_t tokens) {
    /* ids, pos, sample, kv_rows, rows, targets of a token each; a segment, of four numbers, has at least one token */
    x->bytes = (size_t)(piece_size(tokens) * ARRAYS + piece_size(4 * tokens)) * sizeof *x->host;
    size_t each = (size_t)tokens * sizeof(float);
    x->host = nb_calloc(1, x->bytes);
    x->rows = nb_calloc((size_t)tokens * 2, sizeof *x->rows);
    x->targets = x->rows + tokens;
    x->losses = nb_calloc((size_t)tokens, sizeof *x->losses);
    x->best = nb_calloc((size_t)tokens, sizeof *x->best);
    if (!dev->be->host_memory) NB_TRY(dev->be->alloc(dev, (void **)&x->device, x->bytes, "a batch"));
    NB_TRY(dev->be->alloc(dev, (void **)&x->argmax, each, "a batch"));
    return dev->be->alloc(dev, (void **)&x->losses_at, each, "a batch");
}

static void close_indices(nb_indices *x, nb_dev *dev, int64_t tokens) {
    size_t each = (size_t)tokens * sizeof(float);
    if (x->device) dev->be->free(dev, x->device, x->bytes);
    if (x->argmax) dev->be->free(dev, x->argmax, each);
    if (x->losses_at) dev->be->free(dev, x->losses_at, each);
    free(x->host);
    free(x->rows);
    free(x->losses);
    free(x->best);
}

/* Copies n words behind what is staged already and returns where they will be on the device. */
static const void *stage(nb_indices *x, int64_t *at, const void *from, int64_t n) {
    if (!from) return NULL;
    int32_t *host = x->host + *at;
    memcpy(host, from, (size_t)n * sizeof *host);
    const void *there = x->device ? x->device + (size_t)*at * sizeof *host : (const void *)host;
    *at += piece_size(n);
    return there;
}

/* *out = b with its arrays on the device; rows[n_rows] and row_targets likewise, where given. */
static nb_status to_device(nb_runner *r, const nb_batch *b, nb_batch *out, const int32_t **rows,
                           const int32_t **row_targets, int64_t n_rows) {
    nb_indices *x = &r->index;
    nb_dev *dev = r->model->dev;
    int64_t at = 0;
    *out = *b;
    out->pairs = 0;
    for (int64_t i = 0; i < b->n_segs; i++)
        out->pairs += (double)b->segs[i].qn * (b->segs[i].kn - 0.5 * b->segs[i].qn);
    if (dev->be->host_memory) return NB_OK;
    out->targets = NULL;
    out->ids = stage(x, &at, b->ids, b->n);
    out->pos = stage(x, &at, b->pos, b->n);
    out->sample = stage(x, &at, b->sample, b->n);
    out->kv_rows = stage(x, &at, b->kv_rows, b->n);
    out->segs = stage(x, &at, b->segs, 4 * b->n_segs);
    *rows = stage(x, &at, *rows, n_rows);
    *row_targets = stage(x, &at, *row_targets, n_rows);
    NB_ASSERT((size_t)at * sizeof *x->host <= x->bytes);
    return dev->be->put(dev, x->device, x->host, (size_t)at * sizeof *x->host);
}

/* ---- planning ---- */

/* Runs the work once on the null device; leaves the placed plan and the scratch it needs in r->plan, and r->flops. */
static nb_status make_plan(nb_runner *r, nb_kv_cache *cache) {
    nb_model *m = r->model;
    nb_dev *real = m->dev, *null_dev;
    NB_TRY(nb_dev_open_null(&null_dev, real));
    nb_batch b = largest_batch(r->max_tokens);
    nb_loss_rows rows = {.n = r->max_tokens, .argmax = (int32_t *)(uintptr_t)NB_ALIGN}; /* wanted; never followed */
    nb_graph g;
    nb_tape *t = r->tape;
    nb_tape_follow(t, &r->plan, NULL);
    t->dev = m->dev = null_dev;
    if (m->weights.shared) m->weights.shared->asleep = true;
    t->training = r->backward;
    t->prof = nb_calloc((size_t)nb_op_count, sizeof *t->prof);
    nb_status st;
    if (r->max_logits) st = nb_model_logits(m, t, &b, cache, NULL, r->max_logits, &g);
    else st = nb_model_loss(m, t, &b, &rows, &g);
    if (st == NB_OK && r->backward) st = nb_backward(t, g.objective, NULL, 1);
    r->plan.ws = null_dev->ws_need;
    for (int i = 0; i < nb_op_count; i++) r->flops += t->prof[i].forward.flops;
    free(t->prof);
    t->prof = NULL;
    nb_tape_reset(t);
    t->dev = m->dev = real;
    if (m->weights.shared) m->weights.shared->asleep = false;
    nb_dev_close(null_dev);
    if (st == NB_OK) nb_plan_place(&r->plan);
    return st;
}

/* Parameters look untouched again: the planning run has marked their gradients written. */
static void forget_gradients(nb_tape *t) {
    for (int i = 0; i < t->max_nodes; i++)
        for (int j = 0; j < t->nodes[i].n_in; j++)
            if (t->nodes[i].in[j] && !t->nodes[i].in[j]->producer) t->nodes[i].in[j]->grad_written = false;
}

/* Tape and plan; no memory of the device yet. */
static nb_status prepare(nb_runner **out, nb_model *m, int64_t max_tokens, int64_t max_logits, bool backward,
                         const nb_recompute *recompute, nb_kv_cache *cache) {
    nb_runner *r = NB_NEW(nb_runner);
    *r = (nb_runner){.model = m, .max_tokens = max_tokens, .max_logits = max_logits, .backward = backward};
    nb_status st = nb_tape_open(&r->tape, m->dev, nb_model_max_nodes(m));
    r->tape->grad = backward;
    if (recompute) r->tape->recompute = *recompute;
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
                             bool backward, const nb_recompute *recompute, nb_kv_cache *cache) {
    nb_runner *r;
    NB_TRY(prepare(&r, m, max_tokens, max_logits, backward, recompute, cache));
    r->arena = arena;
    nb_status st = open_indices(&r->index, m->dev, max_tokens);
    if (st == NB_OK) st = nb_arena_grow(arena, m->dev, r->plan.peak);
    if (st == NB_OK) st = nb_dev_reserve(m->dev, r->plan.ws);
    if (st != NB_OK) {
        nb_runner_free(r);
        return st;
    }
    *out = r;
    return NB_OK;
}

nb_status nb_runner_measure(nb_model *m, int64_t max_tokens, const nb_recompute *recompute, nb_need *need) {
    nb_runner *r;
    NB_TRY(prepare(&r, m, max_tokens, 0, true, recompute, NULL));
    *need = (nb_need){r->plan.peak, r->plan.ws, r->flops};
    nb_runner_free(r);
    return NB_OK;
}

nb_status nb_runner_open_loss(nb_runner **out, nb_model *m, nb_arena *arena, int64_t max_tokens, bool backward,
                              const nb_recompute *recompute) {
    return open_runner(out, m, arena, max_tokens, 0, backward, recompute, NULL);
}

nb_status nb_runner_open_logits(nb_runner **out, nb_model *m, nb_arena *arena, int64_t max_tokens, int64_t max_logits,
                                nb_kv_cache *cache) {
    return open_runner(out, m, arena, max_tokens, max_logits, false, NULL, cache);
}

static void forget_recordings(nb_runner *r) {
    nb_dev *dev = r->model->dev;
    for (int i = 0; i < r->n_recordings; i++)
        if (r->recording[i].launches) dev->be->forget(dev, r->recording[i].launches);
    r->n_recordings = 0;
}

void nb_runner_free(nb_runner *r) {
    if (!r) return;
    forget_recordings(r);
    nb_tape_free(r->tape);
    close_indices(&r->index, r->model->dev, r->max_tokens);
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

/* Rows of the tokens that are trained, and what should follow them; both on the host. */
static int64_t trained_rows(const nb_batch *b, int32_t *rows, int32_t *targets) {
    int64_t n = 0;
    for (int64_t i = 0; i < b->n; i++)
        if (b->targets[i] != NB_IGNORE) {
            rows[n] = (int32_t)i;
            targets[n++] = b->targets[i];
        }
    return n;
}

nb_status nb_runner_loss(nb_runner *r, const nb_batch *b, float grad_scale, double *loss_sum, float *nll) {
    nb_indices *x = &r->index;
    nb_dev *dev = r->model->dev;
    nb_batch there;
    nb_graph g;
    *loss_sum = 0;
    if (b->n > r->max_tokens)
        return nb_fail(NB_EINPUT, "a batch of %lld tokens where %lld were planned for", (long long)b->n,
                       (long long)r->max_tokens);
    NB_TRY(check_ids(r, b));
    x->n = trained_rows(b, x->rows, x->targets);
    if (!x->n) return NB_OK;
    nb_loss_rows at = {x->rows, x->targets, x->n, x->argmax};
    NB_TRY(to_device(r, b, &there, &at.rows, &at.targets, x->n));
    nb_tape_follow(r->tape, &r->plan, r->arena->base);
    NB_TRY(nb_model_loss(r->model, r->tape, &there, &at, &g));
    size_t bytes = (size_t)x->n * sizeof(float);
    NB_TRY(dev->be->copy(dev, x->losses_at, g.loss->data, bytes));
    float first = 0;
    bool balanced = g.objective != g.loss;
    if (balanced) NB_TRY(dev->be->get(dev, &first, g.objective->data, sizeof first));
    if (r->backward) NB_TRY(nb_backward(r->tape, g.objective, NULL, grad_scale));
    NB_TRY(dev->be->get(dev, x->losses, x->losses_at, bytes));
    r->balance = balanced ? (double)first - (double)x->losses[0] : 0;
    for (int64_t i = 0; i < x->n; i++) *loss_sum += x->losses[i];
    if (nll) memcpy(nll, x->losses, bytes);
    return r->backward ? NB_OK : dev->be->get(dev, x->best, x->argmax, bytes);
}

/* ---- logits ---- */

enum { RECORD_TOKENS = 64 }; /* with more, launches are long enough to hide each other's start */

static nb_status run_logits(nb_runner *r, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows, int64_t n,
                            const float **logits) {
    nb_dev *dev = r->model->dev;
    nb_graph g;
    nb_tape_follow(r->tape, &r->plan, r->arena->base);
    dev->dots = b->answers;
    nb_status st = nb_model_logits(r->model, r->tape, b, cache, rows, n, &g);
    dev->dots = false;
    if (st == NB_OK) *logits = g.logits->data;
    return st;
}

/* The recording of this kind of batch, perhaps not made yet; NULL: such batches are not recorded. */
static nb_recording *recording_of(nb_runner *r, const nb_batch *b, const nb_kv_cache *cache, int64_t n) {
    /* layers that come by are not where they were when they come again, nor do tokens go to the same experts */
    if (!r->model->dev->be->record || b->n > RECORD_TOKENS || r->model->weights.shared || r->model->n_sparse)
        return NULL;
    struct nb_recording_key key;
    memset(&key, 0, sizeof key); /* compared as bytes */
    key.n = b->n, key.n_segs = b->n_segs, key.n_rows = n, key.changes = r->model->changes;
    key.cache = cache, key.arena = r->arena->base, key.ws = r->model->dev->ws;
    for (int i = 0; i < r->n_recordings; i++)
        if (!memcmp(&r->recording[i].key, &key, sizeof key)) return &r->recording[i];
    if (r->n_recordings == NB_LEN(r->recording)) forget_recordings(r);
    nb_recording *c = &r->recording[r->n_recordings++];
    *c = (nb_recording){.key = key};
    return c;
}

/* The first time a kind of batch runs as it is, the second time it is recorded, then replayed. */
static nb_status launch_logits(nb_runner *r, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows, int64_t n,
                               const float **logits) {
    nb_dev *dev = r->model->dev;
    nb_recording *c = recording_of(r, b, cache, n);
    if (!c || !c->seen++) return run_logits(r, b, cache, rows, n, logits);
    if (!c->launches) {
        NB_TRY(dev->be->record(dev));
        nb_status st = run_logits(r, b, cache, rows, n, &c->logits), end = dev->be->recorded(dev, &c->launches);
        NB_TRY(st);
        NB_TRY(end);
    }
    *logits = c->logits;
    return dev->be->replay(dev, c->launches);
}

nb_status nb_runner_logits_there(nb_runner *r, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows, int64_t n,
                                 const float **logits) {
    nb_batch there;
    if (b->n > r->max_tokens || n > r->max_logits)
        return nb_fail(NB_EINPUT, "a batch of %lld tokens, %lld logits where %lld and %lld were planned for",
                       (long long)b->n, (long long)n, (long long)r->max_tokens, (long long)r->max_logits);
    NB_TRY(check_ids(r, b));
    const int32_t *none = NULL;
    NB_TRY(to_device(r, b, &there, &rows, &none, n));
    return launch_logits(r, &there, cache, rows, n, logits);
}

nb_status nb_runner_logits(nb_runner *r, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows, int64_t n,
                           float *logits) {
    nb_dev *dev = r->model->dev;
    const float *at;
    NB_TRY(nb_runner_logits_there(r, b, cache, rows, n, &at));
    return dev->be->get(dev, logits, at, (size_t)(n * r->model->spec->vocab) * sizeof(float));
}
