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
    row("features", "AVX2+FMA %s, AVX-512 %s, AVX-512 BF16 %s", cpu->avx2_fma ? "yes" : "no",
        cpu->avx512 ? "yes" : "no", cpu->avx512_bf16 ? "yes" : "no");
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

/* The driver alone, no toolkit: libcuda.so.1 is what a GPU machine always has. */
static void show_cuda(void) {
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        row("CUDA", "no driver (libcuda.so.1 not found)");
        return;
    }
    int (*init)(unsigned) = (int (*)(unsigned))(uintptr_t)dlsym(lib, "cuInit");
    int (*count)(int *) = (int (*)(int *))(uintptr_t)dlsym(lib, "cuDeviceGetCount");
    int (*version)(int *) = (int (*)(int *))(uintptr_t)dlsym(lib, "cuDriverGetVersion");
    int (*name)(char *, int, int) = (int (*)(char *, int, int))(uintptr_t)dlsym(lib, "cuDeviceGetName");
    int n = 0, v = 0, rc = init ? init(0) : -1;
    if (rc || !count || !version || !name || count(&n) || version(&v)) {
        row("CUDA", "driver found, but it does not start (code %d)", rc);
    } else {
        row("CUDA", "driver for CUDA %d.%d, %d device%s", v / 1000, v % 1000 / 10, n, n == 1 ? "" : "s");
        for (int i = 0; i < n; i++) {
            char text[128] = "";
            if (name(text, sizeof text, i) == 0) row("", "%d: %s", i, text);
        }
    }
    dlclose(lib);
}

static void show_choice(void) {
    const nb_cpu *cpu = nb_cpu_get();
    row("device", "cpu");
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
    show_cuda();
    puts("nibble " NB_VERSION " will use");
    show_choice();
    puts("missing");
    fputs(p.n ? p.text.s : "  nothing\n", stdout);
    nb_text_free(&p.text);
    return p.n ? 1 : 0;
}
