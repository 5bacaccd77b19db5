#!/bin/bash
# make bench-peers: nibble beside transformers + PEFT and llama.cpp, from PyPI in a virtual environment in build/peers.
#   bench/peers/run.sh NIBBLE [options of run.py]
set -eu
nibble=$(realpath "$1"); shift
cd "$(dirname "$0")/../.."
venv=$PWD/build/peers/venv
if ! cmp -s bench/peers/requirements.txt "$venv/ready"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r bench/peers/requirements.txt
    cp bench/peers/requirements.txt "$venv/ready"
fi
results=$("$venv/bin/python" bench/peers/run.py --nibble "$nibble" "$@")
echo "$results"
"$venv/bin/python" bench/peers/report.py "$results"
