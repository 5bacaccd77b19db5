#!/bin/bash
# The checks of all kernel rows (tests/rows.h) on the emulator under its checker (tests/emu/check.cc): no race, no access
# out of bounds, no read of shared memory that nobody wrote, whatever the order in which threads and blocks run, and
# whether copies of cp.async and work in streams come early or late. And what the accesses of the hot kernels cost
# (tests/emu/profile.c): shared memory without bank conflicts, global memory in at most 1.5 times the sectors that would
# hold the words; tests/emu/exceptions.txt names the others.
set -u
build=$(dirname "${NIBBLE:?}")
cd "$(dirname "$0")/.." || exit 2
if [ ! -x "$build/tests/rows-check" ]; then
    echo "skipped: the checker is not built with sanitizers"
    echo "[  SKIPPED ] cuda_check"
    exit 0
fi
tmp=${TMPDIR:-/tmp}
# Buffers without red zones: what lies beyond them belongs to nobody.
export ROWS_DEVICE=emu ROWS_REDZONE=0 OMP_NUM_THREADS=1

check() { # NAME PROGRAM SETTING...
    local name=$1 program=$2
    shift 2
    if env "$@" "$build/tests/$program" >"$tmp/$name.log" 2>&1; then
        echo "[       OK ] cuda_check_$name"
    else
        echo "[  FAILED  ] cuda_check_$name: $*"
        grep -aE '^emu_check|emulated kernel|ERROR|FAILED' "$tmp/$name.log" | cut -c 1-220 | head -30
        return 1
    fi
}
. tests/emu/costs.sh
costs() {
    local lines
    rm -f "$tmp/profile"
    if ! EMU_PROFILE=$tmp/profile "$build/tests/rows-profile" >"$tmp/costs.log" 2>&1; then
        lines="rows-profile failed: $(cut -c 1-220 "$tmp/costs.log" | head -30)"
    elif [ "$(wc -l <"$tmp/profile")" -lt 100 ]; then
        lines="the profile has only $(wc -l <"$tmp/profile") lines"
    else
        lines=$(dear "$tmp/profile")
    fi
    if [ -z "$lines" ]; then echo "[       OK ] cuda_check_costs"; return; fi
    echo "[  FAILED  ] cuda_check_costs"
    echo "$lines"
    return 1
}

check forward rows-check EMU_ORDER=fwd EMU_STREAM=now & forward=$!
check random rows-check ROWS_COMPUTE=bf16 EMU_ORDER=rand EMU_SEED=1 EMU_ASYNC=early & random=$!
bad=0
wait $forward || bad=1
# Results alone: the last thread first.
check reverse test_rows EMU_ORDER=rev || bad=1
costs || bad=1
wait $random || bad=1
exit $bad
