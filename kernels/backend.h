/* A device and its table of kernels. A backend is one const nb_backend; an open device is an nb_dev.
 * "cpu" computes; "null" stands for another device, does nothing and counts (kernels/null.c). */
#ifndef NB_KERNELS_BACKEND_H
#define NB_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/batch.h"
#include "core/dtype.h"
#include "core/status.h"
#include "kernels/weight.h"

typedef enum nb_act { NB_ACT_SILU, NB_ACT_GELU_TANH, NB_ACT_GELU_ERF, NB_ACT_RELU } nb_act;

typedef struct nb_dev nb_dev;

typedef struct nb_kernels {
#define KERNEL(name, args) nb_status(*name) args;
#include "kernels/kernels.def"
#undef KERNEL
} nb_kernels;

typedef struct nb_backend {
    const char *name;
    const nb_kernels *k;
    /* Device memory: NB_ALIGN-aligned, zeroed. */
    nb_status (*alloc)(nb_dev *d, void **out, size_t bytes, const char *what);
    void (*free)(nb_dev *d, void *p, size_t bytes);
    nb_status (*put)(nb_dev *d, void *device, const void *host, size_t bytes);
    nb_status (*get)(nb_dev *d, void *host, const void *device, size_t bytes);
    /* Scratch bytes that products of M x N x K, and attention with these sizes, take from d->ws. */
    size_t (*gemm_ws)(const nb_dev *d, int64_t M, int64_t N, int64_t K);
    size_t (*attention_ws)(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D);
} nb_backend;

struct nb_dev {
    const nb_backend *be;
    const nb_kernels *k;   /* = be->k, or a tracing table */
    nb_dtype compute;      /* NB_F32 or NB_BF16: what operands of products are rounded to */
    const char *gemm;      /* name of the product variant in use, "avx512bf16", "avx512", "openblas", "naive" */
    const void *gemm_impl; /* the backend's own */
    void *ws;              /* scratch of ws_size bytes, shared by all kernels, owned by the device */
    size_t ws_size;
    /* For "null": the device it stands for, and what a run on it would take. */
    const nb_dev *target;
    size_t ws_need;
    int64_t launches;
};

/* name: "cpu". compute: NB_F32 or NB_BF16 (bf16 without hardware support is emulated exactly: operands are
 * rounded, sums are f32). Threads: nb_threads() at the time of each call. */
nb_status nb_dev_open(nb_dev **out, const char *name, nb_dtype compute);
void nb_dev_close(nb_dev *d);
/* A null device that stands for `target`: pass it wherever a device is wanted; data pointers are never followed. */
nb_status nb_dev_open_null(nb_dev **out, const nb_dev *target);
/* Grows d->ws to at least `bytes`. Never called inside a step. */
nb_status nb_dev_reserve(nb_dev *d, size_t bytes);
/* Chooses a product variant by name (tests, bench); NB_EUNSUPPORTED if this machine cannot run it. */
nb_status nb_dev_set_gemm(nb_dev *d, const char *variant);
/* True when this processor multiplies bf16 in hardware: `bf16: auto` follows it. */
bool nb_cpu_has_bf16(void);

extern const nb_backend nb_backend_cpu;

#endif
