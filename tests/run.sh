#!/bin/bash
# Runs every test program under BUILD/tests and every shell test beside this file, each under a time
# limit, with a folder of its own for temporary files. The last line is "N passed, N failed, N skipped";
# the exit status is 0 only if nothing failed and something passed.
#   tests/run.sh BUILD [NAME...]     NAMEs: test_config, test_cli, ...; TEST_TIMEOUT=600 seconds each
set -u
if [ $# -lt 1 ]; then sed -n '5s/^#   //p' "$0"; exit 2; fi
build=$(realpath "$1") || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
limit=${TEST_TIMEOUT:-600}
passed=0 failed=0 skipped=0 bad=
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export NIBBLE="$build/nibble" NIBBLE_CACHE="$tmp/cache" CMOCKA_MESSAGE_OUTPUT=STDOUT LC_ALL=C.UTF-8
# Threads that wait do not spin: on a busy machine that costs minutes.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0

# Names of the tests with this mark; cmocka lists failed and skipped ones again in its summary.
count() { grep -a "^\[ *$1 *\] [a-zA-Z]" "$tmp/log" | sort -u | wc -l; }

for t in tests/test_*.c tests/test_*.sh; do
    [ -e "$t" ] || continue
    name=$(basename "$t"); name=${name%.*}
    if [ $# -gt 0 ]; then case " $* " in *" $name "*) ;; *) continue;; esac; fi
    program=$t
    case $t in *.c) program=$build/tests/$name;; esac
    mkdir -p "$tmp/$name"
    start=$SECONDS
    TMPDIR="$tmp/$name" timeout -k 10 "$limit" "$program" >"$tmp/log" 2>&1 </dev/null
    rc=$?
    rm -rf "${tmp:?}/$name"
    p=$(count OK) f=$(count FAILED) s=$(count SKIPPED)
    if [ $rc -eq 124 ] || [ $rc -eq 137 ]; then echo "ended: more than $limit s" >>"$tmp/log"; fi
    if [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then f=1; echo "exit status $rc" >>"$tmp/log"; fi
    if [ $rc -eq 0 ] && [ "$f" -eq 0 ] && [ $((p + s)) -eq 0 ]; then f=1; echo "no test was counted" >>"$tmp/log"; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    echo "$name: $p passed, $f failed, $s skipped ($((SECONDS - start)) s)"
    grep -ah '^skipped:' "$tmp/log" | sort | uniq -c | sed 's/^ */    /' | head -20
    if [ "$f" -ne 0 ]; then bad="$bad $name"; tail -n 80 "$tmp/log" | sed 's/^/    | /'; fi
done
[ -z "$bad" ] || echo "failed:$bad"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
