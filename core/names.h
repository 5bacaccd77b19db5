/* An index of names: a number for each text, found in constant time. For tensors and modules, of which a mixture of
 * experts has tens of thousands. */
#ifndef NB_CORE_NAMES_H
#define NB_CORE_NAMES_H

#include <stddef.h>
#include <stdint.h>

typedef struct nb_names {
    struct nb_name {
        const char *s; /* borrowed; NULL: empty */
        size_t n;
        int64_t value;
    } *slot;
    size_t used, mask;
} nb_names; /* zero-initialize */

/* A name that is there keeps its first value. The texts must outlive the index. */
void nb_names_add(nb_names *x, const char *s, size_t n, int64_t value);
int64_t nb_names_find(const nb_names *x, const char *s, size_t n); /* -1: not there */
/* A tensor is MODULE.weight: what MODULE was added with; -1: it is not, or not there. */
int64_t nb_names_find_weight(const nb_names *x, const char *tensor);
void nb_names_free(nb_names *x);

#endif
