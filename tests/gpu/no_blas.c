/* Stands in for OpenBLAS in the package for a GPU machine, of which it would be four fifths: the processors beside such
 * GPUs have AVX2, and nibble's own products serve them. */
#include <stdio.h>
#include <stdlib.h>

char *openblas_get_config(void) { return "no OpenBLAS in this package"; }
char *openblas_get_corename(void) { return "no processor"; }
int openblas_get_parallel(void) { return 0; }
void cblas_sgemm(int order, int tx, int ty, int M, int N, int K, float alpha, const float *x, int ldx, const float *y,
                 int ldy, float beta, float *c, int ldc);
void cblas_sgemm(int order, int tx, int ty, int M, int N, int K, float alpha, const float *x, int ldx, const float *y,
                 int ldy, float beta, float *c, int ldc) {
    (void)order, (void)tx, (void)ty, (void)M, (void)N, (void)K, (void)alpha, (void)beta;
    (void)x, (void)ldx, (void)y, (void)ldy, (void)c, (void)ldc;
    fputs("this package of nibble has no OpenBLAS, and this processor no AVX2: build nibble here\n", stderr);
    exit(1);
}
