/* How one kernel is timed: its buffers, several sets of them, and what it must move and multiply at least. */
#ifndef NB_TESTS_GPU_BENCH_H
#define NB_TESTS_GPU_BENCH_H

#include "tests/gpu/gpucheck.h"

/* The sizes of a model that the kernels are measured at. */
typedef struct gc_shape {
    const char *name;
    int64_t C, F, H, KV, D, V, L, R; /* core/batch.h's letters */
    int64_t T;                       /* tokens of a step, packed from `docs` documents */
    int64_t docs, cached;            /* cached: tokens a generated one looks back on */
} gc_shape;

typedef enum gc_fill { GC_ZERO, GC_RANDOM, GC_SMALL, GC_BYTES, GC_IDS, GC_COUNT } gc_fill;

enum { GC_MAX_BUFS = 16, GC_MAX_SETS = 64, GC_ALIGN = 256 };

typedef struct gc_job {
    nb_dev *d;
    const gc_shape *s;
    int64_t variant;  /* which of a kernel's shapes */
    int64_t logits;   /* elements of logits at a time, as the device under test has them */
    char shape[96];   /* in words */
    double bytes, flops; /* what a call must read and write, and multiply and add, at least */
    struct gc_buf {
        char *p;
        size_t bytes;    /* of one set */
        nb_dtype dtype;
        gc_fill fill;
        int64_t below;   /* GC_IDS: ids are 0 .. below-1 */
        const void *host; /* or these bytes, in every set */
    } buf[GC_MAX_BUFS];
    int n, sets;
    size_t ws;        /* scratch it needs */
    int64_t k[4];     /* the kernel's own */
} gc_job;

/* A buffer of n elements that a call passes over `passes` times (2: reads and writes); its number. */
int gc_buf(gc_job *j, int64_t n, nb_dtype dtype, gc_fill fill, double passes);
int gc_buf_ids(gc_job *j, int64_t n, int64_t below);
int gc_buf_host(gc_job *j, const void *host, size_t bytes);
static inline size_t gc_stride(const gc_job *j, int i) {
    return (j->buf[i].bytes + GC_ALIGN - 1) / GC_ALIGN * GC_ALIGN;
}
/* Buffer i of set k on the device. */
static inline void *gc_at(const gc_job *j, int i, int k) {
    return j->buf[i].p + (size_t)k * gc_stride(j, i);
}

/* Allocates what was declared, in j->sets sets, and fills it: the same numbers on every device, all of them bf16's. */
nb_status gc_make_buffers(gc_job *j);
void gc_free_buffers(gc_job *j);

typedef struct gc_kernel {
    const char *name;
    int64_t variants;
    void (*declare)(gc_job *j);              /* sizes, buffers, floor */
    nb_status (*launch)(gc_job *j, int set); /* one call */
} gc_kernel;
extern const gc_kernel gc_kernels[];
extern const int gc_n_kernels;
/* The shapes: of real models, or one for the emulator. */
const gc_shape *gc_shapes(bool tiny, int *n);
/* Does the kernel's name begin with one of only's, which commas part ("": all)? */
bool gc_meant(const char *only, const char *kernel);

#endif
