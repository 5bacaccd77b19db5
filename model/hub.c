/* Where a base lies and what names it: the local Hugging Face cache, and the sha256 of a folder's weights. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "core/file.h"
#include "core/interrupt.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/gguf_base.h"
#include "model/weights.h"

/* "name" or "org/name" as the hub allows them: nothing that could lead out of the cache. */
static bool is_hub_name(const char *s) {
    int slashes = 0;
    for (const char *p = s; *p; p++) {
        bool ok = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
                  strchr("._-/", *p);
        if (!ok || (*p == '/' && ++slashes > 1)) return false;
        if (*p == '.' && (p[1] == '.' || p == s || p[-1] == '/')) return false;
    }
    return *s && *s != '/' && s[strlen(s) - 1] != '/';
}

/* Folders that may be the cache, in the order huggingface_hub asks; NULL-terminated, caller frees. */
static void hub_folders(char *out[4]) {
    const char *cache = getenv("HF_HUB_CACHE"), *home = getenv("HF_HOME"), *xdg = getenv("XDG_CACHE_HOME");
    const char *user = getenv("HOME");
    int n = 0;
    if (cache && *cache) out[n++] = nb_strdup(cache);
    if (home && *home) out[n++] = nb_path_join(home, "hub");
    if (xdg && *xdg) out[n++] = nb_path_join(xdg, "huggingface/hub");
    else if (user && *user) out[n++] = nb_path_join(user, ".cache/huggingface/hub");
    out[n] = NULL;
}

/* The snapshot of refs/main, or the only one there is; NULL when there is none. */
static char *snapshot(const char *repo) {
    char *ref = nb_path_join(repo, "refs/main"), *snapshots = nb_path_join(repo, "snapshots"), *dir = NULL, *text;
    char **names = NULL;
    int n = 0;
    size_t size;
    if (nb_file_exists(ref) && nb_file_read(ref, &text, &size) == NB_OK) {
        text[strspn(text, "0123456789abcdefABCDEF")] = 0;
        if (*text) dir = nb_path_join(snapshots, text);
        free(text);
    } else if (nb_is_dir(snapshots) && nb_list_dir(snapshots, &names, &n) == NB_OK && n == 1) {
        dir = nb_path_join(snapshots, names[0]);
    }
    for (int i = 0; i < n; i++) free(names[i]);
    free(names);
    free(ref);
    free(snapshots);
    if (dir && !nb_is_dir(dir)) {
        free(dir);
        dir = NULL;
    }
    return dir;
}

/* The folder, or the model in GGUF that is all it has. */
static nb_status in_folder(const char *folder, char **dir) {
    char *config = nb_path_join(folder, "config.json");
    bool has_config = nb_file_exists(config);
    free(config);
    if (!has_config) NB_TRY(nb_gguf_in_dir(folder, dir));
    if (!*dir) *dir = nb_strdup(folder);
    return NB_OK;
}

nb_status nb_base_resolve(const char *dir_or_name, char **dir) {
    *dir = NULL;
    if (nb_is_dir(dir_or_name)) return in_folder(dir_or_name, dir);
    if (nb_gguf_is(dir_or_name)) {
        *dir = nb_strdup(dir_or_name);
        return NB_OK;
    }
    if (nb_file_exists(dir_or_name))
        return nb_fail(NB_EINPUT, "%s: is a file, and not in GGUF; give the model's folder", dir_or_name);
    if (!is_hub_name(dir_or_name))
        return nb_fail(NB_EINPUT, "%s: no such folder, and not a hub name (org/name) either", dir_or_name);
    nb_text repo = {0}, looked = {0};
    nb_text_puts(&repo, "models--");
    for (const char *p = dir_or_name; *p; p++) nb_text_puts(&repo, *p == '/' ? "--" : (char[]){*p, 0});
    char *folders[4];
    hub_folders(folders);
    for (int i = 0; folders[i]; i++) {
        char *path = nb_path_join(folders[i], repo.s);
        if (!*dir) *dir = snapshot(path);
        nb_text_printf(&looked, "%s%s", i ? ", " : "", folders[i]);
        free(path);
        free(folders[i]);
    }
    nb_status st = *dir ? NB_OK
                        : nb_fail(NB_EINPUT, "%s: no such folder, and no such model in the local Hugging Face cache "
                                  "(looked in %s); nibble downloads nothing: fetch it with `hf download %s` or give a "
                                  "folder", dir_or_name, looked.s ? looked.s : "nothing, HOME is not set", dir_or_name);
    nb_text_free(&repo);
    nb_text_free(&looked);
    return st;
}

enum { NOTABLE = 1 << 30 }; /* bytes that take seconds to hash */

/* What a file's sha256 is remembered by. */
typedef struct stamp {
    char *path; /* real */
    int64_t size, mtime_ns, inode;
} stamp;

static nb_status take_stamp(stamp *s, const char *path) {
    struct stat sb;
    char *real = realpath(path, NULL);
    *s = (stamp){0};
    if (!real || stat(real, &sb) < 0) {
        free(real);
        return nb_fail(NB_EIO, "%s: cannot be found (check the path)", path);
    }
    *s = (stamp){.path = real, .size = sb.st_size, .inode = (int64_t)sb.st_ino,
                 .mtime_ns = (int64_t)sb.st_mtim.tv_sec * 1000000000 + sb.st_mtim.tv_nsec};
    return NB_OK;
}

/* CACHE/sha256/<sha256 of the path>.json; NULL without a cache folder. */
static char *memo_path(const stamp *s) {
    char *dir, *path = NULL;
    nb_hex key;
    if (nb_cache_dir(&dir) != NB_OK) return NULL;
    char *sub = nb_path_join(dir, "sha256");
    nb_sha256_of(s->path, strlen(s->path), key);
    if (nb_mkdirs(sub) == NB_OK) path = nb_asprintf("%s/%s.json", sub, key);
    free(sub);
    free(dir);
    return path;
}

static bool memo_read(const char *path, const stamp *s, nb_hex out) {
    json_t *m;
    if (!nb_file_exists(path) || nb_json_load(path, &m) != NB_OK) return false;
    const char *p = json_string_value(json_object_get(m, "path"));
    const char *hex = json_string_value(json_object_get(m, "sha256"));
    bool same = p && hex && strlen(hex) == 64 && !strcmp(p, s->path) &&
                json_integer_value(json_object_get(m, "size")) == s->size &&
                json_integer_value(json_object_get(m, "mtime_ns")) == s->mtime_ns &&
                json_integer_value(json_object_get(m, "inode")) == s->inode;
    if (same) memcpy(out, hex, sizeof(nb_hex));
    json_decref(m);
    return same;
}

static void memo_write(const char *path, const stamp *s, const nb_hex hex) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    /* A file written just now may change again without its time changing. */
    if ((int64_t)now.tv_sec * 1000000000 + now.tv_nsec - s->mtime_ns < 2000000000) return;
    json_t *m = json_pack("{s:s, s:I, s:I, s:I, s:s}", "path", s->path, "size", (json_int_t)s->size, "mtime_ns",
                          (json_int_t)s->mtime_ns, "inode", (json_int_t)s->inode, "sha256", hex);
    if (m) nb_json_save(path, m); /* not remembering is no error */
    json_decref(m);
}

/* Gigabytes take a while: a signal is not made to wait for them. */
static nb_status hash_weights(const char *path, nb_hex out) {
    enum { STRIDE = 64 << 20 };
    nb_map m;
    NB_TRY(nb_map_open(&m, path));
    nb_sha256 h = nb_sha256_open();
    for (size_t at = 0; at < m.size && !nb_interrupted(); at += STRIDE)
        nb_sha256_add(&h, m.data + at, m.size - at < STRIDE ? m.size - at : STRIDE);
    nb_sha256_close(&h, out);
    nb_map_close(&m);
    return nb_interrupted() ? nb_fail(NB_EINTERRUPTED, "stopped while reading %s", path) : NB_OK;
}

static nb_status file_sha256(const char *path, nb_hex out) {
    stamp s;
    NB_TRY(take_stamp(&s, path));
    char *memo = memo_path(&s);
    nb_status st = NB_OK;
    if (!memo || !memo_read(memo, &s, out)) {
        if (s.size > NOTABLE) nb_info("reading %s once to know it by its sha256", path);
        st = hash_weights(path, out);
        if (st == NB_OK && memo) memo_write(memo, &s, out);
    }
    free(memo);
    free(s.path);
    return st;
}

static int by_text(const void *x, const void *y) { return strcmp(*(char *const *)x, *(char *const *)y); }

/* The names of the folder's config.json and weight files, sorted. */
static nb_status folder_files(const char *dir, char ***names, int *n) {
    char *index = nb_path_join(dir, "model.safetensors.index.json");
    json_t *root = NULL;
    nb_status st = nb_file_exists(index) ? nb_json_load(index, &root) : NB_OK;
    const json_t *map = json_object_get(root, "weight_map");
    *names = nb_calloc(json_object_size(map) + 2, sizeof **names);
    *n = 0;
    (*names)[(*n)++] = nb_strdup("config.json");
    if (!root) (*names)[(*n)++] = nb_strdup("model.safetensors");
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map, key, v) {
        const char *f = json_string_value(v);
        bool known = !f || strchr(f, '/');
        for (int i = *n - 1; i > 0 && !known; i--) known = !strcmp((*names)[i], f);
        if (!known) (*names)[(*n)++] = nb_strdup(f);
    }
    qsort(*names, (size_t)*n, sizeof **names, by_text);
    json_decref(root);
    free(index);
    return st;
}

/* The paths of all files that make a base, in an order of their own. */
static nb_status base_files(const char *dir, char ***paths, int *n) {
    if (nb_gguf_is(dir)) return nb_gguf_parts(dir, paths, n);
    nb_status st = folder_files(dir, paths, n);
    for (int i = 0; i < *n; i++) {
        char *name = (*paths)[i];
        (*paths)[i] = nb_path_join(dir, name);
        free(name);
    }
    return st;
}

nb_status nb_base_sha256(const char *dir, nb_hex out) {
    char **names;
    int n;
    nb_status st = base_files(dir, &names, &n);
    nb_hex *hex = nb_calloc((size_t)n, sizeof *hex);
    char message[1024] = "";
    int todo = st == NB_OK ? n : 0, failed = n; /* the first file that failed speaks, whatever the threads do */
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < todo; i++) {
        nb_status one = file_sha256(names[i], hex[i]);
        if (one != NB_OK) {
#pragma omp critical(nb_base_sha256)
            if (i < failed) {
                failed = i;
                st = one;
                snprintf(message, sizeof message, "%s", nb_message());
            }
        }
    }
    if (message[0]) nb_fail(st, "%s", message);
    nb_sha256 h = nb_sha256_open();
    for (int i = 0; i < n; i++) {
        nb_sha256_add_str(&h, nb_path_base(names[i]));
        nb_sha256_add_str(&h, hex[i]);
        free(names[i]);
    }
    nb_sha256_close(&h, out);
    if (n == 1) memcpy(out, hex[0], sizeof(nb_hex));
    free(names);
    free(hex);
    return st;
}
