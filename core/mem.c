#include "core/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_uint_fast64_t alloc_count;

static void *checked(void *p, size_t bytes) {
    if (!p && bytes) {
        fprintf(stderr, "nibble: out of memory (%zu bytes asked for)\n", bytes);
        exit(1);
    }
    return p;
}

void *nb_malloc(size_t bytes) {
    atomic_fetch_add_explicit(&alloc_count, 1, memory_order_relaxed);
    return checked(malloc(bytes ? bytes : 1), bytes);
}

void *nb_calloc(size_t count, size_t size) {
    atomic_fetch_add_explicit(&alloc_count, 1, memory_order_relaxed);
    return checked(calloc(count ? count : 1, size ? size : 1), count);
}

void *nb_realloc(void *p, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) checked(NULL, SIZE_MAX);
    atomic_fetch_add_explicit(&alloc_count, 1, memory_order_relaxed);
    return checked(realloc(p, bytes ? bytes : 1), bytes);
}

char *nb_strndup(const char *s, size_t n) {
    char *d = nb_malloc(n + 1);
    memcpy(d, s, n);
    d[n] = 0;
    return d;
}

char *nb_strdup(const char *s) { return nb_strndup(s, strlen(s)); }

char *nb_asprintf(const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = nb_malloc((size_t)n + 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

nb_status nb_big_alloc(void **out, size_t bytes, const char *what) {
    *out = NULL;
    atomic_fetch_add_explicit(&alloc_count, 1, memory_order_relaxed);
    if (bytes == 0) return NB_OK;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return nb_fail(NB_ENOMEM, "not enough memory for %s: %.1f MiB asked for", what,
                       (double)bytes / 1048576.0);
    if (bytes >= (size_t)4 << 20) madvise(p, bytes, MADV_HUGEPAGE);
    *out = p;
    return NB_OK;
}

void nb_big_free(void *p, size_t bytes) {
    if (p) munmap(p, bytes);
}

uint64_t nb_alloc_count(void) { return atomic_load(&alloc_count); }

static void text_room(nb_text *t, size_t more) {
    size_t need = t->n + more + 1;
    if (need <= t->cap) return;
    size_t cap = t->cap ? t->cap : 64;
    while (cap < need) cap *= 2;
    t->s = nb_realloc(t->s, cap, 1);
    t->cap = cap;
}

void nb_text_add(nb_text *t, const char *s, size_t n) {
    text_room(t, n);
    if (n) memcpy(t->s + t->n, s, n);
    t->n += n;
    t->s[t->n] = 0;
}

void nb_text_puts(nb_text *t, const char *s) { nb_text_add(t, s, strlen(s)); }

void nb_text_printf(nb_text *t, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    text_room(t, (size_t)n);
    vsnprintf(t->s + t->n, (size_t)n + 1, fmt, again);
    va_end(again);
    t->n += (size_t)n;
}

void nb_text_free(nb_text *t) {
    free(t->s);
    *t = (nb_text){0};
}
