#!/bin/bash
# Sourced by the shell tests that run the program whole: a tiny base of random weights, small data, and checks that
# print cmocka-like lines. NIBBLE and TMPDIR come from run.sh; $tmp is deleted at the end.
: "${NIBBLE:=build/gcc/nibble}"
NIBBLE=$(realpath "$NIBBLE")
samples=$(realpath "$(dirname "$0")/../data/samples")
if [ -w /dev/shm ]; then TMPDIR=/dev/shm; fi # dozens of checkpoints, each synced: seconds there, a minute on a busy disk
tmp=$(mktemp -d "${TMPDIR:-/tmp}/nibble-run-XXXXXX")
trap 'rm -rf "$tmp"' EXIT
export NIBBLE_CACHE="$tmp/cache" OMP_WAIT_POLICY=passive
failed=0
ok() { echo "[       OK ] $1"; }
# shellcheck disable=SC2034 # read by the tests
bad() { echo "[  FAILED  ] $1"; echo "  $2"; failed=1; }
skip() { echo "skipped: $2"; echo "[  SKIPPED ] $1"; }
# is NAME WANTED GOT
is() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1" "wanted '$2', got '$3'"; fi; }
# yes NAME command...: the command succeeds
yes() { local name=$1; shift; if "$@" >"$tmp/yes.log" 2>&1; then ok "$name"; else bad "$name" "$* : $(tail -n 5 "$tmp/yes.log")"; fi; }
# says NAME STATUS TEXT command...: exit status, and TEXT somewhere in stdout and stderr together (kept in $out)
says() {
    local name=$1 status=$2 text=$3 rc; shift 3
    out=$("$@" 2>&1); rc=$?
    if [ $rc -ne "$status" ]; then bad "$name" "status $rc, wanted $status: $out"
    else case $out in *"$text"*) ok "$name";; *) bad "$name" "no '$text' in: $out";; esac; fi
}
names() { (cd "$1" && echo *); } # what is in a folder
sha() { sha256sum "$1" 2>/dev/null | cut -d' ' -f1; }
# fields FILE KEY: the values of a number in every line that has it
fields() { sed -n "s/.*\"$2\":\([-0-9.e+]*\).*/\1/p" "$1"; }

# tiny_config DIR HIDDEN LAYERS VOCAB: a Llama of hardly any weights, with the sample tokenizer
tiny_config() {
    mkdir -p "$1"
    cp "$samples"/base/tokenizer.json "$samples"/base/tokenizer_config.json "$samples"/base/special_tokens_map.json "$1"
    cat >"$1/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": $2,
 "intermediate_size": 96, "num_hidden_layers": $3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
 "vocab_size": $4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 0,
 "eos_token_id": 0, "tie_word_embeddings": ${5:-true}, "torch_dtype": "float32"}
END
}

# tiny_base DIR ...: the same with weights, trained for a few steps so that its logits are not all alike
tiny_base() {
    tiny_config "$1.shape" "${@:2}"
    tiny_weights "$1"
}

# tiny_weights DIR: weights for DIR.shape
tiny_weights() {
    local dir=$1
    tiny_data 40 "$tmp/base-data.jsonl"
    cat >"$dir.yaml" <<END
base_model: $dir.shape
adapter: full
reinit_weights: true
bf16: false
datasets: [{path: $tmp/base-data.jsonl, type: prompt_completion}]
train_on_inputs: true
sequence_len: 64
micro_batch_size: 4
gradient_accumulation_steps: 1
max_steps: 8
learning_rate: 1e-2
save_strategy: "no"
output_dir: $dir.run
threads: 1
dataset_prepared_path: none
END
    if "$NIBBLE" train "$dir.yaml" >"$dir.log" 2>&1 && mv "$dir.run/model" "$dir"; then rm -rf "$dir.run"; return 0; fi
    bad tiny_weights "$(tail -n 3 "$dir.log")"
    exit 1
}

# tiny_data ROWS FILE [FIRST]: prompts and completions that differ from row to row
tiny_data() {
    local i
    for ((i = ${3:-0}; i < ${3:-0} + $1; i++)); do
        echo "{\"prompt\": \"Order $((i * 37 % 101)): $((i % 7)) boxes of tea for house $((i * 13 % 59)).\"," \
             "\"completion\": \" house $((i * 13 % 59)), $((i % 7)) boxes\"}"
    done >"$2"
}

# tiny_yaml: $tmp/run.yaml, which trains a small adapter of $tmp/base on $tmp/train.jsonl, with the keys on stdin besides
tiny_yaml() {
    cat - >"$tmp/run.yaml"
    cat >>"$tmp/run.yaml" <<END
base_model: $tmp/base
adapter: lora
load_in_4bit: false
bf16: false
lora_r: 4
datasets: [{path: $tmp/train.jsonl, type: prompt_completion}]
sequence_len: 64
gradient_accumulation_steps: 1
dataset_prepared_path: none
threads: 1
output_dir: $tmp/OUT
END
}

# ---- adapters: $tmp/run.yaml trains them, $text is scored ----
run() { "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/$1" "${@:2}" >"$tmp/$1.log" 2>&1; } # DIR ARGS...
score() { "$NIBBLE" score --text "$text" --json --threads 1 "$@" 2>"$tmp/score.log" || cat "$tmp/score.log"; }
# The largest difference among the nll of two answers of score.
apart() {
    paste <(echo "$1" | sed 's/.*"nll":\[\([^]]*\)\].*/\1/' | tr , '\n') <(echo "$2" | sed 's/.*"nll":\[\([^]]*\)\].*/\1/' | tr , '\n') |
        awk '$1 + 0 != $1 || $2 + 0 != $2 {bad = 1} {d = $1 - $2; if (d < 0) d = -d; if (!(d <= m)) m = d}
             END {print bad || NR < 5 ? "nothing comparable" : m + 0}'
}
near() { # NAME ANSWER ANSWER: the same model, but for rounding
    local d; d=$(apart "$2" "$3")
    if awk -v d="$d" 'BEGIN {exit !(d + 0 == d && d <= 1e-4)}'; then ok "$1"; else bad "$1" "nll differ by $d: $2 $3"; fi
}
far() { # NAME ANSWER ANSWER: really different
    local d; d=$(apart "$2" "$3")
    if awk -v d="$d" 'BEGIN {exit !(d + 0 == d && d > 1e-2)}'; then ok "$1"; else bad "$1" "nll differ by $d only: $2 $3"; fi
}
merge() { "$NIBBLE" merge --threads 1 "$@"; }
# trains NAME ARGS...: trains, and the stored-weight merge is the same model as base + adapter, which is not the base.
trains() {
    local name=$1 base=$tmp/base all; shift
    case "$*" in *untied*) base=$tmp/untied;; esac
    if ! run "$name" "$@"; then bad "$name" "$(tail -n 3 "$tmp/$name.log")"; return; fi
    all=$(score --base "$base" --adapter "$tmp/$name/adapter")
    # the base reads the text by its own tokenizer, the adapter's by the adapter's: they may have added tokens
    far "${name}_differs" "$(score --base "$base" --dtype f32 --text "${plain:-$text}")" \
        "$(score --base "$base" --adapter "$tmp/$name/adapter" --text "${plain:-$text}")"
    says "${name}_merge" 0 "drift from base + adapter" merge --adapter "$tmp/$name/adapter" --out "$tmp/$name/merged"
    near "${name}_merged" "$all" "$(score --base "$tmp/$name/merged" --dtype f32)"
    says "${name}_generates" 0 "ended by" "$NIBBLE" generate --adapter "$tmp/$name/adapter" --prompt "Order" --max-new-tokens 3
}
