/* Products with one size of at most 64, the rank of an adapter. They are bound by the bandwidth of their large
 * matrix, which is read (written) once; the small operand may be F32 and is rounded to bf16 on its way into shared
 * memory.
 *
 *      narrow: c[M,N], N <= 64:        x A^T, dy B, dy^T xa and, with the sides exchanged, dxa^T x
 *      short:  c[M,N], K <= 64:        y += s xa B^T, dx += dxa A
 *
 * narrow sums a long K in parts, so that enough blocks read at once, and a second kernel adds the parts in order.
 * Sizes decide on the parts, so the sum's order depends on them alone. */
#include "kernels/cuda/products.h"
#include "kernels/cuda/tile.h"

namespace {

enum { THIN = 64 }; /* the most a thin size may be */

/* The small operand: O x K elements (o, k). kc: k is contiguous, and tiles of it are KC (tile.h); else o is. */
struct small {
    const void *p;
    int64_t ld, O, K;
    bool f32, kc;
};
static inline small small_of(const nb_mat &m, bool kc, int64_t O, int64_t K) {
    return {m.p, m.ld, O, K, m.dtype == NB_F32, kc};
}

/* A thread's share of H (outer) x W (k) elements: read now, written into the tile later. Threads of a warp read
 * neighbouring elements, and the tile is laid out as the operand is: rows (of o or k) of `width` elements. A thread
 * has one column of them and every THREADS / width-th row. */
template <int H, int W, int THREADS> struct staged {
    static_assert(H * W % THREADS == 0 && THREADS % H == 0 && THREADS % W == 0, "the same column in every row");
    uint32_t bits[H * W / THREADS]; /* as they lie in memory: nothing waits for them before `write` */
    __device__ __forceinline__ void read(const small &s, int64_t o0, int64_t k0) {
        const int width = s.kc ? W : H, row = threadIdx.x / width, col = threadIdx.x % width, apart = THREADS / width;
        const int64_t row0 = (s.kc ? o0 : k0) + row, col0 = (s.kc ? k0 : o0) + col;
        /* rows left from this thread's first */
        const int64_t rows = col0 < (s.kc ? s.K : s.O) ? (s.kc ? s.O : s.K) - row0 : 0;
        int64_t at = row0 * s.ld + col0;
#pragma unroll
        for (int i = 0; i < H * W / THREADS; i++, at += apart * s.ld) {
            bits[i] = 0;
            if (i * apart < rows) bits[i] = s.f32 ? ((const uint32_t *)s.p)[at] : ((const uint16_t *)s.p)[at];
        }
    }
    __device__ __forceinline__ void write(bf16 *tile, const small &s) const {
#pragma unroll
        for (int i = 0; i < H * W / THREADS; i++) {
            const int at = i * THREADS + threadIdx.x;
            const float v = __uint_as_float(s.f32 ? bits[i] : bits[i] << 16);
            if (s.kc) tile_at<W>(tile, at / W, at % W / 8)[at % 8] = __float2bfloat16(v);
            else tile_at<H>(tile, at / H, at % H / 8)[at % 8] = __float2bfloat16(v);
        }
    }
};

/* ---- narrow ---- */

enum { NARROW_ROWS = 64, NARROW_STEP = 64, NARROW_BIG = NARROW_ROWS * NARROW_STEP };
template <int BN> constexpr int NARROW_THREADS = BN == 16 ? 128 : 256;
template <int BN> constexpr int NARROW_STAGES = BN == 16 ? 4 : 3;
template <int BN> constexpr size_t NARROW_SHARED = sizeof(bf16) * NARROW_STAGES<BN> * (NARROW_BIG + BN * NARROW_STEP);

/* Sums of 64 rows m, all n and part blockIdx.y of K go to `part`, laid out [part][m][n] or, as `turned`,
 * [part][n][m]; where there is one part alone, straight to c. A warp has 16 rows and all n, or 32 of 64. BIGT: big
 * is stored [K,M]. */
template <bool BIGT, int BN>
__global__ void __launch_bounds__(NARROW_THREADS<BN>, BN == 16 ? 4 : 2)
narrow_kernel(output c, float *part, operand big, small y, int64_t M, int64_t N, int64_t part_k, bool turned) {
    constexpr int THREADS = NARROW_THREADS<BN>, STAGES = NARROW_STAGES<BN>, STAGE = NARROW_BIG + BN * NARROW_STEP;
    constexpr int NT = BN / 8 / (THREADS / 128);
    SHARED_DYN(bf16, tiles); /* STAGES times big's tile, small's tile */
    const int warp = threadIdx.x / 32, wm = warp % 4 * 16, wn = warp / 4 * 32;
    const int64_t m0 = (int64_t)blockIdx.x * NARROW_ROWS, k0 = blockIdx.y * part_k;
    const int64_t span = y.K - k0 < part_k ? y.K - k0 : part_k;
    const int steps = (int)((span + NARROW_STEP - 1) / NARROW_STEP);
    staged<BN, NARROW_STEP, THREADS> ahead;
    auto load = [&](int step) { /* big's tile is under way, small's in registers */
        const int64_t k = k0 + (int64_t)step * NARROW_STEP;
        bf16 *to = tiles + step % STAGES * STAGE;
        if (step < steps) {
            ahead.read(y, 0, k);
            if (BIGT) tile_load<NARROW_STEP, NARROW_ROWS, THREADS>(to, big, k, m0);
            else tile_load<NARROW_ROWS, NARROW_STEP, THREADS>(to, big, m0, k);
        }
        cp_async_commit();
    };
    float acc[NT][4];
#pragma unroll
    for (int i = 0; i < NT * 4; i++) (&acc[0][0])[i] = 0;
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        load(s);
        if (s < steps) ahead.write(tiles + s * STAGE + NARROW_BIG, y);
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* this step's tiles are there, and everyone is done with the last step's */
        load(step + STAGES - 1);
        bf16 *tb = tiles + step % STAGES * STAGE, *ts = tb + NARROW_BIG;
#pragma unroll
        for (int k = 0; k < NARROW_STEP; k += 16) {
            uint32_t a[4], b[NT / 2][4];
            tile_left<!BIGT, 64>(a, tb, wm, k);
#pragma unroll
            for (int j = 0; j < NT / 2; j++) {
                if (y.kc) tile_right<true, NARROW_STEP>(b[j], ts, wn + 16 * j, k);
                else tile_right<false, BN>(b[j], ts, wn + 16 * j, k);
            }
#pragma unroll
            for (int j = 0; j < NT; j++) mma_m16n8k16_bf16(acc[j], a, b[j / 2] + j % 2 * 2, acc[j]);
        }
        if (step + STAGES - 1 < steps) ahead.write(tiles + (step + STAGES - 1) % STAGES * STAGE + NARROW_BIG, y);
    }
    cp_async_wait<0>();
    __syncthreads();
    /* through shared memory, [m][n] or [n][m], so that neighbouring threads write neighbouring elements */
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    constexpr int PITCH_N = BN + 8, PITCH_M = NARROW_ROWS + 4; /* pitches without bank conflicts */
    float *sums = (float *)tiles;
#pragma unroll
    for (int i = 0; i < NT * 2; i++) {
        const int m = wm + g + 8 * (i % 2), n = wn + 8 * (i / 2) + 2 * q;
        const float v0 = acc[i / 2][i % 2 * 2], v1 = acc[i / 2][i % 2 * 2 + 1];
        if (turned) sums[n * PITCH_M + m] = v0, sums[(n + 1) * PITCH_M + m] = v1;
        else *(float2 *)(sums + m * PITCH_N + n) = make_float2(v0, v1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < NARROW_ROWS * BN; i += THREADS) {
        const int m = turned ? i % NARROW_ROWS : i / BN, n = turned ? i / NARROW_ROWS : i % BN;
        if (m0 + m >= M || n >= N) continue;
        const float sum = turned ? sums[n * PITCH_M + m] : sums[m * PITCH_N + n];
        if (gridDim.y == 1) put(c, turned ? n * c.ld + m0 + m : (m0 + m) * c.ld + n, sum);
        else part[blockIdx.y * M * N + (turned ? n * M + m0 + m : (m0 + m) * N + n)] = sum;
    }
}

/* c = alpha * the parts, added in order, + beta * c. */
__global__ void __launch_bounds__(256) parts_kernel(output c, const float *part, int parts) {
    const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x, size = c.M * c.N;
    if (i >= size) return;
    float sum = 0;
#pragma unroll 4
    for (int p = 0; p < parts; p++) sum += part[p * size + i];
    put(c, i / c.N * c.ld + i % c.N, sum);
}

enum { PART_LEAST = 512, BLOCKS = 512 }; /* k of a part at least; blocks beyond which parts only cost */

/* Parts of a K with this many rows of the large matrix; *part_k: length of all but the last. */
int64_t narrow_parts(int64_t rows, int64_t K, int64_t *part_k) {
    const int64_t blocks = (rows + NARROW_ROWS - 1) / NARROW_ROWS;
    int64_t most = BLOCKS / blocks, parts = (K + PART_LEAST - 1) / PART_LEAST;
    if (parts > most) parts = most;
    if (parts < 1) parts = 1;
    *part_k = ((K + parts - 1) / parts + NARROW_STEP - 1) / NARROW_STEP * NARROW_STEP;
    return (K + *part_k - 1) / *part_k;
}

template <bool BIGT, int BN>
void launch_narrow(nb_dev *d, dim3 grid, const output &c, float *part, const operand &big, const small &y, int64_t M,
                   int64_t N, int64_t part_k, bool turned) {
    LAUNCH((narrow_kernel<BIGT, BN>), grid, NARROW_THREADS<BN>, NARROW_SHARED<BN>, gpu_stream(d), c, part, big, y, M, N,
           part_k, turned);
}

/* turned: c is stored [N,M]. big: op is [M,K]; y: op is [K,N]. */
nb_status narrow(nb_dev *d, const output &c, nb_mat big, nb_mat y, int64_t M, int64_t N, int64_t K, bool turned) {
    int64_t part_k, parts = narrow_parts(M, K, &part_k);
    float *part = parts > 1 ? (float *)gpu_ws(d, sizeof(float) * (size_t)(parts * M * N)) : NULL;
    const dim3 grid((unsigned)((M + NARROW_ROWS - 1) / NARROW_ROWS), (unsigned)parts);
    const operand ob = operand_of(big, M, K);
    const small sy = small_of(y, y.t, N, K);
    if (big.t && N <= 16) launch_narrow<true, 16>(d, grid, c, part, ob, sy, M, N, part_k, turned);
    else if (big.t) launch_narrow<true, 64>(d, grid, c, part, ob, sy, M, N, part_k, turned);
    else if (N <= 16) launch_narrow<false, 16>(d, grid, c, part, ob, sy, M, N, part_k, turned);
    else launch_narrow<false, 64>(d, grid, c, part, ob, sy, M, N, part_k, turned);
    if (parts > 1) {
        NB_TRY(gpu_launched(d, "thin"));
        LAUNCH(parts_kernel, (unsigned)((M * N + 255) / 256), 256, 0, gpu_stream(d), c, part, (int)parts);
    }
    return gpu_launched(d, "thin");
}

/* ---- short ---- */

enum { SHORT_THREADS = 256, SHORT_M = 64, SHORT_N = 128, SHORT_WARPS_N = 4 };
constexpr size_t SHORT_SHARED = sizeof(bf16) * (SHORT_M + SHORT_N) * THIN;
static_assert(sizeof(float) * SHORT_THREADS / 32 * OUT_STAGE<4> <= SHORT_SHARED, "sums leave through the same memory");

/* BK: K rounded up to 16 or 64. A block has 64 x 128 of c, a warp 32 x 32. */
template <int BK> __global__ void __launch_bounds__(SHORT_THREADS) short_kernel(output c, small x, small y) {
    SHARED_DYN(bf16, tx);
    bf16 *ty = tx + SHORT_M * THIN;
    const int warp = threadIdx.x / 32, wm = warp / SHORT_WARPS_N * 32, wn = warp % SHORT_WARPS_N * 32;
    const int64_t n_blocks = (c.N + SHORT_N - 1) / SHORT_N;
    const int64_t m0 = blockIdx.x / n_blocks * SHORT_M, n0 = blockIdx.x % n_blocks * SHORT_N;
    staged<SHORT_M, BK, SHORT_THREADS> sx;
    staged<SHORT_N, BK, SHORT_THREADS> sy;
    sx.read(x, m0, 0);
    sy.read(y, n0, 0);
    sx.write(tx, x);
    sy.write(ty, y);
    __syncthreads();
    float acc[2][4][4];
#pragma unroll
    for (int i = 0; i < 32; i++) (&acc[0][0][0])[i] = 0;
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
        uint32_t a[2][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (x.kc) tile_left<true, BK>(a[i], tx, wm + 16 * i, k);
            else tile_left<false, SHORT_M>(a[i], tx, wm + 16 * i, k);
            if (y.kc) tile_right<true, BK>(b[i], ty, wn + 16 * i, k);
            else tile_right<false, SHORT_N>(b[i], ty, wn + 16 * i, k);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) mma_m16n8k16_bf16(acc[i][j], a[i], b[j / 2] + j % 2 * 2, acc[i][j]);
    }
    __syncthreads();
    tile_out<2, 4>(c, (float *)tx + warp * OUT_STAGE<4>, acc, m0 + wm, n0 + wn);
}

nb_status short_product(nb_dev *d, const output &c, nb_mat x, nb_mat y, int64_t K) {
    const int64_t blocks = ((c.M + SHORT_M - 1) / SHORT_M) * ((c.N + SHORT_N - 1) / SHORT_N);
    const small sx = small_of(x, !x.t, c.M, K), sy = small_of(y, y.t, c.N, K);
    if (K <= 16) LAUNCH(short_kernel<16>, (unsigned)blocks, SHORT_THREADS, SHORT_SHARED, gpu_stream(d), c, sx, sy);
    else LAUNCH(short_kernel<THIN>, (unsigned)blocks, SHORT_THREADS, SHORT_SHARED, gpu_stream(d), c, sx, sy);
    return gpu_launched(d, "thin");
}

/* Which of the two, and which operand is the large one. */
enum shape { SHORT, NARROW_X, NARROW_Y, NEITHER };
shape shape_of(const nb_dev *d, const nb_mat &x, const nb_mat &y, int64_t M, int64_t N, int64_t K) {
    if (d->compute != NB_BF16) return NEITHER;
    if (K <= THIN) return SHORT;
    if (N <= THIN && x.dtype == NB_BF16) return NARROW_X;
    return M <= THIN && y.dtype == NB_BF16 ? NARROW_Y : NEITHER;
}

} /* namespace */

extern "C" bool NB_GPU(thin_fits)(const nb_dev *d, nb_mat, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K) {
    return shape_of(d, x, y, M, N, K) != NEITHER;
}

extern "C" size_t NB_GPU(thin_ws)(const nb_dev *d, int64_t M, int64_t N, int64_t K) {
    if (d->compute != NB_BF16 || K <= PART_LEAST) return 0;
    const int64_t rows = M > N ? M : N, parts = (K + PART_LEAST - 1) / PART_LEAST;
    int64_t blocks = (rows + NARROW_ROWS - 1) / NARROW_ROWS * parts;
    if (blocks > BLOCKS) blocks = BLOCKS;
    return sizeof(float) * (size_t)(blocks * NARROW_ROWS * THIN);
}

extern "C" nb_status NB_GPU(thin)(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha,
                                  float beta) {
    if (M <= 0 || N <= 0) return NB_OK;
    const output to = output_of(c, M, N, alpha, beta);
    const shape how = shape_of(d, x, y, M, N, K);
    NB_ASSERT(how != NEITHER);
    if (how == SHORT) return short_product(d, to, x, y, K);
    if (how == NARROW_X) return narrow(d, to, x, y, M, N, K, false);
    x.t = !x.t, y.t = !y.t; /* c^T = y^T x^T */
    return narrow(d, to, y, x, N, M, K, true);
}
