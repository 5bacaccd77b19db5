#!/bin/bash
# cuBLAS and NCCL are loaded when they are wanted: found where NIBBLE_CUDA_LIB says, refused when they lack a function, and
# not looked for when it says none. Stand-ins without any contents take their place: nibble doctor only loads them.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
CC=${CC:-cc}
command -v "$CC" >/dev/null || { skip test_cuda_libraries "no C compiler"; exit 0; }
functions() { # of a list in library.h
    sed -n "/define NB_$1_FUNCTIONS/,/^\$/s/.* F(.*, *\([a-zA-Z_0-9]*\), (.*/\1/p" "$(dirname "$0")/../kernels/cuda/library.h"
}
stand_in() { # FOLDER SONAME FUNCTIONS...: a library of functions that do nothing
    local folder=$1 soname=$2 f; shift 2
    mkdir -p "$folder"
    for f in "$@"; do echo "int $f(void) { return 0; }"; done | "$CC" -shared -fPIC -x c -o "$folder/$soname" -
}
doctor() { NIBBLE_CUDA_LIB=$1 "$NIBBLE" doctor 2>&1 || true; }
prints() { # NAME PATTERN FOLDER: a line of nibble doctor with that folder
    if doctor "$3" | grep -q -- "$2"; then ok "$1"; else bad "$1" "no '$2' in: $(doctor "$3")"; fi
}
mapfile -t blas < <(functions CUBLAS)
mapfile -t nccl < <(functions NCCL)
is lists_are_read "cublasCreate_v2 ncclGetVersion" "${blas[0]} ${nccl[0]}"
stand_in "$tmp/13" libcublas.so.13 "${blas[@]}"
stand_in "$tmp/13" libnccl.so.2 "${nccl[@]}"
stand_in "$tmp/12" libcublas.so.12 "${blas[@]}"
cp "$tmp/13/libnccl.so.2" "$tmp/12"
stand_in "$tmp/old" libcublas.so.13 "${blas[@]:1}"
stand_in "$tmp/old" libnccl.so.2 "${nccl[@]:0:${#nccl[@]}-1}"
prints found_cublas "cuBLAS *$tmp/13/libcublas.so.13\$" "$tmp/13"
prints found_nccl "NCCL *$tmp/13/libnccl.so.2\$" "$tmp/13"
prints old_cublas "libcublas.so.13: cuBLAS of this version lacks ${blas[0]};" "$tmp/old"
prints old_nccl "libnccl.so.2: NCCL of this version lacks ${nccl[-1]};" "$tmp/old"
prints none_cublas "cuBLAS *not found" none
prints none_nccl "NCCL *not found" none
# A folder without them is no mistake: they may lie elsewhere.
yes elsewhere test -n "$(doctor "$tmp" | grep -E '^  cuBLAS +(not found|/.*libcublas)')"
prints version_12 "cuBLAS *$tmp/12/libcublas.so.12\$" "$tmp/12"
exit $failed
