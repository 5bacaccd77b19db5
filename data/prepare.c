#include "data/prepare.h"

#include <stdlib.h>
#include <string.h>

#include "core/interrupt.h"
#include "core/log.h"
#include "core/mem.h"

enum { BLOCK_ROWS = 1024, BLOCK_BYTES = 16 << 20 }; /* what is tokenized between two looks at the progress bar */

typedef struct seen { /* hashes of rows so far: open addressing, a quarter to half full */
    char (*key)[32];
    int64_t n, cap;
} seen;

typedef struct state {
    const nb_prepare *p;
    nb_image *m;
    seen seen;
    int64_t *file; /* offsets of the files' names */
    int64_t n_long, longest_at;
} state;

/* The slot of a key: where it is, or where it would go. The key is a hash already, so its bits choose the place. */
static char *slot_of(const seen *s, const char *key) {
    size_t at;
    memcpy(&at, key, sizeof at);
    for (at *= 0x9E3779B97F4A7C15u, at ^= at >> 32;; at++) {
        char *slot = s->key[at & ((size_t)s->cap - 1)];
        if (!slot[0] || !memcmp(slot, key, sizeof s->key[0])) return slot;
    }
}

/* True if the row was there before; adds it if not. */
static bool is_repeat(seen *s, const nb_encoded *e) {
    nb_hex hex;
    nb_sha256 h = nb_sha256_open();
    nb_sha256_add(&h, e->ids, (size_t)e->n * sizeof *e->ids);
    nb_sha256_add(&h, e->labels, (size_t)e->n * sizeof *e->labels);
    nb_sha256_close(&h, hex);
    if (s->n * 2 >= s->cap) {
        seen old = *s;
        s->cap = old.cap ? old.cap * 2 : 1024;
        s->key = nb_calloc((size_t)s->cap, sizeof *s->key);
        for (int64_t i = 0; i < old.cap; i++)
            if (old.key[i][0]) memcpy(slot_of(s, old.key[i]), old.key[i], sizeof old.key[i]);
        free(old.key);
    }
    char *slot = slot_of(s, hex);
    if (slot[0]) return true;
    memcpy(slot, hex, sizeof s->key[0]);
    s->n++;
    return false;
}

/* Tokens [begin, end) of the row; the first `context` of them only as context. False, and nothing added, when none is
 * trained. */
static bool add_piece(state *s, int64_t record, nb_encoded *e, int64_t begin, int64_t end, int64_t context) {
    const nb_record *rec = &s->p->reader->records[record];
    nb_image_row row = {.file = s->file[rec->file], .line = rec->line, .n = (int32_t)(end - begin)};
    for (int64_t i = begin; i < begin + context; i++) e->labels[i] = NB_IGNORE, e->bytes[i] = 0;
    for (int64_t i = begin; i < end; i++) {
        row.trained += e->labels[i] != NB_IGNORE;
        row.trained_bytes += e->bytes[i];
    }
    if (!row.trained) return false;
    bool has_prompt = e->prompt_n > begin && e->prompt_n < end;
    row.prompt_n = has_prompt ? (int32_t)(e->prompt_n - begin) : 0;
    row.reference = has_prompt && e->reference.n ? nb_image_string(s->m, e->reference.s, e->reference.n) : 0;
    nb_image_row_add(s->m, &row, e->ids + begin, e->labels + begin);
    nb_ledger *l = &s->m->ledger;
    l->rows_out++;
    l->tokens_out += row.n;
    l->tokens_trained += row.trained;
    l->bytes_in += row.trained_bytes;
    return true;
}

/* Pieces share at least one token: a piece's first token is context only, and no token's training is lost by that. */
static void add_split(state *s, int64_t record, nb_encoded *e) {
    nb_ledger *l = &s->m->ledger;
    int64_t length = s->p->sequence_len, overlap = s->p->overlap > 1 ? s->p->overlap : 1, kept = 0;
    for (int64_t begin = 0, context = 0;; context = overlap) {
        int64_t end = begin + length < e->n ? begin + length : e->n;
        if (add_piece(s, record, e, begin, end, context)) kept++;
        else l->tokens_dropped += end - begin;
        l->tokens_overlap += context;
        if (end == e->n) break;
        begin = end - overlap;
    }
    l->rows_split_extra += kept - 1;
}

static void add_truncated(state *s, int64_t record, nb_encoded *e) {
    nb_ledger *l = &s->m->ledger;
    int64_t length = s->p->sequence_len;
    l->tokens_truncated += e->n - length;
    if (add_piece(s, record, e, 0, length, 0)) return;
    l->rows_dropped_long++;
    l->tokens_dropped += length;
}

static void add_row(state *s, int64_t record, nb_encoded *e) {
    nb_ledger *l = &s->m->ledger;
    l->rows_in++;
    l->tokens_in += e->n;
    if (e->n > l->longest) l->longest = e->n, s->longest_at = record;
    if (s->p->deduplicate && is_repeat(&s->seen, e)) {
        l->rows_dropped_duplicate++;
        l->tokens_dropped += e->n;
    } else if (e->n <= s->p->sequence_len) {
        add_piece(s, record, e, 0, e->n, 0);
    } else {
        s->n_long++;
        switch (s->p->strategy) {
        case NB_EXCESS_SPLIT: add_split(s, record, e); break;
        case NB_EXCESS_TRUNCATE: add_truncated(s, record, e); break;
        default: /* drop; or raise, which fails at the end with the whole picture */
            l->rows_dropped_long++;
            l->tokens_dropped += e->n;
        }
    }
}

static nb_status too_long(const state *s) {
    const nb_reader *r = s->p->reader;
    const nb_ledger *l = &s->m->ledger;
    return nb_fail(
        NB_EINPUT,
        "%s: %lld of %lld rows are longer than sequence_len %lld; the longest has %lld tokens (%s:%lld). One of these "
        "lines settles it:\n"
        "  sequence_len: %lld                    (takes them whole; more memory)\n"
        "  excess_length_strategy: split      (cuts them into pieces; nothing is lost)\n"
        "  excess_length_strategy: truncate   (cuts the ends off)\n"
        "  excess_length_strategy: drop       (leaves these rows out)",
        s->p->name, (long long)s->n_long, (long long)l->rows_in, (long long)s->p->sequence_len, (long long)l->longest,
        nb_record_path(r, s->longest_at), (long long)r->records[s->longest_at].line, (long long)l->longest);
}

/* Tokenizes records [begin, end) in parallel into slots[]; the error reported is that of the first bad record. */
static nb_status encode_block(const nb_prepare *p, int64_t begin, int64_t end, nb_encoded *slots) {
    nb_status status[BLOCK_ROWS];
    char *message[BLOCK_ROWS];
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t i = begin; i < end; i++) {
        int64_t k = i - begin;
        status[k] = nb_format_row(p->format, p->reader, i, &slots[k]);
        message[k] = status[k] == NB_OK ? NULL : nb_strdup(nb_message());
    }
    nb_status st = NB_OK;
    for (int64_t k = 0; k < end - begin; k++) {
        if (st == NB_OK && status[k] != NB_OK) st = nb_fail(status[k], "%s", message[k]);
        free(message[k]);
    }
    return st;
}

static nb_status run(state *s, nb_encoded *slots) {
    const nb_reader *r = s->p->reader;
    nb_progress bar;
    nb_status st = NB_OK;
    nb_progress_begin(&bar, s->p->name, (double)r->n, "rows");
    for (int64_t begin = 0; begin < r->n && st == NB_OK;) {
        int64_t end = begin;
        for (size_t bytes = 0; end < r->n && end - begin < BLOCK_ROWS && bytes < BLOCK_BYTES; end++)
            bytes += r->records[end].n;
        st = encode_block(s->p, begin, end, slots);
        for (int64_t i = begin; i < end && st == NB_OK; i++) add_row(s, i, &slots[i - begin]);
        begin = end;
        nb_progress_set(&bar, (double)begin, NULL);
        if (st == NB_OK && nb_interrupted()) st = nb_fail(NB_EINTERRUPTED, "stopped while tokenizing %s", s->p->name);
    }
    nb_progress_end(&bar);
    if (st == NB_OK && s->n_long && s->p->strategy == NB_EXCESS_RAISE) st = too_long(s);
    if (st == NB_OK) st = nb_ledger_check(&s->m->ledger, s->p->name);
    if (st == NB_OK && !s->m->n_rows)
        st = nb_fail(NB_EINPUT, "%s: no row is left: all %lld were too long for sequence_len %lld and dropped",
                     s->p->name, (long long)s->m->ledger.rows_in, (long long)s->p->sequence_len);
    return st;
}

nb_status nb_ledger_check(const nb_ledger *l, const char *name) {
    int64_t rows = l->rows_out - l->rows_split_extra + l->rows_dropped_long + l->rows_dropped_duplicate;
    int64_t tokens = l->tokens_out - l->tokens_overlap + l->tokens_truncated + l->tokens_dropped;
    if (rows == l->rows_in && tokens == l->tokens_in) return NB_OK;
    return nb_fail(NB_EINPUT,
                   "%s: the ledger does not balance: %lld rows in, %lld accounted for; %lld tokens in, %lld accounted "
                   "for. This is a mistake in nibble: please report it",
                   name, (long long)l->rows_in, (long long)rows, (long long)l->tokens_in, (long long)tokens);
}

nb_status nb_prepare_image(const nb_prepare *p, nb_image *m) {
    *m = (nb_image){0};
    state s = {.p = p, .m = m, .file = nb_calloc((size_t)p->reader->n_files, sizeof *s.file)};
    nb_encoded *slots = nb_calloc(BLOCK_ROWS, sizeof *slots);
    nb_image_string(m, "", 0); /* offset 0: no reference */
    for (int i = 0; i < p->reader->n_files; i++)
        s.file[i] = nb_image_string(m, p->reader->files[i].path, strlen(p->reader->files[i].path));
    nb_status st = run(&s, slots);
    for (int i = 0; i < BLOCK_ROWS; i++) nb_encoded_free(&slots[i]);
    free(slots);
    free(s.file);
    free(s.seen.key);
    if (st == NB_OK) nb_image_seal(m);
    else nb_image_free(m);
    return st;
}
