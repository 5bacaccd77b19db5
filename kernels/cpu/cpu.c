/* The cpu backend's table; memory is the host's. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "core/cpu.h"
#include "core/mem.h"
#include "kernels/cpu/gemm.h"

static nb_status host_alloc(nb_dev *d, void **out, size_t bytes, const char *what) {
    (void)d;
    return nb_big_alloc(out, bytes, what);
}

static void host_free(nb_dev *d, void *p, size_t bytes) {
    (void)d;
    nb_big_free(p, bytes);
}

static nb_status host_copy(nb_dev *d, void *to, const void *from, size_t bytes) {
    (void)d;
    if (bytes) memcpy(to, from, bytes);
    return NB_OK;
}

static nb_status cpu_open(nb_dev *d, const char *where) {
    if (*where) return nb_fail(NB_EINPUT, "there is one device \"cpu\", no \"cpu:%s\"", where);
    nb_threads_set(nb_threads()); /* puts OpenBLAS on one thread */
    d->elem = NB_F32;
    d->label = nb_cpu_get()->name;
    return nb_cpu_choose_gemm(d, NULL);
}

static void cpu_close(nb_dev *d) { (void)d; }

static nb_status cpu_memory(nb_dev *d, size_t *total, size_t *available) {
    (void)d;
    *total = nb_cpu_get()->memory;
    *available = nb_cpu_get()->memory_available;
    return NB_OK;
}

static size_t cpu_weight_ws(const nb_dev *d, const nb_weight *w, int64_t T) {
    size_t forward = nb_cpu_gemm_ws(d, T, w->rows, w->cols), backward = nb_cpu_gemm_ws(d, T, w->cols, w->rows);
    return forward > backward ? forward : backward;
}

/* Sums over rows take none. */
static size_t cpu_rows_ws(const nb_dev *d, int64_t T, int64_t C) {
    (void)d, (void)T, (void)C;
    return 0;
}

static const nb_kernels cpu_kernels = {
#define KERNEL(name, args) .name = nb_cpu_##name,
#include "kernels/kernels.def"
#undef KERNEL
};

const nb_backend nb_backend_cpu = {
    .name = "cpu",
    .k = &cpu_kernels,
    .open = cpu_open,
    .close = cpu_close,
    .host_memory = true,
    .logits_chunk = 10 << 20, /* 40 MiB: packing a head of 49152 rows for fewer rows costs more than memory does */
    .alloc = host_alloc,
    .free = host_free,
    .put = host_copy,
    .get = host_copy,
    .copy = host_copy,
    .memory = cpu_memory,
    .choose_gemm = nb_cpu_choose_gemm,
    .gemm_ws = nb_cpu_gemm_ws,
    .weight_ws = cpu_weight_ws,
    .terms_ws = nb_cpu_terms_ws,
    .attention_ws = nb_cpu_attention_ws,
    .rows_ws = cpu_rows_ws,
};
