#include "adapters/session.h"

#include <stdlib.h>
#include <string.h>

#include "adapters/tokenizer_open.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"

typedef struct manifest_facts {
    const char *base, *chat_template, *compute_dtype, *lm_head_quant;
    int64_t sequence_len; /* 0: not said */
    bool load_in_4bit, double_quant, present;
} manifest_facts;

static nb_status read_facts(manifest_facts *f, const json_t *m, const char *dir) {
    *f = (manifest_facts){.double_quant = true};
    if (!m) return NB_OK;
    f->present = true;
    NB_TRY(nb_json_str(m, "base", &f->base, dir));
    NB_TRY(nb_json_str(m, "chat_template", &f->chat_template, dir));
    NB_TRY(nb_json_str(m, "compute_dtype", &f->compute_dtype, dir));
    NB_TRY(nb_json_str(m, "lm_head_quant", &f->lm_head_quant, dir));
    NB_TRY(nb_json_int(m, "sequence_len", &f->sequence_len, dir));
    NB_TRY(nb_json_bool(m, "load_in_4bit", &f->load_in_4bit, dir));
    return nb_json_bool(m, "double_quant", &f->double_quant, dir);
}

static nb_status choose_dtype(const char *name, const char *device, nb_dtype *out) {
    static const struct { const char *name; nb_dtype dtype; } known[] = {
        {"f32", NB_F32}, {"float32", NB_F32}, {"fp32", NB_F32}, {"bf16", NB_BF16}, {"bfloat16", NB_BF16},
    };
    *out = nb_dev_has_bf16(device) ? NB_BF16 : NB_F32;
    if (!name) return NB_OK;
    for (int i = 0; i < NB_LEN(known); i++)
        if (!strcmp(name, known[i].name)) {
            *out = known[i].dtype;
            return NB_OK;
        }
    return nb_fail(NB_EINPUT, "--dtype %s: say f32 or bf16", name);
}

/* The base an adapter folder names, when the user named none. */
static nb_status base_of(const nb_session_options *o, const manifest_facts *f, const char **base, json_t **config) {
    *base = o->base ? o->base : f->base;
    if (*base || !o->adapter) return NB_OK;
    char *path = nb_path_join(o->adapter, "adapter_config.json");
    nb_status st = nb_json_load(path, config);
    if (st == NB_OK) st = nb_json_str(*config, "base_model_name_or_path", base, path);
    free(path);
    return st;
}

static nb_status open_tokenizer(nb_session *s, const nb_session_options *o, const manifest_facts *f) {
    const char *from = o->tokenizer ? o->tokenizer : s->base->dir;
    s->own_tokenizer = !o->tokenizer && o->adapter && nb_adapter_has_tokenizer(o->adapter);
    NB_TRY(nb_tokenizer_open(&s->tokenizer, s->own_tokenizer ? o->adapter : from));
    const char *name = f->chat_template ? f->chat_template : "tokenizer_default";
    if (nb_chat_template_find(&s->chat, name, s->tokenizer) != NB_OK) s->chat = NULL; /* only chat needs one */
    return NB_OK;
}

static nb_status quantize_head(nb_session *s, const nb_session_options *o, const manifest_facts *f) {
    const char *name = o->lm_head_quant ? o->lm_head_quant : f->lm_head_quant ? f->lm_head_quant : "none";
    for (nb_head_quant q = NB_HEAD_STORED; q <= NB_HEAD_INT8; q++)
        if (!strcmp(name, nb_head_quant_name(q))) return nb_base_quantize_head(s->base, q, o->quantized_cache);
    return nb_fail(NB_EINPUT, "lm_head_quant \"%.20s\": none, nf4 or int8", name);
}

static nb_status open_parts(nb_session *s, const nb_session_options *o, const manifest_facts *f) {
    nb_dtype dtype;
    json_t *config = NULL;
    const char *base;
    const char *device = o->device ? o->device : "auto";
    NB_TRY(choose_dtype(o->dtype ? o->dtype : f->compute_dtype, device, &dtype));
    s->device = device;
    NB_TRY(nb_dev_open(&s->dev, device, dtype));
    nb_status st = base_of(o, f, &base, &config);
    if (st == NB_OK && !base) st = nb_fail(NB_EINPUT, "no base model given (--base DIR) and the adapter names none");
    nb_base_options bo = {.load_in_4bit = o->load_in_4bit < 0 ? f->load_in_4bit : o->load_in_4bit,
                          .double_quant = f->double_quant, .quantized_cache = o->quantized_cache,
                          .keep_quantized = o->load_in_4bit < 0 || o->keep_quantized};
    if (st == NB_OK) st = nb_base_open(&s->base, base, &bo);
    json_decref(config);
    NB_TRY(st);
    if (o->adapter && !f->present && o->load_in_4bit < 0)
        nb_warn("%s has no nibble_manifest.json: the base is used as it is stored (--load-in-4bit for a QLoRA adapter)",
                o->adapter);
    NB_TRY(open_tokenizer(s, o, f));
    int64_t more = 0;
    if (o->adapter) NB_TRY(nb_adapter_rows_beyond(o->adapter, &s->base->spec, &more));
    NB_TRY(nb_base_extend(s->base, more));
    NB_TRY(nb_base_ready(s->base, &bo));
    NB_TRY(quantize_head(s, o, f));
    NB_TRY(nb_model_open(&s->model, s->base, s->dev, o->positions ? o->positions : s->base->spec.context,
                         f->sequence_len));
    return o->adapter ? nb_adapter_load(&s->adapter, s->model, o->adapter, false) : NB_OK;
}

nb_status nb_session_open(nb_session *s, const nb_session_options *o) {
    *s = (nb_session){0};
    json_t *manifest = NULL;
    manifest_facts f = {0};
    nb_status st = NB_OK;
    if (o->adapter) st = nb_adapter_manifest(o->adapter, &manifest);
    if (st == NB_OK) st = read_facts(&f, manifest, o->adapter ? o->adapter : "");
    if (st == NB_OK) st = open_parts(s, o, &f);
    json_decref(manifest);
    if (st != NB_OK) nb_session_close(s);
    return st;
}

void nb_session_close(nb_session *s) {
    nb_adapter_free(s->adapter);
    nb_model_free(s->model);
    nb_tokenizer_free(s->tokenizer);
    nb_base_free(s->base);
    nb_arena_free(&s->arena);
    if (s->dev) nb_dev_close(s->dev);
    *s = (nb_session){0};
}
