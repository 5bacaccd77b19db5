/* Opening and closing devices. */
#include "kernels/backend.h"

#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"
#include "core/mem.h"
#include "kernels/cpu/gemm.h"

bool nb_cpu_has_bf16(void) { return nb_cpu_get()->avx512_bf16; }

nb_status nb_dev_open(nb_dev **out, const char *name, nb_dtype compute) {
    *out = NULL;
    if (strcmp(name, nb_backend_cpu.name))
        return nb_fail(NB_EUNSUPPORTED, "there is no device \"%s\": this build computes on \"cpu\"", name);
    if (compute != NB_F32 && compute != NB_BF16)
        return nb_fail(NB_EUNSUPPORTED, "products compute in float32 or bfloat16, not in %s", nb_dtype_name(compute));
    nb_threads_set(nb_threads()); /* puts OpenBLAS on one thread */
    nb_dev *d = NB_NEW(nb_dev);
    *d = (nb_dev){.be = &nb_backend_cpu, .k = nb_backend_cpu.k, .compute = compute};
    nb_status st = nb_cpu_choose_gemm(d, NULL);
    if (st != NB_OK) nb_dev_close(d);
    else *out = d;
    return st;
}

void nb_dev_close(nb_dev *d) {
    if (!d) return;
    d->be->free(d, d->ws, d->ws_size);
    free(d);
}

nb_status nb_dev_reserve(nb_dev *d, size_t bytes) {
    if (bytes > d->ws_need) d->ws_need = bytes;
    if (bytes <= d->ws_size) return NB_OK;
    void *ws;
    NB_TRY(d->be->alloc(d, &ws, bytes, "the kernels' scratch"));
    d->be->free(d, d->ws, d->ws_size);
    d->ws = ws;
    d->ws_size = bytes;
    return NB_OK;
}

nb_status nb_dev_set_gemm(nb_dev *d, const char *variant) {
    if (d->be != &nb_backend_cpu)
        return nb_fail(NB_EUNSUPPORTED, "the device \"%s\" has no product variants to choose from", d->be->name);
    return nb_cpu_choose_gemm(d, variant);
}
