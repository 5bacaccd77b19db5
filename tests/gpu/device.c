/* Time, name and memory of a device. With GC_GPU it asks the runtime of the GPU backend in this program: NVIDIA's, or
 * with NB_EMU the emulator's. Both have the same names, so that one program holds one of them. */
#include "tests/gpu/gpucheck.h"

#include <stdio.h>
#include <string.h>

#include "core/cpu.h"
#include "core/log.h"

#ifdef GC_GPU
#include "kernels/cuda/host.h"

static cudaStream_t stream_of(const nb_dev *d) { return ((const nb_gpu *)d->impl)->stream; }
static bool on_gpu(const nb_dev *d) { return !strcmp(d->be->name, NB_EMULATED ? "emu" : "cuda"); }
static nb_status check(cudaError_t e) {
    return e == cudaSuccess ? NB_OK : nb_fail(NB_EUNSUPPORTED, "%s: %s", cudaGetErrorName(e), cudaGetErrorString(e));
}
#endif

static double clock_start;

const char *gc_describe(const nb_dev *d) {
    static char text[256];
    char have[16];
#ifdef GC_GPU
    if (on_gpu(d)) {
        struct cudaDeviceProp p;
        int driver = 0, runtime = 0;
        if (cudaGetDeviceProperties(&p, ((const nb_gpu *)d->impl)->device) != cudaSuccess) return "a GPU";
        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        snprintf(text, sizeof text, "%s, %d multiprocessors, %s, driver for CUDA %d.%d, runtime %d.%d", p.name,
                 p.multiProcessorCount, nb_bytes((double)p.totalGlobalMem, have), driver / 1000, driver % 1000 / 10,
                 runtime / 1000, runtime % 1000 / 10);
        return text;
    }
#endif
    snprintf(text, sizeof text, "%s on %s, %s", d->be->name, nb_cpu_get()->name,
             nb_bytes((double)nb_cpu_get()->memory, have));
    return text;
}

nb_status gc_wait(nb_dev *d) {
#ifdef GC_GPU
    if (on_gpu(d)) return check(cudaStreamSynchronize(stream_of(d)));
#endif
    (void)d;
    return NB_OK;
}

#ifdef GC_GPU
static cudaEvent_t mark[2];
#endif

nb_status gc_start(nb_dev *d) {
#ifdef GC_GPU
    if (on_gpu(d)) {
        for (int i = 0; i < 2; i++)
            if (!mark[i]) NB_TRY(check(cudaEventCreate(&mark[i])));
        return check(cudaEventRecord(mark[0], stream_of(d)));
    }
#endif
    (void)d;
    clock_start = nb_now();
    return NB_OK;
}

nb_status gc_stop(nb_dev *d, double *seconds) {
#ifdef GC_GPU
    if (on_gpu(d)) {
        float ms = 0;
        NB_TRY(check(cudaEventRecord(mark[1], stream_of(d))));
        NB_TRY(check(cudaEventSynchronize(mark[1])));
        NB_TRY(check(cudaEventElapsedTime(&ms, mark[0], mark[1])));
        *seconds = (double)ms * 1e-3;
        return NB_OK;
    }
#endif
    (void)d;
    *seconds = nb_now() - clock_start;
    return NB_OK;
}

/* ---- memory: the backend's own functions with a count around them ---- */

static struct {
    nb_backend be;
    const nb_backend *real;
    size_t now, peak;
} counted;

static nb_status counting_alloc(nb_dev *d, void **out, size_t bytes, const char *what) {
    NB_TRY(counted.real->alloc(d, out, bytes, what));
    counted.now += bytes;
    if (counted.now > counted.peak) counted.peak = counted.now;
    return NB_OK;
}

static void counting_free(nb_dev *d, void *p, size_t bytes) {
    counted.real->free(d, p, bytes);
    if (p) counted.now -= bytes;
}

void gc_count_memory(nb_dev *d) {
    counted.real = d->be;
    counted.be = *d->be;
    counted.be.alloc = counting_alloc;
    counted.be.free = counting_free;
    counted.now = counted.peak = d->ws_size;
    d->be = &counted.be;
}

size_t gc_memory_peak(void) { return counted.peak; }
