#!/bin/bash
# The checks of all kernel rows (tests/rows.h) on the emulator under its checker (tests/emu/check.cc): no race, no access
# out of bounds, no read of shared memory that nobody wrote, whatever the order in which threads and blocks run, and
# whether copies of cp.async and work in streams come early or late.
set -u
build=$(dirname "${NIBBLE:?}")
if [ ! -x "$build/tests/rows-check" ]; then
    echo "skipped: the checker is not built with sanitizers"
    echo "[  SKIPPED ] cuda_check"
    exit 0
fi
tmp=${TMPDIR:-/tmp}
# Buffers without red zones: what lies beyond them belongs to nobody.
export ROWS_DEVICE=emu ROWS_REDZONE=0 OMP_NUM_THREADS=1

check() { # NAME SETTING...
    local name=$1
    shift
    if env "$@" "$build/tests/rows-check" >"$tmp/$name.log" 2>&1; then
        echo "[       OK ] cuda_check_$name"
    else
        echo "[  FAILED  ] cuda_check_$name: $*"
        grep -aE '^emu_check|emulated kernel|ERROR|FAILED' "$tmp/$name.log" | cut -c 1-220 | head -30
        return 1
    fi
}
check forward EMU_ORDER=fwd EMU_STREAM=now & forward=$!
check reverse EMU_ORDER=rev EMU_ASYNC=early & reverse=$!
bad=0
wait $forward || bad=1
check random EMU_ORDER=rand EMU_SEED=1 || bad=1
wait $reverse || bad=1
exit $bad
