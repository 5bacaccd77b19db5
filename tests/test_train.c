/* The step and what must hold around it: accumulation, checkpointing, no allocation, packing without leaks. */
#include "adapters/adapter.h"
#include "autograd/ops.h"
#include "core/cpu.h"
#include "tests/test.h"
#include "tests/tiny_base.h"
#include "train/optimizer.h"
#include "train/recompute.h"

enum { MAX = 512, DOCS = 8 };

typedef struct fixture {
    nb_dev *dev;
    nb_base *base;
    nb_model *model;
    nb_arena arena;
    nb_runner *runner;
    nb_adapter *adapter;
    nb_optimizer o;
} fixture;

static char *base_dir(void) {
    static char *dir;
    if (!dir) dir = tiny_base("base", TINY_LLAMA "}", 5);
    return dir;
}

static void open_of_rank(fixture *f, int64_t r, bool quantized, double dropout, const nb_recompute *policy) {
    *f = (fixture){0};
    nb_base_options bo = {.quantized_cache = "", .load_in_4bit = quantized, .double_quant = true};
    nb_lora_options lo = {.r = r, .alpha = 8, .dropout = dropout, .seed = 3};
    assert_ok(nb_dev_open(&f->dev, "cpu", NB_F32));
    assert_ok(nb_base_load(&f->base, base_dir(), &bo));
    assert_ok(nb_model_open(&f->model, f->base, f->dev, 64, 64));
    assert_ok(nb_adapter_new(&f->adapter, f->model, &lo));
    assert_ok(nb_runner_open_loss(&f->runner, f->model, &f->arena, MAX, true, policy));
    f->runner->tape->seed = 7;
    assert_ok(nb_optimizer_open(&f->o, f->adapter, false, 1, NULL, false));
    f->o.beta1 = 0.9, f->o.beta2 = 0.999, f->o.epsilon = 1e-8, f->o.max_grad_norm = 1;
}

static void open_fixture(fixture *f, bool quantized, double dropout, const nb_recompute *policy) {
    open_of_rank(f, 4, quantized, dropout, policy);
}

static void close_fixture(fixture *f) {
    nb_optimizer_close(&f->o);
    nb_runner_free(f->runner);
    nb_adapter_free(f->adapter);
    nb_arena_free(&f->arena);
    nb_model_free(f->model);
    nb_base_free(f->base);
    nb_dev_close(f->dev);
}

/* Documents first..first+n of a fixed collection: ragged lengths, some tokens masked. */
typedef struct docs {
    int32_t ids[MAX], targets[MAX], pos[MAX];
    uint32_t sample[MAX];
    nb_seg segs[DOCS];
    nb_batch b;
} docs;

static void fill_docs(docs *d, int first, int n, uint64_t seed) {
    d->b = (nb_batch){.ids = d->ids, .targets = d->targets, .pos = d->pos, .sample = d->sample, .segs = d->segs};
    for (int k = first; k < first + n; k++) {
        nb_rng r = nb_rng_open(seed, NB_RNG_TEST, (uint64_t)k);
        int32_t len = 5 + (int32_t)nb_rng_below(&r, 40), at = (int32_t)d->b.n;
        d->segs[d->b.n_segs++] = (nb_seg){at, len, at, len};
        for (int32_t i = 0; i < len; i++) d->ids[at + i] = (int32_t)nb_rng_below(&r, 40);
        for (int32_t i = 0; i < len; i++, d->b.n++) {
            d->pos[at + i] = i;
            d->sample[at + i] = (uint32_t)k;
            d->targets[at + i] = i + 1 < len && i >= k % 4 ? d->ids[at + i + 1] : NB_IGNORE;
            d->b.n_trained += d->targets[at + i] != NB_IGNORE;
        }
    }
}

/* `steps` steps over all documents, `per` of them to a micro-batch; returns the sum of the step losses. */
static double run_steps(fixture *f, int per, int steps) {
    static docs d;
    double total = 0;
    int64_t trained = 0;
    fill_docs(&d, 0, DOCS, 11);
    trained = d.b.n_trained;
    for (int s = 0; s < steps; s++) {
        double sum = 0, part, norm;
        nb_optimizer_begin(&f->o);
        f->runner->tape->step = (uint32_t)s;
        for (int k = 0; k < DOCS; k += per) {
            fill_docs(&d, k, per, 11);
            assert_ok(nb_runner_loss(f->runner, &d.b, 1.0f / (float)trained, &part, NULL));
            sum += part;
        }
        assert_ok(nb_optimizer_step(&f->o, s + 1, 1e-2, &norm));
        total += sum / (double)trained;
    }
    return total;
}

static void accumulation_splits_agree(void **state) {
    (void)state;
    static const int per[] = {8, 4, 2, 1};
    for (int dropout = 0; dropout < 2; dropout++) {
        float *first = NULL;
        double loss = 0;
        for (int i = 0; i < NB_LEN(per); i++) {
            fixture f;
            open_fixture(&f, true, dropout ? 0.2 : 0, NULL);
            double got = run_steps(&f, per[i], 3);
            if (!first) {
                first = nb_malloc((size_t)f.adapter->n * 4);
                memcpy(first, f.adapter->data, (size_t)f.adapter->n * 4);
                loss = got;
            }
            assert_close(got / loss, 1, 1e-6);
            assert_close(nb_rel_error(f.adapter->data, first, f.adapter->n), 0, 2e-6);
            close_fixture(&f);
        }
        free(first);
    }
}

/* How often each layer's products run: q/k/v, o, gate/up, down once; what is computed again once more, o and down never
 * but for o where the whole layer is. The first layer's input, the frozen embedding, is kept. */
static const struct level {
    nb_recompute how;
    int products[2]; /* of a layer recomputed so: ... of the first, the second */
} levels[] = {{{0, 0}, {4, 4}}, {{0, 1}, {6, 4}}, {{0, 2}, {6, 6}}, {{1, 0}, {7, 4}}, {{1, 1}, {7, 6}}, {{2, 0}, {7, 7}}};

static void checkpointing_changes_no_bit(void **state) {
    (void)state;
    fixture f[NB_LEN(levels)];
    nb_need need[NB_LEN(levels)];
    for (int i = 0; i < NB_LEN(levels); i++) {
        nb_prof_row *prof = nb_calloc((size_t)nb_op_count, sizeof *prof);
        open_fixture(&f[i], true, 0.1, &levels[i].how);
        f[i].runner->tape->prof = prof;
        run_steps(&f[i], DOCS, 3);
        int linear = 0;
        while (nb_ops[linear] != &nb_op_linear) linear++;
        assert_int_equal(f[i].model->spec->layers, 2);
        assert_int_equal(prof[linear].calls, 3 * (levels[i].products[0] + levels[i].products[1]));
        assert_memory_equal(f[0].adapter->data, f[i].adapter->data, (size_t)f[0].adapter->n * 4);
        assert_ok(nb_runner_measure(f[i].model, MAX, &levels[i].how, &need[i]));
        assert_int_equal(need[i].bytes, nb_runner_bytes(f[i].runner));
        free(prof);
    }
    for (int i = 0; i < NB_LEN(levels); i++) {
        if (i) assert_true(need[i].flops > need[0].flops && need[i].bytes < need[0].bytes);
        close_fixture(&f[i]);
    }
    assert_true(need[3].bytes < need[1].bytes && need[4].bytes < need[2].bytes);
    assert_true(need[3].flops > need[1].flops && need[4].flops > need[2].flops);
}

/* `auto` finds the choice of fewest FLOPs that fits, for every room between the largest and the smallest need. */
static void the_fastest_choice_that_fits_is_found(void **state) {
    (void)state;
    fixture f;
    nb_need need[NB_LEN(levels)], got;
    open_fixture(&f, true, 0.1, NULL);
    for (int i = 0; i < NB_LEN(levels); i++) assert_ok(nb_runner_measure(f.model, MAX, &levels[i].how, &need[i]));
    for (int i = 0; i < NB_LEN(levels); i++)
        for (int less = 0; less < 2; less++) {
            double room = (double)(need[i].bytes + need[i].scratch) - less, fewest = 1e300;
            nb_recompute c;
            for (int k = 0; k < NB_LEN(levels); k++)
                if ((double)(need[k].bytes + need[k].scratch) <= room) fewest = fmin(fewest, need[k].flops);
            assert_ok(nb_recompute_search(f.model, MAX, room, &c));
            assert_ok(nb_runner_measure(f.model, MAX, &c, &got));
            if (fewest < 1e300) assert_true((double)(got.bytes + got.scratch) <= room && got.flops == fewest);
            else assert_int_equal(got.bytes, need[4].bytes); /* nothing fits: the least there is */
        }
    close_fixture(&f);
}

static void threads_change_no_bit(void **state) {
    (void)state;
    float *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        fixture f;
        nb_threads_set(threads);
        open_fixture(&f, true, 0.1, NULL);
        run_steps(&f, 2, 2);
        if (!first) first = memcpy(nb_malloc((size_t)f.adapter->n * 4), f.adapter->data, (size_t)f.adapter->n * 4);
        assert_memory_equal(f.adapter->data, first, (size_t)f.adapter->n * 4);
        close_fixture(&f);
    }
    free(first);
    nb_threads_set(0);
}

static void a_step_allocates_nothing(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, true, 0.1, &nb_recompute_smart);
    run_steps(&f, 4, 1);
    uint64_t before = nb_alloc_count();
    run_steps(&f, 4, 2);
    assert_int_equal(nb_alloc_count(), before);
    close_fixture(&f);
}

/* Changing every token of one packed document leaves the losses of the others bit-equal. */
static void packed_documents_do_not_see_each_other(void **state) {
    (void)state;
    static docs d;
    fixture f;
    float before[MAX], after[MAX];
    double sum;
    open_fixture(&f, true, 0, NULL);
    fill_docs(&d, 0, DOCS, 11);
    assert_ok(nb_runner_loss(f.runner, &d.b, 1, &sum, before));
    const nb_seg changed = d.segs[3];
    for (int32_t i = changed.q0; i < changed.q0 + changed.qn; i++) d.ids[i] = (d.ids[i] + 1 + i) % 40;
    assert_ok(nb_runner_loss(f.runner, &d.b, 1, &sum, after));
    int64_t k = 0, same = 0, differ = 0;
    for (int64_t t = 0; t < d.b.n; t++) {
        if (d.targets[t] == NB_IGNORE) continue;
        if (t >= changed.q0 && t < changed.q0 + changed.qn) differ += before[k] != after[k];
        else if (memcmp(&before[k], &after[k], 4) == 0) same++;
        else fail_msg("token %lld of another document changed its loss", (long long)t);
        k++;
    }
    assert_true(differ > 0 && same > 0);
    close_fixture(&f);
}

static void documents_alone_and_packed_agree(void **state) {
    (void)state;
    static docs d;
    fixture f;
    float packed[MAX], alone[MAX];
    double sum;
    int64_t k = 0;
    open_fixture(&f, true, 0, NULL);
    fill_docs(&d, 0, DOCS, 11);
    assert_ok(nb_runner_loss(f.runner, &d.b, 1, &sum, packed));
    for (int i = 0; i < DOCS; i++) {
        fill_docs(&d, i, 1, 11);
        assert_ok(nb_runner_loss(f.runner, &d.b, 1, &sum, alone));
        /* rows do not depend on how many there are */
        assert_memory_equal(alone, packed + k, (size_t)d.b.n_trained * 4);
        k += d.b.n_trained;
    }
    close_fixture(&f);
}

/* q, k, v and gate, up: x A^T of all is one product, and so is the gradient of the A's; with the A's apart, each its own. */
static void adapters_over_one_input_change_no_bit(void **state) {
    (void)state;
    static docs d;
    fixture f[2];
    double loss[2];
    float *apart[8];
    int n = 0;
    for (int k = 0; k < 2; k++) {
        open_of_rank(&f[k], 8, true, 0, NULL); /* A's that fill whole lines: none is padded */
        nb_linear *lin = f[k].model->block[0].lin;
        nb_tensor *q = lin[NB_Q].lora_A, *moved[] = {lin[NB_K].lora_A, lin[NB_UP].lora_A};
        assert_ptr_equal(moved[0]->data, (float *)q->data + nb_tensor_size(q));
        assert_ptr_equal(moved[1]->data, (float *)lin[NB_GATE].lora_A->data + nb_tensor_size(lin[NB_GATE].lora_A));
        for (int i = 0; i < (k ? 2 : 0); i++) {
            const size_t bytes = (size_t)nb_tensor_size(moved[i]) * 4;
            apart[n] = nb_malloc(bytes);
            memcpy(apart[n], moved[i]->data, bytes);
            moved[i]->data = apart[n++];
            moved[i]->grad = apart[n++] = nb_calloc(1, bytes);
        }
        fill_docs(&d, 0, DOCS, 11);
        for (int i = 0; i < f[k].adapter->n_attached; i++) /* B is 0 at first: nothing would reach A */
            for (int64_t j = 0; j < nb_tensor_size(f[k].adapter->attached[i].B); j++)
                ((float *)f[k].adapter->attached[i].B->data)[j] = 0.01f * (float)(j % 7 - 3);
        nb_optimizer_begin(&f[k].o);
        assert_ok(nb_runner_loss(f[k].runner, &d.b, 1.0f / (float)d.b.n_trained, &loss[k], NULL));
    }
    assert_true(loss[0] == loss[1]);
    for (int i = 0; i < f[0].adapter->n_params; i++) {
        const nb_tensor *x = &f[0].adapter->params[i], *y = &f[1].adapter->params[i];
        assert_memory_equal(x->grad, y->grad, (size_t)nb_tensor_size(x) * 4);
    }
    for (int k = 0; k < 2; k++) close_fixture(&f[k]);
    for (int i = 0; i < n; i++) free(apart[i]);
}

static void training_lowers_the_loss(void **state) {
    (void)state;
    for (int quantized = 0; quantized < 2; quantized++) {
        fixture f;
        open_fixture(&f, quantized, 0, NULL);
        double first = run_steps(&f, 8, 1);
        run_steps(&f, 8, 60);
        double last = run_steps(&f, 8, 1);
        assert_true(last < 0.5 * first);
        close_fixture(&f);
    }
}

/* A gradient that is not finite is seen before anything is updated. */
static void not_finite_is_seen(void **state) {
    (void)state;
    static docs d;
    fixture f;
    double sum, norm;
    open_fixture(&f, true, 0, NULL);
    float *B = f.adapter->params[1].data, before = f.adapter->data[0];
    B[0] = INFINITY;
    fill_docs(&d, 0, DOCS, 11);
    nb_optimizer_begin(&f.o);
    assert_ok(nb_runner_loss(f.runner, &d.b, 1, &sum, NULL));
    assert_ok(nb_optimizer_step(&f.o, 1, 1e-2, &norm));
    assert_false(isfinite(sum) && isfinite(norm));
    assert_true(isfinite(norm) || f.adapter->data[0] == before); /* nothing was updated */
    close_fixture(&f);
}

static void too_many_tokens_are_refused(void **state) {
    (void)state;
    static docs d;
    fixture f;
    double sum;
    open_fixture(&f, false, 0, NULL);
    fill_docs(&d, 0, DOCS, 11);
    d.b.n = MAX + 1;
    assert_fails(nb_runner_loss(f.runner, &d.b, 1, &sum, NULL), NB_EINPUT, "planned");
    close_fixture(&f);
}

int main(void) {
    nb_threads_set(0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accumulation_splits_agree),      cmocka_unit_test(checkpointing_changes_no_bit),
        cmocka_unit_test(the_fastest_choice_that_fits_is_found),
        cmocka_unit_test(threads_change_no_bit),          cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(packed_documents_do_not_see_each_other), cmocka_unit_test(documents_alone_and_packed_agree),
        cmocka_unit_test(adapters_over_one_input_change_no_bit),
        cmocka_unit_test(training_lowers_the_loss),       cmocka_unit_test(not_finite_is_seen),
        cmocka_unit_test(too_many_tokens_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
