/* The inner parts in portable C, 4 floats at a time: the definition the other tables are tested against. */
#define NB_VW 4
#define NB_TILE_VECTORS 2
#define NB_SIMD nb_simd_base
#define NB_SIMD_NAME "base"
#include "kernels/cpu/simd_rows.h"
