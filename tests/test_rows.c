/* Every kernel row against double precision (tests/rows.h), on the cpu and on the cuda backend's source under the
 * emulator, each with f32 and with bf16 products.
 *   ROWS_ONLY=family/check (or family, or a pattern)   ROWS_SEED=n   ROWS_DEVICE=cpu|emu   ROWS_COMPUTE=bf16|f32 */
#include "tests/test.h"

#include "tests/rows.h"

static const struct device {
    const char *name;
    nb_dtype compute;
} devices[] = {{"cpu", NB_F32}, {"cpu", NB_BF16}, {"emu", NB_F32}, {"emu", NB_BF16}};

typedef struct job {
    const struct device *device;
    const nb_rowfamily *family;
} job;

static uint64_t seed_asked_for(void) {
    const char *s = getenv("ROWS_SEED");
    return s && *s ? strtoull(s, NULL, 10) : 1;
}

static void family_agrees(void **state) {
    const job *j = *state;
    const char *only = getenv("ROWS_ONLY");
    nb_dev *d;
    int ran = 0, failed = 0;
    if (!strcmp(j->device->name, "emu") && !&nb_backend_emu) {
        print_message("skipped: the emulator is not linked in\n");
        skip();
    }
    assert_ok(nb_dev_open(&d, j->device->name, j->device->compute));
    for (int i = 0; i < j->family->n; i++) {
        const nb_rowcheck *c = &j->family->checks[i];
        nb_rowtest t;
        if (!rows_wanted(only, j->family, c)) continue;
        ran++;
        if (rows_run(&t, d, c, seed_asked_for())) continue;
        failed++;
        print_error("%s/%s: %s\n", j->family->name, c->name, t.why);
    }
    nb_dev_close(d);
    if (failed) fail_msg("%d of %d checks failed", failed, ran);
    if (!ran) skip();
}

/* ---- the machinery itself: wrong rows are noticed ---- */

/* arg: which mistake. y = x of 7 elements. */
enum mistake { NONE, WRONG, NAN_LEFT, BEFORE, AFTER, RANDOM, REFUSED };
static void copy_with_mistake(nb_rowtest *t, const void *arg) {
    const int kind = *(const int *)arg, n = 7;
    static int calls;
    float *x = rows_draw(t, n, 1, NB_F32), *y = rows_out(t, n, NB_F32);
    double *want = rows_doubles(t, n);
    for (int i = 0; i < n; i++) want[i] = x[i];
    memcpy(y, x, sizeof *x * (size_t)n);
    if (kind == WRONG) y[3] += 1e-3f;
    if (kind == NAN_LEFT) y[6] = NAN;
    if (kind == BEFORE) y[-1] = 0;
    if (kind == AFTER) ((char *)(y + n))[2] = 0;
    if (kind == RANDOM) y[2] = nextafterf(y[2], 2.0f * (float)(calls++ & 1) - 1);
    if (kind == REFUSED) rows_ok(t, nb_fail(NB_ESHAPE, "no such shape"));
    rows_compare(t, "y", y, want, n, NB_F32, 2e-5);
}

static void mistakes_are_noticed(void **state) {
    (void)state;
    static const struct {
        int mistake;
        const char *why;
    } cases[] = {{NONE, NULL},
                 {WRONG, "y: ||error||"},
                 {NAN_LEFT, "[6] = nan"},
                 {BEFORE, "before its start"},
                 {AFTER, "2 bytes after its end"},
                 {RANDOM, "two runs with the same seed differ"},
                 {REFUSED, "no such shape"}};
    nb_dev *d;
    if (getenv("ROWS_REDZONE")) skip(); /* the checker's run, without red zones */
    assert_ok(nb_dev_open(&d, "cpu", NB_F32));
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_rowcheck c = {"copy", copy_with_mistake, &cases[i].mistake};
        nb_rowtest t;
        bool right = rows_run(&t, d, &c, 1);
        assert_int_equal(right, !cases[i].why);
        if (cases[i].why && !strstr(t.why, cases[i].why)) fail_msg("\"%s\" lacks \"%s\"", t.why, cases[i].why);
    }
    nb_dev_close(d);
}

static void only_names_checks(void **state) {
    (void)state;
    nb_rowcheck c = {"rmsnorm_bwd/odd", NULL, NULL};
    nb_rowfamily f = {"norm", &c, 1};
    static const char *const meant[] = {"", "norm", "norm/rmsnorm_bwd/odd", "norm/rmsnorm*"};
    static const char *const other[] = {"nor", "nf4"};
    assert_true(rows_wanted(NULL, &f, &c));
    for (int i = 0; i < NB_LEN(meant); i++) assert_true(rows_wanted(meant[i], &f, &c));
    for (int i = 0; i < NB_LEN(other); i++) assert_false(rows_wanted(other[i], &f, &c));
}

int main(void) {
    enum { MAX = 64 };
    static job jobs[MAX];
    static char names[MAX][64];
    struct CMUnitTest tests[MAX + 2] = {cmocka_unit_test(mistakes_are_noticed), cmocka_unit_test(only_names_checks)};
    const char *device = getenv("ROWS_DEVICE"), *compute = getenv("ROWS_COMPUTE");
    int n = 0;
    for (const nb_rowfamily *const *f = rows_families(); *f; f++)
        for (int i = 0; i < NB_LEN(devices) && n < MAX; i++) {
            if (device && *device && strcmp(device, devices[i].name)) continue;
            if (compute && !strcmp(compute, devices[i].compute == NB_F32 ? "bf16" : "f32")) continue;
            jobs[n] = (job){&devices[i], *f};
            snprintf(names[n], sizeof names[n], "%s_%s_%s", (*f)->name, devices[i].name,
                     nb_dtype_name(devices[i].compute));
            tests[n + 2] = (struct CMUnitTest){names[n], family_agrees, NULL, NULL, &jobs[n]};
            n++;
        }
    return _cmocka_run_group_tests("rows", tests, (size_t)n + 2, NULL, NULL);
}
