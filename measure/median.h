#ifndef NB_MEASURE_MEDIAN_H
#define NB_MEASURE_MEDIAN_H

#include <stdint.h>

double nb_median(const double *x, int64_t n); /* 0 of none */

#endif
