/* tokenizer.model: SentencePiece's ModelProto (protocol buffer), type BPE or Unigram; or a list of ranks, which has a file
 * of its own.
 *
 *   1 pieces   { 1 piece string, 2 score float, 3 type: 1 normal 2 unknown 3 control 4 user defined 5 unused 6 byte }
 *   2 trainer  { 3 model_type: 1 unigram 2 BPE, 24 treat_whitespace_as_suffix, 35 byte_fallback, 40..43 unk bos eos pad
 * } 3 normalizer { 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces }
 *
 * SentencePiece joins the neighbours whose concatenation is the piece with the highest score. That is a merge loop
 * with a merge for every way to cut a piece in two pieces, ranked by the score of the result. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/mem.h"
#include "core/utf8.h"
#include "data/tokenizer_impl.h"

enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

typedef struct reader { /* a message being read; bad is set when it ends too early */
    const uint8_t *s, *end;
    bool bad;
} reader;
typedef struct field {
    uint32_t number;
    uint64_t value; /* varint, or the bits of a fixed32/fixed64 */
    reader sub;     /* length-delimited */
} field;

typedef struct piece {
    float score;
    int32_t id, type;
    uint32_t rank;
} piece;

typedef struct model {
    nb_tokenizer *t;
    piece *v;
    int n, cap;
    int64_t type, unk, bos, eos, pad;
    bool unused, byte_fallback, suffix, dummy_prefix, remove_extra, escape;
    reader charsmap;
} model;

static uint64_t varint(reader *r) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (r->s == r->end) break;
        uint8_t c = *r->s++;
        v |= (uint64_t)(c & 127) << shift;
        if (c < 128) return v;
    }
    r->bad = true;
    return 0;
}

static uint64_t fixed(reader *r, size_t n) {
    uint64_t v = 0;
    if ((size_t)(r->end - r->s) < n) return r->bad = true, 0;
    for (size_t i = 0; i < n; i++) v |= (uint64_t)r->s[i] << (8 * i);
    r->s += n;
    return v;
}

static bool next_field(reader *r, field *f) {
    if (r->bad || r->s == r->end) return false;
    uint64_t key = varint(r), n;
    *f = (field){.number = (uint32_t)(key >> 3)};
    switch (key & 7) {
    case 0: f->value = varint(r); break;
    case 1: f->value = fixed(r, 8); break;
    case 5: f->value = fixed(r, 4); break;
    case 2:
        n = varint(r);
        if (r->bad || n > (uint64_t)(r->end - r->s)) return r->bad = true, false;
        f->sub = (reader){.s = r->s, .end = r->s + n};
        r->s += n;
        break;
    default: r->bad = true;
    }
    return !r->bad;
}

static nb_status read_piece(model *m, reader r) {
    piece p = {.type = NORMAL, .id = m->n};
    const char *s = NULL;
    size_t n = 0;
    field f;
    while (next_field(&r, &f)) {
        if (f.number == 1) s = (const char *)f.sub.s, n = s ? (size_t)(f.sub.end - f.sub.s) : 0;
        if (f.number == 2) memcpy(&p.score, &(uint32_t){(uint32_t)f.value}, 4);
        if (f.number == 3) p.type = (int32_t)f.value;
    }
    if (r.bad || !n || nb_utf8_valid(s, n) < n || memchr(s, 0, n) || p.score != p.score || p.type < NORMAL ||
        p.type > BYTE)
        return nb_fail(NB_EINPUT, "%s: piece %d is damaged", m->t->file, m->n);
    m->unused |= p.type == UNUSED;
    if (p.type == UNKNOWN) m->t->bpe.unk = m->n;
    char *text = nb_strndup(s, n); /* messages want a NUL behind it */
    nb_status st = nb_tok_put(m->t, text, n, m->n, NB_TOK_VOCAB);
    free(text);
    NB_TRY(st);
    NB_GROW(m->v, m->n, m->cap);
    m->v[m->n++] = p;
    return NB_OK;
}

static void read_trainer(model *m, reader *r) {
    field f;
    while (next_field(r, &f)) switch (f.number) {
        case 3: m->type = (int64_t)f.value; break;
        case 24: m->suffix = f.value; break;
        case 35: m->byte_fallback = f.value; break;
        case 40: m->unk = (int64_t)f.value; break;
        case 41: m->bos = (int64_t)f.value; break;
        case 42: m->eos = (int64_t)f.value; break;
        case 43: m->pad = (int64_t)f.value; break;
        default: break;
        }
}

static void read_normalizer(model *m, reader *r) {
    field f;
    while (next_field(r, &f)) switch (f.number) {
        case 2: m->charsmap = f.sub; break;
        case 3: m->dummy_prefix = f.value; break;
        case 4: m->remove_extra = f.value; break;
        case 5: m->escape = f.value; break;
        default: break;
        }
}

static nb_status read_proto(model *m, const char *data, size_t size) {
    reader r = {.s = (const uint8_t *)data, .end = (const uint8_t *)data + size};
    field f;
    bool bad = false;
    while (next_field(&r, &f)) {
        if (f.number == 1) NB_TRY(read_piece(m, f.sub));
        if (f.number == 2) read_trainer(m, &f.sub);
        if (f.number == 3) read_normalizer(m, &f.sub);
        bad |= f.sub.bad;
    }
    if (r.bad || bad || !m->n)
        return nb_fail(NB_EINPUT, "%s: not a SentencePiece model, or damaged near byte %zu of %zu", m->t->file,
                       (size_t)(r.s - (const uint8_t *)data), size);
    return NB_OK;
}

static nb_status refuse(const model *m) {
    const char *what = m->type != 1 && m->type != 2 ? "a model type other than BPE and Unigram"
                       : m->type == 2 && m->unused ? "BPE with pieces of type UNUSED"
                       : m->suffix    ? "treat_whitespace_as_suffix"
                       : !m->escape   ? "escape_whitespaces false"
                                      : NULL;
    return what ? nb_fail(NB_EUNSUPPORTED, "%s: %s is not supported; is there a tokenizer.json?",
                          m->t->file, what)
                : NB_OK;
}

static int by_score(const void *p, const void *q) {
    const piece *x = *(piece *const *)p, *y = *(piece *const *)q;
    return (x->score < y->score) - (x->score > y->score);
}

static void rank_pieces(model *m) {
    piece **order = nb_calloc((size_t)m->n, sizeof(*order));
    for (int i = 0; i < m->n; i++) order[i] = &m->v[i];
    qsort(order, (size_t)m->n, sizeof(*order), by_score);
    for (int i = 0; i < m->n; i++)
        order[i]->rank = i == 0 ? 0 : order[i - 1]->rank + (order[i]->score != order[i - 1]->score);
    free(order);
}

static int32_t normal_piece(const model *m, const char *s, size_t n) {
    int32_t id = nb_tok_find_vocab(m->t, s, n);
    return id >= 0 && m->v[id].type == NORMAL ? id : -1;
}

static void make_merges(model *m) {
    struct { int32_t left, right, id; } *list = NULL;
    size_t n = 0, cap = 0;
    for (int id = 0; id < m->n; id++) {
        const nb_tok_entry *e = &m->t->entry[id];
        if (m->v[id].type != NORMAL) continue;
        size_t cut = 0;
        for (nb_utf8_next(e->s, &cut); cut < e->n; nb_utf8_next(e->s, &cut)) {
            int32_t left = normal_piece(m, e->s, cut), right = normal_piece(m, e->s + cut, e->n - cut);
            if (left < 0 || right < 0) continue;
            NB_GROW(list, n, cap);
            list[n].left = left, list[n].right = right, list[n++].id = id;
        }
    }
    nb_tok_bpe_init(&m->t->bpe, n);
    for (size_t i = 0; i < n; i++)
        nb_tok_bpe_merge(&m->t->bpe, list[i].left, list[i].right, m->v[list[i].id].rank, list[i].id);
    free(list);
}

/* User-defined symbols are pieces with a score that always wins, and no normalizer changes them. That score grows with
 * the highest of the normal ones, but FLT_MIN is where SentencePiece begins to look for it, and logarithms of
 * probabilities are below. */
static void make_unigram(model *m) {
    bool *in = nb_calloc((size_t)m->n, sizeof *in);
    float best = FLT_MIN;
    m->t->uni.score = nb_calloc((size_t)m->n, sizeof(double));
    for (int i = 0; i < m->n; i++)
        if (m->v[i].type == NORMAL && m->v[i].score > best) best = m->v[i].score;
    for (int i = 0; i < m->n; i++) {
        bool own = m->v[i].type == USER_DEFINED;
        m->t->uni.score[i] = own ? (double)((float)m->t->entry[i].n * best) - 0.1 : (double)m->v[i].score;
        if (own) m->t->entry[i].flags |= NB_TOK_KEPT;
        in[i] = own || m->v[i].type == NORMAL;
    }
    m->t->uni.floats = true;
    nb_tok_unigram_build(m->t, in);
    free(in);
}

/* SentencePiece itself never reads control pieces from text, but everything built on it does: special tokens. */
static nb_status add_tokens(model *m) {
    for (int i = 0; i < m->n; i++) {
        bool own = m->v[i].type == USER_DEFINED, control = m->v[i].type == CONTROL || m->v[i].type == UNKNOWN;
        nb_tok_added a = {.special = !own, .normalized = own, .verbatim = true};
        if (control || (own && m->type != 1))
            NB_TRY(nb_tok_added_put(m->t, m->t->entry[i].s, m->t->entry[i].n, i, a));
    }
    return NB_OK;
}

static int32_t valid_id(const model *m, int64_t id) { return id >= 0 && id < m->n ? (int32_t)id : -1; }

static nb_status apply(model *m) {
    nb_tokenizer *t = m->t;
    if (m->type == 1) make_unigram(m);
    else rank_pieces(m), make_merges(m);
    NB_TRY(add_tokens(m));
    t->bpe.byte_fallback = m->byte_fallback;
    t->bpe.fuse_unk = true;
    t->role[NB_BOS] = valid_id(m, m->bos);
    t->role[NB_EOS] = valid_id(m, m->eos);
    t->role[NB_PAD] = valid_id(m, m->pad);
    t->role[NB_UNK] = t->bpe.unk;
    nb_tok_decs_spm(&t->decs, m->dummy_prefix);
    return nb_tok_norm_spm(t, (const char *)m->charsmap.s, (size_t)(m->charsmap.end - m->charsmap.s), m->dummy_prefix,
                           m->remove_extra);
}

nb_status nb_tok_load_model(nb_tokenizer *t) {
    /* the defaults of sentencepiece_model.proto */
    model m = {.t = t, .type = 1, .unk = 0, .bos = 1, .eos = 2, .pad = -1, .dummy_prefix = true, .remove_extra = true,
               .escape = true};
    char *data;
    size_t size;
    NB_TRY(nb_file_read(t->file, &data, &size));
    bool ranks = nb_tok_is_ranks(data, size);
    nb_status st = ranks ? nb_tok_read_ranks(t, data, size) : read_proto(&m, data, size);
    if (st == NB_OK && !ranks) st = refuse(&m);
    if (st == NB_OK && !ranks) st = apply(&m);
    free(data);
    free(m.v);
    return st;
}
