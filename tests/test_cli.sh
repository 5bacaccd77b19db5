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
if [ -c /dev/full ]; then
    if "$NIBBLE" --version >/dev/full 2>/dev/null; then echo "[  FAILED  ] cli_full_disk"; bad=1
    else echo "[       OK ] cli_full_disk"; fi
fi
exit $bad
