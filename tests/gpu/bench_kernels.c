/* The kernels a training step and a generated token consist of, at a model's shapes. Buffers are numbered in the order
 * they are declared, outputs first, as in kernels.def. What a kernel must move is every operand once. */
#include <math.h>
#include <stdio.h>

#include "tests/gpu/bench.h"

#define K (j->d->k)
#define AT(i) gc_at(j, i, set)
static nb_dtype elem(const gc_job *j) { return j->d->elem; }
static long long ll(int64_t x) { return (long long)x; }

static void need(gc_job *j, size_t ws) {
    if (ws > j->ws) j->ws = ws;
}
static int out(gc_job *j, int64_t n) { return gc_buf(j, n, elem(j), GC_ZERO, 1); }
static int in(gc_job *j, int64_t n) { return gc_buf(j, n, elem(j), GC_RANDOM, 1); }
static int in_f32(gc_job *j, int64_t n) { return gc_buf(j, n, NB_F32, GC_SMALL, 1); }

/* ---- products with frozen weights ---- */

/* The shapes of linear layers: rows (out), columns (in). */
enum { SHAPE_Q, SHAPE_K, SHAPE_GATE, SHAPE_DOWN, SHAPES };
static void linear_shape(const gc_shape *s, int64_t variant, int64_t *rows, int64_t *cols) {
    *rows = variant == SHAPE_Q ? s->H * s->D : variant == SHAPE_K ? s->KV * s->D : variant == SHAPE_GATE ? s->F : s->C;
    *cols = variant == SHAPE_DOWN ? s->F : s->C;
}

/* k: rows, columns, tokens. */
static void need_weight(gc_job *j, nb_format format) {
    nb_weight w = {.format = format, .rows = j->k[0], .cols = j->k[1],
                   .nf4 = {.blocksize = 64, .nested_blocksize = 256}};
    need(j, j->d->be->weight_ws(j->d, &w, j->k[2]));
}
static void declare_product(gc_job *j, int64_t T, const char *format) {
    linear_shape(j->s, j->variant, &j->k[0], &j->k[1]);
    j->k[2] = T;
    j->flops = 2.0 * (double)T * (double)j->k[0] * (double)j->k[1];
    snprintf(j->shape, sizeof j->shape, "T=%lld, %s %lld x %lld", ll(T), format, ll(j->k[0]), ll(j->k[1]));
    need_weight(j, format[0] == 'n' ? NB_FMT_NF4 : NB_FMT_BF16);
}

/* Buffers from number 2 on: a matrix in NF4 with double quantization; its scales are small, as those of real weights.
 */
static void declare_nf4(gc_job *j) {
    const int64_t n = j->k[0] * j->k[1], blocks = (n + 63) / 64;
    gc_buf(j, (n + 1) / 2, NB_U8, GC_BYTES, 1);
    gc_buf(j, blocks, NB_U8, GC_BYTES, 1);
    gc_buf(j, (blocks + 255) / 256, NB_F32, GC_SMALL, 1);
    gc_buf_host(j, nb_nf4_code, sizeof nb_nf4_code);
    gc_buf_host(j, nb_dynamic_code, sizeof nb_dynamic_code);
}
static nb_weight nf4_at(const gc_job *j, int set) {
    return (nb_weight){.format = NB_FMT_NF4, .rows = j->k[0], .cols = j->k[1], .data = AT(2),
                       .nf4 = {.absmax_u8 = AT(3), .nested_absmax = AT(4), .code = AT(5), .nested_code = AT(6),
                               .nested_offset = 0.02f, .blocksize = 64, .nested_blocksize = 256, .dtype = NB_BF16}};
}

static void declare_nf4_fwd(gc_job *j) {
    declare_product(j, j->s->T, "nf4");
    out(j, j->k[2] * j->k[0]), in(j, j->k[2] * j->k[1]);
    declare_nf4(j);
}
static nb_status launch_nf4_fwd(gc_job *j, int set) {
    nb_weight w = nf4_at(j, set);
    return K->weight_fwd(j->d, nb_mat_of(AT(0), j->k[0], elem(j)), AT(1), &w, j->k[2], 0);
}
static void declare_nf4_bwd(gc_job *j) {
    declare_product(j, j->s->T, "nf4");
    out(j, j->k[2] * j->k[1]), in(j, j->k[2] * j->k[0]);
    declare_nf4(j);
}
static nb_status launch_nf4_bwd(gc_job *j, int set) {
    nb_weight w = nf4_at(j, set);
    return K->weight_bwd(j->d, AT(0), AT(1), &w, j->k[2], 0);
}
/* Generation: one token, and eight. */
static void declare_nf4_one(gc_job *j) {
    declare_product(j, 1, "nf4");
    out(j, j->k[0]), in(j, j->k[1]);
    declare_nf4(j);
}
static void declare_nf4_eight(gc_job *j) {
    declare_product(j, 8, "nf4");
    out(j, 8 * j->k[0]), in(j, 8 * j->k[1]);
    declare_nf4(j);
}

static nb_weight bf16_at(const gc_job *j, int set) {
    return (nb_weight){.format = NB_FMT_BF16, .rows = j->k[0], .cols = j->k[1], .data = AT(2)};
}
static void declare_bf16_fwd(gc_job *j) {
    declare_product(j, j->s->T, "bf16");
    out(j, j->k[2] * j->k[0]), in(j, j->k[2] * j->k[1]), gc_buf(j, j->k[0] * j->k[1], NB_BF16, GC_SMALL, 1);
}
static nb_status launch_bf16_fwd(gc_job *j, int set) {
    nb_weight w = bf16_at(j, set);
    return K->weight_fwd(j->d, nb_mat_of(AT(0), j->k[0], elem(j)), AT(1), &w, j->k[2], 0);
}
static void declare_bf16_bwd(gc_job *j) {
    declare_product(j, j->s->T, "bf16");
    out(j, j->k[2] * j->k[1]), in(j, j->k[2] * j->k[0]), gc_buf(j, j->k[0] * j->k[1], NB_BF16, GC_SMALL, 1);
}
static nb_status launch_bf16_bwd(gc_job *j, int set) {
    nb_weight w = bf16_at(j, set);
    return K->weight_bwd(j->d, AT(0), AT(1), &w, j->k[2], 0);
}

/* The output head over as many rows as one chunk of the loss has; logits are f32. */
static int64_t chunk(const gc_job *j) {
    int64_t n = j->logits / j->s->V;
    return n < 1 ? 1 : n > j->s->T ? j->s->T : n;
}
static void declare_head(gc_job *j) {
    const int64_t n = chunk(j), V = j->s->V, C = j->s->C;
    j->k[0] = V, j->k[1] = C, j->k[2] = n;
    j->flops = 2.0 * (double)n * (double)V * (double)C;
    snprintf(j->shape, sizeof j->shape, "T=%lld, bf16 %lld x %lld", ll(n), ll(V), ll(C));
    need_weight(j, NB_FMT_BF16);
}
static void declare_head_fwd(gc_job *j) {
    declare_head(j);
    gc_buf(j, j->k[2] * j->k[0], NB_F32, GC_ZERO, 1), in(j, j->k[2] * j->k[1]);
    gc_buf(j, j->k[0] * j->k[1], NB_BF16, GC_SMALL, 1);
}
static nb_status launch_head_fwd(gc_job *j, int set) {
    nb_weight w = bf16_at(j, set);
    return K->weight_fwd(j->d, nb_mat_of(AT(0), j->k[0], NB_F32), AT(1), &w, j->k[2], 0);
}
static void declare_head_bwd(gc_job *j) {
    declare_head(j);
    out(j, j->k[2] * j->k[1]), in(j, j->k[2] * j->k[0]), gc_buf(j, j->k[0] * j->k[1], NB_BF16, GC_SMALL, 1);
}

/* ---- products with an adapter: x [T, in], A [R, in], B [out, R] in f32 ---- */

/* k: M, N, K of c[M,N]; what moves is c, x, y. Types: c, x, y. */
static void declare_thin(gc_job *j, const char *what, int64_t M, int64_t N, int64_t Kk, nb_dtype c, nb_dtype x,
                         nb_dtype y, double c_passes) {
    j->k[0] = M, j->k[1] = N, j->k[2] = Kk;
    j->flops = 2.0 * (double)M * (double)N * (double)Kk;
    snprintf(j->shape, sizeof j->shape, "%s, %lld x %lld x %lld", what, ll(M), ll(N), ll(Kk));
    gc_buf(j, M * N, c, GC_ZERO, c_passes), gc_buf(j, M * Kk, x, GC_SMALL, 1), gc_buf(j, Kk * N, y, GC_SMALL, 1);
    need(j, j->d->be->gemm_ws(j->d, M, N, Kk));
}
static nb_status thin(gc_job *j, int set, bool tx, bool ty, float beta) {
    const int64_t M = j->k[0], N = j->k[1], Kk = j->k[2];
    nb_mat c = nb_mat_of(AT(0), N, j->buf[0].dtype), x = nb_mat_of(AT(1), tx ? M : Kk, j->buf[1].dtype),
           y = nb_mat_of(AT(2), ty ? Kk : N, j->buf[2].dtype);
    x.t = tx, y.t = ty;
    return K->gemm(j->d, c, x, y, M, N, Kk, 1, beta);
}
/* The widest inputs and outputs there are: up (variant 0) and down (1). */
static void adapter_shape(const gc_job *j, int64_t *rows, int64_t *cols) {
    linear_shape(j->s, j->variant ? SHAPE_DOWN : SHAPE_GATE, rows, cols);
}
static void declare_lora_a(gc_job *j) {
    int64_t rows, cols;
    adapter_shape(j, &rows, &cols);
    declare_thin(j, "h = x A^T", j->s->T, j->s->R, cols, elem(j), elem(j), NB_F32, 1);
}
static nb_status launch_lora_a(gc_job *j, int set) { return thin(j, set, false, true, 0); }
static void declare_lora_b(gc_job *j) {
    int64_t rows, cols;
    adapter_shape(j, &rows, &cols);
    declare_thin(j, "y += h B^T", j->s->T, rows, j->s->R, elem(j), elem(j), NB_F32, 2);
}
static nb_status launch_lora_b(gc_job *j, int set) { return thin(j, set, false, true, 1); }
static void declare_lora_db(gc_job *j) {
    int64_t rows, cols;
    adapter_shape(j, &rows, &cols);
    declare_thin(j, "dB = dy^T h", rows, j->s->R, j->s->T, NB_F32, elem(j), elem(j), 1);
}
static nb_status launch_lora_db(gc_job *j, int set) { return thin(j, set, true, false, 0); }
static void declare_lora_da(gc_job *j) {
    int64_t rows, cols;
    adapter_shape(j, &rows, &cols);
    declare_thin(j, "dA = dh^T x", j->s->R, cols, j->s->T, NB_F32, elem(j), elem(j), 1);
}

/* ---- norms, RoPE, attention ---- */

static void shape_rows(gc_job *j, int64_t C) {
    snprintf(j->shape, sizeof j->shape, "T=%lld C=%lld", ll(j->s->T), ll(C));
}

static void declare_norm_fwd(gc_job *j) {
    const int64_t T = j->s->T, C = j->s->C;
    shape_rows(j, C);
    out(j, T * C), gc_buf(j, T, NB_F32, GC_ZERO, 1), in(j, T * C), in_f32(j, C);
    need(j, j->d->be->rows_ws(j->d, T, C));
}
static nb_status launch_norm_fwd(gc_job *j, int set) {
    return K->rmsnorm_fwd(j->d, AT(0), AT(1), AT(2), AT(3), j->s->T, j->s->C, 1e-5f, 0);
}
/* The norm's weight is frozen; dx is added to the residual stream's. */
static void declare_norm_bwd(gc_job *j) {
    const int64_t T = j->s->T, C = j->s->C;
    shape_rows(j, C);
    gc_buf(j, T * C, elem(j), GC_ZERO, 2), in(j, T * C), in(j, T * C), in_f32(j, C), in_f32(j, T);
    need(j, j->d->be->rows_ws(j->d, T, C));
}
static nb_status launch_norm_bwd(gc_job *j, int set) {
    return K->rmsnorm_bwd(j->d, AT(0), 1, NULL, 0, AT(1), AT(2), AT(3), AT(4), j->s->T, j->s->C, 0);
}

static void declare_rope(gc_job *j) {
    const int64_t T = j->s->T, n = j->s->H * j->s->D;
    snprintf(j->shape, sizeof j->shape, "T=%lld H=%lld D=%lld", ll(T), ll(j->s->H), ll(j->s->D));
    out(j, T * n), in(j, T * n), in_f32(j, T * j->s->D / 2), in_f32(j, T * j->s->D / 2), gc_buf_ids(j, T, T);
}
static nb_status launch_rope(gc_job *j, int set) {
    return K->rope(j->d, AT(0), AT(1), AT(2), AT(3), AT(4), j->s->T, j->s->H, j->s->D, j->s->D, false, 0);
}

/* Variant 0: as many documents as the shape has, of unequal lengths; 1: one document. k: number of segments. */
enum { MAX_DOCS = 64 };
static double segments(gc_job *j, nb_seg *segs) {
    const int64_t docs = j->variant ? 1 : j->s->docs, T = j->s->T;
    double pairs = 0;
    int32_t at = 0;
    NB_ASSERT(docs <= MAX_DOCS && docs * 2 <= T);
    for (int64_t i = 0; i < docs; i++) { /* each a part more than the one before it */
        int32_t end = (int32_t)(T * (i + 1) * (docs + i + 2) / (docs * (2 * docs + 1)));
        if (i == docs - 1) end = (int32_t)T;
        segs[i] = (nb_seg){at, end - at, at, end - at};
        pairs += (double)(end - at) * (double)(end - at + 1) / 2;
        at = end;
    }
    j->k[0] = docs;
    snprintf(j->shape, sizeof j->shape, "T=%lld in %lld, H=%lld KV=%lld D=%lld", ll(T), ll(docs), ll(j->s->H),
             ll(j->s->KV), ll(j->s->D));
    return pairs;
}
static float scale_of(const gc_job *j) { return 1 / sqrtf((float)j->s->D); }
static void declare_attention(gc_job *j, bool backward) {
    static nb_seg segs[MAX_DOCS];
    const gc_shape *s = j->s;
    const int64_t q = s->T * s->H * s->D, k = s->T * s->KV * s->D;
    double pairs = segments(j, segs);
    /* A multiply and an add for each dim of each pair: 2 products forward, 5 backward. */
    j->flops = (backward ? 10.0 : 4.0) * pairs * (double)(s->H * s->D);
    if (backward) out(j, q), out(j, k), out(j, k), in(j, q);
    else out(j, q);
    in(j, q), in(j, k), in(j, k);
    if (backward) in(j, q);
    gc_buf(j, s->T * s->H, NB_F32, GC_ZERO, 1);
    gc_buf_host(j, segs, (size_t)j->k[0] * sizeof *segs);
    need(j, j->d->be->attention_ws(j->d, s->T, s->T, s->H, s->KV, s->D));
}
static void declare_attention_fwd(gc_job *j) { declare_attention(j, false); }
static nb_status launch_attention_fwd(gc_job *j, int set) {
    const gc_shape *s = j->s;
    return K->attention_fwd(j->d, AT(0), AT(4), AT(1), AT(2), AT(3), AT(5), j->k[0], s->T, s->T, s->H, s->KV, s->D,
                            scale_of(j), 0, 0);
}
static void declare_attention_bwd(gc_job *j) { declare_attention(j, true); }
static nb_status launch_attention_bwd(gc_job *j, int set) {
    const gc_shape *s = j->s;
    return K->attention_bwd(j->d, AT(0), 0, AT(1), 0, AT(2), 0, AT(3), AT(4), AT(5), AT(6), AT(7), AT(8), AT(9),
                            j->k[0], s->T, s->T, s->H, s->KV, s->D, scale_of(j), 0, 0);
}
/* One token each of 1 (variant 0) or 8 sequences being generated, over the cache. */
static void declare_attention_one(gc_job *j) {
    static nb_seg segs[8];
    const gc_shape *s = j->s;
    const int64_t n = j->variant ? 8 : 1, rows = n * s->cached;
    for (int32_t i = 0; i < n; i++) segs[i] = (nb_seg){i, 1, (int32_t)(i * s->cached), (int32_t)s->cached};
    j->k[0] = n;
    j->flops = 4.0 * (double)(rows * s->H * s->D);
    snprintf(j->shape, sizeof j->shape, "%lld x 1 of %lld, H=%lld KV=%lld D=%lld", ll(n), ll(s->cached), ll(s->H),
             ll(s->KV), ll(s->D));
    out(j, n * s->H * s->D), in(j, n * s->H * s->D), in(j, rows * s->KV * s->D), in(j, rows * s->KV * s->D);
    gc_buf_host(j, segs, (size_t)n * sizeof *segs);
    need(j, j->d->be->attention_ws(j->d, n, rows, s->H, s->KV, s->D));
}
static nb_status launch_attention_one(gc_job *j, int set) {
    const gc_shape *s = j->s;
    return K->attention_fwd(j->d, AT(0), NULL, AT(1), AT(2), AT(3), AT(4), j->k[0], j->k[0], j->k[0] * s->cached, s->H,
                            s->KV, s->D, scale_of(j), 0, 0);
}

/* ---- elementwise, embedding, loss, optimizer ---- */

static void declare_glu_fwd(gc_job *j) {
    const int64_t n = j->s->T * j->s->F;
    shape_rows(j, j->s->F);
    out(j, n), in(j, n), in(j, n);
}
static nb_status launch_glu_fwd(gc_job *j, int set) {
    return K->glu_fwd(j->d, AT(0), AT(1), AT(2), j->s->T * j->s->F, NB_ACT_SILU);
}
static void declare_glu_bwd(gc_job *j) {
    const int64_t n = j->s->T * j->s->F;
    shape_rows(j, j->s->F);
    out(j, n), out(j, n), in(j, n), in(j, n), in(j, n);
}
static nb_status launch_glu_bwd(gc_job *j, int set) {
    return K->glu_bwd(j->d, AT(0), 0, AT(1), 0, AT(2), AT(3), AT(4), j->s->T * j->s->F, NB_ACT_SILU);
}
static void declare_add(gc_job *j) {
    const int64_t n = j->s->T * j->s->C;
    shape_rows(j, j->s->C);
    out(j, n), in(j, n), in(j, n);
}
static nb_status launch_add(gc_job *j, int set) { return K->add(j->d, AT(0), AT(1), AT(2), j->s->T * j->s->C, 0); }

static void declare_embedding(gc_job *j) {
    const int64_t T = j->s->T, C = j->s->C;
    j->k[0] = j->s->V, j->k[1] = C;
    shape_rows(j, C);
    out(j, T * C), gc_buf_ids(j, T, j->s->V), gc_buf(j, j->s->V * C, NB_BF16, GC_SMALL, 0);
    j->bytes += (double)(T * C * 2); /* only the rows that are read */
}
static nb_status launch_embedding(gc_job *j, int set) {
    nb_weight w = bf16_at(j, set);
    return K->embedding_fwd(j->d, AT(0), &w, AT(1), j->s->T, 1);
}
static void declare_gather(gc_job *j) {
    const int64_t T = j->s->T, C = j->s->C;
    shape_rows(j, C);
    out(j, T * C), in(j, T * C);
    j->buf[gc_buf(j, T, NB_I32, GC_COUNT, 1)].below = T;
}
static nb_status launch_gather(gc_job *j, int set) {
    return K->gather_rows(j->d, AT(0), AT(1), AT(2), j->s->T, j->s->C);
}
static void declare_dropout(gc_job *j) {
    const int64_t T = j->s->T, C = j->s->C;
    shape_rows(j, C);
    out(j, T * C), in(j, T * C), gc_buf_ids(j, T, T), gc_buf_ids(j, T, T);
}
static nb_status launch_dropout(gc_job *j, int set) {
    return K->dropout(j->d, AT(0), AT(1), AT(2), AT(3), j->s->T, j->s->C, 0.1f, 7, 1, 3, 0);
}
/* The logits are read for their maximum and sum, and again for the gradient: twice, where a row does not stay in a
 * block's own memory; the floor counts one reading. */
static void declare_xent(gc_job *j) {
    const int64_t n = chunk(j), V = j->s->V;
    snprintf(j->shape, sizeof j->shape, "n=%lld V=%lld", ll(n), ll(V));
    gc_buf(j, n, NB_F32, GC_ZERO, 1), out(j, n * V), gc_buf(j, n * V, NB_F32, GC_RANDOM, 1), gc_buf_ids(j, n, V);
    j->k[0] = n;
    need(j, j->d->be->rows_ws(j->d, n, V));
}
static nb_status launch_xent(gc_job *j, int set) {
    return K->xent(j->d, AT(0), NULL, NULL, AT(1), AT(2), AT(3), j->k[0], j->s->V, 0);
}
/* Parameters of LoRA on all linear layers. */
static int64_t trained(const gc_shape *s) {
    int64_t n = 0, rows, cols;
    static const int64_t times[SHAPES] = {2, 2, 2, 1}; /* q and o, k and v, gate and up, down */
    for (int64_t v = 0; v < SHAPES; v++) linear_shape(s, v, &rows, &cols), n += times[v] * s->R * (rows + cols);
    return n * s->L;
}
static void declare_sum_squares(gc_job *j) {
    const int64_t n = trained(j->s);
    snprintf(j->shape, sizeof j->shape, "n=%lld", ll(n));
    gc_buf(j, sizeof(nb_update), NB_U8, GC_ZERO, 1), in_f32(j, n);
    need(j, j->d->be->rows_ws(j->d, 1, n));
}
static nb_status launch_sum_squares(gc_job *j, int set) {
    return K->sum_squares(j->d, AT(0), AT(1), trained(j->s));
}
static void declare_adamw(gc_job *j) {
    static const nb_update u = {.sum_squares = 1, .bias1 = 0.1, .bias2 = 0.001, .lr = 1e-4f, .max_norm = 1};
    const int64_t n = trained(j->s);
    snprintf(j->shape, sizeof j->shape, "n=%lld", ll(n));
    for (int i = 0; i < 3; i++) gc_buf(j, n, NB_F32, GC_ZERO, 2);
    in_f32(j, n), gc_buf_host(j, &u, sizeof u);
}
static nb_status launch_adamw(gc_job *j, int set) {
    return K->adamw(j->d, AT(0), AT(1), AT(2), AT(3), trained(j->s), AT(4), 0.9f, 0.999f, 1e-8f, 0);
}
static void declare_adamw8(gc_job *j) {
    static const nb_update u = {.sum_squares = 1, .bias1 = 0.1, .bias2 = 0.001, .lr = 1e-4f, .max_norm = 1};
    const int64_t n = trained(j->s);
    snprintf(j->shape, sizeof j->shape, "n=%lld", ll(n));
    gc_buf(j, n, NB_F32, GC_ZERO, 2);
    for (int i = 0; i < 2; i++) gc_buf(j, n, NB_U8, GC_ZERO, 2);
    for (int i = 0; i < 2; i++) gc_buf(j, (n + 255) / 256, NB_F32, GC_ZERO, 2);
    in_f32(j, n), gc_buf_host(j, &u, sizeof u);
}
static nb_status launch_adamw8(gc_job *j, int set) {
    return K->adamw8(j->d, AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), trained(j->s), AT(6), 0.9f, 0.999f, 1e-8f, 0);
}
static void declare_top_logits(gc_job *j) {
    const int64_t V = j->s->V;
    snprintf(j->shape, sizeof j->shape, "n=1 V=%lld", ll(V));
    gc_buf(j, 256, NB_F32, GC_ZERO, 1), gc_buf(j, 256, NB_I32, GC_ZERO, 1), gc_buf(j, 1, NB_F32, GC_ZERO, 1);
    gc_buf(j, V, NB_F32, GC_RANDOM, 1);
}
static nb_status launch_top_logits(gc_job *j, int set) {
    return K->top_logits(j->d, AT(0), AT(1), AT(2), AT(3), 1, j->s->V, 256, 1);
}

const gc_kernel gc_kernels[] = {
    {"weight_fwd", SHAPES, declare_nf4_fwd, launch_nf4_fwd},
    {"weight_bwd", SHAPES, declare_nf4_bwd, launch_nf4_bwd},
    {"weight_fwd_bf16", SHAPES, declare_bf16_fwd, launch_bf16_fwd},
    {"weight_bwd_bf16", SHAPES, declare_bf16_bwd, launch_bf16_bwd},
    {"attention_fwd", 2, declare_attention_fwd, launch_attention_fwd},
    {"attention_bwd", 2, declare_attention_bwd, launch_attention_bwd},
    {"lora_a", 2, declare_lora_a, launch_lora_a},
    {"lora_b", 2, declare_lora_b, launch_lora_b},
    {"lora_db", 2, declare_lora_db, launch_lora_db},
    {"lora_da", 2, declare_lora_da, launch_lora_db},
    {"rmsnorm_fwd", 1, declare_norm_fwd, launch_norm_fwd},
    {"rmsnorm_bwd", 1, declare_norm_bwd, launch_norm_bwd},
    {"rope", 1, declare_rope, launch_rope},
    {"glu_fwd", 1, declare_glu_fwd, launch_glu_fwd},
    {"glu_bwd", 1, declare_glu_bwd, launch_glu_bwd},
    {"add", 1, declare_add, launch_add},
    {"embedding_fwd", 1, declare_embedding, launch_embedding},
    {"gather_rows", 1, declare_gather, launch_gather},
    {"dropout", 1, declare_dropout, launch_dropout},
    {"head_fwd", 1, declare_head_fwd, launch_head_fwd},
    {"head_bwd", 1, declare_head_bwd, launch_bf16_bwd},
    {"xent", 1, declare_xent, launch_xent},
    {"sum_squares", 1, declare_sum_squares, launch_sum_squares},
    {"adamw", 1, declare_adamw, launch_adamw},
    {"adamw8", 1, declare_adamw8, launch_adamw8},
    {"top_logits", 1, declare_top_logits, launch_top_logits},
    {"decode_1", SHAPES, declare_nf4_one, launch_nf4_fwd},
    {"decode_8", SHAPES, declare_nf4_eight, launch_nf4_fwd},
    {"decode_attention", 2, declare_attention_one, launch_attention_one},
};
const int gc_n_kernels = NB_LEN(gc_kernels);
