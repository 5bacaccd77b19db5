/* Data files as numbered records: .jsonl, .json (an array of objects, or an object of columns), .csv and .tsv
 * (RFC 4180 with a header row), .txt and .md (the whole file is one record), or a folder of any of them, read
 * recursively in the order of the sorted names. Opening maps every file, checks that it is UTF-8 and finds where
 * each record begins; a record's own text is parsed later, by any thread. Errors name file:line. */
#ifndef NB_DATA_READER_H
#define NB_DATA_READER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/status.h"

typedef enum nb_source_kind { NB_SOURCE_TEXT, NB_SOURCE_JSONL, NB_SOURCE_JSON, NB_SOURCE_CSV } nb_source_kind;

typedef struct nb_source { /* one file */
    char *path;
    nb_source_kind kind;
    nb_map map;
    const char *text; /* [n] the file without its byte order mark */
    size_t n;
    char delimiter;   /* CSV */
    char **columns;   /* CSV: names in the header row */
    int n_columns;
    json_t *table;    /* JSON object of columns, or NULL */
} nb_source;

typedef struct nb_record {
    int32_t file;    /* index into nb_reader.files */
    int64_t line;    /* from 1; for an object of columns the row's number */
    const char *raw; /* [n] in the mapped file */
    size_t n;
} nb_record;

typedef struct nb_reader {
    nb_source *files;
    int n_files;
    nb_record *records;
    int64_t n, cap;
} nb_reader;

/* Fails on a missing path, an unknown extension, invalid UTF-8 (file, line, byte offset), a broken structure and
 * when there is no record at all. nb_reader_close is due after success only. */
nb_status nb_reader_open(nb_reader *r, const char *path);
void nb_reader_close(nb_reader *r);
/* The record as a JSON object (CSV fields and text files as strings; a text file has the one key "text"). Thread-safe
 * as long as no two threads ask for the same record. Caller json_decref's *obj. */
nb_status nb_record_parse(const nb_reader *r, int64_t i, json_t **obj);
const char *nb_record_path(const nb_reader *r, int64_t i);
/* Adds the bytes of all files to a hash, in order (not their paths). */
void nb_reader_hash(const nb_reader *r, nb_sha256 *h);

#endif
