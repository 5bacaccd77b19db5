/* Rotary position embedding (Su et al. 2021), half-rotated convention: element i of a head is paired with element
 * i + rot/2. A thread takes a group of pairs, or a group of the elements behind rot, which pass through. */
#include "kernels/cuda/vec.h"

namespace {

template <class T>
__global__ void rope_kernel(T *y, const T *x, const float *cosine, const float *sine, const int32_t *pos, int64_t rows,
                            int heads, int D, int rot, float sign, float beta, bool wide) {
    constexpr int N = GROUP<T>;
    const int half = rot / 2, pairs = (half + N - 1) / N, per_head = pairs + (D - rot + N - 1) / N;
    FOR_ROWS(t, rows) {
        const float *ct = cosine + (int64_t)pos[t] * half, *st = sine + (int64_t)pos[t] * half;
        for (int item = (int)threadIdx.x; item < heads * per_head; item += (int)blockDim.x) {
            const int h = item / per_head, at = item % per_head;
            const int64_t head = (t * heads + h) * D;
            float lo[N], hi[N], c[N], s[N];
            if (at >= pairs) {
                int i = rot + (at - pairs) * N;
                load(lo, x + head + i, D - i, wide);
                put(y + head + i, lo, beta, D - i, wide);
                continue;
            }
            const int i = at * N, left = half - i;
            load(lo, x + head + i, left, wide);
            load(hi, x + head + half + i, left, wide);
            load(c, ct + i, left, wide);
            load(s, st + i, left, wide);
            for (int k = 0; k < N; k++) {
                float turned = lo[k] * c[k] - hi[k] * (sign * s[k]);
                hi[k] = hi[k] * c[k] + lo[k] * (sign * s[k]);
                lo[k] = turned;
            }
            put(y + head + i, lo, beta, left, wide);
            put(y + head + half + i, hi, beta, left, wide);
        }
    }
}

template <class T>
nb_status rope(nb_dev *d, nb_elem *y, const nb_elem *x, const float *cosine, const float *sine, const int32_t *pos,
               int64_t rows, int64_t heads, int64_t D, int64_t rot, bool inverse, float beta) {
    int64_t half = rot / 2, items = heads * (div_up(half, GROUP<T>) + div_up(D - rot, GROUP<T>));
    if (!rows || !items) return NB_OK;
    /* Every group begins on 16 bytes when heads, halves and what follows them are whole groups. */
    bool wide = half % GROUP<T> == 0 && all_wide<T>(D, y, x, cosine, sine);
    dim3 block = block_for_rows(items);
    LAUNCH(rope_kernel<T>, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, (const T *)x, cosine, sine, pos,
           rows, (int)heads, (int)D, (int)rot, inverse ? -1.0f : 1.0f, beta, wide);
    return gpu_launched(d, "rope");
}

} // namespace

extern "C" nb_status NB_GPU(rope)(nb_dev *d, nb_elem *y, const nb_elem *x, const float *cos, const float *sin,
                                  const int32_t *pos, int64_t T, int64_t n_heads, int64_t D, int64_t rot, bool inverse,
                                  float beta) {
    return BY_ELEM(rope, d, y, x, cos, sin, pos, T, n_heads, D, rot, inverse, beta);
}
