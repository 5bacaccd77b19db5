#!/bin/bash
# Several processes train one model: under mpirun, the same curve and the same adapter as one process with the same global
# batch, whatever is shared out and however often it stops; and what is said where that cannot be.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
plugin=$(dirname "$NIBBLE")/libnibble_mpi.so
if ! command -v mpirun >/dev/null || [ ! -e "$plugin" ]; then
    skip ranks "several processes need mpirun, and mpicc when nibble is built (Debian: libopenmpi-dev openmpi-bin)"
    exit 0
fi
# OpenMPI in a container: as root, more processes than cores, no long folder names, no shared memory between them.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_orte_tmpdir_base=/tmp OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_mpi_yield_when_idle=1
export ASAN_OPTIONS=detect_leaks=0 # MPI libraries leak
tiny_base "$tmp/base" 64 2 4100
tiny_data 61 "$tmp/train.jsonl"
tiny_data 7 "$tmp/test.jsonl" 100
cat >"$tmp/run.yaml" <<END
base_model: $tmp/base
bf16: false
lora_r: 4
lora_dropout: 0.1
datasets: [{path: $tmp/train.jsonl, type: prompt_completion}]
test_datasets: [{path: $tmp/test.jsonl, type: prompt_completion, name: test, metrics: [loss, exact_match, f1], max_new_tokens: 4}]
sequence_len: 64
micro_batch_size: 1
gradient_accumulation_steps: 6
num_epochs: 2
learning_rate: 2e-3
warmup_steps: 2
eval_steps: 3
save_steps: 2
threads: 1
output_dir: $tmp/OUT
END
# train RANKS DIR ARGS...: to the end or to the signal
train() {
    local ranks=$1 dir=$2; shift 2
    if [ "$ranks" = 1 ]; then "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/$dir" "$@" >>"$tmp/$dir.log" 2>&1
    else mpirun --bind-to none -np "$ranks" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/$dir" \
        --set gradient_accumulation_steps=$((6 / ranks)) "$@" >>"$tmp/$dir.log" 2>&1; fi
}
lines() { if [ -e "$tmp/$1/metrics.jsonl" ]; then wc -l <"$tmp/$1/metrics.jsonl"; else echo 0; fi; }
adapter() { sha "$tmp/$1/adapter/adapter_model.safetensors"; }
state() { sha "$(ls -d "$tmp/$1"/checkpoint-* | sort -V | tail -1)/state.safetensors"; }
story() { sed 's/,"tokens_per_second".*/}/' "$tmp/$1/metrics.jsonl"; }
steps() { sed -n 's/^{"step":\([0-9]*\),.*"loss":.*"tokens":.*/\1/p' "$tmp/$1/metrics.jsonl" | xargs; }
# close NAME DIR DIR LIMIT: ||adapter - adapter|| / ||adapter||, and of every loss, evaluations' too
close() {
    local drift curve
    drift=$(od -An -v -t f4 -w4 -j "$(header "$2")" "$tmp/$2/adapter/adapter_model.safetensors" |
        paste - <(od -An -v -t f4 -w4 -j "$(header "$3")" "$tmp/$3/adapter/adapter_model.safetensors") |
        awk '{d += ($1 - $2) ^ 2; n += $1 ^ 2} END {print (NR > 1000 && n > 0 ? sqrt(d / n) : "nothing")}')
    curve=$(paste <(grep -o 'loss":[0-9.e-]*' "$tmp/$2/metrics.jsonl" | cut -d: -f2) \
        <(grep -o 'loss":[0-9.e-]*' "$tmp/$3/metrics.jsonl" | cut -d: -f2) |
        awk '{d = ($1 - $2) / $1; if (d < 0) d = -d; if (!(d <= m)) m = d} END {print (NR > 1 ? m + 0 : "nothing")}')
    if echo "$drift $curve" | awk -v limit="$4" '!/n/ && NF == 2 && $1 <= limit && $2 <= limit {good = 1} END {exit !good}'
    then ok "$1"; echo "    adapter $drift, losses $curve"
    else bad "$1" "adapter $drift, losses $curve; $(tail -n 2 "$tmp/$3.log")"; fi
}
header() { echo $((8 + $(od -An -t u8 -N 8 "$tmp/$1/adapter/adapter_model.safetensors"))); }

# ---- the same global batch ----
train 1 one || bad one "$(tail -3 "$tmp/one.log")"
is one_steps "$(seq -s ' ' 6)" "$(steps one | cut -d' ' -f1-6)"
train 2 two || bad two "$(tail -3 "$tmp/two.log")"
train 3 three || bad three "$(tail -3 "$tmp/three.log")"
close two_are_one one two 1e-6
close three_are_one one three 1e-6
is two_steps "$(steps one)" "$(steps two)"
yes greets grep -q '^processes 2 (mpi by mpirun): 6 sequences a step in all' "$tmp/two.log"
is one_speaks 1 "$(grep -c '^done ' "$tmp/three.log")"
train 2 again
is same_ranks_same_bits "$(adapter two) $(story two | sha256sum)" "$(adapter again) $(story again | sha256sum)"
is evaluation_is_shared "$(grep -c '"eval"' "$tmp/one/metrics.jsonl")" "$(grep -c '"eval"' "$tmp/two/metrics.jsonl")"

# ---- the optimizer's state shared out: the same bits, in checkpoints too ----
train 2 zero --set zero_stage=1
yes zero_greets grep -q "optimizer's state shared out" "$tmp/zero.log"
is zero_same_adapter "$(adapter two)" "$(adapter zero)"
is zero_same_state "$(state two)" "$(state zero)"

eight="--set optimizer=adamw_8bit --set lora_r=65 --set max_steps=6" # 65 rows of 64: blocks begin anew in every parameter
train 2 eight $eight
train 2 eight_zero $eight --set zero_stage=1
yes eight_bits grep -aq exp_avg_8bit "$tmp/eight/checkpoint-6/state.safetensors"
is eight_zero_same_adapter "$(adapter eight)" "$(adapter eight_zero)"
is eight_zero_same_state "$(state eight)" "$(state eight_zero)"
train 3 eight_three $eight --set zero_stage=1
close eight_three_are_two eight eight_three 1e-4

# ---- whole modules, and adapters of embedding and head ----
parts="--set lora_target_modules=[embed_tokens,q_proj] --set lora_modules_to_save=[lm_head,norm] --set max_steps=4"
train 1 parts_one $parts
train 2 parts $parts
close parts_two_are_one parts_one parts 1e-5
for stage in 1 3; do
    train 2 "parts$stage" $parts --set zero_stage=$stage
    is "parts_zero$stage" "$(adapter parts) $(state parts)" "$(adapter "parts$stage") $(state "parts$stage")"
done

# ---- the frozen base's layers shared out: the same bits, also where a rank has nothing to do at the end of an epoch ----
train 2 base --set zero_stage=3
yes base_greets grep -q "the base's layers and the optimizer's state shared out" "$tmp/base.log"
is base_same_adapter "$(adapter two)" "$(adapter base)"
is base_same_state "$(state two)" "$(state base)"
is base_same_story "$(story two)" "$(story base)"
train 3 base_three --set zero_stage=3 --set gradient_checkpointing=true
is base_three_same_adapter "$(adapter three)" "$(adapter base_three)"
for kind in load_in_4bit=false bnb_4bit_use_double_quant=false; do
    train 2 kind --set $kind --set max_steps=2 --overwrite
    want=$(adapter kind)
    train 2 kind --set $kind --set max_steps=2 --overwrite --set zero_stage=3
    is "base_$kind" "$want" "$(adapter kind)"
done
planned() { sed -n 's/^memory    \(.*\) at the peak; \(.*\) were planned.*/\2/p' "$tmp/$1.log"; }
if [ "$(planned base)" != "$(planned two)" ]; then ok base_plan; else bad base_plan "$(planned base)"; fi
says base_of_full 1 "zero_stage: 3 shares out the frozen base" "$NIBBLE" train "$tmp/run.yaml" --set adapter=full \
    --set load_in_4bit=false --set zero_stage=3

# ---- the GPU's code under the emulator: memory of its own, which goes through the host's to MPI ----
emu=$(dirname "$NIBBLE")/nibble-emu
if [ -x "$emu" ]; then
    export NIBBLE_CUDA_LIB=none
    short="--set max_steps=2 --set gradient_accumulation_steps=2 --set warmup_steps=0 --set eval_strategy=no --set eval_steps=null"
    (NIBBLE=$emu; for stage in 0 3; do train 2 "emu$stage" $short --set device=emu --set zero_stage=$stage; done)
    train 2 emu_cpu $short
    yes emu_device grep -q 'emulated GPU' "$tmp/emu0.log"
    is emu_same_adapter "$(adapter emu0)" "$(adapter emu3)"
    close emu_is_cpu emu_cpu emu0 1e-4
else skip ranks_emu "no nibble-emu beside nibble: make tests-built"; fi

# ---- stopping and going on, also with another number of processes ----
# stop DIR RANKS SIGNAL LINES ARGS...: a signal to rank RANKS - 1 alone, once metrics has so many lines
stop() {
    local dir=$1 ranks=$2 sig=$3 goal=$4 i pid; shift 4
    train "$ranks" "$dir" "$@" & pid=$!
    for ((i = 0; i < 3000 && $(lines "$dir") < goal; i++)); do sleep 0.01; done
    kill "-$sig" "$(rank $((ranks - 1)) "$dir")"
    wait $pid
}
# rank R DIR: the process that trains into DIR as rank R
rank() {
    local p
    for p in $(pgrep -f "output_dir=$tmp/$2( |\$)"); do
        if tr '\0' '\n' <"/proc/$p/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$1"; then echo "$p"; fi
    done
}
stop term 2 TERM 4 --set zero_stage=1
rc=$?
is term_status 143 $rc
yes term_message grep -q 'stopped by SIGTERM after step .* saved' "$tmp/term.log"
train 1 term
yes term_resumed grep -q '^resuming' "$tmp/term.log"
close resumed_by_one one term 1e-6
stop more 2 TERM 3
train 3 more --set zero_stage=1
close resumed_by_three one more 1e-6
stop same 2 TERM 3 --set zero_stage=1
train 2 same
is resumed_same_bits "$(adapter two)" "$(adapter same)"
says other_global_batch 1 "gradient_accumulation_steps: 6" mpirun --bind-to none -np 2 "$NIBBLE" train "$tmp/run.yaml" \
    --set output_dir="$tmp/one"

# ---- a rank that dies: all stop, and the last checkpoint is good ----
stop killed 3 KILL 4
rc=$?
if [ $rc -ne 0 ]; then ok killed_status; else bad killed_status "0"; fi
yes killed_message grep -qi 'killed\|signal 9' "$tmp/killed.log"
is killed_leaves_nobody "" "$(rank 0 killed)$(rank 1 killed)"
train 2 killed
is killed_resumed 0 "$(grep -c 'passed over' "$tmp/killed.log")"
close killed_and_resumed one killed 1e-6

# ---- a rank that fails: one message, from whichever it is ----
cat >"$tmp/second.sh" <<END
#!/bin/bash
# rank 1 finds no data
if [ "\$OMPI_COMM_WORLD_RANK" = 1 ]; then set -- "\$@" --set datasets.0.path=$tmp/none.jsonl; fi
exec "$NIBBLE" "\$@"
END
chmod +x "$tmp/second.sh"
says one_fails 1 "rank 1 of 2: " mpirun --bind-to none -np 2 "$tmp/second.sh" train "$tmp/run.yaml" --set output_dir="$tmp/fails"
is one_message 1 "$(grep -c 'nibble train: ' <<<"$out")"
sed -i 's/none.jsonl/test.jsonl/' "$tmp/second.sh"
says others_data 1 "rank 1 of 2: this process has another" mpirun --bind-to none -np 2 "$tmp/second.sh" train "$tmp/run.yaml" \
    --set output_dir="$tmp/others"
sed -i 's/datasets.0.path=[^;]*;/eval_steps=4;/' "$tmp/second.sh"
says others_schedule 1 "rank 1 of 2: this process has another" mpirun --bind-to none -np 2 "$tmp/second.sh" \
    train "$tmp/run.yaml" --set output_dir="$tmp/others"
is others_leave_nothing no "$([ -e "$tmp/others" ] && echo yes || echo no)"

# ---- launchers that are not what they seem ----
t() { "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/refused"; }
says no_plugin 1 "libnibble_mpi.so, cannot be loaded" mpirun --bind-to none -np 2 -x NIBBLE_MPI_PLUGIN="$tmp/none.so" \
    "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/refused"
says srun_singletons 1 "srun started 4 processes, but MPI sees 1" \
    env SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=0 "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/refused"
says torchrun_cpu 1 "processes on the CPU speak MPI: start them with mpirun -np 2" env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 \
    MASTER_ADDR=localhost MASTER_PORT=29500 "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/refused"
says torchrun_half 1 "MASTER_ADDR" env RANK=0 WORLD_SIZE=2 "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/refused"
says nonsense 1 "WORLD_SIZE=two" env RANK=0 WORLD_SIZE=two "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/refused"
is refused_leaves_nothing no "$([ -e "$tmp/refused" ] && echo yes || echo no)"
says alone_in_a_batch_script 0 "done" env SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 \
    "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/batch" --set max_steps=1
exit $failed
