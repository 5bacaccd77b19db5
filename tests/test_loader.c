/* Packing, the order of training, batches, and the split into training and held-out rows. */
#include "tests/test.h"

#include "core/batch.h"
#include "core/file.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/dataset.h"
#include "data/pack.h"

static nb_tokenizer *tok;

static int setup(void **s) {
    (void)s;
    return nb_tokenizer_load(&tok, "data/samples/base") == NB_OK ? 0 : -1;
}

static int teardown(void **s) {
    (void)s;
    nb_tokenizer_free(tok);
    return 0;
}

/* `rows` tokenized rows of 2 .. longest tokens; ids tell row and place: id = (row * 7 + place) % 4000. */
static void add_set(nb_config *c, const char *name, int rows, int longest, double weight) {
    nb_rng rng = nb_rng_open((uint64_t)rows, NB_RNG_TEST, 1);
    nb_text t = {0};
    char path[512];
    for (int i = 0; i < rows; i++) {
        int n = 2 + (int)nb_rng_below(&rng, (uint64_t)longest - 1), masked = (int)nb_rng_below(&rng, (uint64_t)n - 1);
        nb_text_puts(&t, "{\"input_ids\":[");
        for (int k = 0; k < n; k++) nb_text_printf(&t, "%s%d", k ? "," : "", (i * 7 + k) % 4000);
        nb_text_puts(&t, "],\"labels\":[");
        for (int k = 0; k < n; k++)
            nb_text_printf(&t, "%s%d", k ? "," : "", k <= masked ? NB_IGNORE : (i * 7 + k) % 4000);
        nb_text_puts(&t, "]}\n");
    }
    snprintf(path, sizeof path, "%s/%s.jsonl", nb_test_tmp(), name);
    assert_ok(nb_file_write(path, t.s, t.n));
    nb_text_free(&t);
    nb_config_dataset *e = nb_config_add_dataset(c, false);
    free(e->path);
    e->path = nb_strdup(path);
    e->type = NB_DATA_TOKENIZED;
    e->weight = weight;
}

static nb_config config(void) {
    nb_config c;
    nb_config_init(&c);
    free(c.dataset_prepared_path);
    c.dataset_prepared_path = nb_strdup("none");
    return c;
}

enum { LEN = 48 };
static nb_loader_options options(void) {
    return (nb_loader_options){.sequence_len = LEN,
                               .micro_batch_size = 2,
                               .accumulation = 3,
                               .packing = true,
                               .shuffle = true,
                               .epochs = 3,
                               .seed = 42};
}

static void test_pack(void **s) {
    (void)s;
    for (uint64_t trial = 0; trial < 40; trial++) {
        nb_rng rng = nb_rng_open(trial, NB_RNG_TEST, 2);
        int64_t n = (int64_t)nb_rng_below(&rng, 3000), capacity = 10 + (int64_t)nb_rng_below(&rng, 2000), total = 0;
        int32_t *length = nb_calloc((size_t)n + 1, sizeof *length);
        int64_t *bin = nb_calloc((size_t)n + 1, sizeof *bin), *again = nb_calloc((size_t)n + 1, sizeof *again);
        for (int64_t i = 0; i < n; i++) total += length[i] = 1 + (int32_t)nb_rng_below(&rng, (uint64_t)capacity);
        int64_t bins = nb_pack(length, n, capacity, bin), *filled = nb_calloc((size_t)bins + 1, sizeof *filled);
        for (int64_t i = 0; i < n; i++) {
            assert_in_range(bin[i], 0, bins - 1);
            filled[bin[i]] += length[i];
        }
        for (int64_t b = 0; b < bins; b++) assert_in_range(filled[b], 1, capacity);
        if (n > 500) assert_true((double)total >= 0.9 * (double)(bins * capacity));
        assert_int_equal(nb_pack(length, n, capacity, again), bins);
        assert_memory_equal(bin, again, (size_t)n * sizeof *bin);
        free(length);
        free(bin);
        free(again);
        free(filled);
    }
}

/* What a step holds, as one number. */
static uint64_t fingerprint(nb_loader *l, int64_t step) {
    const nb_batch *b;
    int n;
    int64_t trained;
    uint64_t h = 14695981039346656037u;
    assert_ok(nb_loader_step(l, step, &b, &n, &trained));
    for (int m = 0; m < n; m++) {
        h = (h ^ (uint64_t)b[m].n) * 1099511628211u;
        for (int64_t i = 0; i < b[m].n; i++) {
            const uint32_t parts[] = {(uint32_t)b[m].ids[i], (uint32_t)b[m].targets[i], (uint32_t)b[m].pos[i],
                                      b[m].sample[i]};
            for (int k = 0; k < 4; k++) h = (h ^ parts[k]) * 1099511628211u;
        }
        for (int64_t i = 0; i < b[m].n_segs; i++) h = (h ^ (uint64_t)b[m].segs[i].q0) * 1099511628211u;
    }
    return h ^ (uint64_t)trained;
}

static void test_pure_function_of_seed_and_step(void **s) {
    (void)s;
    nb_config c = config();
    add_set(&c, "pure", 300, LEN, 1);
    nb_data d;
    nb_loader *l, *m;
    assert_ok(nb_data_open(&d, &c, tok, LEN));
    nb_loader_options o = options();
    assert_ok(nb_loader_open(&l, &d, &o));
    int64_t steps = nb_loader_steps(l), differ = 0;
    uint64_t *want = nb_calloc((size_t)steps, sizeof *want);
    for (int64_t i = 0; i < steps; i++) want[i] = fingerprint(l, i);
    uint64_t allocations = nb_alloc_count();
    nb_rng rng = nb_rng_open(1, NB_RNG_TEST, 3);
    for (int i = 0; i < 60; i++) {
        int64_t step = (int64_t)nb_rng_below(&rng, (uint64_t)steps);
        assert_int_equal(fingerprint(l, step), want[step]);
    }
    assert_int_equal(nb_alloc_count(), allocations);
    assert_ok(nb_loader_open(&m, &d, &o)); /* another loader, backwards */
    for (int64_t i = steps; i-- > 0;) assert_int_equal(fingerprint(m, i), want[i]);
    nb_loader_free(m);
    o.seed = 43;
    assert_ok(nb_loader_open(&m, &d, &o));
    for (int64_t i = 0; i < steps && i < nb_loader_steps(m); i++) differ += fingerprint(m, i) != want[i];
    assert_true(differ > steps / 2);
    nb_loader_free(m);
    nb_loader_free(l);
    free(want);
    nb_data_free(&d);
    nb_config_free(&c);
}

/* Every document of a batch is a row from its first token to its last, with targets that stay inside it. */
static void check_batch(const nb_data *d, const nb_batch *b, int *seen, int64_t *trained) {
    int64_t at = 0, count = 0;
    for (int64_t g = 0; g < b->n_segs; g++) {
        const nb_seg *seg = &b->segs[g];
        uint32_t sample = b->sample[at];
        nb_row r;
        nb_dataset_row(d->train[d->sample_set[sample]], d->sample_row[sample], &r);
        assert_int_equal(seg->q0, at);
        assert_int_equal(seg->k0, at);
        assert_int_equal(seg->qn, r.n);
        assert_int_equal(seg->kn, r.n);
        for (int32_t i = 0; i < r.n; i++, at++) {
            assert_int_equal(b->ids[at], r.ids[i]);
            assert_int_equal(b->pos[at], i);
            assert_int_equal(b->sample[at], sample);
            assert_int_equal(b->targets[at], i + 1 < r.n ? r.labels[i + 1] : NB_IGNORE);
            count += b->targets[at] != NB_IGNORE;
        }
        seen[sample]++;
    }
    assert_int_equal(at, b->n);
    assert_int_equal(count, b->n_trained);
    *trained += count;
}

static void check_epoch(nb_loader *l, const nb_data *d, const nb_loader_options *o, int64_t first, int64_t steps,
                        int *seen, int64_t *trained) {
    for (int64_t step = first; step < first + steps; step++) {
        const nb_batch *b;
        int n;
        int64_t t, sum = 0;
        assert_ok(nb_loader_step(l, step, &b, &n, &t));
        assert_in_range(n, 1, o->accumulation);
        if (step + 1 < first + steps) assert_int_equal(n, o->accumulation); /* only the last may be smaller */
        for (int m = 0; m < n; m++) {
            assert_true(b[m].n <= o->micro_batch_size * o->sequence_len);
            if (!o->packing) assert_true(b[m].n_segs <= o->micro_batch_size);
            check_batch(d, &b[m], seen, &sum);
        }
        assert_int_equal(sum, t);
        *trained += sum;
    }
}

/* Batch x is batch y, token by token. */
static void same_batch(const nb_batch *x, const nb_batch *y) {
    assert_int_equal(x->n, y->n);
    assert_int_equal(x->n_segs, y->n_segs);
    assert_int_equal(x->n_trained, y->n_trained);
    assert_memory_equal(x->ids, y->ids, (size_t)x->n * sizeof *x->ids);
    assert_memory_equal(x->targets, y->targets, (size_t)x->n * sizeof *x->targets);
    assert_memory_equal(x->pos, y->pos, (size_t)x->n * sizeof *x->pos);
    assert_memory_equal(x->sample, y->sample, (size_t)x->n * sizeof *x->sample);
    assert_memory_equal(x->segs, y->segs, (size_t)x->n_segs * sizeof *x->segs);
}

/* Micro-batch i of a step that one process does in 6 is number i / ranks of rank i % ranks. */
static void test_ranks_share_a_step(void **s) {
    (void)s;
    nb_config c = config();
    add_set(&c, "first", 157, LEN, 1);
    nb_data d;
    assert_ok(nb_data_open(&d, &c, tok, LEN));
    int64_t shorter = 0;
    for (int ranks = 2; ranks <= 3; ranks++) {
        nb_loader *whole, *part[3];
        nb_loader_options o = options();
        o.accumulation = 6;
        assert_ok(nb_loader_open(&whole, &d, &o));
        o.accumulation = 6 / ranks;
        o.ranks = ranks;
        for (o.rank = 0; o.rank < ranks; o.rank++) assert_ok(nb_loader_open(&part[o.rank], &d, &o));
        for (int64_t step = 0; step < nb_loader_steps(whole); step++) {
            const nb_batch *b, *p[3];
            int n, m[3], sum = 0;
            int64_t trained, t, n_samples, at = 0;
            assert_ok(nb_loader_step(whole, step, &b, &n, &trained));
            for (int r = 0; r < ranks; r++) {
                assert_int_equal(nb_loader_steps(part[r]), nb_loader_steps(whole));
                assert_ok(nb_loader_step(part[r], step, &p[r], &m[r], &t));
                assert_int_equal(t, trained);
                sum += m[r];
            }
            assert_int_equal(sum, n);
            for (int i = 0; i < n; i++) same_batch(&b[i], &p[i % ranks][i / ranks]);
            const int64_t *samples = nb_loader_samples(part[ranks - 1], step, &n_samples);
            for (int i = 0; i < n; i++)
                for (int64_t k = 0; k < b[i].n_segs; k++, at++) {
                    assert_true(at < n_samples);
                    assert_int_equal(samples[at], b[i].sample[b[i].segs[k].q0]);
                }
            assert_int_equal(at, n_samples);
            shorter += n < 6;
        }
        nb_loader_free(whole);
        for (int r = 0; r < ranks; r++) nb_loader_free(part[r]);
    }
    assert_true(shorter > 0); /* the ends of epochs were among them */
    nb_data_free(&d);
    nb_config_free(&c);
}

static void test_every_sample_once_an_epoch(void **s) {
    (void)s;
    for (int packing = 0; packing < 2; packing++) {
        nb_config c = config();
        add_set(&c, "first", 157, LEN, 1);
        add_set(&c, "second", 61, 20, 1);
        nb_data d;
        nb_loader *l;
        nb_loader_options o = options();
        o.packing = packing;
        o.epochs = 2;
        assert_ok(nb_data_open(&d, &c, tok, LEN));
        assert_int_equal(d.n_samples, 157 + 61);
        assert_ok(nb_loader_open(&l, &d, &o));
        int64_t in_first = nb_loader_steps_per_epoch(l), trained = 0;
        int64_t all = nb_dataset_ledger(d.train[0])->tokens_trained + nb_dataset_ledger(d.train[1])->tokens_trained;
        int seen[218] = {0};
        check_epoch(l, &d, &o, 0, in_first, seen, &trained);
        for (int i = 0; i < 218; i++) assert_int_equal(seen[i], 1);
        assert_int_equal(trained, all);
        check_epoch(l, &d, &o, in_first, nb_loader_steps(l) - in_first, seen, &trained);
        for (int i = 0; i < 218; i++) assert_int_equal(seen[i], 2);
        assert_int_equal(trained, 2 * all);
        assert_true(fabs(nb_loader_epoch_of(l, in_first) - 1) < 1e-12);
        if (packing) assert_true(nb_loader_fill(l) > 0.9 && nb_loader_fill(l) <= 1);
        else assert_int_equal(in_first, (218 + 5) / 6);
        nb_loader_free(l);
        nb_data_free(&d);
        nb_config_free(&c);
    }
}

static void test_weights(void **s) {
    (void)s;
    nb_config c = config();
    add_set(&c, "twice", 50, 20, 2);
    add_set(&c, "some", 100, 20, 0.3);
    add_set(&c, "more", 40, 20, 1.25);
    nb_data d;
    nb_loader *l;
    nb_loader_options o = options();
    o.epochs = 10;
    assert_ok(nb_data_open(&d, &c, tok, LEN));
    assert_ok(nb_loader_open(&l, &d, &o));
    int seen[190] = {0};
    int64_t trained = 0, first = 0;
    for (int e = 0; e < 10; e++) {
        int before[190], sum[3] = {0};
        memcpy(before, seen, sizeof seen);
        int64_t end = first;
        while (end < nb_loader_steps(l) && nb_loader_epoch_of(l, end) < e + 1 - 1e-9) end++;
        check_epoch(l, &d, &o, first, end - first, seen, &trained);
        first = end;
        for (int i = 0; i < 190; i++) sum[d.sample_set[i]] += seen[i] - before[i];
        assert_int_equal(sum[0], 100);
        assert_int_equal(sum[1], 30);
        assert_int_equal(sum[2], 50);
        for (int i = 0; i < 50; i++) assert_int_equal(seen[i] - before[i], 2);
        for (int i = 50; i < 150; i++) assert_in_range(seen[i] - before[i], 0, 1);
    }
    assert_int_equal(first, nb_loader_steps(l));
    for (int i = 50; i < 150; i++) assert_int_equal(seen[i], 3); /* 10 x 0.3: each had its turn */
    nb_loader_free(l);
    nb_data_free(&d);
    nb_config_free(&c);
}

static void test_length_of_a_run(void **s) {
    (void)s;
    nb_config c = config();
    add_set(&c, "run", 100, LEN, 1);
    nb_data d;
    nb_loader *l;
    nb_loader_options o = options();
    o.packing = false; /* 100 bins, 6 a step: 17 steps, the last of 4 bins */
    assert_ok(nb_data_open(&d, &c, tok, LEN));
    const struct {
        double epochs;
        int64_t max_steps, want;
    } cases[] = {{1, 0, 17}, {3, 0, 51}, {0.5, 0, 9}, {1.5, 0, 26}, {2.1, 0, 36}, {1, 5, 5}, {1, 40, 40}, {1e-6, 0, 1}};
    for (int i = 0; i < NB_LEN(cases); i++) {
        o.epochs = cases[i].epochs;
        o.max_steps = cases[i].max_steps;
        assert_ok(nb_loader_open(&l, &d, &o));
        assert_int_equal(nb_loader_steps(l), cases[i].want);
        fingerprint(l, cases[i].want - 1);
        nb_loader_free(l);
    }
    o.epochs = 1;
    o.max_steps = 0;
    assert_ok(nb_loader_open(&l, &d, &o));
    const nb_batch *b;
    int n;
    int64_t trained;
    assert_ok(nb_loader_step(l, 16, &b, &n, &trained));
    assert_int_equal(n, 2);
    assert_int_equal(b[0].n_segs + b[1].n_segs, 4);
    nb_loader_free(l);
    o.epochs = 0;
    assert_fails(nb_loader_open(&l, &d, &o), NB_EINPUT, "no training step");
    o.epochs = 1;
    o.sequence_len = 10;
    assert_fails(nb_loader_open(&l, &d, &o), NB_EINPUT, "sequence_len is 10");
    nb_data_free(&d);
    nb_config_free(&c);
}

static void test_held_out_split(void **s) {
    (void)s;
    const struct {
        double size;
        int64_t want;
    } cases[] = {{0.25, 55}, {7, 7}, {0.0001, 1}};
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_config c = config();
        add_set(&c, "u", 150, 20, 1);
        add_set(&c, "v", 70, 20, 1);
        c.val_set_size = cases[i].size;
        nb_data d, again;
        assert_ok(nb_data_open(&d, &c, tok, LEN));
        assert_ok(nb_data_open(&again, &c, tok, LEN));
        assert_int_equal(d.n_held_out, 1);
        assert_string_equal(nb_dataset_name(d.held_out[0]), "val");
        assert_int_equal(nb_dataset_rows(d.held_out[0]), cases[i].want);
        assert_int_equal(d.n_samples, 220 - cases[i].want);
        assert_ok(nb_ledger_check(nb_dataset_ledger(d.held_out[0]), "val"));
        int seen[220] = {0};
        nb_row r, q;
        for (int64_t k = 0; k < d.n_samples; k++) seen[(d.sample_set[k] ? 150 : 0) + d.sample_row[k]]++;
        for (int64_t k = 0; k < cases[i].want; k++) {
            nb_dataset_row(d.held_out[0], k, &r);
            nb_dataset_row(again.held_out[0], k, &q);
            assert_int_equal(r.line, q.line);
            seen[(strstr(r.file, "/v.") ? 150 : 0) + r.line - 1]++;
        }
        for (int k = 0; k < 220; k++) assert_int_equal(seen[k], 1);
        assert_string_equal(d.sha256, again.sha256);
        nb_data_free(&again);
        c.seed = 7;
        assert_ok(nb_data_open(&again, &c, tok, LEN));
        if (cases[i].want > 1) assert_string_not_equal(d.sha256, again.sha256);
        nb_data_free(&again);
        nb_data_free(&d);
        c.val_set_size = 220;
        assert_fails(nb_data_open(&d, &c, tok, LEN), NB_EINPUT, "leaves none to train on");
        nb_config_free(&c);
    }
}

static void test_held_out_batches(void **s) {
    (void)s;
    nb_config c = config();
    add_set(&c, "held", 90, LEN, 1);
    nb_data d;
    assert_ok(nb_data_open(&d, &c, tok, LEN));
    nb_eval_iter *it;
    nb_batch b;
    bool done = false;
    int seen[90] = {0};
    int64_t trained = 0, batches = 0, last = -1;
    assert_ok(nb_eval_iter_open(&it, d.train[0], 100));
    for (;; batches++) {
        assert_ok(nb_eval_iter_next(it, &b, &done));
        if (done) break;
        assert_in_range(b.n, 1, 100);
        check_batch(&d, &b, seen, &trained);
        assert_int_equal(b.sample[0], last + 1);
        last = b.sample[b.n - 1];
    }
    for (int i = 0; i < 90; i++) assert_int_equal(seen[i], 1);
    assert_int_equal(trained, nb_dataset_ledger(d.train[0])->tokens_trained);
    assert_true(batches > 10);
    nb_eval_iter_free(it);
    assert_fails(nb_eval_iter_open(&it, d.train[0], 10), NB_EINPUT, "has room for 10");
    nb_data_free(&d);
    nb_config_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_pure_function_of_seed_and_step),
        cmocka_unit_test(test_ranks_share_a_step),
        cmocka_unit_test(test_every_sample_once_an_epoch),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_length_of_a_run),
        cmocka_unit_test(test_held_out_split),
        cmocka_unit_test(test_held_out_batches),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
