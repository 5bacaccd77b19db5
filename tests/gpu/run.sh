#!/bin/bash
# Proves nibble on a GPU: packs what a machine without our libraries needs, and runs there, cheapest and most decisive
# first, each program under its own time limit, with its rows written at once.
#   run.sh pack                       makes build/gpu: nibble, gpucheck and these scripts, for CUDA_ARCHS (default 90)
#   run.sh go SECONDS [STAGE...]      runs stages (default all), skipping what does not fit into the seconds, saying so
#   run.sh stages                     lists them
# Environment: OUT, where rows.jsonl, summary.txt and log.txt go (default bench/results/gpu); DEVICE (cuda); BIN, the
# folder of the programs (default build/gpu); WORK, for models (a fast disk with 40 GB; default /dev/shm or /tmp);
# PYTHON, one with torch, transformers and peft (default python3; none: no comparison); SIZE=tiny: for the emulator.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
usage() { sed -n '4,6s/^#   //p' "$0"; exit 2; }

# ---- pack ----

pack() {
    cd "$root" || exit 1
    nice make -j"$(nproc)" CUDA=1 CUDA_ARCHS="${CUDA_ARCHS:-90}" pack || exit 1
    cp tests/gpu/run.sh tests/gpu/side.py tests/gpu/report.py build/gpu/
    # Where another machine's loader could refuse: libraries besides glibc's, and its version.
    for p in nibble gpucheck; do
        objdump -p build/gpu/$p | awk '$1 == "NEEDED" { print $2 }' |
            grep -vE '^(libc|libm|libdl|librt|libpthread|ld-linux-x86-64)\.so' &&
            { echo "run.sh: $p needs more than glibc"; exit 1; }
        echo "$p: $(stat -c %s build/gpu/$p | numfmt --to=iec), needs" \
            "$(objdump -T build/gpu/$p | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)"
    done
    size=$(du -sm build/gpu | cut -f1)
    [ "$size" -le 40 ] || { echo "run.sh: build/gpu has $size MiB, more than 40"; exit 1; }
}

# ---- running ----

stages='look correct large sanitize bench train step-1b step-8b step-3b'

left() { echo $((deadline - SECONDS)); }

# limited SECONDS COMMAND...: at most so long, and no longer than there is time. Its rows go to rows.jsonl line by line
# (and, alone, to $work/out), the rest to the log.
limited() {
    local limit=$1 status; shift
    [ "$limit" -le "$(left)" ] || limit=$(left)
    [ "$limit" -gt 0 ] || { say "no time left for: $*"; return 124; }
    echo "== at most $limit s: $*" >>"$log"
    timeout -k 5 "$limit" "$@" 2>>"$log" | tee "$work/out" | grep --line-buffered '^{' >>"$rows"
    status=${PIPESTATUS[0]}
    grep -v '^{' "$work/out" >>"$log"
    [ "$status" -eq 0 ] || { echo "== status $status" >>"$log"; bad=1; }
    return "$status"
}

say() { echo "$*" | tee -a "$log"; }
text() { tr -d '\r' | tr '"\\\n\t' "''  " | cut -c 1-2000; } # fit for a JSON string
row() { # KIND KEY VALUE...: a row of strings
    local line="{\"row\": \"$1\""; shift
    while [ $# -gt 1 ]; do line="$line, \"$1\": \"$(printf '%s' "$2" | text)\""; shift 2; done
    echo "$line}" >>"$rows"
}

# Once: it takes seconds.
torch=''
has_torch() {
    [ -n "$torch" ] || torch=$([ "$python" = none ] || "$python" -c 'import torch, transformers, peft
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)' 2>>"$log")
    [ -n "$torch" ] || torch=none
    [ "$torch" != none ]
}

# ---- stages ----

look() {
    local smi='no nvidia-smi' nvcc='no nvcc'
    command -v nvidia-smi >/dev/null &&
        smi=$(nvidia-smi --format=csv,noheader \
            --query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit | text)
    command -v nvcc >/dev/null && nvcc=$(nvcc --version | tail -n 2 | head -n 1)
    has_torch
    row machine gpu "$smi" nvcc "$nvcc" cores "$(nproc)" \
        memory "$(free -g 2>/dev/null | awk '/^Mem/ { print $2 " GiB" }')" \
        glibc "$(getconf GNU_LIBC_VERSION)" python "$torch"
    limited 60 "$nibble" doctor || say "nibble doctor failed"
    limited 60 "$gpucheck" list || say "gpucheck does not start"
}

# A process for each family: after one that went out of its bounds a card refuses everything else.
correct() {
    local family
    for family in $("$gpucheck" list); do
        limited 240 "$gpucheck" correct --device "$device" --only "$family" ${tiny:+--quick} ||
            say "correct: $family failed"
    done
}

large() { limited 300 "$gpucheck" large --device "$device" $tiny; }

# Red zones would hide from the tool what lies between them.
sanitize() {
    local tool family status start=$SECONDS
    command -v compute-sanitizer >/dev/null || { row sanitize status skipped why 'no compute-sanitizer'; return 0; }
    for tool in memcheck racecheck; do
        for family in $("$gpucheck" list); do
            if [ $((SECONDS - start)) -gt 180 ]; then
                row sanitize tool $tool family "$family" status skipped why 'three minutes are over'
                continue
            fi
            ROWS_REDZONE=0 limited 60 compute-sanitizer --tool $tool --error-exitcode 9 "$gpucheck" correct --quick \
                --device "$device" --only "$family" --compute bf16
            status=$?
            row sanitize tool $tool family "$family" status $status
        done
    done
}

# All kernels, then those that are products, made in every other way there is (kernels/cuda/gemm.c).
bench() {
    limited 240 "$gpucheck" bench --device "$device" $tiny
    limited 180 "$gpucheck" bench --device "$device" $tiny --only weight,lora,head,decode_1,decode_8 \
        --products mma,cublas-alone,mma-alone,fused
}

# The quick start's first steps, here and on the processor: the same losses to bf16's precision.
train() {
    local base=$root/data/samples d steps=40
    [ -d "$base" ] || { row train status skipped why 'no data/samples here'; return 0; }
    [ -z "$tiny" ] || steps=2
    cd "$root" || return 1
    for d in "$device" cpu; do
        limited 120 "$nibble" train configs/quickstart.yaml --device "$d" --overwrite \
            --set output_dir="$work/train-$d" --set max_steps=$steps --set logging_steps=1 --set save_strategy=no \
            --set quantized_cache="$work/cache" --set dataset_prepared_path="$work/prepared" \
            ${tiny:+--set micro_batch_size=1 --set sequence_len=128} || return 1
        sed -n 's/.*"loss":\([-0-9.e+]*\).*/\1/p' "$work/train-$d/metrics.jsonl" >"$work/losses-$d"
    done
    paste "$work/losses-$device" "$work/losses-cpu" | awk -v steps=$steps '
        { e = $1 / $2 - 1; if (e < 0) e = -e; if (e > worst) worst = e; if (!n++) first = $1; last = $1 }
        END { status = "failed"; if (n == steps && worst <= 0.02) status = "ok"
              printf "{\"row\": \"train\", \"steps\": %d, \"first_loss\": %s, \"last_loss\": %s, ", n, first, last
              printf "\"worst_loss_error\": %.6g, \"status\": \"%s\"}\n", worst, status
              exit status != "ok" }' >>"$rows" || bad=1
}

# llama DIR HIDDEN MLP LAYERS HEADS KV_HEADS HEAD_DIM VOCAB TIED FACTOR DTYPE
llama() {
    mkdir -p "$1"
    cat >"$1/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": $2,
 "intermediate_size": $3, "num_hidden_layers": $4, "num_attention_heads": $5, "num_key_value_heads": $6,
 "head_dim": $7, "vocab_size": $8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
 "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.02, "tie_word_embeddings": $9, "torch_dtype": "${11}",
 "attention_bias": false, "mlp_bias": false,
 "rope_scaling": {"rope_type": "llama3", "factor": ${10}, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 8192}}
END
}

# Random weights by transformers for the configuration in DIR, and the same in 4 bits; fails without torch.
make_model() {
    local dir=$1 format=$2
    has_torch || return 1
    limited 200 "$python" "$here/side.py" make "$dir" || return 1
    [ "$format" = nf4 ] || return 0
    limited 300 "$nibble" quantize --base "$dir" --out "$dir-nf4"
}

# ours DIR RUN DOCS OPTION...: nibble's steps of a model.
ours() {
    local dir=$1 run=$2 docs=$3 status; shift 3
    rm -rf "$run"; mkdir -p "$run"
    limited 200 "$gpucheck" step --device "$device" --model "$dir" --out "$run" --docs "$docs" --seed 1 \
        --cache "$work/cache" "$@"
    status=$?
    cp "$work/out" "$run/rows.jsonl"
    return $status
}

# A model's whole steps: here, then by each way its peer has of doing the same on the same weights, batch and adapter.
# One document, where the peer's attention is at its best; and here alone, packed.
models='
step-1b Llama-3.2-1B 2048  8192 16 32 8  64 128256 true  32.0 2048 nf4   no,yes
step-8b Llama-3.1-8B 4096 14336 32 32 8 128 128256 false  8.0 2048 nf4   no,yes
step-3b Llama-3.2-3B 3072  8192 28 24 8 128 128256 true  32.0 8192 as-is yes'
whole_steps() { # STAGE
    local name C F L H KV D V tied factor tokens format checkpointing docs=4 dtype=bfloat16
    local dir from c peers=as-is options made=no
    read -r _ name C F L H KV D V tied factor tokens format checkpointing <<<"$(grep "^$1 " <<<"$models")"
    [ -z "$tiny" ] || { name=tiny-$name C=64 F=128 L=2 H=4 KV=2 D=16 V=300 tokens=48 docs=3; }
    dir=$work/$name
    llama "$dir" "$C" "$F" "$L" "$H" "$KV" "$D" "$V" "$tied" "$factor" $dtype
    make_model "$dir" "$format" && made=yes
    options=(--name "$name" --format "$format" --tokens "$tokens" --steps "$n_steps" --compute bf16)
    from=$dir
    if [ $made = no ]; then options+=(--reinit)
    elif [ "$format" = nf4 ]; then
        from=$dir-nf4 peers=dequantized,nf4,bitsandbytes
    fi
    for c in ${checkpointing//,/ }; do
        [ "$c" = no ] || options+=(--checkpoint)
        ours "$from" "$work/run" 1 "${options[@]}" --profile || continue
        if [ $made = no ]; then
            row comparison model "$name" status skipped why 'no torch, transformers and peft'
            continue
        fi
        limited 300 "$python" "$here/side.py" train "$dir" "$work/run" --base $peers --quantized "$dir-nf4"
    done
    ours "$from" "$work/run" $docs "${options[@]}"
    rm -rf "$dir" "$dir-nf4" "$work/run"
}

# Seconds a stage needs at least; with less left it is skipped.
declare -A least=([look]=10 [correct]=60 [large]=60 [sanitize]=60 [bench]=60 [train]=30
    [step-1b]=100 [step-8b]=240 [step-3b]=120)

go() {
    [ $# -ge 1 ] && [[ $1 =~ ^[0-9]+$ ]] || usage
    deadline=$((SECONDS + $1)); shift
    [ $# -gt 0 ] || set -- $stages
    local stage began status
    mkdir -p "$out"
    if ! [ -x "$gpucheck" ] || ! [ -x "$nibble" ]; then
        echo "run.sh: no $gpucheck and $nibble: run.sh pack makes them"
        exit 1
    fi
    for stage; do
        [ -n "${least[$stage]:-}" ] || { echo "run.sh: no stage '$stage'"; exit 2; }
        if [ "$(left)" -lt $((tiny_or_not ? 1 : least[$stage])) ]; then
            say "$stage: skipped, $(left) s are left"
            row stage name "$stage" status skipped why "$(left) s left, it needs ${least[$stage]}"
            continue
        fi
        began=$SECONDS bad=0 status=ok
        say "$stage"
        case $stage in step-*) whole_steps "$stage";; *) $stage;; esac
        [ $bad -eq 0 ] || { status=failed; failed=1; }
        row stage name "$stage" status $status seconds $((SECONDS - began))
    done
    if command -v python3 >/dev/null; then python3 "$here/report.py" "$rows" | tee "$out/summary.txt"; fi
    exit $failed
}

device=${DEVICE:-cuda} python=${PYTHON:-python3} failed=0 bad=0
out=${OUT:-$root/bench/results/gpu} bin=${BIN:-$root/build/gpu}
[ -x "$here/gpucheck" ] && bin=${BIN:-$here} # a packed folder stands alone
tiny='' n_steps=20 tiny_or_not=0
[ "${SIZE:-}" != tiny ] || { tiny=--tiny n_steps=4 tiny_or_not=1; }
nibble=$bin/nibble gpucheck=$bin/gpucheck
[ "$device" != emu ] || { nibble=$bin/nibble-emu gpucheck=$bin/gpucheck-emu; }
rows=$out/rows.jsonl log=$out/log.txt
shm=/tmp
[ ! -w /dev/shm ] || shm=/dev/shm

case ${1:-} in
    pack) pack;;
    stages) echo "$stages";;
    go)
        shift
        work=$(mktemp -d "${WORK:-$shm}/nibble-gpu-XXXXXX") || exit 1
        trap 'rm -rf "$work"' EXIT
        go "$@";;
    *) usage;;
esac
