#include "data/dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/format.h"
#include "data/image.h"
#include "data/prepare.h"

struct nb_dataset {
    char *name;
    double weight;
    nb_hex sha256;
    nb_image image;
    nb_ledger ledger;
    /* A split's rows lie in other datasets: row i is row view_row[i] of view[i]. NULL for one that has its own. */
    const nb_dataset **view;
    int64_t *view_row;
    int64_t n_rows;
};

/* ---- one entry ---- */

static char *default_name(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    char *trimmed = nb_strndup(path, n);
    const char *base = nb_path_base(trimmed), *ext = nb_path_ext(trimmed);
    size_t cut = strlen(base) - (nb_is_dir(trimmed) ? 0 : strlen(ext));
    char *name = nb_strndup(base, cut ? cut : strlen(base));
    free(trimmed);
    return name;
}

/* Two keys: `identity` of all that decides the rows, and `place` of that and the files' names (which the cache file
 * holds), under which it is kept. */
static void hash_keys(const nb_prepare *p, nb_hex identity, nb_hex place) {
    nb_sha256 h = nb_sha256_open();
    nb_sha256_add_str(&h, "nibble prepared data 1"); /* raise it when the same input would give other rows */
    nb_format_hash(p->format, &h);
    nb_reader_hash(p->reader, &h);
    int64_t numbers[] = {p->sequence_len, p->overlap, p->strategy, p->deduplicate};
    nb_sha256_add(&h, numbers, sizeof numbers);
    nb_sha256_close(&h, identity);
    h = nb_sha256_open();
    nb_sha256_add_str(&h, identity);
    for (int i = 0; i < p->reader->n_files; i++) nb_sha256_add_str(&h, p->reader->files[i].path);
    nb_sha256_close(&h, place);
}

/* NULL: keep the data in memory. */
static char *cache_path(const nb_config *c, const char *name, const nb_hex place) {
    const char *folder = c->dataset_prepared_path;
    char *made = NULL, *base = NULL;
    if (folder && !strcmp(folder, "none")) return NULL;
    if (!folder || !*folder) {
        if (nb_cache_dir(&base) != NB_OK) {
            nb_warn("tokenized data is kept in memory only: %s", nb_message());
            return NULL;
        }
        folder = made = nb_path_join(base, "prepared");
    }
    char *file = nb_asprintf("%.40s-%.16s.nbdata", name, place), *path = NULL;
    for (char *s = file; *s; s++)
        if (*s == '/') *s = '_';
    if (nb_mkdirs(folder) == NB_OK) path = nb_path_join(folder, file);
    else nb_warn("tokenized data is kept in memory only: %s", nb_message());
    free(file);
    free(made);
    free(base);
    return path;
}

static nb_status make_image(nb_dataset *d, const nb_prepare *p, const nb_config *c) {
    nb_hex place;
    hash_keys(p, d->sha256, place);
    char *path = cache_path(c, d->name, place);
    if (path && nb_file_exists(path)) {
        if (nb_image_load(&d->image, path, place) == NB_OK) {
            nb_debug("%s: tokenized data from %s", d->name, path);
            free(path);
            return NB_OK;
        }
        nb_warn("tokenized data is made anew: %s", nb_message());
    }
    nb_status st = nb_prepare_image(p, &d->image);
    if (st == NB_OK && path) {
        nb_image saved;
        if (nb_image_save(&d->image, path, place) != NB_OK) {
            nb_warn("tokenized data is kept in memory only: %s", nb_message());
        } else if (nb_image_load(&saved, path, place) == NB_OK) {
            nb_image_free(&d->image);
            d->image = saved;
        }
    }
    free(path);
    return st;
}

static nb_status open_entry(nb_dataset *d, const nb_config *c, const nb_config_dataset *e, const nb_tokenizer *t,
                            const nb_reader *r, int64_t sequence_len) {
    nb_format *f;
    nb_prepare p = {.reader = r, .name = d->name, .overlap = e->chunk_overlap, .strategy = c->excess_length_strategy,
                    .deduplicate = c->dataset_exact_deduplication, .sequence_len = sequence_len};
    NB_TRY(nb_format_open(&f, c, e, t));
    p.format = f;
    nb_status st = make_image(d, &p, c);
    nb_format_close(f);
    return st;
}

nb_status nb_dataset_open(nb_dataset **out, const nb_config *c, const nb_config_dataset *entry, const nb_tokenizer *t,
                          int64_t sequence_len) {
    nb_reader r;
    *out = NULL;
    NB_ASSERT(sequence_len >= 2 && sequence_len <= INT32_MAX);
    if (entry->chunk_overlap >= sequence_len)
        return nb_fail(NB_EINPUT, "%s: chunk.overlap %lld must be smaller than sequence_len %lld", entry->path,
                       (long long)entry->chunk_overlap, (long long)sequence_len);
    NB_TRY(nb_reader_open(&r, entry->path));
    nb_dataset *d = NB_NEW(nb_dataset);
    d->name = entry->name && *entry->name ? nb_strdup(entry->name) : default_name(entry->path);
    d->weight = entry->weight;
    nb_status st = open_entry(d, c, entry, t, &r, sequence_len);
    nb_reader_close(&r);
    if (st != NB_OK) {
        nb_dataset_free(d);
        return st;
    }
    d->n_rows = d->image.n_rows;
    d->ledger = d->image.ledger;
    *out = d;
    return NB_OK;
}

void nb_dataset_free(nb_dataset *d) {
    if (!d) return;
    nb_image_free(&d->image);
    free(d->view);
    free(d->view_row);
    free(d->name);
    free(d);
}

const char *nb_dataset_name(const nb_dataset *d) { return d->name; }
double nb_dataset_weight(const nb_dataset *d) { return d->weight; }
int64_t nb_dataset_rows(const nb_dataset *d) { return d->n_rows; }
const nb_ledger *nb_dataset_ledger(const nb_dataset *d) { return &d->ledger; }
const char *nb_dataset_sha256(const nb_dataset *d) { return d->sha256; }

void nb_dataset_row(const nb_dataset *d, int64_t i, nb_row *out) {
    NB_ASSERT(i >= 0 && i < d->n_rows);
    if (d->view) {
        nb_dataset_row(d->view[i], d->view_row[i], out);
        return;
    }
    const nb_image *m = &d->image;
    const nb_image_row *r = &m->rows[i];
    *out = (nb_row){.ids = m->ids + r->token, .labels = m->labels + r->token, .n = r->n, .prompt_n = r->prompt_n,
                    .trained = r->trained, .reference = m->text + r->reference, .trained_bytes = r->trained_bytes,
                    .file = m->text + r->file, .line = r->line};
}

/* ---- all of a config ---- */

static int compare_int64(const void *x, const void *y) {
    int64_t u = *(const int64_t *)x, v = *(const int64_t *)y;
    return (u > v) - (u < v);
}

/* A dataset "val" of `k` of the rows, which are numbered through all training sets; chosen[k] in order. */
static nb_dataset *make_view(const nb_data *d, const int32_t *set, const int64_t *row, const int64_t *chosen,
                             int64_t k) {
    nb_dataset *v = NB_NEW(nb_dataset);
    nb_sha256 h = nb_sha256_open();
    v->name = nb_strdup("val");
    v->weight = 1;
    v->n_rows = k;
    v->view = nb_calloc((size_t)k, sizeof *v->view);
    v->view_row = nb_calloc((size_t)k, sizeof *v->view_row);
    for (int64_t i = 0; i < k; i++) {
        nb_row r;
        v->view[i] = d->train[set[chosen[i]]];
        v->view_row[i] = row[chosen[i]];
        nb_dataset_row(v, i, &r);
        v->ledger.tokens_in = v->ledger.tokens_out += r.n;
        v->ledger.tokens_trained += r.trained;
        v->ledger.bytes_in += r.trained_bytes;
        if (r.n > v->ledger.longest) v->ledger.longest = r.n;
        nb_sha256_add(&h, r.ids, (size_t)r.n * sizeof *r.ids);
        nb_sha256_add(&h, r.labels, (size_t)r.n * sizeof *r.labels);
    }
    v->ledger.rows_in = v->ledger.rows_out = k;
    nb_sha256_close(&h, v->sha256);
    return v;
}

/* Takes val_set_size of the samples out, at random by the seed, evenly over everything: rows (and the pieces of split
 * rows) are chosen one by one, so that a single long document can be split too. */
static nb_status split_off(nb_data *d, const nb_config *c) {
    int64_t n = d->n_samples, k = c->val_set_size < 1 ? llround(c->val_set_size * (double)n) : llround(c->val_set_size);
    if (k < 1) k = 1;
    if (k >= n)
        return nb_fail(NB_EINPUT, "val_set_size: %lld of %lld rows would be held out, which leaves none to train on",
                       (long long)k, (long long)n);
    int64_t *order = nb_calloc((size_t)n, sizeof *order);
    for (int64_t i = 0; i < n; i++) order[i] = i;
    nb_rng rng = nb_rng_open((uint64_t)c->seed, NB_RNG_SPLIT, 0);
    nb_rng_shuffle(&rng, order, n);
    qsort(order, (size_t)k, sizeof *order, compare_int64);
    d->held_out = nb_calloc(1, sizeof *d->held_out);
    d->held_out[d->n_held_out++] = make_view(d, d->sample_set, d->sample_row, order, k);
    int64_t kept = 0;
    for (int64_t i = 0, next = 0; i < n; i++) {
        if (next < k && order[next] == i) {
            next++;
            continue;
        }
        d->sample_set[kept] = d->sample_set[i];
        d->sample_row[kept++] = d->sample_row[i];
    }
    d->n_samples = kept;
    free(order);
    return NB_OK;
}

static nb_status check_names(const nb_data *d) {
    for (int i = 0; i < d->n_held_out; i++)
        for (int j = 0; j < i; j++)
            if (!strcmp(d->held_out[i]->name, d->held_out[j]->name))
                return nb_fail(NB_EINPUT, "test_datasets: two are called \"%s\"; give one of them another name",
                               d->held_out[i]->name);
    return NB_OK;
}

static nb_status open_sets(nb_dataset **sets, int *n, const nb_config *c, const nb_config_dataset *entries,
                           int n_entries, const nb_tokenizer *t, int64_t sequence_len) {
    for (; *n < n_entries; ++*n) NB_TRY(nb_dataset_open(&sets[*n], c, &entries[*n], t, sequence_len));
    return NB_OK;
}

static nb_status open_all(nb_data *d, const nb_config *c, const nb_tokenizer *t, int64_t sequence_len) {
    d->train = nb_calloc((size_t)c->n_datasets + 1, sizeof *d->train);
    NB_TRY(open_sets(d->train, &d->n_train, c, c->datasets, c->n_datasets, t, sequence_len));
    for (int i = 0; i < d->n_train; i++) d->n_samples += d->train[i]->n_rows;
    d->sample_set = nb_calloc((size_t)d->n_samples + 1, sizeof *d->sample_set);
    d->sample_row = nb_calloc((size_t)d->n_samples + 1, sizeof *d->sample_row);
    for (int64_t i = 0, s = 0; s < d->n_train; s++)
        for (int64_t row = 0; row < d->train[s]->n_rows; row++, i++)
            d->sample_set[i] = (int32_t)s, d->sample_row[i] = row;
    if (c->n_test_datasets) {
        d->held_out = nb_calloc((size_t)c->n_test_datasets, sizeof *d->held_out);
        NB_TRY(open_sets(d->held_out, &d->n_held_out, c, c->test_datasets, c->n_test_datasets, t, sequence_len));
        NB_TRY(check_names(d));
    } else if (c->val_set_size > 0 && d->n_samples) {
        NB_TRY(split_off(d, c));
    }
    nb_sha256 h = nb_sha256_open();
    for (int i = 0; i < d->n_train; i++) {
        nb_sha256_add_str(&h, d->train[i]->sha256);
        nb_sha256_add(&h, &d->train[i]->weight, sizeof d->train[i]->weight);
    }
    bool split = !c->n_test_datasets && c->val_set_size > 0;
    nb_sha256_add(&h, &split, sizeof split);
    if (split) nb_sha256_add_str(&h, d->n_held_out ? d->held_out[0]->sha256 : NULL);
    nb_sha256_close(&h, d->sha256);
    return NB_OK;
}

nb_status nb_data_open(nb_data *d, const nb_config *c, const nb_tokenizer *t, int64_t sequence_len) {
    *d = (nb_data){0};
    nb_status st = open_all(d, c, t, sequence_len);
    if (st != NB_OK) nb_data_free(d);
    return st;
}

void nb_data_free(nb_data *d) {
    for (int i = 0; i < d->n_held_out; i++) nb_dataset_free(d->held_out[i]);
    for (int i = 0; i < d->n_train; i++) nb_dataset_free(d->train[i]);
    free(d->held_out);
    free(d->train);
    free(d->sample_set);
    free(d->sample_row);
    *d = (nb_data){0};
}
