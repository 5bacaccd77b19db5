/* The machine's processor: features that select kernels, and the number of threads. */
#ifndef NB_CORE_CPU_H
#define NB_CORE_CPU_H

#include <stdbool.h>
#include <stddef.h>

#include "core/status.h"

typedef struct nb_cpu {
    bool avx2_fma, avx512, avx512_bf16; /* avx512 = F, BW, DQ, VL, VBMI not asked for */
    int cores;                          /* usable by this process (affinity, cgroup quota) */
    size_t memory, memory_available;    /* bytes; available also honours the cgroup limit */
    char name[64];
} nb_cpu;
const nb_cpu *nb_cpu_get(void); /* found once */

/* The environment's NIBBLE_CPU keeps the program to the instructions of a lesser processor: base (what every x86-64 has),
 * avx2, avx512 (without BF16). NB_EINPUT: it holds something else. Another process's figures are compared under the same
 * limit (bench/peers), and tests run the kernels of machines that are not at hand. */
nb_status nb_cpu_check(void);

/* The process's one thread pool is OpenMP's. 0 = all usable cores. Also sets OpenBLAS to 1. */
void nb_threads_set(int n);
int nb_threads(void);

/* Call first thing in main. Waiting threads of libgomp spin for milliseconds by default, which on a machine that does
 * anything else besides makes a step several times slower. libgomp reads its settings when it is loaded, so unless the
 * user has set GOMP_SPINCOUNT or OMP_WAIT_POLICY, this sets the former and starts the program over, once. */
void nb_threads_settle(char **argv);

#endif
