/* The order of training: which samples an epoch has, into which bins they go, and the batches of a step. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/rng.h"
#include "data/dataset.h"
#include "data/pack.h"

typedef struct buffers { /* flat arrays of tokens and segments that batches point into */
    int32_t *ids, *targets, *pos;
    uint32_t *sample;
    nb_seg *segs;
    int64_t n, n_segs;
} buffers;

struct nb_loader {
    const nb_data *d;
    nb_loader_options o;
    int64_t *set_first;   /* [n_train + 1] samples of set s are set_first[s] .. set_first[s + 1] - 1 */
    int32_t *sample_len;  /* [n_samples] */
    int64_t *first_step;  /* [n_epochs + 1] step each epoch begins with, had it all its steps */
    int64_t n_epochs, n_steps;
    double fill;
    /* The epoch planned at the moment: samples in items[], those of bin b from bin_start[b] to bin_start[b + 1]. */
    int64_t planned, n_items, n_bins;
    int64_t *items, *order, *bin, *bin_start, *permutation;
    int32_t *length;
    buffers buf;
    nb_batch *batches; /* [accumulation] */
};

static void buffers_open(buffers *b, int64_t tokens, int64_t segs) {
    b->ids = nb_calloc((size_t)tokens + 1, sizeof *b->ids);
    b->targets = nb_calloc((size_t)tokens + 1, sizeof *b->targets);
    b->pos = nb_calloc((size_t)tokens + 1, sizeof *b->pos);
    b->sample = nb_calloc((size_t)tokens + 1, sizeof *b->sample);
    b->segs = nb_calloc((size_t)segs + 1, sizeof *b->segs);
}

static void buffers_free(buffers *b) {
    free(b->ids);
    free(b->targets);
    free(b->pos);
    free(b->sample);
    free(b->segs);
}

static nb_batch batch_begin(const buffers *b) {
    return (nb_batch){.ids = b->ids + b->n,
                      .targets = b->targets + b->n,
                      .pos = b->pos + b->n,
                      .sample = b->sample + b->n,
                      .segs = b->segs + b->n_segs};
}

/* Appends one document. Targets are labels moved by one within it: its last token has none. */
static void batch_add(buffers *b, nb_batch *batch, const nb_row *r, int64_t sample) {
    memcpy(b->ids + b->n, r->ids, (size_t)r->n * sizeof *r->ids);
    memcpy(b->targets + b->n, r->labels + 1, (size_t)(r->n - 1) * sizeof *r->labels);
    b->targets[b->n + r->n - 1] = NB_IGNORE;
    for (int32_t i = 0; i < r->n; i++) {
        b->pos[b->n + i] = i;
        b->sample[b->n + i] = (uint32_t)sample;
    }
    b->segs[b->n_segs++] = (nb_seg){(int32_t)batch->n, r->n, (int32_t)batch->n, r->n};
    b->n += r->n;
    batch->n += r->n;
    batch->n_segs++;
    batch->n_trained += r->trained;
}

/* ---- planning an epoch ---- */

/* Samples of set s in this epoch: whole passes, and for the fraction of its weight a window that moves through one
 * fixed random order from epoch to epoch, so that every row has its turn. */
static void add_set(nb_loader *l, int s, int64_t epoch) {
    int64_t first = l->set_first[s], rows = l->set_first[s + 1] - first;
    double weight = nb_dataset_weight(l->d->train[s]), whole = floor(weight);
    for (int64_t pass = 0; pass < (int64_t)whole; pass++)
        for (int64_t i = 0; i < rows; i++) l->order[l->n_items++] = first + i;
    int64_t k = llround((weight - whole) * (double)rows);
    if (!k) return;
    for (int64_t i = 0; i < rows; i++) l->permutation[i] = first + i;
    nb_rng rng = nb_rng_open(l->o.seed, NB_RNG_WEIGHT, (uint64_t)s);
    nb_rng_shuffle(&rng, l->permutation, rows);
    int64_t start = (int64_t)(((uint64_t)epoch % (uint64_t)rows) * (uint64_t)k % (uint64_t)rows);
    for (int64_t i = 0; i < k; i++) l->order[l->n_items++] = l->permutation[(start + i) % rows];
}

static void plan(nb_loader *l, int64_t epoch) {
    if (l->planned == epoch) return;
    l->n_items = 0;
    for (int s = 0; s < l->d->n_train; s++) add_set(l, s, epoch);
    if (l->o.shuffle) {
        nb_rng rng = nb_rng_open(l->o.seed, NB_RNG_SHUFFLE, (uint64_t)epoch);
        nb_rng_shuffle(&rng, l->order, l->n_items);
    }
    for (int64_t i = 0; i < l->n_items; i++) {
        l->length[i] = l->sample_len[l->order[i]];
        l->bin[i] = i;
    }
    l->n_bins = l->o.packing ? nb_pack(l->length, l->n_items, l->o.sequence_len, l->bin) : l->n_items;
    /* A counting sort by bin keeps the order within each. */
    memset(l->bin_start, 0, (size_t)(l->n_bins + 1) * sizeof *l->bin_start);
    for (int64_t i = 0; i < l->n_items; i++) l->bin_start[l->bin[i] + 1]++;
    for (int64_t b = 0; b < l->n_bins; b++) l->bin_start[b + 1] += l->bin_start[b];
    for (int64_t i = 0; i < l->n_items; i++) l->items[l->bin_start[l->bin[i]]++] = l->order[i];
    for (int64_t b = l->n_bins; b > 0; b--) l->bin_start[b] = l->bin_start[b - 1];
    l->bin_start[0] = 0;
    l->planned = epoch;
}

static int64_t bins_per_step(const nb_loader *l) {
    return l->o.micro_batch_size * l->o.accumulation * l->o.ranks;
}

static int64_t min64(int64_t x, int64_t y) {
    return x < y ? x : y;
}

/* The most tokens and documents a step of the planned epoch has. */
static void measure(const nb_loader *l, int64_t *tokens, int64_t *segs) {
    for (int64_t b = 0; b < l->n_bins; b += bins_per_step(l)) {
        int64_t begin = l->bin_start[b], end = l->bin_start[min64(b + bins_per_step(l), l->n_bins)], n = 0;
        for (int64_t i = begin; i < end; i++) n += l->sample_len[l->items[i]];
        if (n > *tokens) *tokens = n;
        if (end - begin > *segs) *segs = end - begin;
    }
}

/* ---- opening ---- */

static nb_status measure_samples(nb_loader *l, int64_t *items) {
    const nb_data *d = l->d;
    int64_t longest_set = 0;
    for (int64_t i = 0; i < d->n_samples; i++) {
        nb_row r;
        nb_dataset_row(d->train[d->sample_set[i]], d->sample_row[i], &r);
        if (r.n > l->o.sequence_len)
            return nb_fail(NB_EINPUT, "%s:%lld: %d tokens, but sequence_len is %lld", r.file, (long long)r.line, r.n,
                           (long long)l->o.sequence_len);
        l->sample_len[i] = r.n;
        l->set_first[d->sample_set[i] + 1]++;
    }
    *items = 0;
    for (int s = 0; s < d->n_train; s++) {
        int64_t rows = l->set_first[s + 1];
        double weight = nb_dataset_weight(d->train[s]);
        *items += (int64_t)floor(weight) * rows + llround((weight - floor(weight)) * (double)rows);
        if (rows > longest_set) longest_set = rows;
        l->set_first[s + 1] += l->set_first[s];
    }
    if (!*items) return nb_fail(NB_EINPUT, "nothing to train on: the datasets' weights leave not one row in an epoch");
    l->permutation = nb_calloc((size_t)longest_set + 1, sizeof *l->permutation);
    return NB_OK;
}

/* Counts every epoch's steps: they differ, since each epoch is packed anew. */
static nb_status count_steps(nb_loader *l) {
    double epochs = l->o.epochs;
    int64_t cap = 0, tokens = 0, segs = 0, filled = 0;
    for (int64_t e = 0; l->o.max_steps ? l->n_steps < l->o.max_steps : (double)e < epochs - 1e-9; e++) {
        if (e + 2 > cap) {
            cap = cap ? cap * 2 : 16;
            l->first_step = nb_realloc(l->first_step, (size_t)cap, sizeof *l->first_step);
            if (!e) l->first_step[0] = 0;
        }
        plan(l, e);
        measure(l, &tokens, &segs);
        for (int64_t i = 0; e == 0 && i < l->n_items; i++) filled += l->length[i];
        if (!e) l->fill = (double)filled / ((double)l->n_bins * (double)l->o.sequence_len);
        int64_t steps = (l->n_bins + bins_per_step(l) - 1) / bins_per_step(l);
        double share = l->o.max_steps || epochs - (double)e > 1 ? 1 : epochs - (double)e;
        l->first_step[e + 1] = l->first_step[e] + steps;
        l->n_steps += (int64_t)ceil(share * (double)steps - 1e-9);
        l->n_epochs = e + 1;
    }
    if (l->o.max_steps) l->n_steps = l->o.max_steps;
    if (!l->n_steps) return nb_fail(NB_EINPUT, "num_epochs %g and max_steps %lld make no training step", epochs,
                                    (long long)l->o.max_steps);
    buffers_open(&l->buf, tokens, segs);
    return NB_OK;
}

nb_status nb_loader_open(nb_loader **out, const nb_data *d, const nb_loader_options *o) {
    NB_ASSERT(o->sequence_len > 0 && o->micro_batch_size > 0 && o->accumulation > 0 && o->max_steps >= 0);
    nb_loader *l = NB_NEW(nb_loader);
    int64_t items = 0;
    *l = (nb_loader){.d = d, .o = *o, .planned = -1};
    if (!o->ranks) l->o.ranks = 1;
    *out = NULL;
    l->set_first = nb_calloc((size_t)d->n_train + 1, sizeof *l->set_first);
    l->sample_len = nb_calloc((size_t)d->n_samples + 1, sizeof *l->sample_len);
    nb_status st = measure_samples(l, &items);
    if (st == NB_OK) {
        l->items = nb_calloc((size_t)items, sizeof *l->items);
        l->order = nb_calloc((size_t)items, sizeof *l->order);
        l->bin = nb_calloc((size_t)items, sizeof *l->bin);
        l->bin_start = nb_calloc((size_t)items + 1, sizeof *l->bin_start);
        l->length = nb_calloc((size_t)items, sizeof *l->length);
        l->batches = nb_calloc((size_t)o->accumulation, sizeof *l->batches);
        st = count_steps(l);
    }
    if (st == NB_OK) *out = l;
    else nb_loader_free(l);
    return st;
}

void nb_loader_free(nb_loader *l) {
    if (!l) return;
    buffers_free(&l->buf);
    free(l->set_first);
    free(l->sample_len);
    free(l->first_step);
    free(l->items);
    free(l->order);
    free(l->bin);
    free(l->bin_start);
    free(l->permutation);
    free(l->length);
    free(l->batches);
    free(l);
}

/* ---- steps ---- */

int64_t nb_loader_steps(const nb_loader *l) { return l->n_steps; }
int64_t nb_loader_steps_per_epoch(const nb_loader *l) { return l->first_step[1]; }
double nb_loader_fill(const nb_loader *l) { return l->fill; }

/* The epoch that holds step `step`: the last one whose first step is not behind it. */
static int64_t epoch_with(const nb_loader *l, int64_t step) {
    int64_t low = 0, high = l->n_epochs - 1;
    while (low < high) {
        int64_t mid = (low + high + 1) / 2;
        if (l->first_step[mid] <= step) low = mid;
        else high = mid - 1;
    }
    return low;
}

double nb_loader_epoch_of(const nb_loader *l, int64_t step) {
    int64_t e = epoch_with(l, step), steps = l->first_step[e + 1] - l->first_step[e];
    return (double)e + (double)(step - l->first_step[e]) / (double)steps;
}

/* The bins of a step: *bin .. *end - 1 of its epoch, which is planned now. */
static void bins_of(nb_loader *l, int64_t step, int64_t *bin, int64_t *end) {
    NB_ASSERT(step >= 0 && step < l->n_steps);
    int64_t e = epoch_with(l, step);
    plan(l, e);
    *bin = (step - l->first_step[e]) * bins_per_step(l);
    *end = min64(*bin + bins_per_step(l), l->n_bins);
}

nb_status nb_loader_step(nb_loader *l, int64_t step, const nb_batch **batches, int *n, int64_t *trained) {
    int64_t bin, end;
    bins_of(l, step, &bin, &end);
    l->buf.n = l->buf.n_segs = 0;
    *n = 0;
    *trained = 0;
    for (int64_t turn = 0; bin < end; bin += l->o.micro_batch_size, turn++) {
        bool ours = turn % l->o.ranks == l->o.rank;
        if (ours) l->batches[(*n)++] = batch_begin(&l->buf);
        for (int64_t i = l->bin_start[bin]; i < l->bin_start[min64(bin + l->o.micro_batch_size, end)]; i++) {
            int64_t s = l->items[i];
            nb_row r;
            nb_dataset_row(l->d->train[l->d->sample_set[s]], l->d->sample_row[s], &r);
            if (ours) batch_add(&l->buf, &l->batches[*n - 1], &r, s);
            *trained += r.trained;
        }
    }
    *batches = l->batches;
    return NB_OK;
}

int64_t nb_loader_rounds(nb_loader *l, int64_t step) {
    int64_t bin, end, round = l->o.micro_batch_size * l->o.ranks;
    bins_of(l, step, &bin, &end);
    return (end - bin + round - 1) / round;
}

const int64_t *nb_loader_samples(nb_loader *l, int64_t step, int64_t *n) {
    int64_t bin, end;
    bins_of(l, step, &bin, &end);
    *n = l->bin_start[end] - l->bin_start[bin];
    return &l->items[l->bin_start[bin]];
}

/* ---- held-out sets ---- */

struct nb_eval_iter {
    const nb_dataset *d;
    int64_t next, max_tokens;
    buffers buf;
};

nb_status nb_eval_iter_open(nb_eval_iter **out, const nb_dataset *d, int64_t max_tokens) {
    int64_t rows = nb_dataset_rows(d), total = 0;
    *out = NULL;
    for (int64_t i = 0; i < rows; i++) {
        nb_row r;
        nb_dataset_row(d, i, &r);
        if (r.n > max_tokens)
            return nb_fail(NB_EINPUT, "%s:%lld: %d tokens, but a batch of held-out data has room for %lld", r.file,
                           (long long)r.line, r.n, (long long)max_tokens);
        total += r.n;
    }
    nb_eval_iter *it = NB_NEW(nb_eval_iter);
    it->d = d;
    it->max_tokens = max_tokens;
    buffers_open(&it->buf, min64(max_tokens, total), min64(max_tokens, rows));
    *out = it;
    return NB_OK;
}

nb_status nb_eval_iter_next(nb_eval_iter *it, nb_batch *batch, bool *done) {
    it->buf.n = it->buf.n_segs = 0;
    *batch = batch_begin(&it->buf);
    for (; it->next < nb_dataset_rows(it->d); it->next++) {
        nb_row r;
        nb_dataset_row(it->d, it->next, &r);
        if (batch->n + r.n > it->max_tokens) break;
        batch_add(&it->buf, batch, &r, it->next);
    }
    *done = batch->n == 0;
    return NB_OK;
}

void nb_eval_iter_free(nb_eval_iter *it) {
    if (!it) return;
    buffers_free(&it->buf);
    free(it);
}
