#include "measure/median.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

static int ascending(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return a < b ? -1 : a > b;
}

double nb_median(const double *x, int64_t n) {
    if (n < 1) return 0;
    double *y = nb_malloc((size_t)n * sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *y);
    qsort(y, (size_t)n, sizeof *y, ascending);
    double middle = n & 1 ? y[n / 2] : (y[n / 2 - 1] + y[n / 2]) / 2;
    free(y);
    return middle;
}
