/* Opening and closing devices. */
#include "kernels/backend.h"

#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"
#include "core/log.h"
#include "core/mem.h"

static const nb_backend *const *backends(void) {
    static const nb_backend *list[4];
    int n = 0;
    list[n++] = &nb_backend_cpu;
    if (&nb_backend_cuda) list[n++] = &nb_backend_cuda;
    if (&nb_backend_emu) list[n++] = &nb_backend_emu;
    return list;
}

/* "cuda:1" is the backend "cuda" at "1". */
static const nb_backend *find(const char *name, const char **where) {
    size_t n = strcspn(name, ":");
    *where = name[n] ? name + n + 1 : "";
    for (const nb_backend *const *b = backends(); *b; b++)
        if (strlen((*b)->name) == n && !strncmp(name, (*b)->name, n)) return *b;
    return NULL;
}

static nb_status open_with(nb_dev **out, const nb_backend *be, const char *where, nb_dtype compute) {
    nb_dev *d = NB_NEW(nb_dev);
    *d = (nb_dev){.be = be, .k = be->k, .compute = compute};
    nb_status st = be->open(d, where);
    if (st != NB_OK) nb_dev_close(d);
    else *out = d;
    return st;
}

/* The GPU where there is one that works; one that does not is worth a word. */
static const nb_backend *automatic(void) {
    static bool told;
    if (!&nb_backend_cuda) return &nb_backend_cpu;
    nb_status st = nb_backend_cuda.usable();
    if (st == NB_OK) return &nb_backend_cuda;
    if (st != NB_EUNSUPPORTED && !told) nb_warn("%s. Computing on the processor", nb_message());
    told = true;
    return &nb_backend_cpu;
}

nb_status nb_dev_open(nb_dev **out, const char *name, nb_dtype compute) {
    const char *where = "";
    *out = NULL;
    if (compute != NB_F32 && compute != NB_BF16)
        return nb_fail(NB_EUNSUPPORTED, "products compute in float32 or bfloat16, not in %s", nb_dtype_name(compute));
    const nb_backend *be = strcmp(name, "auto") ? find(name, &where) : automatic();
    if (be) return open_with(out, be, where, compute);
    return nb_fail(NB_EUNSUPPORTED, "there is no device \"%s\": this build computes on %s", name,
                   &nb_backend_cuda ? "cpu and cuda" : "cpu (`make` adds cuda where it finds nvcc)");
}

void nb_dev_close(nb_dev *d) {
    if (!d) return;
    if (d->ws) d->be->free(d, d->ws, d->ws_size);
    if (d->be->close) d->be->close(d);
    free(d);
}

bool nb_dev_has_bf16(const char *name) {
    const char *where;
    const nb_backend *be = strcmp(name, "auto") ? find(name, &where) : automatic();
    if (be && be != &nb_backend_cpu) return true; /* sm_80 and later, or it does not open */
    return nb_cpu_get()->avx512_bf16;
}

nb_status nb_dev_reserve(nb_dev *d, size_t bytes) {
    if (bytes > d->ws_need) d->ws_need = bytes;
    if (bytes <= d->ws_size) return NB_OK;
    void *ws;
    NB_TRY(d->be->alloc(d, &ws, bytes, "the kernels' scratch"));
    if (d->ws) d->be->free(d, d->ws, d->ws_size);
    d->ws = ws;
    d->ws_size = bytes;
    return NB_OK;
}

nb_status nb_dev_set_gemm(nb_dev *d, const char *variant) {
    if (!d->be->choose_gemm)
        return nb_fail(NB_EUNSUPPORTED, "the device \"%s\" has no product variants to choose from", d->be->name);
    return d->be->choose_gemm(d, variant);
}
