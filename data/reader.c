#include "data/reader.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/log.h"
#include "core/mem.h"
#include "core/utf8.h"
#include "data/reader_file.h"

static nb_status text_split(nb_reader *r, nb_source *s) {
    nb_reader_add(r, 1, s->text, s->n);
    return NB_OK;
}

static nb_status text_parse(const nb_source *s, const nb_record *rec, json_t **obj) {
    (void)s;
    *obj = json_object();
    json_object_set_new(*obj, "text", json_stringn(rec->raw, rec->n));
    return NB_OK;
}

static const struct {
    nb_status (*split)(nb_reader *r, nb_source *s);
    nb_status (*parse)(const nb_source *s, const nb_record *rec, json_t **obj);
} kinds[] = {
    [NB_SOURCE_TEXT] = {text_split, text_parse},
    [NB_SOURCE_JSONL] = {nb_jsonl_split, nb_json_parse},
    [NB_SOURCE_JSON] = {nb_json_split, nb_json_parse},
    [NB_SOURCE_CSV] = {nb_csv_split, nb_csv_parse},
};

static const struct {
    const char *ext;
    nb_source_kind kind;
    char delimiter;
} extensions[] = {
    {".jsonl", NB_SOURCE_JSONL, 0}, {".json", NB_SOURCE_JSON, 0}, {".csv", NB_SOURCE_CSV, ','},
    {".tsv", NB_SOURCE_CSV, '\t'},  {".txt", NB_SOURCE_TEXT, 0},  {".md", NB_SOURCE_TEXT, 0},
};
#define KNOWN ".jsonl, .json, .csv, .tsv, .txt, .md"

static int extension_of(const char *path) {
    const char *ext = nb_path_ext(path);
    for (int i = 0; i < NB_LEN(extensions); i++)
        if (!strcasecmp(ext, extensions[i].ext)) return i;
    return -1;
}

static nb_status check_utf8(nb_source *s) {
    const unsigned char *p = s->map.data;
    size_t n = s->map.size, bad = nb_utf8_valid((const char *)p, n);
    if (n >= 2 && ((p[0] == 0xFF && p[1] == 0xFE) || (p[0] == 0xFE && p[1] == 0xFF)))
        return nb_fail(NB_EINPUT, "%s: is UTF-16; convert it: iconv -f UTF-16 -t UTF-8", s->path);
    if (bad < n) {
        int64_t line = 1;
        for (size_t i = 0; i < bad; i++) line += p[i] == '\n';
        return nb_fail(NB_EINPUT,
                       "%s:%lld: invalid UTF-8 at byte offset %zu (byte 0x%02X); if the file is Latin-1, convert "
                       "it: iconv -f LATIN1 -t UTF-8",
                       s->path, (long long)line, bad, p[bad]);
    }
    size_t mark = n >= 3 && !memcmp(p, "\xEF\xBB\xBF", 3) ? 3 : 0;
    s->text = p ? (const char *)p + mark : "";
    s->n = n - mark;
    return NB_OK;
}

static nb_status add_file(nb_reader *r, const char *path, int ext) {
    r->files = nb_realloc(r->files, (size_t)r->n_files + 1, sizeof *r->files);
    nb_source *s = &r->files[r->n_files++];
    *s = (nb_source){.path = nb_strdup(path), .kind = extensions[ext].kind, .delimiter = extensions[ext].delimiter};
    NB_TRY(nb_map_open(&s->map, path));
    NB_TRY(check_utf8(s));
    return kinds[s->kind].split(r, s);
}

static nb_status add_folder(nb_reader *r, const char *dir, int depth, int *skipped) {
    char **names;
    int n;
    if (depth > 32) return nb_fail(NB_EINPUT, "%s: folders nested more than 32 deep", dir);
    NB_TRY(nb_list_dir(dir, &names, &n));
    nb_status st = NB_OK;
    for (int i = 0; i < n; i++) {
        char *path = nb_path_join(dir, names[i]);
        int ext = extension_of(path);
        if (st == NB_OK && names[i][0] != '.') {
            if (nb_is_dir(path)) st = add_folder(r, path, depth + 1, skipped);
            else if (ext >= 0) st = add_file(r, path, ext);
            else ++*skipped;
        }
        free(path);
        free(names[i]);
    }
    free(names);
    return st;
}

static nb_status open_path(nb_reader *r, const char *path) {
    int skipped = 0, ext = extension_of(path);
    if (nb_is_dir(path)) {
        NB_TRY(add_folder(r, path, 0, &skipped));
        if (!r->n_files)
            return nb_fail(NB_EINPUT, "%s: no data file in this folder (looked for " KNOWN "; %d other files)", path,
                           skipped);
        if (skipped) nb_info("%s: %d files with other extensions than " KNOWN " left out", path, skipped);
    } else if (!nb_file_exists(path)) {
        return nb_fail(NB_EIO, "%s: no such file or folder (relative paths start at the working directory)", path);
    } else if (ext < 0) {
        return nb_fail(NB_EINPUT, "%s: unknown extension \"%s\" (known: " KNOWN ")", path, nb_path_ext(path));
    } else {
        NB_TRY(add_file(r, path, ext));
    }
    if (!r->n) return nb_fail(NB_EINPUT, "%s: is empty: not one record in it", path);
    return NB_OK;
}

nb_status nb_reader_open(nb_reader *r, const char *path) {
    *r = (nb_reader){0};
    nb_status st = open_path(r, path);
    if (st != NB_OK) nb_reader_close(r);
    return st;
}

void nb_reader_close(nb_reader *r) {
    for (int i = 0; i < r->n_files; i++) {
        nb_source *s = &r->files[i];
        for (int c = 0; c < s->n_columns; c++) free(s->columns[c]);
        free(s->columns);
        json_decref(s->table);
        nb_map_close(&s->map);
        free(s->path);
    }
    free(r->files);
    free(r->records);
    *r = (nb_reader){0};
}

void nb_reader_add(nb_reader *r, int64_t line, const char *raw, size_t n) {
    NB_GROW(r->records, r->n, r->cap);
    r->records[r->n++] = (nb_record){.file = r->n_files - 1, .line = line, .raw = raw, .n = n};
}

nb_status nb_record_parse(const nb_reader *r, int64_t i, json_t **obj) {
    const nb_record *rec = &r->records[i];
    const nb_source *s = &r->files[rec->file];
    return kinds[s->kind].parse(s, rec, obj);
}

const char *nb_record_path(const nb_reader *r, int64_t i) {
    return r->files[r->records[i].file].path;
}

void nb_reader_hash(const nb_reader *r, nb_sha256 *h) {
    for (int i = 0; i < r->n_files; i++) {
        uint64_t size = r->files[i].map.size;
        nb_sha256_add(h, &r->files[i].kind, sizeof r->files[i].kind);
        nb_sha256_add(h, &size, sizeof size);
        nb_sha256_add(h, r->files[i].map.data, r->files[i].map.size);
    }
}
