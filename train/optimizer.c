#include "train/optimizer.h"

#include <math.h>
#include <stdlib.h>

#include "core/mem.h"
#include "kernels/state8.h"

enum { LEAST_EIGHT_BIT = 4096 }; /* elements of a parameter: bitsandbytes' min_8bit_size */

/* ---- the state ---- */

static size_t bytes_of(const nb_state_buffer *b) { return (size_t)b->n * (size_t)nb_dtype_size(b->dtype); }
static int64_t blocks_of(int64_t n) { return (n + NB_STATE8_BLOCK - 1) / NB_STATE8_BLOCK; }

/* Rows of tokens that a batch lacks have no gradient, and a block's one scale would not hold what they remember. */
static bool has_eight_bits(const nb_adapter *a, const nb_tensor *p) {
    return nb_tensor_size(p) >= LEAST_EIGHT_BIT && !nb_adapter_embeds(a, p);
}

static bool is_magnitude(const nb_adapter *a, const nb_tensor *p) {
    for (int i = 0; i < a->n_attached && a->dora; i++)
        if (a->attached[i].magnitude == p) return true;
    return false;
}

/* What LoRA+ trains faster: B of linear layers, and vectors, as PEFT. */
static bool is_boosted(const nb_adapter *a, const nb_tensor *p) {
    for (int i = 0; i < a->n_attached; i++)
        if (a->attached[i].B == p) return a->attached[i].lin != NULL;
    return p->n_dims == 1;
}

static int by_place(const void *x, const void *y) {
    const char *p = (*(nb_tensor *const *)x)->data, *q = (*(nb_tensor *const *)y)->data;
    return (p > q) - (p < q);
}

/* Parameters join the run before them when they decay and learn alike and have the same kind of state, and when no block
 * of 8-bit state would reach over the seam. Vectors (norm weights, biases) do not decay, but
 * DoRA's magnitudes do, as in PEFT and the Trainer. */
static void make_runs(nb_optimizer *o, bool eight_bits) {
    const nb_adapter *a = o->adapter;
    const nb_tensor **sorted = nb_calloc((size_t)a->n_params + 1, sizeof *sorted);
    o->runs = nb_calloc((size_t)a->n_params + 1, sizeof *o->runs);
    for (int i = 0; i < a->n_params; i++) sorted[i] = &a->params[i];
    qsort(sorted, (size_t)a->n_params, sizeof *sorted, by_place);
    for (int i = 0; i < a->n_params; i++) {
        const nb_tensor *p = sorted[i];
        nb_update_run r = {.at = (float *)p->data - a->data, .decays = p->n_dims > 1 || is_magnitude(a, p),
                           .eight_bits = eight_bits && has_eight_bits(a, p),
                           .boosted = o->b_ratio != 1 && is_boosted(a, p)};
        const nb_update_run *last = o->n_runs ? &o->runs[o->n_runs - 1] : NULL;
        bool joins = last && last->decays == r.decays && last->eight_bits == r.eight_bits && last->boosted == r.boosted &&
                     (!r.eight_bits || (r.at - last->at) % NB_STATE8_BLOCK == 0);
        if (!joins) o->runs[o->n_runs++] = r;
    }
    free(sorted);
    for (int i = 0; i < o->n_runs; i++) o->runs[i].n = (i + 1 < o->n_runs ? o->runs[i + 1].at : a->n) - o->runs[i].at;
}

/* Keeps of the runs what lies in begin .. end - 1, gives each its place in the state, and counts what that takes:
 * elements with moments in f32 and in 8 bits, and scales. */
typedef struct counts {
    int64_t n32, n8, scales;
} counts;

static counts place(const nb_optimizer *o, int64_t begin, int64_t end, nb_update_run *out, int *n_out) {
    counts c = {0};
    *n_out = 0;
    for (int i = 0; i < o->n_runs; i++) {
        nb_update_run r = o->runs[i];
        int64_t from = r.at > begin ? r.at : begin, to = r.at + r.n < end ? r.at + r.n : end;
        if (from >= to) continue;
        r.at = from, r.n = to - from;
        r.scales = c.scales;
        r.state = r.eight_bits ? c.n8 : c.n32;
        if (r.eight_bits) c.n8 += r.n, c.scales += blocks_of(r.n);
        else c.n32 += r.n;
        out[(*n_out)++] = r;
    }
    return c;
}

/* Whole blocks, counted from the beginning of each run, in parts as even as that allows. */
static void share_out(nb_optimizer *o) {
    int size = o->comm->size, i = 0;
    int64_t all = 0, before = 0; /* blocks; of the runs before run i */
    o->parts = nb_calloc((size_t)size + 1, sizeof *o->parts);
    for (int k = 0; k < o->n_runs; k++) all += blocks_of(o->runs[k].n);
    for (int k = 0; k < size; k++) {
        int64_t block = all * k / size;
        while (block - before >= blocks_of(o->runs[i].n)) before += blocks_of(o->runs[i++].n);
        o->parts[k] = o->runs[i].at + (block - before) * NB_STATE8_BLOCK;
    }
    o->parts[0] = 0;
    o->parts[size] = o->adapter->n;
}

static void lay_out(nb_optimizer *o, bool eight_bits) {
    make_runs(o, eight_bits);
    int64_t begin = 0, end = o->adapter->n;
    if (o->shared) {
        share_out(o);
        begin = o->parts[o->comm->rank], end = o->parts[o->comm->rank + 1];
    }
    nb_update_run *own = nb_calloc((size_t)o->n_runs + 1, sizeof *own);
    int n;
    counts whole = place(o, 0, o->adapter->n, own, &n), first = place(o, 0, begin, own, &n);
    counts c = place(o, begin, end, own, &n); /* the last: `own` is ours */
    free(o->runs);
    o->runs = own;
    o->n_runs = n;
    nb_state_buffer *s = o->state;
    s[NB_STATE_M] = (nb_state_buffer){"exp_avg", NB_F32, c.n32, whole.n32, first.n32, NULL};
    s[NB_STATE_V] = (nb_state_buffer){"exp_avg_sq", NB_F32, c.n32, whole.n32, first.n32, NULL};
    s[NB_STATE_M8] = (nb_state_buffer){"exp_avg_8bit", NB_U8, c.n8, whole.n8, first.n8, NULL};
    s[NB_STATE_V8] = (nb_state_buffer){"exp_avg_sq_8bit", NB_U8, c.n8, whole.n8, first.n8, NULL};
    s[NB_STATE_M_SCALE] = (nb_state_buffer){"exp_avg_scale", NB_F32, c.scales, whole.scales, first.scales, NULL};
    s[NB_STATE_V_SCALE] = (nb_state_buffer){"exp_avg_sq_scale", NB_F32, c.scales, whole.scales, first.scales, NULL};
}

nb_status nb_optimizer_open(nb_optimizer *o, nb_adapter *a, bool eight_bits, double b_ratio, nb_comm *comm,
                            bool shared) {
    nb_dev *d = a->dev;
    *o = (nb_optimizer){.adapter = a, .b_ratio = b_ratio, .comm = comm, .shared = shared && comm && comm->size > 1};
    lay_out(o, eight_bits);
    for (int i = 0; i < NB_STATE_COUNT; i++) {
        nb_state_buffer *b = &o->state[i];
        if (b->n) NB_TRY(d->be->alloc(d, &b->p, bytes_of(b), "the optimizer's state"));
    }
    NB_TRY(d->be->alloc(d, (void **)&o->update, 2 * sizeof *o->update, "the optimizer's state"));
    return nb_dev_reserve(d, d->be->rows_ws(d, 1, a->n));
}

void nb_optimizer_close(nb_optimizer *o) {
    if (!o->adapter) return;
    nb_dev *d = o->adapter->dev;
    for (int i = 0; i < NB_STATE_COUNT; i++)
        if (o->state[i].p) d->be->free(d, o->state[i].p, bytes_of(&o->state[i]));
    if (o->update) d->be->free(d, o->update, 2 * sizeof *o->update);
    free(o->runs);
    free(o->parts);
    *o = (nb_optimizer){0};
}

size_t nb_optimizer_bytes(const nb_optimizer *o) {
    size_t bytes = 0;
    for (int i = 0; i < NB_STATE_COUNT; i++) bytes += bytes_of(&o->state[i]);
    return bytes;
}

size_t nb_optimizer_whole_bytes(const nb_optimizer *o) {
    size_t bytes = 0;
    for (int i = 0; i < NB_STATE_COUNT; i++)
        bytes += (size_t)o->state[i].whole * (size_t)nb_dtype_size(o->state[i].dtype);
    return bytes;
}

/* ---- a step ---- */

void nb_optimizer_begin(nb_optimizer *o) {
    for (int i = 0; i < o->adapter->n_params; i++) o->adapter->params[i].grad_written = false;
}

static nb_status update_run(nb_optimizer *o, const nb_update_run *r) {
    nb_adapter *a = o->adapter;
    nb_dev *d = a->dev;
    const nb_state_buffer *s = o->state;
    const nb_update *u = &o->update[r->boosted];
    float *p = a->data + r->at, *g = a->grad + r->at;
    float beta1 = (float)o->beta1, beta2 = (float)o->beta2, eps = (float)o->epsilon,
          decay = r->decays ? (float)o->weight_decay : 0;
    if (!r->eight_bits)
        return d->k->adamw(d, p, (float *)s[NB_STATE_M].p + r->state, (float *)s[NB_STATE_V].p + r->state, g, r->n,
                           u, beta1, beta2, eps, decay);
    return d->k->adamw8(d, p, (uint8_t *)s[NB_STATE_M8].p + r->state, (uint8_t *)s[NB_STATE_V8].p + r->state,
                        (float *)s[NB_STATE_M_SCALE].p + r->scales, (float *)s[NB_STATE_V_SCALE].p + r->scales, g, r->n,
                        u, beta1, beta2, eps, decay);
}

nb_status nb_optimizer_step(nb_optimizer *o, int64_t step, double rate, double *norm) {
    nb_adapter *a = o->adapter;
    nb_dev *d = a->dev;
    for (int i = 0; i < a->n_params; i++)
        if (!a->params[i].grad_written)
            NB_TRY(d->k->fill(d, a->params[i].grad, NB_F32, 0, nb_tensor_size(&a->params[i])));
    if (o->comm) NB_TRY(nb_comm_sum_f32(o->comm, a->grad, a->n));
    nb_update u[2] = {{.bias1 = 1 - pow((double)(float)o->beta1, (double)step),
                       .bias2 = 1 - pow((double)(float)o->beta2, (double)step), .lr = (float)rate,
                       .max_norm = (float)o->max_grad_norm}};
    u[1] = u[0];
    u[1].lr = (float)(rate * o->b_ratio);
    NB_TRY(d->be->put(d, o->update, u, sizeof u));
    for (int i = 0; i < (o->b_ratio != 1 ? 2 : 1); i++) NB_TRY(d->k->sum_squares(d, &o->update[i], a->grad, a->n));
    for (int i = 0; i < o->n_runs; i++) NB_TRY(update_run(o, &o->runs[i]));
    if (o->shared) NB_TRY(nb_comm_gather(o->comm, a->data, o->parts));
    NB_TRY(d->be->get(d, u, o->update, sizeof *u));
    *norm = sqrt(u->sum_squares);
    return NB_OK;
}
