/* UTF-8 by hand: checking, stepping, writing. Surrogates, overlong forms and code points above U+10FFFF are invalid. */
#ifndef NB_CORE_UTF8_H
#define NB_CORE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The character at s[0..n), n > 0. > 0: its length, *cp set. 0: what is there is the beginning of a character that
 * needs more bytes. < 0: invalid; minus the number of bytes that one U+FFFD stands for (the longest prefix of a
 * valid character, at least 1: the Unicode standard's "maximal subpart"). */
int nb_utf8_char(const char *s, size_t n, uint32_t *cp);

/* Bytes from the start of s[0..n) that are whole, valid characters: n if all of it is valid. */
size_t nb_utf8_valid(const char *s, size_t n);

/* Writes cp (must be valid) to s[4]; returns the length. */
int nb_utf8_put(char *s, uint32_t cp);

/* How text that may come from anywhere is shown: control characters other than newline and tab become "\\x1b" or "\\u0085"
 * (a terminal would obey them), and so do bytes that are no character. Writes what the next character of *text, which
 * ends with a NUL, is shown as to s[8], NUL-terminated, and moves *text behind it. Returns the length; 0 at the end. */
int nb_utf8_show(char *s, const char **text);

/* Steps over one character of valid text: *i moves behind it. */
static inline uint32_t nb_utf8_next(const char *text, size_t *i) {
    const uint8_t *s = (const uint8_t *)text + *i;
    if (s[0] < 0x80) return *i += 1, s[0];
    if (s[0] < 0xe0) return *i += 2, (uint32_t)(s[0] & 31) << 6 | (s[1] & 63);
    if (s[0] < 0xf0) return *i += 3, (uint32_t)(s[0] & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63);
    *i += 4;
    return (uint32_t)(s[0] & 7) << 18 | (uint32_t)(s[1] & 63) << 12 | (uint32_t)(s[2] & 63) << 6 | (s[3] & 63);
}

#endif
