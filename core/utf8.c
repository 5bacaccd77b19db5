#include "core/utf8.h"

#include <stdio.h>
#include <string.h>

int nb_utf8_char(const char *text, size_t n, uint32_t *cp) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return *cp = s[0], 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return -1;
    int len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    /* the second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF */
    uint8_t lo = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t hi = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    uint32_t c = s[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((size_t)i >= n) return 0;
        if (s[i] < lo || s[i] > hi) return -i;
        c = c << 6 | (s[i] & 63u);
        lo = 0x80, hi = 0xbf;
    }
    *cp = c;
    return len;
}

size_t nb_utf8_valid(const char *s, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (i + 8 <= n && (memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        uint32_t cp;
        int len = nb_utf8_char(s + i, n - i, &cp);
        if (len <= 0) return i;
        i += (size_t)len;
    }
    return n;
}

int nb_utf8_put(char *s, uint32_t cp) {
    if (cp < 0x80) return s[0] = (char)cp, 1;
    int len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    static const uint8_t lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = len - 1; i > 0; i--, cp >>= 6) s[i] = (char)(0x80 | (cp & 63));
    s[0] = (char)(lead[len] | cp);
    return len;
}

int nb_utf8_show(char *s, const char **text) {
    uint32_t cp = 0;
    const char *from = *text;
    if (!*from) return *s = 0;
    const int len = nb_utf8_char(from, strnlen(from, 4), &cp);
    *text += len > 0 ? len : 1;
    if (len <= 0 || (cp < ' ' && cp != '\n' && cp != '\t') || cp == 127)
        return snprintf(s, 8, "\\x%02x", (unsigned char)*from);
    if (cp >= 128 && cp < 160) return snprintf(s, 8, "\\u%04x", (unsigned)cp);
    memcpy(s, from, (size_t)len);
    s[len] = 0;
    return len;
}
