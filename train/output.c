#include "train/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"

static const char *const our_names[] = {"adapter", "model", "best", "config.yaml", "report.html", "report.json"};

/* "adapter", and "adapter.tmp-1", "adapter.old" that a killed run leaves. */
static bool is_called(const char *name, const char *ours) {
    size_t n = strlen(ours);
    return !strncmp(name, ours, n) && (!name[n] || !strncmp(name + n, ".tmp", 4) || !strcmp(name + n, ".old"));
}

static bool is_ours(const nb_config *c, const char *name) {
    for (int i = 0; i < NB_LEN(our_names); i++)
        if (is_called(name, our_names[i])) return true;
    return is_called(name, c->metrics_file) || !strncmp(name, "checkpoint-", 11);
}

/* What a killed run left half written. */
static bool is_half(const char *name) {
    size_t n = strlen(name);
    return strstr(name, ".tmp") || (n > 4 && !strcmp(name + n - 4, ".old"));
}

/* Deletes what is ours in output_dir: all of it, or only what is half written. */
static nb_status delete_ours(const nb_config *c, bool all) {
    char **names;
    int n;
    nb_status st = NB_OK;
    NB_TRY(nb_list_dir(c->output_dir, &names, &n));
    for (int i = 0; i < n; i++) {
        char *path = nb_path_join(c->output_dir, names[i]);
        if (st == NB_OK && is_ours(c, names[i]) && (all || is_half(names[i]))) st = nb_remove_tree(path);
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

/* Found before the base is loaded and the data tokenized, not after. */
static nb_status can_write(const char *dir) {
    char *path = nb_strdup(dir), *slash;
    while (!nb_file_exists(path)) { /* the nearest folder there is */
        slash = strrchr(path, '/');
        if (!slash) strcpy(path, ".");
        else slash[slash == path] = 0;
    }
    nb_status st = NB_OK;
    if (!nb_is_dir(path)) st = nb_fail(NB_EIO, "output_dir %s: %s is not a folder", dir, path);
    else if (access(path, W_OK | X_OK) < 0)
        st = nb_fail(NB_EIO, "output_dir %s: %s cannot be written to (%s): choose another output_dir", dir, path,
                     strerror(errno));
    free(path);
    return st;
}

/* --resume DIR: a checkpoint of this output_dir, or of any where this one holds none. */
static nb_status resume_dir(const nb_config *c, const char *dir, char **resume_from) {
    char *newest, *parent = nb_path_join(dir, ".."), *a = realpath(parent, NULL), *b = realpath(c->output_dir, NULL);
    bool inside = a && b && !strcmp(a, b);
    free(parent), free(a), free(b);
    if (!nb_is_dir(dir)) return nb_fail(NB_EINPUT, "%s: no such checkpoint folder", dir);
    if (!inside) {
        NB_TRY(nb_checkpoint_find(c->output_dir, &newest));
        bool holds_others = newest != NULL;
        free(newest);
        if (holds_others)
            return nb_fail(NB_EINPUT,
                           "%s holds checkpoints of its own, and %s is not one of them: use another output_dir",
                           c->output_dir, dir);
    }
    *resume_from = nb_strdup(dir);
    return NB_OK;
}

nb_status nb_output_prepare(const nb_config *c, const char *resume, bool overwrite, char **resume_from) {
    *resume_from = NULL;
    NB_TRY(can_write(c->output_dir));
    if (overwrite && resume && strcmp(resume, "none") != 0)
        return nb_fail(NB_EINPUT, "--overwrite starts anew and --resume %s goes on: keep one of the two", resume);
    if (overwrite) return NB_OK;
    if (!resume)
        resume = c->auto_resume_from_checkpoints && c->resume_from_checkpoint ? c->resume_from_checkpoint : "none";
    bool fresh = !strcmp(resume, "none");
    if (!fresh && strcmp(resume, "auto") != 0) return resume_dir(c, resume, resume_from);
    NB_TRY(nb_checkpoint_find(c->output_dir, resume_from));
    if (*resume_from && fresh) {
        nb_status st =
            nb_fail(NB_EINPUT,
                    "%s holds checkpoints (%s) and resuming is off: use --overwrite to start anew, --resume auto to "
                    "go on, or another output_dir",
                    c->output_dir, nb_path_base(*resume_from));
        free(*resume_from);
        *resume_from = NULL;
        return st;
    }
    if (!*resume_from && (holds(c, "adapter") || holds(c, "model")))
        return nb_fail(NB_EINPUT,
                       "%s holds the result of an earlier run: use --overwrite to start anew, or another output_dir",
                       c->output_dir);
    return NB_OK;
}

bool nb_output_is_finished(const nb_config *c, bool full) {
    nb_text now = {0};
    char *path = nb_path_join(c->output_dir, "config.yaml"), *then = NULL;
    size_t n = 0;
    bool same = holds(c, full ? "model" : "adapter") && nb_config_resolve_text(c, &now) == NB_OK &&
                nb_file_exists(path) && nb_file_read(path, &then, &n) == NB_OK && n == now.n && !memcmp(then, now.s, n);
    free(then);
    free(path);
    nb_text_free(&now);
    return same;
}

/* The folder itself is locked: nothing to clean up after a kill. File systems without locks go without. */
static nb_status lock_folder(const char *dir, int *lock) {
    *lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock < 0 || flock(*lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return NB_OK;
    return nb_fail(NB_EIO, "%s: another nibble is training into it: wait for it, or use another output_dir", dir);
}

nb_status nb_output_begin(const nb_config *c, bool overwrite, int64_t step, int *lock) {
    nb_text t = {0};
    NB_TRY(nb_mkdirs(c->output_dir));
    NB_TRY(lock_folder(c->output_dir, lock));
    NB_TRY(delete_ours(c, overwrite));
    NB_TRY(nb_checkpoint_drop_later(c, step));
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
    return nb_fail(NB_EIO, "%s: %s free, checkpoints need about %s: free some space or choose another output_dir",
                   r->config->output_dir, nb_bytes((double)room, have), nb_bytes((double)need, want));
}

/* ---- metrics ---- */

/* A line the state knows: a step or evaluation not after it, and no evaluation that is still to come. */
static bool is_known(const char *line, size_t n, const nb_train_state *s) {
    json_error_t e;
    json_t *j = json_loadb(line, n, 0, &e);
    const json_t *step = json_object_get(j, "step");
    json_int_t at = json_integer_value(step);
    bool known = json_is_integer(step) && s->step && at <= s->step;
    if (at == s->step && s->eval_pending && json_object_get(j, "eval")) known = false;
    json_decref(j);
    return known;
}

/* A torn last line goes too. */
static nb_status cut_back(const char *path, const nb_train_state *s) {
    char *text;
    size_t size;
    nb_text kept = {0};
    NB_TRY(nb_file_read(path, &text, &size));
    for (char *line = text, *end; line < text + size && (end = memchr(line, '\n', (size_t)(text + size - line)));
         line = end + 1)
        if (is_known(line, (size_t)(end - line), s)) nb_text_add(&kept, line, (size_t)(end - line) + 1);
    nb_status st = nb_file_write(path, kept.s ? kept.s : "", kept.n);
    nb_text_free(&kept);
    free(text);
    return st;
}

nb_status nb_metrics_open(FILE **f, const nb_config *c, const nb_train_state *s) {
    char *path = nb_path_join(c->output_dir, c->metrics_file);
    nb_status st = NB_OK;
    *f = NULL;
    if (nb_file_exists(path)) st = cut_back(path, s);
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
    const nb_tokenizer *own = r->own_tokenizer ? r->tokenizer : NULL;
    nb_status st;
    if (r->adapter->full) {
        nb_dtype dtype = r->base->spec.dtype;
        st = nb_adapter_save_full(r->adapter, dir, dtype == NB_F32 || dtype == NB_F16 ? dtype : NB_BF16, own);
    } else {
        json_t *m = nb_run_manifest(r, step, held_out);
        st = nb_adapter_save(r->adapter, dir, m, own);
        json_decref(m);
    }
    free(dir);
    return st;
}

nb_status nb_output_copy_model(const nb_config *c, const char *from, const char *to) {
    char *src = nb_path_join(c->output_dir, from), *dst = nb_path_join(c->output_dir, to),
         *tmp = nb_asprintf("%s.tmp", dst);
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
    if (st != NB_OK) nb_remove_tree(tmp);
    free(src), free(dst), free(tmp);
    return st;
}

size_t nb_peak_memory(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (size_t)u.ru_maxrss * 1024;
}
