#include "core/cpu.h"

#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static double read_number(const char *path, double fallback) {
    FILE *f = fopen(path, "re");
    double v = fallback;
    if (f) {
        if (fscanf(f, "%lf", &v) != 1) v = fallback;
        fclose(f);
    }
    return v;
}

static double meminfo(const char *key) {
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    double kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, key, strlen(key))) sscanf(line + strlen(key), "%lf", &kib);
    if (f) fclose(f);
    return kib * 1024;
}

static int cores(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re"); /* "QUOTA PERIOD" or "max PERIOD" */
    double quota, period;
    if (f) {
        if (fscanf(f, "%lf %lf", &quota, &period) == 2 && quota / period < n) n = (int)(quota / period + 0.5);
        fclose(f);
    }
    return n < 1 ? 1 : n;
}

/* Of NIBBLE_CPU, each with the ones before it; -1: no such name. */
static int level_of(const char *name) {
    static const char *const names[] = {"base", "avx2", "avx512", "all"};
    if (!name || !*name) return NB_LEN(names) - 1;
    for (int i = 0; i < NB_LEN(names); i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

const nb_cpu *nb_cpu_get(void) {
    static nb_cpu cpu;
    static bool known;
    if (known) return &cpu;
    cpu.cores = cores();
    double total = meminfo("MemTotal:"), avail = meminfo("MemAvailable:");
    double limit = read_number("/sys/fs/cgroup/memory.max", 0), used = read_number("/sys/fs/cgroup/memory.current", 0);
    if (limit > 0 && limit < total) total = limit;
    if (limit > 0 && limit - used < avail) avail = limit - used;
    cpu.memory = (size_t)total;
    cpu.memory_available = (size_t)avail;
    strcpy(cpu.name, "unknown processor");
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':')) {
            snprintf(cpu.name, sizeof cpu.name, "%.60s", strchr(line, ':') + 2);
            cpu.name[strcspn(cpu.name, "\n")] = 0;
            break;
        }
    if (f) fclose(f);
#if defined(__x86_64__)
    __builtin_cpu_init();
    cpu.avx2_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    cpu.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    cpu.avx512_bf16 = cpu.avx512 && __builtin_cpu_supports("avx512bf16");
    const int level = level_of(getenv("NIBBLE_CPU"));
    cpu.avx2_fma &= level >= 1;
    cpu.avx512 &= level >= 2;
    cpu.avx512_bf16 &= level >= 3;
#endif
    known = true;
    return &cpu;
}

nb_status nb_cpu_check(void) {
    const char *name = getenv("NIBBLE_CPU");
    if (level_of(name) >= 0) return NB_OK;
    return nb_fail(NB_EINPUT, "NIBBLE_CPU=%s: give base, avx2, avx512 or all, or unset it", name);
}

extern void openblas_set_num_threads(int n) __attribute__((weak));

void nb_threads_set(int n) {
    omp_set_dynamic(0);
    omp_set_num_threads(n > 0 ? n : nb_cpu_get()->cores);
    if (openblas_set_num_threads) openblas_set_num_threads(1);
}

void nb_threads_settle(char **argv) {
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    setenv("GOMP_SPINCOUNT", "2000", 1); /* turns of the waiting loop, then sleep */
    execv("/proc/self/exe", argv);       /* on failure: go on as we are */
}

int nb_threads(void) { return omp_get_max_threads(); }
