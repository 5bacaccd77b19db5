/* Several processes that train one model together: "ranks", numbered from 0. Rank 0 alone writes files and speaks.
 *
 * A launcher (mpirun, srun, torchrun, ...) starts them and says so in the environment: nb_launch. What they
 * exchange goes through an engine: "mpi" moves host memory and is a library of its own, libnibble_mpi.so, because
 * MPI libraries of different makers do not fit one program and most machines have none; "nccl" moves memory between
 * GPUs. Where there is only one of the two, the other kind of memory is copied through it. With one process there is
 * none, and every call below returns at once.
 *
 * All calls are collective: every rank makes the same ones in the same order. Sums have the same bits on every
 * rank. */
#ifndef NB_KERNELS_COMM_H
#define NB_KERNELS_COMM_H

#include "kernels/backend.h"

/* ---- the launcher ---- */

typedef struct nb_launch {
    const char *by;             /* "mpirun", "srun", ...; NULL: started alone */
    int rank, size;             /* size 0: the launcher does not say */
    int local_rank, local_size; /* among the processes of this machine; local_size 0: it does not say */
} nb_launch;
/* Reads the environment. NB_EINPUT when its numbers make no sense. */
nb_status nb_launch_find(nb_launch *l);

/* ---- engines ---- */

/* What an engine supplies. The functions work in place and return 0, or -1 with the reason in `error`. */
typedef struct nb_comm_engine nb_comm_engine;
struct nb_comm_engine {
    const char *name; /* NULL: there is no such engine */
    void *impl;
    int rank, size, local_rank, local_size;
    int (*sum)(nb_comm_engine *e, void *x, size_t n, bool f64); /* of floats or doubles, over ranks */
    int (*broadcast)(nb_comm_engine *e, void *x, size_t bytes, int root);
    int (*wait)(nb_comm_engine *e); /* a barrier for long waits: leaves the processor to others; may be NULL */
    /* failed: ends the other processes, this one too if the engine can; where it cannot, the launcher does. */
    void (*close)(nb_comm_engine *e, bool failed);
    char error[256];
};

/* The one symbol of libnibble_mpi.so, a function of this type; abi keeps a library of another version out. */
#define NB_COMM_MPI_OPEN "nb_comm_mpi_open"
enum { NB_COMM_ABI = 1 };
typedef int nb_comm_mpi_open_fn(int abi, nb_comm_engine *e);

/* e gets NCCL on the device's stream. The ranks find each other through `boot`, or, where that is NULL, through
 * NCCL_COMM_ID=host:port, the address of rank 0. e->rank and e->size say who we are. */
nb_status nb_comm_nccl_open(nb_comm_engine *e, nb_dev *dev, nb_comm_engine *boot);

/* ---- ranks ---- */

typedef struct nb_comm {
    int rank, size, local_rank, local_size;
    const char *name;            /* of the engine that sums gradients: "none", "mpi", "nccl" */
    nb_launch launch;
    nb_comm_engine host, device; /* that move host and device memory */
    nb_dev *dev;                 /* borrowed */
    void *staging;               /* host memory, or device memory when there is no host engine */
    void *plugin;                /* libnibble_mpi.so */
    /* Something failed in the middle of an exchange: nothing can be agreed on any more, and closing ends all ranks. */
    bool broken;
} nb_comm;

/* First: who are we? Opens MPI where a launcher that speaks it is seen. NB_EINPUT when the launcher started N processes
 * and they cannot see each other: N processes would each train the same into one folder. */
nb_status nb_comm_open(nb_comm **out);
/* Second: the device this rank computes on (borrowed), and with what its memory travels. */
nb_status nb_comm_use(nb_comm *c, nb_dev *dev);
void nb_comm_close(nb_comm *c);
/* The name of the device for this rank where the user says `name`: for "cuda" and "auto" the card with the rank's
 * number on this machine. Caller frees. */
char *nb_comm_device(const nb_comm *c, const char *name);
/* Threads for this rank when the user names no number: its cores, which ranks of one machine share. */
int nb_comm_threads(const nb_comm *c);

nb_status nb_comm_sum_f32(nb_comm *c, float *x, int64_t n);            /* x[n] in device memory */
nb_status nb_comm_sum_f64(nb_comm *c, double *x, int64_t n);           /* x[n] in host memory */
nb_status nb_comm_broadcast(nb_comm *c, void *x, size_t bytes, int root);        /* host memory */
nb_status nb_comm_broadcast_device(nb_comm *c, void *x, size_t bytes, int root); /* device memory */
/* x on the device, of which rank r has x[parts[r]] .. x[parts[r + 1] - 1]: afterwards every rank has all of it. */
nb_status nb_comm_gather(nb_comm *c, float *x, const int64_t *parts);
/* Returns when all ranks have come here. For long waits: it sleeps. */
nb_status nb_comm_wait(nb_comm *c);
/* mine[rank] of every rank into all[size]. */
nb_status nb_comm_list(nb_comm *c, double mine, double *all);
/* How a piece of work went that every rank did, or one for all: NB_OK if it went well everywhere; else the failure, on
 * every rank. Its message stays on rank 0, with the name of the rank it comes from; others have an empty one. */
nb_status nb_comm_agree(nb_comm *c, nb_status mine);

#endif
