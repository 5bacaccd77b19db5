/* Defaults that lean on other keys, and keys that need or exclude each other. */
#include <stdlib.h>
#include <string.h>

#include "configs/keys.h"
#include "core/file.h"

static void set_word(nb_strs *s, const char *word) {
    for (int i = 0; i < s->n; i++) free(s->v[i]);
    s->v = nb_realloc(s->v, 1, sizeof *s->v);
    s->v[0] = nb_strdup(word);
    s->n = 1;
    s->scalar = true;
}

static bool is_word(const nb_strs *s, const char *word) { return s->n == 1 && s->scalar && !strcmp(s->v[0], word); }

/* "data/support.jsonl" -> "support"; a number behind it when an earlier entry is called so. */
static void name_dataset(nb_config_dataset *list, int index) {
    nb_config_dataset *d = &list[index];
    if (d->name || !d->path) return;
    size_t len = strlen(d->path);
    while (len > 1 && d->path[len - 1] == '/') len--;
    char *path = nb_strndup(d->path, len);
    const char *base = nb_path_base(path), *ext = nb_path_ext(path);
    char *stem = nb_strndup(base, strlen(base) - (strlen(ext) < strlen(base) ? strlen(ext) : 0));
    for (int number = 1; !d->name; number++) {
        char *name = number == 1 ? nb_strdup(stem) : nb_asprintf("%s-%d", stem, number);
        bool taken = false;
        for (int i = 0; i < index; i++) taken |= list[i].name && !strcmp(list[i].name, name);
        if (taken) free(name);
        else d->name = name;
    }
    free(stem);
    free(path);
}

/* When something happens: strategy, every `steps` steps, `per_epoch` times an epoch. */
static void derive_when(int *strategy, bool strategy_set, bool steps_set, int64_t *per_epoch, bool per_epoch_set) {
    if (!strategy_set) *strategy = steps_set ? NB_WHEN_STEPS : NB_WHEN_EPOCH;
    if (!per_epoch_set) *per_epoch = *strategy == NB_WHEN_EPOCH ? 1 : 0;
}

void nb_config_derive(nb_config *c) {
    if (!nb_is_set(c, adapter) && nb_is_set(c, load_in_4bit) && !c->load_in_4bit) c->adapter = NB_ADAPTER_LORA;
    if (!nb_is_set(c, load_in_4bit)) c->load_in_4bit = c->adapter == NB_ADAPTER_QLORA;
    if (!nb_is_set(c, lora_alpha)) c->lora_alpha = 2 * c->lora_r;
    if (c->lora_target_linear && !nb_is_set(c, lora_target_modules)) set_word(&c->lora_target_modules, "all-linear");
    if (is_word(&c->lora_target_modules, "all")) set_word(&c->lora_target_modules, "all-linear");
    if (!nb_is_set(c, warmup_ratio)) c->warmup_ratio = nb_is_set(c, warmup_steps) ? 0 : 0.03;
    if (!nb_is_set(c, eval_batch_size)) c->eval_batch_size = c->micro_batch_size;
    derive_when(&c->eval_strategy, nb_is_set(c, eval_strategy), nb_is_set(c, eval_steps), &c->evals_per_epoch,
                nb_is_set(c, evals_per_epoch));
    derive_when(&c->save_strategy, nb_is_set(c, save_strategy), nb_is_set(c, save_steps), &c->saves_per_epoch,
                nb_is_set(c, saves_per_epoch));
    if (nb_is_set(c, chat_template_jinja) && !nb_is_set(c, chat_template)) c->chat_template = NB_CHAT_JINJA;
    for (int i = 0; i < c->n_datasets; i++) name_dataset(c->datasets, i);
    for (int i = 0; i < c->n_test_datasets; i++) name_dataset(c->test_datasets, i);
}

/* A mistake at a key's own place. */
#define WRONG(member, ...) nb_errors_add(e, c->at[NB_KEY_##member], __VA_ARGS__)
#define EXCLUSIVE(first, second)                                   \
    if (nb_is_set(c, first) && nb_is_set(c, second))               \
        WRONG(second, #second ": excludes " #first "; keep one of the two")

static void check_adapter(const nb_config *c, nb_errors *e) {
    if (!c->base_model) WRONG(base_model, "base_model: required; the folder of a Hugging Face model");
    if (c->adapter == NB_ADAPTER_QLORA && !c->load_in_4bit)
        WRONG(load_in_4bit, "load_in_4bit: adapter qlora needs a 4-bit base; use adapter: lora for a base as it is");
    if (c->adapter == NB_ADAPTER_FULL && c->load_in_4bit)
        WRONG(load_in_4bit, "load_in_4bit: adapter full trains the base's own weights, which cannot be in 4 bits");
    if (c->adapter == NB_ADAPTER_FULL && c->lora_model_dir)
        WRONG(lora_model_dir, "lora_model_dir: adapter full has no adapter to start from");
    if (c->adapter == NB_ADAPTER_FULL && c->zero_stage == NB_ZERO_BASE)
        WRONG(zero_stage, "zero_stage: 3 shares out the frozen base, and adapter full freezes nothing; use 1");
    if (c->adapter != NB_ADAPTER_FULL && c->reinit_weights)
        WRONG(reinit_weights, "reinit_weights: random weights need adapter: full to be trained at all");
    if (c->adapter == NB_ADAPTER_FULL && c->lora_modules_to_save.n)
        WRONG(lora_modules_to_save, "lora_modules_to_save: adapter full trains every module whole; remove the key");
    for (int i = 0; i < c->lora_modules_to_save.n; i++)
        if (!*c->lora_modules_to_save.v[i]) WRONG(lora_modules_to_save, "lora_modules_to_save: an empty name");
    if (c->adapter == NB_ADAPTER_FULL && c->loraplus_lr_ratio != 1)
        WRONG(loraplus_lr_ratio, "loraplus_lr_ratio: adapter full has no B matrices");
    for (int i = 0; i < c->rank_pattern.n; i++)
        if (c->rank_pattern.value[i] != (double)(int64_t)c->rank_pattern.value[i])
            WRONG(rank_pattern, "rank_pattern: %s has %g, which is not a whole number", c->rank_pattern.name[i],
                  c->rank_pattern.value[i]);
    if (c->lora_target_modules.n == 0)
        WRONG(lora_target_modules, "lora_target_modules: empty; name modules or write all-linear");
    if (c->lora_target_linear && !is_word(&c->lora_target_modules, "all-linear"))
        WRONG(lora_target_linear, "lora_target_linear: excludes a lora_target_modules of its own; keep one of the two");
}

/* steps and per_epoch belong to one strategy each. */
#define CHECK_WHEN(strategy, steps, per_epoch)                                               \
    do {                                                                                     \
        bool by_steps = nb_is_set(c, steps), by_epoch = nb_is_set(c, per_epoch);             \
        EXCLUSIVE(steps, per_epoch);                                                         \
        else if (c->strategy == NB_WHEN_STEPS && !by_steps)                                  \
            WRONG(strategy, #strategy ": steps needs " #steps);                              \
        else if (c->strategy != NB_WHEN_STEPS && by_steps)                                   \
            WRONG(steps, #steps ": needs " #strategy ": steps");                             \
        else if (c->strategy != NB_WHEN_EPOCH && by_epoch)                                   \
            WRONG(per_epoch, #per_epoch ": needs " #strategy ": epoch");                     \
    } while (0)

static void check_head(const nb_config *c, nb_errors *e) {
    if (c->adapter == NB_ADAPTER_FULL && c->lm_head_quant)
        WRONG(lm_head_quant, "lm_head_quant: adapter: full trains the head, which cannot be held in fewer bits then");
}

static void check_schedule(const nb_config *c, nb_errors *e) {
    EXCLUSIVE(warmup_ratio, warmup_steps);
    CHECK_WHEN(eval_strategy, eval_steps, evals_per_epoch);
    CHECK_WHEN(save_strategy, save_steps, saves_per_epoch);
    bool held_out = (c->n_test_datasets || c->val_set_size > 0) && c->eval_strategy != NB_WHEN_NO;
    const char *remedy =
        "needs held-out data during training: give val_set_size or test_datasets, and no eval_strategy: no";
    if (c->load_best_model_at_end && !held_out)
        WRONG(load_best_model_at_end, "load_best_model_at_end: %s", remedy);
    if (c->early_stopping_patience && !held_out)
        WRONG(early_stopping_patience, "early_stopping_patience: %s", remedy);
    if (c->metric_for_best_model && !held_out)
        WRONG(metric_for_best_model, "metric_for_best_model: %s", remedy);
    if (c->load_best_model_at_end && c->save_strategy == NB_WHEN_NO)
        WRONG(load_best_model_at_end, "load_best_model_at_end: needs checkpoints; remove save_strategy: no");
}

static bool has_metric(const nb_config_dataset *d, const char *name) {
    for (int i = 0; i < d->metrics.n; i++)
        if (!strcmp(d->metrics.v[i], name)) return true;
    return false;
}

static void check_dataset(const nb_config *c, nb_errors *e, const char *list, const nb_config_dataset *all, int index) {
    const nb_config_dataset *d = &all[index];
    if (!d->path) nb_errors_add(e, d->mark, "%s.%d.path: required", list, index);
    if (!nb_dataset_is_set(d, type) && c->file) {
        nb_text types = {0};
        char buf[64];
        const char *range = nb_dataset_keys[NB_DATASET_KEY_type].range;
        for (int i = 0; nb_choice_name(range, i, 0, buf); i++) nb_text_printf(&types, "%s %s", i ? "," : "", buf);
        nb_errors_add(e, d->mark, "%s.%d.type: required, one of%s", list, index, types.s);
        nb_text_free(&types);
    }
    if (has_metric(d, "regex") && !d->regex)
        nb_errors_add(e, d->at[NB_DATASET_KEY_metrics], "%s.%d.metrics: regex needs the key regex", list, index);
    if (c->sequence_len && d->chunk_overlap >= c->sequence_len)
        nb_errors_add(e, d->at[NB_DATASET_KEY_chunk_overlap],
                      "%s.%d.chunk.overlap: %lld must be less than sequence_len, %lld", list, index,
                      (long long)d->chunk_overlap, (long long)c->sequence_len);
    for (int i = 0; i < index; i++)
        if (d->name && all[i].name && !strcmp(d->name, all[i].name))
            nb_errors_add(e, d->at[NB_DATASET_KEY_name], "%s.%d.name: '%s' is the name of %s.%d too; choose another",
                          list, index, d->name, list, i);
}

static void check_data(const nb_config *c, nb_errors *e) {
    if (!c->n_datasets) nb_errors_add(e, (nb_mark){0, 0}, "datasets: required; a list of entries with path and type");
    for (int i = 0; i < c->n_datasets; i++) check_dataset(c, e, "datasets", c->datasets, i);
    for (int i = 0; i < c->n_test_datasets; i++) check_dataset(c, e, "test_datasets", c->test_datasets, i);
    if (c->val_set_size > 0 && c->n_test_datasets)
        WRONG(val_set_size, "val_set_size: excludes test_datasets; keep one of the two");
    if (c->val_set_size >= 1 && c->val_set_size != (double)(int64_t)c->val_set_size)
        WRONG(val_set_size, "val_set_size: a share below 1 or a whole number of rows, not %g", c->val_set_size);
    if (c->chat_template == NB_CHAT_JINJA && !c->chat_template_jinja)
        WRONG(chat_template, "chat_template: jinja needs the template: chat_template: jinja:FILE, or its text as "
                             "chat_template_jinja");
    if (c->chat_template != NB_CHAT_JINJA && c->chat_template_jinja)
        WRONG(chat_template_jinja, "chat_template_jinja: excludes a chat_template other than jinja");
    if (!c->output_dir) WRONG(output_dir, "output_dir: required; the folder for checkpoints and the adapter");
}

nb_status nb_config_check(const nb_config *c) {
    nb_errors e = {.file = c->file};
    check_adapter(c, &e);
    check_data(c, &e);
    check_head(c, &e);
    check_schedule(c, &e);
    return nb_errors_done(&e);
}
