/* The fuzz targets on their seeds and on what fuzzing found (tests/fuzz/found/TARGET): all of it must be read or refused
 * in good time, without a crash. The search for more is `make fuzz`. */
#include "tests/test.h"

#include <unistd.h>

#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "tests/fuzz/fuzz.h"

enum { SECONDS = 60 }; /* an input that hangs ends the program */

static int run_folder(const fuzz_target *t, const char *kind) {
    char *dir = nb_asprintf("tests/fuzz/%s/%s", kind, t->name), **names = NULL;
    int n = 0;
    if (nb_is_dir(dir)) assert_ok(nb_list_dir(dir, &names, &n));
    for (int i = 0; i < n; i++) {
        char *path = nb_path_join(dir, names[i]), *data;
        size_t size;
        assert_ok(nb_file_read(path, &data, &size));
        double start = nb_now();
        alarm(SECONDS);
        t->run((const uint8_t *)data, size);
        alarm(0);
        if (nb_now() - start > 5) print_message("%s took %.1f s\n", path, nb_now() - start);
        free(data);
        free(path);
        free(names[i]);
    }
    free(names);
    free(dir);
    return n;
}

static void test_seeds_and_found(void **state) {
    const fuzz_target *t = *state;
    assert_true(run_folder(t, "seeds") > 0);
    run_folder(t, "found");
    for (int n = 0; n < 3; n++) t->run((const uint8_t *)"\0\0", (size_t)n);
}

int main(void) {
    struct CMUnitTest *tests = nb_calloc((size_t)n_fuzz_targets, sizeof *tests);
    nb_log_set_level(NB_LOG_QUIET);
    for (int i = 0; i < n_fuzz_targets; i++)
        tests[i] = (struct CMUnitTest){.name = fuzz_targets[i].name, .test_func = test_seeds_and_found,
                                       .initial_state = (void *)(uintptr_t)&fuzz_targets[i]};
    int failed = _cmocka_run_group_tests("fuzz", tests, (size_t)n_fuzz_targets, NULL, NULL);
    free(tests);
    return failed;
}
