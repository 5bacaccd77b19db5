/* The runtime calls of emu_runtime.h: one device whose memory is a range of this process, closed to the host while no
 * work runs, and one queue in which the work of all streams waits in the order it was given. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/cuda/emu.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

/* ---- errors ---- */
static cudaError_t last_error;
cudaError_t emu_error(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
static const struct {
    cudaError_t e;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};
const char *cudaGetErrorName(cudaError_t e) {
    for (const auto &row : errors)
        if (row.e == e) return row.name;
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e) {
    for (const auto &row : errors)
        if (row.e == e) return row.text;
    return "unrecognized error code";
}

/* ---- the device ---- */
static uint64_t setting(const char *name, uint64_t otherwise) {
    const char *s = getenv(name);
    return s && *s ? strtoull(s, 0, 10) : otherwise;
}
static size_t memory_total() { return (size_t)setting("EMU_MEMORY", (uint64_t)16 << 30); }
static int arch() { return (int)setting("EMU_ARCH", 90); }
cudaError_t cudaGetDeviceCount(int *n) {
    cudaError_t e = (cudaError_t)setting("EMU_ERROR", 0);
    if (e != cudaSuccess) return emu_error(e); /* and n stays as it is, like CUDA's */
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device ? emu_error(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
/* Of an H100. */
static const struct {
    cudaDeviceAttr attr;
    int value;
} attributes[] = {
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
    {cudaDevAttrClockRate, 1980000},
    {cudaDevAttrMultiProcessorCount, 132},
    {cudaDevAttrIntegrated, 0},
    {cudaDevAttrPciBusId, 1},
    {cudaDevAttrL2CacheSize, 50 << 20},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
};
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device) {
    if (device) return emu_error(cudaErrorInvalidDevice);
    if (attr == cudaDevAttrComputeCapabilityMajor || attr == cudaDevAttrComputeCapabilityMinor) {
        *value = attr == cudaDevAttrComputeCapabilityMajor ? arch() / 10 : arch() % 10;
        return cudaSuccess;
    }
    for (const auto &row : attributes)
        if (row.attr == attr) {
            *value = row.value;
            return cudaSuccess;
        }
    return emu_error(cudaErrorInvalidValue);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device) return emu_error(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->totalGlobalMem = memory_total();
    p->sharedMemPerBlock = (size_t)48 << 10;
    p->sharedMemPerBlockOptin = (size_t)227 << 10;
    p->sharedMemPerMultiprocessor = (size_t)228 << 10;
    p->major = arch() / 10;
    p->minor = arch() % 10;
    p->multiProcessorCount = 132;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->warpSize = 32;
    p->l2CacheSize = 50 << 20;
    p->regsPerBlock = 65536;
    p->pciBusID = 1;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = (int)setting("EMU_DRIVER", setting("EMU_ERROR", 0) == cudaErrorInsufficientDriver ? 0 : 13000);
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

/* ---- memory of the device: [base, base + RESERVED), allocations in ascending order with a page between them ---- */
static const size_t RESERVED = (size_t)1 << 36, PAGE = 4096;
struct allocation {
    unsigned char *at;
    size_t bytes;
};
static unsigned char *base;
static allocation *held;
static size_t n_held, cap_held, bytes_held;
static int running; /* work runs now: memory is open */
static bool runs_late() {
    static int late = -1;
    if (late < 0) {
        const char *s = getenv("EMU_STREAM");
        late = !s || !strcmp(s, "late");
    }
    return late;
}
static size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }
static void protect(bool open) {
    if (!runs_late() || !n_held) return;
    const allocation *last = &held[n_held - 1];
    mprotect(base, (size_t)(last->at - base) + pages(last->bytes), open ? PROT_READ | PROT_WRITE : PROT_NONE);
}
/* The last allocation that begins at or before p, or n_held. */
static size_t find(const void *p) {
    static size_t hit;
    const unsigned char *at = (const unsigned char *)p;
    if (hit < n_held && at >= held[hit].at && (hit + 1 == n_held || at < held[hit + 1].at)) return hit;
    size_t low = 0, high = n_held;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (held[middle].at <= at) low = middle + 1;
        else high = middle;
    }
    return low ? hit = low - 1 : n_held;
}
bool emu_device_holds(const void *p, size_t n) {
    size_t i = find(p);
    return i < n_held && (const unsigned char *)p + n <= held[i].at + held[i].bytes;
}
static cudaError_t forbidden_in_capture();
cudaError_t cudaMalloc(void **p, size_t bytes) {
    if (forbidden_in_capture() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    *p = 0;
    if (!bytes) return cudaSuccess;
    if (bytes > memory_total() - bytes_held) return emu_error(cudaErrorMemoryAllocation);
    if (!base) {
        void *m = mmap(0, RESERVED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) return emu_error(cudaErrorMemoryAllocation);
        base = (unsigned char *)m;
        emu_at.device = base;
        emu_at.device_end = base + RESERVED;
    }
    if (n_held == cap_held) {
        size_t cap = cap_held ? 2 * cap_held : 256;
        allocation *more = (allocation *)realloc(held, cap * sizeof *held);
        if (!more) return emu_error(cudaErrorMemoryAllocation);
        held = more;
        cap_held = cap;
    }
    protect(true);
    unsigned char *at = base + PAGE; /* the first gap that is large enough */
    size_t i = 0;
    for (; i < n_held && (size_t)(held[i].at - at) < pages(bytes) + PAGE; i++) at = held[i].at + pages(held[i].bytes) + PAGE;
    if ((size_t)(base + RESERVED - at) < pages(bytes) + PAGE) return emu_error(cudaErrorMemoryAllocation);
    memmove(held + i + 1, held + i, (n_held - i) * sizeof *held);
    held[i].at = at;
    held[i].bytes = bytes;
    n_held++;
    bytes_held += bytes;
#ifdef EMU_ASAN
    __asan_poison_memory_region(at - PAGE, PAGE);
    __asan_poison_memory_region(at, pages(bytes) + PAGE);
    __asan_unpoison_memory_region(at, bytes);
#endif
    mprotect(at, pages(bytes), PROT_READ | PROT_WRITE);
    memset(at, 0xff, bytes);
    protect(running > 0);
    *p = at;
    return cudaSuccess;
}
static void run_queue();
cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    if (forbidden_in_capture() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    run_queue();
    size_t i = find(p);
    if (i == n_held || held[i].at != p) return emu_error(cudaErrorInvalidValue);
    madvise(p, pages(held[i].bytes), MADV_DONTNEED);
#ifdef EMU_ASAN
    __asan_poison_memory_region(p, pages(held[i].bytes));
#endif
    bytes_held -= held[i].bytes;
    memmove(held + i, held + i + 1, (n_held - i - 1) * sizeof *held);
    n_held--;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = memory_total();
    *available = *total - bytes_held;
    return cudaSuccess;
}
static bool on_device(const void *p) {
    return (const unsigned char *)p >= base && (const unsigned char *)p < base + RESERVED && base;
}

/* Memory of the host that copies read and write in their turn; all other is copied before the call returns. */
struct pinned {
    unsigned char *at;
    size_t bytes;
    pinned *next;
};
static pinned *all_pinned;
static bool is_pinned(const void *p) {
    for (const pinned *k = all_pinned; k; k = k->next)
        if ((const unsigned char *)p >= k->at && (const unsigned char *)p < k->at + k->bytes) return true;
    return false;
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
    pinned *k = (pinned *)malloc(sizeof *k);
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!k || !*p) {
        free(k);
        free(*p);
        return emu_error(cudaErrorMemoryAllocation);
    }
    *k = {(unsigned char *)*p, bytes, all_pinned};
    all_pinned = k;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void *p) {
    run_queue();
    for (pinned **k = &all_pinned; *k; k = &(*k)->next)
        if ((*k)->at == p) {
            pinned *gone = *k;
            *k = gone->next;
            free(gone);
            free(p);
            return cudaSuccess;
        }
    return p ? emu_error(cudaErrorInvalidValue) : cudaSuccess;
}

/* ---- work: run(args) with its own copy of args ---- */
struct work {
    work *next;
    void (*run)(void *);
    alignas(16) unsigned char args[];
};
struct work_list {
    work *first, **end;
};
struct emu_graph {
    work_list list;
    int owners; /* the graph and what was instantiated of it */
};
struct emu_stream {
    emu_graph *capture; /* NULL: not capturing */
    bool invalid;       /* the capture met something it cannot hold */
};
static work_list waiting = {0, &waiting.first};
static emu_stream default_stream;
static emu_stream *capturing; /* one at a time */

static cudaError_t add_work(work_list *l, void (*run)(void *), const void *args, size_t bytes) {
    work *w = (work *)malloc(sizeof *w + bytes);
    if (!w) return emu_error(cudaErrorMemoryAllocation);
    w->next = 0;
    w->run = run;
    memcpy(w->args, args, bytes);
    *l->end = w;
    l->end = &w->next;
    return cudaSuccess;
}
static void begin_running() {
    if (!running++) protect(true);
}
static void end_running() {
    if (!--running) protect(false);
}
static void run_queue() {
    if (!waiting.first) return;
    begin_running();
    while (waiting.first) {
        work *w = waiting.first;
        waiting.first = w->next;
        if (!w->next) waiting.end = &waiting.first;
        w->run(w->args);
        free(w);
    }
    end_running();
}
cudaError_t emu_submit(cudaStream_t stream, void (*run)(void *), const void *args, size_t bytes) {
    emu_stream *s = stream ? stream : &default_stream;
    if (s->capture) return s->invalid ? emu_error(cudaErrorStreamCaptureInvalidated) : add_work(&s->capture->list, run, args, bytes);
    cudaError_t e = add_work(&waiting, run, args, bytes);
    if (e == cudaSuccess && !runs_late()) run_queue();
    return e;
}
/* Calls that wait or allocate end a capture, as on the device. */
static cudaError_t forbidden_in_capture() {
    if (!capturing) return cudaSuccess;
    capturing->invalid = true;
    return emu_error(cudaErrorStreamCaptureUnsupported);
}
static cudaError_t wait_for_all() {
    if (forbidden_in_capture() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    run_queue();
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return wait_for_all(); }
cudaError_t cudaDeviceReset(void) { return wait_for_all(); }

/* ---- copies ---- */
struct copy_args {
    void *to;
    const void *from;
    size_t bytes;
    bool here; /* what to copy follows these arguments */
};
static void run_copy(void *args) {
    copy_args *c = (copy_args *)args;
    memmove(c->to, c->here ? (const void *)(c + 1) : c->from, c->bytes);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    bool to_device = on_device(to), from_device = on_device(from);
    if ((kind == cudaMemcpyHostToDevice && (!to_device || from_device)) ||
        (kind == cudaMemcpyDeviceToHost && (to_device || !from_device)) ||
        (kind == cudaMemcpyDeviceToDevice && (!to_device || !from_device)))
        return emu_error(cudaErrorInvalidMemcpyDirection);
    if ((to_device && !emu_device_holds(to, bytes)) || (from_device && !emu_device_holds(from, bytes)))
        return emu_error(cudaErrorInvalidValue);
    bool captures = stream && stream->capture;
    copy_args c = {to, from, bytes, !from_device && !is_pinned(from) && !captures};
    cudaError_t e;
    if (c.here) { /* pageable: taken now */
        copy_args *whole = (copy_args *)malloc(sizeof c + bytes);
        if (!whole) return emu_error(cudaErrorMemoryAllocation);
        *whole = c;
        memcpy(whole + 1, from, bytes);
        e = emu_submit(stream, run_copy, whole, sizeof c + bytes);
        free(whole);
    } else {
        e = emu_submit(stream, run_copy, &c, sizeof c);
    }
    if (e == cudaSuccess && from_device && !to_device && !is_pinned(to) && !captures) return wait_for_all();
    return e;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    if (forbidden_in_capture() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, kind, 0);
    return e == cudaSuccess ? wait_for_all() : e;
}
struct set_args {
    void *p;
    int value;
    size_t bytes;
};
static void run_set(void *args) {
    set_args *s = (set_args *)args;
    memset(s->p, s->value, s->bytes);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    if (bytes && !emu_device_holds(p, bytes)) return emu_error(cudaErrorInvalidValue);
    set_args s = {p, value, bytes};
    return emu_submit(stream, run_set, &s, sizeof s);
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, 0); }

/* ---- streams and events ---- */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = (emu_stream *)calloc(1, sizeof **stream);
    return *stream ? cudaSuccess : emu_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    run_queue();
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait_for_all(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return waiting.first ? cudaErrorNotReady : cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
struct emu_event {
    double seconds;
};
static void run_event(void *args) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    (*(emu_event **)args)->seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = (emu_event *)calloc(1, sizeof **event);
    return *event ? cudaSuccess : emu_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    run_queue();
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return emu_submit(stream, run_event, &event, sizeof event); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait_for_all(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return waiting.first ? cudaErrorNotReady : cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    if (waiting.first) return emu_error(cudaErrorNotReady);
    *ms = (float)(1e3 * (to->seconds - from->seconds));
    return cudaSuccess;
}
struct host_args {
    cudaHostFn_t fn;
    void *arg;
};
static void run_host(void *args) {
    host_args *h = (host_args *)args;
    h->fn(h->arg);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *arg) {
    host_args h = {fn, arg};
    return emu_submit(stream, run_host, &h, sizeof h);
}

/* ---- graphs: the work a stream was given while it captured, run again with the same arguments ---- */
static void release(emu_graph *g) {
    if (--g->owners) return;
    while (g->list.first) {
        work *w = g->list.first;
        g->list.first = w->next;
        free(w);
    }
    free(g);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || capturing) return emu_error(cudaErrorStreamCaptureUnsupported);
    emu_graph *g = (emu_graph *)calloc(1, sizeof *g);
    if (!g) return emu_error(cudaErrorMemoryAllocation);
    g->list.end = &g->list.first;
    g->owners = 1;
    stream->capture = g;
    stream->invalid = false;
    capturing = stream;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->capture) return emu_error(cudaErrorInvalidValue);
    *graph = stream->invalid ? 0 : stream->capture;
    if (stream->invalid) release(stream->capture);
    stream->capture = 0;
    capturing = 0;
    return *graph ? cudaSuccess : emu_error(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    *status = !stream || !stream->capture ? cudaStreamCaptureStatusNone
              : stream->invalid           ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    graph->owners++;
    *exec = graph;
    return cudaSuccess;
}
static void run_graph(void *args) {
    emu_graph *g = *(emu_graph **)args;
    for (work *w = g->list.first; w; w = w->next) w->run(w->args);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    return emu_submit(stream, run_graph, &exec, sizeof exec);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    release(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    run_queue();
    release(exec);
    return cudaSuccess;
}
