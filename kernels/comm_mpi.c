/* libnibble_mpi.so: the engine "mpi". Built by mpicc and loaded at run time, only where a launcher is seen; it needs
 * nothing of the program. */
#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kernels/comm.h"

nb_comm_mpi_open_fn nb_comm_mpi_open;

enum { MOST = 1 << 28 }; /* elements in a call: MPI counts in int */

static int check(nb_comm_engine *e, const char *what, int rc) {
    if (rc == MPI_SUCCESS) return 0;
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    MPI_Error_string(rc, text, &n);
    snprintf(e->error, sizeof e->error, "%s: %.200s", what, text);
    return -1;
}

static int mpi_sum(nb_comm_engine *e, void *x, size_t n, bool f64) {
    for (size_t at = 0; at < n; at += MOST) {
        int m = n - at < MOST ? (int)(n - at) : MOST;
        char *p = (char *)x + at * (f64 ? sizeof(double) : sizeof(float));
        int rc = MPI_Allreduce(MPI_IN_PLACE, p, m, f64 ? MPI_DOUBLE : MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        if (check(e, "MPI_Allreduce", rc)) return -1;
    }
    return 0;
}

static int mpi_broadcast(nb_comm_engine *e, void *x, size_t bytes, int root) {
    for (size_t at = 0; at < bytes; at += MOST) {
        int m = bytes - at < MOST ? (int)(bytes - at) : MOST;
        if (check(e, "MPI_Bcast", MPI_Bcast((char *)x + at, m, MPI_BYTE, root, MPI_COMM_WORLD))) return -1;
    }
    return 0;
}

/* MPI_Barrier would spin: minutes of full load while rank 0 quantizes a base. */
static int mpi_wait(nb_comm_engine *e) {
    MPI_Request request;
    int done = 0;
    if (check(e, "MPI_Ibarrier", MPI_Ibarrier(MPI_COMM_WORLD, &request))) return -1;
    for (;;) {
        if (check(e, "MPI_Test", MPI_Test(&request, &done, MPI_STATUS_IGNORE))) return -1;
        if (done) return 0;
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
}

static void mpi_close(nb_comm_engine *e, bool failed) {
    (void)e;
    if (failed) MPI_Abort(MPI_COMM_WORLD, 1);
    else MPI_Finalize();
}

int nb_comm_mpi_open(int abi, nb_comm_engine *e) {
    if (abi != NB_COMM_ABI) {
        snprintf(e->error, sizeof e->error, "it is of interface %d, the program of %d: build both anew", NB_COMM_ABI,
                 abi);
        return -1;
    }
    int have;
    if (check(e, "MPI_Init", MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &have))) return -1;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &e->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &e->size);
    MPI_Comm local;
    if (check(e, "MPI_Comm_split_type",
              MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, e->rank, MPI_INFO_NULL, &local)))
        return -1;
    MPI_Comm_rank(local, &e->local_rank);
    MPI_Comm_size(local, &e->local_size);
    MPI_Comm_free(&local);
    e->name = "mpi";
    e->sum = mpi_sum, e->broadcast = mpi_broadcast, e->wait = mpi_wait;
    e->close = mpi_close;
    return 0;
}
