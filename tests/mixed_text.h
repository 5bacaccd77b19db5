/* A text of everything, the same on every machine: 64 documents of 16 KiB with many scripts, emoji, code, broken white
 * space, combining marks in strange places and what tokenizers' own tokens look like, all valid UTF-8. Code points are
 * of Unicode 14 at most: libraries disagree on what newer ones are. */
#ifndef NB_TESTS_MIXED_TEXT_H
#define NB_TESTS_MIXED_TEXT_H

#include <stdbool.h>

#include "core/mem.h"
#include "core/rng.h"
#include "core/utf8.h"

enum { MIXED_DOCUMENTS = 64, MIXED_BYTES = 1 << 14 };

static const char *const mixed_pieces[] = {
    /* English, contractions, capitals */
    "the", "of", "and", "house", "Where", "is", "parcel", "it's", "don't", "I'll", "we've", "you're", "they'd", "I'm",
    "IT'S", "DON'T", "'tis", "rock'n'roll", "o'clock", "HTTPServer", "camelCaseName", "snake_case_name", "e.g.",
    "U.S.A.",
    "The quick brown fox jumps over the lazy dog.", "It was a dark night, and the wind howled;",
    "\"Quoted,\" she said.",
    "state-of-the-art", "antidisestablishmentarianism", "Mr. O'Neill-Smith", "\xe2\x80\x9c" "curly\xe2\x80\x9d",
    "it\xe2\x80\x99s", "na\xc3\xafve", "cafe\xcc\x81", "caf\xc3\xa9", "fa\xc3\xa7" "ade", "\xef\xac\x81nance",
    "\xc5\xbfong",
    /* other languages */
    "Zw\xc3\xb6lf Boxk\xc3\xa4mpfer", "\xc4\xb0stanbul", "Stra\xc3\x9f" "e",
    "\xce\x9a\xce\xb1\xce\xbb\xce\xb7\xce\xbc\xce\xad\xcf\x81\xce\xb1",
    "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82, \xd0\xbc\xd0\xb8\xd1\x80!",
    "\xe4\xbd\xa0\xe5\xa5\xbd\xef\xbc\x8c\xe4\xb8\x96\xe7\x95\x8c\xe3\x80\x82",
    "\xe3\x81\x93\xe3\x82\x93\xe3\x81\xab\xe3\x81\xa1\xe3\x81\xaf",
    "\xef\xbd\xb6\xef\xbe\x9e\xef\xbd\xb7\xef\xbe\x9e", "\xed\x95\x9c\xea\xb5\xad\xec\x96\xb4",
    "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xd9\x85\xd8\xb1\xd8\xad\xd8\xa8\xd8\xa7",
    "\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d",
    "\xe0\xa4\xa8\xe0\xa4\xae\xe0\xa4\xb8\xe0\xa5\x8d\xe0\xa4\xa4\xe0\xa5\x87",
    "\xe0\xb8\xaa\xe0\xb8\xa7\xe0\xb8\xb1\xe0\xb8\xaa\xe0\xb8\x94\xe0\xb8\xb5",
    "\xe0\xae\xb5\xe0\xae\xa3\xe0\xae\x95\xe0\xaf\x8d\xe0\xae\x95\xe0\xae\xae\xe0\xaf\x8d", "Vi\xe1\xbb\x87t Nam",
    "Vie\xcc\xa3\xcc\x82t",
    "\xef\xbc\xa6\xef\xbd\x95\xef\xbd\x8c\xef\xbd\x8c\xef\xbc\x97",
    "\xe2\x91\xa0\xe2\x85\xa3\xc2\xbd\xe2\x84\xa2\xc2\xb2",
    /* emoji: skin, families by ZWJ, flags, keycaps, variation selectors */
    "\xf0\x9f\x98\x80", "\xf0\x9f\x91\x8d\xf0\x9f\x8f\xbd",
    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7",
    "\xf0\x9f\x87\xa9\xf0\x9f\x87\xaa\xf0\x9f\x87\xab", "1\xef\xb8\x8f\xe2\x83\xa3", "\xe2\x9d\xa4\xef\xb8\x8f",
    "\xe2\x80\x8d", "\xe2\x80\x8b",
    "\xf0\x9f\x8f\xb3\xef\xb8\x8f\xe2\x80\x8d\xf0\x9f\x8c\x88", "\xef\xbb\xbf", "\xe2\x80\x8e", "\xc2\xad",
    /* code and markup */
    "for (int i = 0; i < n; i++) {\n\tx[i] += y[i] << 2;\n}", "def f(x):\n    return x ** 2  # squared\n",
    "<div class=\"a b\">&nbsp;</div>",
    "https://example.org/a?b=c&d=%20#e", "{\"key\": [1, 2.5e-3, null]}", "$ rm -rf ./build && make -j2",
    "a->b::c != d && !e || f",
    "\\alpha_{i}^{2}", "0x1F6b", "SELECT * FROM t WHERE a='b';", "|---|:-:|", "/* x */", "//", "=====", "```", "...",
    "?!", "--",
    /* numbers */
    "3.14159", "1,234,567.89", "2024-02-29T12:34:56Z", "+49 (0)30 123456", "1000000", "50%", "$9.99",
    "\xe2\x82\xac" "5", "\xd9\xa3\xd9\xa4",
    "\xe0\xa5\xa7\xe0\xa5\xa8", "7th",
    /* what tokens look like; a NUL would be one more, but C's texts end there */
    "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>user\n", "<|eot_id|>", "<0x0A>", "\xe2\x96\x81",
    "\xe2\x96\x81the", "\xc4\xa0the", "[CLS]",
    "<extra_id_0>", "\xef\xbf\xbd",
};
static const char *const mixed_spaces[] = {
    " ", " ", " ", "  ", "   ", "        ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", "\v", "\f",
    "\x1c", "\x7f", "\x01",
    "\xc2\xa0", "\xc2\x85", "\xe2\x80\x83", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe3\x80\x80", "\xe2\x80\xaf",
    "\xe1\x9a\x80",
};
static const struct { uint32_t lo, hi; } mixed_ranges[] = {
    {0x20, 0x7e}, {0xa1, 0xff}, {0x100, 0x24f}, {0x250, 0x2ff}, {0x300, 0x36f}, {0x391, 0x3a1}, {0x3b1, 0x3e1},
    {0x400, 0x52f},
    {0x561, 0x586}, {0x5b0, 0x5bd}, {0x5d0, 0x5ea}, {0x621, 0x652}, {0x660, 0x6d3}, {0x710, 0x74a}, {0x905, 0x939},
    {0x93e, 0x97f},
    {0x995, 0x9a8}, {0xa15, 0xa28}, {0xb95, 0xb95}, {0xbbe, 0xbc2}, {0xc15, 0xc28}, {0xe01, 0xe3a}, {0xe40, 0xe5b},
    {0xe94, 0xe97},
    {0xf40, 0xf47}, {0x1000, 0x1049}, {0x10d0, 0x10fa}, {0x1100, 0x11ff}, {0x1200, 0x1248}, {0x13a0, 0x13f5},
    {0x1401, 0x1676},
    {0x1780, 0x17b3}, {0x1e00, 0x1eff}, {0x1f00, 0x1f15}, {0x2010, 0x2027}, {0x2030, 0x205e}, {0x2070, 0x2071},
    {0x2080, 0x208e},
    {0x20a0, 0x20bf}, {0x20d0, 0x20f0}, {0x2100, 0x218b}, {0x2190, 0x23ff}, {0x2460, 0x24ff}, {0x2500, 0x27bf},
    {0x2801, 0x28ff},
    {0x2c00, 0x2c2e}, {0x2d30, 0x2d67}, {0x3001, 0x303f}, {0x3041, 0x3096}, {0x3099, 0x30ff}, {0x3105, 0x312f},
    {0x3131, 0x318e},
    {0x3200, 0x321e}, {0x3400, 0x3500}, {0x4e00, 0x9fa5}, {0xa000, 0xa48c}, {0xac00, 0xd7a3}, {0xe000, 0xe010},
    {0xf900, 0xfa2d},
    {0xfb00, 0xfb06}, {0xfb1d, 0xfb36}, {0xfb50, 0xfbb1}, {0xfe00, 0xfe0f}, {0xfe30, 0xfe52}, {0xff01, 0xffbe},
    {0x10330, 0x1034a},
    {0x10400, 0x1049d}, {0x1d400, 0x1d454}, {0x1d7ce, 0x1d7ff}, {0x1f130, 0x1f149}, {0x1f1e6, 0x1f1ff},
    {0x1f300, 0x1f64f},
    {0x1f680, 0x1f6c5}, {0x1f910, 0x1f93a}, {0x20000, 0x2a6d6},
};

static inline uint32_t mixed_below(nb_rng *rng, size_t n) { return (uint32_t)nb_rng_below(rng, n); }

static inline void mixed_char(nb_rng *rng, nb_text *out, uint32_t range) {
    char c[4];
    uint32_t lo = mixed_ranges[range].lo;
    nb_text_add(out, c, (size_t)nb_utf8_put(c, lo + mixed_below(rng, mixed_ranges[range].hi - lo + 1)));
}

/* Appends document `i`. */
static inline void mixed_document(int i, nb_text *out) {
    nb_rng rng = nb_rng_open(20240229, NB_RNG_TEST, (uint64_t)i);
    size_t end = out->n + MIXED_BYTES;
    bool plain = i % 4 == 0; /* mostly English, as most texts are of one kind */
    while (out->n < end) {
        uint32_t kind = mixed_below(&rng, 12), range = mixed_below(&rng, NB_LEN(mixed_ranges));
        uint32_t n = 1 + mixed_below(&rng, 8);
        if (plain && mixed_below(&rng, 16)) kind = 0;
        if (kind < 5) { /* words; the first 26 pieces are English */
            for (uint32_t k = 0; k < n; k++) {
                nb_text_puts(out, mixed_pieces[mixed_below(&rng, plain ? 26 : NB_LEN(mixed_pieces))]);
                if (mixed_below(&rng, 8)) nb_text_puts(out, " ");
            }
        } else if (kind < 7) { /* a word in one script, perhaps with marks */
            for (uint32_t k = 0; k < n; k++) {
                mixed_char(&rng, out, range);
                if (!mixed_below(&rng, 6)) mixed_char(&rng, out, 4);
            }
            nb_text_puts(out, " ");
        } else if (kind < 9) {
            for (uint32_t k = 0; k < n; k++) nb_text_puts(out, mixed_spaces[mixed_below(&rng, NB_LEN(mixed_spaces))]);
        } else if (kind == 9) { /* a run of one character */
            static const char runs[] = " =-a0.\n\tA_";
            for (uint32_t k = mixed_below(&rng, 60), c = mixed_below(&rng, 10); k--;) nb_text_add(out, runs + c, 1);
        } else if (kind == 10) {
            nb_text_printf(out, "%llu", (unsigned long long)nb_rng_below(&rng, (uint64_t)1 << (7 * n)));
        } else /* confetti */
            for (uint32_t k = 0; k < n; k++) mixed_char(&rng, out, mixed_below(&rng, NB_LEN(mixed_ranges)));
    }
    nb_text_add(out, "", 1); /* and a NUL at the end */
}

#endif
