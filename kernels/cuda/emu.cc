/* The engine of emu.h: fibers, barriers, warp-wide meetings, shared memory. A launch runs its blocks one after another; the
 * threads of a block are fibers that run until they wait for others or end. One thread of the host launches. Never built
 * with -fsanitize=thread: to the checker of races this is the hardware. */
#include "kernels/cuda/emu.h"

#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#endif
#ifdef EMU_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32, ROOMS = 6, BARRIERS = 16, SITES = 32, KERNELS = 512 };
enum : size_t {
    KB = 1024,
    SHARED_STATIC = 48 * KB, /* what a launch may have without asking */
    SHARED_MOST = 227 * KB,  /* sm_90, by cudaFuncSetAttribute */
    ARENA = 512 * KB,
    RED_ZONE = 64, /* between shared arrays */
    GUARD = 4 * KB,
    STACK = 256 * KB,
    FIBER_ROOM = 16 * KB, /* of a struct fiber, above its stack */
    COLORS = 4 * KB, /* fibers lie at different offsets in their pages, or they would share a few cache lines' places */
    FIBER = GUARD + COLORS + STACK + FIBER_ROOM
};
enum { FORWARD, REVERSE, RANDOM };

struct fiber : emu_thread {
    void *sp, *fake_stack;
    char *stack;
    bool done, waiting;
    int barrier; /* the one it waits at, or -1 */
    const char *file;
    int line;
};
static_assert(sizeof(fiber) <= FIBER_ROOM, "a fiber fits its room");

/* Where the lanes of one mask meet. Slots of two generations: nobody can come to the next meeting but one before all have
 * read this one's. */
struct room {
    uint32_t mask, arrived;
    int kind, line;
    const char *file;
    unsigned generation;
    emu_slot slots[2][32];
};
struct barrier {
    unsigned arrived, need, generation;
    int line, sum, results[2];
    const char *file;
};

static fiber host, *fibers[MAX_THREADS];
static unsigned n_threads, n_done, queue[MAX_THREADS], queue_at, queue_length;
static room rooms[MAX_WARPS][ROOMS];
static barrier barriers[BARRIERS];
static struct {
    const void *site;
    void *address;
} sites[SITES];
static int n_sites;
static struct {
    const void *kernel;
    size_t shared;
} allowed[KERNELS]; /* by cudaFuncSetAttribute */
static int n_allowed;
static unsigned char *arena;
static size_t arena_used, arena_dirty, static_bytes;
static const emu_launch *launch;
static void *closure;
static int order;
static uint64_t random_state;
static bool copies_land_early;

__thread emu_thread *emu_cur;
const emu_checker *emu_check;
emu_ranges emu_at;

/* ---- reports ---- */
static void print_threads() {
    for (unsigned i = 0, j; i < n_threads; i = j) {
        const fiber *f = fibers[i];
        for (j = i; j < n_threads; j++) {
            const fiber *o = fibers[j];
            if (o->done != f->done || o->waiting != f->waiting || (f->waiting && o->line != f->line)) break;
        }
        fprintf(stderr, "  threads %u-%u: %s", i, j - 1, f->done ? "exited" : f->waiting ? "waiting" : "ready");
        if (f->waiting) fprintf(stderr, " at %s:%d", f->file, f->line);
        fputc('\n', stderr);
    }
}
void emu_die(const char *file, int line, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s:%d: emulated kernel: ", file, line);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    const emu_thread *t = emu_cur;
    if (t && t != &host) fprintf(stderr, " (block %u,%u,%u thread %u)", t->bid.x, t->bid.y, t->bid.z, t->index);
    fputc('\n', stderr);
    print_threads();
    fflush(0);
    abort();
}

/* ---- the switch between fibers: callee-saved registers on the stack, then the stack pointer ---- */
extern "C" void emu_swap(void **save, void *to);
#if defined(__x86_64__)
__asm__(".text\n.globl emu_swap\n.type emu_swap, @function\nemu_swap:\n"
        " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        " mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
        ".size emu_swap, .-emu_swap\n");
/* Six registers, the address to return to, and one word that keeps the stack aligned as after a call. */
static void *first_frame(char *top, void (*run)()) {
    void **sp = (void **)top - 10;
    sp[6] = (void *)run;
    return sp;
}
#else
#include <ucontext.h>
/* Slower: every switch makes system calls. `sp` points to a context in the fiber's room. */
extern "C" void emu_swap(void **save, void *to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, (ucontext_t *)to);
}
static void *first_frame(char *top, void (*run)()) {
    ucontext_t *u = (ucontext_t *)(((uintptr_t)top - sizeof(ucontext_t)) & ~(uintptr_t)63);
    getcontext(u);
    u->uc_stack.ss_sp = top - STACK;
    u->uc_stack.ss_size = (size_t)((char *)u - (top - STACK));
    makecontext(u, run, 0);
    return u;
}
#endif

static void go(fiber *to) {
    fiber *me = (fiber *)emu_cur;
    emu_cur = to;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&me->fake_stack, to->stack, STACK);
#endif
    emu_swap(&me->sp, to->sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(me->fake_stack, 0, 0);
#endif
}

/* ---- who runs next ---- */
static unsigned draw(unsigned n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 11) % n;
}
/* These can go on, in the order under test. */
static void wake(unsigned *list, unsigned n) {
    for (unsigned i = n; order == RANDOM && i > 1; i--) {
        unsigned j = draw(i), t = list[i - 1];
        list[i - 1] = list[j];
        list[j] = t;
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned k = list[order == REVERSE ? n - 1 - i : i];
        fibers[k]->waiting = false;
        queue[(queue_at + queue_length++) % MAX_THREADS] = k;
    }
}
static void next() {
    if (queue_length) {
        fiber *to = fibers[queue[queue_at]];
        queue_at = (queue_at + 1) % MAX_THREADS;
        queue_length--;
        if (to != emu_cur) go(to);
    } else if (n_done == n_threads) {
        go(&host);
    } else {
        emu_die(launch->file, launch->line, "deadlock: every thread of the kernel waits or has exited");
    }
}
static void wait_here(const char *file, int line) {
    fiber *f = (fiber *)emu_cur;
    f->waiting = true;
    f->file = file;
    f->line = line;
    next();
}
static void fiber_runs() {
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(0, 0, 0);
#endif
    for (;;) {
        launch->call(closure);
        ((fiber *)emu_cur)->done = true;
        n_done++;
        next();
    }
}

/* ---- barriers and meetings ---- */
int emu_barrier(int id, unsigned n, int value, const char *file, int line) {
    if (id < 0 || id >= BARRIERS || n % 32 || n > n_threads) emu_die(file, line, "barrier %d of %u threads", id, n);
    barrier *b = &barriers[id];
    fiber *f = (fiber *)emu_cur;
    unsigned turn = b->generation & 1;
    if (!b->arrived) {
        b->need = n;
        b->file = file;
        b->line = line;
        b->sum = 0;
    } else if (b->need != n || b->line != line || b->file != file) {
        emu_die(file, line, "barrier %d: others came to it at %s:%d for %u threads", id, b->file, b->line, b->need);
    }
    b->sum += value;
    f->barrier = id;
    if (++b->arrived < n) {
        wait_here(file, line);
    } else {
        unsigned list[MAX_THREADS], m = 0;
        uint32_t warps = 0;
        for (unsigned i = 0; i < n_threads; i++)
            if (fibers[i]->barrier == id) {
                fibers[i]->barrier = -1;
                warps |= 1u << i / 32;
                if (order != FORWARD || fibers[i] != f) list[m++] = i;
            }
        b->arrived = 0;
        b->results[turn] = b->sum;
        b->generation++;
        if (emu_check) emu_check->barrier(warps);
        wake(list, m);
        if (order != FORWARD) next();
    }
    f->warp_epoch++;
    f->meet_epoch++;
    return b->results[turn];
}
static room *room_for(unsigned warp, uint32_t mask, const char *file, int line) {
    for (int i = 0; i < ROOMS; i++) {
        room *r = &rooms[warp][i];
        if (r->mask == mask || !r->mask) {
            r->mask = mask;
            return r;
        }
    }
    emu_die(file, line, "more than %d different masks in one warp", ROOMS);
}
emu_slot *emu_meet(uint32_t mask, int kind, const void *mine, size_t n, void (*last)(emu_slot *), const char *file, int line) {
    fiber *f = (fiber *)emu_cur;
    unsigned warp = f->index / 32;
    if (!(mask >> f->lane & 1)) emu_die(file, line, "mask %08x leaves the calling lane %u out", mask, f->lane);
    room *r = room_for(warp, mask, file, line);
    emu_slot *slots = r->slots[r->generation & 1];
    if (!r->arrived) {
        r->kind = kind;
        r->file = file;
        r->line = line;
    } else if (r->kind != kind || r->line != line || r->file != file) {
        emu_die(file, line, "lanes %08x of this warp came to another warp-wide call at %s:%d", r->arrived, r->file, r->line);
    }
    if (n) memcpy(slots[f->lane], mine, n);
    r->arrived |= 1u << f->lane;
    if (r->arrived != mask) {
        wait_here(file, line);
    } else {
        unsigned list[32], m = 0;
        if (last) last(slots);
        r->arrived = 0;
        r->generation++;
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1 && (order != FORWARD || i != f->lane)) list[m++] = warp * 32 + i;
        wake(list, m);
        if (order != FORWARD) next();
    }
    f->warp_epoch += kind == EMU_SYNCWARP;
    f->meet_epoch++;
    return slots;
}

/* ---- tensor cores: fragments as the PTX manual lays them out ("Matrix Fragments for mma.m16n8k16 with floating point
 * type"); lane l holds rows l/4 and l/4 + 8, columns 2(l%4) and the next. Sums in double, rounded once ---- */
void emu_mma_bf16(emu_slot *s) {
    struct operands {
        uint32_t a[4], b[2];
        float c[4];
    };
    double a[16][16], b[16][8], d[16][8];
    auto low = [](uint32_t u) { return (double)__uint_as_float(u << 16); };
    auto high = [](uint32_t u) { return (double)__uint_as_float(u & 0xffff0000u); };
    for (int l = 0; l < 32; l++) {
        operands o;
        memcpy(&o, s[l], sizeof o);
        int g = l >> 2, t = 2 * (l & 3);
        for (int i = 0; i < 4; i++) {
            int row = g + 8 * (i & 1), k = t + 8 * (i >> 1);
            a[row][k] = low(o.a[i]);
            a[row][k + 1] = high(o.a[i]);
            d[g + 8 * (i >> 1)][t + (i & 1)] = o.c[i];
        }
        for (int i = 0; i < 2; i++) {
            b[t + 8 * i][g] = low(o.b[i]);
            b[t + 8 * i + 1][g] = high(o.b[i]);
        }
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            float x = (float)d[(l >> 2) + 8 * (i >> 1)][2 * (l & 3) + (i & 1)];
            memcpy(s[l] + 4 * i, &x, sizeof x);
        }
}

struct ldmatrix_call { /* what a lane brings */
    const unsigned char *row;
    int n, trans;
    uint32_t d[4];
};
static_assert(sizeof(ldmatrix_call) <= EMU_SLOT, "fits a slot");
static void ldmatrix_all(emu_slot *s) {
    ldmatrix_call calls[32];
    for (int l = 0; l < 32; l++) memcpy(&calls[l], s[l], sizeof calls[l]);
    for (int i = 0; i < calls[0].n; i++) {
        uint16_t m[8][8];
        for (int r = 0; r < 8; r++) memcpy(m[r], calls[8 * i + r].row, sizeof m[r]);
        for (int l = 0; l < 32; l++) {
            int r = l >> 2, c = 2 * (l & 3);
            uint16_t first = calls[l].trans ? m[c][r] : m[r][c], second = calls[l].trans ? m[c + 1][r] : m[r][c + 1];
            calls[l].d[i] = first | (uint32_t)second << 16;
        }
    }
    for (int l = 0; l < 32; l++) memcpy(s[l], &calls[l], sizeof calls[l]);
}
static bool in_shared(const void *p, size_t n) {
    const unsigned char *at = (const unsigned char *)p;
    return at >= arena && at + n <= arena + arena_used;
}
void emu_ldmatrix(uint32_t *d, const void *row, int n, bool trans, const char *file, int line) {
    ldmatrix_call c = {(const unsigned char *)row, n, trans, {0, 0, 0, 0}};
    if ((int)emu_cur->lane < 8 * n) {
        if ((uintptr_t)row & 15 || !in_shared(row, 16))
            emu_die(file, line, "ldmatrix row %p: not 16-byte aligned, or not in shared memory", row);
        if (emu_check) emu_check->access(row, 16, false, __builtin_return_address(0));
    }
    emu_slot *s = emu_meet(0xffffffffu, EMU_LDMATRIX, &c, sizeof c, ldmatrix_all, file, line);
    memcpy(&c, s[emu_cur->lane], sizeof c);
    memcpy(d, c.d, (size_t)n * sizeof *d);
}

/* ---- cp.async ---- */
static void land(const emu_copy *c) {
    unsigned char bytes[16] = {0};
    if (emu_check) emu_check->copy_lands(c);
    memcpy(bytes, c->src, (size_t)c->read);
    memcpy(c->dst, bytes, (size_t)c->size);
}
void emu_cp_async(void *dst, const void *src, int size, int read, const char *file, int line) {
    emu_thread *t = emu_cur;
    emu_copy c = {dst, src, size, read, t->copy_group, __builtin_return_address(0)};
    if (((uintptr_t)dst | (read ? (uintptr_t)src : 0)) % (unsigned)size)
        emu_die(file, line, "cp.async: an address not aligned to %d bytes", size);
    if (!in_shared(dst, (size_t)size)) emu_die(file, line, "cp.async: writes %p, outside shared memory", dst);
    if (read && !emu_device_holds(src, (size_t)read))
        emu_die(file, line, "cp.async: out-of-bounds read of %p: outside every allocation", src);
    if (t->n_copies == EMU_COPIES) emu_die(file, line, "cp.async: more than %d copies on their way", EMU_COPIES);
    if (emu_check) emu_check->copy_begins(&c);
    if (copies_land_early) land(&c);
    else t->copies[t->n_copies++] = c;
}
void emu_cp_async_wait(int groups) {
    emu_thread *t = emu_cur;
    int kept = 0;
    for (int i = 0; i < t->n_copies; i++)
        if (t->copies[i].group < t->copy_group - groups) land(&t->copies[i]);
        else t->copies[kept++] = t->copies[i];
    t->n_copies = kept;
}

/* ---- shared memory ---- */
static void *carve(size_t bytes, size_t align, const char *file, int line) {
    size_t at = (arena_used + align - 1) / align * align;
    if (at + bytes + RED_ZONE > ARENA) emu_die(file, line, "more than %zu bytes of shared memory", SHARED_MOST);
    arena_used = at + bytes + RED_ZONE;
    if (arena_used > arena_dirty) arena_dirty = arena_used;
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(arena + at, bytes);
#endif
    return arena + at;
}
void *emu_shared(const void *site, size_t bytes, size_t align, const char *file, int line) {
    for (int i = 0; i < n_sites; i++)
        if (sites[i].site == site) return sites[i].address;
    static_bytes += bytes;
    if (n_sites == SITES) emu_die(file, line, "more than %d shared arrays", SITES);
    if (static_bytes > SHARED_STATIC) emu_die(file, line, "%zu bytes of static shared memory", static_bytes);
    if (static_bytes + launch->shared > SHARED_MOST)
        emu_die(file, line, "%zu bytes of static and %zu of dynamic shared memory", static_bytes, launch->shared);
    sites[n_sites].site = site;
    return sites[n_sites++].address = carve(bytes, align, file, line);
}
/* NaN everywhere, and nothing usable until it is carved. */
static void clear_shared() {
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(arena, ARENA);
#endif
    memset(arena, 0xff, arena_dirty);
#ifdef EMU_ASAN
    __asan_poison_memory_region(arena, ARENA);
#endif
    arena_used = static_bytes = 0;
    n_sites = 0;
}

/* ---- launches ---- */
cudaError_t emu_set_shared(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > SHARED_MOST) return emu_error(cudaErrorInvalidValue);
    int i = 0;
    while (i < n_allowed && allowed[i].kernel != kernel) i++;
    if (i == KERNELS) emu_die("cudaFuncSetAttribute", 0, "more than %d kernels", KERNELS);
    allowed[i].kernel = kernel;
    allowed[i].shared = (size_t)value;
    if (i == n_allowed) n_allowed++;
    return cudaSuccess;
}
static size_t shared_allowed(const void *kernel) {
    for (int i = 0; i < n_allowed; i++)
        if (allowed[i].kernel == kernel && allowed[i].shared > SHARED_STATIC) return allowed[i].shared;
    return SHARED_STATIC;
}
struct emu_queued { /* a launch and, behind it, its closure */
    emu_launch launch;
    alignas(16) unsigned char closure[];
};
cudaError_t emu_launch_kernel(const emu_launch *l, const void *arguments, cudaStream_t stream) {
    uint64_t threads = (uint64_t)l->block.x * l->block.y * l->block.z;
    if (!threads || threads > MAX_THREADS || l->block.z > 64 || !l->grid.x || !l->grid.y || !l->grid.z ||
        l->grid.x > 0x7fffffff || l->grid.y > 65535 || l->grid.z > 65535)
        return emu_error(cudaErrorInvalidConfiguration);
    if (l->shared > shared_allowed(l->kernel)) return emu_error(cudaErrorInvalidValue);
    size_t bytes = sizeof(emu_queued) + l->closure_bytes;
    emu_queued *q = (emu_queued *)malloc(bytes);
    if (!q) return emu_error(cudaErrorMemoryAllocation);
    q->launch = *l;
    memcpy(q->closure, arguments, l->closure_bytes);
    cudaError_t e = emu_submit(stream, emu_run, q, bytes);
    free(q);
    return e;
}

static void set_up() {
    if (arena) return;
    const char *o = getenv("EMU_ORDER"), *seed = getenv("EMU_SEED"), *async = getenv("EMU_ASYNC");
    order = !o || !strcmp(o, "fwd") ? FORWARD : !strcmp(o, "rev") ? REVERSE : RANDOM;
    random_state = (seed ? strtoull(seed, 0, 10) + 1 : 1) * 0x9e3779b97f4a7c15ull | 1;
    copies_land_early = async && !strcmp(async, "early");
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *shared = mmap(0, ARENA, PROT_READ | PROT_WRITE, flags, -1, 0);
    void *rooms_of_fibers = mmap(0, (size_t)MAX_THREADS * FIBER, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (shared == MAP_FAILED || rooms_of_fibers == MAP_FAILED) emu_die("emulator", 0, "no memory for its threads");
    arena = (unsigned char *)shared;
    arena_dirty = ARENA;
    emu_at.shared = arena;
    emu_at.shared_end = arena + ARENA;
    emu_at.threads = (unsigned char *)rooms_of_fibers;
    emu_at.threads_end = emu_at.threads + (size_t)MAX_THREADS * FIBER;
#ifdef EMU_ASAN
    pthread_attr_t attributes;
    void *bottom;
    size_t size;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &size);
    pthread_attr_destroy(&attributes);
    host.stack = (char *)bottom + size - STACK;
#endif
}
static fiber *fiber_of(unsigned i) {
    if (fibers[i]) return fibers[i];
    char *at = (char *)emu_at.threads + i * FIBER, *stack = at + GUARD + i * 192 % COLORS;
    mprotect(at, GUARD, PROT_NONE);
    fiber *f = fibers[i] = (fiber *)(stack + STACK);
    f->stack = stack;
    f->sp = first_frame(f->stack + STACK, fiber_runs);
    f->index = i;
    f->lane = i % 32;
    return f;
}
static void run_block(uint3 at) {
    dim3 b = launch->block;
    unsigned list[MAX_THREADS];
    clear_shared();
    unsigned char *dynamic = launch->shared ? (unsigned char *)carve(launch->shared, 1024, launch->file, launch->line) : arena;
    queue_at = queue_length = n_done = 0;
    memset(barriers, 0, sizeof barriers);
    for (unsigned w = 0; w < (n_threads + 31) / 32; w++)
        for (room &r : rooms[w]) r.mask = r.arrived = r.generation = 0;
    for (unsigned i = 0; i < n_threads; i++) {
        fiber *f = fiber_of(i);
        f->tid = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
        f->bid = at;
        f->block = b;
        f->grid = launch->grid;
        f->n_threads = n_threads;
        f->shared = dynamic;
        f->done = f->waiting = false;
        f->line = f->n_copies = f->copy_group = 0;
        f->barrier = -1;
        f->warp_epoch = f->meet_epoch = 1;
        list[i] = i;
    }
    if (emu_check) emu_check->block(fibers[0]);
    wake(list, n_threads);
    emu_cur = &host;
    next();
    if (emu_check) emu_check->block_ends();
}
/* A number without a common divisor with n, so that i * step % n meets every i. */
static uint64_t coprime_step(uint64_t n) {
    for (;;) {
        uint64_t step = 1 + draw((unsigned)(n < 1u << 30 ? n : 1u << 30)), a = n, b = step;
        while (b) {
            uint64_t t = a % b;
            a = b;
            b = t;
        }
        if (a == 1) return step;
    }
}
void emu_run(void *queued) {
    emu_queued *q = (emu_queued *)queued;
    set_up();
    launch = &q->launch;
    closure = q->closure;
    n_threads = launch->block.x * launch->block.y * launch->block.z;
    emu_at.closure = q->closure;
    emu_at.closure_end = q->closure + launch->closure_bytes;
    if (emu_check) emu_check->launch(launch);
    dim3 g = launch->grid;
    uint64_t n = (uint64_t)g.x * g.y * g.z, step = order == RANDOM ? coprime_step(n) : 1;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t k = order == REVERSE ? n - 1 - i : i * step % n;
        run_block({(unsigned)(k % g.x), (unsigned)(k / g.x % g.y), (unsigned)(k / g.x / g.y)});
    }
    emu_cur = 0;
}
