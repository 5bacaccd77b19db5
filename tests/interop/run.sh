#!/bin/bash
# Reads what nibble exports with the programs it is for: the gguf package, llama.cpp, transformers and PEFT, from PyPI in
# a virtual environment under build/interop.
#   tests/interop/run.sh NIBBLE [BASE [ADAPTER]]    default: the sample base, and an adapter of a few steps on it
set -eu
nibble=$(realpath "$1")
cd "$(dirname "$0")/../.."
venv=$PWD/build/interop
base=${2:-data/samples/base} adapter=${3:-}
if [ ! -e "$venv/ready" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r tests/interop/requirements.txt
    touch "$venv/ready"
fi
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
if [ -z "$adapter" ]; then
    adapter=$tmp/run/adapter
    "$nibble" train configs/quickstart.yaml --set base_model="$base" --set max_steps=4 --set load_in_4bit=false \
        --set adapter=lora --set output_dir="$tmp/run" >"$tmp/train.log" 2>&1 || { tail -n 5 "$tmp/train.log"; exit 1; }
fi
"$nibble" export --base "$base" --adapter "$adapter" --format peft --out "$tmp/peft"
"$nibble" export --base "$base" --adapter "$adapter" --format hf --out "$tmp/hf"
"$venv/bin/python" tests/interop/check_peft.py --base "$base" --adapter "$tmp/peft" --nibble "$nibble" >/dev/null
"$venv/bin/python" tests/interop/check_peft.py --base "$tmp/hf" --nibble "$nibble" >/dev/null
"$venv/bin/python" tests/interop/check_gguf.py --nibble "$nibble" --base "$base" --adapter "$adapter"
