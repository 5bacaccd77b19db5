/* Target: the JSON that describes one weight of a checkpoint in 4 bits. All else of the folder is as it should be, and
 * the file's header is made to fit, so that whatever the text says is what decides. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/weights.h"
#include "tests/fuzz/fuzz.h"

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 8, \"hidden_size\": 8, "
    "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
    "\"head_dim\": 4, \"rms_norm_eps\": 1e-5, \"torch_dtype\": \"float32\", \"tie_word_embeddings\": true, "
    "\"max_position_embeddings\": 16, \"bos_token_id\": 1, \"eos_token_id\": 2, \"quantization_config\": "
    "{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, \"bnb_4bit_quant_type\": \"nf4\"}}";

typedef struct file {
    nb_text header, data;
} file;

/* data NULL: zeros */
static void add(file *f, const char *module, const char *part, const char *dtype, const char *shape, size_t bytes,
                const void *data) {
    static const char zeros[256];
    nb_text_printf(&f->header, "%s\"model.%s.weight%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                   f->header.n ? "," : "{", module, part, dtype, shape, f->data.n, f->data.n + bytes);
    nb_text_add(&f->data, data ? data : zeros, bytes);
}

/* A layer of 8 columns in blocks of 64. */
static void add_layer(file *f, const char *module, int rows, fuzz_part state) {
    char name[64], bytes[24], good[128], length[24];
    snprintf(name, sizeof name, "layers.0.%s", module);
    snprintf(bytes, sizeof bytes, "%d,1", rows * 4);
    snprintf(good, sizeof good, "{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"float32\",\"shape\":[%d,8]}",
             rows);
    if (!state.data) state = (fuzz_part){(const uint8_t *)good, strlen(good)};
    snprintf(length, sizeof length, "%zu", state.n);
    add(f, name, "", "U8", bytes, (size_t)rows * 4, NULL);
    add(f, name, ".absmax", "F32", "1", 4, NULL);
    add(f, name, ".quant_map", "F32", "16", 64, NULL);
    add(f, name, ".quant_state.bitsandbytes__nf4", "U8", length, state.n, state.data);
}

void fuzz_read_quant_state(const uint8_t *data, size_t n) {
    const nb_base_options o = {.quantized_cache = "", .keep_quantized = true};
    nb_base *b;
    file f = {0};
    if (!n) return;
    char *dir = nb_strdup(fuzz_file("nf4/config.json", config, sizeof config - 1));
    *strrchr(dir, '/') = 0;
    add(&f, "embed_tokens", "", "F32", "8,8", 256, NULL);
    add(&f, "norm", "", "F32", "8", 32, NULL);
    add(&f, "layers.0.input_layernorm", "", "F32", "8", 32, NULL);
    add(&f, "layers.0.post_attention_layernorm", "", "F32", "8", 32, NULL);
    add_layer(&f, "self_attn.q_proj", 8, (fuzz_part){data, n});
    add_layer(&f, "self_attn.k_proj", 4, (fuzz_part){0});
    add_layer(&f, "self_attn.v_proj", 4, (fuzz_part){0});
    add_layer(&f, "self_attn.o_proj", 8, (fuzz_part){0});
    add_layer(&f, "mlp.gate_proj", 8, (fuzz_part){0});
    add_layer(&f, "mlp.up_proj", 8, (fuzz_part){0});
    add_layer(&f, "mlp.down_proj", 8, (fuzz_part){0});
    nb_text_puts(&f.header, "}");
    fuzz_safetensors("nf4/model.safetensors", (fuzz_part){(uint8_t *)f.header.s, f.header.n},
                     (fuzz_part){(uint8_t *)f.data.s, f.data.n});
    if (nb_base_load(&b, dir, &o) == NB_OK) {
        float x[64];
        nb_weight_decode(x, 8, &b->layer[0].lin[NB_Q].w, 0, 8, 0, 8);
        nb_base_free(b);
    }
    nb_text_free(&f.header);
    nb_text_free(&f.data);
    free(dir);
}
