/* Which tensor of a file is stored in which type: as llama.cpp's llama-quantize has it under these names. */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "model/gguf_map.h"

static const nb_gguf_mix mixes[] = {
    {"f32", 0, NB_GGUF_F32, NB_GGUF_F32, NB_GGUF_F32, NB_GGUF_F32, NB_GGUF_F32},
    {"f16", 1, NB_GGUF_F16, NB_GGUF_F16, NB_GGUF_F16, NB_GGUF_F16, NB_GGUF_F16},
    {"bf16", 32, NB_GGUF_BF16, NB_GGUF_BF16, NB_GGUF_BF16, NB_GGUF_BF16, NB_GGUF_BF16},
    {"q8_0", 7, NB_GGUF_Q8_0, NB_GGUF_Q8_0, NB_GGUF_Q8_0, NB_GGUF_Q8_0, NB_GGUF_Q8_0},
    {"q6_k", 18, NB_GGUF_Q6_K, NB_GGUF_Q6_K, NB_GGUF_Q6_K, NB_GGUF_Q8_0, NB_GGUF_Q6_K},
    {"q5_k_m", 17, NB_GGUF_Q5_K, NB_GGUF_Q6_K, NB_GGUF_Q6_K, NB_GGUF_Q8_0, NB_GGUF_Q5_K},
    {"q4_k_m", 15, NB_GGUF_Q4_K, NB_GGUF_Q6_K, NB_GGUF_Q6_K, NB_GGUF_Q8_0, NB_GGUF_Q5_K},
    {"q5_0", 8, NB_GGUF_Q5_0, NB_GGUF_Q5_0, NB_GGUF_Q6_K, NB_GGUF_Q8_0, NB_GGUF_Q5_0},
    {"q4_0", 2, NB_GGUF_Q4_0, NB_GGUF_Q4_0, NB_GGUF_Q6_K, NB_GGUF_Q8_0, NB_GGUF_Q4_0},
};

const char nb_gguf_mix_names[] = "f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q5_0 or q4_0";

const nb_gguf_mix *nb_gguf_mix_find(const char *name) {
    static const char *const short_for[][2] = {{"q4_k", "q4_k_m"}, {"q5_k", "q5_k_m"}};
    for (int i = 0; i < NB_LEN(short_for); i++)
        if (!strcmp(name, short_for[i][0])) name = short_for[i][1];
    for (int i = 0; i < NB_LEN(mixes); i++)
        if (!strcmp(name, mixes[i].name)) return &mixes[i];
    return NULL;
}

/* The layers whose attn_v, attn_qkv and ffn_down (of experts too) get more bits: the first and last eighth, and every
 * third between. */
static bool gets_more(int64_t l, int64_t layers) {
    const int64_t eighth = layers / 8;
    return l < eighth || l >= 7 * layers / 8 || (l - eighth) % 3 == 2;
}

nb_gguf_part nb_gguf_part_of(const char *name, int64_t layers, int64_t experts, bool tied) {
    static const struct { const char *module; bool more; nb_gguf_part eight; } modules[] = {
        {"attn_v.weight", true, NB_GGUF_EIGHT_KV}, {"attn_qkv.weight", true, NB_GGUF_EIGHT_KV},
        {"attn_k.weight", false, NB_GGUF_EIGHT_KV}, {"attn_output.weight", false, NB_GGUF_EIGHT_O},
        {"ffn_down.weight", true, NB_GGUF_PLAIN}, {"ffn_down_exps.weight", true, NB_GGUF_PLAIN},
        {"ffn_down_shexp.weight", true, NB_GGUF_PLAIN},
    };
    char module[NB_GGUF_MAX_NAME + 1];
    long long l;
    if (!strcmp(name, "output.weight") || (tied && !strcmp(name, "token_embd.weight"))) return NB_GGUF_OUTPUT;
    if (!strcmp(name, "position_embd.weight")) return NB_GGUF_WHOLE;
    if (sscanf(name, "blk.%lld.%63s", &l, module) != 2) return NB_GGUF_PLAIN;
    if (!strcmp(module, "ffn_gate_inp.weight")) return NB_GGUF_WHOLE;
    for (int i = 0; i < NB_LEN(modules); i++) {
        if (strcmp(module, modules[i].module) != 0) continue;
        if (experts == 8 && modules[i].eight) return modules[i].eight;
        return modules[i].more && gets_more(l, layers) ? NB_GGUF_MORE : NB_GGUF_PLAIN;
    }
    return NB_GGUF_PLAIN;
}

/* What a type gives way to where rows are not whole blocks of it. */
static nb_gguf_type smaller_blocks(nb_gguf_type t) {
    switch (t) {
    case NB_GGUF_Q4_K: return NB_GGUF_Q5_0;
    case NB_GGUF_Q5_K: return NB_GGUF_Q5_1;
    case NB_GGUF_Q6_K: return NB_GGUF_Q8_0;
    default: return NB_GGUF_F16;
    }
}

nb_gguf_type nb_gguf_item_type(const nb_gguf_item *it, const nb_gguf_mix *mix) {
    const nb_gguf_type of_part[] = {mix->type, mix->more, mix->output, mix->eight_kv, mix->eight_o, NB_GGUF_F32};
    nb_gguf_type t = it->n_dims == 1 ? NB_GGUF_F32 : of_part[it->part];
    while (it->n_dims > 1 && it->cols % nb_format_block(nb_gguf_type_format(t))) t = smaller_blocks(t);
    return t;
}
