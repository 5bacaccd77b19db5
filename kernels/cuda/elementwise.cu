/* Element by element: gated activations, additions, biases, fills, dropout. Each tensor is read and written once. */
#include "kernels/cuda/vec.h"

#include "core/rng.h"

namespace {

enum { THREADS = 256 };

/* 1/(1 + e^-x), within 3 ulp; 0 where the quotient would be smaller than a float. */
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

/* x := act(x), and its derivative at x. */
__device__ __forceinline__ void activate(float &x, float &slope, nb_act act) {
    if (act == NB_ACT_SILU) {
        float s = sigmoid(x);
        slope = s * (1 + x * (1 - s));
        x *= s;
    } else if (act == NB_ACT_GELU_TANH) { /* (1 + tanh(u)) / 2 = sigmoid(2u) does not cancel where it is small */
        const float k = 2 * 0.7978845608f, cube = 0.044715f;
        float z = x * x, s = sigmoid(k * x * (1 + cube * z));
        slope = s + x * s * (1 - s) * k * (1 + 3 * cube * z);
        x *= s;
    } else if (act == NB_ACT_GELU_ERF) {
        float cdf = 0.5f * erfcf(x * -0.7071067812f);
        slope = cdf + x * 0.3989422804f * expf(-0.5f * x * x);
        x *= cdf;
    } else {
        slope = x > 0 ? 1 : 0;
        x = x > 0 ? x : x * 0; /* NaN stays */
    }
}

template <class T, int N>
__global__ void glu_fwd_kernel(T *y, const T *gate, const T *up, int64_t n, nb_act act) {
    FOR_FLAT(i, N, n) {
        float g[N], u[N], slope;
        load(g, gate + i);
        if (up) load(u, up + i);
        for (int k = 0; k < N; k++) {
            activate(g[k], slope, act);
            u[k] = up ? u[k] * g[k] : g[k];
        }
        store(y + i, u);
    }
}

template <class T, int N>
__global__ void glu_bwd_kernel(T *dgate, float beta_gate, T *dup, float beta_up, const T *dy, const T *gate,
                               const T *up, int64_t n, nb_act act) {
    FOR_FLAT(i, N, n) {
        float g[N], u[N], v[N], slope;
        load(g, gate + i);
        if (up) load(u, up + i);
        load(v, dy + i);
        for (int k = 0; k < N; k++) {
            activate(g[k], slope, act);
            u[k] = (up ? u[k] : 1) * v[k] * slope;
            g[k] *= v[k];
        }
        if (dgate) put(dgate + i, u, beta_gate);
        if (dup) put(dup + i, g, beta_up);
    }
}

template <class T, int N>
__global__ void add_kernel(T *y, const T *x1, const T *x2, int64_t n, float beta) {
    FOR_FLAT(i, N, n) {
        float v[N], u[N];
        load(v, x1 + i);
        if (x2) {
            load(u, x2 + i);
            for (int k = 0; k < N; k++) v[k] += u[k];
        }
        put(y + i, v, beta);
    }
}

template <class T, int N> __global__ void fill_kernel(T *x, float value, int64_t n) {
    float v[N];
    for (int k = 0; k < N; k++) v[k] = value;
    FOR_FLAT(i, N, n) store(x + i, v);
}

template <class T, int N> __global__ void bias_kernel(T *y, const float *bias, int64_t rows, int64_t C) {
    FOR_ROWS(t, rows)
        FOR_GROUPS(c, N, C) {
            float v[N], b[N];
            load(v, y + t * C + c);
            load(b, bias + c);
            for (int k = 0; k < N; k++) v[k] += b[k];
            store(y + t * C + c, v);
        }
}

template <class T, int N>
__global__ void scale_columns_kernel(T *y, const T *x, const float *scale, int64_t rows, int64_t C, float beta) {
    FOR_ROWS(t, rows)
        FOR_GROUPS(c, N, C) {
            float v[N], s[N];
            load(v, x + t * C + c);
            load(s, scale + c);
            for (int k = 0; k < N; k++) v[k] *= s[k];
            put(y + t * C + c, v, beta);
        }
}

/* Neighbouring threads read neighbouring elements of aw; the rows of b and bg are short and stay in the cache. */
__global__ void dora_scale_kernel(float *scale, float *inverse, const float *m, const float *squares, const float *b,
                                  const float *aw, const float *bg, int64_t n, int64_t R, float s) {
    FOR_FLAT(j, 1, n) {
        float sum = 0;
        for (int64_t r = 0; r < R; r++) sum += b[j * R + r] * (2 * aw[r * n + j] + s * bg[j * R + r]);
        inverse[j] = 1 / sqrtf(squares[j] + s * sum);
        scale[j] = m[j] * inverse[j];
    }
}

/* Philox4x32-10, as core/rng.h has it. */
__device__ __forceinline__ void philox(uint32_t out[4], uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint2 key) {
#pragma unroll
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ key.x;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ key.y;
        c3 = (uint32_t)p0;
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

template <class T, int N>
__global__ void dropout_kernel(T *y, const T *x, const uint32_t *sample, const int32_t *pos, int64_t rows, int64_t C,
                               uint2 key, uint32_t site, uint64_t threshold, float scale, float beta) {
    FOR_ROWS(t, rows)
        FOR_GROUPS(c, N, C) {
            float v[N];
            load(v, x + t * C + c);
            for (int k = 0; k < N; k += 4) {
                uint32_t word[4];
                philox(word, (uint32_t)((c + k) / 4), (uint32_t)pos[t], sample[t], site, key);
                if (N == 1) { /* an array indexed at run time would lie in memory */
                    word[0] = c % 4 == 0 ? word[0] : c % 4 == 1 ? word[1] : c % 4 == 2 ? word[2] : word[3];
                }
                for (int j = 0; j < 4 && k + j < N; j++) v[k + j] *= word[j] >= threshold ? scale : 0;
            }
            put(y + t * C + c, v, beta);
        }
}

template <class T>
nb_status glu_fwd(nb_dev *d, nb_elem *y, const nb_elem *gate, const nb_elem *up, int64_t n, nb_act act) {
    if (!n) return NB_OK;
    const int N = group_of<T>(n, y, gate, up);
    auto kernel = N > 1 ? glu_fwd_kernel<T, GROUP<T>> : glu_fwd_kernel<T, 1>;
    LAUNCH(kernel, grid_for(n / N, THREADS), THREADS, 0, gpu_stream(d), (T *)y, (const T *)gate, (const T *)up, n, act);
    return gpu_launched(d, "glu_fwd");
}

template <class T>
nb_status glu_bwd(nb_dev *d, nb_elem *dgate, float beta_gate, nb_elem *dup, float beta_up, const nb_elem *dy,
                  const nb_elem *gate, const nb_elem *up, int64_t n, nb_act act) {
    if (!n || (!dgate && !dup)) return NB_OK;
    const int N = group_of<T>(n, dgate, dup, dy, gate, up);
    auto kernel = N > 1 ? glu_bwd_kernel<T, GROUP<T>> : glu_bwd_kernel<T, 1>;
    LAUNCH(kernel, grid_for(n / N, THREADS), THREADS, 0, gpu_stream(d), (T *)dgate, beta_gate, (T *)dup, beta_up,
           (const T *)dy, (const T *)gate, (const T *)up, n, act);
    return gpu_launched(d, "glu_bwd");
}

template <class T>
nb_status add(nb_dev *d, nb_elem *y, const nb_elem *x1, const nb_elem *x2, int64_t n, float beta) {
    if (!n) return NB_OK;
    const int N = group_of<T>(n, y, x1, x2);
    auto kernel = N > 1 ? add_kernel<T, GROUP<T>> : add_kernel<T, 1>;
    LAUNCH(kernel, grid_for(n / N, THREADS), THREADS, 0, gpu_stream(d), (T *)y, (const T *)x1, (const T *)x2, n, beta);
    return gpu_launched(d, "add");
}

template <class T> nb_status fill(nb_dev *d, void *x, float value, int64_t n) {
    if (!n) return NB_OK;
    const int N = group_of<T>(n, x);
    auto kernel = N > 1 ? fill_kernel<T, GROUP<T>> : fill_kernel<T, 1>;
    LAUNCH(kernel, grid_for(n / N, THREADS), THREADS, 0, gpu_stream(d), (T *)x, value, n);
    return gpu_launched(d, "fill");
}

template <class T, int N> __global__ void clamp_fwd_kernel(T *y, const T *x, int64_t n, float limit) {
    FOR_FLAT(i, N, n) {
        float v[N];
        load(v, x + i);
        for (int k = 0; k < N; k++) v[k] = v[k] > limit ? limit : v[k] < -limit ? -limit : v[k];
        store(y + i, v);
    }
}

template <class T, int N>
__global__ void clamp_bwd_kernel(T *dx, float beta, const T *dy, const T *x, int64_t n, float limit) {
    FOR_FLAT(i, N, n) {
        float g[N], v[N];
        load(g, dy + i);
        load(v, x + i);
        for (int k = 0; k < N; k++) g[k] = v[k] >= -limit && v[k] <= limit ? g[k] : 0;
        put(dx + i, g, beta);
    }
}

template <class T> nb_status clamp_fwd(nb_dev *d, nb_elem *y, const nb_elem *x, int64_t n, float limit) {
    if (!n) return NB_OK;
    const int N = group_of<T>(n, y, x);
    auto kernel = N > 1 ? clamp_fwd_kernel<T, GROUP<T>> : clamp_fwd_kernel<T, 1>;
    LAUNCH(kernel, grid_for(n / N, THREADS), THREADS, 0, gpu_stream(d), (T *)y, (const T *)x, n, limit);
    return gpu_launched(d, "clamp_fwd");
}

template <class T>
nb_status clamp_bwd(nb_dev *d, nb_elem *dx, float beta, const nb_elem *dy, const nb_elem *x, int64_t n, float limit) {
    if (!n) return NB_OK;
    const int N = group_of<T>(n, dx, dy, x);
    auto kernel = N > 1 ? clamp_bwd_kernel<T, GROUP<T>> : clamp_bwd_kernel<T, 1>;
    LAUNCH(kernel, grid_for(n / N, THREADS), THREADS, 0, gpu_stream(d), (T *)dx, beta, (const T *)dy, (const T *)x, n,
           limit);
    return gpu_launched(d, "clamp_bwd");
}

__global__ void softcap_kernel(float *x, int64_t n, float cap) {
    FOR_FLAT(i, 1, n) x[i] = cap * tanhf(x[i] / cap);
}

template <class T> nb_status bias_fwd(nb_dev *d, void *y, const float *bias, int64_t rows, int64_t C) {
    if (!rows || !C) return NB_OK;
    const int N = group_of<T>(C, y, bias);
    const dim3 block = block_for_rows(C / N);
    auto kernel = N > 1 ? bias_kernel<T, GROUP<T>> : bias_kernel<T, 1>;
    LAUNCH(kernel, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, bias, rows, C);
    return gpu_launched(d, "bias_fwd");
}

template <class T>
nb_status scale_columns(nb_dev *d, nb_elem *y, const nb_elem *x, const float *scale, int64_t rows, int64_t C,
                        float beta) {
    if (!rows || !C) return NB_OK;
    const int N = group_of<T>(C, y, x, scale);
    const dim3 block = block_for_rows(C / N);
    auto kernel = N > 1 ? scale_columns_kernel<T, GROUP<T>> : scale_columns_kernel<T, 1>;
    LAUNCH(kernel, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, (const T *)x, scale, rows, C, beta);
    return gpu_launched(d, "scale_columns");
}

template <class T>
nb_status dropout(nb_dev *d, nb_elem *y, const nb_elem *x, const uint32_t *sample, const int32_t *pos, int64_t rows,
                  int64_t C, float p, uint64_t seed, uint32_t step, uint32_t site, float beta) {
    if (!rows || !C) return NB_OK;
    const uint2 key = make_uint2((uint32_t)seed ^ (uint32_t)NB_RNG_DROPOUT << 24, (uint32_t)(seed >> 32) ^ step);
    const uint64_t threshold = (uint64_t)ceil((double)p * 4294967296.0);
    const int N = group_of<T>(C, y, x);
    const dim3 block = block_for_rows(C / N);
    auto kernel = N > 1 ? dropout_kernel<T, GROUP<T>> : dropout_kernel<T, 1>;
    LAUNCH(kernel, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, (const T *)x, sample, pos, rows,
           C, key, site, threshold, (float)(1 / (1 - (double)p)), beta);
    return gpu_launched(d, "dropout");
}

} // namespace

extern "C" nb_status NB_GPU(glu_fwd)(nb_dev *d, nb_elem *y, const nb_elem *gate, const nb_elem *up, int64_t n,
                                     nb_act act) {
    return BY_ELEM(glu_fwd, d, y, gate, up, n, act);
}

extern "C" nb_status NB_GPU(glu_bwd)(nb_dev *d, nb_elem *dgate, float beta_gate, nb_elem *dup, float beta_up,
                                     const nb_elem *dy, const nb_elem *gate, const nb_elem *up, int64_t n, nb_act act) {
    return BY_ELEM(glu_bwd, d, dgate, beta_gate, dup, beta_up, dy, gate, up, n, act);
}

extern "C" nb_status NB_GPU(add)(nb_dev *d, nb_elem *y, const nb_elem *x1, const nb_elem *x2, int64_t n, float beta) {
    return BY_ELEM(add, d, y, x1, x2, n, beta);
}

extern "C" nb_status NB_GPU(fill)(nb_dev *d, void *x, nb_dtype dtype, float value, int64_t n) {
    return dtype == NB_BF16 ? fill<bf16>(d, x, value, n) : fill<float>(d, x, value, n);
}

extern "C" nb_status NB_GPU(bias_fwd)(nb_dev *d, void *y, nb_dtype dtype, const float *bias, int64_t T, int64_t C) {
    return dtype == NB_BF16 ? bias_fwd<bf16>(d, y, bias, T, C) : bias_fwd<float>(d, y, bias, T, C);
}

extern "C" nb_status NB_GPU(scale_columns)(nb_dev *d, nb_elem *y, const nb_elem *x, const float *column_scale,
                                           int64_t T, int64_t C, float beta) {
    return BY_ELEM(scale_columns, d, y, x, column_scale, T, C, beta);
}

extern "C" nb_status NB_GPU(dora_scale)(nb_dev *d, float *scale, float *inverse, const float *m, const float *squares,
                                        const float *b, const float *aw, const float *bg, int64_t N, int64_t R,
                                        float s) {
    if (!N) return NB_OK;
    LAUNCH(dora_scale_kernel, grid_for(N, THREADS), THREADS, 0, gpu_stream(d), scale, inverse, m, squares, b, aw, bg,
           N, R, s);
    return gpu_launched(d, "dora_scale");
}

extern "C" nb_status NB_GPU(dropout)(nb_dev *d, nb_elem *y, const nb_elem *x, const uint32_t *sample,
                                     const int32_t *pos, int64_t T, int64_t C, float p, uint64_t seed, uint32_t step,
                                     uint32_t site, float beta) {
    return BY_ELEM(dropout, d, y, x, sample, pos, T, C, p, seed, step, site, beta);
}

extern "C" nb_status NB_GPU(softcap)(nb_dev *d, float *x, int64_t n, float cap) {
    if (!n) return NB_OK;
    LAUNCH(softcap_kernel, grid_for(n, THREADS), THREADS, 0, gpu_stream(d), x, n, cap);
    return gpu_launched(d, "softcap");
}

extern "C" nb_status NB_GPU(clamp_fwd)(nb_dev *d, nb_elem *y, const nb_elem *x, int64_t n, float limit) {
    return BY_ELEM(clamp_fwd, d, y, x, n, limit);
}

extern "C" nb_status NB_GPU(clamp_bwd)(nb_dev *d, nb_elem *dx, float beta, const nb_elem *dy, const nb_elem *x, int64_t n,
                                       float limit) {
    return BY_ELEM(clamp_bwd, d, dx, beta, dy, x, n, limit);
}
