/* What the machine can do at most, measured: multiply-adds in registers, and reading memory. */
#ifndef NB_MEASURE_LIMITS_H
#define NB_MEASURE_LIMITS_H

#include <stdbool.h>

typedef struct nb_limits {
    int threads;
    double f32, bf16; /* floating-point operations a second, of all threads together; 0: not known for this processor */
    double read;      /* bytes a second */
} nb_limits;

/* Independent multiply-adds in registers, no memory touched; best of the rounds (under a millisecond each) that `seconds`
 * allow. */
double nb_measure_peak(bool bf16, int threads, double seconds);
/* A sum over an array larger than the caches (as in STREAM, McCalpin 1995, but reading alone), best of the passes that
 * `seconds` allow; 0: no memory for the array. */
double nb_measure_read(int threads, double seconds);
nb_limits nb_measure_limits(int threads, double seconds);

#endif
