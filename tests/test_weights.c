#include "tests/test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cpu.h"
#include "core/hash.h"
#include "model/weights.h"
#include "tests/tiny_base.h"

static const nb_base_options plain = {0};

static float element(const nb_weight *w, int64_t i) {
    if (w->format == NB_FMT_F32) return ((const float *)w->data)[i];
    uint16_t h = ((const uint16_t *)w->data)[i];
    return w->format == NB_FMT_BF16 ? nb_bf16_to_f32(h) : nb_f16_to_f32(h);
}

/* Every weight of `b` is what the folder's file holds, in the file's own dtype. */
static void check_against_file(const nb_base *b) {
    nb_st s;
    assert_ok(nb_st_open_dir(&s, b->dir, "model"));
    for (int64_t l = 0; l < b->spec.layers; l++)
        for (int k = 0; k < nb_spec_slots(&b->spec); k++) {
            const nb_base_linear *lin = &b->layer[l].lin[k];
            if (!lin->name) continue;
            char *name = nb_asprintf("%s.weight", lin->name);
            const nb_st_tensor *t = nb_st_find(&s, name);
            assert_non_null(t);
            assert_int_equal(t->d[0], lin->w.rows);
            assert_int_equal(t->d[1], lin->w.cols);
            assert_int_equal((int)lin->w.format, (int)t->dtype);
            assert_memory_equal(lin->w.data, t->data, t->bytes);
            free(name);
        }
    const nb_st_tensor *e = nb_st_find(&s, nb_spec_embed_name(&b->spec));
    assert_null(e);
    e = nb_st_find(&s, "model.embed_tokens.weight");
    assert_memory_equal(b->embed.data, e->data, e->bytes);
    nb_st_close(&s);
}

static void loads_own_folders(void **state) {
    (void)state;
    static const char *const configs[] = {
        TINY_LLAMA "}",
        TINY_LLAMA ", \"attention_bias\": true, \"mlp_bias\": true}",
        "{\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", \"vocab_size\": 7, \"dtype\": "
        "\"float32\", \"hidden_size\": 8, \"intermediate_size\": 3, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 2, \"num_key_value_heads\": null, \"tie_word_embeddings\": false}",
    };
    for (int i = 0; i < NB_LEN(configs); i++) {
        char *dir = tiny_base("own", configs[i], (uint64_t)i);
        nb_base *b;
        assert_ok(nb_base_load(&b, dir, &plain));
        check_against_file(b);
        assert_int_equal(strlen(b->sha256), 64);
        assert_true((b->layer[0].lin[NB_Q].bias != NULL) == b->spec.qkv_bias);
        assert_true((b->layer[0].lin[NB_DOWN].bias != NULL) == b->spec.mlp_bias);
        assert_true((b->head.w.data == b->embed.data) == b->spec.tied);
        nb_base_free(b);
        free(dir);
    }
}

static void loads_vectors(void **state) {
    (void)state;
    static const char *const folders[] = {"stories260K-hf", "stories260K-hf-bf16-sharded", "tiny/llama2", "tiny/llama3",
                                          "tiny/mistral"};
    for (int i = 0; i < NB_LEN(folders); i++) {
        nb_base *b;
        assert_ok(nb_base_load(&b, VECTORS(folders[i]), &plain));
        check_against_file(b);
        nb_base_free(b);
    }
}

static void reinit_is_independent_of_threads(void **state) {
    (void)state;
    char *dir = tiny_base("reinit", TINY_LLAMA ", \"initializer_range\": 0.5}", 1);
    char *file = nb_path_join(dir, "model.safetensors");
    assert_ok(nb_remove_tree(file)); /* none is needed */
    nb_base *x, *y, *z, *bf;
    nb_base_options o = {.reinit = true, .seed = 7, .keep_f32 = true}, other = o, half = o;
    other.seed = 8;
    half.keep_f32 = false;
    nb_threads_set(1);
    assert_ok(nb_base_load(&x, dir, &o));
    nb_threads_set(3);
    assert_ok(nb_base_load(&y, dir, &o));
    assert_ok(nb_base_load(&z, dir, &other));
    assert_ok(nb_base_load(&bf, dir, &half));
    nb_threads_set(0);
    assert_int_equal(x->embed.format, NB_FMT_F32);
    assert_int_equal(bf->embed.format, NB_FMT_BF16);
    assert_string_equal(x->sha256, y->sha256);
    assert_string_not_equal(x->sha256, z->sha256);
    double sum = 0, squares = 0;
    int64_t n = 0, equal = 0;
    for (nb_slot k = 0; k < NB_SLOTS; k++) {
        const nb_weight *w = &x->layer[1].lin[k].w;
        for (int64_t i = 0; i < w->rows * w->cols; i++, n++) {
            float v = element(w, i);
            sum += v, squares += (double)v * v;
            assert_true(v == element(&y->layer[1].lin[k].w, i));
            equal += v == element(&z->layer[1].lin[k].w, i);
            assert_true(nb_round_bf16(v) == element(&bf->layer[1].lin[k].w, i));
        }
    }
    assert_int_equal(equal, 0);
    assert_close(sum / (double)n, 0, 0.03);
    assert_close(sqrt(squares / (double)n), 0.5, 0.02);
    assert_true(element(&x->layer[0].lin[NB_Q].w, 0) != element(&x->layer[1].lin[NB_Q].w, 0));
    assert_true(x->final_norm[3] == 1 && x->layer[0].norm[NB_NORM2][0] == 1);
    nb_base_free(x);
    nb_base_free(y);
    nb_base_free(z);
    nb_base_free(bf);
    free(file);
    free(dir);
}

/* ---- damaged folders ---- */

static void damaged_folders(void **state) {
    (void)state;
    static const change changes[] = {
        {TARGET, "model.layers.1.mlp.up_prok.weight", .status = NB_EINPUT,
         .message = "has no tensor \"" TARGET "\" (nearest: \"model.layers.1.mlp.up_prok.weight\""},
        {TARGET, "", .status = NB_EINPUT, .message = "has no tensor \"" TARGET "\""},
        {TARGET, NULL, 24, 36, .status = NB_ESHAPE, .message = "has shape [24, 36], config.json says [36, 24]"},
        {TARGET, NULL, 864, 0, .status = NB_ESHAPE, .message = "has shape [864]"},
        {TARGET, NULL, 36, 24, NB_I32 + 1, .status = NB_EUNSUPPORTED, .message = "is I32"},
        {"model.norm.weight", NULL, 12, 0, NB_F32 + 1, .status = NB_ESHAPE, .message = "config.json says [24]"},
        {"model.embed_tokens.weight", "transformer.wte.weight", .status = NB_EINPUT,
         .message = "model.embed_tokens.weight"},
    };
    for (int i = 0; i < NB_LEN(changes); i++) {
        char *dir = tiny_base("damaged", TINY_LLAMA "}", 9);
        nb_base *b;
        rewrite(dir, apply, &changes[i]);
        assert_fails(nb_base_load(&b, dir, &plain), changes[i].status, changes[i].message);
        assert_non_null(strstr(nb_message(), "model.safetensors"));
        assert_null(b);
        free(dir);
    }
    char *dir = tiny_base("damaged", TINY_LLAMA "}", 9), *file = nb_path_join(dir, "model.safetensors");
    nb_base *b;
    struct stat sb;
    assert_int_equal(stat(file, &sb), 0);
    assert_int_equal(truncate(file, sb.st_size / 2), 0);
    assert_fails(nb_base_load(&b, dir, &plain), NB_EINPUT, "truncated");
    assert_ok(nb_remove_tree(file));
    assert_fails(nb_base_load(&b, dir, &plain), NB_EINPUT, "fetch the weights");
    char *pickle = nb_path_join(dir, "pytorch_model.bin");
    assert_ok(nb_file_write(pickle, "x", 1));
    assert_fails(nb_base_load(&b, dir, &plain), NB_EUNSUPPORTED, "save the model as safetensors");
    assert_fails(nb_base_load(&b, pickle, &plain), NB_EINPUT, "is a file");
    assert_fails(nb_base_load(&b, dir, &(nb_base_options){.reinit = true, .load_in_4bit = true}), NB_EINPUT, "reinit");
    free(pickle);
    free(file);
    free(dir);
}

/* A foreign file may hold its data at an odd address: the values must be the same. */
static void unaligned_data(void **state) {
    (void)state;
    char *dir = tiny_base("odd", TINY_LLAMA ", \"dtype\": \"float32\"}", 11);
    char *path = nb_path_join(dir, "model.safetensors"), *data;
    size_t size;
    nb_base *good, *b;
    assert_ok(nb_base_load(&good, dir, &plain));
    assert_ok(nb_file_read(path, &data, &size));
    nb_text t = {0};
    size_t n = (uint8_t)data[0] | (size_t)(uint8_t)data[1] << 8;
    nb_text_add(&t, (char[]){(char)(n + 3), (char)((n + 3) >> 8), 0, 0, 0, 0, 0, 0}, 8);
    nb_text_add(&t, data + 8, n);
    nb_text_add(&t, "   ", 3);
    nb_text_add(&t, data + 8 + n, size - 8 - n);
    assert_ok(nb_file_write(path, t.s, t.n));
    assert_ok(nb_base_load(&b, dir, &plain));
    assert_same_values(good, b);
    assert_int_equal((uintptr_t)b->layer[0].lin[NB_Q].w.data % 4, 0);
    nb_base_free(good);
    nb_base_free(b);
    nb_text_free(&t);
    free(data);
    free(path);
    free(dir);
}

/* What `f` says on stderr, in a static buffer. */
static const char *stderr_of(void (*f)(void *), void *arg) {
    static char text[4096];
    FILE *t = tmpfile();
    int saved = dup(2);
    fflush(stderr);
    dup2(fileno(t), 2);
    f(arg);
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    rewind(t);
    text[fread(text, 1, sizeof text - 1, t)] = 0;
    fclose(t);
    return text;
}

static void tied_head_and_extras(void **state) {
    (void)state;
    static const char tied[] = TINY_LLAMA "}";
    /* Weights made with a head, or biases, too many, then read by a config that has neither. */
    char *untied = nb_strdup(tied), *at = strstr(untied, "\"tie_word_embeddings\": true");
    memcpy(at + strlen("\"tie_word_embeddings\": "), "null", 4);
    char *dir = tiny_base("extra", untied, 12);
    char *cfg = nb_path_join(dir, "config.json");
    assert_ok(nb_file_write(cfg, tied, strlen(tied)));
    load_args a = {.dir = dir};
    assert_string_equal(stderr_of(load_it, &a), ""); /* a tied model's copy of the head is no news */
    assert_ok(a.st);
    assert_ptr_equal(a.b->head.w.data, a.b->embed.data);
    nb_base_free(a.b);
    free(dir);
    static const char biased[] = TINY_LLAMA ", \"mlp_bias\": true}";
    a.dir = dir = tiny_base("extra", biased, 12);
    assert_ok(nb_file_write(cfg, tied, strlen(tied)));
    const char *said = stderr_of(load_it, &a);
    assert_ok(a.st);
    assert_non_null(strstr(said, "6 tensors this architecture does not use: model.layers.0.mlp.down_proj.bias, "));
    assert_null(strstr(strstr(said, "warning") + 1, "warning")); /* once */
    nb_base_free(a.b);
    free(untied);
    free(cfg);
    free(dir);
}

/* ---- where it lies, and its name ---- */

static void sha256_is_remembered(void **state) {
    (void)state;
    char *dir = tiny_base("named", TINY_LLAMA "}", 13), *file = nb_path_join(dir, "model.safetensors");
    nb_hex x, y;
    assert_ok(nb_base_sha256(dir, x));
    overwrite(file, 4000, "changed");
    assert_ok(nb_base_sha256(dir, y));
    assert_string_not_equal(x, y); /* just written: not trusted to be unchanged */
    struct timespec old[2] = {{.tv_sec = 1700000000}, {.tv_sec = 1700000000, .tv_nsec = 5}};
    assert_int_equal(utimensat(AT_FDCWD, file, old, 0), 0);
    assert_ok(nb_base_sha256(dir, x));
    assert_string_equal(x, y);
    overwrite(file, 4000, "CHANGED"); /* time set back: looks the same, so the memory of it is what comes */
    assert_int_equal(utimensat(AT_FDCWD, file, old, 0), 0);
    assert_ok(nb_base_sha256(dir, x));
    assert_string_equal(x, y);
    old[1].tv_nsec = 6; /* any later time: hashed again */
    assert_int_equal(utimensat(AT_FDCWD, file, old, 0), 0);
    assert_ok(nb_base_sha256(dir, x));
    assert_string_not_equal(x, y);
    nb_threads_set(1);
    assert_ok(nb_base_sha256(dir, y));
    nb_threads_set(0);
    assert_string_equal(x, y);
    char *other = tiny_base("renamed", TINY_LLAMA "}", 13);
    assert_ok(nb_base_sha256(other, x));
    char *first = tiny_base("named", TINY_LLAMA "}", 13);
    assert_ok(nb_base_sha256(first, y));
    assert_string_equal(x, y); /* a copy elsewhere is the same base */
    assert_fails(nb_base_sha256(nb_test_tmp(), x), NB_EIO, "config.json");
    free(first);
    free(other);
    free(file);
    free(dir);
}

static void hub_names(void **state) {
    (void)state;
    char *hub = nb_path_join(nb_test_tmp(), "hub"), *repo = nb_path_join(hub, "models--some-org--a.model-1");
    char *snap = nb_path_join(repo, "snapshots/0123abcd"), *refs = nb_path_join(repo, "refs");
    char *ref = nb_path_join(refs, "main"), *dir, *saved = getenv("HF_HUB_CACHE");
    setenv("HF_HUB_CACHE", hub, 1);
    assert_fails(nb_base_resolve("some-org/a.model-1", &dir), NB_EINPUT, "hf download some-org/a.model-1");
    assert_non_null(strstr(nb_message(), hub));
    assert_ok(nb_mkdirs(snap));
    assert_ok(nb_base_resolve("some-org/a.model-1", &dir)); /* the only snapshot */
    assert_string_equal(dir, snap);
    free(dir);
    assert_ok(nb_mkdirs(refs));
    assert_ok(nb_file_write(ref, "0123abcd\n", 9));
    assert_ok(nb_base_resolve("some-org/a.model-1", &dir));
    assert_string_equal(dir, snap);
    free(dir);
    assert_ok(nb_file_write(ref, "../../../x", 10));
    assert_fails(nb_base_resolve("some-org/a.model-1", &dir), NB_EINPUT, "no such model");
    assert_fails(nb_base_resolve("../escape", &dir), NB_EINPUT, "not a hub name");
    assert_fails(nb_base_resolve("a/b/c", &dir), NB_EINPUT, "not a hub name");
    assert_fails(nb_base_resolve("", &dir), NB_EINPUT, "not a hub name");
    assert_ok(nb_base_resolve(nb_test_tmp(), &dir));
    assert_string_equal(dir, nb_test_tmp());
    free(dir);
    if (saved) setenv("HF_HUB_CACHE", saved, 1);
    else unsetenv("HF_HUB_CACHE");
    free(hub);
    free(repo);
    free(snap);
    free(refs);
    free(ref);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_own_folders),    cmocka_unit_test(loads_vectors),
        cmocka_unit_test(reinit_is_independent_of_threads),
        cmocka_unit_test(damaged_folders),      cmocka_unit_test(unaligned_data),
        cmocka_unit_test(tied_head_and_extras), cmocka_unit_test(sha256_is_remembered),
        cmocka_unit_test(hub_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
