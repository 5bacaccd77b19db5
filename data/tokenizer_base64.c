#include <string.h>

#include "data/tokenizer_impl.h"

int nb_tok_base64_digit(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

int64_t nb_tok_base64(uint8_t *out, const char *s, size_t n) {
    int64_t bytes = 0;
    uint32_t bits = 0;
    while (n && s[n - 1] == '=') n--;
    for (size_t i = 0; i < n; i++) {
        int digit = nb_tok_base64_digit(s[i]);
        if (digit < 0) return -1 - (int64_t)i;
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4) out[bytes++] = (uint8_t)(bits >> (6 - 2 * (i % 4))); /* all but the first of four end a byte */
    }
    return bytes;
}
