#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "model/family.h"

#define LLAMA_NAMES                                                                                                \
    .embed = "model.embed_tokens", .final_norm = "model.norm", .head = "lm_head", .layer = "model.layers.%lld.",   \
    .linear = {[NB_Q] = "self_attn.q_proj", [NB_K] = "self_attn.k_proj", [NB_V] = "self_attn.v_proj",              \
               [NB_O] = "self_attn.o_proj", [NB_GATE] = "mlp.gate_proj", [NB_UP] = "mlp.up_proj",                  \
               [NB_DOWN] = "mlp.down_proj"},                                                                       \
    .norm = {[NB_NORM1] = "input_layernorm", [NB_NORM2] = "post_attention_layernorm"}

static const nb_family families[] = {
    /* Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM2 */
    {"llama", "LlamaForCausalLM", .context = 2048, .norm_eps = 1e-6, .rope_theta = 1e4, LLAMA_NAMES},
    {"mistral", "MistralForCausalLM", .context = 131072, .kv_heads = 8, .has_window = true, .window = 4096,
     .norm_eps = 1e-6, .rope_theta = 1e4, LLAMA_NAMES},
};

const nb_family *nb_family_find(const char *model_type, const char *architecture) {
    for (int i = 0; i < NB_LEN(families); i++)
        if (!strcmp(families[i].model_type, model_type) && !strcmp(families[i].architecture, architecture))
            return &families[i];
    return NULL;
}

char *nb_families_text(void) {
    nb_text t = {0};
    for (int i = 0; i < NB_LEN(families); i++)
        nb_text_printf(&t, "%s%s/%s", i ? ", " : "", families[i].architecture, families[i].model_type);
    return t.s;
}

static const nb_family *family(const nb_spec *s) {
    const nb_family *f = nb_family_find(s->family, s->architecture);
    NB_ASSERT(f);
    return f;
}

static char *in_layer(const nb_family *f, int64_t layer, const char *name) {
    char prefix[64];
    snprintf(prefix, sizeof prefix, f->layer, (long long)layer);
    return nb_asprintf("%s%s", prefix, name);
}

char *nb_spec_linear_name(const nb_spec *s, int64_t layer, nb_slot slot) {
    return in_layer(family(s), layer, family(s)->linear[slot]);
}

char *nb_spec_norm_name(const nb_spec *s, int64_t layer, nb_norm_slot slot) {
    return in_layer(family(s), layer, family(s)->norm[slot]);
}

const char *nb_spec_embed_name(const nb_spec *s) { return family(s)->embed; }
const char *nb_spec_final_norm_name(const nb_spec *s) { return family(s)->final_norm; }
const char *nb_spec_head_name(const nb_spec *s) { return family(s)->head; }
