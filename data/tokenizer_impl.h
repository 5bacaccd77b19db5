/* Inside the tokenizer: what its files share. Nobody else includes this. */
#ifndef NB_DATA_TOKENIZER_IMPL_H
#define NB_DATA_TOKENIZER_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <pthread.h>

#include "core/hash.h"
#include "core/json.h"
#include "data/tokenizer.h"

enum {
    NB_TOK_MAX_ID = 16 << 20,     /* ids above this are taken for a broken file, not for a vocabulary */
    NB_TOK_MAX_DEPTH = 8,         /* Sequences in Sequences */
    NB_TOK_MAX_TEXT = 1 << 28,    /* bytes of one call: positions are 32-bit */
    NB_TOK_LOW_CHARS = 0x3000     /* code points looked up in a table; "▁" is U+2581 */
};

/* ---- text with provenance ------------------------------------------------------------------------------ */

/* Text on its way through the pipeline. Byte i came from byte org[i] of the input, or base + i when nothing has
 * been rewritten yet (org NULL). */
typedef struct nb_tok_view {
    const char *s;
    size_t n;
    const uint32_t *org;
    uint32_t base;
} nb_tok_view;
static inline uint32_t nb_tok_origin(const nb_tok_view *v, size_t i) {
    return v->org ? v->org[i] : v->base + (uint32_t)i;
}

typedef struct nb_tok_buf { /* a rewritten text being built */
    char *s;
    uint32_t *org;
    size_t n, cap;
} nb_tok_buf;
void nb_tok_buf_add(nb_tok_buf *b, const char *s, size_t n, uint32_t org);      /* all from one place */
void nb_tok_buf_copy(nb_tok_buf *b, const nb_tok_view *v, size_t from, size_t to); /* unchanged bytes of v */
static inline nb_tok_view nb_tok_buf_view(const nb_tok_buf *b) { return (nb_tok_view){b->s, b->n, b->org, 0}; }

typedef struct nb_tok_span { uint32_t from, to; } nb_tok_span;
typedef struct nb_tok_spans {
    nb_tok_span *v;
    size_t n, cap;
} nb_tok_spans;

/* What one encoding thread needs; taken from and given back to the tokenizer's pool. */
typedef struct nb_tok_sym {
    int32_t id;
    uint32_t start;     /* byte position in the view */
    int32_t prev, next; /* neighbours still alive; -1 none */
    uint32_t rank;      /* of the merge with the next one; UINT32_MAX: none */
    int32_t merged;     /* what that merge gives */
} nb_tok_sym;
typedef struct nb_tok_cached { /* a word and its tokens in one cache line */
    uint8_t len, n;            /* len 0: empty */
    char word[22];
    uint8_t start[8];
    int32_t id[8];
} nb_tok_cached;
enum { NB_TOK_CACHE = 1 << 14 };
typedef struct nb_tok_best { /* Unigram: the best way to a position */
    double score;
    uint32_t start; /* of its last piece, counted from the window's beginning; UINT32_MAX: no way yet */
    int32_t id;
} nb_tok_best;
typedef struct nb_tok_work {
    nb_tok_buf norm[2], pre[2];
    nb_tok_spans span[2];
    nb_tok_sym *sym;
    size_t n_sym, cap_sym;
    uint64_t *heap;
    size_t cap_heap;
    nb_tok_cached *cache;
    nb_tok_best *best;
    size_t n_best, cap_best;
    bool flagged; /* the word's ids depend on the flags of encoding */
    pcre2_match_data *match;
    pcre2_match_context *limits;
    pcre2_jit_stack *jit_stack;
    struct nb_tok_work *next;
} nb_tok_work;

/* ---- patterns ------------------------------------------------------------------------------------------- */

typedef struct nb_tok_pattern { /* a regular expression or a literal text */
    pcre2_code *code;
    char *lit;
    size_t lit_n;
    const char *where; /* for messages; lives as long as the tokenizer */
} nb_tok_pattern;
/* Circled letters count as letters in \w, in Rust and in Oniguruma. */
#define NB_TOK_CIRCLED "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
typedef struct nb_tok_find { /* one search; zero-initialize; from..to is the match */
    size_t from, to, at;
    bool started;
} nb_tok_find;
/* Compiles an expression written for Oniguruma's Ruby syntax, as the tokenizers library reads it; refuses what
 * means something else in PCRE2. */
nb_status nb_tok_regex(nb_tok_pattern *p, const char *regex, const char *where);
/* {"String": s} or {"Regex": r} */
nb_status nb_tok_pattern_parse(nb_tok_pattern *p, const json_t *pattern, const char *where);
/* *found: there is a next match, left to right, not overlapping; an empty one never right behind another. */
nb_status nb_tok_pattern_next(const nb_tok_pattern *p, nb_tok_work *w, const char *s, size_t n, nb_tok_find *f,
                              bool *found);
void nb_tok_pattern_free(nb_tok_pattern *p);

/* ---- steps of the pipeline ------------------------------------------------------------------------------ */

typedef struct nb_tok_charsmap { /* tokenizer_charsmap.c */
    uint32_t *unit;
    size_t n_units;
    char *text;
    size_t n_text;
    bool plain[256]; /* ASCII characters that stand for themselves */
    const char *where;
} nb_tok_charsmap;
typedef struct nb_tok_norm nb_tok_norm;
struct nb_tok_norm {
    nb_status (*run)(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out);
    nb_tok_pattern pattern; /* Replace */
    char *text;             /* Prepend, Replace: what is put in */
    int form;               /* utf8proc options of NFC and the like */
    nb_tok_charsmap map;    /* Precompiled */
    const nb_tokenizer *kept; /* SentencePiece's map leaves the user-defined symbols of this one alone */
    bool left, right;       /* Strip; for SentencePiece: dummy prefix, remove extra spaces */
};
typedef struct nb_tok_norms {
    nb_tok_norm *v;
    int n, cap;
} nb_tok_norms;

typedef enum nb_tok_behavior {
    NB_ISOLATED,
    NB_REMOVED,
    NB_MERGED_WITH_PREVIOUS,
    NB_MERGED_WITH_NEXT,
    NB_CONTIGUOUS
} nb_tok_behavior;
typedef enum nb_tok_pre_kind { NB_PRE_SPLIT, NB_PRE_SPACE, NB_PRE_META, NB_PRE_BYTES } nb_tok_pre_kind;
typedef enum nb_tok_prepend { NB_PREPEND_ALWAYS, NB_PREPEND_FIRST, NB_PREPEND_NEVER } nb_tok_prepend;
typedef struct nb_tok_pre { /* all pre-tokenizers are sequences of these four */
    nb_tok_pre_kind kind;   /* SPLIT; SPACE: put ' ' in front; META: ' ' -> text; BYTES: bytes -> GPT-2's characters */
    nb_tok_pattern pattern;
    nb_tok_behavior behavior;
    bool invert;
    char *text;
    nb_tok_prepend prepend;
} nb_tok_pre;
typedef struct nb_tok_pres {
    nb_tok_pre *v;
    int n, cap;
} nb_tok_pres;

typedef enum nb_tok_dec_kind {
    NB_DEC_REPLACE,
    NB_DEC_META,
    NB_DEC_STRIP,
    NB_DEC_FALLBACK,
    NB_DEC_FUSE,
    NB_DEC_BYTES,
    NB_DEC_JOIN
} nb_tok_dec_kind;
typedef struct nb_tok_dec {
    nb_tok_dec_kind kind;
    char *from, *to;  /* Replace; Metaspace: from is the replacement character; Strip: from is the character */
    int start, stop;  /* Strip */
    bool keep_first;  /* Metaspace with prepend_scheme "never" */
    bool fused;       /* behind a Fuse or ByteLevel: sees one text instead of tokens */
} nb_tok_dec;
typedef struct nb_tok_decs {
    nb_tok_dec *v;
    int n, cap;
} nb_tok_decs;

/* ---- the tokenizer -------------------------------------------------------------------------------------- */

enum { NB_TOK_VOCAB = 1, NB_TOK_ADDED = 2, NB_TOK_IS_SPECIAL = 4, NB_TOK_KEPT = 8 };
typedef struct nb_tok_entry {
    const char *s; /* NULL: no such id */
    uint32_t n, flags;
} nb_tok_entry;

typedef struct nb_tok_added {
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized, is_new;
    bool verbatim;      /* looked for in normalized text as it is (SentencePiece's user-defined symbols) */
    const char *match;  /* what to look for: the content, normalized if that is asked for */
    uint32_t match_n;
} nb_tok_added;
typedef struct nb_tok_matcher { /* the added tokens of one kind, sorted by `match` */
    const nb_tok_added **v;
    int n;
    bool first[256]; /* a token begins with this byte */
} nb_tok_matcher;

typedef struct nb_tok_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
} nb_tok_merge;

typedef struct nb_tok_bpe {
    nb_tok_merge *merge; /* hash table, mask + 1 slots */
    uint64_t mask, n_merges;
    int32_t *char_id;     /* [NB_TOK_LOW_CHARS] vocabulary id of a single character, -1 none */
    int32_t byte_id[256]; /* of the character that stands for a byte, -1 none */
    int32_t fallback[256]; /* of <0xHH>, -1 none */
    int32_t unk;          /* -1: what is unknown is dropped */
    bool fuse_unk, byte_fallback, ignore_merges;
    bool bytes;           /* words are bytes (ByteLevel was the last step of splitting) */
    uint64_t *bigrams;    /* bit set of neighbouring characters inside merged tokens */
    uint32_t max_len;     /* longest token, bytes */
} nb_tok_bpe;

enum { NB_TOK_WIDE = 0xffff };
typedef struct nb_tok_node { /* of a trie of pieces */
    int32_t child; /* its children are node[child..child + n), by their bytes; many: wide[child] lists them */
    int32_t id;    /* of the piece that ends here, -1 none */
    uint16_t n;    /* NB_TOK_WIDE: many */
    uint8_t byte;
} nb_tok_node;
typedef struct nb_tok_unigram {
    nb_tok_node *node; /* NULL: the model is BPE. Unknown pieces and byte fallback are nb_tok_bpe's */
    int n_nodes;
    int32_t (*wide)[256]; /* children by byte, -1 none */
    bool kept[256];    /* a piece that no normalizer changes (NB_TOK_KEPT) begins with this byte */
    double *score;     /* by id of the model's vocabulary */
    double unk_score;
    bool floats;       /* scores and their sums are rounded to float */
} nb_tok_unigram;

typedef struct nb_tok_list {
    int32_t *v;
    int n, cap;
} nb_tok_list;

typedef enum nb_tok_role { NB_BOS, NB_EOS, NB_PAD, NB_UNK, NB_ROLES } nb_tok_role;
extern const char *const nb_tok_role_names[NB_ROLES];

struct nb_tokenizer {
    nb_tok_entry *entry; /* [n] by id */
    int n, cap;
    int32_t *slot;       /* hash table of strings: id or -1 */
    uint32_t slot_mask, n_strings;
    char **chunk;        /* memory of the strings; never moves */
    int n_chunks, cap_chunks;
    size_t chunk_left;
    nb_tok_added *added;
    int n_added, cap_added;
    nb_tok_matcher raw, normalized;
    nb_tok_norms norms;
    nb_tok_pres pres;
    nb_tok_decs decs;
    nb_tok_bpe bpe;
    nb_tok_unigram uni;
    nb_tok_list prefix, suffix, eos_ids;
    int32_t role[NB_ROLES];
    bool role_changed[NB_ROLES];
    char *chat_template;
    char *file, *dir;    /* loaded from */
    char *made, *made_config; /* made of a list: tokenizer.json and tokenizer_config.json that say the same */
    const struct nb_tok_vocabulary *ranks; /* tokenizer.model is a list of ranks */
    const char *split_name;   /* ... split as llama.cpp's expression of this name does */
    bool from_model;     /* tokenizer.model, not tokenizer.json */
    nb_hex file_sha, sha;
    pthread_mutex_t lock;
    nb_tok_work *pool;
};

/* tokenizer.c */
uint64_t nb_tok_hash(const char *s, size_t n);
const char *nb_tok_keep(nb_tokenizer *t, const char *s, size_t n); /* a copy that lives as long as t */
int32_t nb_tok_find_str(const nb_tokenizer *t, const char *s, size_t n);
int32_t nb_tok_find_vocab(const nb_tokenizer *t, const char *s, size_t n); /* the model's vocabulary only */
nb_status nb_tok_put(nb_tokenizer *t, const char *s, size_t n, int64_t id, uint32_t flags); /* new string, new id */
void nb_tok_list_add(nb_tok_list *l, int32_t id);
/* Refuses keys of `obj` that are not among the names (NULL ends them): they could change ids. */
nb_status nb_tok_only(const json_t *obj, const char *where, const char *const *names);
nb_status nb_tok_need_str(const json_t *obj, const char *key, const char **out, const char *where);
nb_status nb_tok_need_array(const json_t *obj, const char *key, const json_t **out, const char *where);

/* ByteLevel writes bytes as printable characters: most as themselves, the other 68, in order, as U+0100 and on. */
static inline uint32_t nb_tok_byte_char(uint8_t b) {
    return b < 33 ? 256u + b : b < 127 ? b : b < 161 ? 289u + (b - 127u) : b == 173 ? 323u : b;
}
static inline int nb_tok_char_byte(uint32_t c) { /* and back; -1: no byte */
    if (c > 323 || c < 33 || (c > 126 && c < 161) || c == 173) return -1;
    return (int)(c < 256 ? c : c < 289 ? c - 256 : c < 323 ? c - 162 : 173);
}

/* tokenizer_regex.c, tokenizer_normalize.c, tokenizer_split.c, tokenizer_bpe.c, tokenizer_decode.c */
nb_status nb_tok_norms_parse(nb_tok_norms *s, const json_t *v, const char *where, int depth);
nb_status nb_tok_norm_spm(nb_tokenizer *t, const char *charsmap, size_t n, bool dummy_prefix, bool remove_extra);
nb_status nb_tok_normalize(const nb_tok_norms *s, nb_tok_work *w, nb_tok_view *v); /* v -> a view of w->norm */
void nb_tok_norms_free(nb_tok_norms *s);
nb_status nb_tok_pres_parse(nb_tok_pres *s, const json_t *v, const char *where, int depth);
/* *v -> possibly a view of w->pre; *spans: the words in it. */
nb_status nb_tok_presplit(const nb_tok_pres *s, nb_tok_work *w, nb_tok_view *v, nb_tok_spans **spans);
void nb_tok_pres_free(nb_tok_pres *s);
nb_status nb_tok_decs_parse(nb_tok_decs *s, const json_t *v, const char *where, int depth);
void nb_tok_decs_spm(nb_tok_decs *s, bool strip_first);
void nb_tok_decs_free(nb_tok_decs *s);
void nb_tok_bpe_init(nb_tok_bpe *b, uint64_t merges);
void nb_tok_bpe_merge(nb_tok_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);
void nb_tok_bpe_finish(nb_tokenizer *t); /* the tables that follow from vocabulary and merges */
/* Appends the symbols of s[from..to) to w->sym. */
void nb_tok_bpe_symbols(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t from, size_t to, int flags);
size_t nb_tok_bpe_seam(const nb_tokenizer *t, const char *s, size_t from, size_t to);
void nb_tok_bpe_free(nb_tok_bpe *b);

/* tokenizer_unigram.c */
nb_status nb_tok_unigram_parse(nb_tokenizer *t, const json_t *model);
void nb_tok_unigram_build(nb_tokenizer *t, const bool *in); /* of the pieces `in` (NULL: of all), with their scores */
nb_status nb_tok_unigram_symbols(const nb_tokenizer *t, nb_tok_work *w, const char *s, size_t from, size_t to,
                                 int flags);
size_t nb_tok_unigram_kept(const nb_tokenizer *t, const char *s, size_t n); /* length of the NB_TOK_KEPT piece at s */
void nb_tok_unigram_free(nb_tok_unigram *u);

/* tokenizer_words.c */
void nb_tok_sym_add(nb_tok_work *w, int32_t id, size_t start);
nb_status nb_tok_word(const nb_tokenizer *t, nb_tok_work *w, const nb_tok_view *v, size_t from, size_t to, int flags,
                      nb_ids *out);

/* tokenizer_charsmap.c */
nb_status nb_tok_charsmap_read(nb_tok_charsmap *m, const char *blob, size_t n, const char *where);
nb_status nb_tok_charsmap_base64(nb_tok_charsmap *m, const char *text, const char *where);
nb_status nb_tok_charsmap_graphemes(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out);
nb_status nb_tok_charsmap_longest(const nb_tok_norm *s, nb_tok_work *w, const nb_tok_view *in, nb_tok_buf *out);
void nb_tok_charsmap_free(nb_tok_charsmap *m);

/* tokenizer_added.c */
nb_tok_added *nb_tok_added_get(nb_tokenizer *t, int32_t id); /* NULL: not an added token */
nb_status nb_tok_added_put(nb_tokenizer *t, const char *content, size_t n, int64_t id, nb_tok_added flags);
nb_status nb_tok_added_finish(nb_tokenizer *t); /* builds the matchers */
bool nb_tok_match(const nb_tok_matcher *m, const char *s, size_t n, size_t *at, size_t floor, int flags,
                  const nb_tok_added **hit, size_t *from, size_t *to);
bool nb_tok_is_space(uint32_t cp);

/* tokenizer_base64.c */
int nb_tok_base64_digit(char c);                                  /* -1: none */
int64_t nb_tok_base64(uint8_t *out, const char *s, size_t n);     /* bytes (at most n/4*3 + 2); -1 - place of a mistake */

/* tokenizer_gguf.c. llama.cpp's name for a way of splitting: an expression, or one of the two kinds; NULL: it has
 * none. */
#define NB_SPLIT_GPT2 "GPT-2's"
#define NB_SPLIT_DIGITS "GPT-2's, digits one by one"
const char *nb_tok_split_name(const char *split, bool ignore_merges, bool nfc);
const char *nb_tok_split_regex(const char *name); /* of a name that has one */

/* tokenizer.c */
nb_tokenizer *nb_tok_new(void);
nb_status nb_tok_finish(nb_tokenizer *t); /* what follows from the parts that were read */

/* tokenizer_encode.c */
nb_tok_work *nb_tok_work_take(const nb_tokenizer *t);
void nb_tok_work_give(const nb_tokenizer *t, nb_tok_work *w);
void nb_tok_work_free(nb_tok_work *w);

/* tokenizer_json.c, tokenizer_model.c, tokenizer_ranks.c, tokenizer_config.c */
nb_status nb_tok_load_json(nb_tokenizer *t);
nb_status nb_tok_read_json(nb_tokenizer *t, const json_t *root); /* t->file is its name in messages */
nb_status nb_tok_load_model(nb_tokenizer *t);
bool nb_tok_is_ranks(const char *data, size_t n); /* of a tokenizer.model */
nb_status nb_tok_read_ranks(nb_tokenizer *t, const char *data, size_t n);
void nb_tok_ranks_roles(nb_tokenizer *t); /* bos, eos and what ends a text, where the folder's files do not say */
nb_status nb_tok_load_config(nb_tokenizer *t);

#endif
