/* The optimizer: which parameters share a call, and which have their moments in 8 bits. */
#include "adapters/adapter.h"
#include "configs/config.h"
#include "core/rng.h"
#include "tests/test.h"
#include "train/optimizer.h"

enum { MAX_PARAMS = 16, STEPS = 3 };

/* Parameters as an adapter lays them out: each on a boundary of 64 floats. */
typedef struct shape {
    int64_t rows, cols; /* cols 0: a vector */
    bool eight_bits;    /* what is expected with eight_bits */
} shape;
static const shape shapes[] = {
    {64, 64, true},   /* the smallest with 8 bits */
    {32, 160, true},  /* 20 blocks: the next may join its run */
    {65, 64, true},   /* a quarter of a block too much: the next may not */
    {50, 128, true},
    {63, 65, false},  /* 4095 elements */
    {4100, 0, true},  /* a vector: it does not decay */
    {30, 0, false},
    {100, 64, false}, /* the embedding */
    {96, 64, true},
};
enum { EMBED = 7, COUNT = NB_LEN(shapes) };

typedef struct fixture {
    nb_dev *dev;
    nb_adapter adapter;
    nb_model model;
    struct nb_whole embed;
    nb_tensor params[MAX_PARAMS];
    nb_optimizer o;
} fixture;

static void open_shared(fixture *f, bool eight_bits, nb_comm *comm) {
    *f = (fixture){0};
    assert_ok(nb_dev_open(&f->dev, "cpu", NB_F32));
    nb_adapter *a = &f->adapter;
    int64_t at[COUNT];
    for (int i = 0; i < COUNT; i++) {
        at[i] = a->n;
        a->n += (shapes[i].rows * (shapes[i].cols ? shapes[i].cols : 1) + 63) / 64 * 64;
    }
    a->dev = f->dev, a->params = f->params, a->n_params = COUNT;
    a->model = &f->model, a->whole = &f->embed, a->n_whole = 1;
    f->embed = (struct nb_whole){.param = &f->params[EMBED], .place = &f->model.embed_trained};
    assert_ok(f->dev->be->alloc(f->dev, (void **)&a->data, (size_t)a->n * sizeof(float), "weights"));
    assert_ok(f->dev->be->alloc(f->dev, (void **)&a->grad, (size_t)a->n * sizeof(float), "gradients"));
    for (int i = 0; i < COUNT; i++)
        f->params[i] = nb_leaf("p", a->data + at[i], a->grad + at[i], shapes[i].cols ? 2 : 1, shapes[i].rows,
                               shapes[i].cols);
    assert_ok(nb_optimizer_open(&f->o, a, eight_bits, 1, comm, comm != NULL));
    f->o.beta1 = 0.9, f->o.beta2 = 0.999, f->o.epsilon = 1e-8, f->o.max_grad_norm = 1, f->o.weight_decay = 0.1;
}

static void open_fixture(fixture *f, bool eight_bits) { open_shared(f, eight_bits, NULL); }

static void close_fixture(fixture *f) {
    nb_adapter *a = &f->adapter;
    nb_optimizer_close(&f->o);
    f->dev->be->free(f->dev, a->data, (size_t)a->n * sizeof(float));
    f->dev->be->free(f->dev, a->grad, (size_t)a->n * sizeof(float));
    nb_dev_close(f->dev);
}

/* Sizes of parameters far apart, so that a block's scale would show if it reached over a seam. */
static void draw(const fixture *f, bool gradients, uint64_t index) {
    nb_rng rng = nb_rng_open(5, NB_RNG_TEST, index);
    for (int i = 0; i < COUNT; i++) {
        const nb_tensor *p = &f->params[i];
        float *x = gradients ? p->grad : p->data, scale = gradients ? powf(10, (float)(i % 3) - 2) : 1;
        for (int64_t k = 0; k < nb_tensor_size(p); k++) x[k] = scale * (float)(2 * nb_rng_uniform(&rng) - 1);
    }
}

/* One parameter alone, with moments of its own, after the same steps: the definition. */
static void update_alone(const fixture *f, int i, bool eight_bits, float *out) {
    const nb_tensor *p = &f->params[i];
    const int64_t n = nb_tensor_size(p), blocks = (n + 255) / 256;
    nb_kernels const *k = f->dev->k;
    float *m = calloc((size_t)n, sizeof *m), *v = calloc((size_t)n, sizeof *v), wd = p->n_dims > 1 ? 0.1f : 0;
    float *ms = calloc((size_t)blocks, sizeof *ms), *vs = calloc((size_t)blocks, sizeof *vs);
    uint8_t *m8 = calloc((size_t)n, 1), *v8 = calloc((size_t)n, 1);
    draw(f, false, 0);
    for (int step = 1; step <= STEPS; step++) {
        nb_update u = {.bias1 = 1 - pow((double)0.9f, step), .bias2 = 1 - pow((double)0.999f, step), .lr = 1e-2f,
                       .max_norm = 1};
        draw(f, true, (uint64_t)step);
        assert_ok(k->sum_squares(f->dev, &u, f->adapter.grad, f->adapter.n));
        if (eight_bits) assert_ok(k->adamw8(f->dev, p->data, m8, v8, ms, vs, p->grad, n, &u, 0.9f, 0.999f, 1e-8f, wd));
        else assert_ok(k->adamw(f->dev, p->data, m, v, p->grad, n, &u, 0.9f, 0.999f, 1e-8f, wd));
    }
    memcpy(out, p->data, (size_t)n * sizeof *out);
    void *all[] = {m, v, ms, vs, m8, v8};
    for (int j = 0; j < NB_LEN(all); j++) free(all[j]);
}

/* Whatever is updated together, every parameter ends as it would alone. */
static void each_as_if_alone(bool eight_bits) {
    fixture f;
    open_fixture(&f, eight_bits);
    float *want = calloc((size_t)f.adapter.n, sizeof *want);
    for (int i = 0; i < COUNT; i++)
        update_alone(&f, i, eight_bits && shapes[i].eight_bits, want + ((float *)f.params[i].data - f.adapter.data));
    draw(&f, false, 0);
    for (int step = 1; step <= STEPS; step++) {
        double norm, sum = 0;
        nb_optimizer_begin(&f.o);
        draw(&f, true, (uint64_t)step);
        for (int i = 0; i < COUNT; i++) f.params[i].grad_written = true;
        assert_ok(nb_optimizer_step(&f.o, step, 1e-2, &norm));
        for (int64_t i = 0; i < f.adapter.n; i++) sum += (double)f.adapter.grad[i] * (double)f.adapter.grad[i];
        assert_close(norm, sqrt(sum), 1e-9 * norm);
    }
    for (int i = 0; i < COUNT; i++) {
        int64_t at = (float *)f.params[i].data - f.adapter.data, n = nb_tensor_size(&f.params[i]);
        if (memcmp(f.params[i].data, want + at, (size_t)n * sizeof *want)) fail_msg("parameter %d differs", i);
    }
    free(want);
    close_fixture(&f);
}

static int no_sum(nb_comm_engine *e, void *x, size_t n, bool f64) {
    (void)e, (void)x, (void)n, (void)f64;
    return 0;
}

static int no_broadcast(nb_comm_engine *e, void *x, size_t bytes, int root) {
    (void)e, (void)x, (void)bytes, (void)root;
    return 0;
}

static void run_steps(fixture *f) {
    draw(f, false, 0);
    for (int step = 1; step <= STEPS; step++) {
        double norm;
        draw(f, true, (uint64_t)step);
        for (int i = 0; i < COUNT; i++) f->params[i].grad_written = true;
        assert_ok(nb_optimizer_step(&f->o, step, 1e-2, &norm));
    }
}

/* Every rank's part ends as it does where nothing is shared out; the parts and their state make up the whole, and no block
 * of 8-bit state has two owners. Sums change nothing here, and
 * nothing is heard from the others. */
static void parts_make_up_the_whole(void **state) {
    (void)state;
    for (int eight_bits = 0; eight_bits < 2; eight_bits++)
        for (int size = 2; size <= 200; size = size < 5 ? size + 1 : size * 4) {
            fixture whole;
            open_fixture(&whole, eight_bits);
            run_steps(&whole);
            int64_t held[NB_STATE_COUNT] = {0}, at = 0;
            for (int rank = 0; rank < size; rank++) {
                fixture f;
                nb_comm comm = {.rank = rank, .size = size, .dev = whole.dev};
                comm.host = (nb_comm_engine){.name = "nobody", .sum = no_sum, .broadcast = no_broadcast};
                open_shared(&f, eight_bits, &comm);
                run_steps(&f);
                assert_int_equal(f.o.parts[rank], at);
                at = f.o.parts[rank + 1];
                int64_t begin = f.o.parts[rank], run = 0;
                if (memcmp(f.adapter.data + begin, whole.adapter.data + begin, (size_t)(at - begin) * sizeof(float)))
                    fail_msg("the part of rank %d of %d differs", rank, size);
                for (int i = 0; i < whole.o.n_runs; i++)
                    if (whole.o.runs[i].at <= begin) run = whole.o.runs[i].at;
                assert_int_equal((begin - run) % 256, 0);
                for (int i = 0; i < NB_STATE_COUNT; i++) {
                    assert_int_equal(f.o.state[i].whole, whole.o.state[i].n);
                    assert_int_equal(f.o.state[i].first, held[i]);
                    held[i] += f.o.state[i].n;
                }
                close_fixture(&f);
            }
            assert_int_equal(at, whole.adapter.n);
            for (int i = 0; i < NB_STATE_COUNT; i++) assert_int_equal(held[i], whole.o.state[i].n);
            close_fixture(&whole);
        }
}

static void f32_each_as_if_alone(void **state) {
    (void)state;
    each_as_if_alone(false);
}
static void eight_bits_each_as_if_alone(void **state) {
    (void)state;
    each_as_if_alone(true);
}

/* Runs and memory: 2 bytes an element and 8 a block instead of 8 bytes an element. */
static void state_is_as_small_as_it_says(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, false);
    assert_int_equal(nb_optimizer_bytes(&f.o), 2 * sizeof(float) * (size_t)f.adapter.n);
    assert_int_equal(f.o.n_runs, 3); /* matrices, two vectors, matrices */
    close_fixture(&f);
    open_fixture(&f, true);
    int64_t n32 = 0, n8 = 0, blocks = 0;
    for (int i = 0; i < COUNT; i++) {
        int64_t n = (nb_tensor_size(&f.params[i]) + 63) / 64 * 64;
        if (shapes[i].eight_bits) n8 += n, blocks += (n + 255) / 256;
        else n32 += n;
    }
    assert_int_equal(nb_optimizer_bytes(&f.o), 2 * (4 * n32 + n8 + 4 * blocks));
    assert_int_equal(f.o.n_runs, 7); /* 0-2, 3, 4, 5, 6, 7, 8 */
    close_fixture(&f);
}

/* A gradient that is not finite is reported, and changes neither weights nor state. */
static void not_finite_changes_nothing(void **state) {
    (void)state;
    fixture f;
    double norm;
    open_fixture(&f, true);
    draw(&f, false, 0);
    for (int step = 1; step <= 2; step++) {
        draw(&f, true, 1);
        for (int i = 0; i < COUNT; i++) f.params[i].grad_written = true;
        if (step == 1) {
            assert_ok(nb_optimizer_step(&f.o, 1, 1e-2, &norm));
            continue;
        }
        nb_state_buffer *s = f.o.state;
        char *copies[NB_STATE_COUNT + 1];
        const void *from[NB_STATE_COUNT + 1];
        size_t bytes[NB_STATE_COUNT + 1];
        for (int i = 0; i <= NB_STATE_COUNT; i++) {
            from[i] = i < NB_STATE_COUNT ? s[i].p : f.adapter.data;
            bytes[i] = i < NB_STATE_COUNT ? (size_t)s[i].n * (size_t)nb_dtype_size(s[i].dtype)
                                          : (size_t)f.adapter.n * sizeof(float);
            memcpy(copies[i] = malloc(bytes[i]), from[i], bytes[i]);
        }
        f.adapter.grad[777] = NAN;
        assert_ok(nb_optimizer_step(&f.o, 2, 1e-2, &norm));
        assert_true(isnan(norm));
        for (int i = 0; i <= NB_STATE_COUNT; i++) {
            assert_memory_equal(copies[i], from[i], bytes[i]);
            free(copies[i]);
        }
    }
    close_fixture(&f);
}

static void keys_name_it(void **state) {
    (void)state;
    static const struct {
        const char *set;
        int optimizer;
    } cases[] = {
        {"optimizer=adamw", NB_OPTIMIZER_ADAMW},           {"optimizer=adamw_torch", NB_OPTIMIZER_ADAMW},
        {"optim=adamw_torch_fused", NB_OPTIMIZER_ADAMW},   {"optimizer=adamw_8bit", NB_OPTIMIZER_ADAMW_8BIT},
        {"optim=adamw_bnb_8bit", NB_OPTIMIZER_ADAMW_8BIT}, {"optim=paged_adamw_8bit", NB_OPTIMIZER_ADAMW_8BIT},
    };
    char *path = nb_asprintf("%s/c.yaml", nb_test_tmp());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("base_model: m\noutput_dir: o\ndatasets: [{path: d.jsonl, type: completion}]\n", file);
    assert_int_equal(fclose(file), 0);
    nb_config c;
    for (int i = 0; i < NB_LEN(cases); i++) {
        assert_ok(nb_config_load(&c, path, &cases[i].set, 1));
        assert_int_equal(c.optimizer, cases[i].optimizer);
        nb_config_free(&c);
    }
    assert_fails(nb_config_load(&c, path, (const char *[]){"optimizer=adamw_4bit"}, 1), NB_EINPUT, "adamw_8bit");
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_make_up_the_whole),
        cmocka_unit_test(f32_each_as_if_alone),         cmocka_unit_test(eight_bits_each_as_if_alone),
        cmocka_unit_test(state_is_as_small_as_it_says), cmocka_unit_test(not_finite_changes_nothing),
        cmocka_unit_test(keys_name_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
