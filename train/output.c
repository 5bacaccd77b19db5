#include "train/output.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"

static const char *const our_names[] = {"adapter", "model", "best", "config.yaml", "report.html", "report.json"};

static bool is_ours(const nb_config *c, const char *name) {
    for (int i = 0; i < NB_LEN(our_names); i++)
        if (!strcmp(name, our_names[i])) return true;
    return !strcmp(name, c->metrics_file) || !strncmp(name, "checkpoint-", 11);
}

static nb_status delete_run(const nb_config *c) {
    char **names;
    int n;
    nb_status st = NB_OK;
    if (!nb_is_dir(c->output_dir)) return NB_OK;
    NB_TRY(nb_list_dir(c->output_dir, &names, &n));
    for (int i = 0; i < n; i++) {
        char *path = nb_path_join(c->output_dir, names[i]);
        if (st == NB_OK && is_ours(c, names[i])) st = nb_remove_tree(path);
        free(path);
        free(names[i]);
    }
    free(names);
    return st;
}

static bool holds(const nb_config *c, const char *name) {
    char *path = nb_path_join(c->output_dir, name);
    bool yes = nb_file_exists(path);
    free(path);
    return yes;
}

nb_status nb_output_prepare(const nb_config *c, const char *resume, bool overwrite, char **resume_from) {
    *resume_from = NULL;
    if (!resume) resume = c->auto_resume_from_checkpoints && c->resume_from_checkpoint ? c->resume_from_checkpoint : "none";
    bool fresh = !strcmp(resume, "none");
    if (overwrite) {
        NB_TRY(delete_run(c));
        fresh = true;
    } else if (!fresh && strcmp(resume, "auto") != 0) {
        if (!nb_is_dir(resume)) return nb_fail(NB_EINPUT, "%s: no such checkpoint folder", resume);
        *resume_from = nb_strdup(resume);
    } else {
        NB_TRY(nb_checkpoint_find(c->output_dir, resume_from));
        if (*resume_from && fresh) {
            nb_status st = nb_fail(NB_EINPUT, "%s holds checkpoints (%s) and resuming is off: use --overwrite to start anew, --resume auto to "
                                   "go on, or another output_dir", c->output_dir, nb_path_base(*resume_from));
            free(*resume_from);
            *resume_from = NULL;
            return st;
        }
    }
    if (!*resume_from && !overwrite && (holds(c, "adapter") || holds(c, "model")))
        return nb_fail(NB_EINPUT, "%s holds the result of an earlier run: use --overwrite to start anew, or another output_dir", c->output_dir);
    return nb_mkdirs(c->output_dir);
}

nb_status nb_output_config(const nb_config *c) {
    nb_text t = {0};
    char *path = nb_path_join(c->output_dir, "config.yaml");
    nb_status st = nb_config_resolve_text(c, &t);
    if (st == NB_OK) st = nb_file_write(path, t.s, t.n);
    nb_text_free(&t);
    free(path);
    return st;
}

nb_status nb_output_space(const nb_run *r) {
    uint64_t room, need = 2 * nb_checkpoint_bytes(r) + 2 * (uint64_t)r->adapter->n * sizeof(float);
    NB_TRY(nb_free_space(r->config->output_dir, &room));
    if (room >= need) return NB_OK;
    char have[16], want[16];
    return nb_fail(NB_EIO, "%s: %s free, checkpoints need about %s: free some space or choose another output_dir", r->config->output_dir,
                   nb_bytes((double)room, have), nb_bytes((double)need, want));
}

/* ---- metrics ---- */

static int64_t step_of_line(const char *line, size_t n) {
    json_error_t e;
    json_t *j = json_loadb(line, n, 0, &e);
    int64_t step = j && json_is_integer(json_object_get(j, "step")) ? json_integer_value(json_object_get(j, "step")) : INT64_MAX;
    json_decref(j);
    return step;
}

/* Keeps the lines of steps that the checkpoint knows; a torn last line goes too. */
static nb_status cut_back(const char *path, int64_t step) {
    char *text;
    size_t size;
    nb_text kept = {0};
    NB_TRY(nb_file_read(path, &text, &size));
    for (char *line = text, *end; line < text + size && (end = memchr(line, '\n', (size_t)(text + size - line))); line = end + 1)
        if (step_of_line(line, (size_t)(end - line)) <= step) nb_text_add(&kept, line, (size_t)(end - line) + 1);
    nb_status st = nb_file_write(path, kept.s ? kept.s : "", kept.n);
    nb_text_free(&kept);
    free(text);
    return st;
}

nb_status nb_metrics_open(FILE **f, const nb_config *c, int64_t step) {
    char *path = nb_path_join(c->output_dir, c->metrics_file);
    nb_status st = NB_OK;
    *f = NULL;
    if (nb_file_exists(path)) st = cut_back(path, step ? step : -1);
    if (st == NB_OK && !(*f = fopen(path, "abe"))) st = nb_fail(NB_EIO, "%s: cannot be opened for writing", path);
    free(path);
    return st;
}

nb_status nb_metrics_write(FILE *f, const nb_config *c, json_t *line) {
    char *s = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(line);
    bool bad = !s || fprintf(f, "%s\n", s) < 0 || fflush(f) != 0;
    free(s);
    return bad ? nb_fail(NB_EIO, "%s/%s: cannot be written (disk full?)", c->output_dir, c->metrics_file) : NB_OK;
}

nb_status nb_output_save_model(const nb_run *r, const char *name, int64_t step, const json_t *held_out) {
    char *dir = nb_path_join(r->config->output_dir, name);
    nb_status st;
    if (r->adapter->full) {
        nb_dtype dtype = r->base->spec.dtype;
        st = nb_adapter_save_full(r->adapter, dir, dtype == NB_F32 || dtype == NB_F16 ? dtype : NB_BF16);
    } else {
        json_t *m = nb_run_manifest(r, step, held_out);
        st = nb_adapter_save(r->adapter, dir, m);
        json_decref(m);
        if (st == NB_OK && r->n_added_tokens) st = nb_tokenizer_save(r->tokenizer, dir);
    }
    free(dir);
    return st;
}

nb_status nb_output_copy_model(const nb_config *c, const char *from, const char *to) {
    char *src = nb_path_join(c->output_dir, from), *dst = nb_path_join(c->output_dir, to), *tmp = nb_asprintf("%s.tmp", dst);
    char **names = NULL;
    int n = 0;
    nb_status st;
    NB_GO(st, nb_remove_tree(tmp), done);
    NB_GO(st, nb_mkdirs(tmp), done);
    NB_GO(st, nb_list_dir(src, &names, &n), done);
    for (int i = 0; i < n; i++) {
        char *x = nb_path_join(src, names[i]), *y = nb_path_join(tmp, names[i]);
        if (st == NB_OK) st = nb_file_copy(x, y);
        free(x), free(y), free(names[i]);
    }
    free(names);
    if (st == NB_OK) st = nb_replace_dir(tmp, dst);
done:
    free(src), free(dst), free(tmp);
    return st;
}

size_t nb_peak_memory(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (size_t)u.ru_maxrss * 1024;
}
