/* The engine "nccl": memory of GPUs, in the order of the device's stream. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/comm.h"
#include "kernels/cuda/library.h"

typedef struct nccl {
    const nb_nccl *fn;
    void *comm, *stream;
} nccl;

static int check(nb_comm_engine *e, const char *what, int rc) {
    const nccl *n = e->impl;
    if (rc) snprintf(e->error, sizeof e->error, "%s: %s", what, n->fn->ncclGetErrorString(rc));
    return rc ? -1 : 0;
}

static int nccl_sum(nb_comm_engine *e, void *x, size_t count, bool f64) {
    const nccl *n = e->impl;
    return check(e, "ncclAllReduce", n->fn->ncclAllReduce(x, x, count, f64 ? NB_NCCL_FLOAT64 : NB_NCCL_FLOAT32,
                                                          NB_NCCL_SUM, n->comm, n->stream));
}

static int nccl_broadcast(nb_comm_engine *e, void *x, size_t bytes, int root) {
    const nccl *n = e->impl;
    return check(e, "ncclBroadcast", n->fn->ncclBroadcast(x, x, bytes, NB_NCCL_UINT8, root, n->comm, n->stream));
}

static void nccl_close(nb_comm_engine *e, bool failed) {
    nccl *n = e->impl;
    if (n->comm) (failed ? n->fn->ncclCommAbort : n->fn->ncclCommDestroy)(n->comm);
    free(n);
    e->name = NULL;
}

/* Every rank has the library, or none uses it. */
static nb_status load(nb_comm_engine *e, nb_comm_engine *boot) {
    nb_status st = nb_cuda_nccl(&((nccl *)e->impl)->fn);
    double lacking = st != NB_OK;
    if (boot && boot->sum(boot, &lacking, 1, true) < 0) return nb_fail(NB_EIO, "%s: %s", boot->name, boot->error);
    return st == NB_OK && lacking > 0 ? nb_fail(NB_EUNSUPPORTED, "another rank cannot load NCCL") : st;
}

/* Rank 0 makes up an address that the others hear through `boot`; or all take it from NCCL_COMM_ID. */
static nb_status meet(nb_comm_engine *e, nb_comm_engine *boot) {
    nccl *n = e->impl;
    nb_nccl_id id = {{0}}; /* which stays so if rank 0 gets none */
    const nb_nccl_id none = {{0}};
    if (!boot && !getenv("NCCL_COMM_ID"))
        return nb_fail(NB_EINPUT,
                       "NCCL_COMM_ID=host:port (rank 0's address) tells the processes where they meet: set it");
    int rc = !boot || e->rank == 0 ? check(e, "ncclGetUniqueId", n->fn->ncclGetUniqueId(&id)) : 0;
    if (boot && boot->broadcast(boot, &id, sizeof id, 0) < 0) return nb_fail(NB_EIO, "%s: %s", boot->name, boot->error);
    if (boot && rc == 0 && !memcmp(&id, &none, sizeof id)) return nb_fail(NB_EUNSUPPORTED, "rank 0 cannot start NCCL");
    if (rc == 0) rc = check(e, "ncclCommInitRank", n->fn->ncclCommInitRank(&n->comm, e->size, id, e->rank));
    return rc == 0 ? NB_OK : nb_fail(NB_EUNSUPPORTED, "NCCL does not start (%s); NCCL_DEBUG=INFO shows why", e->error);
}

nb_status nb_comm_nccl_open(nb_comm_engine *e, nb_dev *dev, nb_comm_engine *boot) {
    nccl *n = NB_NEW(nccl);
    n->stream = dev->impl ? *(void **)dev->impl : NULL; /* an nb_gpu begins with its stream */
    e->name = "nccl";
    e->impl = n;
    e->sum = nccl_sum, e->broadcast = nccl_broadcast;
    e->close = nccl_close;
    NB_TRY(load(e, boot));
    return meet(e, boot);
}
