#!/bin/bash
# Stopping anywhere and going on gives the bytes of never having stopped: signals, kill -9, damaged checkpoints.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4096
tiny_data 60 "$tmp/train.jsonl"
tiny_data 10 "$tmp/test.jsonl" 100

# Packing, dropout, accumulation, warm-up, evaluation; 5 steps an epoch, so that steps lie in the middle of one.
cat >"$tmp/run.yaml" <<END
base_model: $tmp/base
adapter: qlora
lora_r: 4
lora_dropout: 0.2
datasets: [{path: $tmp/train.jsonl, type: prompt_completion}]
test_datasets: [{path: $tmp/test.jsonl, type: prompt_completion, name: test, metrics: [loss, exact_match], max_new_tokens: 4}]
sequence_len: 64
micro_batch_size: 2
gradient_accumulation_steps: 3
num_epochs: 4
learning_rate: 5e-3
warmup_steps: 3
eval_steps: 4
save_steps: 3
save_total_limit: 2
load_best_model_at_end: true
dataset_prepared_path: none
threads: 1
output_dir: $tmp/OUT
END
go() { # DIR ARGS...: one start of the run, to its end or to its signal
    local dir=$1; shift
    "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$dir" "$@" >>"$dir.log" 2>&1
}
# Starts a run and sends it a signal once it has written some lines of metrics more and a random moment has passed.
stop() { # DIR SIGNAL LINES ARGS...: the run's exit status
    local dir=$1 sig=$2 goal i pid; shift 2
    goal=$(($(lines "$dir") + $1)); shift
    "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$dir" "$@" >>"$dir.log" 2>&1 &
    pid=$!
    for ((i = 0; i < 1000; i++)); do
        if [ "$(lines "$dir")" -ge $goal ] || ! kill -0 $pid 2>/dev/null; then break; fi
        sleep 0.01
    done
    sleep "0.0$((RANDOM % 4))$((RANDOM % 10))"
    kill "-$sig" $pid 2>/dev/null
    wait $pid 2>/dev/null
}
# The same, but the signal comes well before the end, step 20: where a busy machine was late, it is tried again.
stop_early() {
    local dir=$1 i rc newest
    for ((i = 0; i < 20; i++)); do
        rm -rf "$dir.was"
        if [ -e "$dir" ]; then cp -a "$dir" "$dir.was"; cp "$dir.log" "$dir.was.log"; else : >"$dir.was.log"; fi
        stop "$@"; rc=$?
        newest=$(cd "$dir" && ls -d checkpoint-* | sort -V | tail -1)
        if [ $rc -ne 0 ] && [ "${newest#checkpoint-}" -lt 17 ]; then break; fi
        rm -rf "$dir"; mv "$dir.was.log" "$dir.log"
        if [ -e "$dir.was" ]; then mv "$dir.was" "$dir"; fi
    done
    rm -rf "$dir.was" "$dir.was.log"
    return $rc
}
lines() { if [ -e "$1/metrics.jsonl" ]; then wc -l <"$1/metrics.jsonl"; else echo 0; fi; }
# Steps, losses and evaluations, without what depends on the clock.
story() { sed 's/,"tokens_per_second".*/}/' "$1/metrics.jsonl"; }
adapter() { sha "$1/adapter/adapter_model.safetensors"; }
# same NAME DIR WHOLE: the same adapter, manifest and metrics as the run that was never stopped
same() {
    if [ -s "$3/adapter/adapter_model.safetensors" ]; then is "$1_adapter" "$(adapter "$3")" "$(adapter "$2")"
    else bad "$1_adapter" "$3 has no adapter: $(tail -n 2 "$3.log")"; fi
    if diff <(story "$3") <(story "$2") >"$tmp/diff"; then ok "$1_metrics"; else bad "$1_metrics" "$(head -5 "$tmp/diff")"; fi
    is "$1_nothing_left" "" "$(find "$2" -name '*.tmp*' -o -name '*.old')"
}

go "$tmp/whole" || bad whole "$(tail -3 "$tmp/whole.log")"
is whole_every_step_once "$(seq -s ' ' 20)" \
    "$(sed -n 's/^{"step":\([0-9]*\),.*"loss":.*"tokens":.*/\1/p' "$tmp/whole/metrics.jsonl" | xargs)"
is whole_save_total_limit 2 "$(ls -d "$tmp"/whole/checkpoint-* | wc -l)"
go "$tmp/threads" --set threads=2
same threads "$tmp/threads" "$tmp/whole"

# SIGTERM and SIGINT: the step is finished, a checkpoint saved, and the message says how to go on.
stop_early "$tmp/term" TERM 3
is term_status 143 $?
is term_message 1 "$(grep -c 'stopped by SIGTERM after step .* of 20; saved .*/checkpoint-.* Go on with the same command' "$tmp/term.log")"
stop_early "$tmp/term" INT 4 --set threads=2
is int_status 130 $?
is int_message 1 "$(grep -c 'stopped by SIGINT' "$tmp/term.log")"
go "$tmp/term"
same term "$tmp/term" "$tmp/whole"

# kill -9 at random moments, with a checkpoint at every step: most of them fall into the writing of one.
for ((n = 0; n < 14; n++)); do stop "$tmp/kill" KILL $((n % 3)) --set save_steps=1 --set threads=$((1 + n % 2)); done
mkdir "$tmp/kill/checkpoint-1.tmp" "$tmp/kill/best.old"; : >"$tmp/kill/metrics.jsonl.tmp-1" # as a killed run leaves them
go "$tmp/kill" --set save_steps=1
same kill "$tmp/kill" "$tmp/whole"
is kill_checkpoints_whole 0 "$(grep -c 'passed over' "$tmp/kill.log")"
is kill_resumed yes "$(grep -q '^resuming' "$tmp/kill.log" && echo yes)"

# Signals that cut evaluations short: the evaluation comes again, and once.
long="--set eval_steps=1 --set test_datasets.0.max_new_tokens=60"
go "$tmp/evals" $long
for ((n = 0; n < 6; n++)); do stop "$tmp/cut" TERM 1 $long; done
for ((n = 0; n < 3; n++)); do stop "$tmp/cut" KILL 1 $long; done
go "$tmp/cut" $long
same cut "$tmp/cut" "$tmp/evals"

# Damaged checkpoints are passed over, do not crowd out whole ones, and a run with no other is not started over.
stop_early "$tmp/damage" TERM 4 --set save_steps=2
newest=$(cd "$tmp/damage" && ls -d checkpoint-* | sort -V | tail -1)
cp -r "$tmp/damage/$newest" "$tmp/damage/checkpoint-19"
truncate -s -100 "$tmp/damage/checkpoint-19/state.safetensors"
mkdir "$tmp/damage/checkpoint-18"
cp -r "$tmp/damage/$newest" "$tmp/damage/checkpoint-17"
echo '{' >"$tmp/damage/checkpoint-17/trainer_state.json"
: >"$tmp/damage.log"
stop "$tmp/damage" KILL 1 --set save_steps=1 --set save_total_limit=1
for n in 17 18 19; do is damaged_passed_over_$n 1 "$(grep -c "/checkpoint-$n is passed over" "$tmp/damage.log")"; done
is damaged_resumed 1 "$(grep -c "^resuming  $tmp/damage/$newest" "$tmp/damage.log")"
go "$tmp/damage" --set save_total_limit=1
is damaged_resumed_again 2 "$(grep -c '^resuming' "$tmp/damage.log")"
same damaged "$tmp/damage" "$tmp/whole"
cp -r "$tmp/damage" "$tmp/ruin"
for f in "$tmp"/ruin/checkpoint-*/state.safetensors; do : >"$f"; done
says damaged_all 1 "none of its 1 checkpoints is whole" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/ruin"

# Two runs at once in one folder: the second is refused, the first undisturbed.
"$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/twice" $long >"$tmp/twice.log" 2>&1 &
pid=$!
for ((n = 0; n < 500; n++)); do [ "$(lines "$tmp/twice")" -ge 1 ] && break; sleep 0.01; done
kill -STOP $pid
says twice_refused 1 "another nibble is training into it" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/twice" --overwrite $long
kill -CONT $pid
wait $pid
same twice "$tmp/twice" "$tmp/evals"

# The finished run again: nothing changes.
before=$(cat "$tmp"/whole/adapter/* "$tmp"/whole/metrics.jsonl | sha256sum)
says finished_again 0 "nothing is left to do" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/whole"
is finished_unchanged "$before" "$(cat "$tmp"/whole/adapter/* "$tmp"/whole/metrics.jsonl | sha256sum)"

# Another run's checkpoints are refused, with the difference, and left alone.
t() { "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/whole" "$@"; }
says other_rate 1 "learning_rate: 0.1" t --set learning_rate=0.1
says other_rate_old 1 "learning_rate: 0.005" t --set learning_rate=0.1
says other_remedy 1 "--overwrite" t --set seed=7
tiny_data 59 "$tmp/less.jsonl"
says other_data 1 "data_sha256" t --set datasets.0.path="$tmp/less.jsonl"
says resume_none 1 "resuming is off" t --resume none
says resume_elsewhere 1 "is not one of them" t --resume "$tmp/damage/checkpoint-20"
says resume_and_overwrite 1 "keep one of the two" t --overwrite --resume auto
says resume_missing 1 "no such checkpoint folder" t --resume "$tmp/whole/checkpoint-999"
says resume_no_checkpoint 1 "trainer_state.json" t --resume "$tmp/whole/adapter"
is refused_unchanged "$before" "$(cat "$tmp"/whole/adapter/* "$tmp"/whole/metrics.jsonl | sha256sum)"
says overwrite_bad_base 1 "none" t --overwrite --set base_model="$tmp/none"
says overwrite_bad_data 1 "none.jsonl" t --overwrite --set datasets.0.path="$tmp/none.jsonl"
is overwrite_failed_unchanged "$before" "$(cat "$tmp"/whole/adapter/* "$tmp"/whole/metrics.jsonl | sha256sum)"
older=$(ls -d "$tmp"/whole/checkpoint-* | sort -V | head -1)
cp -r "$tmp/whole" "$tmp/older"
says resume_dir 0 "resuming  $tmp/older/${older##*/}" \
    "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/older" --resume "$tmp/older/${older##*/}"
same resume_dir "$tmp/older" "$tmp/whole"
touch "$tmp/older/mine.txt"
says overwrite 0 "done" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/older" --overwrite --set max_steps=3
is overwrite_anew "1 2 3" "$(sed -n 's/^{"step":\([0-9]*\),.*"loss":.*"tokens":.*/\1/p' "$tmp/older/metrics.jsonl" | xargs)"
is overwrite_checkpoints "checkpoint-3" "$(cd "$tmp/older" && echo checkpoint-*)"
is overwrite_spares_others "adapter best checkpoint-3 config.yaml metrics.jsonl mine.txt" "$(names "$tmp/older")"
# Optimizer state in 8 bits: checkpoints hold its bytes, going on from one gives what never stopping gives, and the plan
# and the checkpoints are smaller. Parameters of fewer than 4096 elements keep f32: hence the rank.
eight="$tmp/eight"
big=(--set lora_r=64 --set max_steps=8)
yes eight_run go "$eight" "${big[@]}" --set optimizer=paged_adamw_8bit
older=$(ls -d "$eight"/checkpoint-* | sort -V | head -1)
cp -r "$eight" "$tmp/eight-again"
says eight_resume 0 "resuming  $tmp/eight-again/${older##*/}" "$NIBBLE" train "$tmp/run.yaml" \
    --set output_dir="$tmp/eight-again" "${big[@]}" --set optimizer=adamw_8bit --resume "$tmp/eight-again/${older##*/}"
same eight_resume "$tmp/eight-again" "$eight"
is eight_tensors "exp_avg exp_avg_8bit exp_avg_scale exp_avg_sq exp_avg_sq_8bit exp_avg_sq_scale param" \
    "$(head -c 2000 "$older/state.safetensors" | grep -ao '"[a-z_0-9]*":{' | tr -d '":{' | sort | xargs)"
says eight_is_another_run 1 "optimizer: adamw_8bit" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$eight" "${big[@]}"
state_of() { "$NIBBLE" plan "$tmp/run.yaml" --set output_dir="$tmp/none" "${big[@]}" --set optimizer="$1" |
    awk '/optimizer state/ { print int($3 * ($4 == "MiB" ? 1024 : 1)) }'; }
yes eight_plan test "$(state_of adamw_8bit)" -lt $(($(state_of adamw) / 2))
exit $failed
