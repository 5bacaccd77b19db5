/* Targets: files of weights, whole or in folders, and config.json. */
#include <stdlib.h>
#include <string.h>

#include "adapters/adapter.h"
#include "adapters/tokenizer_open.h"
#include "core/file.h"
#include "core/mem.h"
#include "model/gguf.h"
#include "model/safetensors.h"
#include "model/spec.h"
#include "model/weights.h"
#include "tests/fuzz/fuzz.h"

static void touch(const nb_st *s) {
    float x[64];
    for (int i = 0; i < s->n_tensors; i++) {
        const nb_st_tensor *t = &s->tensors[i];
        int64_t size = nb_dtype_size(t->dtype), n = size ? (int64_t)t->bytes / size : 0;
        bool floats = t->dtype == NB_F32 || t->dtype == NB_BF16 || t->dtype == NB_F16;
        if (floats && n) nb_st_read_f32(t, x, n > 64 ? n - 64 : 0, n > 64 ? 64 : n);
        if (nb_st_find(s, t->name) == NULL) abort();
    }
}

void fuzz_read_safetensors(const uint8_t *data, size_t n) {
    nb_st s;
    if (nb_st_open_file(&s, fuzz_file("x.safetensors", data, n)) != NB_OK) return;
    touch(&s);
    nb_st_close(&s);
}

/* The same file as a base, and as its tokenizer. */
static void gguf_as_base(const char *file) {
    const nb_base_options o = {.quantized_cache = ""};
    nb_base *b;
    nb_tokenizer *t;
    static const char text[] = " ab ba<|end|>c";
    if (nb_base_load(&b, file, &o) == NB_OK) nb_base_free(b);
    if (nb_tokenizer_open(&t, file) != NB_OK) return;
    fuzz_use(t, (fuzz_part){(const uint8_t *)text, sizeof text - 1});
    nb_tokenizer_free(t);
}

void fuzz_read_gguf(const uint8_t *data, size_t n) {
    const char *file = fuzz_file("x.gguf", data, n);
    nb_gguf g;
    gguf_as_base(file);
    if (nb_gguf_open(&g, file) != NB_OK) return;
    for (int64_t i = 0; i < g.n_keys; i++) {
        const char *name = g.keys[i].name;
        int64_t whole;
        double real;
        if (!nb_gguf_find_key(&g, name)) abort();
        nb_gguf_int(&g, name, &whole);
        nb_gguf_real(&g, name, &real);
        free(nb_gguf_str(&g, name));
    }
    for (int64_t i = 0; i < g.n_tensors; i++) {
        const nb_gguf_tensor *t = &g.tensors[i];
        int block = nb_format_block(nb_gguf_type_format(t->type));
        float x[256];
        if (!nb_gguf_find_tensor(&g, t->name) || block > NB_LEN(x) || t->ne[0] % block) abort();
        if (t->bytes) nb_gguf_decode(t->type, x, t->data, block);
    }
    nb_gguf_close(&g);
}

void fuzz_read_config(const uint8_t *data, size_t n) {
    char *dir = nb_strdup(fuzz_file("config/config.json", data, n));
    nb_spec s;
    *strrchr(dir, '/') = 0;
    if (nb_spec_load(&s, dir) == NB_OK && s.layers) {
        free(nb_spec_linear_name(&s, s.layers - 1, NB_DOWN));
        double *freq = nb_calloc(NB_MAX_ROT / 2, sizeof *freq);
        nb_rope_inv_freq(&s.rope[0], s.context, freq);
        free(freq);
        if (nb_spec_parameters(&s) <= 0) abort();
    }
    free(dir);
}

/* config.json, the header of model.safetensors, its data. */
void fuzz_read_base(const uint8_t *data, size_t n) {
    fuzz_part rest = {data, n}, config = fuzz_take(&rest), header = fuzz_take(&rest);
    char *dir = nb_strdup(fuzz_file("base/config.json", config.data, config.n));
    const nb_base_options o = {.quantized_cache = "", .keep_quantized = true};
    nb_base *b;
    fuzz_safetensors("base/model.safetensors", header, rest);
    *strrchr(dir, '/') = 0;
    if (nb_base_load(&b, dir, &o) == NB_OK) nb_base_free(b);
    free(dir);
}

/* ---- a small base, fixed, that adapters are read for ---- */

static const char tiny[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 8, \"hidden_size\": 8, "
    "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
    "\"head_dim\": 4, \"rms_norm_eps\": 1e-5, \"torch_dtype\": \"float32\", \"tie_word_embeddings\": true, "
    "\"max_position_embeddings\": 16, \"bos_token_id\": 1, \"eos_token_id\": 2}";

static nb_model *tiny_model(void) {
    static nb_base *base;
    static nb_dev *dev;
    static nb_model *model;
    if (model) return model;
    char *dir = nb_strdup(fuzz_file("tiny/config.json", tiny, sizeof tiny - 1));
    *strrchr(dir, '/') = 0;
    const nb_base_options o = {.quantized_cache = "", .reinit = true};
    if (nb_base_load(&base, dir, &o) != NB_OK || nb_dev_open(&dev, "cpu", NB_F32) != NB_OK ||
        nb_model_open(&model, base, dev, 16, 16) != NB_OK)
        abort();
    free(dir);
    return model;
}

/* adapter_config.json, the header of adapter_model.safetensors, its data. */
void fuzz_read_adapter(const uint8_t *data, size_t n) {
    fuzz_part rest = {data, n}, config = fuzz_take(&rest), header = fuzz_take(&rest);
    char *dir = nb_strdup(fuzz_file("adapter/adapter_config.json", config.data, config.n));
    nb_adapter *a;
    fuzz_safetensors("adapter/adapter_model.safetensors", header, rest);
    *strrchr(dir, '/') = 0;
    if (nb_adapter_load(&a, tiny_model(), dir, n & 1) == NB_OK) nb_adapter_free(a);
    free(dir);
}
