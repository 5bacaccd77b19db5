/* The 4-bit base: quantized on load, cached, written as a folder, read as bitsandbytes saves it. */
#include "tests/test.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cpu.h"
#include "core/hash.h"
#include "core/log.h"
#include "model/weights.h"
#include "tests/tiny_base.h"

static const nb_base_options plain = {0};

/* Large enough for several pieces of work in one matrix, with blocks that straddle rows and a short last one. */
#define WIDE                                                                                                  \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 8, "              \
    "\"hidden_size\": 330, \"intermediate_size\": 813, \"num_hidden_layers\": 1, \"num_attention_heads\": 5, " \
    "\"num_key_value_heads\": 1, \"head_dim\": 66, \"tie_word_embeddings\": true, \"torch_dtype\": \""

/* Each matrix is what quantizing it whole, in one call, gives. */
static void check_quantized(const nb_base *q, const nb_base *raw) {
    for (int64_t l = 0; l < q->spec.layers; l++)
        for (int k = 0; k < nb_spec_slots(&q->spec); k++) {
            const nb_weight *w = &q->layer[l].lin[k].w, *x = &raw->layer[l].lin[k].w;
            if (!x->rows || nb_spec_stays_float(k)) continue;
            int64_t n = x->rows * x->cols, blocks = (n + 63) / 64, nested = (blocks + 255) / 256;
            uint8_t *packed = nb_malloc((size_t)n / 2 + 1), *u8 = nb_malloc((size_t)blocks);
            float *absmax = nb_malloc((size_t)blocks * 4), *stats = nb_malloc((size_t)nested * 4), offset;
            assert_int_equal(w->format, NB_FMT_NF4);
            assert_int_equal((int)w->nf4.dtype, (int)x->format);
            nb_nf4_quantize(packed, absmax, x->data, (nb_dtype)x->format, n);
            assert_memory_equal(w->data, packed, (size_t)(n + 1) / 2);
            assert_memory_equal(w->nf4.code, nb_nf4_code, 64);
            if (q->double_quant) {
                nb_nf4_quantize_absmax(u8, stats, &offset, absmax, blocks);
                assert_memory_equal(w->nf4.absmax_u8, u8, (size_t)blocks);
                assert_memory_equal(w->nf4.nested_absmax, stats, (size_t)nested * 4);
                assert_memory_equal(w->nf4.nested_code, nb_dynamic_code, 1024);
                assert_true(w->nf4.nested_offset == offset);
            } else {
                assert_memory_equal(w->nf4.absmax, absmax, (size_t)blocks * 4);
            }
            free(packed);
            free(u8);
            free(absmax);
            free(stats);
        }
}

static void quantizes_on_load(void **state) {
    (void)state;
    static const char *const dtypes[] = {"bfloat16", "float16", "float32"};
    for (int i = 0; i < 6; i++) {
        char *config = nb_asprintf("%s%s\"}", WIDE, dtypes[i / 2]), *dir = tiny_base("wide", config, 3);
        char *cache = nb_path_join(nb_test_tmp(), "q-cache");
        nb_base_options memory = {.load_in_4bit = true, .double_quant = i & 1, .quantized_cache = ""}, cached = memory;
        cached.quantized_cache = cache;
        nb_base *raw, *q, *c, *again, *one;
        assert_ok(nb_base_load(&raw, dir, &plain));
        assert_ok(nb_base_load(&q, dir, &memory));
        assert_true(q->quantized && q->double_quant == (i & 1) && !q->prequantized);
        check_quantized(q, raw);
        assert_int_equal(q->embed.format, raw->embed.format);
        assert_ok(nb_base_load(&c, dir, &cached));     /* builds the cache */
        assert_ok(nb_base_load(&again, dir, &cached)); /* maps it */
        check_quantized(c, raw);
        check_quantized(again, raw);
        nb_threads_set(1);
        assert_ok(nb_base_load(&one, dir, &memory));
        nb_threads_set(0);
        assert_same_values(one, q);
        assert_string_equal(q->sha256, raw->sha256); /* the base's name does not depend on how it is held */
        assert_true(nb_base_bytes(q, false) < nb_base_bytes(raw, false) / 2);
        if (i & 1) assert_int_equal(nb_base_bytes(raw, true), nb_base_bytes(q, true));
        nb_base_free(raw);
        nb_base_free(q);
        nb_base_free(c);
        nb_base_free(again);
        nb_base_free(one);
        free(config);
        free(dir);
        free(cache);
    }
}

/* The only folder in `dir`; caller frees. */
static char *only_child(const char *dir) {
    char **names, *path;
    int n;
    assert_ok(nb_list_dir(dir, &names, &n));
    assert_int_equal(n, 1);
    path = nb_path_join(dir, names[0]);
    free(names[0]);
    free(names);
    return path;
}

static void cache_is_used_and_repaired(void **state) {
    (void)state;
    char *dir = tiny_base("cached", TINY_LLAMA "}", 5), *root = nb_path_join(nb_test_tmp(), "cache");
    nb_base_options o = {.load_in_4bit = true, .double_quant = true, .quantized_cache = root};
    nb_base *good, *b;
    struct stat before, after;
    assert_ok(nb_base_load(&good, dir, &o));
    char *place = only_child(root), *file = nb_path_join(place, "model.safetensors");
    char *manifest = nb_path_join(place, "manifest.json");
    assert_int_equal(stat(file, &before), 0);
    assert_ok(nb_base_load(&b, dir, &o));
    nb_base_free(b);
    assert_int_equal(stat(file, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino); /* not written again */
    nb_log_set_level(NB_LOG_QUIET);
    for (int i = 0; i < 5; i++) { /* every damage is noticed and repaired */
        if (i == 0) assert_int_equal(truncate(file, before.st_size - 1), 0);
        if (i == 1) overwrite(file, 8, "[");
        if (i == 2) overwrite(manifest, 0, "{{");
        if (i == 3) assert_int_equal(unlink(file), 0);
        if (i == 4) assert_ok(nb_file_write(manifest, "{\"version\": 1, \"base_sha256\": \"0\"}", 34));
        assert_ok(nb_base_load(&b, dir, &o));
        assert_same_values(good, b);
        nb_base_free(b);
        assert_int_equal(stat(file, &after), 0);
        assert_int_equal(before.st_size, after.st_size);
    }
    nb_log_set_level(NB_LOG_INFO);
    o.double_quant = false; /* a cache of its own */
    assert_ok(nb_base_load(&b, dir, &o));
    assert_false(b->double_quant);
    nb_base_free(b);
    char **names;
    int n;
    assert_ok(nb_list_dir(root, &names, &n));
    assert_int_equal(n, 2);
    free(names[0]);
    free(names[1]);
    free(names);
    nb_base_free(good);
    free(dir);
    free(root);
    free(place);
    free(file);
    free(manifest);
}

/* Runs f with files limited to `bytes`: writing beyond fails as on a full disk. */
static void with_file_limit(rlim_t bytes, void (*f)(void *), void *arg) {
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = bytes;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    f(arg);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_DFL);
}

static void quantize_it(void *arg) {
    load_args *a = arg;
    a->st = nb_base_quantize_dir(a->dir, a->out, true);
}

static void goes_on_without_a_cache(void **state) {
    (void)state;
    char *dir = tiny_base("uncached", TINY_LLAMA "}", 6), *root = nb_path_join(nb_test_tmp(), "full");
    nb_base *good, *b;
    nb_base_options o = {.load_in_4bit = true, .double_quant = true, .quantized_cache = ""};
    assert_ok(nb_base_load(&good, dir, &o));
    nb_log_set_level(NB_LOG_QUIET);
    o.quantized_cache = "/dev/null/cache";
    assert_ok(nb_base_load(&b, dir, &o));
    assert_same_values(good, b);
    nb_base_free(b);
    load_args a = {.dir = dir, .o = o};
    a.o.quantized_cache = root;
    with_file_limit(4096, load_it, &a);
    assert_ok(a.st);
    assert_same_values(good, a.b);
    nb_base_free(a.b);
    char *place = only_child(root), **names;
    int n;
    assert_ok(nb_list_dir(place, &names, &n)); /* nothing half-written is left */
    assert_int_equal(n, 0);
    free(names);
    char *out = nb_path_join(nb_test_tmp(), "never");
    a.out = out;
    with_file_limit(4096, quantize_it, &a);
    assert_int_equal(a.st, NB_EIO);
    assert_false(nb_file_exists(out));
    nb_log_set_level(NB_LOG_INFO);
    nb_base_free(good);
    free(dir);
    free(root);
    free(place);
    free(out);
}

static void quantized_folder(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        char *config = nb_asprintf("%s%s\"}", WIDE, i ? "float32" : "bfloat16"), *dir = tiny_base("plain", config, 8);
        char *out = nb_path_join(nb_test_tmp(), "four"), *tok = nb_path_join(dir, "tokenizer.json");
        char *bin = nb_path_join(dir, "extra.bin"), *tok_out = nb_path_join(out, "tokenizer.json");
        char *bin_out = nb_path_join(out, "extra.bin"), *cfg_out = nb_path_join(out, "config.json");
        nb_base_options o = {.load_in_4bit = true, .double_quant = i == 0, .quantized_cache = ""};
        nb_base *onload, *b;
        json_t *c;
        assert_ok(nb_remove_tree(out));
        assert_ok(nb_file_write(tok, "{}", 2));
        assert_ok(nb_file_write(bin, "x", 1));
        assert_ok(nb_base_load(&onload, dir, &o));
        assert_ok(nb_base_quantize_dir(dir, out, i == 0));
        assert_true(nb_file_exists(tok_out) && !nb_file_exists(bin_out));
        assert_ok(nb_base_load(&b, out, &o));
        assert_true(b->prequantized && b->quantized && b->double_quant == (i == 0));
        assert_same_values(onload, b);
        assert_memory_equal(b->embed.data, onload->embed.data, (size_t)nb_weight_bytes(&b->embed));
        assert_memory_equal(b->final_norm, onload->final_norm, (size_t)b->spec.hidden * 4);
        nb_base_free(b);
        assert_fails(nb_base_load(&b, out, &plain), NB_EINPUT, "is saved in 4 bits");
        assert_ok(nb_base_load(&b, out, &(nb_base_options){.keep_quantized = true}));
        nb_base_free(b);
        assert_ok(nb_json_load(cfg_out, &c));
        const json_t *q = json_object_get(c, "quantization_config");
        assert_string_equal(json_string_value(json_object_get(q, "quant_method")), "bitsandbytes");
        assert_true(json_is_true(json_object_get(q, "bnb_4bit_use_double_quant")) == (i == 0));
        json_decref(c);
        assert_fails(nb_base_quantize_dir(dir, out, true), NB_EINPUT, "not empty");
        assert_fails(nb_base_quantize_dir(dir, tok, true), NB_EINPUT, "is a file");
        assert_ok(nb_remove_tree(out));
        assert_ok(nb_mkdirs(out)); /* an empty folder may be there */
        assert_ok(nb_base_quantize_dir(dir, out, true));
        nb_base_free(onload);
        char *all[] = {config, dir, out, tok, bin, tok_out, bin_out, cfg_out};
        for (int k = 0; k < NB_LEN(all); k++) free(all[k]);
    }
}

static void infinite_weights(void **state) {
    (void)state;
    static const change nan = {TARGET, .text = "\xff\xff"};
    char *dir = tiny_base("nan", TINY_LLAMA "}", 9);
    nb_base *b;
    rewrite(dir, apply, &nan);
    for (int i = 0; i < 2; i++) {
        nb_base_options o = {.load_in_4bit = true, .quantized_cache = i ? "" : nb_test_tmp()};
        assert_fails(nb_base_load(&b, dir, &o), NB_ENUMERIC, "model.layers.1.mlp.up_proj.weight holds NaN");
    }
    free(dir);
}

#define STATE TARGET ".quant_state.bitsandbytes__nf4"
#define STATE_TEXT(type, block, dtype, shape)                                                                    \
    "{\"quant_type\": \"" type "\", \"blocksize\": " block ", \"dtype\": \"" dtype "\", \"shape\": [" shape "], "      \
    "\"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.5}"

static void prequantized_forms(void **state) {
    (void)state;
    static const change changes[] = {
        {TARGET, NULL, 216, 1, NB_BF16 + 1, .status = NB_OK}, /* bnb_4bit_quant_storage: the same bytes, other names */
        {TARGET, NULL, 108, 1, NB_F32 + 1, .status = NB_OK},
        {TARGET, NULL, 431, 1, .status = NB_ESHAPE, .message = "holds 431 bytes; [36, 24] in 4 bits takes 432"},
        {TARGET, "", .status = NB_ESHAPE, .message = "holds 0 bytes"},
        {TARGET ".absmax", "", .status = NB_EINPUT, .message = TARGET ".absmax"},
        {TARGET ".absmax", NULL, 13, 0, .status = NB_ESHAPE, .message = "holds 13 bytes of U8, wanted 14"},
        {TARGET ".quant_map", NULL, 15, 0, .status = NB_ESHAPE, .message = "wanted 16 elements of F32"},
        {TARGET ".nested_absmax", NULL, 2, 0, .status = NB_ESHAPE, .message = "wanted 1 elements"},
        {TARGET ".nested_quant_map", "", .status = NB_EINPUT, .message = "nested_quant_map"},
        {STATE, TARGET ".quant_state.bitsandbytes__fp4", .status = NB_EUNSUPPORTED, .message = "FP4"},
        {STATE, "", .status = NB_EINPUT, .message = TARGET "\" holds packed bytes, and there is no \"quant_state\""},
        {STATE, .text = "no JSON", .status = NB_EINPUT, .message = "is not JSON text"},
        {STATE, .text = STATE_TEXT("nf4", "64", "bfloat16", "36, 24"), .status = NB_OK},
        {STATE, .text = STATE_TEXT("nf4", "64", "bfloat16", "24, 36"), .status = NB_ESHAPE, .message = "[24, 36]"},
        {STATE, .text = STATE_TEXT("nf4", "64", "bfloat16", "864"), .status = NB_ESHAPE, .message = "config.json says"},
        {STATE, .text = STATE_TEXT("fp4", "64", "bfloat16", "36, 24"), .status = NB_EUNSUPPORTED, .message = "\"fp4\""},
        {STATE, .text = STATE_TEXT("nf4", "0", "bfloat16", "36, 24"), .status = NB_EUNSUPPORTED, .message = "size 0"},
        {STATE, .text = STATE_TEXT("nf4", "-64", "bfloat16", "36, 24"), .status = NB_EUNSUPPORTED, .message = "-64"},
        {STATE, .text = STATE_TEXT("nf4", "63", "bfloat16", "36, 24"), .status = NB_EUNSUPPORTED, .message = "63"},
        {STATE, .text = STATE_TEXT("nf4", "128", "bfloat16", "36, 24"), .status = NB_ESHAPE, .message = "absmax"},
        {STATE, .text = STATE_TEXT("nf4", "64", "float64", "36, 24"), .status = NB_EUNSUPPORTED, .message = "float64"},
    };
    char *dir = tiny_base("pre-plain", TINY_LLAMA "}", 10), *out = nb_path_join(nb_test_tmp(), "pre");
    nb_base_options o = {.load_in_4bit = true, .double_quant = true, .quantized_cache = ""};
    nb_base *good, *b;
    assert_ok(nb_base_load(&good, dir, &o));
    for (int i = 0; i < NB_LEN(changes); i++) {
        assert_ok(nb_remove_tree(out));
        assert_ok(nb_base_quantize_dir(dir, out, true));
        rewrite(out, apply, &changes[i]);
        if (changes[i].status != NB_OK) {
            assert_fails(nb_base_load(&b, out, &o), changes[i].status, changes[i].message);
        } else {
            assert_ok(nb_base_load(&b, out, &o));
            if (!changes[i].text) assert_same_values(good, b);
            nb_base_free(b);
        }
    }
    nb_base_free(good);
    char *cfg = nb_path_join(dir, "config.json");
    static const char gptq[] = TINY_LLAMA ", \"quantization_config\": {\"quant_method\": \"gptq\"}}";
    assert_ok(nb_file_write(cfg, gptq, strlen(gptq)));
    assert_fails(nb_base_load(&b, dir, &o), NB_EUNSUPPORTED, "\"gptq\"");
    static const char eight[] = TINY_LLAMA ", \"quantization_config\": {\"quant_method\": \"bitsandbytes\", "
                                           "\"load_in_8bit\": true}}";
    assert_ok(nb_file_write(cfg, eight, strlen(eight)));
    assert_fails(nb_base_load(&b, dir, &o), NB_EUNSUPPORTED, "in 8 bits");
    free(cfg);
    free(dir);
    free(out);
}

/* ---- what bitsandbytes made: tests/golden/README.md ---- */

#define GOLDEN(rel) "tests/golden/" rel

static const nb_st_tensor *part(const nb_st *s, const char *name, const char *what) {
    char *full = nb_asprintf("%s.%s", name, what);
    const nb_st_tensor *t = nb_st_find(s, full);
    if (!t) fail_msg("the golden file lacks %s", full);
    free(full);
    return t;
}

static void assert_decodes_to(const nb_weight *w, const nb_st_tensor *want) {
    int64_t n = w->rows * w->cols;
    float *x = nb_malloc((size_t)n * 4), *y = nb_malloc((size_t)n * 4);
    nb_weight_decode(x, w->cols, w, 0, w->rows, 0, w->cols);
    nb_st_read_f32(want, y, 0, n);
    for (int64_t i = 0; i < n; i++)
        if (!(x[i] == y[i]))
            fail_msg("%s: element %lld is %g, wanted %g", want->name, (long long)i, (double)x[i], (double)y[i]);
    free(x);
    free(y);
}

static void golden_case(const nb_st *s, const char *name) {
    const nb_st_tensor *w = part(s, name, "weight"), *packed = part(s, name, "packed");
    const nb_st_tensor *absmax = part(s, name, "absmax");
    const nb_st_tensor *u8 = part(s, name, "absmax_u8"), *nested = part(s, name, "nested_absmax");
    int64_t n = w->d[0] * w->d[1], blocks = absmax->d[0], n_nested = nested->d[0];
    uint8_t *p = nb_malloc((size_t)n / 2 + 1), *u = nb_malloc((size_t)blocks);
    float *m = nb_malloc((size_t)blocks * 4), *mm = nb_malloc((size_t)n_nested * 4), offset, want_offset;
    nb_nf4_quantize(p, m, w->data, NB_BF16, n);
    assert_memory_equal(p, packed->data, packed->bytes);
    for (int64_t i = 0; i < blocks; i++) assert_close(m[i], ((const float *)absmax->data)[i], m[i] == 0 ? 1e-37 : 0);
    nb_nf4_quantize_absmax(u, mm, &offset, absmax->data, blocks);
    assert_memory_equal(u, u8->data, u8->bytes);
    memcpy(&want_offset, part(s, name, "nested_offset")->data, 4);
    assert_close(offset, want_offset, 2.5e-7 * want_offset); /* torch's order of summation */
    for (int64_t i = 0; i < n_nested; i++) assert_close(mm[i], ((const float *)nested->data)[i], 2.5e-7 * want_offset);
    nb_weight q = {.format = NB_FMT_NF4, .rows = w->d[0], .cols = w->d[1], .data = packed->data,
                   .nf4 = {.code = nb_st_find(s, "quant_map")->data, .absmax = absmax->data, .blocksize = 64,
                           .dtype = NB_BF16}};
    assert_decodes_to(&q, part(s, name, "plain"));
    q.nf4.absmax = NULL;
    q.nf4.absmax_u8 = u8->data, q.nf4.nested_absmax = nested->data, q.nf4.nested_offset = want_offset;
    q.nf4.nested_code = nb_st_find(s, "nested_quant_map")->data, q.nf4.nested_blocksize = 256;
    assert_decodes_to(&q, part(s, name, "double"));
    free(p);
    free(u);
    free(m);
    free(mm);
}

static void golden_matrices(void **state) {
    (void)state;
    json_t *cases, *c;
    size_t i;
    nb_st s;
    assert_ok(nb_json_load(GOLDEN("nf4/cases.json"), &cases));
    assert_ok(nb_st_open_file(&s, GOLDEN("nf4/cases.safetensors")));
    assert_true(json_array_size(json_object_get(cases, "cases")) >= 8);
    json_array_foreach(json_object_get(cases, "cases"), i, c)
        golden_case(&s, json_string_value(json_object_get(c, "name")));
    nb_st_close(&s);
    json_decref(cases);
}

static void golden_checkpoint(void **state) {
    (void)state;
    nb_base *b;
    int64_t n;
    nb_hex hex;
    assert_ok(nb_base_load(&b, GOLDEN("llama-bnb4"), &(nb_base_options){.load_in_4bit = true}));
    assert_true(b->prequantized && b->double_quant);
    float *x = values(b, &n);
    nb_sha256_of(x, (size_t)n * sizeof *x, hex);
    /* The same values computed with numpy from the file's tensors: the formula of QuantState in bitsandbytes. */
    assert_string_equal(hex, "5ab85a578e75d132dd7160d478e026a7ed40489a0ed570f2272f964534f35bd6");
    free(x);
    nb_base_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantizes_on_load),       cmocka_unit_test(cache_is_used_and_repaired),
        cmocka_unit_test(goes_on_without_a_cache), cmocka_unit_test(quantized_folder),
        cmocka_unit_test(infinite_weights),        cmocka_unit_test(prequantized_forms),
        cmocka_unit_test(golden_matrices),         cmocka_unit_test(golden_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
