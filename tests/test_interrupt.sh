#!/bin/bash
# A signal where there is no step to finish: while data is tokenized, while held-out data is evaluated.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4096
tiny_data 40 "$tmp/train.jsonl"
tiny_data 300 "$tmp/test.jsonl" 100
cat >"$tmp/run.yaml" <<END
base_model: $tmp/base
adapter: qlora
lora_r: 4
datasets: [{path: $tmp/train.jsonl, type: prompt_completion}]
test_datasets:
  - {path: $tmp/test.jsonl, type: prompt_completion, name: test, metrics: [loss, exact_match], max_new_tokens: 40}
sequence_len: 64
micro_batch_size: 2
gradient_accumulation_steps: 2
max_steps: 6
learning_rate: 5e-3
eval_steps: 3
save_steps: 2
threads: 1
dataset_prepared_path: $tmp/prepared
output_dir: $tmp/OUT
END
lines() { if [ -e "$1/metrics.jsonl" ]; then wc -l <"$1/metrics.jsonl"; else echo 0; fi; }
story() { sed 's/,"tokens_per_second".*/}/' "$1/metrics.jsonl"; }

# ---- while evaluating: the checkpoint remembers that the evaluation is to come, and it comes first ----
"$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/whole" >"$tmp/whole.log" 2>&1 || bad whole "$(tail -n 3 "$tmp/whole.log")"
"$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/cut" >"$tmp/cut.log" 2>&1 &
pid=$!
for ((i = 0; i < 2000 && $(lines "$tmp/cut") < 3; i++)); do sleep 0.01; done # step 3 is written, its evaluation runs
kill -INT $pid
wait $pid
is cut_status 130 $?
yes cut_pending grep -q '"eval_pending": true' "$tmp/cut/checkpoint-3/trainer_state.json"
is cut_metrics 3 "$(lines "$tmp/cut")"
yes cut_goes_on "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/cut"
is cut_adapter "$(sha "$tmp/whole/adapter/adapter_model.safetensors")" "$(sha "$tmp/cut/adapter/adapter_model.safetensors")"
is cut_best "$(sha "$tmp/whole/best/adapter_model.safetensors")" "$(sha "$tmp/cut/best/adapter_model.safetensors")"
is cut_story "$(story "$tmp/whole")" "$(story "$tmp/cut")"

# ---- while tokenizing: it leaves at once, and nothing is there ----
awk 'BEGIN {for (i = 0; i < 400000; i++)
    printf "{\"prompt\": \"Order %d: %d boxes of tea\", \"completion\": \" for house %d, number %d\"}\n",
    i, i % 7, i % 59, i * 17}' >"$tmp/large.jsonl"
"$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/none" --set datasets.0.path="$tmp/large.jsonl" >"$tmp/none.log" 2>&1 &
pid=$!
sleep 0.5
kill -TERM $pid
wait $pid
is tokenizing_status 143 $?
yes tokenizing_says grep -q "stopped while tokenizing\|stopped before the first step" "$tmp/none.log"
is tokenizing_no_output no "$(if [ -e "$tmp/none" ]; then echo yes; else echo no; fi)"
is tokenizing_no_halves "" "$(find "$tmp/prepared" "$tmp/cache" -name '*.tmp*')"
exit $failed
