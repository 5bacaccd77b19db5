#!/bin/bash
# The GPU backend end to end without a GPU: the same commands on the cpu and on the emulated GPU (nibble-emu: the same
# kernel sources) give the same loss curves, evaluations and texts; resuming gives the same bytes; and what a missing, old
# or small GPU says.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
EMU=$(dirname "$NIBBLE")/nibble-emu
[ -x "$EMU" ] || { skip test_cuda_train "nibble-emu is not built"; exit 0; }
tiny_base "$tmp/base" 64 2 4100
tiny_data 40 "$tmp/more.jsonl"
tiny_data 4 "$tmp/train.jsonl" 200
tiny_data 4 "$tmp/test.jsonl" 100
cat >"$tmp/run.yaml" <<END2
base_model: $tmp/base
adapter: lora
load_in_4bit: false
bf16: false
lora_r: 8
datasets: [{path: $tmp/train.jsonl, type: prompt_completion}]
test_datasets: [{path: $tmp/test.jsonl, type: prompt_completion, name: test, metrics: [loss, f1], max_new_tokens: 4}]
train_on_inputs: true
sequence_len: 64
micro_batch_size: 2
gradient_accumulation_steps: 1
max_steps: 8
save_steps: 4
eval_steps: 8
learning_rate: 1e-2
warmup_steps: 0
dataset_prepared_path: none
threads: 1
output_dir: $tmp/OUT
END2
program() { if [ "$1" = emu ]; then echo "$EMU"; else echo "$NIBBLE"; fi; }
# on DEVICE DIR ARGS...: a run on the cpu or the emulated GPU
on() {
    local device=$1 dir=$2; shift 2
    "$(program "$device")" train "$tmp/run.yaml" --device "$device" --set output_dir="$tmp/$dir" "$@" >>"$tmp/$dir.log" 2>&1
}
weights() { sha "$tmp/$1/adapter/adapter_model.safetensors"; }
# curves_agree NAME TOLERANCE NORM_TOLERANCE DIR DIR: relative differences of every loss, of steps and evaluations, and of the
# gradient's norm. The curve must fall, or it would say nothing about the updates.
curves_agree() {
    local got
    got=$({
        paste -d ' ' <(fields "$tmp/$4/metrics.jsonl" loss) <(fields "$tmp/$5/metrics.jsonl" loss) | sed "s/$/ $2/"
        paste -d ' ' <(fields "$tmp/$4/metrics.jsonl" grad_norm) <(fields "$tmp/$5/metrics.jsonl" grad_norm) | sed "s/$/ $3/"
    } | awk '{ d = $1 > $2 ? $1 - $2 : $2 - $1; if (!(d <= $3 * $1)) bad = bad " " $1 "/" $2 }
        NR == 1 { first = $2 } NR == 8 { last = $2 }
        END { print NR < 16 ? "only " NR " figures" : !(last < 0.95 * first) ? "no fall: " first " " last : bad ? "differ" bad : "ok" }')
    is "$1" ok "$got"
}
both() { # NAME TOLERANCE NORM_TOLERANCE ARGS...: the run on cpu and emu
    local name=$1 tolerance=$2 norms=$3; shift 3
    yes "${name}_cpu" on cpu "$name-cpu" "$@"
    yes "${name}_emu" on emu "$name-emu" "$@"
    curves_agree "${name}_curve" "$tolerance" "$norms" "$name-cpu" "$name-emu"
}
same_output() { # NAME ARGS...: a command prints the same on both
    local name=$1; shift
    "$NIBBLE" "$@" --device cpu >"$tmp/cpu.out" 2>"$tmp/cpu.err" || bad "${name}_cpu" "$(cat "$tmp/cpu.err")"
    "$EMU" "$@" --device emu >"$tmp/emu.out" 2>"$tmp/emu.err" || bad "${name}_emu" "$(cat "$tmp/emu.err")"
    if [ -s "$tmp/cpu.out" ]; then is "$name" "$(cat "$tmp/cpu.out")" "$(cat "$tmp/emu.out")"; else bad "$name" "no output"; fi
}

# The base learns the kind of text first, so that there is something to adapt.
yes base on cpu more --set adapter=full --set datasets.0.path="$tmp/more.jsonl" --set micro_batch_size=8 --set max_steps=60 \
    --set save_steps=60 --set eval_steps=60
mv "$tmp/more/model" "$tmp/trained"
sed -i "s|^base_model:.*|base_model: $tmp/trained|" "$tmp/run.yaml"

# ---- f32: another order of sums and nothing else ----
both lora 1e-5 1e-4
says lora_says_device 0 "device    GPU 0, " cat "$tmp/lora-emu.log"
is cpu_says_none "" "$(grep ^device "$tmp/lora-cpu.log")"
both full 1e-5 1e-4 --set adapter=full --set base_model="$tmp/base" --set test_datasets=null

# ---- bf16 on a 4-bit base with double quantization. The cpu rounds the operands of products, the GPU activations and their
# gradients as well: 2^-9 each, mostly averaged out in a loss; a gradient's norm is what is left of larger terms ----
four=(--set adapter=qlora --set load_in_4bit=true --set bf16=true --set lora_dropout=0.1 --set gradient_accumulation_steps=2
      --set micro_batch_size=1)
both qlora 5e-3 1e-1 "${four[@]}"
# Recomputing activations in the backward pass and resuming from the middle: the same bits.
yes checkpointing on emu again "${four[@]}" --set gradient_checkpointing=true
is checkpointing_same_bytes "$(weights qlora-emu)" "$(weights again)"
rm -rf "$tmp/again/adapter" "$tmp/again/checkpoint-8"
yes resumes on emu again "${four[@]}" --set gradient_checkpointing=true
says resumes_from_4 0 "resum" grep -i "checkpoint-4" "$tmp/again.log"
is resumes_same_bytes "$(weights qlora-emu)" "$(weights again)"
# A checkpoint goes on on another device, where the curve stays within rounding.
cp -r "$tmp/qlora-cpu" "$tmp/moved"
rm -rf "$tmp/moved/adapter" "$tmp/moved/checkpoint-8"
yes moves on emu moved "${four[@]}"
curves_agree moved_curve 5e-3 1e-1 qlora-cpu moved

# ---- what comes after training, in f32 ----
adapter=$tmp/lora-cpu/adapter
prompt="Order 37: 4 boxes of tea"
same_output generate generate --adapter "$adapter" --prompt "$prompt" --max-new-tokens 8
same_output generate_drawn generate --adapter "$adapter" --prompt "$prompt" --max-new-tokens 8 --temperature 0.8 --seed 3
same_output eval eval "$tmp/run.yaml" --adapter "$adapter"
yes merge_cpu "$NIBBLE" merge --adapter "$adapter" --out "$tmp/merged-cpu" --device cpu
yes merge_emu "$EMU" merge --adapter "$adapter" --out "$tmp/merged-emu" --device emu
is merge_same_bytes "$(sha "$tmp/merged-cpu/model.safetensors")" "$(sha "$tmp/merged-emu/model.safetensors")"
says score 0 "loss" "$EMU" score --adapter "$adapter" --text "$prompt" --device emu

# ---- GPUs that are missing, old or small ----
train_emu() { "$EMU" train "$tmp/run.yaml" --device emu --set output_dir="$tmp/none" "$@"; }
EMU_ERROR=35 says no_driver 1 "there is no NVIDIA driver here" train_emu
EMU_ERROR=35 EMU_DRIVER=12040 says old_driver 1 "the NVIDIA driver is too old: it is for CUDA 12.4" train_emu
EMU_ERROR=803 says mismatched_driver 1 "of different versions" train_emu
EMU_ARCH=75 says old_gpu 1 "is too old: nibble computes in bfloat16" train_emu
EMU_MEMORY=1000000 says no_room_for_base 1 "the GPU has for it: 977 KiB" train_emu
says no_room_for_base_prints_plan 0 "frozen base" printf %s "$out"
EMU_MEMORY=5000000 says no_room_for_run 1 "the GPU has for it" train_emu --set micro_batch_size=64
says no_room_prints_plan 0 "activations" printf %s "$out"
EMU_MEMORY=5000000 says plan_fits_gpu 0 "largest micro-batch within" "$EMU" plan "$tmp/run.yaml" --device emu --set adapter=lora
says no_such_number 1 "there is 1 GPU here" "$EMU" generate --adapter "$adapter" --prompt x --device emu:9
says no_such_device 1 "none of auto, cpu, cuda, cuda:N" train_emu --device gpu
says without_the_emulator 1 'there is no device "emu"' "$NIBBLE" train "$tmp/run.yaml" --device emu
is nothing_written "no" "$([ -e "$tmp/none" ] && echo yes || echo no)"
# The real backend, where it is built and there is no GPU: auto computes on the processor.
case $("$NIBBLE" doctor) in
*"there is no NVIDIA driver here"*)
    says cuda_without_driver 1 "there is no NVIDIA driver here" "$NIBBLE" train "$tmp/run.yaml" --device cuda:9
    yes auto_is_cpu on auto auto
    is auto_same_bytes "$(weights lora-cpu)" "$(weights auto)";;
*"built without CUDA"*) says cuda_not_built 1 'there is no device "cuda"' "$NIBBLE" train "$tmp/run.yaml" --device cuda;;
*) skip without_a_gpu "there is a GPU";;
esac
exit $failed
