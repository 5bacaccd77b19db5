#include "core/names.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

static uint64_t hash_of(const char *s, size_t n) { /* FNV-1a, and its high bits into the low ones */
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return h ^ h >> 32;
}

/* The name's place, or the empty one where it belongs. */
static struct nb_name *place(const nb_names *x, const char *s, size_t n) {
    size_t i = (size_t)hash_of(s, n) & x->mask;
    while (x->slot[i].s && (x->slot[i].n != n || memcmp(x->slot[i].s, s, n) != 0)) i = (i + 1) & x->mask;
    return &x->slot[i];
}

static void grow(nb_names *x) {
    nb_names y = {.mask = x->slot ? 2 * x->mask + 1 : 63};
    y.slot = nb_calloc(y.mask + 1, sizeof *y.slot);
    for (size_t i = 0; x->slot && i <= x->mask; i++)
        if (x->slot[i].s) *place(&y, x->slot[i].s, x->slot[i].n) = x->slot[i], y.used++;
    free(x->slot);
    *x = y;
}

void nb_names_add(nb_names *x, const char *s, size_t n, int64_t value) {
    if (!x->slot || 2 * x->used > x->mask) grow(x);
    struct nb_name *at = place(x, s, n);
    if (at->s) return;
    *at = (struct nb_name){s, n, value};
    x->used++;
}

int64_t nb_names_find(const nb_names *x, const char *s, size_t n) {
    const struct nb_name *at = x->slot ? place(x, s, n) : NULL;
    return at && at->s ? at->value : -1;
}

int64_t nb_names_find_weight(const nb_names *x, const char *tensor) {
    static const char end[] = ".weight";
    size_t n = strlen(tensor), m = sizeof end - 1;
    return n > m && !strcmp(tensor + n - m, end) ? nb_names_find(x, tensor, n - m) : -1;
}

void nb_names_free(nb_names *x) {
    free(x->slot);
    *x = (nb_names){0};
}
