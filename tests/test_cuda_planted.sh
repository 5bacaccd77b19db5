#!/bin/bash
# Mistakes planted in copies of the real kernels, each of which the checks must find: by the emulator's checker, by a
# deadlock it notices, by what accesses cost, or by a wrong result. The list: tests/emu/planted.txt.
#   tests/test_cuda_planted.sh [NAME...]
set -u
build=$(realpath "$(dirname "${NIBBLE:?}")")
cd "$(dirname "$0")/.." || exit 2
if [ ! -x "$build/tests/rows-check" ]; then
    echo "skipped: the checker is not built with sanitizers"
    echo "[  SKIPPED ] cuda_planted"
    exit 0
fi
. tests/emu/costs.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 ROWS_DEVICE=emu ROWS_REDZONE=0

try() { # NAME CHANGED COMPILED SED CHECKS COMPUTE EXPECTED
    local name=$1 changed=$2 object=${3%.cu} dir=$tmp/$1 program=rows-check said compile link
    mkdir -p "$dir/kernels/cuda"
    sed "$4" "kernels/cuda/$changed" >"$dir/kernels/cuda/$changed"
    if cmp -s "kernels/cuda/$changed" "$dir/kernels/cuda/$changed"; then
        echo "[  FAILED  ] cuda_planted_$name: nothing to change in $changed"
        return
    fi
    [ -e "$dir/kernels/cuda/$3" ] || cp "kernels/cuda/$3" "$dir/kernels/cuda/"
    [ "$5" != costs ] || program=rows-profile
    read -ra compile < <(sed "s|-I\.|-I$dir &|" "$build/emu-check/compile.txt")
    read -ra link < <(sed "s|[^ ]*/emu-check/kernels/cuda/$object\.o|$dir/new.o|; s|-o [^ ]*|-o $dir/program|" \
        "$build/tests/$program.link")
    { "${compile[@]}" -o "$dir/new.o" "$dir/kernels/cuda/$3" && "${link[@]}"; } >"$dir/log" 2>&1 || {
        echo "[  FAILED  ] cuda_planted_$name: does not compile"
        tail -5 "$dir/log"
        return
    }
    if [ "$program" = rows-profile ]; then
        EMU_PROFILE=$dir/profile "$dir/program" >"$dir/log" 2>&1
        said=$(dear "$dir/profile")
    elif said=$(ROWS_ONLY=$5 ROWS_COMPUTE=$6 TMPDIR=$dir timeout 100 "$dir/program" 2>&1); then
        said="all well: $(tail -3 <<<"$said")"
    fi
    if grep -qaE "${7//||/\\|\\|}" <<<"$said"; then
        echo "[       OK ] cuda_planted_$name"
    else
        echo "[  FAILED  ] cuda_planted_$name: wanted \"$7\" in:"
        grep -aE 'emu_check|emulated|error|all well|least' <<<"$said" | head -8 | cut -c 1-200
    fi
    rm -rf "$dir"
}
export -f try dear
export build tmp
wanted=" $* "
grep -v '^#' tests/emu/planted.txt | while read -r name changed compiled checks compute; do
    [ -n "$name" ] || continue
    read -r script
    read -r expected
    [ $# -eq 0 ] || [[ $wanted == *" $name "* ]] || continue
    printf '%s\0' "$name" "$changed" "$compiled" "$script" "$checks" "$compute" "$expected"
done | xargs -0 -r -n 7 -P "$(nproc)" bash -c 'try "$@"' sh >"$tmp/results"
cat "$tmp/results"
! grep -q FAILED "$tmp/results" && grep -q OK "$tmp/results"
