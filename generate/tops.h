/* The most likely tokens of rows of logits, fetched from a device whose memory is not the host's: most draws need no more
 * (nb_sampler_next_of_top), and a row of logits is a thousand times as large. */
#ifndef NB_GENERATE_TOPS_H
#define NB_GENERATE_TOPS_H

#include "generate/sampler.h"
#include "kernels/backend.h"

typedef struct nb_tops {
    nb_dev *dev;         /* NULL: not opened */
    int64_t rows, n;     /* at most so many rows, so many tokens of each */
    float *there, *here; /* mass [rows], values [rows, n], ids [rows, n]: on the device, and on the host */
} nb_tops;

nb_status nb_tops_open(nb_tops *t, nb_dev *dev, int64_t rows, int64_t vocab);
void nb_tops_close(nb_tops *t); /* harmless when it is not open */
/* Of logits [rows, vocab] on the device. */
nb_status nb_tops_find(nb_tops *t, const float *logits, int64_t rows, int64_t vocab, float rate);
nb_top nb_tops_row(const nb_tops *t, int64_t row); /* good until the next nb_tops_find */

#endif
