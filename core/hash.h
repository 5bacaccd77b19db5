/* SHA-256 (libcrypto), as 64 lowercase hexadecimal digits. */
#ifndef NB_CORE_HASH_H
#define NB_CORE_HASH_H

#include <stddef.h>

#include "core/status.h"

typedef char nb_hex[65];

typedef struct nb_sha256 { void *ctx; } nb_sha256;
nb_sha256 nb_sha256_open(void);
void nb_sha256_add(nb_sha256 *h, const void *data, size_t size);
/* Length first, so that ("ab","c") and ("a","bc") differ; NULL hashes as no string. */
void nb_sha256_add_str(nb_sha256 *h, const char *s);
void nb_sha256_close(nb_sha256 *h, nb_hex out); /* frees the context */

void nb_sha256_of(const void *data, size_t size, nb_hex out);
nb_status nb_sha256_file(const char *path, nb_hex out);

/* CRC-32C (Castagnoli), for sections of our own binary files. Start with crc = 0. */
#include <stdint.h>
uint32_t nb_crc32c(uint32_t crc, const void *data, size_t size);

#endif
