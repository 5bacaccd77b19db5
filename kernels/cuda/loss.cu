/* Softmax cross entropy over long rows of logits, and its gradient.
 *
 * A block owns a row. One read finds maximum and sum together: whenever a larger logit turns up, the sum so far is
 * scaled down to it (Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018). The gradient is a second
 * read, and may be written where the logits were. V may be odd, so a row is cut where its 16-byte vectors begin:
 *
 *   0 .. head      single elements, at most 3
 *   head .. +4*n4  vectors
 *   .. V           single elements, at most 3
 */
#include "kernels/cuda/cuda.h"

namespace {

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int FLIGHT = 4; /* vectors a thread has in flight */

/* Of the logits so far; the sum is of exp(logit - best). best begins below every finite logit: rows may hold -inf. */
struct stats {
    float best, sum;
    int arg;
};

__device__ __forceinline__ float4 load4(const float *x) { return *(const float4 *)x; }
__device__ __forceinline__ void store4(float *y, float4 x) { *(float4 *)y = x; }
__device__ __forceinline__ void store4(bf16 *y, float4 x) {
    *(uint2 *)y = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

__device__ __forceinline__ float4 capped(float4 x, float cap) {
    if (cap <= 0) return x;
    return make_float4(cap * tanhf(x.x / cap), cap * tanhf(x.y / cap), cap * tanhf(x.z / cap), cap * tanhf(x.w / cap));
}
__device__ __forceinline__ float capped(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }

__device__ __forceinline__ void see(stats &s, float x, int at) {
    if (x > s.best) s.sum *= expf(s.best - x), s.best = x, s.arg = at;
    s.sum += expf(x - s.best);
}

__device__ __forceinline__ void see(stats &s, float4 x, int at) {
    float top = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
    if (top > s.best) {
        s.sum *= expf(s.best - top);
        s.best = top;
        s.arg = at + (x.x == top ? 0 : x.y == top ? 1 : x.z == top ? 2 : 3);
    }
    s.sum += (expf(x.x - s.best) + expf(x.y - s.best)) + (expf(x.z - s.best) + expf(x.w - s.best));
}

/* The same bits whichever side is x: only the smaller one is scaled. */
__device__ __forceinline__ stats merged(stats x, stats y) {
    if (y.best > x.best || (y.best == x.best && y.arg < x.arg)) {
        stats z = x;
        x = y, y = z;
    }
    x.sum += y.sum * expf(y.best - x.best);
    return x;
}

__device__ __forceinline__ stats merged_over(stats s, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) {
        stats other;
        other.best = __shfl_xor_sync(0xffffffffu, s.best, step);
        other.sum = __shfl_xor_sync(0xffffffffu, s.sum, step);
        other.arg = __shfl_xor_sync(0xffffffffu, s.arg, step);
        s = merged(s, other);
    }
    return s;
}

/* Every thread gets the whole row's. A barrier: every logit has been read. */
__device__ __forceinline__ stats merged_over_block(stats s) {
    SHARED(float, best, [WARPS]);
    SHARED(float, sum, [WARPS]);
    SHARED(int, arg, [WARPS]);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    s = merged_over(s, 32);
    if (lane == 0) best[warp] = s.best, sum[warp] = s.sum, arg[warp] = s.arg;
    __syncthreads();
    s.best = best[lane % WARPS], s.sum = sum[lane % WARPS], s.arg = arg[lane % WARPS];
    return merged_over(s, WARPS);
}

/* Slope of the cap times (softmax - onehot) of one element. */
__device__ __forceinline__ float slope_at(float x, int at, int target, float best, float scale, float cap) {
    float t = cap > 0 ? tanhf(x / cap) : 0;
    float p = expf((cap > 0 ? cap * t : x) - best) * scale;
    return (at == target ? p - 1 : p) * (1 - t * t);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
xent_kernel(float *loss, float *lse, int32_t *argmax, T *dlogits, const float *logits, const int32_t *targets, int V,
            float cap) {
    const int64_t row = blockIdx.x;
    const float *x = logits + row * V;
    int head = (int)(-(uintptr_t)x / sizeof(float) & 3);
    if (head > V) head = V;
    const int n4 = (V - head) / 4, end = head + 4 * n4, me = threadIdx.x;
    const int target = targets[row];
    const float at_target = capped(x[target], cap);

    stats s = {-3.402823466e38f, 0, 0};
    if (me < head) see(s, capped(x[me], cap), me);
    for (int first = me; first < n4; first += FLIGHT * THREADS) {
        float4 v[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            if (first + k * THREADS < n4) v[k] = load4(x + head + 4 * (first + k * THREADS));
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            if (first + k * THREADS < n4) see(s, capped(v[k], cap), head + 4 * (first + k * THREADS));
    }
    if (me < V - end) see(s, capped(x[end + me], cap), end + me);
    s = merged_over_block(s);

    if (me == 0) {
        loss[row] = logf(s.sum) - (at_target - s.best);
        if (lse) lse[row] = s.best + logf(s.sum);
        if (argmax) argmax[row] = s.arg;
    }
    if (!dlogits) return;
    T *dx = dlogits + row * V;
    const float scale = 1 / s.sum;
    const bool whole = ((uintptr_t)(dx + head) & (4 * sizeof(T) - 1)) == 0;
    if (me < head) from_f32(dx[me], slope_at(x[me], me, target, s.best, scale, cap));
    for (int first = me; first < n4; first += FLIGHT * THREADS) {
        float4 v[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            if (first + k * THREADS < n4) v[k] = load4(x + head + 4 * (first + k * THREADS));
#pragma unroll
        for (int k = 0; k < FLIGHT; k++) {
            int at = head + 4 * (first + k * THREADS);
            if (at >= end) break;
            float4 g = make_float4(slope_at(v[k].x, at, target, s.best, scale, cap),
                                   slope_at(v[k].y, at + 1, target, s.best, scale, cap),
                                   slope_at(v[k].z, at + 2, target, s.best, scale, cap),
                                   slope_at(v[k].w, at + 3, target, s.best, scale, cap));
            if (whole) store4(dx + at, g);
            else from_f32(dx[at], g.x), from_f32(dx[at + 1], g.y), from_f32(dx[at + 2], g.z), from_f32(dx[at + 3], g.w);
        }
    }
    if (me < V - end) from_f32(dx[end + me], slope_at(x[end + me], end + me, target, s.best, scale, cap));
}

} // namespace

extern "C" nb_status NB_GPU(xent)(nb_dev *d, float *loss, float *lse, int32_t *argmax, nb_elem *dlogits, float *logits,
                                  const int32_t *target, int64_t n, int64_t V, float cap) {
    NB_ASSERT(V > 0 && V < INT32_MAX / 2);
    if (n == 0) return NB_OK;
    if (d->elem == NB_BF16)
        LAUNCH(xent_kernel<bf16>, (unsigned)n, THREADS, 0, gpu_stream(d), loss, lse, argmax, (bf16 *)dlogits,
               (const float *)logits, target, (int)V, cap);
    else
        LAUNCH(xent_kernel<float>, (unsigned)n, THREADS, 0, gpu_stream(d), loss, lse, argmax, (float *)dlogits,
               (const float *)logits, target, (int)V, cap);
    return gpu_launched(d, "xent");
}
