/* Files: read-only maps, whole-file reads, and writes that are beside-then-rename, so that a file
 * is never seen half written. All messages name the path and the system's reason. */
#ifndef NB_CORE_FILE_H
#define NB_CORE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/status.h"

typedef struct nb_map { /* a file mapped read-only */
    const uint8_t *data; /* NULL for an empty file */
    size_t size;
    char *path;
} nb_map;
nb_status nb_map_open(nb_map *m, const char *path);
void nb_map_close(nb_map *m);

/* Whole file into a malloc'd buffer with a NUL behind it (not counted in *size). Caller frees. */
nb_status nb_file_read(const char *path, char **data, size_t *size);

/* A file being written as PATH.tmp-PID (a device or pipe: as itself). nb_out_commit flushes, syncs and renames it to PATH;
 * nb_out_abort removes it (harmless after a commit). Write with nb_out_write or to ->f. */
typedef struct nb_out {
    FILE *f;
    char *path, *tmp;
} nb_out;
nb_status nb_out_open(nb_out *o, const char *path);
nb_status nb_out_write(nb_out *o, const void *data, size_t size);
nb_status nb_out_commit(nb_out *o);
void nb_out_abort(nb_out *o);

nb_status nb_file_write(const char *path, const void *data, size_t size); /* atomic */
nb_status nb_file_copy(const char *from, const char *to);                 /* atomic */

bool nb_file_exists(const char *path); /* anything at all */
bool nb_is_dir(const char *path);
nb_status nb_mkdirs(const char *path);
nb_status nb_remove_tree(const char *path); /* no error when absent; never follows links */
nb_status nb_sync_dir(const char *path);    /* fsync of a directory: makes renames in it durable */
/* Sorted names in a directory without "." and ".."; free each and the array. */
nb_status nb_list_dir(const char *path, char ***names, int *n);
char *nb_path_join(const char *dir, const char *name); /* caller frees */
const char *nb_path_base(const char *path);            /* the part behind the last '/' */
const char *nb_path_ext(const char *path);             /* ".jsonl", or "" */
/* Bytes free for us on the file system that holds (the nearest existing parent of) path. */
nb_status nb_free_space(const char *path, uint64_t *bytes);
/* ~/.cache/nibble or $XDG_CACHE_HOME/nibble, or $NIBBLE_CACHE; created. Caller frees. */
nb_status nb_cache_dir(char **dir);

#endif
