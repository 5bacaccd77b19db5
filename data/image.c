#include "data/image.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

#define MAGIC "NBDATA\0001" /* 8 bytes with its terminator; the digit is the version of the layout */

typedef struct header {
    char magic[8];
    char key[64];
    int64_t n_rows, n_tokens, n_text;
    nb_ledger ledger;
    uint32_t crc, size_of_row;
} header;

int64_t nb_image_string(nb_image *m, const char *s, size_t n) {
    int64_t at = (int64_t)m->own_text.n;
    nb_text_add(&m->own_text, s, n);
    nb_text_add(&m->own_text, "", 1);
    return at;
}

void nb_image_row_add(nb_image *m, const nb_image_row *row, const int32_t *ids, const int32_t *labels) {
    NB_GROW(m->own_rows, m->n_rows, m->cap_rows);
    if (m->n_tokens + row->n > m->cap_tokens) {
        m->cap_tokens = (m->n_tokens + row->n) * 3 / 2;
        m->own_ids = nb_realloc(m->own_ids, (size_t)m->cap_tokens, sizeof *m->own_ids);
        m->own_labels = nb_realloc(m->own_labels, (size_t)m->cap_tokens, sizeof *m->own_labels);
    }
    nb_image_row *to = &m->own_rows[m->n_rows++];
    *to = *row;
    to->token = m->n_tokens;
    memcpy(m->own_ids + m->n_tokens, ids, (size_t)row->n * sizeof *ids);
    memcpy(m->own_labels + m->n_tokens, labels, (size_t)row->n * sizeof *labels);
    m->n_tokens += row->n;
}

void nb_image_seal(nb_image *m) {
    m->rows = m->own_rows;
    m->ids = m->own_ids;
    m->labels = m->own_labels;
    m->text = m->own_text.s;
    m->n_text = (int64_t)m->own_text.n;
}

void nb_image_free(nb_image *m) {
    nb_map_close(&m->map);
    free(m->own_rows);
    free(m->own_ids);
    free(m->own_labels);
    nb_text_free(&m->own_text);
    *m = (nb_image){0};
}

static uint32_t checksum(const nb_image *m) {
    uint32_t crc = nb_crc32c(0, m->rows, (size_t)m->n_rows * sizeof *m->rows);
    crc = nb_crc32c(crc, m->ids, (size_t)m->n_tokens * sizeof *m->ids);
    crc = nb_crc32c(crc, m->labels, (size_t)m->n_tokens * sizeof *m->labels);
    crc = nb_crc32c(crc, &m->ledger, sizeof m->ledger);
    return nb_crc32c(crc, m->text, (size_t)m->n_text);
}

nb_status nb_image_save(const nb_image *m, const char *path, const nb_hex key) {
    header h = {.n_rows = m->n_rows, .n_tokens = m->n_tokens, .n_text = m->n_text, .ledger = m->ledger};
    memcpy(h.magic, MAGIC, sizeof h.magic);
    memcpy(h.key, key, sizeof h.key);
    h.crc = checksum(m);
    h.size_of_row = sizeof *m->rows;
    const struct {
        const void *data;
        size_t size;
    } parts[] = {{&h, sizeof h},
                 {m->rows, (size_t)m->n_rows * sizeof *m->rows},
                 {m->ids, (size_t)m->n_tokens * sizeof *m->ids},
                 {m->labels, (size_t)m->n_tokens * sizeof *m->labels},
                 {m->text, (size_t)m->n_text}};
    nb_out o;
    NB_TRY(nb_out_open(&o, path));
    nb_status st = NB_OK;
    for (int i = 0; i < NB_LEN(parts) && st == NB_OK; i++) st = nb_out_write(&o, parts[i].data, parts[i].size);
    if (st == NB_OK) return nb_out_commit(&o);
    nb_out_abort(&o);
    return st;
}

/* The counts are untrusted until the checksum holds: they must add up to the file's size without overflow. */
static bool sizes_fit(const header *h, size_t size) {
    int64_t left = (int64_t)size - (int64_t)sizeof *h;
    if (h->n_rows < 0 || h->n_tokens < 0 || h->n_text < 0 || h->size_of_row != sizeof(nb_image_row)) return false;
    if (h->n_rows > left / (int64_t)sizeof(nb_image_row)) return false;
    left -= h->n_rows * (int64_t)sizeof(nb_image_row);
    return h->n_tokens <= left / 8 && left - h->n_tokens * 8 == h->n_text;
}

static bool rows_fit(const nb_image *m) {
    if (m->n_text && m->text[m->n_text - 1]) return false;
    for (int64_t i = 0; i < m->n_rows; i++) {
        const nb_image_row *r = &m->rows[i];
        if (r->n < 1 || r->token < 0 || r->token > m->n_tokens - r->n || r->prompt_n < 0 || r->prompt_n > r->n)
            return false;
        if (r->reference < 0 || r->reference >= m->n_text || r->file < 0 || r->file >= m->n_text) return false;
    }
    return true;
}

static nb_status damaged(const char *path, const char *what) {
    return nb_fail(NB_EINPUT, "%s: %s", path, what);
}

static nb_status load(nb_image *m, const char *path, const nb_hex key) {
    header h;
    if (m->map.size < sizeof h) return damaged(path, "cut off");
    memcpy(&h, m->map.data, sizeof h);
    if (memcmp(h.magic, MAGIC, sizeof h.magic)) return damaged(path, "not prepared data of this version");
    if (memcmp(h.key, key, sizeof h.key)) return damaged(path, "made from other data or settings");
    if (!sizes_fit(&h, m->map.size)) return damaged(path, "cut off or damaged");
    m->n_rows = h.n_rows;
    m->n_tokens = h.n_tokens;
    m->n_text = h.n_text;
    m->ledger = h.ledger;
    m->rows = (const nb_image_row *)(const void *)(m->map.data + sizeof h);
    m->ids = (const int32_t *)(const void *)(m->rows + h.n_rows);
    m->labels = m->ids + h.n_tokens;
    m->text = (const char *)(m->labels + h.n_tokens);
    if (checksum(m) != h.crc || !rows_fit(m)) return damaged(path, "damaged: its checksum does not match");
    return NB_OK;
}

nb_status nb_image_load(nb_image *m, const char *path, const nb_hex key) {
    *m = (nb_image){0};
    NB_TRY(nb_map_open(&m->map, path));
    nb_status st = load(m, path, key);
    if (st != NB_OK) nb_image_free(m);
    return st;
}
