#include "kernels/comm.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "core/mem.h"

enum { STAGING = 16 << 20 }; /* bytes copied at a time where memory cannot travel as it is */

/* ---- the MPI library ---- */

/* $NIBBLE_MPI_PLUGIN, or the folder of the program, or the one `make install` uses. */
static char *plugin_path(int place) {
    char exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    const char *given = getenv("NIBBLE_MPI_PLUGIN");
    if (given && *given) return place ? NULL : nb_strdup(given);
    exe[n > 0 ? n : 0] = 0;
    char *slash = strrchr(exe, '/');
    if (!slash || place > 1) return NULL;
    *slash = 0;
    return nb_asprintf("%s/%s", exe, place ? "../lib/nibble/libnibble_mpi.so" : "libnibble_mpi.so");
}

static nb_status open_mpi(nb_comm *c) {
    nb_text why = {0};
    for (int place = 0; !c->plugin; place++) {
        char *path = plugin_path(place);
        if (!path) break;
        c->plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!c->plugin) nb_text_printf(&why, "%s%s", why.n ? "; " : "", dlerror());
        free(path);
    }
    nb_status st = NB_OK;
    if (!c->plugin)
        st = nb_fail(NB_EUNSUPPORTED,
                     "%s started this program, but nibble's MPI part, libnibble_mpi.so, cannot be loaded: %s. `make` "
                     "builds it where mpicc is (Debian: libopenmpi-dev openmpi-bin); NIBBLE_MPI_PLUGIN names another place",
                     c->launch.by, why.s ? why.s : "it is not there");
    nb_text_free(&why);
    NB_TRY(st);
    void *symbol = dlsym(c->plugin, NB_COMM_MPI_OPEN);
    nb_comm_mpi_open_fn *open_fn;
    memcpy(&open_fn, &symbol, sizeof open_fn); /* C knows no cast from a pointer to data to one to a function */
    if (!open_fn) return nb_fail(NB_EUNSUPPORTED, "libnibble_mpi.so has no %s: build it anew", NB_COMM_MPI_OPEN);
    if (open_fn(NB_COMM_ABI, &c->host) < 0) return nb_fail(NB_EIO, "libnibble_mpi.so: %s", c->host.error);
    return NB_OK;
}

/* ---- opening ---- */

/* NCCL finds its own way: no MPI is needed. Its port lies beside the one torchrun itself listens on. */
static nb_status nccl_address(const nb_launch *l) {
    const char *addr = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
    if (getenv("NCCL_COMM_ID") || strcmp(l->by, "torchrun") != 0) return NB_OK;
    long n = port ? strtol(port, NULL, 10) : 0;
    if (!addr || !*addr || n < 1 || n > 65535)
        return nb_fail(NB_EINPUT,
                       "RANK and WORLD_SIZE are set as by torchrun, but MASTER_ADDR and MASTER_PORT are not");
    char *id = nb_asprintf(strchr(addr, ':') ? "[%s]:%ld" : "%s:%ld", addr, n < 65535 ? n + 1 : n - 1);
    setenv("NCCL_COMM_ID", id, 1);
    free(id);
    return NB_OK;
}

static nb_status know_ourselves(nb_comm *c) {
    nb_launch *l = &c->launch;
    NB_TRY(nb_launch_find(l));
    if (l->size == 1) return NB_OK;
    if (!strcmp(l->by, "torchrun") || getenv("NCCL_COMM_ID")) {
        c->rank = l->rank, c->size = l->size;
        c->local_rank = l->local_rank, c->local_size = l->local_size ? l->local_size : 1;
        return nccl_address(l);
    }
    NB_TRY(open_mpi(c));
    c->rank = c->host.rank, c->size = c->host.size;
    c->local_rank = c->host.local_rank, c->local_size = c->host.local_size;
    if (!l->size || l->size == c->size) return NB_OK;
    return nb_fail(NB_EINPUT,
                   "%s started %d processes, but MPI sees %d: libnibble_mpi.so was built for another MPI, or srun was "
                   "called without --mpi=pmix. Each would train alone into the same folder; nothing was done",
                   l->by, l->size, c->size);
}

nb_status nb_comm_open(nb_comm **out) {
    nb_comm *c = NB_NEW(nb_comm);
    *c = (nb_comm){.size = 1, .local_size = 1, .name = "none"};
    nb_status st = know_ourselves(c);
    if (st == NB_OK) *out = c;
    else nb_comm_close(c);
    return st;
}

/* Where NCCL cannot be had, MPI serves, by way of the host's memory. */
static nb_status open_nccl(nb_comm *c) {
    nb_comm_engine *boot = c->host.name ? &c->host : NULL;
    c->device = (nb_comm_engine){.rank = c->rank, .size = c->size};
    nb_status st = nb_comm_nccl_open(&c->device, c->dev, boot);
    if (boot) st = nb_comm_agree(c, st);
    if (st == NB_OK) return NB_OK;
    if (c->device.name) c->device.close(&c->device, true);
    c->device.name = NULL;
    if (!boot) return nb_prefix(st, "%s started %d processes", c->launch.by, c->size);
    if (!c->rank) nb_warn("%s: gradients travel by MPI through the host's memory", nb_message());
    return NB_OK;
}

nb_status nb_comm_use(nb_comm *c, nb_dev *dev) {
    c->dev = dev;
    if (c->size == 1) return NB_OK;
    bool own_memory = !dev->be->host_memory;
    if (own_memory) NB_TRY(open_nccl(c));
    if (!own_memory && !c->host.name && c->rank) return nb_fail(NB_EUNSUPPORTED, "%s", ""); /* rank 0 says it */
    if (!own_memory && !c->host.name)
        return nb_fail(NB_EUNSUPPORTED,
                       "%s started %d processes, but processes on the CPU speak MPI: start them with mpirun -np %d",
                       c->launch.by, c->size, c->size);
    c->name = c->device.name ? c->device.name : c->host.name;
    if (!c->host.name) return dev->be->alloc(dev, &c->staging, STAGING, "the exchange between processes");
    if (!own_memory || c->device.name) return NB_OK;
    return nb_comm_agree(c, nb_big_alloc(&c->staging, STAGING, "the exchange between processes"));
}

void nb_comm_close(nb_comm *c) {
    if (!c) return;
    if (c->broken && c->size > 1) { /* what the others hear may be all there is to hear */
        nb_log_set_level(NB_LOG_WARN);
        nb_warn("%s", nb_message());
    }
    if (c->staging && c->host.name) nb_big_free(c->staging, STAGING);
    else if (c->staging) c->dev->be->free(c->dev, c->staging, STAGING);
    if (c->device.name) c->device.close(&c->device, c->broken);
    if (c->host.name) c->host.close(&c->host, c->broken);
    free(c); /* the plugin stays loaded: MPI libraries do not like to be unloaded */
}

char *nb_comm_device(const nb_comm *c, const char *name) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    bool chosen = visible && *visible && !strchr(visible, ','); /* one card a process: the launcher's choice */
    bool automatic = !strcmp(name, "auto");
    if (c->size == 1 || chosen || (!automatic && strcmp(name, "cuda") != 0)) return nb_strdup(name);
    if (automatic && (!&nb_backend_cuda || nb_backend_cuda.usable() != NB_OK)) return nb_strdup(name);
    return nb_asprintf("cuda:%d", c->local_rank);
}

/* ---- what the engines do ---- */

typedef enum work { SUM_F32, SUM_F64, BROADCAST } work;

static nb_status run(nb_comm *c, nb_comm_engine *e, work w, void *x, size_t bytes, int root) {
    int rc;
    if (w == BROADCAST) rc = e->broadcast(e, x, bytes, root);
    else rc = e->sum(e, x, bytes / (w == SUM_F64 ? sizeof(double) : sizeof(float)), w == SUM_F64);
    if (rc == 0) return NB_OK;
    return nb_fail(NB_EIO, "rank %d of %d lost the others (%s: %s); the last checkpoint is good", c->rank, c->size,
                   e->name, e->error);
}

/* With the engine for this kind of memory, or piece by piece through the memory of the other. */
static nb_status move(nb_comm *c, work w, void *x, size_t bytes, int root, bool device) {
    bool one_memory = !c->dev || c->dev->be->host_memory;
    nb_comm_engine *own = device ? &c->device : &c->host, *other = device ? &c->host : &c->device;
    NB_ASSERT(own->name || other->name);
    if (own->name || one_memory) return run(c, own->name ? own : other, w, x, bytes, root);
    const nb_backend *be = c->dev->be;
    for (size_t at = 0; at < bytes; at += STAGING) {
        size_t m = bytes - at < STAGING ? bytes - at : STAGING;
        char *piece = (char *)x + at;
        NB_TRY(device ? be->get(c->dev, c->staging, piece, m) : be->put(c->dev, c->staging, piece, m));
        NB_TRY(run(c, other, w, c->staging, m, root));
        NB_TRY(device ? be->put(c->dev, piece, c->staging, m) : be->get(c->dev, piece, c->staging, m));
    }
    return NB_OK;
}

static nb_status collective(nb_comm *c, work w, void *x, size_t bytes, int root, bool device) {
    if (c->size == 1) return NB_OK;
    nb_status st = move(c, w, x, bytes, root, device);
    if (st != NB_OK) c->broken = true;
    return st;
}

nb_status nb_comm_sum_f32(nb_comm *c, float *x, int64_t n) {
    return collective(c, SUM_F32, x, (size_t)n * sizeof *x, 0, true);
}

nb_status nb_comm_sum_f64(nb_comm *c, double *x, int64_t n) {
    return collective(c, SUM_F64, x, (size_t)n * sizeof *x, 0, false);
}

nb_status nb_comm_broadcast(nb_comm *c, void *x, size_t bytes, int root) {
    return collective(c, BROADCAST, x, bytes, root, false);
}

nb_status nb_comm_broadcast_device(nb_comm *c, void *x, size_t bytes, int root) {
    return collective(c, BROADCAST, x, bytes, root, true);
}

nb_status nb_comm_gather(nb_comm *c, float *x, const int64_t *parts) {
    for (int r = 0; r < c->size; r++)
        NB_TRY(nb_comm_broadcast_device(c, x + parts[r], (size_t)(parts[r + 1] - parts[r]) * sizeof *x, r));
    return NB_OK;
}

nb_status nb_comm_wait(nb_comm *c) {
    double nothing = 0;
    if (c->host.name && c->host.wait && c->host.wait(&c->host) == 0) return NB_OK;
    return nb_comm_sum_f64(c, &nothing, 1);
}

nb_status nb_comm_list(nb_comm *c, double mine, double *all) {
    for (int r = 0; r < c->size; r++) all[r] = r == c->rank ? mine : 0;
    return nb_comm_sum_f64(c, all, c->size);
}

/* The rank whose failure is the one to tell: a mistake rather than an interruption. -1: all is well. */
static int first_failure(const double *status, int size) {
    int found = -1;
    for (int r = size - 1; r >= 0; r--)
        if (status[r] > 0 && (found < 0 || status[r] != NB_EINTERRUPTED || status[found] == NB_EINTERRUPTED)) found = r;
    return found;
}

nb_status nb_comm_agree(nb_comm *c, nb_status mine) {
    if (c->size == 1 || c->broken || (!c->host.name && !c->device.name)) return mine;
    char text[4096];
    snprintf(text, sizeof text, "%s", nb_message());
    double *all = nb_calloc((size_t)c->size, sizeof *all);
    nb_status st = nb_comm_list(c, mine, all);
    int from = st == NB_OK ? first_failure(all, c->size) : -1;
    nb_status agreed = from < 0 ? NB_OK : (nb_status)all[from];
    free(all);
    NB_TRY(st);
    if (from < 0) return NB_OK;
    NB_TRY(nb_comm_broadcast(c, text, sizeof text, from));
    if (c->rank) return nb_fail(agreed, "%s", "");
    return from ? nb_fail(agreed, "rank %d of %d: %s", from, c->size, text) : nb_fail(agreed, "%s", text);
}

