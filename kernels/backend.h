/* A device and its table of kernels. A backend is one const nb_backend; an open device is an nb_dev. "cpu" and "cuda"
 * compute; "emu" is the cuda backend's source run on the CPU by an emulator (tests only); "null" stands for another
 * device, does nothing and counts (kernels/null.c). */
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

/* An element of an activation: F32 or BF16, as nb_dev.elem says. */
typedef void nb_elem;

/* A matrix of a product: row-major with ld elements between rows; t: it is stored transposed. */
typedef struct nb_mat {
    void *p; /* what is only read is not written through */
    int64_t ld;
    nb_dtype dtype; /* F32 or the device's elem */
    bool t;
} nb_mat;
/* As stored; and stored transposed. */
static inline nb_mat nb_mat_of(const void *p, int64_t ld, nb_dtype dtype) {
    nb_mat m = {(void *)(uintptr_t)p, ld, dtype, false};
    return m;
}
static inline nb_mat nb_mat_t(const void *p, int64_t ld, nb_dtype dtype) {
    nb_mat m = {(void *)(uintptr_t)p, ld, dtype, true};
    return m;
}

/* One of the products whose sum is wanted (row gemm_sum): alpha * op(x) op(y), or with a frozen weight w in y's place, as it
 * is stored: x W^T (y.t), or x W. */
typedef struct nb_term {
    nb_mat x, y;
    const nb_weight *w; /* NULL: y; else alpha is 1 */
    int64_t K;
    float alpha;
} nb_term;
enum { NB_MAX_TERMS = 8 };
static inline nb_term nb_term_of(nb_mat x, nb_mat y, int64_t K, float alpha) {
    nb_term t = {x, y, NULL, K, alpha};
    return t;
}
static inline nb_term nb_term_fwd(nb_mat x, const nb_weight *w) {
    nb_term t = {x, {NULL, 0, NB_F32, true}, w, w->cols, 1};
    return t;
}
static inline nb_term nb_term_bwd(nb_mat x, const nb_weight *w) {
    nb_term t = {x, {NULL, 0, NB_F32, false}, w, w->rows, 1};
    return t;
}

/* What changes from one optimizer step to the next, in device memory: the norm reaches the update without the host. */
typedef struct nb_update {
    double sum_squares; /* of the whole gradient: written by the row sum_squares */
    double bias1, bias2; /* 1 - beta^step, step counting from 1 */
    float lr, max_norm;  /* max_norm 0: no clipping */
} nb_update;

typedef struct nb_kernels {
#define KERNEL(name, args) nb_status(*name) args;
#include "kernels/kernels.def"
#undef KERNEL
} nb_kernels;

typedef struct nb_backend {
    const char *name;
    const nb_kernels *k;
    const char *built_for; /* GPU architectures there are kernels for, "80 90"; NULL for others */
    /* NB_OK if a device can be had, else a message that says why not. NB_EUNSUPPORTED: there is none; anything else: there
     * is one, and something is wrong with it. NULL: always. */
    nb_status (*usable)(void);
    /* Sets up d->impl, d->elem, d->gemm, d->label; where: what follows "cuda:" ("" for none). When it fails, close still
     * follows. */
    nb_status (*open)(nb_dev *d, const char *where);
    void (*close)(nb_dev *d);
    bool host_memory; /* host pointers are device pointers */
    /* Elements of logits linear_xent makes at a time (rows * V): enough to keep the device busy. */
    int64_t logits_chunk;
    /* Device memory: NB_ALIGN-aligned, zeroed. */
    nb_status (*alloc)(nb_dev *d, void **out, size_t bytes, const char *what);
    void (*free)(nb_dev *d, void *p, size_t bytes);
    /* In the order of the launches. put: the host's bytes may change after the call. get waits for the result (and is
     * where an error of an earlier launch comes to light). copy: device to device. */
    nb_status (*put)(nb_dev *d, void *device, const void *host, size_t bytes);
    nb_status (*get)(nb_dev *d, void *host, const void *device, size_t bytes);
    nb_status (*copy)(nb_dev *d, void *to, const void *from, size_t bytes);
    /* Recording, optional (NULL): what is launched between record and recorded does not run but is kept, for replay to run
     * again and again on what device memory then holds. Saves the launches' time where they are many and small. */
    nb_status (*record)(nb_dev *d);
    nb_status (*recorded)(nb_dev *d, void **recording);
    nb_status (*replay)(nb_dev *d, void *recording);
    void (*forget)(nb_dev *d, void *recording);
    /* Bytes of memory the device has, and has free now. */
    nb_status (*memory)(nb_dev *d, size_t *total, size_t *available);
    /* Chooses a product variant by name (NULL: the best) and sets d->gemm. */
    nb_status (*choose_gemm)(nb_dev *d, const char *variant);
    /* Scratch bytes that the row gemm with M x N x K, products of T rows with a frozen weight either way, attention with
     * these sizes, and rows that sum over T rows of C channels
     * (norms', biases' and embeddings' backward, sum_squares of T*C elements, route of T*C choices) take from d->ws. */
    size_t (*gemm_ws)(const nb_dev *d, int64_t M, int64_t N, int64_t K);
    size_t (*weight_ws)(const nb_dev *d, const nb_weight *w, int64_t T);
    size_t (*terms_ws)(const nb_dev *d, const nb_term *terms, int n, int64_t M, int64_t N); /* of the row gemm_sum */
    size_t (*attention_ws)(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D);
    size_t (*rows_ws)(const nb_dev *d, int64_t T, int64_t C);
} nb_backend;

struct nb_dev {
    const nb_backend *be;
    const nb_kernels *k;   /* = be->k, or a tracing table */
    nb_dtype compute;      /* NB_F32 or NB_BF16: what operands of products are rounded to */
    nb_dtype elem;         /* type of activations: F32 on the cpu; cuda: = compute */
    const char *label;     /* the name of the processor or card */
    const char *gemm;      /* name of the product variant in use, "avx512bf16", "avx512", "openblas", "naive", "cublas" */
    const void *gemm_impl; /* the backend's own */
    bool dots;             /* the step at hand generates text: products with frozen weights wait for memory, and a backend
                            * may sum them in the order in which it reads them (cpu: kernels/cpu/dots.h) */
    void *impl;            /* the backend's own: streams, handles */
    void *ws;              /* scratch of ws_size bytes, shared by all kernels, owned by the device */
    size_t ws_size;
    /* For "null": the device it stands for, and what a run on it would take. */
    const nb_dev *target;
    size_t ws_need;
    int64_t launches;
};

/* name: "cpu", "cuda", "cuda:1", or "auto": a GPU if there is one that can be used, else the cpu. compute: NB_F32 or
 * NB_BF16 (on the cpu, bf16 without hardware support is emulated exactly: operands are rounded, sums are f32). Threads of
 * the cpu: nb_threads() at the time of each call. */
nb_status nb_dev_open(nb_dev **out, const char *name, nb_dtype compute);
/* Does the device of this name multiply bf16 in hardware? `bf16: auto` follows it. */
bool nb_dev_has_bf16(const char *name);
void nb_dev_close(nb_dev *d);
/* A null device that stands for `target`: pass it wherever a device is wanted; data pointers are never followed. */
nb_status nb_dev_open_null(nb_dev **out, const nb_dev *target);
/* Grows d->ws to at least `bytes`. Never called inside a step. */
nb_status nb_dev_reserve(nb_dev *d, size_t bytes);
/* Chooses a product variant by name (tests, bench); NB_EUNSUPPORTED if this machine cannot run it. */
nb_status nb_dev_set_gemm(nb_dev *d, const char *variant);

extern const nb_backend nb_backend_cpu;
/* Linked in where there is a CUDA toolkit, and into the tests: NULL addresses elsewhere. */
extern const nb_backend nb_backend_cuda __attribute__((weak)), nb_backend_emu __attribute__((weak));

#endif
