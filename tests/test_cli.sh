#!/bin/sh
# The command line itself: help, version, exit statuses, near misses. $NIBBLE is the program.
bad=0
check() { # NAME WANTED_STATUS TEXT ARGS...: the status, and TEXT somewhere in what is printed
    name=$1 want=$2 text=$3; shift 3
    out=$("$NIBBLE" "$@" 2>&1); rc=$?
    case $out in *"$text"*) found=yes;; *) found=no;; esac
    if [ $rc -eq "$want" ] && [ $found = yes ]; then echo "[       OK ] cli_$name"
    else echo "[  FAILED  ] cli_$name"; echo "status $rc (wanted $want), wanted '$text' in: $out"; bad=1; fi
}
check help 0 "doctor" --help
check version 0 "nibble " --version
check no_command 1 "usage: nibble COMMAND"
check unknown_command 1 "did you mean 'doctor'?" docter
check unknown_far 1 "lists the commands" xyzzyxyzzy
check command_help 0 "usage: nibble doctor" doctor --help
check help_command 0 "usage: nibble doctor" help doctor
check unknown_option 1 "unknown option --frob" doctor --frob
check stray_argument 1 "unexpected argument 'now'" doctor now
check doctor 0 "will use" doctor
NIBBLE_CPU=avx2 check lesser_processor 0 "limited by NIBBLE_CPU=avx2" doctor
NIBBLE_CPU=sse check lesser_processor_unknown 1 "NIBBLE_CPU=sse: give base, avx2, avx512 or all" doctor
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
printf 'base_model: m\noutput_dir: o\ndatasets: [{path: d.csv, type: completion}]\n' >"$dir/good.yaml"
printf 'base_modle: m\n' >"$dir/bad.yaml"
check config_check 0 "no mistakes" config check "$dir/good.yaml"
check config_check_bad 1 "bad.yaml:1:1: base_modle: unknown key; did you mean base_model?" config check "$dir/bad.yaml"
check config_resolve 0 "lora_alpha: 8" config resolve "$dir/good.yaml" --set lora_r=4
check config_keys 0 "learning_rate: number in [0, 10]; default 2e-4" config keys
check config_verb 1 "did you mean resolve?" config resolv
check config_file 1 "needs the YAML file" config check
if "$NIBBLE" config keys --markdown | diff "$(dirname "$0")/../docs/config.md" - >&2; then
    echo "[       OK ] cli_config_reference"
else
    echo "docs/config.md is not what the program says: nibble config keys --markdown >docs/config.md"
    echo "[  FAILED  ] cli_config_reference"; bad=1
fi
if [ -c /dev/full ]; then
    if "$NIBBLE" --version >/dev/full 2>/dev/null; then echo "[  FAILED  ] cli_full_disk"; bad=1
    else echo "[       OK ] cli_full_disk"; fi
fi
exit $bad
