/* What launchers say in the environment, and the cores they leave to a process. */
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/cpu.h"
#include "kernels/comm.h"

/* In this order: mpirun may run inside a Slurm step, and Slurm's variables are set there too. */
static const struct {
    const char *by, *rank, *size, *local_rank, *local_size;
} launchers[] = {
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    /* A batch script is no step: srun alone sets SLURM_STEP_NUM_TASKS. */
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""},
    {"a PMIx launcher", "PMIX_RANK", "", "", ""},
};

/* *out stays as it is where the variable is not set. */
static nb_status number(const char *name, int *out) {
    const char *s = *name ? getenv(name) : NULL;
    if (!s || !*s) return NB_OK;
    char *end;
    long n = strtol(s, &end, 10);
    if (*end || n < 0 || n > 1 << 20) return nb_fail(NB_EINPUT, "%s=%s: a launcher would set a number here", name, s);
    *out = (int)n;
    return NB_OK;
}

static bool set(const char *name) { return !*name || (getenv(name) && *getenv(name)); }

nb_status nb_launch_find(nb_launch *l) {
    *l = (nb_launch){.size = 1, .local_size = 1};
    for (int i = 0; i < NB_LEN(launchers); i++) {
        if (!set(launchers[i].rank) || !set(launchers[i].size)) continue;
        *l = (nb_launch){.by = launchers[i].by};
        NB_TRY(number(launchers[i].rank, &l->rank));
        NB_TRY(number(launchers[i].size, &l->size));
        NB_TRY(number(launchers[i].local_rank, &l->local_rank));
        NB_TRY(number(launchers[i].local_size, &l->local_size));
        bool local = !l->local_size || l->local_rank < l->local_size;
        if ((*launchers[i].size && l->rank >= l->size) || !local)
            return nb_fail(NB_EINPUT, "%s=%d with %s=%d: not what a launcher says", launchers[i].rank, l->rank,
                           launchers[i].size, l->size);
        return NB_OK;
    }
    return NB_OK;
}

/* A launcher that binds its processes to cores has shared them out already; its own mask is the wider one then. */
int nb_comm_threads(const nb_comm *c) {
    int cores = nb_cpu_get()->cores, share = c->local_size > 1 ? cores / c->local_size : cores;
    cpu_set_t mine, launcher;
    if (c->local_size > 1 && !sched_getaffinity(0, sizeof mine, &mine) &&
        !sched_getaffinity(getppid(), sizeof launcher, &launcher) && CPU_COUNT(&mine) < CPU_COUNT(&launcher))
        share = cores;
    return share > 0 ? share : 1;
}
