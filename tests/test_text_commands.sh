#!/bin/sh
# nibble generate, chat and eval on the trained model of the shared vectors. $NIBBLE is the program.
bad=0
if [ -z "$NIBBLE_VECTORS" ]; then
    echo "skipped: NIBBLE_VECTORS is not set (wanted stories260K-hf)"; echo "[  SKIPPED ] text_commands"; exit 0
fi
base=$NIBBLE_VECTORS/stories260K-hf lora=$NIBBLE_VECTORS/stories260K-lora
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
export OMP_NUM_THREADS=1 NO_COLOR=1
verdict() { # NAME STATUS WANTED_STATUS TEXT: TEXT must be somewhere in $out
    case $out in *"$4"*) found=yes;; *) found=no;; esac
    if [ "$2" -eq "$3" ] && [ $found = yes ]; then echo "[       OK ] $1"
    else echo "status $2 (wanted $3), wanted '$4' in: $out"; echo "[  FAILED  ] $1"; bad=1; fi
}
check() { # NAME WANTED_STATUS TEXT ARGS...
    name=$1 want=$2 text=$3; shift 3
    out=$("$NIBBLE" "$@" 2>&1 </dev/null); verdict "$name" $? "$want" "$text"
}
tell="generate --base $base --dtype f32 --max-new-tokens 40"
out=$("$NIBBLE" $tell --prompt "Once upon a time" 2>/dev/null)
verdict generate_stdout_is_the_text_alone $? 0 ", there was a little girl named Lily. She loved to play outside in the park."
[ "${out#,}" != "$out" ] || { echo "[  FAILED  ] generate_begins_with_the_text"; bad=1; }
check generate_stop 0 "ended by: stop string" $tell --prompt "Once upon a time" --stop Lily
printf 'Once upon a time\n' >"$dir/p.txt"
check generate_prompt_file 0 "little girl named Lily" $tell --prompt-file "$dir/p.txt"
one=$("$NIBBLE" $tell --prompt "Once" --temperature 1 --seed 5 2>/dev/null)
out=$("$NIBBLE" $tell --prompt "Once" --temperature 1 --seed 5 2>/dev/null); verdict generate_same_seed $? 0 "$one"
two=$("$NIBBLE" $tell --prompt "Once" --temperature 1 --seed 6 2>/dev/null)
if [ "$one" != "$two" ]; then echo "[       OK ] generate_other_seed"; else echo "[  FAILED  ] generate_other_seed"; bad=1; fi
check generate_no_prompt 1 "one of --prompt" $tell
check generate_no_model 1 "which model" generate --prompt x
check generate_bad_top_p 1 "top-p 2" $tell --prompt x --top-p 2
check generate_no_base 1 "/nowhere" generate --base /nowhere --prompt x
check generate_chat_without_template 1 "--chat-template" $tell --prompt x --chat
check chat_without_template 1 "--chat-template" chat --base "$base"
out=$(printf 'Hi\n/reset\n\nTell me more\n/exit\nnot read\n' |
      "$NIBBLE" chat --base "$base" --chat-template alpaca --max-new-tokens 8 --temperature 0 2>"$dir/err" | wc -l)
verdict chat_answers_lines $? 0 2
out=$(cat "$dir/err"); verdict chat_commands 0 0 "a new conversation"
cat >"$dir/held.jsonl" <<'ROWS'
{"q": "Once upon a time", "a": ", there was a little"}
{"q": "The cat", "a": "sat on the mat"}
{"q": "Lily and Tom", "a": "went to the park"}
ROWS
held="--data $dir/held.jsonl --type prompt_completion --field-prompt q --field-completion a --max-new-tokens 8"
check eval_base 0 "held: 3 rows" eval --base "$base" $held
check eval_adapter 0 "verdict: " eval --base "$base" --adapter "$lora" $held --metrics exact_match,rouge_l \
    --html "$dir/r.html" --json "$dir/r.json"
out=$(cat "$dir/r.html" "$dir/r.json"); verdict eval_html 0 0 "Did the adapter help?"
verdict eval_json 0 0 '"interval_95"'
cat >"$dir/c.yaml" <<YAML
base_model: $base
load_in_4bit: false
datasets: [{path: $dir/held.jsonl, type: prompt_completion, field_prompt: q, field_completion: a}]
test_datasets: [{path: $dir/held.jsonl, type: prompt_completion, field_prompt: q, field_completion: a, name: three}]
sequence_len: 64
output_dir: $dir/out
YAML
check eval_config 0 "three: 3 rows" eval "$dir/c.yaml" --base-only
check eval_config_with_adapter 0 "verdict: " eval "$dir/c.yaml" --adapter "$lora"
check eval_untrained 1 "holds no adapter yet" eval "$dir/c.yaml"
check eval_unknown_metric 1 "did you mean 'f1'" eval --base "$base" $held --metrics f2
check eval_no_data 1 "--data FILE" eval --base "$base"
check eval_bad_type 1 "say one of" eval --base "$base" --data "$dir/held.jsonl" --type alpacca
check eval_regex_missing 1 "needs an expression" eval --base "$base" $held --metrics regex
check eval_full_disk 1 "nowhere" eval --base "$base" $held --json /nowhere/r.json
exit $bad
