/* GGUF: what is written against files and figures of llama.cpp's own converter; and files that lie. */
#include "tests/test.h"

#include "adapters/export.h"
#include "core/dtype.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/mem.h"
#include "data/tokenizer_export.h"
#include "model/gguf_map.h"

static char *tmp_path(const char *name) { return nb_path_join(nb_test_tmp(), name); }

/* ---- reading and writing ---- */

static char *small_file(const char *name) {
    char *path = tmp_path(name);
    nb_gguf_writer *w;
    assert_ok(nb_gguf_write_begin(&w, path));
    nb_gguf_put_u32(w, "a.number", 0xfffffff0u);
    nb_gguf_put_f32(w, "a.real", 0.25f);
    nb_gguf_put_bool(w, "a.bool", true);
    nb_gguf_put_str(w, "a.text", "caf\xc3\xa9");
    nb_gguf_put_strs(w, "some.texts", (const char *const[]){"", "two", "three"}, 3);
    nb_gguf_put_f32s(w, "some.reals", (float[]){1, 2}, 2);
    nb_gguf_put_i32s(w, "some.numbers", (int32_t[]){-1, 7}, 2);
    assert_ok(nb_gguf_write_declare(w, "vector", NB_GGUF_F32, 1, (int64_t[]){3}));
    assert_ok(nb_gguf_write_declare(w, "matrix", NB_GGUF_Q8_0, 2, (int64_t[]){32, 2}));
    assert_ok(nb_gguf_write_data(w, (float[]){1, -2, 3}, 4)); /* in pieces */
    assert_ok(nb_gguf_write_data(w, (float[]){-2, 3}, 8));
    float x[64];
    uint8_t q[68];
    for (int i = 0; i < 64; i++) x[i] = (float)(i - 40) / 8;
    nb_gguf_encode(NB_GGUF_Q8_0, q, x, 64);
    assert_ok(nb_gguf_write_data(w, q, sizeof q));
    assert_ok(nb_gguf_write_end(w));
    return path;
}

static void test_round_trip(void **state) {
    (void)state;
    char *path = small_file("small.gguf");
    nb_gguf g;
    int64_t v;
    double d;
    float x[64];
    assert_ok(nb_gguf_open(&g, path));
    assert_int_equal(g.n_keys, 7);
    assert_int_equal(g.n_tensors, 2);
    assert_true(nb_gguf_int(&g, "a.number", &v) && v == 0xfffffff0u);
    assert_true(nb_gguf_int(&g, "a.bool", &v) && v == 1);
    assert_true(nb_gguf_real(&g, "a.real", &d) && d == 0.25);
    assert_false(nb_gguf_int(&g, "a.real", &v) || nb_gguf_real(&g, "a.number", &d) || nb_gguf_int(&g, "none", &v));
    char *s = nb_gguf_str(&g, "a.text");
    assert_string_equal(s, "caf\xc3\xa9");
    free(s);
    assert_null(nb_gguf_str(&g, "a.number"));
    assert_int_equal(nb_gguf_find_key(&g, "some.texts")->n, 3);
    assert_int_equal(nb_gguf_find_key(&g, "some.numbers")->of, NB_GGUF_KI32);
    const nb_gguf_tensor *t = nb_gguf_find_tensor(&g, "vector");
    nb_gguf_decode(t->type, x, t->data, 3);
    assert_true(x[0] == 1 && x[1] == -2 && x[2] == 3);
    t = nb_gguf_find_tensor(&g, "matrix");
    assert_true(t->ne[0] == 32 && t->ne[1] == 2 && t->n_dims == 2 && t->bytes == 68);
    nb_gguf_decode(t->type, x, t->data, 64);
    for (int i = 0; i < 64; i++) assert_close(x[i], (i - 40) / 8.0, 5.0 / 127 * 0.57);
    assert_null(nb_gguf_find_tensor(&g, "none"));
    nb_gguf_close(&g);
    free(path);
}

/* Halves are rounded away from 0, by the product with 1/d: values worked out by hand. */
static void test_q8_block(void **state) {
    (void)state;
    float x[32] = {127, 0.5f, -0.5f, 1.5f, -2.5f, 2.49f};
    uint8_t q[34];
    nb_gguf_encode(NB_GGUF_Q8_0, q, x, 32);
    const int8_t want[8] = {127, 1, -1, 2, -3, 2, 0, 0};
    assert_int_equal(q[0] | q[1] << 8, 0x3c00); /* 1.0 in f16 */
    assert_memory_equal(q + 2, want, sizeof want);
    memset(x, 0, sizeof x);
    nb_gguf_encode(NB_GGUF_Q8_0, q, x, 32);
    for (int i = 0; i < 34; i++) assert_int_equal(q[i], 0);
}

/* Every shorter file, and every byte replaced, is read or refused, but never followed out of the map. */
static void test_damaged(void **state) {
    (void)state;
    char *path = small_file("whole.gguf"), *bad = tmp_path("bad.gguf"), *data;
    size_t n;
    nb_gguf g;
    assert_ok(nb_file_read(path, &data, &n));
    for (size_t cut = 0; cut < n; cut++) {
        assert_ok(nb_file_write(bad, data, cut));
        nb_status st = nb_gguf_open(&g, bad);
        if (st == NB_OK && n - cut > 28) fail_msg("%zu of %zu bytes are taken for a whole file", cut, n); /* padding */
        nb_gguf_close(&g);
    }
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 3; k++) {
            char old = data[i];
            data[i] = "\x00\x7f\xff"[k];
            assert_ok(nb_file_write(bad, data, n));
            float x[64];
            if (nb_gguf_open(&g, bad) == NB_OK)
                for (int64_t j = 0; j < g.n_tensors; j++) {
                    const nb_gguf_tensor *t = &g.tensors[j];
                    if (t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3] <= 64)
                        nb_gguf_decode(t->type, x, t->data, t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]);
                    assert_true(t->data >= g.map.data && t->data + t->bytes <= g.map.data + g.map.size);
                }
            nb_gguf_close(&g);
            data[i] = old;
        }
    free(data), free(path), free(bad);
}

/* Puts a number somewhere and expects the message. */
static void refused(const char *text, nb_status code, size_t at, uint64_t value, int bytes) {
    char *path = small_file("whole.gguf"), *bad = tmp_path("bad.gguf"), *data;
    size_t n;
    nb_gguf g;
    assert_ok(nb_file_read(path, &data, &n));
    for (int i = 0; i < bytes; i++) data[at + (size_t)i] = (char)(value >> 8 * i);
    assert_ok(nb_file_write(bad, data, n));
    assert_fails(nb_gguf_open(&g, bad), code, text);
    free(data), free(path), free(bad);
}

static size_t behind(const char *text) {
    char *path = small_file("whole.gguf"), *data;
    size_t n, at = 0;
    assert_ok(nb_file_read(path, &data, &n));
    while (at + strlen(text) < n && memcmp(data + at, text, strlen(text)) != 0) at++;
    free(data), free(path);
    return at + strlen(text);
}

static void test_hostile(void **state) {
    (void)state;
    refused("does not begin with GGUF", NB_EINPUT, 0, 'X', 1);
    refused("version 9", NB_EUNSUPPORTED, 4, 9, 4);
    refused("more than it has room for", NB_EINPUT, 8, 1ull << 60, 8);
    refused("more than it has room for", NB_EINPUT, 16, 1ull << 60, 8);
    refused("ends within", NB_EINPUT, behind("a.text") + 4, UINT64_MAX, 8);
    refused("which is none", NB_EINPUT, behind("a.real"), 99, 4);
    refused("array of arrays", NB_EUNSUPPORTED, behind("some.reals") + 4, 9, 4);
    refused("more than the file has room for", NB_EINPUT, behind("some.reals") + 8, UINT64_MAX / 4, 8);
    refused("more than the file has room for", NB_EINPUT, behind("some.texts") + 8, 1ull << 61, 8);
    refused("0 dimensions", NB_EINPUT, behind("vector"), 0, 4);
    refused("5 dimensions", NB_EINPUT, behind("matrix"), 5, 4);
    refused("impossible shape", NB_EINPUT, behind("matrix") + 4, 1ull << 62, 8);
    refused("impossible shape", NB_EINPUT, behind("matrix") + 12, 1ull << 57, 8);
    refused("not whole blocks", NB_EINPUT, behind("matrix") + 4, 31, 8);
    refused("ggml type 77", NB_EUNSUPPORTED, behind("vector") + 12, 77, 4);
    refused("not inside the file", NB_EINPUT, behind("vector") + 16, 1ull << 40, 8);
    refused("not inside the file", NB_EINPUT, behind("vector") + 16, UINT64_MAX - 31, 8);
    refused("not aligned", NB_EINPUT, behind("vector") + 16, 4, 8);
}

/* ---- against llama.cpp's converter ---- */

static const nb_gguf_tensor *need_tensor(const nb_gguf *g, const char *name) {
    const nb_gguf_tensor *t = nb_gguf_find_tensor(g, name);
    if (!t) fail_msg("%s: no tensor %s", g->map.path, name);
    return t;
}

static void check_key(const nb_gguf *g, const char *name, const json_t *want) {
    const char *kind = json_string_value(json_array_get(want, 0));
    const json_t *v = json_array_get(want, 1);
    const nb_gguf_key *k = nb_gguf_find_key(g, name);
    int64_t i = -1;
    double d = -1;
    if (!k) fail_msg("%s: no key %s", g->map.path, name);
    if (!strcmp(kind, "STRING")) {
        char *s = nb_gguf_str(g, name);
        assert_string_equal(s, json_string_value(v));
        free(s);
    } else if (!strcmp(kind, "FLOAT32")) {
        assert_true(k->kind == NB_GGUF_KF32 && nb_gguf_real(g, name, &d));
        if (!(d == json_number_value(v))) fail_msg("%s: %.9g, want %.9g", name, d, json_number_value(v));
    } else {
        assert_string_equal(kind, "UINT32");
        assert_true(k->kind == NB_GGUF_KU32 && nb_gguf_int(g, name, &i));
        if (i != json_integer_value(v))
            fail_msg("%s: %lld, want %lld", name, (long long)i, (long long)json_integer_value(v));
    }
}

static void check_tensor(const nb_gguf *g, const char *name, const json_t *want) {
    const nb_gguf_tensor *t = need_tensor(g, name);
    const json_t *ne = json_object_get(want, "ne");
    nb_hex sha;
    assert_int_equal(t->type, NB_GGUF_F32);
    assert_int_equal(t->n_dims, json_array_size(ne));
    for (int i = 0; i < t->n_dims; i++) assert_int_equal(t->ne[i], json_integer_value(json_array_get(ne, (size_t)i)));
    nb_sha256_of(t->data, t->bytes, sha);
    if (strcmp(sha, json_string_value(json_object_get(want, "sha256"))) != 0)
        fail_msg("%s: the values of %s differ", g->map.path, name);
}

static void open_export(nb_gguf *g, const char *dir, const char *dtype) {
    static int serial;
    char *name = nb_asprintf("export-%d.gguf", serial++), *path = tmp_path(name);
    nb_export_report r;
    assert_ok(nb_export_gguf(dir, "a model", path, nb_gguf_mix_find(dtype), true, &r));
    assert_int_equal(r.verified, r.tensors);
    assert_ok(nb_gguf_open(g, path));
    assert_int_equal(g->n_tensors, r.tensors);
    free(name), free(path);
}

static void test_families(void **state) {
    (void)state;
    static const char *const names[] = {"gemma", "gemma2", "llama2", "llama3", "mistral", "mixtral", "olmo", "olmo2",
                                        "phi2", "phi3", "qwen2", "qwen2_moe", "qwen3"};
    json_t *all;
    assert_ok(nb_json_load(VECTORS("gguf/tiny_families_gguf.json"), &all));
    for (int i = 0; i < NB_LEN(names); i++) {
        char *dir = nb_path_join(VECTORS("tiny"), names[i]);
        const char *key;
        json_t *v, *family = json_object_get(all, names[i]), *tensors = json_object_get(family, "tensors");
        nb_gguf g;
        open_export(&g, dir, "f32");
        json_object_foreach(json_object_get(family, "kv"), key, v) check_key(&g, key, v);
        assert_int_equal(g.n_tensors, json_object_size(tensors));
        json_object_foreach(tensors, key, v) check_tensor(&g, key, v);
        nb_gguf_close(&g);
        free(dir);
    }
    json_decref(all);
}

static void test_rope_factors(void **state) {
    (void)state;
    nb_spec *s = NB_NEW(nb_spec);
    nb_st st;
    nb_gguf_plan p;
    assert_ok(nb_spec_load(s, VECTORS("tiny/llama3")));
    assert_ok(nb_st_open_dir(&st, VECTORS("tiny/llama3"), "model"));
    s->rope[0].original_context = 8192;
    assert_ok(nb_gguf_plan_make(&p, s, &st));
    assert_string_equal(p.items[0].name, "rope_freqs.weight");
    /* wavelengths below 2048, one between, above 8192: (8192 / w - 1) / 3 of the way from 8 to 1 in the frequency */
    const double want[8] = {1, 1, 1, 1, 2.6945298, 8, 8, 8};
    for (int k = 0; k < 8; k++) assert_close(p.items[0].values[k], want[k], 1e-6);
    nb_gguf_plan_free(&p);
    s->rope[0] = (nb_rope_spec){.kind = NB_ROPE_LONGROPE, .theta = 1e4, .rot = 12, .factors = {{1, 2, 3}, {4, 5, 6}}};
    assert_ok(nb_gguf_plan_make(&p, s, &st));
    assert_string_equal(p.items[0].name, "rope_factors_short.weight");
    assert_string_equal(p.items[1].name, "rope_factors_long.weight");
    assert_true(p.items[0].values[2] == 3 && p.items[1].values[2] == 6 && p.items[1].rows == 6);
    nb_gguf_plan_free(&p);
    nb_st_close(&st);
    free(s);
}

/* The four files that llama.cpp's converter made of one model. */
static void test_stories(void **state) {
    (void)state;
    static const struct { const char *file, *type; } files[] = {
        {"gguf/stories260K-f32.gguf", "f32"}, {"gguf/stories260K-f16.gguf", "f16"},
        {"gguf/stories260K-bf16.gguf", "bf16"}, {"gguf/stories260K-q8_0.gguf", "q8_0"},
    };
    static const char *const own[] = {"general.name", "general.size_label", "tokenizer.ggml.scores"};
    for (int i = 0; i < NB_LEN(files); i++) {
        nb_gguf g, want;
        open_export(&g, VECTORS("stories260K-hf"), files[i].type);
        assert_ok(nb_gguf_open(&want, VECTORS(files[i].file)));
        assert_int_equal(g.n_tensors, want.n_tensors);
        for (int64_t j = 0; j < want.n_tensors; j++) {
            const nb_gguf_tensor *w = &want.tensors[j], *t = need_tensor(&g, w->name);
            assert_int_equal(t->type, w->type);
            assert_memory_equal(t->ne, w->ne, sizeof t->ne);
            if (memcmp(t->data, w->data, t->bytes) != 0) fail_msg("%s: %s differs", files[i].file, w->name);
        }
        for (int64_t j = 0; j < want.n_keys; j++) {
            const nb_gguf_key *w = &want.keys[j], *k = nb_gguf_find_key(&g, w->name);
            const uint8_t *end = j + 1 < want.n_keys ? want.keys[j + 1].data - 8 - strlen(want.keys[j + 1].name) : NULL;
            bool skipped = false;
            for (int o = 0; o < NB_LEN(own); o++) skipped |= !strcmp(w->name, own[o]);
            if (skipped) continue;
            if (!k || k->kind != w->kind || k->of != w->of || k->n != w->n) fail_msg("key %s differs", w->name);
            size_t n = w->kind == NB_GGUF_KARRAY ? (size_t)(end - w->data) - 12 : (size_t)w->n;
            if (w->kind == NB_GGUF_KARRAY && w->of == NB_GGUF_KI32) n = 4 * (size_t)w->n;
            if (memcmp(k->data, w->data, n) != 0) fail_msg("key %s has another value", w->name);
        }
        nb_gguf_close(&g);
        nb_gguf_close(&want);
    }
}

static void test_lora(void **state) {
    (void)state;
    nb_session s;
    nb_session_options o = {.base = VECTORS("stories260K-hf"), .adapter = VECTORS("stories260K-lora"), .device = "cpu",
                            .dtype = "f32"};
    nb_gguf g, want;
    nb_export_report r;
    double alpha;
    char *path = tmp_path("lora.gguf");
    assert_ok(nb_session_open(&s, &o));
    assert_ok(nb_export_gguf_lora(&s, "lora", path, true, &r));
    assert_fails(nb_export_gguf_lora(&s, "lora", path, true, &r), NB_EINPUT, "exists");
    nb_session_close(&s);
    assert_ok(nb_gguf_open(&g, path));
    assert_ok(nb_gguf_open(&want, VECTORS("stories260K-lora/adapter-f32.gguf")));
    assert_int_equal(g.n_tensors, want.n_tensors);
    for (int64_t i = 0; i < want.n_tensors; i++) {
        const nb_gguf_tensor *w = &want.tensors[i], *t = need_tensor(&g, w->name);
        assert_memory_equal(t->ne, w->ne, sizeof t->ne);
        if (t->type != w->type || memcmp(t->data, w->data, t->bytes) != 0) fail_msg("%s differs", w->name);
    }
    assert_true(nb_gguf_real(&g, "adapter.lora.alpha", &alpha) && alpha == 8);
    nb_gguf_close(&g);
    nb_gguf_close(&want);
    free(path);
}

/* The experts' adapters are one tensor of each kind, of the largest rank; B has what their scales differ by. */
static void test_lora_of_experts(void **state) {
    (void)state;
    nb_session s;
    nb_session_options o = {.base = "tests/golden/mixtral", .adapter = "tests/golden/mixtral/adapter", .device = "cpu",
                            .dtype = "f32"};
    nb_gguf g;
    nb_export_report r;
    char *path = tmp_path("experts.gguf");
    assert_ok(nb_session_open(&s, &o));
    struct nb_attached *at = NULL;
    for (int i = 0; i < s.adapter->n_attached && !at; i++)
        if (!strcmp(s.adapter->attached[i].module, "model.layers.1.block_sparse_moe.experts.2.w3"))
            at = &s.adapter->attached[i];
    assert_non_null(at);
    assert_int_equal(at->r, 2);
    at->scale *= 3;
    for (int less = 0; less < 2; less++) { /* then of rank 1: the first column of what the parameters have */
        const float *A = at->A->data, *B = at->B->data;
        at->r -= less, at->A->d[0] -= less, at->B->d[1] -= less;
        remove(path);
        assert_ok(nb_export_gguf_lora(&s, "lora", path, true, &r));
        assert_int_equal(r.tensors, 2 * 2 * (4 + 3));
        assert_ok(nb_gguf_open(&g, path));
        const nb_gguf_tensor *a = need_tensor(&g, "blk.1.ffn_up_exps.weight.lora_a"),
                             *b = need_tensor(&g, "blk.1.ffn_up_exps.weight.lora_b");
        assert_memory_equal(a->ne, ((int64_t[]){32, 2, 4, 1}), sizeof a->ne);
        assert_memory_equal(b->ne, ((int64_t[]){2, 24, 4, 1}), sizeof b->ne);
        const float *x = (const float *)a->data + 2 * 32 * 2, *y = (const float *)b->data + 2 * 2 * 24;
        for (int i = 0; i < 32 * 2; i++) assert_true(x[i] == (less && i >= 32 ? 0 : A[i]));
        for (int i = 0; i < 24; i++)
            for (int k = 0; k < 2; k++)
                assert_close(y[2 * i + k], less && k ? 0 : 3 * B[less ? i : 2 * i + k], 1e-6);
        nb_gguf_close(&g);
    }
    at->r++, at->A->d[0]++, at->B->d[1]++;
    nb_session_close(&s);
    free(path);
}

/* ---- tokenizers ---- */

static void expect_strings(const nb_gguf *g, const char *key, char *const *got, int64_t n) {
    const nb_gguf_key *k = nb_gguf_find_key(g, key);
    assert_non_null(k);
    assert_int_equal(k->n, n);
    const uint8_t *p = k->data;
    for (int64_t i = 0; i < n; i++) {
        uint64_t len;
        memcpy(&len, p, 8);
        if (strlen(got[i]) != len || memcmp(p + 8, got[i], len) != 0)
            fail_msg("%s %lld: \"%s\", want \"%.*s\"", key, (long long)i, got[i], (int)len, p + 8);
        p += 8 + len;
    }
}

/* Tokens, types, scores and merges as llama.cpp's vocabulary files have them. */
static void test_vocabularies(void **state) {
    (void)state;
    static const struct { const char *dir, *file; int64_t vocab; } v[] = {
        {"tok/gpt2", "llamacpp-vocab/ggml-vocab-gpt-2.gguf", 50257},
        {"tok/llama2/tokenizer.model", "llamacpp-vocab/ggml-vocab-llama-spm.gguf", 32000},
    };
    for (int i = 0; i < NB_LEN(v); i++) {
        nb_tokenizer *t;
        nb_token_list l;
        nb_gguf g;
        assert_ok(nb_gguf_open(&g, VECTORS(v[i].file)));
        assert_ok(nb_tokenizer_load(&t, VECTORS(v[i].dir)));
        assert_fails(nb_tokenizer_list(t, v[i].vocab - 1, &l), NB_EINPUT, "rows for");
        nb_token_list_free(&l);
        assert_ok(nb_tokenizer_list(t, v[i].vocab, &l));
        char *model = nb_gguf_str(&g, "tokenizer.ggml.model"), *pre = nb_gguf_str(&g, "tokenizer.ggml.pre");
        assert_string_equal(l.model, model);
        assert_string_equal(l.pre, pre);
        expect_strings(&g, "tokenizer.ggml.tokens", l.token, l.n);
        if (l.merge) expect_strings(&g, "tokenizer.ggml.merges", l.merge, l.n_merges);
        const uint8_t *types = nb_gguf_find_key(&g, "tokenizer.ggml.token_type")->data;
        for (int64_t k = 0; k < l.n; k++) {
            int32_t want;
            memcpy(&want, types + 4 * k, 4);
            if (want == NB_TOKEN_UNKNOWN) want = NB_TOKEN_CONTROL; /* special here */
            if (l.type[k] != want)
                fail_msg("%s: token %lld has type %d, want %d", v[i].dir, (long long)k, l.type[k], want);
        }
        free(model), free(pre);
        nb_token_list_free(&l);
        nb_tokenizer_free(t);
        nb_gguf_close(&g);
    }
}

static void test_splits(void **state) {
    (void)state;
    static const struct { const char *dir, *pre; bool space; } v[] = {
        {"llama3", "llama-bpe", false}, {"qwen2.5", "qwen2", false}, {"smollm2", "smollm", false},
        {"phi-2", "gpt-2", false}, {"phi-4-mini", "gpt-4o", false}, {"llama2", "default", true},
        {"gemma-cropped", "default", false},
    };
    for (int i = 0; i < NB_LEN(v); i++) {
        char *rel = nb_path_join("tok", v[i].dir), *file = nb_path_join(VECTORS(rel), "tokenizer.json");
        nb_tokenizer *t;
        nb_token_list l;
        assert_ok(nb_tokenizer_load(&t, file));
        int64_t n = nb_tokenizer_vocab_size(t);
        assert_ok(nb_tokenizer_list(t, n + 2, &l));
        assert_string_equal(l.pre, v[i].pre);
        assert_int_equal(l.space_prefix, v[i].space);
        char *pad = nb_asprintf("[PAD%lld]", (long long)n + 1);
        assert_string_equal(l.token[n + 1], pad);
        assert_int_equal(l.type[n + 1], NB_TOKEN_UNUSED);
        free(pad), free(rel), free(file);
        nb_token_list_free(&l);
        nb_tokenizer_free(t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_q8_block),     cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_hostile),    cmocka_unit_test(test_families),     cmocka_unit_test(test_rope_factors),
        cmocka_unit_test(test_stories),    cmocka_unit_test(test_lora),        cmocka_unit_test(test_lora_of_experts),
        cmocka_unit_test(test_vocabularies),
        cmocka_unit_test(test_splits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
