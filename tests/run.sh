#!/bin/sh
# Runs every test program under BUILD/tests and the shell tests beside this file; the last line is
# "N passed, N failed, N skipped". Usage: tests/run.sh BUILD [NAME...]
build=$1; shift
here=$(dirname "$0")
pass=0; failed=0; skip=0; bad=
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
export TMPDIR="$tmp" NIBBLE="$build/nibble" NIBBLE_CACHE="$tmp/cache"
for t in "$build"/tests/test_* "$here"/test_*.sh; do
    case $t in *.o|*.d) continue;; esac
    [ -x "$t" ] || continue
    name=$(basename "$t")
    if [ $# -gt 0 ]; then case " $* " in *" $name "*) ;; *) continue;; esac; fi
    start=$(date +%s)
    CMOCKA_MESSAGE_OUTPUT=STDOUT "$t" >"$tmp/log" 2>&1; rc=$?
    p=$(grep -c '^\[       OK \]' "$tmp/log"); f=$(grep -c '^\[  FAILED  \] [a-zA-Z]' "$tmp/log"); s=$(grep -c '^\[  SKIPPED \] [a-zA-Z]' "$tmp/log")
    s=$((s > 0 ? s / 1 : 0))
    # cmocka lists skipped and failed tests twice: while running and in its summary
    s=$(grep '^\[  SKIPPED \] [a-zA-Z]' "$tmp/log" | sort -u | wc -l); f=$(grep '^\[  FAILED  \] [a-zA-Z]' "$tmp/log" | sort -u | wc -l)
    if [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    pass=$((pass + p)); failed=$((failed + f)); skip=$((skip + s))
    echo "$name: $p passed, $f failed, $s skipped ($(($(date +%s) - start)) s)"
    grep -h '^skipped:' "$tmp/log" | sort | uniq -c | sed 's/^ */    /' | head -20
    if [ $rc -ne 0 ] || [ "$f" -ne 0 ]; then bad="$bad $name"; sed 's/^/    | /' "$tmp/log" | tail -60; fi
done
[ -z "$bad" ] || echo "failed:$bad"
echo "$pass passed, $failed failed, $skip skipped"
[ "$failed" -eq 0 ] && [ "$pass" -gt 0 ]
