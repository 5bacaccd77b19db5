#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/mem.h"

static nb_status io_error(const char *doing, const char *path) {
    const char *todo = errno == ENOENT   ? " (check the path)"
                       : errno == ENOSPC ? " (free some space or write elsewhere)"
                       : errno == EACCES ? " (check the permissions)"
                                         : "";
    return nb_fail(NB_EIO, "%s: cannot %s: %s%s", path, doing, strerror(errno), todo);
}

nb_status nb_map_open(nb_map *m, const char *path) {
    *m = (nb_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return io_error("open", path);
    struct stat sb;
    if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode)) {
        close(fd);
        return nb_fail(NB_EINPUT, "%s: not a regular file", path);
    }
    if (sb.st_size > 0) {
        void *p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            nb_status st = io_error("map", path);
            close(fd);
            return st;
        }
        m->data = p;
    }
    close(fd);
    m->size = (size_t)sb.st_size;
    m->path = nb_strdup(path);
    return NB_OK;
}

void nb_map_close(nb_map *m) {
    if (m->data) munmap((void *)(uintptr_t)m->data, m->size);
    free(m->path);
    *m = (nb_map){0};
}

nb_status nb_file_read(const char *path, char **data, size_t *size) {
    *data = NULL;
    *size = 0;
    FILE *f = fopen(path, "rbe");
    if (!f) return io_error("open", path);
    struct stat sb;
    if (fstat(fileno(f), &sb) < 0 || S_ISDIR(sb.st_mode)) {
        fclose(f);
        return nb_fail(NB_EINPUT, "%s: is a folder, a file is wanted", path);
    }
    nb_text t = {0};
    char chunk[65536];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, f)) > 0) nb_text_add(&t, chunk, n);
    if (ferror(f)) {
        nb_status st = io_error("read", path);
        fclose(f);
        nb_text_free(&t);
        return st;
    }
    fclose(f);
    if (!t.s) nb_text_add(&t, "", 0);
    *data = t.s;
    *size = t.n;
    return NB_OK;
}

static const char *out_name(const nb_out *o) { return o->tmp ? o->tmp : o->path; }

nb_status nb_out_open(nb_out *o, const char *path) {
    struct stat sb;
    bool in_place = stat(path, &sb) == 0 && !S_ISREG(sb.st_mode); /* /dev/stdout, a pipe: renaming would replace it */
    o->path = nb_strdup(path);
    o->tmp = in_place ? NULL : nb_asprintf("%s.tmp-%ld", path, (long)getpid());
    o->f = fopen(out_name(o), "wbe");
    if (!o->f) {
        nb_status st = io_error("create", out_name(o));
        nb_out_abort(o);
        return st;
    }
    return NB_OK;
}

nb_status nb_out_write(nb_out *o, const void *data, size_t size) {
    if (size && fwrite(data, 1, size, o->f) != size) return io_error("write", out_name(o));
    return NB_OK;
}

nb_status nb_out_commit(nb_out *o) {
    nb_status st = NB_OK;
    if (fflush(o->f) || ferror(o->f) || (o->tmp && fsync(fileno(o->f)))) st = io_error("write", out_name(o));
    if (fclose(o->f) && st == NB_OK) st = io_error("close", out_name(o));
    o->f = NULL;
    if (st == NB_OK && o->tmp && rename(o->tmp, o->path) < 0) st = io_error("rename into place", o->path);
    if (st == NB_OK) {
        free(o->tmp);
        o->tmp = NULL;
    }
    nb_out_abort(o);
    return st;
}

void nb_out_abort(nb_out *o) {
    if (o->f) fclose(o->f);
    if (o->tmp) unlink(o->tmp);
    free(o->tmp);
    free(o->path);
    *o = (nb_out){0};
}

nb_status nb_file_write(const char *path, const void *data, size_t size) {
    nb_out o;
    NB_TRY(nb_out_open(&o, path));
    nb_status st = nb_out_write(&o, data, size);
    if (st != NB_OK) {
        nb_out_abort(&o);
        return st;
    }
    return nb_out_commit(&o);
}

nb_status nb_file_copy(const char *from, const char *to) {
    nb_map m;
    NB_TRY(nb_map_open(&m, from));
    nb_status st = nb_file_write(to, m.data, m.size);
    nb_map_close(&m);
    return st;
}

bool nb_file_exists(const char *path) {
    struct stat sb;
    return stat(path, &sb) == 0;
}

bool nb_is_dir(const char *path) {
    struct stat sb;
    return stat(path, &sb) == 0 && S_ISDIR(sb.st_mode);
}

nb_status nb_mkdirs(const char *path) {
    char *p = nb_strdup(path);
    nb_status st = NB_OK;
    for (char *s = p + 1; st == NB_OK; s++) {
        if (*s != '/' && *s) continue;
        char c = *s;
        *s = 0;
        if (mkdir(p, 0777) < 0 && errno != EEXIST) st = io_error("create the folder", p);
        else if (!nb_is_dir(p)) st = nb_fail(NB_EIO, "%s: exists and is not a folder", p);
        *s = c;
        if (!c) break;
    }
    free(p);
    return st;
}

nb_status nb_remove_tree(const char *path) {
    struct stat sb;
    if (lstat(path, &sb) < 0) return errno == ENOENT ? NB_OK : io_error("look at", path);
    if (!S_ISDIR(sb.st_mode)) return unlink(path) < 0 ? io_error("remove", path) : NB_OK;
    char **names;
    int n;
    NB_TRY(nb_list_dir(path, &names, &n));
    nb_status st = NB_OK;
    for (int i = 0; i < n; i++) {
        char *p = nb_path_join(path, names[i]);
        if (st == NB_OK) st = nb_remove_tree(p);
        free(p);
        free(names[i]);
    }
    free(names);
    if (st == NB_OK && rmdir(path) < 0) st = io_error("remove", path);
    return st;
}

nb_status nb_sync_dir(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return io_error("open the folder", path);
    int bad = fsync(fd);
    close(fd);
    return bad ? io_error("sync", path) : NB_OK;
}

static int by_name(const void *x, const void *y) {
    return strcmp(*(char *const *)x, *(char *const *)y);
}

nb_status nb_list_dir(const char *path, char ***names, int *n) {
    *names = NULL;
    *n = 0;
    DIR *d = opendir(path);
    if (!d) return io_error("open the folder", path);
    int cap = 0;
    for (struct dirent *e; (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        NB_GROW(*names, *n, cap);
        (*names)[(*n)++] = nb_strdup(e->d_name);
    }
    closedir(d);
    if (*n) qsort(*names, (size_t)*n, sizeof **names, by_name);
    return NB_OK;
}

char *nb_path_join(const char *dir, const char *name) {
    size_t n = strlen(dir);
    return nb_asprintf(n && dir[n - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}

const char *nb_path_base(const char *path) {
    const char *s = strrchr(path, '/');
    return s ? s + 1 : path;
}

const char *nb_path_ext(const char *path) {
    const char *b = nb_path_base(path), *s = strrchr(b, '.');
    return s && s != b ? s : "";
}

nb_status nb_free_space(const char *path, uint64_t *bytes) {
    char *p = nb_strdup(path);
    struct statvfs v;
    while (statvfs(p, &v) < 0) {
        char *s = strrchr(p, '/');
        if (errno != ENOENT || (s == p && !s[1])) {
            nb_status st = io_error("look at the file system of", p);
            free(p);
            return st;
        }
        if (!s) strcpy(p, ".");
        else if (s == p) s[1] = 0;
        else *s = 0;
    }
    *bytes = (uint64_t)v.f_bavail * v.f_frsize;
    free(p);
    return NB_OK;
}

nb_status nb_cache_dir(char **dir) {
    const char *own = getenv("NIBBLE_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (own && *own) *dir = nb_strdup(own);
    else if (xdg && *xdg) *dir = nb_path_join(xdg, "nibble");
    else if (home && *home) *dir = nb_path_join(home, ".cache/nibble");
    else *dir = nb_strdup(".nibble-cache");
    nb_status st = nb_mkdirs(*dir);
    if (st != NB_OK) {
        free(*dir);
        *dir = NULL;
    }
    return st;
}
