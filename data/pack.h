/* Packing: rows into bins of at most `capacity` tokens. Best fit over a window of open bins: a row goes into the open
 * bin it fills best; when none has room a new one is opened, and of too many open ones the fullest is closed. A pure
 * function of its arguments. */
#ifndef NB_DATA_PACK_H
#define NB_DATA_PACK_H

#include <stdint.h>

enum { NB_PACK_WINDOW = 128 };

/* bin[i] (0 ..) of row i of length[i] <= capacity, for i in [0, n); bins are numbered in the order they were opened.
 * Returns how many there are. Allocates nothing. */
int64_t nb_pack(const int32_t *length, int64_t n, int64_t capacity, int64_t *bin);

#endif
