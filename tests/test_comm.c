/* What one process can show of the exchange between several: launchers' variables, the engine "none", failures that
 * come from other ranks, memory that is copied through another's, and NCCL's calls, made to a stand-in.
 * tests/test_ranks.sh has real processes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/mem.h"
#include "kernels/comm.h"
#include "tests/test.h"

/* ---- launchers ---- */

static const char *const variables[] = {
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "RANK",
    "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS",
    "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_LOCALID", "PMIX_RANK", "MASTER_ADDR", "MASTER_PORT",
    "NCCL_COMM_ID", "CUDA_VISIBLE_DEVICES"};

static void set(const char *assignments) { /* "A=1 B=2", and nothing else */
    for (int i = 0; i < NB_LEN(variables); i++) unsetenv(variables[i]);
    char *text = nb_strdup(assignments), *rest = text, *one;
    while ((one = strsep(&rest, " "))) {
        char *value = strchr(one, '=');
        if (!value) continue;
        *value = 0;
        setenv(one, value + 1, 1);
    }
    free(text);
}

static void launchers_are_known(void **state) {
    (void)state;
    const struct {
        const char *env;
        nb_launch want;
    } rows[] = {
        {"", {NULL, 0, 1, 0, 1}},
        {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2",
         {"mpirun", 3, 4, 1, 2}},
        {"RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4", {"torchrun", 5, 8, 1, 4}},
        {"RANK=5", {NULL, 0, 1, 0, 1}}, /* half of a launcher is none */
        {"PMI_RANK=1 PMI_SIZE=2", {"mpiexec", 1, 2, 0, 0}},
        {"SLURM_PROCID=2 SLURM_STEP_NUM_TASKS=3 SLURM_LOCALID=2", {"srun", 2, 3, 2, 0}},
        {"SLURM_PROCID=0 SLURM_NTASKS=3 SLURM_LOCALID=0", {NULL, 0, 1, 0, 1}}, /* a batch script */
        {"PMIX_RANK=1", {"a PMIx launcher", 1, 0, 0, 0}},
        {"PMIX_RANK=1 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", {"mpirun", 1, 2, 0, 0}},
    };
    for (int i = 0; i < NB_LEN(rows); i++) {
        nb_launch l;
        set(rows[i].env);
        assert_ok(nb_launch_find(&l));
        if (rows[i].want.by) assert_string_equal(l.by, rows[i].want.by);
        else assert_null(l.by);
        assert_int_equal(l.rank, rows[i].want.rank);
        assert_int_equal(l.size, rows[i].want.size);
        assert_int_equal(l.local_rank, rows[i].want.local_rank);
        assert_int_equal(l.local_size, rows[i].want.local_size);
    }
    const char *const nonsense[] = {"RANK=2 WORLD_SIZE=2", "RANK=-1 WORLD_SIZE=2", "RANK=one WORLD_SIZE=2",
                                    "RANK=1 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "RANK=0 WORLD_SIZE=0"};
    for (int i = 0; i < NB_LEN(nonsense); i++) {
        nb_launch l;
        set(nonsense[i]);
        assert_int_equal(nb_launch_find(&l), NB_EINPUT);
    }
    set("");
}

static void one_process_needs_nobody(void **state) {
    (void)state;
    nb_comm *c;
    nb_dev *dev;
    double x = 3, all = 0;
    float y = 4;
    set("");
    assert_ok(nb_dev_open(&dev, "cpu", NB_F32));
    assert_ok(nb_comm_open(&c));
    assert_ok(nb_comm_use(c, dev));
    assert_int_equal(c->size, 1);
    assert_string_equal(c->name, "none");
    assert_ok(nb_comm_sum_f64(c, &x, 1));
    assert_ok(nb_comm_sum_f32(c, &y, 1));
    assert_ok(nb_comm_broadcast(c, &x, sizeof x, 0));
    assert_ok(nb_comm_wait(c));
    assert_ok(nb_comm_list(c, 5, &all));
    assert_true(x == 3 && y == 4 && all == 5);
    assert_ok(nb_comm_agree(c, NB_OK));
    assert_int_equal(nb_comm_agree(c, nb_fail(NB_EIO, "a disk")), NB_EIO);
    assert_string_equal(nb_message(), "a disk");
    assert_true(nb_comm_threads(c) >= 1);
    nb_comm_close(c);
    nb_dev_close(dev);
}

/* ---- an engine whose other rank is written down here ---- */

typedef struct other { /* what rank 1 of 2 adds to a sum of doubles, and sends */
    double status[2];
    char text[64];
    int calls;
} other;

static int other_sum(nb_comm_engine *e, void *x, size_t n, bool f64) {
    other *o = e->impl;
    o->calls++;
    for (size_t i = 0; i < n; i++)
        if (f64) ((double *)x)[i] += n == 2 ? o->status[i] : 1;
        else ((float *)x)[i] += 1;
    return 0;
}

static int other_broadcast(nb_comm_engine *e, void *x, size_t bytes, int root) {
    other *o = e->impl;
    o->calls++;
    if (root == 1) snprintf(x, bytes, "%s", o->text);
    return 0;
}

static int lost(nb_comm_engine *e, void *x, size_t n, bool f64) {
    (void)x, (void)n, (void)f64;
    snprintf(e->error, sizeof e->error, "the line is dead");
    return -1;
}

static nb_comm two_ranks(other *o, nb_dev *dev) {
    nb_comm c = {.size = 2, .local_size = 2, .name = "stand-in", .dev = dev};
    c.host = (nb_comm_engine){.name = "stand-in", .impl = o, .size = 2, .sum = other_sum, .broadcast = other_broadcast};
    return c;
}

static void failures_are_everyones(void **state) {
    (void)state;
    other o = {.text = "no such file"};
    nb_comm c = two_ranks(&o, NULL);
    assert_ok(nb_comm_agree(&c, NB_OK));
    o.status[1] = NB_EIO;
    assert_int_equal(nb_comm_agree(&c, NB_OK), NB_EIO);
    assert_string_equal(nb_message(), "rank 1 of 2: no such file");
    /* our own comes first, unless it is an interruption */
    assert_int_equal(nb_comm_agree(&c, nb_fail(NB_EINPUT, "ours")), NB_EINPUT);
    assert_string_equal(nb_message(), "ours");
    assert_int_equal(nb_comm_agree(&c, nb_fail(NB_EINTERRUPTED, "ours")), NB_EIO);
    o.status[1] = NB_EINTERRUPTED;
    assert_int_equal(nb_comm_agree(&c, nb_fail(NB_EINPUT, "ours")), NB_EINPUT);
    /* a rank that is not the first keeps quiet */
    c.rank = 1;
    o.status[0] = NB_ENUMERIC, o.status[1] = 0;
    assert_int_equal(nb_comm_agree(&c, NB_OK), NB_ENUMERIC);
    assert_string_equal(nb_message(), "");
    c.host.sum = lost;
    assert_int_equal(nb_comm_agree(&c, NB_OK), NB_EIO);
    assert_non_null(strstr(nb_message(), "rank 1 of 2 lost the others (stand-in: the line is dead)"));
    assert_true(c.broken);
}

/* MPI and a device with memory of its own: in pieces of 16 MiB through the host. */
static void device_memory_goes_through_the_host(void **state) {
    (void)state;
    enum { N = (33 << 20) / 4 };
    nb_dev *dev;
    void *x, *staging;
    other o = {.calls = 0};
    float *host = nb_calloc(N, sizeof *host);
    assert_ok(nb_dev_open(&dev, "emu", NB_F32));
    assert_false(dev->be->host_memory);
    assert_ok(dev->be->alloc(dev, &x, N * sizeof(float), "a test"));
    assert_ok(nb_big_alloc(&staging, 16 << 20, "a test"));
    nb_comm c = two_ranks(&o, dev);
    c.staging = staging;
    for (int i = 0; i < N; i++) host[i] = (float)(i % 1000);
    assert_ok(dev->be->put(dev, x, host, N * sizeof *host));
    assert_ok(nb_comm_sum_f32(&c, x, N));
    assert_int_equal(o.calls, 3);
    assert_ok(dev->be->get(dev, host, x, N * sizeof *host));
    for (int i = 0; i < N; i++) assert_true(host[i] == (float)(i % 1000) + 1);
    snprintf(o.text, sizeof o.text, "hello");
    assert_ok(nb_comm_broadcast_device(&c, (float *)x + 64, 8, 1));
    assert_ok(dev->be->get(dev, host, (float *)x + 64, 8));
    assert_string_equal((char *)host, "hello");
    nb_big_free(staging, 16 << 20);
    dev->be->free(dev, x, N * sizeof(float));
    free(host);
    nb_dev_close(dev);
}

/* ---- NCCL ---- */

/* Writes its calls down, and touches nothing: the emulator lets nobody but kernels into the device's memory. */
static const char stand_in[] =
    "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
    "typedef struct id { char bytes[128]; } id;\n"
    "static int say(const char *name, long x, long y) {\n"
    "    const char *fails = getenv(\"STAND_IN_FAILS\");\n"
    "    FILE *f = fopen(getenv(\"STAND_IN_LOG\"), \"a\");\n"
    "    if (f) fprintf(f, \"%s %ld %ld;\", name, x, y), fclose(f);\n"
    "    return fails && !strcmp(fails, name) ? 3 : 0;\n"
    "}\n"
    "int ncclGetVersion(int *v) { *v = 22809; return 0; }\n"
    "int ncclGetUniqueId(id *i) { memset(i, 7, sizeof *i); return say(\"id\", 0, 0); }\n"
    "int ncclCommInitRank(void **c, int n, id i, int rank) { *c = c; return say(\"init\", n, rank + 10 * i.bytes[100]); }\n"
    "int ncclCommDestroy(void *c) { return say(\"destroy\", 0, 0); }\n"
    "int ncclCommAbort(void *c) { return say(\"abort\", 0, 0); }\n"
    "int ncclCommGetAsyncError(void *c, int *r) { *r = 0; return 0; }\n"
    "int ncclAllReduce(const void *from, void *to, size_t n, int type, int op, void *c, void *s) {\n"
    "    return from != to ? 5 : say(\"sum\", n, 10 * type + op);\n"
    "}\n"
    "int ncclReduceScatter(const void *x, void *y, size_t n, int t, int op, void *c, void *s) { return 5; }\n"
    "int ncclAllGather(const void *x, void *y, size_t n, int t, void *c, void *s) { return 5; }\n"
    "int ncclBroadcast(const void *x, void *y, size_t n, int type, int root, void *c, void *s) {\n"
    "    return x != y ? 5 : say(\"broadcast\", n, 10 * type + root);\n"
    "}\n"
    "const char *ncclGetErrorString(int r) { return r == 3 ? \"a planned failure\" : \"another\"; }\n";

static char *folder, *call_log;

static char *calls(void) { /* since the last time; caller frees */
    char *text = NULL;
    size_t n;
    if (!nb_file_exists(call_log)) return nb_strdup("");
    assert_ok(nb_file_read(call_log, &text, &n));
    remove(call_log);
    return text;
}

static void assert_calls(const char *want) {
    char *got = calls();
    assert_string_equal(got, want);
    free(got);
}

static int build_stand_in(void **state) {
    (void)state;
    folder = nb_asprintf("%s/nccl-%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp", (int)getpid());
    call_log = nb_path_join(folder, "calls");
    char *source = nb_path_join(folder, "stand_in.c");
    char *command = nb_asprintf("${CC:-cc} -w -shared -fPIC -o '%s/libnccl.so.2' '%s'", folder, source);
    assert_ok(nb_mkdirs(folder));
    assert_ok(nb_file_write(source, stand_in, sizeof stand_in - 1));
    setenv("NIBBLE_CUDA_LIB", folder, 1);
    setenv("STAND_IN_LOG", call_log, 1);
    int rc = system(command);
    free(source), free(command);
    return rc;
}

static int remove_stand_in(void **state) {
    (void)state;
    nb_status st = nb_remove_tree(folder);
    free(folder), free(call_log);
    return st;
}

static void nccl_under_torchrun(void **state) {
    (void)state;
    enum { N = (20 << 20) / 8 };
    nb_comm *c;
    nb_dev *dev;
    void *x;
    float some[3] = {1, 2, 3};
    set("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=node7 MASTER_PORT=29500");
    assert_ok(nb_dev_open(&dev, "emu", NB_F32));
    assert_ok(nb_comm_open(&c));
    assert_string_equal(getenv("NCCL_COMM_ID"), "node7:29501");
    char *name = nb_comm_device(c, "cuda");
    assert_string_equal(name, "cuda:1");
    free(name);
    assert_ok(nb_comm_use(c, dev));
    assert_string_equal(c->name, "nccl");
    assert_calls("id 0 0;init 2 71;");
    /* device memory as it is */
    assert_ok(dev->be->alloc(dev, &x, sizeof some, "a test"));
    assert_ok(dev->be->put(dev, x, some, sizeof some));
    assert_ok(nb_comm_sum_f32(c, x, 3));
    assert_ok(nb_comm_gather(c, x, (int64_t[]){0, 1, 3}));
    assert_ok(dev->be->get(dev, some, x, sizeof some));
    assert_true(some[0] == 1 && some[1] == 2 && some[2] == 3);
    assert_calls("sum 3 70;broadcast 4 10;broadcast 8 11;");
    /* host memory through the device's, in pieces */
    double *many = nb_calloc(N, sizeof *many), own[2];
    many[0] = 1, many[N - 1] = 5;
    assert_ok(nb_comm_sum_f64(c, many, N));
    assert_true(many[0] == 1 && many[1] == 0 && many[N - 1] == 5); /* there and back */
    assert_calls("sum 2097152 80;sum 524288 80;");
    assert_ok(nb_comm_list(c, 3, own));
    assert_true(own[0] == 0 && own[1] == 3);
    assert_ok(nb_comm_wait(c));
    assert_calls("sum 2 80;sum 1 80;");
    setenv("STAND_IN_FAILS", "sum", 1);
    assert_int_equal(nb_comm_sum_f32(c, x, 3), NB_EIO);
    unsetenv("STAND_IN_FAILS");
    assert_non_null(strstr(nb_message(), "nccl: ncclAllReduce: a planned failure"));
    dev->be->free(dev, x, sizeof some);
    free(many);
    nb_comm_close(c);
    assert_calls("sum 3 70;abort 0 0;");
    nb_dev_close(dev);
    set("");
}

static void nccl_that_does_not_start(void **state) {
    (void)state;
    nb_comm *c;
    nb_dev *dev;
    set("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=fe80::1 MASTER_PORT=65535");
    assert_ok(nb_dev_open(&dev, "emu", NB_F32));
    assert_ok(nb_comm_open(&c));
    assert_string_equal(getenv("NCCL_COMM_ID"), "[fe80::1]:65534");
    setenv("STAND_IN_FAILS", "init", 1);
    assert_int_equal(nb_comm_use(c, dev), NB_EUNSUPPORTED);
    assert_non_null(strstr(nb_message(), "torchrun started 2 processes: NCCL does not start (ncclCommInitRank: a planned"));
    unsetenv("STAND_IN_FAILS");
    nb_comm_close(c);
    free(calls());
    /* Where MPI has brought the ranks together, rank 0's address goes through it, and MPI is what remains. */
    other o = {.calls = 0};
    nb_comm two = two_ranks(&o, dev);
    nb_comm_engine e = {.rank = 0, .size = 2};
    assert_ok(nb_comm_nccl_open(&e, dev, &two.host) == NB_EUNSUPPORTED ? NB_OK : NB_EIO); /* rank 1 lacks the library */
    assert_string_equal(nb_message(), "another rank cannot load NCCL");
    e.close(&e, true);
    assert_calls("");
    nb_dev_close(dev);
    set("");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(launchers_are_known),
        cmocka_unit_test(one_process_needs_nobody),
        cmocka_unit_test(failures_are_everyones),
        cmocka_unit_test(device_memory_goes_through_the_host),
        cmocka_unit_test(nccl_under_torchrun),
        cmocka_unit_test(nccl_that_does_not_start),
    };
    return cmocka_run_group_tests(tests, build_stand_in, remove_stand_in);
}
