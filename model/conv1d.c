/* Linear layers that a file has as [in, out] (GPT-2's Conv1D): turned once to the [out, in] of all others. */
#include <string.h>

#include "model/base.h"

void nb_weight_turn(void *out, const nb_weight *w) {
    enum { TILE = 64 }; /* rows and columns that stay in the first cache */
    size_t size = (size_t)nb_dtype_size((nb_dtype)w->format);
    int64_t rows = w->rows, cols = w->cols;
#pragma omp parallel for schedule(static)
    for (int64_t i0 = 0; i0 < rows; i0 += TILE)
        for (int64_t j0 = 0; j0 < cols; j0 += TILE)
            for (int64_t j = j0; j < cols && j < j0 + TILE; j++)
                for (int64_t i = i0; i < rows && i < i0 + TILE; i++)
                    memcpy((char *)out + (size_t)(i * cols + j) * size,
                           (const char *)w->data + (size_t)(j * rows + i) * size, size);
}

nb_status nb_base_turn(nb_base *b) {
    for (int64_t l = 0; l < b->spec.layers; l++)
        for (nb_slot k = 0; k < NB_SLOTS; k++) {
            nb_base_linear *lin = &b->layer[l].lin[k];
            void *copy;
            if (!lin->as_stored) continue;
            NB_TRY(nb_base_buffer(b, &copy, (size_t)nb_weight_bytes(&lin->w), lin->name));
            nb_weight_turn(copy, &lin->w);
            lin->w.data = copy;
            lin->as_stored = false;
        }
    return NB_OK;
}
