#include "core/hash.h"

#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"

nb_sha256 nb_sha256_open(void) {
    nb_sha256 h = {EVP_MD_CTX_new()};
    NB_ASSERT(h.ctx && EVP_DigestInit_ex(h.ctx, EVP_sha256(), NULL) == 1);
    return h;
}

void nb_sha256_add(nb_sha256 *h, const void *data, size_t size) {
    if (size) NB_ASSERT(EVP_DigestUpdate(h->ctx, data, size) == 1);
}

void nb_sha256_add_str(nb_sha256 *h, const char *s) {
    uint64_t n = s ? strlen(s) : UINT64_MAX;
    nb_sha256_add(h, &n, sizeof n);
    if (s) nb_sha256_add(h, s, (size_t)n);
}

void nb_sha256_close(nb_sha256 *h, nb_hex out) {
    unsigned char d[32];
    NB_ASSERT(EVP_DigestFinal_ex(h->ctx, d, NULL) == 1);
    EVP_MD_CTX_free(h->ctx);
    h->ctx = NULL;
    for (int i = 0; i < 32; i++) snprintf(out + 2 * i, 3, "%02x", d[i]);
}

void nb_sha256_of(const void *data, size_t size, nb_hex out) {
    nb_sha256 h = nb_sha256_open();
    nb_sha256_add(&h, data, size);
    nb_sha256_close(&h, out);
}

nb_status nb_sha256_file(const char *path, nb_hex out) {
    nb_map m;
    NB_TRY(nb_map_open(&m, path));
    nb_sha256_of(m.data, m.size, out);
    nb_map_close(&m);
    return NB_OK;
}

uint32_t nb_crc32c(uint32_t crc, const void *data, size_t size) {
    const uint8_t *p = data;
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= p[i];
        for (int b = 0; b < 8; b++) crc = crc >> 1 ^ (0x82f63b78u & -(crc & 1));
    }
    return ~crc;
}
