#include "tests/test.h"

#include "core/file.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/safetensors.h"

static char *in_tmp(const char *name) { return nb_path_join(nb_test_tmp(), name); }

/* A file of this header text and `data` bytes of 7. */
static void raw_file(const char *path, const char *header, size_t data) {
    nb_text t = {0};
    uint64_t n = strlen(header);
    for (int i = 0; i < 8; i++) nb_text_add(&t, (char[]){(char)(n >> 8 * i)}, 1);
    nb_text_add(&t, header, n);
    for (size_t i = 0; i < data; i++) nb_text_add(&t, "\7", 1);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(t.s, 1, t.n, f), t.n);
    fclose(f);
    nb_text_free(&t);
}

static void header_errors(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        nb_status status; /* NB_OK: must open */
        const char *text;
    } cases[] = {
        {"{}", 0, NB_OK, ""},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}    ", 8, NB_OK, ""},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, NB_OK, ""}, /* a scalar */
        {"{\"e\":{\"dtype\":\"F32\",\"shape\":[0,9],\"data_offsets\":[0,0]}}", 0, NB_OK, ""},
        {"{\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]},\"t\":{\"dtype\":\"U8\",\"shape\":[2],"
         "\"data_offsets\":[0,2]}}", 2, NB_OK, ""},
        {"[]", 0, NB_EINPUT, "no JSON header"},
        {"{\"t\":", 0, NB_EINPUT, "not valid JSON"},
        {"{\"t\":\"\xff\"}", 0, NB_EINPUT, "not valid JSON"},
        {"{\"t\":3}", 0, NB_EINPUT, "not an object"},
        {"{\"__metadata__\":3}", 0, NB_EINPUT, "__metadata__"},
        {"{\"t\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, NB_EINPUT, "no \"dtype\""},
        {"{\"t\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, NB_EINPUT, "unknown dtype \"F33\""},
        {"{\"t\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, NB_EUNSUPPORTED, "F8_E4M3"},
        {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, NB_EINPUT, "no \"shape\""},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, NB_EINPUT, "not a count"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, NB_EINPUT, "not a count"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, NB_EUNSUPPORTED,
         "9 dimensions"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}", 8, NB_EINPUT,
         "overflows"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 4, NB_EINPUT,
         "overflows"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, NB_EINPUT, "data_offsets"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, NB_EINPUT, "data_offsets"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, NB_EINPUT, "impossible offsets [8, 0]"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, NB_EINPUT, "impossible offsets"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, NB_EINPUT, "truncated"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775799,9223372036854775807]}}", 8,
         NB_EINPUT, "truncated"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,18446744073709551615]}}", 8, NB_EINPUT, "JSON"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, NB_EINPUT, "12 by its shape"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, NB_EINPUT, "behind the last"},
        {"{\"s\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"t\":{\"dtype\":\"U8\",\"shape\":[4],"
         "\"data_offsets\":[3,7]}}", 7, NB_EINPUT, "\"t\" overlaps another at offset 3"},
        {"{\"s\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"t\":{\"dtype\":\"U8\",\"shape\":[4],"
         "\"data_offsets\":[5,9]}}", 9, NB_EINPUT, "\"t\" leaves a gap"},
        {"{\"s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"s\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[1,2]}}", 2, NB_EINPUT, "duplicate"},
    };
    char *path = in_tmp("bad.safetensors");
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_st s;
        raw_file(path, cases[i].header, cases[i].data);
        if (cases[i].status == NB_OK) {
            assert_ok(nb_st_open_file(&s, path));
            nb_st_close(&s);
        } else {
            assert_fails(nb_st_open_file(&s, path), cases[i].status, cases[i].text);
            if (cases[i].status == NB_EINPUT) assert_non_null(strstr(nb_message(), path));
            assert_int_equal(s.n_tensors, 0); /* nothing is left to close */
        }
    }
    free(path);
}

static void size_field(void **state) {
    (void)state;
    char *path = in_tmp("size.safetensors");
    nb_st s;
    assert_ok(nb_file_write(path, "\1\0\0", 3));
    assert_fails(nb_st_open_file(&s, path), NB_EINPUT, "3 bytes are no safetensors file");
    assert_ok(nb_file_write(path, "", 0));
    assert_fails(nb_st_open_file(&s, path), NB_EINPUT, "0 bytes");
    assert_ok(nb_file_write(path, "\3\0\0\0\0\0\0\0{}", 10));
    assert_fails(nb_st_open_file(&s, path), NB_EINPUT, "truncated");
    assert_ok(nb_file_write(path, "\1\341\365\5\0\0\0\0{}", 10)); /* 100,000,001 */
    assert_fails(nb_st_open_file(&s, path), NB_EINPUT, "over the format's 100 MB");
    assert_ok(nb_file_write(path, "\377\377\377\377\377\377\377\377{}", 10));
    assert_fails(nb_st_open_file(&s, path), NB_EINPUT, "100 MB");
    assert_ok(nb_file_write(path, "\0\0\0\0\0\0\0\0", 8));
    assert_fails(nb_st_open_file(&s, path), NB_EINPUT, "no JSON header");
    assert_fails(nb_st_open_file(&s, "/nowhere.safetensors"), NB_EIO, "/nowhere.safetensors");
    free(path);
}

static void write_two(const char *path, bool swapped) {
    const int64_t d[3] = {3, 2, 1};
    static const float x[6] = {1, 2, 3, 4, 5, -6.5f};
    static const uint8_t u[3] = {9, 8, 7};
    static const uint16_t h[2] = {0x3f80, 0xc000};
    json_t *meta = json_pack("{s:s}", "format", "pt");
    nb_st_writer *w;
    assert_ok(nb_st_write_begin(&w, path, meta));
    const char *order[] = {"b.u8", "z.f32", "a.bf16"};
    for (int i = 0; i < 3; i++) {
        const char *name = order[swapped ? 2 - i : i];
        if (name[0] == 'b') assert_ok(nb_st_write_declare(w, name, NB_U8, 1, d));
        else if (name[0] == 'z') assert_ok(nb_st_write_declare(w, name, NB_F32, 2, d));
        else assert_ok(nb_st_write_declare(w, name, NB_BF16, 1, d + 1));
    }
    assert_ok(nb_st_write_declare(w, "empty", NB_F32, 1, (int64_t[]){0}));
    assert_ok(nb_st_write_declare(w, "scalar", NB_F64, 0, NULL));
    if (swapped) assert_ok(nb_st_write_data(w, "b.u8", u, 3));
    assert_ok(nb_st_write_data(w, "a.bf16", h, 4));
    assert_ok(nb_st_write_data(w, "scalar", (double[]){0.25}, 8));
    assert_ok(nb_st_write_data(w, "z.f32", x, 24));
    if (!swapped) assert_ok(nb_st_write_data(w, "b.u8", u, 3));
    assert_false(nb_file_exists(path)); /* not before it is whole */
    assert_ok(nb_st_write_end(w));
    json_decref(meta);
}

static void round_trip(void **state) {
    (void)state;
    char *path = in_tmp("two.safetensors"), *other = in_tmp("other.safetensors");
    nb_hex x, y;
    nb_st s;
    write_two(path, false);
    write_two(other, true);
    assert_ok(nb_sha256_file(path, x));
    assert_ok(nb_sha256_file(other, y));
    assert_string_equal(x, y);
    assert_ok(nb_st_open_file(&s, path));
    assert_int_equal(s.n_tensors, 5);
    assert_string_equal(s.tensors[0].name, "a.bf16");
    assert_string_equal(json_string_value(json_object_get(s.metadata, "format")), "pt");
    for (int i = 0; i < s.n_tensors; i++)
        assert_int_equal((uintptr_t)s.tensors[i].data % (uintptr_t)nb_dtype_size(s.tensors[i].dtype), 0);
    const nb_st_tensor *z = nb_st_find(&s, "z.f32");
    float out[2];
    nb_st_read_f32(z, out, 4, 2);
    assert_true(z->n_dims == 2 && z->d[0] == 3 && z->d[1] == 2 && out[0] == 5 && out[1] == -6.5f);
    nb_st_read_f32(nb_st_find(&s, "a.bf16"), out, 0, 2);
    assert_true(out[0] == 1 && out[1] == -2);
    nb_st_read_f32(nb_st_find(&s, "scalar"), out, 0, 1);
    assert_true(out[0] == 0.25f);
    assert_null(nb_st_find(&s, "z"));
    nb_st_close(&s);
    /* The layout: header padded to 8 bytes, widest dtype first. */
    nb_map m;
    assert_ok(nb_map_open(&m, path));
    assert_int_equal((m.data[0] + 8) % 8, 0);
    const char *head = (const char *)m.data + 8;
    const char *widest = strstr(head, "\"scalar\""), *narrow = strstr(head, "\"b.u8\"");
    assert_true(widest && narrow && widest < narrow);
    nb_map_close(&m);
    nb_st_writer *w;
    char *gone = in_tmp("gone.safetensors");
    assert_ok(nb_st_write_begin(&w, gone, NULL));
    nb_st_write_abort(w);
    assert_false(nb_file_exists(gone));
    assert_fails(nb_st_write_begin(&w, "/nowhere/x.safetensors", NULL), NB_EIO, "/nowhere/x");
    assert_ok(nb_st_write_begin(&w, gone, NULL));
    assert_ok(nb_st_write_declare(w, "huge", NB_F32, 1, (int64_t[]){(int64_t)1 << 58}));
    assert_fails(nb_st_write_data(w, "huge", "", 0), NB_EIO, "is free on that disk");
    nb_st_write_abort(w);
    free(gone);
    free(path);
    free(other);
}

static void one_tensor(const char *dir, const char *file, const char *name) {
    char *path = nb_path_join(dir, file);
    nb_st_writer *w;
    assert_ok(nb_st_write_begin(&w, path, NULL));
    assert_ok(nb_st_write_declare(w, name, NB_F32, 1, (int64_t[]){1}));
    assert_ok(nb_st_write_data(w, name, (float[]){1}, 4));
    assert_ok(nb_st_write_end(w));
    free(path);
}

static void indexes(void **state) {
    (void)state;
    static const struct {
        const char *index, *text; /* text NULL: must open */
    } cases[] = {
        {"{\"weight_map\": {\"x\": \"m-1.safetensors\", \"y\": \"m-2.safetensors\"}}", NULL},
        {"{\"weight_map\": {\"x\": \"m-1.safetensors\"}}", NULL},
        {"{\"weight_map\": {\"x\": \"m-1.safetensors\", \"y\": \"m-3.safetensors\"}}", "the shard m-3.safetensors"},
        {"{\"weight_map\": {\"x\": \"m-2.safetensors\", \"y\": \"m-1.safetensors\"}}", "does not hold it"},
        {"{\"weight_map\": {\"x\": \"m-1.safetensors\", \"q\": \"m-1.safetensors\"}}", "\"q\" is in m-1.safetensors"},
        {"{\"weight_map\": {\"x\": \"m-1.safetensors\", \"z\": \"dup.safetensors\"}}", "\"x\" is both in"},
        {"{\"weight_map\": {\"x\": \"../m-1.safetensors\"}}", "not the name of a file beside it"},
        {"{\"weight_map\": {\"x\": \"..\"}}", "not the name of a file beside it"},
        {"{\"weight_map\": {\"x\": 3}}", "not the name of a file beside it"},
        {"{\"weight_map\": {}}", "no \"weight_map\""},
        {"{}", "no \"weight_map\""},
        {"[]", "no \"weight_map\""},
        {"{\"weight_map\": ", "not valid JSON"},
    };
    char *dir = in_tmp("sharded"), *index = nb_path_join(dir, "m.safetensors.index.json");
    assert_ok(nb_mkdirs(dir));
    one_tensor(dir, "m-1.safetensors", "x");
    one_tensor(dir, "m-2.safetensors", "y");
    one_tensor(dir, "dup.safetensors", "x");
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_st s;
        assert_ok(nb_file_write(index, cases[i].index, strlen(cases[i].index)));
        if (!cases[i].text) {
            assert_ok(nb_st_open_dir(&s, dir, "m"));
            assert_non_null(nb_st_find(&s, "x"));
            nb_st_close(&s);
        } else {
            assert_fails(nb_st_open_dir(&s, dir, "m"), NB_EINPUT, cases[i].text);
        }
    }
    nb_st s;
    assert_fails(nb_st_open_dir(&s, dir, "other"), NB_EIO, "other.safetensors");
    free(dir);
    free(index);
}

static void vectors(void **state) {
    (void)state;
    nb_st one, many;
    assert_ok(nb_st_open_dir(&one, VECTORS("stories260K-hf"), "model"));
    assert_ok(nb_st_open_dir(&many, VECTORS("stories260K-hf-bf16-sharded"), "model"));
    assert_int_equal(one.n_tensors, 47);
    assert_int_equal(many.n_tensors, 47);
    assert_int_equal(many.n_files, 2);
    for (int i = 0; i < one.n_tensors; i++) {
        const nb_st_tensor *t = &one.tensors[i], *u = &many.tensors[i];
        assert_string_equal(t->name, u->name);
        int64_t n = (int64_t)(t->bytes / 4);
        assert_int_equal(u->bytes, t->bytes / 2);
        float *x = nb_malloc(t->bytes), *y = nb_malloc(t->bytes);
        nb_st_read_f32(t, x, 0, n);
        nb_st_read_f32(u, y, 0, n);
        for (int64_t k = 0; k < n; k++) assert_true(y[k] == nb_round_bf16(x[k]));
        free(x);
        free(y);
    }
    nb_st_close(&one);
    nb_st_close(&many);
}

/* A damaged file opens as something sound, or not at all. */
static void check_sound(const char *path) {
    nb_st s;
    if (nb_st_open_file(&s, path) != NB_OK) return;
    for (int i = 0; i < s.n_tensors; i++) {
        const nb_st_tensor *t = &s.tensors[i];
        const uint8_t *p = t->data;
        assert_true(p >= s.files[0].data + 8 && p + t->bytes <= s.files[0].data + s.files[0].size);
        assert_true(t->n_dims <= 8);
    }
    nb_st_close(&s);
}

static void mutations(void **state) {
    (void)state;
    char *path = in_tmp("sound.safetensors"), *bad = in_tmp("mutant.safetensors"), *data;
    size_t size;
    remove(path);
    write_two(path, false);
    assert_ok(nb_file_read(path, &data, &size));
    nb_rng r = nb_rng_open(1, NB_RNG_TEST, 0);
    for (int i = 0; i < 3000; i++) {
        char *copy = nb_strndup(data, size);
        size_t n = i % 10 == 9 ? nb_rng_below(&r, size) : size; /* every tenth is cut short */
        for (uint64_t k = nb_rng_below(&r, 3) + 1; k > 0; k--) {
            static const char letters[] = "0123456789-[]{},:\"eE.";
            size_t at = nb_rng_below(&r, size);
            if (nb_rng_below(&r, 2)) copy[at] = letters[nb_rng_below(&r, sizeof letters - 1)];
            else copy[at] = (char)nb_rng_below(&r, 256);
        }
        FILE *f = fopen(bad, "wb");
        assert_int_equal(fwrite(copy, 1, n, f), n);
        fclose(f);
        check_sound(bad);
        free(copy);
    }
    free(data);
    free(path);
    free(bad);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(header_errors), cmocka_unit_test(size_field), cmocka_unit_test(round_trip),
        cmocka_unit_test(indexes),       cmocka_unit_test(vectors),    cmocka_unit_test(mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
