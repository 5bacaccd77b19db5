#!/bin/bash
# bootstrap with what it would find and call replaced by stand-ins: a compiler that fails for one
# library, an apt-get, a sudo and a make that only write down how they were called.
here=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/bin" "$dir/repo"
cp "$here/bootstrap" "$dir/repo/"
for tool in sh sed cat tr mktemp rm dirname nproc env bash; do ln -sf "$(command -v $tool)" "$dir/bin/$tool"; done
stand_in() { # NAME BODY: a new file, never through a link to the real tool
    rm -f "$dir/bin/$1"
    printf '#!/bin/sh\n%s\n' "$2" >"$dir/bin/$1"
    chmod +x "$dir/bin/$1"
}
# `missing` holds the flag of the library that is not there; installing empties it.
stand_in gcc 'case "$*" in *"$(cat '"$dir"'/missing)"*) exit 1;; esac; exit 0'
stand_in clang 'exit 0'
stand_in g++ 'exit 0'
stand_in mpicc 'exit 0'
stand_in make 'echo "make $*" >>'"$dir"'/calls'
stand_in apt-get 'echo "apt-get $*" >>'"$dir"'/calls; case "$*" in *install*) echo nothing >'"$dir"'/missing;; esac'
stand_in id 'cat '"$dir"'/uid'

bad=0
check() { # NAME MISSING UID STATUS TEXT CALLS ARGS...: status, text in what is printed, what was called
    local name=$1 missing=$2 uid=$3 status=$4 text=$5 calls=$6 out rc called
    shift 6
    echo "$missing" >"$dir/missing"; echo "$uid" >"$dir/uid"; : >"$dir/calls"
    out=$(PATH="$dir/bin" "$dir/repo/bootstrap" "$@" </dev/null 2>&1); rc=$?
    called=$(sed 's/make -j [0-9]*/make/' "$dir/calls" | tr '\n' ';')
    if [ $rc -eq "$status" ] && [[ $out == *"$text"* ]] && [ "$called" = "$calls" ]; then
        echo "[       OK ] bootstrap_$name"
    else
        echo "[  FAILED  ] bootstrap_$name"
        echo "status $rc (wanted $status), called '$called' (wanted '$calls'), wanted '$text' in: $out"
        bad=1
    fi
}
line="apt-get install -y --no-install-recommends libyaml-dev"
apt="apt-get update -q;apt-get install -y -q --no-install-recommends libyaml-dev;"
check nothing_missing nothing 0 0 "" "make test WERROR=1;" test WERROR=1
check nothing_missing_yes nothing 0 0 "" "make quickstart;" -y quickstart
check build nothing 0 0 "" "make all;" build
check goal_first nothing 0 0 "" "make lint;" lint -y
check no_terminal -lyaml 0 1 "  $line" "" build
check no_terminal_names -lyaml 0 1 "missing: libyaml" "" test
check installs -lyaml 0 0 "missing: libyaml" "${apt}make all;" -y build
check not_root_no_sudo -lyaml 1000 1 "have root run: $line" "" -y build
check tests_need_more -lcmocka 0 1 "libcmocka-dev" "" test
check build_needs_less -lcmocka 0 0 "" "make all;" build
check probe -lyaml 0 1 "MISSING (Debian: libyaml-dev)" "" probe
check bad_goal nothing 0 1 "is not quickstart" "" tset
stand_in sudo 'echo "sudo" >>'"$dir"'/calls; exec "$@"'
check sudo -lyaml 1000 0 "" "sudo;apt-get update -q;sudo;apt-get install -y -q --no-install-recommends libyaml-dev;make all;" -y build
check sudo_line -lyaml 1000 1 "  sudo $line" "" build
stand_in apt-get 'echo "apt-get $*" >>'"$dir"'/calls; exit 100'
check install_fails -lyaml 0 1 "installing failed" "apt-get update -q;" -y build
stand_in apt-get 'echo "apt-get $*" >>'"$dir"'/calls'
check still_missing -lyaml 0 1 "still missing: libyaml" "$apt" -y build
rm "$dir/bin/apt-get"
check other_system -lyaml 0 1 "Debian's names: libyaml-dev" "" -y build
exit $bad
