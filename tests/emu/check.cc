/* Watches emulated kernels (kernels/cuda/emu.h): races, accesses outside allocations, reads of shared memory nobody wrote or
 * that a cp.async still writes, and, with EMU_PROFILE=FILE, what every access costs.
 *
 * The kernels are built with -fsanitize=thread, which calls __tsan_read4(address) and the like at every access; these
 * functions are ours, and the program is linked without the sanitizer's library. cp.async and ldmatrix are reported by the
 * emulator itself (emu_checker).
 *
 * Happens-before: two accesses of different threads, at least one a write and not both atomic, race unless barriers order
 * them: __syncthreads and bar_sync between warps (a vector clock of warps), also __syncwarp within a warp, where a shuffle
 * between a read and a later write does as well (it waits for the value that was read); different blocks of a launch are
 * never ordered, launches always. Each word of memory remembers its last writer and the last
 * readers of two warps. A "last block" that trusts __threadfence and a counter would be reported: kernels here use two
 * launches instead. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/emu.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

typedef uint64_t place; /* in the program: the address a call from a kernel returns to */

struct who { /* made an access */
    place where;
    uint32_t block;       /* counted over all launches; 0: nobody */
    uint32_t clock;       /* of its warp */
    uint32_t warp_epoch, meet_epoch;
    uint16_t thread;
    uint8_t mask;         /* bytes of the word */
    bool atomic;
};
struct cell { /* a word */
    who write, reads[2];
    uint32_t block; /* in shared memory: what follows is of this block */
    uint8_t written, landing; /* bytes that hold something; bytes a cp.async may write at any time */
};
enum : size_t { GRAIN = 4, PAGE = 4096, MAX_REPORTS = 20 };

static uint32_t block_number, first_block; /* first_block: of this launch */
static uint32_t clocks[32][32];
static cell *shared_cells, **device_pages;
static const emu_launch *launch;
static unsigned reports;

/* ---- places and reports ---- */
/* "kernels/cuda/norm.cu:57" for every return address, by one call of addr2line: of the inlined functions there, the
 * innermost in a .cu file. */
static std::map<place, std::string> names_of(const std::set<place> &places) {
    std::map<place, std::string> names;
    std::vector<place> asked;
    char exe[1024] = "", hex[32];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    std::string command = "addr2line -a -i -e '" + std::string(exe, n > 0 ? (size_t)n : 0) + "'";
    for (place p : places) {
        snprintf(hex, sizeof hex, " %#lx", (unsigned long)(p - 1));
        command += hex;
        asked.push_back(p);
    }
    FILE *f = asked.empty() ? 0 : popen(command.c_str(), "r");
    if (!f) return names;
    char line[2048];
    size_t at = 0;
    while (fgets(line, sizeof line, f)) {
        std::string text(line);
        text.erase(std::min(text.find_first_of(" \n"), text.size()));
        if (text.compare(0, 2, "0x") == 0) {
            at++;
        } else if (at && at <= asked.size()) {
            size_t path = text.find("kernels/cuda/");
            if (path != std::string::npos) text.erase(0, path);
            std::string &name = names[asked[at - 1]];
            bool kernel = text.find(".cu:") != std::string::npos;
            if (name.empty() || (kernel && name.find(".cu:") == std::string::npos)) name = text;
        }
    }
    pclose(f);
    return names;
}
static void report(const char *what, place where, const void *address, const who *earlier, const char *earlier_what) {
    static std::set<std::pair<place, place>> seen;
    if (!seen.insert({where, earlier ? earlier->where : 0}).second) return;
    if (++reports > MAX_REPORTS) return;
    std::set<place> places = {where};
    if (earlier) places.insert(earlier->where);
    std::map<place, std::string> names = names_of(places);
    const emu_thread *t = emu_cur;
    fprintf(stderr, "emu_check: %s: %s of %p, block %u,%u,%u thread %u", names[where].c_str(), what, address, t->bid.x, t->bid.y,
            t->bid.z, t->index);
    if (earlier)
        fprintf(stderr, "; %s at %s by thread %u of %s block", earlier_what, names[earlier->where].c_str(), earlier->thread,
                earlier->block == block_number ? "the same" : "another");
    const char *file = strstr(launch->file, "kernels/cuda/");
    fprintf(stderr, " (launched at %s:%d)\n", file ? file : launch->file, launch->line);
}

/* ---- the profile: the first block of every launch ---- */
struct instruction { /* of one warp in one block, between two meetings of its lanes */
    std::vector<uintptr_t> lanes[32];
    unsigned bytes;
    bool write, shared;
};
struct cost {
    unsigned long long requests, got, ideal;
};
struct cost_key {
    place where;
    unsigned bytes;
    bool write, shared;
    bool operator<(const cost_key &o) const {
        if (where != o.where) return where < o.where;
        if (bytes != o.bytes) return bytes < o.bytes;
        return write * 2 + shared < o.write * 2 + o.shared;
    }
};
static const char *profile;
static bool profiled_block;
struct instruction_key {
    place where;
    unsigned warp, epoch;
    bool shared;
    bool operator<(const instruction_key &o) const {
        if (where != o.where) return where < o.where;
        if (warp != o.warp) return warp < o.warp;
        return epoch * 2 + shared < o.epoch * 2 + o.shared;
    }
};
static std::map<instruction_key, instruction> instructions;
static std::map<cost_key, cost> costs;

/* Wavefronts: 32 words at a time, a bank gives one word each. */
static cost shared_cost(const std::vector<uintptr_t> &words) {
    cost c = {1, 0, 0};
    for (size_t from = 0; from < words.size(); from += 32) {
        std::set<uintptr_t> distinct(words.begin() + (long)from, words.begin() + (long)std::min(from + 32, words.size()));
        unsigned banks[32] = {0}, most = 0;
        for (uintptr_t w : distinct) most = std::max(most, ++banks[w % 32]);
        c.got += most;
        c.ideal++;
    }
    return c;
}
/* Sectors of 32 bytes. */
static cost global_cost(const std::vector<uintptr_t> &words) {
    std::set<uintptr_t> distinct(words.begin(), words.end()), sectors;
    for (uintptr_t w : distinct) sectors.insert(w / 8);
    return {1, sectors.size(), (distinct.size() + 7) / 8};
}
static void add_costs() {
    for (auto &[key, instruction] : instructions) {
        size_t times = 0;
        for (auto &lane : instruction.lanes) times = std::max(times, lane.size());
        cost &sum = costs[{key.where, instruction.bytes, instruction.write, instruction.shared}];
        for (size_t k = 0; k < times; k++) {
            std::vector<uintptr_t> words;
            for (auto &lane : instruction.lanes)
                for (unsigned i = 0; k < lane.size() && i < instruction.bytes; i += 4) words.push_back((lane[k] + i) / 4);
            cost c = instruction.shared ? shared_cost(words) : global_cost(words);
            sum.requests += c.requests;
            sum.got += c.got;
            sum.ideal += c.ideal;
        }
    }
    instructions.clear();
}
/* A line for each kind of access of a source line: place, shared|global, read|write, bytes a lane, requests of a warp,
 * wavefronts or sectors, the least possible. */
static void write_profile() {
    std::set<place> places;
    for (auto &[key, c] : costs) places.insert(key.where);
    std::map<place, std::string> names = names_of(places);
    std::map<std::string, cost> lines;
    for (auto &[key, c] : costs) {
        char kind[64];
        snprintf(kind, sizeof kind, "\t%s\t%s\t%u", key.shared ? "shared" : "global", key.write ? "write" : "read", key.bytes);
        cost &sum = lines[names[key.where] + kind];
        sum.requests += c.requests;
        sum.got += c.got;
        sum.ideal += c.ideal;
    }
    FILE *f = fopen(profile, "a");
    if (!f) return;
    for (auto &[line, c] : lines) fprintf(f, "%s\t%llu\t%llu\t%llu\n", line.c_str(), c.requests, c.got, c.ideal);
    fclose(f);
}

/* ---- happens-before ---- */
static bool ordered(const who &before, const who &now, bool write_after_read) {
    if (before.block < first_block) return true; /* nobody, or an earlier launch */
    if (before.block != now.block) return false;
    if (before.thread == now.thread) return true;
    if (before.thread / 32 == now.thread / 32)
        return write_after_read ? before.meet_epoch < now.meet_epoch : before.warp_epoch < now.warp_epoch;
    return clocks[now.thread / 32][before.thread / 32] >= before.clock;
}
static void on_barrier(uint32_t warps) {
    uint32_t joined[32] = {0};
    for (int w = 0; w < 32; w++)
        for (int i = 0; warps >> w & 1 && i < 32; i++) joined[i] = std::max(joined[i], clocks[w][i]);
    for (int w = 0; w < 32; w++)
        if (warps >> w & 1) {
            memcpy(clocks[w], joined, sizeof joined);
            clocks[w][w]++;
        }
}
static cell *new_cells(size_t n) {
    void *p = mmap(0, n * sizeof(cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "emu_check: no memory\n");
        _exit(3);
    }
    return (cell *)p;
}
/* Cells of [a, a + n), which lie in one page. */
static cell *cells_at(uintptr_t a, bool shared) {
    if (shared) return shared_cells + (a - (uintptr_t)emu_at.shared) / GRAIN;
    size_t offset = a - (uintptr_t)emu_at.device;
    cell *&page = device_pages[offset / PAGE];
    if (!page) page = new_cells(PAGE / GRAIN);
    return page + offset % PAGE / GRAIN;
}
static who here(place where, bool atomic) {
    const emu_thread *t = emu_cur;
    unsigned warp = t->index / 32;
    return {where, block_number, clocks[warp][warp], t->warp_epoch, t->meet_epoch, (uint16_t)t->index, 0, atomic};
}
/* The bytes of [a, a + n) in the word at b. */
static uint8_t bytes_in(uintptr_t b, uintptr_t a, size_t n) {
    unsigned from = b < a ? (unsigned)(a - b) : 0, to = b + GRAIN > a + n ? (unsigned)(a + n - b) : (unsigned)GRAIN;
    return (uint8_t)((1u << to) - (1u << from));
}
static void begin_cell(cell *k, bool shared) {
    if (!shared || k->block == block_number) return;
    memset(k, 0, sizeof *k);
    k->block = block_number;
}
static void see(cell *k, const who &now, bool write, bool shared, const void *address) {
    begin_cell(k, shared);
    if (shared && k->landing & now.mask)
        report(write ? "write over a cp.async on its way" : "read before the wait for cp.async", now.where, address, 0, 0);
    else if (shared && !write && (k->written & now.mask) != now.mask)
        report("read of shared memory nobody wrote", now.where, address, 0, 0);
    if (k->write.mask & now.mask && !(k->write.atomic && now.atomic) && !ordered(k->write, now, false))
        report(write ? "race: write" : "race: read", now.where, address, &k->write, "written");
    if (!write) {
        bool same_warp = k->reads[0].block == now.block && k->reads[0].thread / 32 == now.thread / 32;
        if (!same_warp) k->reads[1] = k->reads[0];
        k->reads[0] = now;
        return;
    }
    for (const who &r : k->reads)
        if (r.mask & now.mask && !(r.atomic && now.atomic) && !ordered(r, now, true))
            report("race: write", now.where, address, &r, "read");
    k->write = now;
    k->written |= now.mask;
}
static bool inside(uintptr_t a, const unsigned char *from, const unsigned char *to) {
    return a >= (uintptr_t)from && a < (uintptr_t)to;
}
extern "C" char __executable_start, _end; /* the linker's: constants of the program */
static void access(const void *p, size_t n, bool write, bool atomic, place where) {
    const emu_thread *t = emu_cur;
    uintptr_t a = (uintptr_t)p;
    if (!t || !launch || inside(a, emu_at.threads, emu_at.threads_end)) return;
    bool shared = inside(a, emu_at.shared, emu_at.shared_end);
    if (!shared && !inside(a, emu_at.device, emu_at.device_end)) {
        bool known = inside(a, (unsigned char *)&__executable_start, (unsigned char *)&_end) || p == (void *)&emu_cur;
        if (!inside(a, emu_at.closure, emu_at.closure_end) && (write || !known))
            report(write ? "write to the host's memory" : "read of the host's memory", where, p, 0, 0);
        return;
    }
    if (!shared && !emu_device_holds(p, n)) {
        report(write ? "out of bounds: write" : "out of bounds: read", where, p, 0, 0);
        return;
    }
    if (profiled_block) {
        instruction &i = instructions[{where, t->index / 32, t->meet_epoch, shared}];
        i.lanes[t->lane].push_back(a);
        i.bytes = (unsigned)n;
        i.write = write;
        i.shared = shared;
    }
    who now = here(where, atomic);
    for (uintptr_t b = a & ~(uintptr_t)(GRAIN - 1); b < a + n; b += GRAIN) {
        now.mask = bytes_in(b, a, n);
        see(cells_at(b, shared), now, write, shared, p);
    }
}

/* ---- what the emulator tells ---- */
static void on_launch(const emu_launch *l) {
    launch = l;
    first_block = block_number + 1;
    if (shared_cells) return;
    shared_cells = new_cells((size_t)(emu_at.shared_end - emu_at.shared) / GRAIN);
    size_t pages = (size_t)(emu_at.device_end - emu_at.device) / PAGE;
    device_pages = (cell **)mmap(0, pages * sizeof(cell *), PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}
static void on_block(const emu_thread *first) {
    block_number++;
    memset(clocks, 0, sizeof clocks);
    for (int w = 0; w < 32; w++) clocks[w][w] = 1;
    profiled_block = profile && !first->bid.x && !first->bid.y && !first->bid.z;
}
static void on_block_end() {
    if (profiled_block) add_costs();
    profiled_block = false;
}
static void on_access(const void *p, unsigned bytes, bool write, const void *pc) {
    access(p, bytes, write, false, (place)pc);
}
/* From here until it lands, the copy may write its destination. */
static void on_copy_begin(const emu_copy *c) {
    if (c->read) access(c->src, (size_t)c->read, false, false, (place)c->pc);
    access(c->dst, (size_t)c->size, true, false, (place)c->pc);
    for (int i = 0; i < c->size; i += (int)GRAIN) cells_at((uintptr_t)c->dst + (uintptr_t)i, true)->landing = 15;
}
static void on_copy_land(const emu_copy *c) {
    who now = here((place)c->pc, false);
    now.mask = 15;
    for (int i = 0; i < c->size; i += (int)GRAIN) {
        cell *k = cells_at((uintptr_t)c->dst + (uintptr_t)i, true);
        k->landing = 0;
        see(k, now, true, true, c->dst);
    }
}
static const emu_checker checker = {on_launch, on_block, on_block_end, on_barrier, on_access, on_copy_begin, on_copy_land};

static void finish() {
    if (profile && *profile) write_profile();
    if (!reports) return;
    fprintf(stderr, "emu_check: %u faults\n", reports);
    fflush(0);
    _exit(3);
}
static struct start {
    start() {
        profile = getenv("EMU_PROFILE");
        emu_check = &checker;
        atexit(finish);
    }
} begin_with_the_program;

/* ---- the hooks -fsanitize=thread calls; some by gcc, some by clang ---- */
#define HERE (place) __builtin_return_address(0)
#define ACCESS(n)                                                                                                        \
    void __tsan_read##n(void *p) { access(p, n, false, false, HERE); }                                                   \
    void __tsan_write##n(void *p) { access(p, n, true, false, HERE); }                                                   \
    void __tsan_unaligned_read##n(void *p) { access(p, n, false, false, HERE); }                                         \
    void __tsan_unaligned_write##n(void *p) { access(p, n, true, false, HERE); }                                         \
    void __tsan_read_write##n(void *p) {                                                                                 \
        access(p, n, false, false, HERE);                                                                                \
        access(p, n, true, false, HERE);                                                                                 \
    }
/* The emulator runs one thread at a time: plain accesses are atomic. */
#define ATOMIC(T, bits)                                                                                                  \
    T __tsan_atomic##bits##_load(const volatile T *p, int) {                                                             \
        access((const void *)p, sizeof(T), false, true, HERE);                                                           \
        return *p;                                                                                                       \
    }                                                                                                                    \
    void __tsan_atomic##bits##_store(volatile T *p, T v, int) {                                                          \
        access((const void *)p, sizeof(T), true, true, HERE);                                                            \
        *p = v;                                                                                                          \
    }                                                                                                                    \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile T *p, T *expected, T v, int, int) {                       \
        access((const void *)p, sizeof(T), true, true, HERE);                                                            \
        bool same = *p == *expected;                                                                                     \
        if (same) *p = v;                                                                                                \
        else *expected = *p;                                                                                             \
        return same;                                                                                                     \
    }                                                                                                                    \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile T *p, T *expected, T v, int, int) {                         \
        access((const void *)p, sizeof(T), true, true, HERE);                                                            \
        bool same = *p == *expected;                                                                                     \
        if (same) *p = v;                                                                                                \
        else *expected = *p;                                                                                             \
        return same;                                                                                                     \
    }                                                                                                                    \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T *p, T expected, T v, int, int) {                             \
        access((const void *)p, sizeof(T), true, true, HERE);                                                            \
        T old = *p;                                                                                                      \
        if (old == expected) *p = v;                                                                                     \
        return old;                                                                                                      \
    }
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *p, unsigned long n) { access(p, n, false, false, HERE); }
void __tsan_write_range(void *p, unsigned long n) { access(p, n, true, false, HERE); }
void *__tsan_memcpy(void *to, const void *from, unsigned long n) {
    access(from, n, false, false, HERE);
    access(to, n, true, false, HERE);
    return memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, unsigned long n) {
    access(from, n, false, false, HERE);
    access(to, n, true, false, HERE);
    return memmove(to, from, n);
}
void *__tsan_memset(void *p, int value, unsigned long n) {
    access(p, n, true, false, HERE);
    return memset(p, value, n);
}
ATOMIC(uint32_t, 32)
ATOMIC(uint64_t, 64)
}
