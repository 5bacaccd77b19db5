/* The GPU backend's host side on the emulated device: what it says of GPUs that are missing, old or full, copies in the order
 * of the launches, recordings. Every case opens its own device; the emulator's environment stands for other machines. */
#include "tests/test.h"

#include "kernels/backend.h"

static nb_dev *open_emu(void) {
    nb_dev *d;
    assert_ok(nb_dev_open(&d, "emu", NB_F32));
    return d;
}

static void *device_alloc(nb_dev *d, size_t bytes) {
    void *p;
    assert_ok(d->be->alloc(d, &p, bytes, "a test"));
    return p;
}

static void says_why_there_is_no_gpu(void **state) {
    (void)state;
    static const struct {
        const char *variable, *value, *device;
        nb_status status;
        const char *text;
    } cases[] = {
        {"EMU_ERROR", "100", "emu", NB_EUNSUPPORTED, "no GPU can be used: no CUDA-capable device is detected"},
        {"EMU_ERROR", "100", "emu", NB_EUNSUPPORTED, "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it"},
        {"EMU_ERROR", "34", "emu", NB_EIO, "the toolkit's stub"},
        {"EMU_ERROR", "802", "emu", NB_EIO, "nvidia-fabricmanager"},
        {"EMU_ERROR", "803", "emu", NB_EIO, "are of different versions, as after an update: reboot"},
        {"EMU_ERROR", "35", "emu", NB_EUNSUPPORTED, "there is no NVIDIA driver here (libcuda.so.1 was not found)"},
        {"EMU_ARCH", "75", "emu", NB_EIO, "(sm_75), is too old: nibble computes in bfloat16, which GPUs multiply from sm_80 on"},
        {"EMU_ARCH", "75", "emu:0", NB_EIO, "is too old"},
        {"EMU_ARCH", "80", "emu:1", NB_EINPUT, "device \"emu:1\": there is 1 GPU here, numbered from 0"},
        {"EMU_ARCH", "80", "emu:one", NB_EINPUT, "device \"emu:one\": a GPU's number stands behind the colon"},
        {"EMU_ARCH", "80", "emu:-1", NB_EINPUT, "device \"emu:-1\": a GPU's number"},
    };
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_dev *d = NULL;
        setenv(cases[i].variable, cases[i].value, 1);
        assert_fails(nb_dev_open(&d, cases[i].device, NB_BF16), cases[i].status, cases[i].text);
        unsetenv(cases[i].variable);
        assert_null(d);
    }
    setenv("EMU_ERROR", "35", 1);
    setenv("EMU_DRIVER", "12040", 1);
    nb_dev *d;
    assert_fails(nb_dev_open(&d, "emu", NB_BF16), NB_EIO, "the NVIDIA driver is too old: it is for CUDA 12.4");
    unsetenv("EMU_ERROR");
    unsetenv("EMU_DRIVER");
}

static void opens_what_it_describes(void **state) {
    (void)state;
    size_t total, available;
    for (int i = 0; i < 2; i++) {
        nb_dev *d;
        assert_ok(nb_dev_open(&d, i ? "emu:0" : "emu", i ? NB_BF16 : NB_F32));
        assert_int_equal(d->elem, i ? NB_BF16 : NB_F32);
        assert_false(d->be->host_memory);
        assert_string_equal(d->gemm, "mma");
        assert_non_null(strstr(d->label, "GPU 0, "));
        assert_ok(d->be->memory(d, &total, &available));
        assert_true(available <= total && total > 0);
        nb_dev_close(d);
    }
    assert_true(nb_dev_has_bf16("emu"));
}

static void says_how_much_memory_is_missing(void **state) {
    (void)state;
    setenv("EMU_MEMORY", "67108864", 1);
    nb_dev *d = open_emu();
    void *p, *q = device_alloc(d, 40 << 20);
    assert_fails(d->be->alloc(d, &p, 50 << 20, "the base's weights"), NB_ENOMEM,
                 "not enough GPU memory for the base's weights: 50.0 MiB asked for");
    assert_non_null(strstr(nb_message(), "of 64.0 MiB free on GPU 0"));
    assert_null(p);
    d->be->free(d, q, 40 << 20);
    p = device_alloc(d, 50 << 20); /* and the device goes on */
    d->be->free(d, p, 50 << 20);
    nb_dev_close(d);
    unsetenv("EMU_MEMORY");
}

/* Small and large blocks, more of them than there are staging slots; the host's bytes change right after each call. */
static void copies_keep_their_order(void **state) {
    (void)state;
    enum { N = 400000, TIMES = 20 };
    nb_dev *d = open_emu();
    int32_t *host = malloc(N * sizeof *host), *back = malloc(N * sizeof *back);
    char *device = device_alloc(d, TIMES * N * sizeof *host), *copy = device_alloc(d, N * sizeof *host);
    static const int64_t sizes[] = {1, 5000, 65536, 65537, N};
    for (int s = 0; s < NB_LEN(sizes); s++) {
        size_t bytes = (size_t)sizes[s] * sizeof *host;
        for (int i = 0; i < TIMES; i++) {
            for (int64_t k = 0; k < sizes[s]; k++) host[k] = (int32_t)(k * 7 + i);
            assert_ok(d->be->put(d, device + (size_t)i * bytes, host, bytes));
            memset(host, 0xee, bytes);
        }
        for (int i = 0; i < TIMES; i++) {
            assert_ok(d->be->copy(d, copy, device + (size_t)i * bytes, bytes));
            assert_ok(d->be->get(d, back, copy, bytes));
            for (int64_t k = 0; k < sizes[s]; k++)
                if (back[k] != (int32_t)(k * 7 + i)) fail_msg("block %d of %zu bytes: [%lld] = %d", i, bytes, (long long)k, back[k]);
        }
    }
    assert_ok(d->be->put(d, device, host, 0));
    assert_ok(d->be->get(d, host, device, 0));
    d->be->free(d, device, TIMES * N * sizeof *host);
    d->be->free(d, copy, N * sizeof *host);
    free(host), free(back);
    nb_dev_close(d);
}

static void memory_begins_as_zero(void **state) {
    (void)state;
    nb_dev *d = open_emu();
    float back[1000], *p = device_alloc(d, sizeof back);
    assert_ok(d->be->get(d, back, p, sizeof back));
    for (int i = 0; i < NB_LEN(back); i++) assert_true(back[i] == 0);
    void *none = back;
    assert_ok(d->be->alloc(d, &none, 0, "nothing"));
    assert_null(none);
    d->be->free(d, none, 0);
    d->be->free(d, p, sizeof back);
    nb_dev_close(d);
}

/* What is recorded runs only when it is replayed, on what memory then holds. */
static void recordings_replay(void **state) {
    (void)state;
    enum { N = 100 };
    nb_dev *d = open_emu();
    float *x = device_alloc(d, N * sizeof(float)), *y = device_alloc(d, N * sizeof(float)), back[N];
    void *recording;
    assert_ok(d->be->record(d));
    assert_ok(d->k->add(d, y, x, x, N, 1));
    assert_ok(d->be->copy(d, x, y, N * sizeof(float)));
    assert_ok(d->be->recorded(d, &recording));
    assert_ok(d->k->fill(d, x, NB_F32, 1, N));
    for (int i = 0; i < 3; i++) assert_ok(d->be->replay(d, recording)); /* y = 2, 6, 18 */
    assert_ok(d->be->get(d, back, y, sizeof back));
    for (int i = 0; i < N; i++) assert_true(back[i] == 18);
    d->be->forget(d, recording);
    d->be->free(d, x, N * sizeof(float));
    d->be->free(d, y, N * sizeof(float));
    nb_dev_close(d);
}

/* Every launch waited for: the same results. */
static void synchronous_mode(void **state) {
    (void)state;
    setenv("NIBBLE_CUDA_SYNC", "1", 1);
    recordings_replay(state);
    memory_begins_as_zero(state);
    unsetenv("NIBBLE_CUDA_SYNC");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_why_there_is_no_gpu),        cmocka_unit_test(opens_what_it_describes),
        cmocka_unit_test(says_how_much_memory_is_missing), cmocka_unit_test(copies_keep_their_order),
        cmocka_unit_test(memory_begins_as_zero),           cmocka_unit_test(recordings_replay),
        cmocka_unit_test(synchronous_mode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
