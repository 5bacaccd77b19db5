/* All rows of one dataset entry to an image: tokenized in parallel, in the file's order, with duplicates and too-long
 * rows handled as the config says and every row and token accounted for in the ledger. */
#ifndef NB_DATA_PREPARE_H
#define NB_DATA_PREPARE_H

#include "data/format.h"
#include "data/image.h"

typedef struct nb_prepare {
    const nb_reader *reader;
    const nb_format *format;
    const char *name;
    int64_t sequence_len, overlap;
    int strategy; /* NB_EXCESS_* */
    bool deduplicate;
} nb_prepare;
/* On success *m is sealed and its ledger balances. */
nb_status nb_prepare_image(const nb_prepare *p, nb_image *m);

#endif
