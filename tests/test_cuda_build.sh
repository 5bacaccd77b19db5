#!/bin/bash
# What nvcc made of the GPU backend: no warnings, no register spills on any architecture, and a program that needs nothing
# of CUDA's to start.
set -u
cd "$(dirname "$0")/.." || exit 2
if [ ! -e build/cuda/kernels/cuda ]; then
    echo "skipped: built without nvcc"
    echo "[  SKIPPED ] cuda_build"
    exit 0
fi
bad=0
result() { # NAME LINES: well if there are none
    if [ -z "$2" ]; then echo "[       OK ] cuda_build_$1"; else
        echo "[  FAILED  ] cuda_build_$1"
        echo "$2" | head -20
        bad=1
    fi
}

# Kernels that may spill: a pattern of kernel and architecture, bytes at most, and why that is well.
allowed() {
    cat <<'END'
END
}

reports=$(for f in kernels/cuda/*.cu; do echo "build/cuda/${f%.cu}.ptxas"; done)
# shellcheck disable=SC2086 # several names
result complete "$(ls $reports 2>&1 >/dev/null)"
# shellcheck disable=SC2086
result warnings "$(grep -nE 'warning|error' $reports)"
# A line for each kernel that spills: name, architecture, bytes.
# shellcheck disable=SC2086
spills=$(awk -v q="'" '/Compiling entry function/ { split($0, part, q); kernel = part[2] " " part[4]; n++ }
    /bytes spill stores/ && kernel { if ($5 + $9 > 0) print kernel, $5 + $9; kernel = "" }
    END { if (n == 0) print "no kernel was found in the reports" }' $reports | { command -v c++filt >/dev/null && c++filt || cat; })
result spills "$(echo "$spills" | grep . | while read -r line; do
    bytes=${line##* } known=
    while IFS='|' read -r pattern most reason; do
        [ -n "$pattern" ] && [ -n "$reason" ] && [[ $line =~ $pattern ]] && [ "$bytes" -le "$most" ] && known=yes
    done < <(allowed)
    [ -n "$known" ] || echo "spills: $line bytes"
done)"

# Every architecture asked for is in every object.
archs=$(grep -o 'code=[^ ]*' build/cuda/flags.txt | grep -o 'sm_[0-9]*' | sort -u)
result architectures "$([ -n "$archs" ] || echo "no architecture in build/cuda/flags.txt"
    for a in $archs; do
        # shellcheck disable=SC2086
        grep -L "for '$a'" $reports | sed "s/\$/: no kernel for $a/"
    done)"

result libraries "$(readelf -d "${NIBBLE:?}" | grep NEEDED | grep -E 'cuda|cublas|nccl|stdc\+\+')"
result starts "$(env -i PATH=/usr/bin:/bin "$NIBBLE" --version >/dev/null 2>&1 || echo "nibble --version: status $?")"
exit $bad
