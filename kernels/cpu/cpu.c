/* The cpu backend's table; memory is the host's. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "core/mem.h"

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

static const nb_kernels cpu_kernels = {
#define KERNEL(name, args) .name = nb_cpu_##name,
#include "kernels/kernels.def"
#undef KERNEL
};

const nb_backend nb_backend_cpu = {
    .name = "cpu",
    .k = &cpu_kernels,
    .alloc = host_alloc,
    .free = host_free,
    .put = host_copy,
    .get = host_copy,
    .gemm_ws = nb_cpu_gemm_ws,
    .attention_ws = nb_cpu_attention_ws,
};
