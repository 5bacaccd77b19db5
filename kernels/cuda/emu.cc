// cuda_emu.cc - the engine of cuda_emu.h: fibers, barriers, warp meetings, shared memory. Build it without -fsanitize=thread.
#include "kernels/cuda/emu.h"
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#ifdef EMU_ENGINE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMU_ENGINE_TSAN
extern "C" { void *__tsan_get_current_fiber(void); void *__tsan_create_fiber(unsigned); void __tsan_switch_to_fiber(void *, unsigned);
void __tsan_acquire(void *); void __tsan_release(void *); }
#define ACQUIRE(p) __tsan_acquire(p)
#define RELEASE(p) __tsan_release(p)
#else
#define ACQUIRE(p) ((void)(p))
#define RELEASE(p) ((void)(p))
#endif
enum { MAXT = 1024, ROOMS = 6, BARS = 16, SITES = 32, STACK = 256 << 10, REDZONE = 64, SMEM_MAX = 227 << 10, ARENA = 512 << 10, NARENA = 512 };
struct room { uint32_t mask, arrived; int kind, line; const char *file; unsigned gen; uint64_t sync[2]; emu_slot slot[2][32]; };
struct bar { unsigned arrived, need, gen; int line, sum, result[2]; const char *file; uint64_t sync[2]; };
struct fiber : emu_ctx { void *sp, *fake, *tsan; bool done, blocked; const char *file; int line, bar; };
static fiber *pool[2], *fibers, host; static unsigned nthreads, queue[MAXT], qhead, qlen, ndone;
static room rooms[MAXT / 32][ROOMS]; static bar bars[BARS];
static struct { const void *key; void *addr; } sites[SITES]; static int nsites; static size_t sused;
static unsigned char *arena; static void (*kcall)(void *); static void *karg; static uint64_t begin_sync, end_sync, fence_sync;
static int order; static uint64_t rng; static const char *kfile; static int kline;
__thread emu_ctx *emu_cur; emu_stats emu_stat; void (*emu_block_hook)(int);

extern "C" void emu_swap(void **save, void *to);
#if defined(__x86_64__)
__asm__(".text\n.globl emu_swap\nemu_swap:\n push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
enum { FRAME = 8, ENTRY = 6 };
#elif defined(__aarch64__)
__asm__(".text\n.globl emu_swap\nemu_swap:\n sub sp,sp,#160\n stp x19,x20,[sp]\n stp x21,x22,[sp,#16]\n stp x23,x24,[sp,#32]\n stp x25,x26,[sp,#48]\n"
        " stp x27,x28,[sp,#64]\n stp x29,x30,[sp,#80]\n stp d8,d9,[sp,#96]\n stp d10,d11,[sp,#112]\n stp d12,d13,[sp,#128]\n stp d14,d15,[sp,#144]\n"
        " mov x2,sp\n str x2,[x0]\n mov sp,x1\n ldp x19,x20,[sp]\n ldp x21,x22,[sp,#16]\n ldp x23,x24,[sp,#32]\n ldp x25,x26,[sp,#48]\n ldp x27,x28,[sp,#64]\n"
        " ldp x29,x30,[sp,#80]\n ldp d8,d9,[sp,#96]\n ldp d10,d11,[sp,#112]\n ldp d12,d13,[sp,#128]\n ldp d14,d15,[sp,#144]\n add sp,sp,#160\n ret\n");
enum { FRAME = 20, ENTRY = 11 };
#endif
static void where(FILE *o) {
  for (unsigned i = 0; i < nthreads; ) { unsigned j = i; fiber *f = &fibers[i];
    while (j < nthreads && fibers[j].done == f->done && fibers[j].blocked == f->blocked && fibers[j].line == f->line) j++;
    fprintf(o, "  threads %u-%u: %s", i, j - 1, f->done ? "exited" : f->blocked ? "waiting" : "ready");
    if (f->blocked) fprintf(o, " at %s:%d", f->file, f->line);
    fputc('\n', o); i = j; }
}
void emu_die(const char *file, int line, const char *fmt, ...) {
  va_list ap; va_start(ap, fmt); fprintf(stderr, "%s:%d: emulated kernel: ", file, line); vfprintf(stderr, fmt, ap); va_end(ap);
  fiber *f = (fiber *)emu_cur;
  if (f && f != &host) fprintf(stderr, " (block %u,%u,%u thread %u)", f->bid.x, f->bid.y, f->bid.z, f->index);
  fputc('\n', stderr); where(stderr); fflush(0); abort();
}
static unsigned rnd(unsigned n) { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return (unsigned)(rng >> 11) % n; }
static void push(unsigned i) { queue[(qhead + qlen++) % MAXT] = i; }
static void wake(unsigned *list, unsigned n) {  // release a set of threads in the order under test
  if (order == 2) for (unsigned i = n; i > 1; i--) { unsigned j = rnd(i), t = list[i - 1]; list[i - 1] = list[j]; list[j] = t; }
  for (unsigned i = 0; i < n; i++) { unsigned k = list[order == 1 ? n - 1 - i : i]; fibers[k].blocked = false; push(k); }
}
static void go(fiber *to) {
  fiber *me = (fiber *)emu_cur; emu_cur = to; emu_stat.switches++;
#ifdef EMU_ENGINE_TSAN
  __tsan_switch_to_fiber(to->tsan, 1);
#endif
#ifdef EMU_ENGINE_ASAN
  __sanitizer_start_switch_fiber(&me->fake, to->stack, STACK);
#endif
  emu_swap(&me->sp, to->sp);
#ifdef EMU_ENGINE_ASAN
  __sanitizer_finish_switch_fiber(me->fake, 0, 0);
#endif
}
static void next() {
  if (qlen) { unsigned k = queue[qhead]; qhead = (qhead + 1) % MAXT; qlen--; if (&fibers[k] != emu_cur) go(&fibers[k]); return; }
  if (ndone == nthreads) { go(&host); return; }
  emu_die(kfile, kline, "deadlock: every thread waits or has exited");
}
static void block(const char *file, int line) { fiber *f = (fiber *)emu_cur; f->blocked = true; f->file = file; f->line = line; next(); }
static void entry() {
#ifdef EMU_ENGINE_ASAN
  __sanitizer_finish_switch_fiber(0, 0, 0);
#endif
  for (;;) {
    ACQUIRE(&begin_sync); kcall(karg); RELEASE(&end_sync);
    fiber *f = (fiber *)emu_cur; f->done = true; ndone++; next();
  }
}
int emu_barrier(int id, unsigned n, int value, const char *file, int line) {
  bar *b = &bars[id]; fiber *f = (fiber *)emu_cur; unsigned list[MAXT], m = 0, g = b->gen & 1;
  if (n & 31) emu_die(file, line, "barrier of %u threads, not whole warps", n);
  if (!b->arrived) { b->need = n; b->file = file; b->line = line; b->sum = 0; }
  else if (b->need != n || b->line != line || b->file != file) emu_die(file, line, "barrier %d: others came to it at %s:%d for %u threads", id, b->file, b->line, b->need);
  b->sum += value; f->bar = id; RELEASE(&b->sync[g]);
  if (++b->arrived == n) {
    b->arrived = 0; b->result[g] = b->sum; b->gen++; f->bar = -1;
    for (unsigned i = 0; i < nthreads; i++) if (fibers[i].bar == id) { fibers[i].bar = -1; list[m++] = i; }
    if (order) { list[m++] = f->index; wake(list, m); next(); } else wake(list, m);
  } else block(file, line);
  f->warp_epoch++; f->bar_epoch += n == nthreads; ACQUIRE(&b->sync[g]); return b->result[g];
}
emu_slot *emu_meet(uint32_t mask, int kind, const void *mine, size_t n, void (*last)(emu_slot *), const char *file, int line) {
  fiber *f = (fiber *)emu_cur; unsigned w = f->index / 32, list[32], m = 0; room *r = 0;
  if (!(mask >> f->lane & 1)) emu_die(file, line, "mask %08x leaves the calling lane %u out", mask, f->lane);
  for (int i = 0; i < ROOMS && !r; i++) if (rooms[w][i].mask == mask || !rooms[w][i].mask) r = &rooms[w][i];
  if (!r) emu_die(file, line, "over %d different masks in one warp", ROOMS);
  r->mask = mask; unsigned g = r->gen & 1; unsigned char *s = r->slot[g][f->lane];
  if (!r->arrived) { r->kind = kind; r->file = file; r->line = line; }
  else if (r->kind != kind || r->line != line || r->file != file) emu_die(file, line, "lanes %08x of this warp came to another warp-wide call at %s:%d", r->arrived, r->file, r->line);
  for (size_t i = 0; i < n; i++) ((volatile unsigned char *)s)[i] = ((const volatile unsigned char *)mine)[i];
  if (kind == EMU_SYNCWARP) RELEASE(&r->sync[g]);
  if ((r->arrived |= 1u << f->lane) == mask) {
    if (last) last(r->slot[g]);
    r->arrived = 0; r->gen++;
    for (unsigned i = 0; i < 32; i++) if (mask >> i & 1 && (order || i != f->lane)) list[m++] = w * 32 + i;
    wake(list, m); if (order) next();
  } else block(file, line);
  if (kind == EMU_SYNCWARP) { f->warp_epoch++; ACQUIRE(&r->sync[g]); }
  return r->slot[g];
}
void emu_fence(void) { RELEASE(&fence_sync); ACQUIRE(&fence_sync); }
void emu_mma_bf16(emu_slot *s) {  // D(16x8) = A(16x16) B(16x8) + C, the fragments as in the PTX manual
  double A[16][16], B[16][8], D[16][8]; struct op { uint32_t a[4], b[2]; float c[4]; };
  auto lo = [](uint32_t u) { return (double)__uint_as_float(u << 16); }; auto hi = [](uint32_t u) { return (double)__uint_as_float(u & 0xffff0000u); };
  for (int l = 0; l < 32; l++) { const op *o = (const op *)s[l]; int g = l >> 2, t = 2 * (l & 3);
    for (int i = 0; i < 4; i++) { int r = g + 8 * (i & 1), k = t + 8 * (i >> 1); A[r][k] = lo(o->a[i]); A[r][k + 1] = hi(o->a[i]); D[g + 8 * (i >> 1)][t + (i & 1)] = o->c[i]; }
    for (int i = 0; i < 2; i++) { B[t + 8 * i][g] = lo(o->b[i]); B[t + 8 * i + 1][g] = hi(o->b[i]); } }
  for (int r = 0; r < 16; r++) for (int k = 0; k < 16; k++) for (int n = 0; n < 8; n++) D[r][n] += A[r][k] * B[k][n];
  for (int l = 0; l < 32; l++) for (int i = 0; i < 4; i++) ((volatile float *)s[l])[i] = (float)D[(l >> 2) + 8 * (i >> 1)][2 * (l & 3) + (i & 1)];
}
void emu_count_banks(emu_slot *s) {
  unsigned banks = 0; for (int k = 0; k < 8; k++) banks |= 1u << (*(uint64_t *)s[k] >> 4 & 7);
  emu_stat.ldmatrix++; emu_stat.ldmatrix_conflicts += banks != 255;
}
static void *carve(size_t bytes, size_t align) {
  size_t at = (sused + align - 1) / align * align; sused = at + bytes + REDZONE;
  if (sused > ARENA) emu_die(kfile, kline, "over %d bytes of shared memory", SMEM_MAX);
#ifdef EMU_ENGINE_ASAN
  __asan_unpoison_memory_region(arena + at, bytes);
#endif
  return arena + at;
}
void *emu_shared(const void *site, size_t bytes, size_t align, const char *file, int line) {
  for (int i = 0; i < nsites; i++) if (sites[i].key == site) return sites[i].addr;
  if (nsites == SITES) emu_die(file, line, "over %d shared arrays", SITES);
  sites[nsites].key = site; return sites[nsites++].addr = carve(bytes, align);
}
void emu_run(dim3 g, dim3 b, size_t smem, void (*call)(void *), void *arg, const char *file, int line) {
  static unsigned char *arenas; static unsigned turn; nthreads = b.x * b.y * b.z; kfile = file; kline = line; kcall = call; karg = arg;
  if (!nthreads || nthreads > MAXT || smem > SMEM_MAX) emu_die(file, line, "launch of %u threads, %zu bytes of shared memory", nthreads, smem);
  if (!arenas) {
    arenas = (unsigned char *)mmap(0, (size_t)ARENA * NARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const char *o = getenv("EMU_ORDER"), *s = getenv("EMU_SEED"); order = !o || !strcmp(o, "fwd") ? 0 : !strcmp(o, "rev") ? 1 : 2;
    rng = (s ? strtoull(s, 0, 10) : 1) * 0x9e3779b97f4a7c15ull | 1;
    int sets = 1; const char *a = getenv("EMU_ASYNC");
#ifdef EMU_ENGINE_TSAN
    host.tsan = __tsan_get_current_fiber(); sets = 2;
#endif
#ifdef EMU_ENGINE_ASAN
    pthread_attr_t at; void *sb; size_t sz; pthread_getattr_np(pthread_self(), &at); pthread_attr_getstack(&at, &sb, &sz); pthread_attr_destroy(&at); host.stack = (char *)sb + sz - STACK;
#endif
    for (int k = 0; k < sets; k++) { pool[k] = (fiber *)calloc(MAXT, sizeof(fiber));
      for (unsigned i = 0; i < MAXT; i++) pool[k][i].async_early = a && !strcmp(a, "early"); }
    if (sets == 1) pool[1] = pool[0];
  }
  RELEASE(&begin_sync); if (emu_block_hook) emu_block_hook(-1);
  for (unsigned z = 0; z < g.z; z++) for (unsigned y = 0; y < g.y; y++) for (unsigned x = 0; x < g.x; x++, turn++) {
    arena = arenas + (size_t)(turn % NARENA) * ARENA; fibers = pool[turn & 1]; nsites = 0; sused = 0; qhead = qlen = ndone = 0;
#ifdef EMU_ENGINE_TSAN
    if (turn % NARENA == 0) { ACQUIRE(&end_sync); RELEASE(&begin_sync); }
#else
    arena = arenas;
#endif
#ifdef EMU_ENGINE_ASAN
    __asan_unpoison_memory_region(arena, SMEM_MAX); 
#endif
    for (size_t i = 0; i < (smem > 48 << 10 ? smem : 48 << 10) / 8; i++) ((volatile uint64_t *)arena)[i] = ~0ull;
#ifdef EMU_ENGINE_ASAN
    __asan_poison_memory_region(arena, ARENA);
#endif
    unsigned char *dyn = smem ? (unsigned char *)carve(smem, 1024) : arena; unsigned list[MAXT]; memset(bars, 0, sizeof bars);
    for (unsigned w = 0; w < (nthreads + 31) / 32; w++) for (room &r : rooms[w]) r.mask = r.arrived = r.gen = 0;
    for (unsigned i = 0; i < nthreads; i++) { fiber *f = &fibers[i];
      if (!f->stack) {
        f->stack = (char *)mmap(0, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); mprotect(f->stack, 4096, PROT_NONE); f->stack += 4096; f->stack_size = STACK;
        void **sp = (void **)(f->stack + STACK) - 2 - FRAME; sp[ENTRY] = (void *)entry; f->sp = sp; f->index = i; f->lane = i % 32;
#ifdef EMU_ENGINE_TSAN
        f->tsan = __tsan_create_fiber(0);
#endif
      }
      f->tid = {i % b.x, i / b.x % b.y, i / (b.x * b.y)}; f->bid = {x, y, z}; f->block = b; f->grid = g; f->nthreads = nthreads; f->smem = dyn;
      f->smem_bytes = SMEM_MAX; f->done = f->blocked = false; f->line = 0; f->bar = -1; f->npend = f->group = 0; f->bar_epoch = f->warp_epoch = 1; list[i] = i; }
    if (emu_block_hook) emu_block_hook(0);
    wake(list, nthreads); emu_stat.threads += nthreads; emu_cur = &host; next();
    if (emu_block_hook) emu_block_hook(1);
  }
  ACQUIRE(&end_sync); emu_cur = 0;
}
#ifndef EMU_OWN_MALLOC
cudaError_t cudaMalloc(void **p, size_t n) { *p = malloc(n); if (*p) for (size_t i = 0; i < n; i++) ((unsigned char *)*p)[i] = 0xff; return !*p; }
cudaError_t cudaFree(void *p) { free(p); return 0; }
#endif
