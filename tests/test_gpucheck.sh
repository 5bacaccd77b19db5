#!/bin/bash
# What is meant for a GPU machine works before it gets there: gpucheck and every stage of tests/gpu/run.sh, on the
# emulator at tiny sizes. The comparison with transformers + PEFT runs where NIBBLE_TORCH names a python that has them.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
build=$(dirname "$NIBBLE") run=$(dirname "$0")/gpu/run.sh side=$(dirname "$0")/gpu/side.py
check=$build/gpucheck-emu
[ -x "$check" ] || { skip gpucheck "no $check: make tests-built"; exit 0; }

says 'no command' 2 'no command' "$check"
says 'unknown option' 2 'what is --what' "$check" correct --what 1
says 'a number that is none' 2 'what is --steps' "$check" step --steps many
says 'a device that is not there' 1 'there is no device "cuda"' "$check" bench --device cuda
says 'nothing to check' 1 '"ran": 0' "$check" correct --device cpu --only nothing
says 'checks of a family' 0 '"failed": 0' "$check" correct --device emu --quick --only optimizer --seed 5
case $out in
    *'"family": "optimizer", "name": "adamw/'*'"status": "ok"'*) ok 'a row for each check';;
    *) bad 'a row for each check' "$out";;
esac
is 'every family has a name' "$("$check" list | sort -u | wc -l)" "$("$check" list | wc -l)"

# ---- the stages, without python ----
export OUT=$tmp/out DEVICE=emu BIN=$build SIZE=tiny PYTHON=none WORK=$tmp
says 'no such stage' 2 "no stage 'nosuch'" "$run" go 10 nosuch
says 'no time: skipped and said so' 0 'bench: skipped' "$run" go 0 bench
says 'stages' 0 'step-8b' "$run" stages
rm -rf "$OUT"
mkdir "$tmp/bin" # the sanitizer is the command it is given
printf '#!/bin/sh\nshift 4\nexec "$@"\n' >"$tmp/bin/compute-sanitizer"
chmod +x "$tmp/bin/compute-sanitizer"
PATH=$tmp/bin:$PATH
yes 'all stages end well' "$run" go 500
rows=$OUT/rows.jsonl
# has NAME PATTERN [NUMBER]: so many rows (at least one) are like this
has() {
    local n; n=$(grep -c "$2" "$rows")
    if [ "$n" -ge "${3:-1}" ]; then ok "$1"; else bad "$1" "$n rows like $2: $(grep -v '"ok"' "$rows" | tail -n 5)"; fi
}
has 'the machine' '"row": "machine"'
has 'checks' '"row": "check",.*"status": "ok"' 50
is 'no check failed' "$(grep -c '"row": "check",.*"failed"' "$rows")" 0
has 'large shapes agree with the processor' '"row": "large".*"status": "ok"' 40
has 'the sanitizer saw every family' '"row": "sanitize".*"status": "0"' $((2 * $("$check" list | wc -l)))
has 'ceilings' '"model": "ceiling"' 2
has 'kernels against their floor' '"row": "kernel", "model": "tiny".*"of_floor"' 40
is 'no kernel failed' "$(grep -c '"row": "kernel".*"why"' "$rows")" 0
has 'the quick start trains as on the processor' '"row": "train".*"status": "ok"'
for model in Llama-3.2-1B Llama-3.1-8B Llama-3.2-3B; do
    has "steps of $model" "\"row\": \"step\", \"by\": \"nibble\", \"model\": \"tiny-$model\".*\"tokens_s\""
done
has 'where the time goes' '"row": "operation".*"attention"'
has 'what was not compared says so' '"row": "comparison".*"skipped"'
is 'stages that ended well' "$(grep -c '"row": "stage".*"status": "ok"' "$rows")" 9
is 'nothing of where it ran' "$(grep -c "$tmp" "$rows")" 0

# ---- the comparison, in f32: equal to rounding ----
torch=${NIBBLE_TORCH:-}
if [ -z "$torch" ]; then
    skip comparison 'NIBBLE_TORCH is not set (wanted a python with torch, transformers, peft)'
    exit $failed
fi
export OMP_NUM_THREADS=1
tiny_config "$tmp/llama" 64 2 300 false
sed -i 's/"intermediate_size": 96/"intermediate_size": 128/' "$tmp/llama/config.json"
yes 'random weights' "$torch" "$side" make "$tmp/llama"
yes 'in 4 bits' "$NIBBLE" quantize --base "$tmp/llama" --out "$tmp/llama-nf4"
compare() { # BASE MODEL FORMAT OPTION...: an agreement row in $out
    local base=$1 model=$2 format=$3; shift 3
    rm -rf "$tmp/run"; mkdir "$tmp/run"
    "$check" step --device "${on:-cpu}" --model "$model" --out "$tmp/run" --format "$format" --tokens 48 --docs 3 --steps 8 \
        --rank 4 --compute f32 --lr 1e-2 --seed 3 "$@" >"$tmp/run/rows.jsonl" || return 1
    [ -z "${spoil:-}" ] || sed -i "$spoil" "$tmp/run/batch.json"
    out=$("$torch" "$side" train "$tmp/llama" "$tmp/run" --base "$base" --quantized "$tmp/llama-nf4" 2>"$tmp/side.log" |
        grep '"row": "agreement"')
}
# within NAME KEY LIMIT: a number of $out
within() {
    local x; x=$(sed -n "s/.*\"$2\": \([-0-9.e+]*\).*/\1/p" <<<"$out")
    if [ -n "$x" ] && awk "BEGIN { exit !($x <= $3) }"; then ok "$1"
    else bad "$1" "$2 is '$x', more than $3: $(tail -n 3 "$tmp/side.log")"; fi
}
compare as-is "$tmp/llama" as-is
within 'LoRA: losses' worst_loss_error 1e-5
within 'LoRA: gradients' worst_gradient_error 1e-4
for base in dequantized nf4; do
    compare $base "$tmp/llama-nf4" nf4 --checkpoint
    within "QLoRA, $base: losses" worst_loss_error 1e-5
    within "QLoRA, $base: gradients" worst_gradient_error 1e-4
done
on=emu compare dequantized "$tmp/llama-nf4" nf4
within 'QLoRA by the GPU code: losses' worst_loss_error 1e-5
within 'QLoRA by the GPU code: gradients' worst_gradient_error 1e-4
spoil='s/"lr": 0.01/"lr": 0.011/' compare as-is "$tmp/llama" as-is
if awk "BEGIN { exit !($(sed -n 's/.*"worst_loss_error": \([-0-9.e+]*\).*/\1/p' <<<"$out") > 1e-4) }"; then
    ok 'another learning rate is noticed'
else
    bad 'another learning rate is noticed' "$out"
fi
exit $failed
