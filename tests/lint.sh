#!/bin/bash
# The house rules that a program can check; exit status 1 when one is broken.
#   make lint     or     tests/lint.sh [RULE...]    RULE: floors headers words layout scripts build
# The rules headers and build use gcc and clang, each if it is there; LINT_CC=clang: that one alone.
set -u
cd "$(dirname "$0")/.." || exit 2
bad=0
say() { echo "$*"; bad=1; }
complain() { # HEADING LINES: complains if there are lines; not at the end of a pipe, where `bad` would be lost
    [ -z "$2" ] || { say "$1"; echo "$2" | head -40 | cut -c 1-160 | sed 's/^/    /'; }
}
search() { xargs -r grep -nE "$1"; } # in the files on standard input
files() { git ls-files -co --exclude-standard -- "$@" | sort -u | while read -r f; do [ -f "$f" ] && echo "$f"; done; }
text=('*.c' '*.h' '*.def' '*.sh' '*.md' '*.py' '*.yaml' Makefile bootstrap .ci/run)
compilers() { for cc in ${LINT_CC:-gcc clang}; do command -v $cc >/dev/null && echo $cc; done; }

# A file includes only its own floor or lower ones; model/ and data/ stand side by side.
floors() {
    complain "includes that climb to a higher floor:" "$(files '*.c' '*.h' | xargs -r grep -Hn '^#include "' | awk -F/ '
        BEGIN { n = split("core configs kernels autograd model,data adapters generate eval train measure cli", f, " ")
                for (i = 1; i <= n; i++) { k = split(f[i], g, ","); for (j = 1; j <= k; j++) floor[g[j]] = i } }
        { split($0, part, "\""); split(part[2], path, "/"); from = $1; to = path[1]
          if (!(from in floor) || !(to in floor) || from == to) next
          if (floor[to] >= floor[from]) print }')"
}

# Every header compiles alone; those without an include guard are templates, made to be included with macros set. Those of
# kernels/cuda are C++ when they have device code.
headers() {
    local cc cxx='grep -qE __device__|cuda/(gpu|cuda|emu)\.h'
    for cc in $(compilers); do
        complain "headers that do not compile alone with $cc:" "$(files '*.h' | xargs -r grep -l '^#ifndef NB_.*_H$' |
            xargs -r -P 2 -I {} sh -c '
                language="c -std=c11 -Wstrict-prototypes" compiler=$1
                case $2 in kernels/cuda/emu_math.h) exit;; kernels/cuda/*) if $3 "$2"; then
                    language="c++ -std=c++17 -DNB_EMU -Wno-unknown-pragmas" compiler=$4; fi;; esac
                printf "#include \"%s\"\n" "$2" | "$compiler" -x $language -D_GNU_SOURCE -I. -fopenmp -Wall -Wextra \
                    -Wshadow -Wundef -Werror -Wno-unused-function -fsyntax-only - 2>&1 | head -5' \
                sh "$cc" {} "$cxx" "$(echo "$cc" | sed 's/gcc/g++/; s/clang/clang++/')")"
    done
}

words() {
    complain "unfinished work in the text:" "$(files "${text[@]}" | grep -v '^tests/lint.sh$' |
        search '\b(TODO|FIXME|XXX|HACK)\b')"
    complain "code in comments:" "$(files '*.c' '*.h' | search '^[[:space:]]*//.*;[[:space:]]*$')"
    complain "flags that break NaN and rounding:" "$(grep -nE 'Ofast|fast-math' Makefile)"
    complain "the program ends only where cli/ returns (our own mistakes: NB_ASSERT):" "$(files '*.c' '*.h' |
        grep -vE '^(tests|bench)/|^core/(status|mem)\.' | search '(^|[^_a-z])(assert|abort|_?exit) ?\(')"
}

layout() {
    complain "white space at line ends:" "$(files "${text[@]}" | search '[[:space:]]+$')"
    complain "tabs:" "$(files '*.c' '*.h' '*.def' | search "$(printf '\t')")"
    complain "lines over 140 columns:" "$(files '*.c' '*.h' '*.def' '*.sh' | search '^.{141,}')"
    complain "no newline at the end:" "$(files "${text[@]}" |
        while read -r f; do [ -z "$(tail -c 1 "$f")" ] || echo "$f"; done)"
    files '*.c' '*.h' '*.def' '*.sh' | xargs -r grep -hE '^.{121,}' | wc -l | sed 's/^/note: lines over 120 columns: /'
    files '*.c' '*.h' | xargs -r wc -l | awk '$1 > 600 && $2 != "total" { print "note: " $2 " has " $1 " lines" }'
}

scripts() {
    local f
    for f in $(files '*.sh' bootstrap .ci/run); do
        [ -x "$f" ] || say "$f is not executable"
        case $(head -n 1 "$f") in *bash) bash -n "$f" || bad=1;; *) sh -n "$f" || bad=1;; esac
    done
    if command -v shellcheck >/dev/null; then
        # shellcheck disable=SC2046 # names without spaces
        shellcheck -S warning $(files '*.sh' bootstrap .ci/run) || bad=1
    fi
}

# No warnings anywhere. -O2: some warnings need the optimizer.
build() {
    local cc
    for cc in $(compilers); do
        MAKEFLAGS='' make -s -k -j "$(nproc)" CC=$cc WERROR=1 CFLAGS=-O2 BUILD="build/lint-$cc" objects \
            >build/lint.log 2>&1 || complain "$cc says:" "$(grep -E 'error|warning|missing' build/lint.log)"
    done
}

mkdir -p build
[ $# -gt 0 ] || set -- floors headers words layout scripts build
for rule; do
    case $rule in
        floors|headers|words|layout|scripts|build) $rule;;
        *) say "no rule '$rule'";;
    esac
done
command -v clang >/dev/null || echo "note: clang is not here; ./bootstrap lint installs it"
[ $bad -eq 0 ] && echo "lint: clean"
exit $bad
