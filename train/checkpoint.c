#include "train/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/safetensors.h"

/* What state.safetensors holds: the weights and the optimizer's state, except what is empty. Returns how many. */
static int buffers(const nb_run *r, nb_state_buffer out[NB_STATE_COUNT + 1]) {
    int n = 0;
    for (int i = 0; i < NB_STATE_COUNT; i++)
        if (r->optimizer.state[i].whole) out[n++] = r->optimizer.state[i];
    out[n++] = (nb_state_buffer){"param", NB_F32, r->adapter->n, r->adapter->n, 0, r->adapter->data};
    return n;
}

/* Keys that may differ between the parts of one run: they do not change what is computed. */
static const char *const free_keys[] = {
    "logging_steps", "metrics_file", "eval_strategy", "eval_steps", "evals_per_epoch", "save_strategy",
    "save_steps", "saves_per_epoch", "save_total_limit", "load_best_model_at_end", "metric_for_best_model",
    "early_stopping_patience", "resume_from_checkpoint", "auto_resume_from_checkpoints", "threads", "device",
    "memory_limit", "quantized_cache", "dataset_prepared_path", "output_dir", "loss_watchdog_threshold",
    "loss_watchdog_patience", "eval_batch_size", "base_model", "zero_stage",
    "gradient_checkpointing", "test_datasets", /* they only judge a run */
};

/* Keys that may differ between the ranks of one run: where it computes, and what each machine keeps to itself. */
static const char *const local_keys[] = {
    "threads", "device", "memory_limit", "quantized_cache", "dataset_prepared_path", "base_model",
};

static bool is_listed(const char *line, size_t n, const char *const *keys, int n_keys) {
    for (int i = 0; i < n_keys; i++) {
        size_t k = strlen(keys[i]);
        if (n > k && !strncmp(line, keys[i], k) && line[k] == ':') return true;
    }
    return false;
}

/* The lines of a resolved configuration but for some keys', one after another. */
static char *lines_without(const char *text, const char *const *keys, int n_keys) {
    nb_text out = {0};
    bool skipping = false;
    for (const char *line = text; *line;) {
        const char *end = strchr(line, '\n');
        size_t n = end ? (size_t)(end - line) : strlen(line);
        bool top = n && line[0] != ' ' && line[0] != '-' && line[0] != '#';
        if (top) skipping = is_listed(line, n, keys, n_keys);
        if (n && line[0] != '#' && !skipping) nb_text_add(&out, line, n + (end ? 1 : 0));
        line += n + (end ? 1 : 0);
    }
    if (!out.s) nb_text_puts(&out, "");
    return out.s;
}

/* The line gradient_accumulation_steps counts those of all processes: 2 that accumulate 2 go on with what one that
 * accumulates 4 began. */
static json_t *identity(const nb_run *r) {
    nb_text text = {0};
    nb_config all = *r->config;
    all.gradient_accumulation_steps *= r->comm->size;
    nb_config_resolve_text(&all, &text);
    char *lines = lines_without(text.s, free_keys, NB_LEN(free_keys));
    json_t *id = json_pack("{s:s, s:s, s:s, s:s}", "config", lines, "base_sha256", r->base->sha256, "tokenizer_sha256",
                           nb_tokenizer_sha256(r->tokenizer), "data_sha256", r->data.sha256);
    json_object_set_new(id, "compute_dtype", json_string(nb_dtype_name(r->dev->compute)));
    free(lines);
    nb_text_free(&text);
    return id;
}

/* ---- saving ---- */

enum { PIECE = 4 << 20 }; /* bytes that travel at a time */

/* A buffer of which every rank holds its part, whole into `host` of rank 0, where there is room for it; elsewhere
 * there is room for a piece. A rank that cannot read its device goes through the motions: the others count on it. */
static nb_status collect(const nb_run *r, char *host, const nb_state_buffer *b) {
    nb_comm *c = r->comm;
    size_t size = (size_t)nb_dtype_size(b->dtype);
    nb_status st = NB_OK;
    for (int k = 0; k < c->size; k++) {
        int64_t span[2] = {b->first, b->n};
        NB_TRY(nb_comm_broadcast(c, span, sizeof span, k));
        size_t begin = (size_t)span[0] * size, bytes = (size_t)span[1] * size;
        for (size_t at = 0; at < bytes; at += PIECE) {
            size_t m = bytes - at < PIECE ? bytes - at : PIECE;
            char *to = c->rank ? host : host + begin + at;
            if (k == c->rank && st == NB_OK) st = r->dev->be->get(r->dev, to, (const char *)b->p + at, m);
            NB_TRY(nb_comm_broadcast(c, to, m, k));
        }
    }
    return st;
}

/* A buffer for rank 0 to write. */
static nb_status fetch(const nb_run *r, char *host, const nb_state_buffer *b) {
    if (r->optimizer.shared && b->p != r->adapter->data) return collect(r, host, b);
    return r->comm->rank ? NB_OK : r->dev->be->get(r->dev, host, b->p, (size_t)b->n * (size_t)nb_dtype_size(b->dtype));
}

static nb_status put_state(const nb_run *r, const char *path) {
    nb_state_buffer from[NB_STATE_COUNT + 1];
    const int n = buffers(r, from);
    const bool writes = !r->comm->rank;
    const size_t room = writes ? (size_t)r->adapter->n * sizeof(float) : PIECE;
    void *host = NULL;
    nb_st_writer *w = NULL;
    if (!writes && !r->optimizer.shared) return NB_OK;
    nb_status st = nb_big_alloc(&host, room, "writing a checkpoint");
    if (r->optimizer.shared) st = nb_comm_agree(r->comm, st);
    if (st != NB_OK) goto done;
    if (writes) st = nb_st_write_begin(&w, path, NULL);
    for (int i = 0; i < n && st == NB_OK && writes; i++)
        st = nb_st_write_declare(w, from[i].name, from[i].dtype, 1, &from[i].whole);
    for (int i = 0; i < n && !r->comm->broken; i++) { /* to the end: after a failed write, too, the others send */
        nb_status got = fetch(r, host, &from[i]);
        if (st == NB_OK) st = got;
        size_t bytes = (size_t)from[i].whole * (size_t)nb_dtype_size(from[i].dtype);
        if (st == NB_OK && writes) st = nb_st_write_data(w, from[i].name, host, bytes);
    }
done:
    nb_big_free(host, room);
    if (st == NB_OK && writes) return nb_st_write_end(w);
    nb_st_write_abort(w);
    return st;
}

static nb_status put_trainer_state(const nb_run *r, const nb_train_state *s, const char *state_path, const char *path) {
    nb_hex sha;
    NB_TRY(nb_sha256_file(state_path, sha));
    json_t *j = json_pack("{s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:o}", "format", 1, "nibble_version", NB_VERSION,
                          "step", (json_int_t)s->step, "tokens", (json_int_t)s->tokens, "best_step",
                          (json_int_t)s->best_step, "bad_evals", (json_int_t)s->bad_evals, "watchdog",
                          (json_int_t)s->watchdog, "state_sha256", sha, "identity", identity(r));
    if (s->best_step) json_object_set_new(j, "best", json_real(s->best));
    json_object_set_new(j, "eval_pending", json_boolean(s->eval_pending));
    json_object_set_new(j, "total_steps", json_integer(r->total_steps));
    json_object_set_new(j, "recompute", json_pack("{s:I, s:I}", "full", (json_int_t)r->recompute.full, "smart",
                                                  (json_int_t)r->recompute.smart));
    if (s->eval) json_object_set(j, "eval", s->eval);
    nb_status st = nb_json_save(path, j);
    json_decref(j);
    return st;
}

/* What rank 0 writes beside the state. */
static nb_status put_rest(const nb_run *r, const nb_train_state *s, const char *tmp) {
    char *state = nb_path_join(tmp, "state.safetensors"), *info = nb_path_join(tmp, "trainer_state.json");
    char *adapter = nb_path_join(tmp, "adapter");
    nb_status st = NB_OK;
    if (!r->adapter->full) {
        json_t *m = nb_run_manifest(r, s->step, NULL);
        st = nb_adapter_save(r->adapter, adapter, m, r->own_tokenizer ? r->tokenizer : NULL);
        json_decref(m);
    }
    if (st == NB_OK) st = put_trainer_state(r, s, state, info);
    free(state), free(info), free(adapter);
    return st;
}

nb_status nb_checkpoint_save(const nb_run *r, const nb_train_state *s) {
    char *dir = nb_asprintf("%s/checkpoint-%lld", r->config->output_dir, (long long)s->step),
         *tmp = nb_asprintf("%s.tmp", dir);
    char *state = nb_path_join(tmp, "state.safetensors");
    bool writes = !r->comm->rank;
    nb_status st = writes ? nb_remove_tree(tmp) : NB_OK;
    if (st == NB_OK && writes) st = nb_mkdirs(tmp);
    NB_GO(st, nb_comm_agree(r->comm, st), done);
    st = put_state(r, state);
    if (st == NB_OK && writes) st = put_rest(r, s, tmp);
    if (st == NB_OK && writes) st = nb_replace_dir(tmp, dir);
    st = nb_comm_agree(r->comm, st);
done:
    if (st != NB_OK && writes) nb_remove_tree(tmp);
    free(dir), free(tmp), free(state);
    return st;
}

uint64_t nb_checkpoint_bytes(const nb_run *r) {
    return (uint64_t)r->adapter->n * sizeof(float) * (r->adapter->full ? 1 : 2) + nb_optimizer_whole_bytes(&r->optimizer) +
           (1 << 16);
}

/* ---- finding ---- */

static int64_t step_of(const char *name) {
    char *end;
    if (strncmp(name, "checkpoint-", 11) != 0) return -1;
    long long n = strtoll(name + 11, &end, 10);
    return *end || end == name + 11 ? -1 : n;
}

static int newest_first(const void *x, const void *y) {
    int64_t i = *(const int64_t *)x, j = *(const int64_t *)y;
    return i < j ? 1 : -(i > j);
}

static nb_status list_steps(const char *output_dir, int64_t **steps, int *n) {
    char **names;
    int n_names;
    *steps = NULL;
    *n = 0;
    if (!nb_is_dir(output_dir)) return NB_OK;
    NB_TRY(nb_list_dir(output_dir, &names, &n_names));
    *steps = nb_calloc((size_t)n_names + 1, sizeof **steps);
    for (int i = 0; i < n_names; i++) {
        int64_t s = step_of(names[i]);
        if (s >= 0) (*steps)[(*n)++] = s;
        free(names[i]);
    }
    free(names);
    qsort(*steps, (size_t)*n, sizeof **steps, newest_first);
    return NB_OK;
}

static nb_status is_whole(const char *dir) {
    char *state = nb_path_join(dir, "state.safetensors"), *info = nb_path_join(dir, "trainer_state.json");
    json_t *j = NULL;
    const char *want = NULL;
    nb_hex sha;
    nb_status st;
    NB_GO(st, nb_json_load(info, &j), done);
    NB_GO(st, nb_json_str(j, "state_sha256", &want, info), done);
    NB_GO(st, nb_sha256_file(state, sha), done);
    if (!want || strcmp(sha, want) != 0)
        st = nb_fail(NB_EINPUT, "%s: not the file trainer_state.json describes (damaged?)", state);
done:
    json_decref(j);
    free(state), free(info);
    return st;
}

nb_status nb_checkpoint_find(const char *output_dir, char **dir) {
    int64_t *steps;
    int n;
    *dir = NULL;
    NB_TRY(list_steps(output_dir, &steps, &n));
    for (int i = 0; i < n && !*dir; i++) {
        *dir = nb_asprintf("%s/checkpoint-%lld", output_dir, (long long)steps[i]);
        if (is_whole(*dir) == NB_OK) break;
        nb_warn("%s is passed over: %s", *dir, nb_message());
        free(*dir);
        *dir = NULL;
    }
    free(steps);
    if (!n || *dir) return NB_OK;
    return nb_fail(NB_EINPUT,
                   "%s: none of its %d checkpoints is whole: use --overwrite to start anew, or another output_dir",
                   output_dir, n);
}

nb_status nb_checkpoint_drop_later(const nb_config *c, int64_t step) {
    int64_t *steps;
    int n;
    nb_status st = NB_OK;
    NB_TRY(list_steps(c->output_dir, &steps, &n));
    for (int i = 0; i < n && steps[i] > step && st == NB_OK; i++) {
        char *dir = nb_asprintf("%s/checkpoint-%lld", c->output_dir, (long long)steps[i]);
        st = nb_remove_tree(dir);
        free(dir);
    }
    free(steps);
    return st;
}

nb_status nb_checkpoint_prune(const nb_config *c, int64_t best_step) {
    int64_t *steps;
    int n;
    nb_status st = NB_OK;
    if (!c->save_total_limit) return NB_OK;
    NB_TRY(list_steps(c->output_dir, &steps, &n));
    for (int i = (int)c->save_total_limit; i < n && st == NB_OK; i++) {
        if (steps[i] == best_step && c->load_best_model_at_end) continue;
        char *dir = nb_asprintf("%s/checkpoint-%lld", c->output_dir, (long long)steps[i]);
        st = nb_remove_tree(dir);
        free(dir);
    }
    free(steps);
    return st;
}

/* ---- loading ---- */

/* Appends the lines of `ours` that `theirs` lacks. */
static int lines_only_in(nb_text *out, const char *ours, const char *theirs, const char *mark) {
    int n = 0;
    for (const char *line = ours; *line;) {
        const char *end = strchr(line, '\n');
        size_t len = end ? (size_t)(end - line) : strlen(line);
        char *one = nb_asprintf("\n%.*s\n", (int)len, line), *hay = nb_asprintf("\n%s\n", theirs);
        if (!strstr(hay, one) && n++ < 12) nb_text_printf(out, "\n  %s %.*s", mark, (int)len, line);
        free(one), free(hay);
        line += len + (end ? 1 : 0);
    }
    return n;
}

static nb_status same_run(const nb_run *r, const json_t *theirs, const char *dir) {
    json_t *ours = identity(r);
    nb_text diff = {0};
    const char *key;
    json_t *v;
    int n = 0;
    json_object_foreach(ours, key, v) {
        const char *mine = json_string_value(v), *old = json_string_value(json_object_get(theirs, key));
        if (!old) old = "";
        if (!strcmp(mine, old)) continue;
        int before = n;
        if (strcmp(key, "config") != 0)
            n++, nb_text_printf(&diff, "\n  %s: %.16s... there, %.16s... now", key, old, mine);
        else n += lines_only_in(&diff, old, mine, "there:") + lines_only_in(&diff, mine, old, "now:  ");
        if (n == before) n++, nb_text_puts(&diff, "\n  the order or number of the configuration's lines");
    }
    json_decref(ours);
    nb_status st =
        n ? nb_fail(NB_EINPUT,
                    "%s belongs to another run; what differs:%s\nUse another output_dir, or --overwrite to start anew "
                    "(the old checkpoints are deleted)",
                    dir, diff.s)
          : NB_OK;
    nb_text_free(&diff);
    return st;
}

static nb_status get_state(nb_run *r, const char *path) {
    nb_st s;
    NB_TRY(nb_st_open_file(&s, path));
    nb_state_buffer to[NB_STATE_COUNT + 1];
    const int n = buffers(r, to);
    nb_status st = NB_OK;
    for (int i = 0; i < n && st == NB_OK; i++) {
        const nb_st_tensor *t = nb_st_find(&s, to[i].name);
        size_t size = (size_t)nb_dtype_size(to[i].dtype);
        if (!t || t->dtype != to[i].dtype || t->n_dims != 1 || t->d[0] != to[i].whole)
            st = nb_fail(NB_EINPUT, "%s: %s is missing or has another size", path, to[i].name);
        else if (to[i].n)
            st = r->dev->be->put(r->dev, to[i].p, (const char *)t->data + (size_t)to[i].first * size,
                                 (size_t)to[i].n * size);
    }
    nb_st_close(&s);
    return st;
}

nb_status nb_checkpoint_same_everywhere(const nb_run *r, const nb_train_state *s) {
    json_t *id = identity(r);
    nb_text config = {0};
    nb_config_resolve_text(r->config, &config);
    char *lines = lines_without(config.s, local_keys, NB_LEN(local_keys));
    json_object_set_new(id, "config", json_string(lines));
    json_object_set_new(id, "step", json_integer(s->step));
    json_t *held_out = json_array();
    for (int i = 0; i < r->data.n_held_out; i++)
        json_array_append_new(held_out, json_string(nb_dataset_sha256(r->data.held_out[i])));
    json_object_set_new(id, "held_out", held_out);
    char *text = json_dumps(id, JSON_SORT_KEYS);
    nb_hex ours, theirs;
    nb_sha256_of(text, strlen(text), ours);
    memcpy(theirs, ours, sizeof ours);
    json_decref(id);
    nb_text_free(&config);
    free(lines), free(text);
    NB_TRY(nb_comm_broadcast(r->comm, theirs, sizeof theirs, 0));
    nb_status st = NB_OK;
    if (strcmp(ours, theirs) != 0)
        st = nb_fail(NB_EINPUT, "this process has another configuration, base, tokenizer, data or checkpoint before it "
                     "than rank 0: all must see the same files, and the same output_dir");
    return nb_comm_agree(r->comm, st);
}

nb_status nb_checkpoint_load_recompute(nb_run *r, const char *dir) {
    char *info = nb_path_join(dir, "trainer_state.json");
    json_t *j = NULL;
    nb_recompute c = {-1, -1};
    nb_status st = nb_json_load(info, &j);
    const json_t *chosen = json_object_get(j, "recompute");
    if (st == NB_OK) st = nb_json_int(chosen, "full", &c.full, info);
    if (st == NB_OK) st = nb_json_int(chosen, "smart", &c.smart, info);
    if (st == NB_OK && c.full >= 0 && c.smart >= 0) {
        r->recompute = c;
        r->chosen_before = true;
    }
    json_decref(j);
    free(info);
    return st;
}

nb_status nb_checkpoint_load(nb_run *r, nb_train_state *s, const char *dir) {
    char *state = nb_path_join(dir, "state.safetensors"), *info = nb_path_join(dir, "trainer_state.json");
    json_t *j = NULL;
    *s = (nb_train_state){0};
    nb_status st;
    NB_GO(st, is_whole(dir), done);
    NB_GO(st, nb_json_load(info, &j), done);
    NB_GO(st, same_run(r, json_object_get(j, "identity"), dir), done);
    NB_GO(st, nb_json_int(j, "step", &s->step, info), done);
    NB_GO(st, nb_json_int(j, "tokens", &s->tokens, info), done);
    NB_GO(st, nb_json_real(j, "best", &s->best, info), done);
    NB_GO(st, nb_json_int(j, "best_step", &s->best_step, info), done);
    NB_GO(st, nb_json_int(j, "bad_evals", &s->bad_evals, info), done);
    NB_GO(st, nb_json_int(j, "watchdog", &s->watchdog, info), done);
    NB_GO(st, nb_json_bool(j, "eval_pending", &s->eval_pending, info), done);
    if (s->step < 0 || s->step > r->total_steps)
        st = nb_fail(NB_EINPUT, "%s: step %lld of %lld", info, (long long)s->step, (long long)r->total_steps);
    if (st == NB_OK) st = get_state(r, state);
    if (st == NB_OK && json_is_object(json_object_get(j, "eval"))) s->eval = json_incref(json_object_get(j, "eval"));
done:
    json_decref(j);
    free(state), free(info);
    return st;
}
