/* Host memory. Small things (names, tables, parsed files) come from nb_malloc and friends, which
 * end the program with a message when the machine has none left: there is nothing sensible a
 * caller could do. Large buffers (weights, arenas, optimizer state) come from nb_big_alloc, which
 * fails with NB_ENOMEM and says how much was asked for. */
#ifndef NB_CORE_MEM_H
#define NB_CORE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

void *nb_malloc(size_t bytes);
void *nb_calloc(size_t count, size_t size);            /* zeroed; count*size checked for overflow */
void *nb_realloc(void *p, size_t count, size_t size);  /* count*size checked for overflow */
char *nb_strdup(const char *s);
char *nb_strndup(const char *s, size_t n);
char *nb_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define NB_NEW(type) ((type *)nb_calloc(1, sizeof(type)))
/* Makes room for one more element in a growing array {p, n, cap}. */
#define NB_GROW(p, n, cap)                                                \
    do {                                                                  \
        if ((size_t)(n) >= (size_t)(cap)) {                               \
            (cap) = (cap) ? (cap) * 2 : 8;                                \
            (p) = nb_realloc((p), (size_t)(cap), sizeof *(p));            \
        }                                                                 \
    } while (0)

enum { NB_ALIGN = 256 }; /* bytes: cuBLASLt and 512-bit loads are content */

/* Aligned to NB_ALIGN, zeroed. `what` appears in the error message. Free with nb_big_free. */
nb_status nb_big_alloc(void **out, size_t bytes, const char *what);
void nb_big_free(void *p, size_t bytes);

/* Number of calls to nb_malloc, nb_calloc, nb_realloc and nb_big_alloc so far: the tests that
 * prove a training step allocates nothing read it before and after. */
uint64_t nb_alloc_count(void);

/* Growing text buffer. Zero-initialize; s is NUL-terminated once anything was appended. */
typedef struct nb_text {
    char *s;
    size_t n, cap;
} nb_text;
void nb_text_add(nb_text *t, const char *s, size_t n);
void nb_text_puts(nb_text *t, const char *s);
void nb_text_printf(nb_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void nb_text_free(nb_text *t);

#endif
