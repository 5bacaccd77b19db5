/* nibble doctor: what this machine has, what is missing, what nibble will use. */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "kernels/backend.h"
#include "kernels/cuda/library.h"

/* OpenBLAS's own questions, declared here as in its cblas.h. */
extern char *openblas_get_config(void);
extern char *openblas_get_corename(void);
extern int openblas_get_parallel(void);

typedef struct problems {
    nb_text text;
    int n;
} problems;

static void row(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void row(const char *name, const char *fmt, ...) {
    va_list ap;
    printf("  %-12s ", name);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

static void problem(problems *p, const char *text) {
    nb_text_printf(&p->text, "  - %s\n", text);
    p->n++;
}

static void show_cpu(problems *p) {
    const nb_cpu *cpu = nb_cpu_get();
    char total[16], avail[16];
    row("processor", "%s", cpu->name);
    row("cores", "%d usable by this process (%ld in the machine)", cpu->cores, sysconf(_SC_NPROCESSORS_ONLN));
    const char *limit = getenv("NIBBLE_CPU");
    row("features", "AVX2+FMA %s, AVX-512 %s, AVX-512 BF16 %s%s%s", cpu->avx2_fma ? "yes" : "no",
        cpu->avx512 ? "yes" : "no", cpu->avx512_bf16 ? "yes" : "no", limit && *limit ? ", limited by NIBBLE_CPU=" : "",
        limit ? limit : "");
    row("memory", "%s, %s available", nb_bytes((double)cpu->memory, total),
        nb_bytes((double)cpu->memory_available, avail));
    if (!cpu->avx2_fma) problem(p, "no AVX2: nibble runs its plain loops, many times slower");
    if (cpu->memory_available < (size_t)1 << 30)
        problem(p, "less than 1 GiB of memory available: close other programs; `nibble plan` says what a run needs");
}

static void show_disk(problems *p) {
    char *dir = NULL, free_text[16];
    uint64_t bytes = 0;
    if (nb_cache_dir(&dir) != NB_OK) {
        row("cache", "none");
        nb_text_printf(&p->text, "  - no folder for the cache of quantized bases: %s\n", nb_message());
        p->n++;
        return;
    }
    if (nb_free_space(dir, &bytes) != NB_OK) row("cache", "%s (free space unknown: %s)", dir, nb_message());
    else row("cache", "%s, %s free", dir, nb_bytes((double)bytes, free_text));
    if (access(dir, W_OK) != 0) problem(p, "the cache folder is not writable: set NIBBLE_CACHE to one that is");
    else if (bytes && bytes < (uint64_t)1 << 30)
        problem(p, "less than 1 GiB free for the cache of quantized bases: set NIBBLE_CACHE to a larger disk");
    free(dir);
}

static void show_blas(void) {
    static const char *const parallel[] = {"single-threaded build", "its own threads (kept at 1)", "OpenMP"};
    Dl_info where = {0};
    dladdr((void *)(uintptr_t)openblas_get_config, &where);
    int kind = openblas_get_parallel();
    char version[64];
    snprintf(version, sizeof version, "%s", openblas_get_config());
    char *cut = strchr(version, ' ');
    if (cut && (cut = strchr(cut + 1, ' '))) *cut = 0; /* "OpenBLAS 0.3.21" of a long list of switches */
    row("BLAS", "%s, kernels for %s, %s", version, openblas_get_corename(),
        kind >= 0 && kind < NB_LEN(parallel) ? parallel[kind] : "unknown threading");
    if (where.dli_fname) row("", "%s", where.dli_fname);
}

/* The driver's own questions, asked without a toolkit: libcuda.so.1 is what a GPU machine always has. */
typedef struct driver {
    void *lib;
    int (*init)(unsigned), (*count)(int *), (*version)(int *), (*name)(char *, int, int), (*memory)(size_t *, int),
        (*attribute)(int *, int, int);
} driver;

static bool open_driver(driver *d) {
    d->lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!d->lib) return false;
    const struct {
        const char *name;
        void *to;
    } symbols[] = {
        {"cuInit", &d->init}, {"cuDeviceGetCount", &d->count}, {"cuDriverGetVersion", &d->version},
        {"cuDeviceGetName", &d->name}, {"cuDeviceTotalMem_v2", &d->memory}, {"cuDeviceGetAttribute", &d->attribute},
    };
    for (int i = 0; i < NB_LEN(symbols); i++) {
        void *address = dlsym(d->lib, symbols[i].name);
        if (!address) return false;
        memcpy(symbols[i].to, &address, sizeof address);
    }
    return true;
}

static void show_gpu(const driver *d, int i) {
    enum { MAJOR = 75, MINOR = 76 }; /* of CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY */
    char name[128] = "", label[16], memory[16];
    size_t bytes = 0;
    int major = 0, minor = 0;
    d->name(name, sizeof name, i);
    d->memory(&bytes, i);
    d->attribute(&major, MAJOR, i), d->attribute(&minor, MINOR, i);
    snprintf(label, sizeof label, "GPU %d", i);
    row(label, "%s, sm_%d%d, %s%s", name, major, minor, nb_bytes((double)bytes, memory),
        major < 8 ? ": too old, nibble needs sm_80 or newer" : "");
}

/* Number of GPUs. */
static int show_gpus(problems *p) {
    driver d = {0};
    int n = 0, v = 0, rc = 0;
    if (!open_driver(&d)) {
        row("GPU", d.lib ? "a driver that lacks functions nibble asks for" : "no NVIDIA driver (libcuda.so.1 not found)");
    } else if ((rc = d.init(0)) || d.version(&v) || d.count(&n)) {
        row("GPU", "driver found, but it finds no GPU or does not start (code %d)", rc);
    } else {
        row("GPU driver", "for CUDA %d.%d, %d GPU%s", v / 1000, v % 1000 / 10, n, n == 1 ? "" : "s");
        for (int i = 0; i < n; i++) show_gpu(&d, i);
        if (n && !&nb_backend_cuda)
            problem(p, "there is a GPU, but this nibble was built without CUDA: install a CUDA toolkit and run make again");
    }
    if (d.lib) dlclose(d.lib);
    return n;
}

/* A library that is missing matters where there are GPUs enough for it. */
static void show_library(problems *p, const char *name, nb_status st, const char *path, bool matters, const char *without) {
    if (st == NB_OK) {
        row(name, "%s", path);
        return;
    }
    row(name, "%s%s", st == NB_EUNSUPPORTED ? "not found" : "cannot be used", matters ? "" : " (not needed here)");
    if (matters || st != NB_EUNSUPPORTED) nb_text_printf(&p->text, "  - %s: %s\n", without, nb_message()), p->n++;
}

static void show_gpu_libraries(problems *p, int gpus) {
    const nb_cublas *blas = NULL;
    const nb_nccl *nccl = NULL;
    nb_status st = nb_cuda_cublas(&blas);
    show_library(p, "cuBLAS", st, blas ? blas->path : "", gpus > 0, "products on the GPU are slower");
    st = nb_cuda_nccl(&nccl);
    show_library(p, "NCCL", st, nccl ? nccl->path : "", gpus > 1, "a run can use one GPU only");
}

static void show_choice(problems *p) {
    const nb_cpu *cpu = nb_cpu_get();
    nb_status st = &nb_backend_cuda ? nb_backend_cuda.usable() : NB_EUNSUPPORTED;
    if (!&nb_backend_cuda) {
        row("device", "cpu (built without CUDA)");
    } else if (st == NB_OK) {
        row("device", "cuda (--device changes it), built for sm_%s", nb_backend_cuda.built_for);
    } else {
        row("device", "cpu; built for sm_%s, but %s", nb_backend_cuda.built_for, nb_message());
        if (st != NB_EUNSUPPORTED) problem(p, nb_message()); /* there is something, and it does not work */
    }
    row("threads", "%d (--threads changes it)", cpu->cores);
    row("kernels", "%s", cpu->avx512 ? "AVX-512" : cpu->avx2_fma ? "AVX2" : "plain C");
}

int nb_cmd_doctor(int argc, char **argv) {
    bool done;
    nb_status st = nb_opt_parse(argc, argv, "nibble doctor", "Exit status 1 when something is missing.", NULL, 0, NULL,
                                0, NULL, &done);
    if (st != NB_OK || done) return nb_exit_status("doctor", st);
    problems p = {0};
    puts("this machine has");
    show_cpu(&p);
    show_disk(&p);
    show_blas();
    int gpus = show_gpus(&p);
    show_gpu_libraries(&p, gpus);
    puts("nibble " NB_VERSION " will use");
    show_choice(&p);
    puts("missing");
    fputs(p.n ? p.text.s : "  nothing\n", stdout);
    nb_text_free(&p.text);
    return p.n ? 1 : 0;
}
