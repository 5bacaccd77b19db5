/* The GPU backend's device: finding one, its memory, copies, errors, and the table of its rows. Compiled twice: for "cuda"
 * with NVIDIA's runtime, and for "emu" (NB_EMU) with the emulator's.
 *
 * One stream carries everything in order. The runtime is linked in, the driver is not: a program built with CUDA starts
 * where there is neither driver nor GPU, and cudaGetDeviceCount says so. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "core/mem.h"
#include "kernels/cuda/host.h"

#ifdef NB_EMU
#define BACKEND nb_backend_emu
#define NAME "emu"
#define NB_CUDA_ARCHS "emulated"
#else
#define BACKEND nb_backend_cuda
#define NAME "cuda"
#endif

enum { OLDEST = 80 };

/* Small copies to the device go through page-locked memory, which the device reads by itself later; the caller's bytes are
 * free at once. A slot is used again when the copy out of it is done. */
enum { SLOTS = 8, SLOT_BYTES = 256 << 10 };

typedef struct gpu {
    nb_gpu shared; /* first: what kernels see as nb_gpu */
    char *staging; /* [SLOTS * SLOT_BYTES] page-locked */
    cudaEvent_t copied[SLOTS];
    int slot;
    bool synchronous; /* NIBBLE_CUDA_SYNC: every launch is waited for, so that a failing kernel is named */
    bool recording;
    char label[300];
} gpu;
_Static_assert(offsetof(gpu, shared.stream) == 0, "comm_nccl.c finds the stream where impl points");

static gpu *gpu_of(nb_dev *d) { return d->impl; }
static cudaStream_t stream_of(nb_dev *d) { return gpu_of(d)->shared.stream; }

/* ---- errors ---- */

/* What CUDA's own text leaves open. */
static const struct {
    int error; /* the numbers of cudaError_t */
    const char *hint;
} hints[] = {
    {34, "the libcuda.so that was found is the toolkit's stub: take its folder out of LD_LIBRARY_PATH"},
    {100, "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it"},
    {209, "this build has no kernels for this GPU: build with CUDA_ARCHS set to its number"},
    {802, "the machine's fabric manager is not running (systemctl start nvidia-fabricmanager)"},
    {803, "the kernel's driver and libcuda.so are of different versions, as after an update: "
                                    "reboot, or load the new kernel module"},
};

static const char *hint_of(int error) {
    for (int i = 0; i < NB_LEN(hints); i++)
        if (hints[i].error == error) return hints[i].hint;
    return NULL;
}

nb_status NB_GPU(check)(int error, const char *what) {
    if (error == cudaSuccess) return NB_OK;
    const char *hint = hint_of(error);
    return nb_fail(error == cudaErrorMemoryAllocation ? NB_ENOMEM : NB_EIO, "%s: %s (CUDA error %d)%s%s", what,
                   cudaGetErrorString((cudaError_t)error), error, hint ? ": " : "", hint ? hint : "");
}

/* After a wait: an error is that of any launch since the last wait. */
static nb_status check_work(nb_dev *d, cudaError_t error) {
    if (error == cudaSuccess) return NB_OK;
    NB_GPU(check)((int)error, "the GPU stopped in an earlier kernel");
    if (gpu_of(d)->synchronous) return NB_EIO;
    return nb_fail(NB_EIO, "%s. NIBBLE_CUDA_SYNC=1 in the environment names the kernel", nb_message());
}

nb_status NB_GPU(launched)(nb_dev *d, const char *kernel) {
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess && gpu_of(d)->synchronous && !gpu_of(d)->recording) error = cudaStreamSynchronize(stream_of(d));
    return error == cudaSuccess ? NB_OK : NB_GPU(check)((int)error, kernel);
}

/* ---- memory ---- */

static nb_status gpu_memory(nb_dev *d, size_t *total, size_t *available) {
    (void)d;
    return NB_GPU(check)((int)cudaMemGetInfo(available, total), "asking for the GPU's memory");
}

static nb_status gpu_alloc(nb_dev *d, void **out, size_t bytes, const char *what) {
    *out = NULL;
    if (bytes == 0) return NB_OK;
    cudaError_t error = cudaMalloc(out, bytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* the error is not the next launch's */
        size_t total = 0, available = 0;
        NB_TRY(gpu_memory(d, &total, &available));
        char want[16], have[16], all[16];
        return nb_fail(NB_ENOMEM, "not enough GPU memory for %s: %s asked for, %s of %s free on %s", what,
                       nb_bytes((double)bytes, want), nb_bytes((double)available, have), nb_bytes((double)total, all),
                       gpu_of(d)->label);
    }
    NB_TRY(NB_GPU(check)((int)error, what));
    return NB_GPU(check)((int)cudaMemsetAsync(*out, 0, bytes, stream_of(d)), what);
}

static void gpu_free(nb_dev *d, void *p, size_t bytes) {
    (void)d, (void)bytes;
    cudaFree(p); /* waits for work that uses it */
}

/* ---- copies ---- */

static nb_status put_small(nb_dev *d, void *device, const void *host, size_t bytes) {
    gpu *g = gpu_of(d);
    int slot = g->slot;
    g->slot = (slot + 1) % SLOTS;
    char *staged = g->staging + (size_t)slot * SLOT_BYTES;
    NB_TRY(check_work(d, cudaEventSynchronize(g->copied[slot])));
    memcpy(staged, host, bytes);
    NB_TRY(check_work(d, cudaMemcpyAsync(device, staged, bytes, cudaMemcpyHostToDevice, g->shared.stream)));
    return check_work(d, cudaEventRecord(g->copied[slot], g->shared.stream));
}

/* Ordinary memory is copied to the driver's own staging before the call returns. */
static nb_status gpu_put(nb_dev *d, void *device, const void *host, size_t bytes) {
    if (bytes == 0) return NB_OK;
    if (bytes <= SLOT_BYTES) return put_small(d, device, host, bytes);
    return check_work(d, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_of(d)));
}

static nb_status gpu_get(nb_dev *d, void *host, const void *device, size_t bytes) {
    if (bytes) NB_TRY(check_work(d, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_of(d))));
    return check_work(d, cudaStreamSynchronize(stream_of(d)));
}

static nb_status gpu_copy(nb_dev *d, void *to, const void *from, size_t bytes) {
    if (bytes == 0) return NB_OK;
    return check_work(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(d)));
}

/* ---- recordings: CUDA graphs ---- */

static nb_status gpu_record(nb_dev *d) {
    gpu_of(d)->recording = true;
    return check_work(d, cudaStreamBeginCapture(stream_of(d), cudaStreamCaptureModeRelaxed));
}

static nb_status gpu_recorded(nb_dev *d, void **recording) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    gpu_of(d)->recording = false;
    cudaError_t error = cudaStreamEndCapture(stream_of(d), &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    *recording = exec;
    return NB_GPU(check)((int)error, "recording launches");
}

static nb_status gpu_replay(nb_dev *d, void *recording) {
    return check_work(d, cudaGraphLaunch((cudaGraphExec_t)recording, stream_of(d)));
}

static void gpu_forget(nb_dev *d, void *recording) {
    (void)d;
    cudaGraphExecDestroy((cudaGraphExec_t)recording);
}

/* ---- opening ---- */

/* How many GPUs there are, at least 1; else why there is none (NB_EUNSUPPORTED), or none that can be used (NB_EIO). */
static nb_status count_gpus(int *n) {
    int driver = 0, runtime = 0;
    cudaError_t error = cudaGetDeviceCount(n); /* leaves n alone when it fails */
    if (error == cudaSuccess && *n > 0) return NB_OK;
    cudaGetLastError();
    if (error == cudaSuccess || error == cudaErrorNoDevice) {
        NB_GPU(check)(cudaErrorNoDevice, "no GPU can be used");
        return NB_EUNSUPPORTED;
    }
    if (error != cudaErrorInsufficientDriver) return NB_GPU(check)((int)error, "no GPU can be used");
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return nb_fail(NB_EUNSUPPORTED, "there is no NVIDIA driver here (libcuda.so.1 was not found)");
    return nb_fail(NB_EIO, "the NVIDIA driver is too old: it is for CUDA %d.%d, this build needs one for CUDA %d.%d. Install "
                   "a newer driver, or build nibble with a CUDA %d toolkit", driver / 1000, driver % 1000 / 10,
                   runtime / 1000, runtime % 1000 / 10, driver / 1000);
}

static int attribute(enum cudaDeviceAttr which, int device) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, device);
    return value;
}

static int arch_of(int device) {
    return attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 + attribute(cudaDevAttrComputeCapabilityMinor, device);
}

static nb_status new_enough(int device) {
    if (arch_of(device) >= OLDEST) return NB_OK;
    struct cudaDeviceProp p = {0};
    cudaGetDeviceProperties(&p, device);
    return nb_fail(NB_EIO, "GPU %d, %s (sm_%d), is too old: nibble computes in bfloat16, which GPUs multiply from "
                   "sm_%d on (A100, RTX 30 and later)", device, p.name, arch_of(device), OLDEST);
}

/* The GPU that `where` names ("": the first that is new enough). */
static nb_status find_gpu(const char *where, int *device) {
    int n;
    char *end = NULL;
    errno = 0;
    long number = strtol(where, &end, 10);
    if (*where && (*end || end == where || errno || number < 0))
        return nb_fail(NB_EINPUT, "device \"" NAME ":%s\": a GPU's number stands behind the colon, as in " NAME ":0", where);
    NB_TRY(count_gpus(&n));
    if (!*where) {
        for (*device = 0; *device < n; ++*device)
            if (arch_of(*device) >= OLDEST) return NB_OK;
        return new_enough(0);
    }
    if (number >= n)
        return nb_fail(NB_EINPUT, "device \"" NAME ":%s\": there %s %d GPU%s here, numbered from 0", where,
                       n == 1 ? "is" : "are", n, n == 1 ? "" : "s");
    *device = (int)number;
    return new_enough(*device);
}

static nb_status gpu_usable(void) {
    int device;
    return find_gpu("", &device);
}

static void gpu_close(nb_dev *d) {
    gpu *g = gpu_of(d);
    if (!g) return;
    NB_GPU(gemm_close)(d);
    for (int i = 0; i < SLOTS; i++)
        if (g->copied[i]) cudaEventDestroy(g->copied[i]);
    if (g->staging) cudaFreeHost(g->staging);
    if (g->shared.stream) cudaStreamDestroy(g->shared.stream);
    free(g);
    d->impl = NULL;
}

static nb_status describe(gpu *g, int device) {
    struct cudaDeviceProp p;
    NB_TRY(NB_GPU(check)((int)cudaGetDeviceProperties(&p, device), "asking for the GPU's name"));
    g->shared.device = device;
    g->shared.arch = p.major * 10 + p.minor;
    g->shared.sms = attribute(cudaDevAttrMultiProcessorCount, device);
    g->shared.smem_max = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const char *sync = getenv("NIBBLE_CUDA_SYNC");
    g->synchronous = sync && *sync && strcmp(sync, "0") != 0;
    snprintf(g->label, sizeof g->label, "GPU %d, %s", device, p.name);
    return NB_OK;
}

static nb_status start(gpu *g) {
    NB_TRY(NB_GPU(check)((int)cudaSetDevice(g->shared.device), g->label));
    NB_TRY(NB_GPU(check)((int)cudaStreamCreateWithFlags(&g->shared.stream, cudaStreamNonBlocking), g->label));
    NB_TRY(NB_GPU(check)((int)cudaMallocHost((void **)&g->staging, (size_t)SLOTS * SLOT_BYTES), "page-locked memory"));
    for (int i = 0; i < SLOTS; i++)
        NB_TRY(NB_GPU(check)((int)cudaEventCreateWithFlags(&g->copied[i], cudaEventDisableTiming), g->label));
    return NB_OK;
}

static nb_status gpu_open(nb_dev *d, const char *where) {
    int device;
    NB_TRY(find_gpu(where, &device));
    gpu *g = NB_NEW(gpu);
    d->impl = g;
    d->elem = d->compute;
    NB_TRY(describe(g, device));
    d->label = g->label;
    NB_TRY(start(g));
    return NB_GPU(gemm_open)(d);
}

/* ---- the table ---- */

static const nb_kernels gpu_kernels = {
#define KERNEL(name, args) .name = NB_GPU(name),
#include "kernels/kernels.def"
#undef KERNEL
};

const nb_backend BACKEND = {
    .name = NAME,
    .k = &gpu_kernels,
    .built_for = NB_CUDA_ARCHS,
    .usable = gpu_usable,
    .open = gpu_open,
    .close = gpu_close,
    .logits_chunk = (int64_t)64 << 20, /* 256 MiB of f32: 523 rows of 128 Ki logits, work enough for every multiprocessor */
    .alloc = gpu_alloc,
    .free = gpu_free,
    .put = gpu_put,
    .get = gpu_get,
    .copy = gpu_copy,
    .record = gpu_record,
    .recorded = gpu_recorded,
    .replay = gpu_replay,
    .forget = gpu_forget,
    .memory = gpu_memory,
    .gemm_ws = NB_GPU(gemm_ws),
    .weight_ws = NB_GPU(weight_ws),
    .terms_ws = NB_GPU(terms_ws),
    .choose_gemm = NB_GPU(gemm_choose),
    .attention_ws = NB_GPU(attention_ws),
    .rows_ws = NB_GPU(rows_ws),
};
