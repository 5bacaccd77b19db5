/* The formats of frozen weights: one row decoder each. */
#include "kernels/weight.h"

#include <string.h>

#include "core/status.h"
#include "kernels/blocks.h"

static float round_to(nb_dtype dtype, float v) {
    if (dtype == NB_BF16) return nb_round_bf16(v);
    if (dtype == NB_F16) return nb_f16_to_f32(nb_f32_to_f16(v));
    return v;
}

float nb_nf4_absmax(const nb_nf4 *q, int64_t b) {
    if (q->absmax) return q->absmax[b];
    int64_t nested = q->nested_blocksize == 256 ? b >> 8 : b / q->nested_blocksize; /* a division is slow */
    float scaled = q->nested_code[q->absmax_u8[b]] * q->nested_absmax[nested];
    return scaled + q->nested_offset;
}

/* A decoder writes elements first..first+n-1 of the flattened matrix to out. */
static void decode_f32(float *out, const nb_weight *w, int64_t first, int64_t n) {
    memcpy(out, (const float *)w->data + first, (size_t)n * sizeof *out);
}

static void decode_bf16(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint16_t *p = (const uint16_t *)w->data + first;
    for (int64_t i = 0; i < n; i++) out[i] = nb_bf16_to_f32(p[i]);
}

static void decode_f16(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint16_t *p = (const uint16_t *)w->data + first;
    for (int64_t i = 0; i < n; i++) out[i] = nb_f16_to_f32(p[i]);
}

static void decode_nf4(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint8_t *bytes = w->data;
    const nb_nf4 *q = &w->nf4;
    for (int64_t e = first, end = first + n; e < end;) {
        int64_t block = e / q->blocksize, stop = (block + 1) * q->blocksize;
        float absmax = nb_nf4_absmax(q, block), level[16];
        if (stop > end) stop = end;
        if (stop - e <= 32) { /* too few to pay for a table */
            for (; e < stop; e++)
                *out++ = round_to(q->dtype, q->code[e & 1 ? bytes[e / 2] & 15 : bytes[e / 2] >> 4] * absmax);
            continue;
        }
        for (int i = 0; i < 16; i++) level[i] = round_to(q->dtype, q->code[i] * absmax);
        if (e & 1) *out++ = level[bytes[e++ / 2] & 15];
        for (; e + 1 < stop; e += 2, out += 2) out[0] = level[bytes[e / 2] >> 4], out[1] = level[bytes[e / 2] & 15];
        if (e < stop) *out++ = level[bytes[e++ / 2] >> 4];
    }
}

#define DECODER(F, f, size, bytes) NB_BLOCK_DECODER(decode_##f, f, size, bytes)
NB_BLOCK_FORMATS(DECODER)
#undef DECODER

static const struct {
    const char *name;
    int block, bytes; /* values that are stored together, and bytes they take */
    void (*decode)(float *out, const nb_weight *w, int64_t first, int64_t n);
} formats[NB_FMT_COUNT] = {
    [NB_FMT_F32] = {"f32", 1, 4, decode_f32},
    [NB_FMT_BF16] = {"bf16", 1, 2, decode_bf16},
    [NB_FMT_F16] = {"f16", 1, 2, decode_f16},
    [NB_FMT_NF4] = {"nf4", 2, 1, decode_nf4},
#define ROW(F, f, size, size_bytes) [NB_FMT_##F] = {#f, size, size_bytes, decode_##f},
    NB_BLOCK_FORMATS(ROW)
#undef ROW
};

const char *nb_format_name(nb_format f) { return f >= 0 && f < NB_FMT_COUNT ? formats[f].name : "unknown"; }

int nb_format_block(nb_format f) { return f == NB_FMT_NF4 ? 1 : formats[f].block; }

int64_t nb_format_bytes(nb_format f, int64_t n) {
    return (n + formats[f].block - 1) / formats[f].block * formats[f].bytes;
}

nb_status nb_weight_check(const nb_weight *w, const char *name) {
    const int block = nb_format_block(w->format);
    if (w->cols % block == 0) return NB_OK;
    return nb_fail(NB_EINPUT, "%s: %s has blocks of %d values, and its rows of %lld are not whole blocks", name,
                   nb_format_name(w->format), block, (long long)w->cols);
}

void nb_weight_decode(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                      int64_t n_cols) {
    for (int64_t r = 0; r < n_rows; r++)
        formats[w->format].decode(out + r * ld, w, (row0 + r) * w->cols + col0, n_cols);
}

nb_status nb_weight_acquire(const nb_weight *w, nb_weight *here) {
    *here = *w;
    return w->home ? w->home->acquire(w->home, here) : NB_OK;
}

int64_t nb_weight_bytes(const nb_weight *w) {
    int64_t n = w->rows * w->cols, bytes = nb_format_bytes(w->format, n);
    if (w->format != NB_FMT_NF4) return bytes;
    int64_t blocks = (n + w->nf4.blocksize - 1) / w->nf4.blocksize;
    if (w->nf4.absmax) return bytes + (16 + blocks) * (int64_t)sizeof(float);
    int64_t nested = (blocks + w->nf4.nested_blocksize - 1) / w->nf4.nested_blocksize;
    return bytes + blocks + (16 + 256 + nested + 1) * (int64_t)sizeof(float);
}
