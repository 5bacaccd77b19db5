/* Rotary position embedding (Su et al. 2021), half-rotated convention: element i of a head is paired with element
 * i + rot/2. A thread takes a group of pairs, or a group of the elements behind rot, which pass through. */
#include "kernels/cuda/vec.h"

namespace {

template <class T, int N>
__global__ void rope_kernel(T *y, const T *x, const float *cosine, const float *sine, const int32_t *pos, int64_t rows,
                            int heads, int D, int rot, float sign, float beta) {
    const int half = rot / 2, pairs = half / N, per_head = pairs + (D - rot) / N;
    FOR_ROWS(t, rows) {
        const float *ct = cosine + (int64_t)pos[t] * half, *st = sine + (int64_t)pos[t] * half;
        for (int item = (int)threadIdx.x; item < heads * per_head; item += (int)blockDim.x) {
            const int h = item / per_head, at = item % per_head;
            const int64_t head = (t * heads + h) * D;
            float lo[N], hi[N], c[N], s[N];
            if (at >= pairs) {
                int i = rot + (at - pairs) * N;
                load(lo, x + head + i);
                put(y + head + i, lo, beta);
                continue;
            }
            const int i = at * N;
            load(lo, x + head + i);
            load(hi, x + head + half + i);
            load(c, ct + i);
            load(s, st + i);
            for (int k = 0; k < N; k++) {
                float turned = lo[k] * c[k] - hi[k] * (sign * s[k]);
                hi[k] = hi[k] * c[k] + lo[k] * (sign * s[k]);
                lo[k] = turned;
            }
            put(y + head + i, lo, beta);
            put(y + head + half + i, hi, beta);
        }
    }
}

template <class T>
nb_status rope(nb_dev *d, nb_elem *y, const nb_elem *x, const float *cosine, const float *sine, const int32_t *pos,
               int64_t rows, int64_t heads, int64_t D, int64_t rot, bool inverse, float beta) {
    int64_t half = rot / 2;
    if (!rows || !heads || !D) return NB_OK;
    /* Groups are whole where heads, halves and what follows them are. */
    const int N = half % GROUP<T> ? 1 : group_of<T>(D, y, x, cosine, sine);
    const dim3 block = block_for_rows(heads * (D - half) / N);
    auto kernel = N > 1 ? rope_kernel<T, GROUP<T>> : rope_kernel<T, 1>;
    LAUNCH(kernel, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, (const T *)x, cosine, sine, pos,
           rows, (int)heads, (int)D, (int)rot, inverse ? -1.0f : 1.0f, beta);
    return gpu_launched(d, "rope");
}

} // namespace

extern "C" nb_status NB_GPU(rope)(nb_dev *d, nb_elem *y, const nb_elem *x, const float *cos, const float *sin,
                                  const int32_t *pos, int64_t T, int64_t n_heads, int64_t D, int64_t rot, bool inverse,
                                  float beta) {
    return BY_ELEM(rope, d, y, x, cos, sin, pos, T, n_heads, D, rot, inverse, beta);
}
