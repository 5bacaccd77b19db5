/* A prepared dataset: every row's tokens, labels and origin in four flat sections, in memory or as a mapped file.
 *
 *   file:  header | rows [n_rows] | ids [n_tokens] | labels [n_tokens] | text [n_text]
 *
 * text holds NUL-terminated strings: the names of the data files, then the rows' references. The header has the key
 * (a hash of all that made the rows) and a CRC-32C of everything behind it. Files are this machine's byte order. */
#ifndef NB_DATA_IMAGE_H
#define NB_DATA_IMAGE_H

#include "core/file.h"
#include "core/hash.h"
#include "data/dataset.h"

typedef struct nb_image_row {
    int64_t token;     /* its first token */
    int64_t reference; /* offset in text */
    int64_t file;      /* offset in text */
    int64_t line, trained_bytes;
    int32_t n, prompt_n, trained, zero;
} nb_image_row;

typedef struct nb_image {
    const nb_image_row *rows;
    const int32_t *ids, *labels;
    const char *text;
    int64_t n_rows, n_tokens, n_text;
    nb_ledger ledger;
    nb_map map;                      /* of a file; else the sections are malloc'd: */
    nb_image_row *own_rows;
    int32_t *own_ids, *own_labels;
    nb_text own_text;
    int64_t cap_rows, cap_tokens;
} nb_image;

/* Building: strings and rows are appended, then nb_image_seal points the sections at them. */
int64_t nb_image_string(nb_image *m, const char *s, size_t n); /* its offset */
void nb_image_row_add(nb_image *m, const nb_image_row *row, const int32_t *ids,
                      const int32_t *labels); /* row->n tokens */
void nb_image_seal(nb_image *m);
void nb_image_free(nb_image *m);

nb_status nb_image_save(const nb_image *m, const char *path, const nb_hex key); /* atomic */
/* NB_EINPUT (message says why) when the file is not a whole, undamaged image with this key. */
nb_status nb_image_load(nb_image *m, const char *path, const nb_hex key);

#endif
