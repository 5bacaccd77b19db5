/* The most resident memory since a mark, in bytes: of a part of a program, where getrusage knows only the whole. */
#ifndef NB_MEASURE_MEMORY_H
#define NB_MEASURE_MEMORY_H

#include <stddef.h>

void nb_memory_mark(void);
size_t nb_memory_peak(void); /* since the process began where the kernel does not let us mark */

#endif
