#include "train/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/tokenizer_open.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "data/added.h"
#include "train/recompute.h"

static nb_dtype compute_dtype(const nb_config *c) {
    if (c->load_in_4bit && c->bnb_4bit_compute_dtype == NB_COMPUTE_BF16) return NB_BF16;
    if (c->load_in_4bit && c->bnb_4bit_compute_dtype == NB_COMPUTE_F32) return NB_F32;
    if (c->bf16 == NB_AUTO) return nb_dev_has_bf16(c->device) ? NB_BF16 : NB_F32;
    return c->bf16 ? NB_BF16 : NB_F32;
}

/* Rows for the tokens of lora_model_dir's adapter and of the configuration: spare ones first, then new ones. */
static nb_status make_room(nb_run *r, int known, const char *from) {
    nb_config *c = r->config;
    int64_t more = 0;
    if (c->lora_model_dir) NB_TRY(nb_adapter_rows_beyond(c->lora_model_dir, &r->base->spec, &more));
    if (known > r->base->spec.vocab + more)
        return nb_fail(NB_EINPUT, "%s: the tokenizer has %d tokens, the model's embedding only %lld rows: they do not "
                       "belong together", from, known, (long long)r->base->spec.vocab);
    int64_t beyond = nb_tokenizer_vocab_size(r->tokenizer) - r->base->spec.vocab;
    if (beyond > more) more = beyond;
    if (more > 0)
        nb_info("the vocabulary grows by %lld rows to %lld for added tokens", (long long)more,
                (long long)(r->base->spec.vocab + more));
    return nb_base_extend(r->base, more);
}

static nb_status open_tokenizer(nb_run *r) {
    nb_config *c = r->config;
    const char *from = c->tokenizer ? c->tokenizer : r->base->dir;
    bool adapters = !c->tokenizer && c->lora_model_dir && nb_adapter_has_tokenizer(c->lora_model_dir);
    if (adapters) from = c->lora_model_dir;
    NB_TRY(nb_tokenizer_open(&r->tokenizer, from));
    int known = nb_tokenizer_vocab_size(r->tokenizer);
    nb_hex as_loaded;
    snprintf(as_loaded, sizeof as_loaded, "%s", nb_tokenizer_sha256(r->tokenizer));
    NB_TRY(nb_tokens_add(r->tokenizer, c, &r->added_tokens, &r->n_added_tokens));
    nb_status st = nb_config_chat(&r->chat, c, r->tokenizer);
    if (st != NB_OK) r->chat = NULL; /* conversations alone need one, and say so */
    if (c->chat_template == NB_CHAT_JINJA || c->chat_template_kwargs) NB_TRY(st);
    r->own_tokenizer = c->tokenizer || adapters || strcmp(as_loaded, nb_tokenizer_sha256(r->tokenizer)) != 0;
    return make_room(r, known, from);
}

static bool has_tokenizer(const nb_run *r) {
    static const char *const files[] = {"tokenizer.json", "tokenizer.model"};
    bool any = r->config->tokenizer || r->config->lora_model_dir;
    for (int i = 0; i < NB_LEN(files) && !any; i++) {
        char *path = nb_path_join(r->base->dir, files[i]);
        any = nb_file_exists(path);
        free(path);
    }
    return any;
}

static nb_status open_device(nb_run *r) {
    nb_config *c = r->config;
    char *own = nb_comm_device(r->comm, c->device);
    nb_status st = nb_dev_open(&r->dev, own, compute_dtype(c));
    free(own);
    return st;
}

nb_status nb_run_open(nb_run *r, nb_config *c) {
    *r = (nb_run){.config = c};
    NB_TRY(nb_comm_open(&r->comm));
    if (r->comm->rank) nb_log_set_level(NB_LOG_QUIET);
    nb_threads_set(c->threads ? (int)c->threads : nb_comm_threads(r->comm));
    NB_TRY(nb_comm_agree(r->comm, open_device(r)));
    return nb_comm_use(r->comm, r->dev);
}

/* ---- does it fit? ---- */

nb_status nb_run_memory_limit(const nb_run *r, bool now, size_t *limit) {
    size_t total, available;
    *limit = r->config->memory_limit;
    if (*limit) return NB_OK;
    NB_TRY(r->dev->be->memory(r->dev, &total, &available));
    *limit = r->dev->be->host_memory ? (now ? available : total) : available + nb_run_memory(r).total;
    return NB_OK;
}

/* Prints the plan of a run that does not fit, and fails. advice: what to change. */
static nb_status refuse(const nb_run *r, const nb_memory_plan *m, size_t limit, const char *advice) {
    char need[16], have[16];
    nb_text text = {0};
    nb_memory_plan_text(m, &text);
    nb_info("memory    this run would take\n%s", text.s);
    nb_text_free(&text);
    return nb_fail(NB_ENOMEM, "this run needs %s%s, %s: %s. %s", m->partly ? "more than " : "",
                   nb_bytes((double)m->total, need),
                   r->config->memory_limit ? "memory_limit allows" : r->dev->be->host_memory ? "the machine has"
                                                                                             : "the GPU has for it",
                   nb_bytes((double)limit, have), advice);
}

/* Before the base goes to a device that it alone would overfill. What is trained on it is not planned yet. */
static nb_status does_base_fit(const nb_run *r) {
    if (r->dev->be->host_memory || r->config->zero_stage == NB_ZERO_BASE) return NB_OK;
    const size_t base = nb_resident_bytes(r->base);
    const nb_memory_plan m = {.base = base, .total = base, .partly = true};
    size_t limit;
    NB_TRY(nb_run_memory_limit(r, false, &limit));
    return m.total <= limit ? NB_OK
                            : refuse(r, &m, limit, r->base->quantized
                                                  ? "Use a smaller base, zero_stage: 3 over several GPUs, or device: cpu"
                                                  : "Use load_in_4bit: true, or device: cpu");
}

/* Refuses a run that needs more than there is, the plan printed; activations: bytes of them that are still to come. */
static nb_status does_it_fit(const nb_run *r, size_t activations) {
    nb_memory_plan m = nb_run_memory(r);
    size_t limit;
    NB_TRY(nb_run_memory_limit(r, false, &limit));
    m.activations += activations, m.total += activations;
    /* ranks on one machine share what is mapped, and nothing else */
    size_t ranks = r->dev->be->host_memory && !r->config->memory_limit ? (size_t)r->comm->local_size : 1;
    if (m.base + ranks * (m.total - m.base) <= limit) return NB_OK;
    return refuse(r, &m, limit, "Use gradient_checkpointing: auto, a smaller micro_batch_size or sequence_len "
                                "(`nibble plan` shows what fits)");
}

static nb_base_options base_options(const nb_run *r) {
    const nb_config *c = r->config;
    return (nb_base_options){.load_in_4bit = c->load_in_4bit, .double_quant = c->bnb_4bit_use_double_quant,
                             .quantized_cache = c->quantized_cache, .hollow_ok = r->planning,
                             .reinit = c->reinit_weights, .seed = (uint64_t)c->seed,
                             .keep_f32 = c->reinit_weights && c->adapter == NB_ADAPTER_FULL};
}

nb_status nb_run_open_base(nb_run *r) {
    nb_config *c = r->config;
    const nb_base_options o = base_options(r);
    NB_TRY(nb_base_open(&r->base, c->base_model, &o));
    if (c->base_model_sha256 && strcmp(c->base_model_sha256, r->base->sha256) != 0)
        return nb_fail(NB_EINPUT, "%s: sha256 is %s, base_model_sha256 wants %s", c->base_model, r->base->sha256,
                       c->base_model_sha256);
    if (c->router_aux_loss_coef > 0 && !r->base->spec.experts)
        return nb_fail(NB_EINPUT, "router_aux_loss_coef is %g, and %s is no mixture of experts: leave it out",
                       c->router_aux_loss_coef, r->base->spec.architecture);
    int64_t context = r->base->spec.context;
    r->sequence_len = c->sequence_len ? c->sequence_len : context < 2048 ? context : 2048;
    if (r->sequence_len > context && !r->base->spec.learned_positions)
        nb_warn("sequence_len %lld is beyond the %lld positions the model was trained with", (long long)r->sequence_len,
                (long long)context);
    return !r->base->hollow || has_tokenizer(r) ? open_tokenizer(r) : NB_OK;
}

nb_status nb_run_open_data(nb_run *r) {
    nb_config *c = r->config;
    NB_TRY(nb_data_open(&r->data, c, r->tokenizer, r->sequence_len));
    nb_loader_options o = {.sequence_len = r->sequence_len, .micro_batch_size = c->micro_batch_size,
                           .accumulation = c->gradient_accumulation_steps,
                           .rank = r->comm->rank, .ranks = r->comm->size, .packing = c->sample_packing,
                           .shuffle = true, .epochs = c->num_epochs, .max_steps = c->max_steps,
                           .seed = (uint64_t)c->seed};
    NB_TRY(nb_loader_open(&r->loader, &r->data, &o));
    r->total_steps = nb_loader_steps(r->loader);
    return r->data.n_held_out ? nb_heldout_sets_open(&r->held_out, &r->data, c) : NB_OK;
}

nb_status nb_run_open_model(nb_run *r) {
    const nb_config *c = r->config;
    const nb_base_options o = base_options(r);
    NB_TRY(nb_base_ready(r->base, &o));
    NB_TRY(nb_base_quantize_head(r->base, (nb_head_quant)c->lm_head_quant, r->base->hollow ? "" : c->quantized_cache));
    /* Position tables for the training sequences, and room for longer held-out prompts and answers; not for all of a
     * long context (128 Ki positions would be 64 MiB that nobody reads). */
    const int64_t context = r->base->spec.context;
    int64_t positions = context < 8192 ? context : 8192;
    if (r->sequence_len > positions) positions = r->sequence_len;
    NB_TRY(does_base_fit(r));
    NB_TRY(nb_model_open_shared(&r->model, r->base, r->dev, positions, r->sequence_len,
                                c->zero_stage == NB_ZERO_BASE ? r->comm : NULL));
    if (c->router_aux_loss_coef >= 0) r->model->aux_coef = (float)c->router_aux_loss_coef;
    return NB_OK;
}

/* An adapter that is trained on has the rows it came with: a token it does not know would stay untrained. */
static nb_status adapter_has_rows(nb_run *r) {
    const nb_token_rows *rows = &r->adapter->rows;
    if (r->model->embed_trained && r->model->head.weight) return NB_OK; /* all rows are trained */
    for (int i = 0; i < r->n_added_tokens; i++) {
        bool has = false;
        for (int64_t k = 0; k < rows->n; k++) has |= rows->ids[k] == r->added_tokens[i];
        if (!has)
            return nb_fail(NB_EUNSUPPORTED, "token \"%s\" is new, but lora_model_dir %s has no row for it: tokens are "
                           "added where an adapter begins", nb_tokenizer_token(r->tokenizer, r->added_tokens[i]),
                           r->config->lora_model_dir);
    }
    free(r->added_tokens);
    r->n_added_tokens = (int)rows->n;
    r->added_tokens = nb_calloc((size_t)rows->n + 1, sizeof *r->added_tokens);
    if (rows->n) memcpy(r->added_tokens, rows->ids, (size_t)rows->n * sizeof *rows->ids);
    return NB_OK;
}

nb_status nb_run_open_adapter(nb_run *r) {
    nb_config *c = r->config;
    if (c->adapter == NB_ADAPTER_FULL) {
        NB_TRY(nb_adapter_new_full(&r->adapter, r->model));
    } else if (c->lora_model_dir) {
        NB_TRY(nb_adapter_load(&r->adapter, r->model, c->lora_model_dir, true));
        NB_TRY(adapter_has_rows(r));
        r->adapter->dropout = c->lora_dropout;
        nb_adapter_enable(r->adapter, true);
    } else {
        bool all = c->lora_target_linear ||
                   (c->lora_target_modules.n == 1 && !strcmp(c->lora_target_modules.v[0], "all-linear"));
        nb_lora_options o = {.r = c->lora_r, .alpha = c->lora_alpha, .dropout = c->lora_dropout,
                             .rslora = c->peft_use_rslora, .dora = c->peft_use_dora,
                             .ranks = &c->rank_pattern, .alphas = &c->alpha_pattern,
                             .layers = c->peft_layers_to_transform.n ? c->peft_layers_to_transform.v : NULL,
                             .n_layers = c->peft_layers_to_transform.n,
                             .save = c->lora_modules_to_save.v, .n_save = c->lora_modules_to_save.n,
                             .tie = c->peft_ensure_weight_tying,
                             .token_ids = r->added_tokens, .n_token_ids = r->n_added_tokens,
                             .seed = (uint64_t)c->seed};
        if (!all && c->lora_target_modules.scalar) o.pattern = c->lora_target_modules.v[0];
        else if (!all)
            o.targets = (const char *const *)c->lora_target_modules.v, o.n_targets = c->lora_target_modules.n;
        NB_TRY(nb_adapter_new(&r->adapter, r->model, &o));
    }
    if (r->model->head.weight && r->base->head_quant)
        return nb_fail(NB_EINPUT, "lm_head_quant: %s: the output head is trained here, and cannot be held in fewer bits "
                       "then; set it to none", nb_head_quant_name(r->base->head_quant));
    NB_TRY(nb_optimizer_open(&r->optimizer, r->adapter, c->optimizer == NB_OPTIMIZER_ADAMW_8BIT,
                             c->loraplus_lr_ratio, r->comm, c->zero_stage != NB_ZERO_NONE));
    nb_optimizer *o = &r->optimizer;
    o->beta1 = c->adam_beta1, o->beta2 = c->adam_beta2, o->epsilon = c->adam_epsilon;
    o->weight_decay = c->weight_decay, o->max_grad_norm = c->max_grad_norm;
    return NB_OK;
}

/* The generator of an evaluation stops where a chat would: at the tokenizer's end tokens, the template's end of turn,
 * and eot_tokens. */
static nb_status open_evaluator(nb_run *r) {
    nb_config *c = r->config;
    int n;
    int32_t *stop = nb_stop_ids(r->tokenizer, r->chat, &n);
    stop = nb_realloc(stop, (size_t)(n + c->eot_tokens.n) + 1, sizeof *stop);
    for (int i = 0; i < c->eot_tokens.n; i++)
        if (nb_tokenizer_token_id(r->tokenizer, c->eot_tokens.v[i]) >= 0)
            stop[n++] = nb_tokenizer_token_id(r->tokenizer, c->eot_tokens.v[i]);
    nb_evaluator_options o = {.batch_tokens = r->sequence_len * c->eval_batch_size, .stop_ids = stop, .n_stop_ids = n};
    nb_status st =
        nb_evaluator_open(&r->evaluator, r->model, &r->arena, r->tokenizer, r->held_out, r->data.n_held_out, &o);
    free(stop);
    return st;
}

nb_status nb_run_open_runners(nb_run *r) {
    nb_config *c = r->config;
    int64_t tokens = r->sequence_len * c->micro_batch_size;
    nb_need need;
    nb_recompute least = nb_recompute_full; /* for the plan in a refusal, before anything is taken from the device */
    if (c->gradient_checkpointing != NB_CHECKPOINTING_AUTO) NB_TRY(nb_recompute_choose(r, tokens, &least));
    NB_TRY(nb_runner_measure(r->model, tokens, &least, &need));
    nb_status st = does_it_fit(r, need.bytes);
    if (st == NB_OK && r->data.n_held_out) st = open_evaluator(r);
    NB_TRY(nb_comm_agree(r->comm, st));
    NB_TRY(nb_recompute_choose(r, tokens, &r->recompute)); /* together */
    NB_TRY(nb_runner_measure(r->model, tokens, &r->recompute, &need));
    NB_TRY(does_it_fit(r, need.bytes > r->arena.bytes ? need.bytes - r->arena.bytes : 0));
    NB_TRY(nb_runner_open_loss(&r->train, r->model, &r->arena, tokens, true, &r->recompute));
    r->train->tape->seed = (uint64_t)c->seed;
    return does_it_fit(r, 0);
}

void nb_run_close(nb_run *r) {
    nb_runner_free(r->train);
    if (r->evaluator.model) nb_evaluator_close(&r->evaluator);
    if (r->held_out) nb_heldout_sets_free(r->held_out, r->data.n_held_out);
    nb_loader_free(r->loader);
    nb_data_free(&r->data);
    nb_optimizer_close(&r->optimizer);
    nb_adapter_free(r->adapter);
    nb_model_free(r->model);
    nb_tokenizer_free(r->tokenizer);
    nb_base_free(r->base);
    nb_arena_free(&r->arena);
    nb_comm_close(r->comm);
    if (r->dev) nb_dev_close(r->dev);
    free(r->added_tokens);
    *r = (nb_run){0};
}

/* ---- memory ---- */

nb_memory_plan nb_run_memory(const nb_run *r) {
    nb_memory_plan m = {0};
    size_t one = r->adapter ? (size_t)r->adapter->n * sizeof(float) : 0;
    if (r->model) m.base = nb_resident_held(&r->model->weights, r->base);
    m.adapter = m.gradients = one;
    m.optimizer = nb_optimizer_bytes(&r->optimizer);
    m.activations = r->arena.bytes;
    if (r->evaluator.generator) m.generation = nb_generator_bytes(r->evaluator.generator);
    m.scratch = r->dev->ws_size;
    if (r->model) m.tables = nb_model_table_bytes(r->model);
    m.total = m.base + m.adapter + m.gradients + m.optimizer + m.activations + m.generation + m.scratch + m.tables;
    return m;
}

void nb_memory_plan_text(const nb_memory_plan *m, nb_text *out) {
    const struct {
        const char *name;
        size_t bytes;
    } rows[] = {
        {"frozen base", m->base},
        {"trained weights", m->adapter},
        {"their gradients", m->gradients},
        {"optimizer state", m->optimizer},
        {"activations", m->activations},
        {"answers' keys and values", m->generation},
        {"kernel scratch", m->scratch},
        {"position tables", m->tables},
        {"in all", m->total},
    };
    char buf[16];
    for (int i = 0; i < NB_LEN(rows); i++)
        if (rows[i].bytes || !m->partly)
            nb_text_printf(out, "  %-26s %12s\n", rows[i].name, nb_bytes((double)rows[i].bytes, buf));
    if (m->partly) nb_text_printf(out, "  and what is trained on it\n");
}

/* ---- manifest ---- */

static json_t *list_of_ids(const int32_t *ids, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

json_t *nb_run_manifest(const nb_run *r, int64_t step, const json_t *held_out) {
    const nb_config *c = r->config;
    nb_text text = {0};
    nb_config_resolve_text(c, &text);
    json_t *m = json_object();
    json_object_set_new(m, "format", json_integer(1));
    json_object_set_new(m, "nibble_version", json_string(NB_VERSION));
    json_object_set_new(m, "base", json_string(r->base->dir));
    json_object_set_new(m, "base_sha256", json_string(r->base->sha256));
    json_object_set_new(m, "base_prequantized", json_boolean(r->base->prequantized));
    json_object_set_new(m, "load_in_4bit", json_boolean(r->base->quantized));
    json_object_set_new(m, "double_quant", json_boolean(r->base->double_quant));
    json_object_set_new(m, "lm_head_quant", json_string(nb_head_quant_name(r->base->head_quant)));
    json_object_set_new(m, "compute_dtype", json_string(nb_dtype_name(r->dev->compute)));
    json_object_set_new(m, "sequence_len", json_integer(r->sequence_len));
    json_object_set_new(m, "tokenizer_sha256", json_string(nb_tokenizer_sha256(r->tokenizer)));
    bool jinja = c->chat_template == NB_CHAT_JINJA || c->chat_template_kwargs; /* its text: a file may be gone when the model is used */
    json_object_set_new(m, "chat_template",
                        json_string(jinja ? nb_chat_template_jinja(r->chat) : nb_config_chat_name(c)));
    json_object_set_new(m, "added_tokens", list_of_ids(r->added_tokens, r->n_added_tokens));
    json_object_set_new(m, "data_sha256", json_string(r->data.sha256));
    json_object_set_new(m, "step", json_integer(step));
    json_object_set_new(m, "steps", json_integer(r->total_steps));
    json_object_set_new(m, "config", json_string(text.s));
    if (held_out) json_object_set(m, "held_out", (json_t *)(uintptr_t)held_out);
    nb_text_free(&text);
    return m;
}
