#include <fcntl.h>
#include <unistd.h>

#include "core/dtype.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/names.h"
#include "core/rng.h"
#include "tests/test.h"

static void philox_known_answers(void **s) { /* Random123's kat_vectors */
    (void)s;
    uint32_t out[4], c0[4] = {0}, k0[2] = {0}, c1[4] = {~0u, ~0u, ~0u, ~0u}, k1[2] = {~0u, ~0u};
    nb_philox(out, c0, k0);
    const uint32_t want0[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    assert_memory_equal(out, want0, 16);
    nb_philox(out, c1, k1);
    const uint32_t want1[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    assert_memory_equal(out, want1, 16);
}

static void half_precision_round_trips(void **s) {
    (void)s;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = nb_f16_to_f32((uint16_t)h);
        if (!isnan(f)) assert_int_equal(nb_f32_to_f16(f), h);
        float b = nb_bf16_to_f32((uint16_t)h);
        if (!isnan(b)) assert_int_equal(nb_f32_to_bf16(b), h);
    }
    assert_int_equal(nb_f32_to_bf16(1.00390625f), 0x3f80); /* tie to even */
    assert_int_equal(nb_f32_to_f16(65520.0f), 0x7c00);
    assert_true(isnan(nb_bf16_to_f32(nb_f32_to_bf16(NAN))));
}

static void sha256_and_crc(void **s) {
    (void)s;
    nb_hex h;
    nb_sha256_of("abc", 3, h);
    assert_string_equal(h, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(nb_crc32c(0, "123456789", 9), 0xe3069283u);
}

static void files(void **s) {
    (void)s;
    char *p = nb_path_join(nb_test_tmp(), "x/y/z.bin"), *dir = nb_path_join(nb_test_tmp(), "x");
    assert_fails(nb_file_write(p, "hello", 5), NB_EIO, "z.bin");
    char *yd = nb_path_join(dir, "y");
    assert_ok(nb_mkdirs(yd));
    assert_ok(nb_file_write(p, "hello", 5));
    nb_map m;
    assert_ok(nb_map_open(&m, p));
    assert_int_equal(m.size, 5);
    nb_map_close(&m);
    char **names;
    int n;
    assert_ok(nb_list_dir(yd, &names, &n));
    assert_int_equal(n, 1); /* no temporary file left */
    free(names[0]);
    free(names);
    assert_fails(nb_map_open(&m, yd), NB_EINPUT, "not a regular file");
    assert_ok(nb_remove_tree(dir));
    assert_false(nb_file_exists(dir));
    uint64_t room = 0;
    assert_ok(nb_free_space("/nowhere/at/all", &room));
    free(p), free(dir), free(yd);
}

static void shuffle_is_a_permutation(void **s) {
    (void)s;
    int64_t v[100];
    char seen[100] = {0};
    for (int i = 0; i < 100; i++) v[i] = i;
    nb_rng r = nb_rng_open(7, NB_RNG_TEST, 3);
    nb_rng_shuffle(&r, v, 100);
    for (int i = 0; i < 100; i++) seen[v[i]]++;
    for (int i = 0; i < 100; i++) assert_int_equal(seen[i], 1);
}

/* A terminal obeys control characters, and messages quote what stood in files. */
static void messages_show_control_characters(void **s) {
    (void)s;
    static const char *const rows[][2] = {
        {"plain, \n\tindented", "plain, \n\tindented"},
        {"\x1b[31mred\a\r\x7f", "\\x1b[31mred\\x07\\x0d\\x7f"},
        {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82"},
        {"\xc2\x9b" "31m\xc2\xa0", "\\u009b31m\xc2\xa0"},
        {"\x9b" "31m \xc0\x9b \xed\xa0\x80", "\\x9b31m \\xc0\\x9b \\xed\\xa0\\x80"},
        {"cut \xe2\x82", "cut \\xe2\\x82"},
    };
    for (int i = 0; i < NB_LEN(rows); i++) {
        assert_int_equal(nb_fail(NB_EINPUT, "%s", rows[i][0]), NB_EINPUT);
        assert_string_equal(nb_message(), rows[i][1]);
        nb_fail(NB_EINPUT, "%s", nb_message()); /* as from another thread */
        assert_string_equal(nb_message(), rows[i][1]);
    }
    nb_fail(NB_EINPUT, "b");
    nb_prefix(NB_EINPUT, "a\x1b");
    assert_string_equal(nb_message(), "a\\x1b: b");
    char many[3000];
    memset(many, 27, sizeof many);
    nb_fail(NB_EINPUT, "%.*s", (int)sizeof many, many);
    assert_int_equal(strlen(nb_message()), 4092); /* whole ones that fit in 4 KiB with their end */
    assert_string_equal(nb_message() + 4088, "\\x1b");
}

static void so_does_the_log(void **s) {
    (void)s;
    char *path = nb_path_join(nb_test_tmp(), "log"), *text;
    size_t n;
    const int err = dup(2), file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_true(err >= 0 && file >= 0 && dup2(file, 2) == 2);
    nb_warn("%s: \x1b]0;title\a %d", "name\x9b", 7);
    assert_int_equal(dup2(err, 2), 2);
    close(err), close(file);
    assert_ok(nb_file_read(path, &text, &n));
    assert_string_equal(text, "warning: name\\x9b: \\x1b]0;title\\x07 7\n");
    free(text), free(path);
}

static void names_are_found(void **state) {
    (void)state;
    enum { N = 20000 };
    static char text[N][16];
    nb_names x = {0};
    assert_int_equal(nb_names_find(&x, "a", 1), -1);
    for (int i = 0; i < N; i++) {
        int n = snprintf(text[i], sizeof text[i], "layers.%d", i);
        nb_names_add(&x, text[i], (size_t)n, i);
    }
    nb_names_add(&x, "layers.7", 8, 8); /* is there already */
    nb_names_add(&x, "layers.7777", 7, N); /* "layers." */
    for (int i = 0; i < N; i++) assert_int_equal(nb_names_find(&x, text[i], strlen(text[i])), i);
    assert_int_equal(nb_names_find(&x, "layers.", 7), N);
    assert_int_equal(nb_names_find(&x, "layers", 6), -1);
    assert_int_equal(nb_names_find(&x, "layers.20000", 12), -1);
    assert_int_equal(nb_names_find_weight(&x, "layers.19999.weight"), 19999);
    assert_int_equal(nb_names_find_weight(&x, "layers.19999.bias"), -1);
    assert_int_equal(nb_names_find_weight(&x, "layers.19999"), -1);
    assert_int_equal(nb_names_find_weight(&x, ".weight"), -1);
    nb_names_free(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers), cmocka_unit_test(half_precision_round_trips),
        cmocka_unit_test(sha256_and_crc),       cmocka_unit_test(files),
        cmocka_unit_test(shuffle_is_a_permutation), cmocka_unit_test(names_are_found),
        cmocka_unit_test(messages_show_control_characters), cmocka_unit_test(so_does_the_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
