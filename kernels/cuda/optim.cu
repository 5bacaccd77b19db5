/* The gradient's norm and the optimizer's update. The norm stays on the device: sum_squares leaves it in nb_update,
 * where the update's blocks find it and work out clipping, or that nothing may be changed. */
#include "kernels/cuda/cuda.h"
#include "kernels/state8.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int MAX_PARTS = 1024;   /* of sum_squares; fixed by n alone, so that every card adds in the same order */
constexpr int PART = 4096;        /* elements of a part, at least */

/* ---- sum of squares ---- */

/* The whole block's sum, in lane 0 of warp 0. */
__device__ __forceinline__ double added_over_block(double x) {
    SHARED(double, of_warp, [WARPS]);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    x = lane < WARPS ? of_warp[lane] : 0;
    for (int step = WARPS / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ double square(float x) { return (double)x * (double)x; }

__global__ void __launch_bounds__(THREADS) sum_parts(double *part, const float *x, int64_t n) {
    const int64_t me = (int64_t)blockIdx.x * THREADS + threadIdx.x, all = (int64_t)gridDim.x * THREADS;
    const int64_t n4 = ((uintptr_t)x & 15) == 0 ? n / 4 : 0;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = me; i < n4; i += all) {
        float4 v = ((const float4 *)x)[i];
        sum += (square(v.x) + square(v.y)) + (square(v.z) + square(v.w));
    }
    for (int64_t i = 4 * n4 + me; i < n; i += all) sum += square(x[i]);
    sum = added_over_block(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) add_parts(nb_update *u, const double *part, int n) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += part[i];
    sum = added_over_block(sum);
    if (threadIdx.x == 0) u->sum_squares = sum;
}

/* ---- AdamW ---- */

/* A step's numbers as kernels/cpu/optim.c has them, derived in double: p*shrink - rate*m / (sqrt(v)/root + eps). */
struct step_scalars {
    float shrink, rise1, beta2, rise2, rate, root, eps, clip;
    int finite; /* no padding behind it: whole structs go through shared memory */
};

__device__ __forceinline__ step_scalars scalars_of(const nb_update *u, float beta1, float beta2, float eps, float wd) {
    const double norm = sqrt(u->sum_squares), lr = u->lr;
    const double clip = u->max_norm > 0 ? u->max_norm / (norm + 1e-6) : 1;
    step_scalars s;
    s.shrink = (float)(1 - lr * (double)wd), s.rate = (float)(lr / u->bias1), s.root = (float)sqrt(u->bias2);
    s.rise1 = (float)(1 - (double)beta1), s.beta2 = beta2, s.rise2 = (float)(1 - (double)beta2), s.eps = eps;
    s.clip = clip < 1 ? (float)clip : 1;
    s.finite = isfinite(u->sum_squares);
    return s;
}

/* One thread works them out for its block. */
__device__ __forceinline__ step_scalars scalars_for_block(const nb_update *u, float beta1, float beta2, float eps,
                                                          float wd) {
    SHARED(step_scalars, shared, [1]);
    if (threadIdx.x == 0) shared[0] = scalars_of(u, beta1, beta2, eps, wd);
    __syncthreads();
    return shared[0];
}

__device__ __forceinline__ void update(float &p, float &m, float &v, float g, const step_scalars &s) {
    g *= s.clip;
    m += (g - m) * s.rise1;
    v = v * s.beta2 + g * g * s.rise2;
    p = p * s.shrink - s.rate * m / (sqrtf(v) / s.root + s.eps);
}

/* Vectors from element `head` on, n4 of them; the elements before and behind one by one. */
__global__ void __launch_bounds__(THREADS)
adamw_kernel(float *p, float *m, float *v, const float *g, int64_t n, int64_t head, int64_t n4, const nb_update *u,
             float beta1, float beta2, float eps, float wd) {
    const step_scalars s = scalars_for_block(u, beta1, beta2, eps, wd);
    const int64_t me = (int64_t)blockIdx.x * THREADS + threadIdx.x, all = (int64_t)gridDim.x * THREADS;
    if (!s.finite) return;
    for (int64_t i = me; i < n4; i += all) {
        float4 *p4 = (float4 *)(p + head) + i, *m4 = (float4 *)(m + head) + i, *v4 = (float4 *)(v + head) + i;
        float4 a = *p4, b = *m4, c = *v4, e = ((const float4 *)(g + head))[i];
        update(a.x, b.x, c.x, e.x, s);
        update(a.y, b.y, c.y, e.y, s);
        update(a.z, b.z, c.z, e.z, s);
        update(a.w, b.w, c.w, e.w, s);
        *p4 = a, *m4 = b, *v4 = c;
    }
    for (int64_t j = me; j < n - 4 * n4; j += all) {
        int64_t i = j < head ? j : j + 4 * n4;
        float a = p[i], b = m[i], c = v[i];
        update(a, b, c, g[i], s);
        p[i] = a, m[i] = b, v[i] = c;
    }
}

/* ---- AdamW with 8-bit state: a warp owns a block of 256 elements, a lane 4 of each half ---- */

constexpr int EACH = NB_STATE8_BLOCK / 32;

struct state8_tables {
    float m[256], v[256], m_middle[256], v_middle[256];
};

__device__ __forceinline__ void fill_tables(state8_tables &t) {
    for (int k = threadIdx.x; k < 256; k += THREADS) {
        t.m[k] = nb_state8_level(k, true), t.v[k] = nb_state8_level(k, false);
        t.m_middle[k] = k < 255 ? nb_state8_middle(k, true) : 1;
        t.v_middle[k] = k < 255 ? nb_state8_middle(k, false) : 1;
    }
    __syncthreads();
}

/* Element j of this lane's, in a block. */
__device__ __forceinline__ int place(int j) { return j / 4 * (NB_STATE8_BLOCK / 2) + threadIdx.x % 32 * 4 + j % 4; }

__device__ __forceinline__ float largest_of_warp(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ __forceinline__ void load_floats(float *to, const float *from, int64_t n, bool whole) {
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
        if (whole) {
            float4 x = *(const float4 *)(from + place(j));
            to[j] = x.x, to[j + 1] = x.y, to[j + 2] = x.z, to[j + 3] = x.w;
        } else {
            for (int k = j; k < j + 4; k++) to[k] = place(k) < n ? from[place(k)] : 0;
        }
    }
}

__device__ __forceinline__ void load_state(float *to, const uint8_t *from, const float *level, float absmax, int64_t n,
                                           bool whole) {
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
        uint32_t bytes = whole ? *(const uint32_t *)(from + place(j)) : 0;
        for (int k = 0; k < 4; k++) {
            int byte = whole ? bytes >> 8 * k & 255 : place(j + k) < n ? from[place(j + k)] : 0;
            to[j + k] = level[byte] * absmax;
        }
    }
}

__device__ __forceinline__ void store_state(uint8_t *to, const int *bytes, int64_t n, bool whole) {
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
        if (whole)
            *(uint32_t *)(to + place(j)) = (uint32_t)bytes[j] | (uint32_t)bytes[j + 1] << 8 |
                                           (uint32_t)bytes[j + 2] << 16 | (uint32_t)bytes[j + 3] << 24;
        else
            for (int k = j; k < j + 4; k++)
                if (place(k) < n) to[place(k)] = (uint8_t)bytes[k];
    }
}

__device__ __forceinline__ void store_floats(float *to, const float *from, int64_t n, bool whole) {
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
        if (whole) *(float4 *)(to + place(j)) = make_float4(from[j], from[j + 1], from[j + 2], from[j + 3]);
        else
            for (int k = j; k < j + 4; k++)
                if (place(k) < n) to[place(k)] = from[k];
    }
}

__global__ void __launch_bounds__(THREADS, 2)
adamw8_kernel(float *p, uint8_t *m8, uint8_t *v8, float *m_absmax, float *v_absmax, const float *g, int64_t n,
              bool aligned, const nb_update *u, float beta1, float beta2, float eps, float wd) {
    SHARED(state8_tables, tables, [1]);
    const state8_tables &t = tables[0];
    const step_scalars s = scalars_for_block(u, beta1, beta2, eps, wd);
    if (!s.finite) return;
    fill_tables(tables[0]);
    const int64_t blocks = (n + NB_STATE8_BLOCK - 1) / NB_STATE8_BLOCK, all = (int64_t)gridDim.x * WARPS;
    for (int64_t b = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; b < blocks; b += all) {
        const int64_t at = b * NB_STATE8_BLOCK, left = n - at;
        const bool whole = aligned && left >= NB_STATE8_BLOCK;
        float x[EACH], m[EACH], v[EACH], dx[EACH], m_top = 0, v_top = 0;
        int byte[EACH];
        load_floats(x, p + at, left, whole);
        load_floats(dx, g + at, left, whole);
        load_state(m, m8 + at, t.m, m_absmax[b], left, whole);
        load_state(v, v8 + at, t.v, v_absmax[b], left, whole);
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            update(x[j], m[j], v[j], dx[j], s);
            if (place(j) < left) m_top = fmaxf(m_top, fabsf(m[j])), v_top = fmaxf(v_top, v[j]);
        }
        store_floats(p + at, x, left, whole);
        m_top = largest_of_warp(m_top), v_top = largest_of_warp(v_top);
#pragma unroll
        for (int j = 0; j < EACH; j++) byte[j] = nb_state8_put_m(t.m_middle, m[j], m_top);
        store_state(m8 + at, byte, left, whole);
#pragma unroll
        for (int j = 0; j < EACH; j++) byte[j] = nb_state8_put_v(t.v_middle, v[j], v_top);
        store_state(v8 + at, byte, left, whole);
        if (threadIdx.x % 32 == 0) m_absmax[b] = m_top, v_absmax[b] = v_top;
    }
}

/* Enough blocks to fill the card, each with work for every thread. */
unsigned blocks_for(const nb_dev *d, int64_t blocks_of_work) {
    int64_t most = (int64_t)((const nb_gpu *)d->impl)->sms * 8;
    return (unsigned)(blocks_of_work < 1 ? 1 : blocks_of_work < most ? blocks_of_work : most);
}

} // namespace

extern "C" nb_status NB_GPU(sum_squares)(nb_dev *d, nb_update *u, const float *x, int64_t n) {
    int64_t parts = (n + PART - 1) / PART;
    parts = parts < 1 ? 1 : parts < MAX_PARTS ? parts : MAX_PARTS;
    double *part = (double *)gpu_ws(d, MAX_PARTS * sizeof(double));
    LAUNCH(sum_parts, (unsigned)parts, THREADS, 0, gpu_stream(d), part, x, n);
    NB_TRY(gpu_launched(d, "sum_squares: parts"));
    LAUNCH(add_parts, 1, THREADS, 0, gpu_stream(d), u, (const double *)part, (int)parts);
    return gpu_launched(d, "sum_squares");
}

extern "C" nb_status NB_GPU(adamw)(nb_dev *d, float *p, float *m, float *v, const float *g, int64_t n,
                                   const nb_update *u, float beta1, float beta2, float eps, float wd) {
    if (n == 0) return NB_OK;
    const uintptr_t at = (uintptr_t)p & 15;
    const bool alike = ((uintptr_t)m & 15) == at && ((uintptr_t)v & 15) == at && ((uintptr_t)g & 15) == at;
    int64_t head = (int64_t)((16 - at) % 16 / sizeof(float));
    if (!alike || head > n) head = n;
    const int64_t n4 = (n - head) / 4;
    LAUNCH(adamw_kernel, blocks_for(d, (n + 4 * THREADS - 1) / (4 * THREADS)), THREADS, 0, gpu_stream(d), p, m, v, g, n,
           head, n4, u, beta1, beta2, eps, wd);
    return gpu_launched(d, "adamw");
}

extern "C" nb_status NB_GPU(adamw8)(nb_dev *d, float *p, uint8_t *m, uint8_t *v, float *m_absmax, float *v_absmax,
                                    const float *g, int64_t n, const nb_update *u, float beta1, float beta2, float eps,
                                    float wd) {
    if (n == 0) return NB_OK;
    const bool aligned = (((uintptr_t)p | (uintptr_t)g) & 15) == 0 && (((uintptr_t)m | (uintptr_t)v) & 3) == 0;
    LAUNCH(adamw8_kernel, blocks_for(d, (n + THREADS * EACH - 1) / (THREADS * EACH)), THREADS, 0, gpu_stream(d), p, m,
           v, m_absmax, v_absmax, g, n, aligned, u, beta1, beta2, eps, wd);
    return gpu_launched(d, "adamw8");
}
