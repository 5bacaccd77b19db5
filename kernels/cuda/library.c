#include "kernels/cuda/library.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <link.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_include)
#if __has_include(<cublas_v2.h>)
#include <cublas_v2.h>
_Static_assert(NB_CUBLAS_N == (int)CUBLAS_OP_N && NB_CUBLAS_T == (int)CUBLAS_OP_T, "cublasOperation_t");
_Static_assert(NB_CUDA_R_32F == (int)CUDA_R_32F && NB_CUDA_R_16BF == (int)CUDA_R_16BF, "cudaDataType");
_Static_assert(NB_CUBLAS_COMPUTE_32F == (int)CUBLAS_COMPUTE_32F, "cublasComputeType_t");
_Static_assert(NB_CUBLAS_COMPUTE_32F_PEDANTIC == (int)CUBLAS_COMPUTE_32F_PEDANTIC, "cublasComputeType_t");
_Static_assert(NB_CUBLAS_GEMM_DEFAULT == (int)CUBLAS_GEMM_DEFAULT, "cublasGemmAlgo_t");
_Static_assert(NB_CUBLAS_NO_REDUCED_PRECISION == (int)CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, "cublasMath_t");
#endif
#if __has_include(<nccl.h>)
#include <nccl.h>
_Static_assert(sizeof(nb_nccl_id) == sizeof(ncclUniqueId), "ncclUniqueId");
_Static_assert(NB_NCCL_UINT8 == (int)ncclUint8 && NB_NCCL_FLOAT32 == (int)ncclFloat32, "ncclDataType_t");
_Static_assert(NB_NCCL_FLOAT64 == (int)ncclFloat64 && NB_NCCL_BF16 == (int)ncclBfloat16, "ncclDataType_t");
_Static_assert(NB_NCCL_SUM == (int)ncclSum, "ncclRedOp_t");
#endif
#endif

/* Where libraries lie: a folder's pattern behind the value of an environment variable, if one is named. */
static const struct {
    const char *env, *folder;
} places[] = {
    {"CUDA_HOME", "/lib64"},
    {NULL, "/usr/local/cuda/lib64"},
    {NULL, "/usr/local/cuda-*/lib64"},
    {NULL, "/opt/cuda/lib64"},
    {"VIRTUAL_ENV", "/lib/python3*/site-packages/nvidia/*/lib"},
    {"CONDA_PREFIX", "/lib"},
    {"HOME", "/.local/lib/python3*/site-packages/nvidia/*/lib"},
    {NULL, "/opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib"},
    {NULL, "/usr/local/lib/python3*/dist-packages/nvidia/*/lib"},
    {NULL, "/usr/lib/python3/dist-packages/nvidia/*/lib"},
};

typedef struct library {
    const char *name, *sonames[2]; /* the versions whose functions used here are the same, newest first */
    const char *install;
} library;

static const library cublas_library = {
    "cuBLAS", {"libcublas.so.13", "libcublas.so.12"},
    "it comes with the CUDA toolkit (Debian, Ubuntu: libcublas-13-0) and with the Python package nvidia-cublas"};
static const library nccl_library = {
    "NCCL", {"libnccl.so.2"}, "it is NVIDIA's package libnccl2, and the Python package nvidia-nccl-cu13"};

/* Loads the last file (the highest version) that a pattern matches and the loader takes. */
static void *open_matching(const char *env, const char *folder, const char *soname) {
    const char *root = env ? getenv(env) : "";
    if (!root || (env && !*root)) return NULL;
    char pattern[PATH_MAX];
    snprintf(pattern, sizeof pattern, "%s%s/%s", root, folder, soname);
    glob_t g;
    void *lib = NULL;
    if (glob(pattern, 0, NULL, &g) == 0)
        for (size_t i = g.gl_pathc; i-- && !lib;) lib = dlopen(g.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
    globfree(&g);
    return lib;
}

static bool switched_off(void) {
    const char *own = getenv("NIBBLE_CUDA_LIB");
    return own && !strcmp(own, "none");
}

/* Any version in the folder the user names, else the newest of the other places. */
static void *open_library(const library *l) {
    enum { SONAMES = NB_LEN(l->sonames) };
    void *lib = NULL;
    if (switched_off()) return NULL;
    for (int v = 0; v < SONAMES && !lib && l->sonames[v]; v++) lib = open_matching("NIBBLE_CUDA_LIB", "", l->sonames[v]);
    for (int v = 0; v < SONAMES && !lib && l->sonames[v]; v++) {
        lib = dlopen(l->sonames[v], RTLD_NOW | RTLD_LOCAL);
        for (int i = 0; !lib && i < NB_LEN(places); i++)
            lib = open_matching(places[i].env, places[i].folder, l->sonames[v]);
    }
    return lib;
}

static nb_status not_found(const library *l) {
    nb_text looked = {0};
    const char *own = getenv("NIBBLE_CUDA_LIB");
    if (switched_off())
        return nb_fail(NB_EUNSUPPORTED, "%s is not looked for: NIBBLE_CUDA_LIB is none", l->name);
    if (own && *own) nb_text_printf(&looked, "%s (NIBBLE_CUDA_LIB), ", own);
    nb_text_puts(&looked, "the loader's path");
    for (int i = 0; i < NB_LEN(places); i++)
        if (!places[i].env || getenv(places[i].env))
            nb_text_printf(&looked, ", %s%s", places[i].env ? getenv(places[i].env) : "", places[i].folder);
    nb_fail(NB_EUNSUPPORTED, "%s (%s) was not found: %s; or set NIBBLE_CUDA_LIB to the folder that has it. Looked in %s",
            l->name, l->sonames[0], l->install, looked.s);
    nb_text_free(&looked);
    return NB_EUNSUPPORTED;
}

typedef void (*function)(void);
typedef struct symbol {
    const char *name;
    function *to;
} symbol;

static nb_status load(const library *l, const char **path, const symbol *symbols, int n) {
    void *lib = open_library(l);
    if (!lib) return not_found(l);
    struct link_map *map = NULL;
    const char *file = dlinfo(lib, RTLD_DI_LINKMAP, &map) == 0 && map ? map->l_name : l->sonames[0];
    for (int i = 0; i < n; i++) {
        void *address = dlsym(lib, symbols[i].name);
        if (!address) {
            nb_fail(NB_EIO, "%s: %s of this version lacks %s; %s", file, l->name, symbols[i].name, l->install);
            dlclose(lib);
            return NB_EIO;
        }
        memcpy(symbols[i].to, &address, sizeof address); /* POSIX: both kinds of pointer have one representation */
    }
    *path = nb_strdup(file);
    return NB_OK;
}

#define SYMBOL(result, name, args) {#name, (function *)&table.name},

nb_status nb_cuda_cublas(const nb_cublas **out) {
    static nb_cublas table;
    const symbol symbols[] = {NB_CUBLAS_FUNCTIONS(SYMBOL)};
    if (!table.path) NB_TRY(load(&cublas_library, &table.path, symbols, NB_LEN(symbols)));
    *out = &table;
    return NB_OK;
}

nb_status nb_cuda_nccl(const nb_nccl **out) {
    static nb_nccl table;
    const symbol symbols[] = {NB_NCCL_FUNCTIONS(SYMBOL)};
    if (!table.path) NB_TRY(load(&nccl_library, &table.path, symbols, NB_LEN(symbols)));
    *out = &table;
    return NB_OK;
}
