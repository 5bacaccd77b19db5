#!/bin/bash
# Looks for inputs that break nibble's readers, with libFuzzer, target by target; prints a table and fails when
# something was found. What is found goes to tests/fuzz/found/TARGET, where tests/test_fuzz.c runs it from then on.
#   tests/fuzz/run.sh BUILD [TARGET...]      BUILD: a build by `make FUZZ=1 CC=clang`
# FUZZ_SECONDS=60 for each target. Inputs that reach new code are kept in BUILD/corpus/TARGET for the next time.
set -u
build=$(realpath "$1") || exit 2
shift
cd "$(dirname "$0")/../.." || exit 2
seconds=${FUZZ_SECONDS:-60} bad=0
# shellcheck disable=SC2046 # several names
[ $# -gt 0 ] || set -- $(ls tests/fuzz/seeds)
export OMP_NUM_THREADS=1 ASAN_OPTIONS=quarantine_size_mb=8:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1

# Words that a reader compares with are in its source.
words() {
    grep -ohE '"[][A-Za-z0-9_.<>|{}%#:-]{2,24}"' "$@" | sort -u
}

sources() {
    case $1 in
    template) echo data/jinja*.c;;
    tokenizer) echo data/tokenizer*.c;;
    yaml) echo configs/*.def configs/*.c;;
    rows) echo data/reader*.c data/format*.c data/dataset.c;;
    config) echo model/spec.c model/names.c model/rope.c;;
    base | quant_state) echo model/weights.c model/nf4_file.c model/safetensors.c model/spec.c;;
    adapter) echo adapters/peft.c adapters/pattern.c model/safetensors.c;;
    *) echo model/safetensors.c model/gguf*.c;;
    esac
}

printf '%-14s %10s %8s %7s %7s %7s\n' target runs runs/s edges corpus found
for t; do
    corpus=$build/corpus/$t log=$build/fuzz-$t.log
    mkdir -p "$corpus" "tests/fuzz/found/$t"
    ln -sf fuzz "$build/fuzz-$t"
    # shellcheck disable=SC2046 # several files
    words $(sources "$t") >"$build/$t.dict"
    before=$(find "tests/fuzz/found/$t" -type f | wc -l)
    nice "$build/fuzz-$t" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=512 -malloc_limit_mb=256 -max_len=16384 \
        -print_final_stats=1 -dict="$build/$t.dict" -artifact_prefix="tests/fuzz/found/$t/" \
        "$corpus" "tests/fuzz/seeds/$t" "tests/fuzz/found/$t" >"$log" 2>&1
    rc=$?
    found=$(($(find "tests/fuzz/found/$t" -type f | wc -l) - before))
    rmdir "tests/fuzz/found/$t" 2>/dev/null
    stat() { sed -n "s/^stat::$1: *//p" "$log"; }
    printf '%-14s %10s %8s %7s %7s %7s\n' "$t" "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" \
        "$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -c 6-)" "$(find "$corpus" -type f | wc -l)" "$found"
    if [ $rc -ne 0 ]; then
        bad=1
        grep -E 'ERROR|SUMMARY|runtime error|Test unit written' "$log" | head -8 | sed 's/^/    /'
    fi
done
exit $bad
