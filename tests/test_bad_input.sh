#!/bin/bash
# Bad input, one row each: exit status 1, one message that names file and place, nothing overwritten or left half done.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4096
cp -r "$tmp/base" "$tmp/other" # the same shapes, another weight
printf '\001' | dd of="$tmp/other/model.safetensors" bs=1 seek=$(($(stat -c %s "$tmp/base/model.safetensors") - 4)) conv=notrunc 2>/dev/null
tiny_base "$tmp/wide" 80 2 4096
tiny_data 12 "$tmp/train.jsonl"
cat >"$tmp/run.yaml" <<END
base_model: $tmp/base
adapter: lora
load_in_4bit: false
bf16: false
lora_r: 4
datasets: [{path: $tmp/train.jsonl, type: prompt_completion, name: tea}]
sequence_len: 64
micro_batch_size: 4
gradient_accumulation_steps: 1
num_epochs: 1
dataset_prepared_path: none
threads: 1
output_dir: $tmp/out
END
# refuses NAME TEXT command...: status 1, one message (one "nibble COMMAND: " line) holding TEXT, and the folders that
# matter are as they were.
state() { find "$tmp/base" "$tmp/adapter" "$tmp/out" "$tmp/kept" -type f -exec sha256sum {} + 2>/dev/null | sort | sha256sum; }
left() { find "$tmp" -name '*.tmp*'; }
refuses() {
    local name=$1 text=$2 before rc n; shift 2
    before=$(state)
    out=$("$@" 2>&1); rc=$?
    n=$(echo "$out" | grep -c '^nibble [a-z]*: ')
    if [ $rc -ne 1 ]; then bad "$name" "status $rc, wanted 1: $out"
    elif [ "$n" -ne 1 ]; then bad "$name" "$n messages, wanted 1: $out"
    elif echo "$out" | grep -q '[[:cntrl:]]'; then bad "$name" "a terminal would obey: $out"
    elif [ "$before" != "$(state)" ]; then bad "$name" "files changed: $out"
    elif [ -n "$(left)" ]; then
        bad "$name" "left over: $(left)"
        left | xargs rm -rf
    else case $(echo "$out" | grep -A 20 '^nibble [a-z]*: ') in *"$text"*) ok "$name";; *) bad "$name" "no '$text' in: $out";; esac; fi
}
train() { "$NIBBLE" train "$tmp/run.yaml" "$@"; }
score() { "$NIBBLE" score --text "some text" --threads 1 "$@"; }
train --set output_dir="$tmp/kept" >/dev/null 2>&1 || bad kept "cannot train"
cp -r "$tmp/kept/adapter" "$tmp/adapter"

# ---- configuration ----
refuses no_config "$tmp/none.yaml" "$NIBBLE" train "$tmp/none.yaml"
refuses config_is_folder "$tmp" "$NIBBLE" train "$tmp"
bad_yaml() { # NAME TEXT LINE: a line added to the configuration
    { cat "$tmp/run.yaml"; echo "$3"; } >"$tmp/bad.yaml"
    refuses "$1" "$2" "$NIBBLE" train "$tmp/bad.yaml"
}
at=$(($(wc -l <"$tmp/run.yaml") + 1))
bad_yaml unknown_key "bad.yaml:$at:1: learning_rat: unknown key; did you mean learning_rate?" "learning_rat: 1e-4"
bad_yaml control_characters 'bad.yaml:'$at':1: \x1b[31mred\u0085: unknown key' '"\e[31mred\N": 1'
bad_yaml mistyped "bad.yaml:$at:16: learning_rate" "learning_rate: fast"
bad_yaml out_of_range "bad.yaml:$at:15: lora_dropout" "lora_dropout: 1.5"
bad_yaml duplicate_key "bad.yaml:$at:1: threads" "threads: 2"
bad_yaml bad_syntax "bad.yaml:$((at + 1)):1" "lora_target_modules: [q_proj"
refuses set_unknown "learning_rat" train --set learning_rat=1
refuses set_mistyped "num_epochs" train --set num_epochs=many
refuses unknown_option "unknown option --overwrit; did you mean --overwrite?" train --overwrit
refuses two_configs "unexpected argument" train "$tmp/run.yaml"

# ---- the base ----
refuses no_base "$tmp/none" train --set base_model="$tmp/none"
damage() { rm -rf "$tmp/hurt"; cp -r "$tmp/base" "$tmp/hurt"; } # a copy to hurt
hurt() { refuses "$1" "$2" train --set base_model="$tmp/hurt"; refuses "$1_score" "$2" score --base "$tmp/hurt"; }
damage; rm "$tmp/hurt/config.json"; hurt no_config_json "hurt: has no config.json"
damage; echo '{"model_type": ]' >"$tmp/hurt/config.json"; hurt broken_config_json "hurt/config.json:1:16"
damage; sed -i 's/LlamaForCausalLM/WhaleForCausalLM/; s/"llama"/"whale"/' "$tmp/hurt/config.json"
hurt unknown_architecture "WhaleForCausalLM"
damage; sed -i 's/"hidden_size": 64/"hidden_size": -64/' "$tmp/hurt/config.json"; hurt impossible_size "hidden_size"
damage; rm "$tmp/hurt/model.safetensors"; hurt no_weights "hurt"
damage; truncate -s -1000 "$tmp/hurt/model.safetensors"; hurt truncated_weights "hurt/model.safetensors"
damage; truncate -s 5 "$tmp/hurt/model.safetensors"; hurt truncated_to_nothing "hurt/model.safetensors"
damage; printf '\377\377\377\377\377\377\377\177' | dd of="$tmp/hurt/model.safetensors" conv=notrunc 2>/dev/null
hurt impossible_header "hurt/model.safetensors"
damage; sed -i 's/"data_offsets":\[[0-9]*,/"data_offsets":[9999999999,/' "$tmp/hurt/model.safetensors"
hurt impossible_offsets "hurt/model.safetensors"
damage; sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' "$tmp/hurt/config.json"; hurt missing_tensor "model.layers.2."
damage; sed -i 's/"intermediate_size": 96/"intermediate_size": 90/' "$tmp/hurt/config.json"; hurt shape_mismatch "mlp"
damage; echo '{"metadata": {}, "weight_map": {"model.norm.weight": "model-00002.safetensors"}}' >"$tmp/hurt/model.safetensors.index.json"
hurt missing_shard "model-00002.safetensors"
damage; rm "$tmp/hurt/tokenizer.json"; hurt no_tokenizer "hurt"
damage; echo '{"model": 3}' >"$tmp/hurt/tokenizer.json"; hurt broken_tokenizer "hurt/tokenizer.json"
damage; tiny_config "$tmp/hurt" 64 2 2000; hurt tokenizer_too_large "2000"
refuses sha256_of_base "base_model_sha256 wants" train --set base_model_sha256="$(printf 'ab%.0s' {1..32})"

# ---- data ----
data() { printf '%b' "$3" >"$tmp/bad.jsonl"; refuses "$1" "$2" train --set datasets.0.path="$tmp/bad.jsonl" "${@:4}"; }
good='{"prompt": "a", "completion": " b"}\n'
refuses no_data "$tmp/none.jsonl" train --set datasets.0.path="$tmp/none.jsonl"
data empty_data "bad.jsonl" ""
data empty_lines "bad.jsonl" "\n\n"
data missing_field 'bad.jsonl:2: no field "completion"' "$good"'{"prompt": "a"}\n'
data field_type "bad.jsonl:2" "$good"'{"prompt": "a", "completion": [7]}\n'
data broken_json "bad.jsonl:3" "$good$good"'{"prompt": "a", \n'
data not_an_object "bad.jsonl:2" "$good"'[1, 2]\n'
data invalid_utf8 "bad.jsonl:2" "$good"'{"prompt": "a", "completion": "\\xff\\xfe"}\n'
data nothing_trained "train" '{"messages": [{"role": "user", "content": "a"}]}\n' --set datasets.0.type=chat_template
data too_long "bad.jsonl:1" "{\"prompt\": \"$(printf 'tea %.0s' {1..200})\", \"completion\": \"b\"}\n"
case $out in *excess_length_strategy*) ok too_long_remedy;; *) bad too_long_remedy "$out";; esac
data all_dropped "no row is left" "{\"prompt\": \"$(printf 'tea %.0s' {1..200})\", \"completion\": \"b\"}\n" \
    --set excess_length_strategy=drop
data tokens_out_of_range "bad.jsonl:1" '{"input_ids": [5, 99999], "labels": [5, 6]}\n' --set datasets.0.type=tokenized
data labels_length "bad.jsonl:1" '{"input_ids": [5, 6], "labels": [5]}\n' --set datasets.0.type=tokenized
data nothing_labelled "train" '{"input_ids": [5, 6], "labels": [-100, -100]}\n' --set datasets.0.type=tokenized
data wrong_roles "bad.jsonl:1" '{"messages": [{"role": "whale", "content": "a"}]}\n' --set datasets.0.type=chat_template
data messages_type "bad.jsonl:1" '{"messages": "hello"}\n' --set datasets.0.type=chat_template
printf 'prompt,completion\na,b\nc,"d\n' >"$tmp/bad.csv"
refuses torn_csv "bad.csv" train --set datasets.0.path="$tmp/bad.csv"
printf 'prompt,completion\na,b\nc,d,e\n' >"$tmp/bad.csv"
refuses csv_columns "bad.csv:3" train --set datasets.0.path="$tmp/bad.csv"
refuses held_out_missing "none.jsonl" train --set "test_datasets=[{path: $tmp/none.jsonl, type: completion}]"
# ... is found before the base is quantized, which can take minutes; so are mistakes in the tokenizer and the template.
to_nf4=(--set load_in_4bit=true --set adapter=qlora --set quantized_cache="$tmp/nf4")
early() { # NAME TEXT command...
    refuses "$@"
    is "${1}_early" "" "$(find "$tmp/nf4" -name model.safetensors 2>/dev/null)"
    rm -rf "$tmp/nf4"
}
printf '%b' "$good"'{"prompt": "a"}\n' >"$tmp/bad.jsonl"
early data_before_quantizing "bad.jsonl:2" train "${to_nf4[@]}" --set datasets.0.path="$tmp/bad.jsonl"
early held_out_before_quantizing "none.jsonl" train "${to_nf4[@]}" --set "test_datasets=[{path: $tmp/none.jsonl, type: completion}]"
early regex_before_quantizing "missing closing parenthesis" train "${to_nf4[@]}" \
    --set "test_datasets=[{path: $tmp/train.jsonl, type: prompt_completion, metrics: [regex], regex: '('}]"
early template_before_quantizing "template" train "${to_nf4[@]}" --set "chat_template_jinja={% if %}" --set chat_template=jinja
early plan_before_quantizing "bad.jsonl:2" "$NIBBLE" plan "$tmp/run.yaml" "${to_nf4[@]}" --set datasets.0.path="$tmp/bad.jsonl"
early eval_before_quantizing "none.jsonl" "$NIBBLE" eval "$tmp/run.yaml" --base-only "${to_nf4[@]}" \
    --set "test_datasets=[{path: $tmp/none.jsonl, type: completion}]"
cp -r "$tmp/base" "$tmp/spoilt"
echo '{"model": 7}' >"$tmp/spoilt/tokenizer.json"
early tokenizer_before_quantizing "tokenizer.json" train "${to_nf4[@]}" --set base_model="$tmp/spoilt"
NIBBLE_CACHE=$tmp/nf4 early score_before_quantizing "tokenizer.json" score --base "$tmp/spoilt" --load-in-4bit
yes quantizes "$NIBBLE" train "$tmp/run.yaml" "${to_nf4[@]}" --set output_dir="$tmp/nf4-out"
yes quantizes_at_last test -n "$(find "$tmp/nf4" -name model.safetensors)"
refuses held_out_all "val_set_size" train --set val_set_size=12

# ---- adapters ----
use() { refuses "$1" "$2" score --base "${3:-$tmp/base}" --adapter "${4:-$tmp/spoilt}"; }
spoil() { rm -rf "$tmp/spoilt"; cp -r "$tmp/adapter" "$tmp/spoilt"; }
use no_adapter "$tmp/none" "$tmp/base" "$tmp/none"
use other_shapes "another base" "$tmp/wide" "$tmp/adapter"
use other_weights "sha256" "$tmp/other" "$tmp/adapter"
spoil; mv "$tmp/spoilt/adapter_model.safetensors" "$tmp/spoilt/adapter_model.bin"; use only_bin "adapter_model.bin"
spoil; sed -i 's/"use_dora": false/"use_dora": true/' "$tmp/spoilt/adapter_config.json"; use dora "lora_magnitude_vector"
spoil; sed -i 's/"LORA"/"IA3"/' "$tmp/spoilt/adapter_config.json"; use other_peft '"IA3"'
spoil; sed -i 's/"r": 4/"r": 8/' "$tmp/spoilt/adapter_config.json"; use other_rank "r = 8"
spoil; rm "$tmp/spoilt/adapter_config.json"; use no_adapter_config "adapter_config.json"
spoil; truncate -s -100 "$tmp/spoilt/adapter_model.safetensors"; use truncated_adapter "spoilt/adapter_model.safetensors"
spoil; rm "$tmp/spoilt/adapter_model.safetensors"; use no_adapter_weights "spoilt"
refuses warm_start_other_base "sha256" train --set base_model="$tmp/other" --set lora_model_dir="$tmp/adapter"
refuses warm_start_missing "$tmp/none" train --set lora_model_dir="$tmp/none"

# ---- the output ----
refuses finished_without_resume "resuming is off" train --set output_dir="$tmp/kept" --resume none
refuses output_under_file "is not a folder" train --set output_dir="$tmp/run.yaml/out"
refuses output_is_file "is not a folder" train --set output_dir="$tmp/run.yaml"
refuses overwrite_with_mistake "none" train --set output_dir="$tmp/kept" --overwrite --set base_model="$tmp/none"
refuses quantize_not_empty "is not empty" "$NIBBLE" quantize --base "$tmp/base" --out "$tmp/adapter"
refuses quantize_same "is not empty" "$NIBBLE" quantize --base "$tmp/base" --out "$tmp/base"
refuses merge_into_base "is not empty" "$NIBBLE" merge --adapter "$tmp/adapter" --out "$tmp/base"
yes no_output_made test ! -e "$tmp/out"

# ---- full disk, read-only disk ----
small() { (trap '' XFSZ; ulimit -f "$1"; shift; "$@"); } # files of at most so many KiB: writing more fails
refuses full_checkpoint "full/checkpoint-2.tmp/state.safetensors" small 40 "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/full"
is full_checkpoint_leaves "config.yaml metrics.jsonl" "$(names "$tmp/full")"
refuses full_metrics "metrics.jsonl: cannot be written" small 8 "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/full2" \
    --set num_epochs=40 --set save_strategy=no
refuses full_merge "merged.tmp/model.safetensors" small 600 "$NIBBLE" merge --adapter "$tmp/adapter" --out "$tmp/merged"
refuses full_quantize "four" small 600 "$NIBBLE" quantize --base "$tmp/base" --out "$tmp/four"
is full_leaves "" "$(cd "$tmp" && ls -d merged* four* 2>/dev/null)"
refuses full_full_model "full3/model.tmp/model.safetensors" small 600 "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/full3" \
    --set adapter=full --set save_strategy=no
says full_recovers 0 "done" train --set output_dir="$tmp/full"
is full_recovered "$(sha "$tmp/kept/adapter/adapter_model.safetensors")" "$(sha "$tmp/full/adapter/adapter_model.safetensors")"
if [ -c /dev/full ]; then
    if score --base "$tmp/base" >/dev/full 2>/dev/null; then bad full_stdout "status 0"; else ok full_stdout; fi
fi
# A device or pipe is written to, never replaced by a file.
mkfifo "$tmp/pipe"
timeout 60 cat "$tmp/pipe" >"$tmp/read" &
says pipe_written 0 "" "$NIBBLE" eval --base "$tmp/base" --data "$tmp/train.jsonl" --type prompt_completion --json "$tmp/pipe"
wait $!
is pipe_read "{" "$(head -c 1 "$tmp/read")"
yes pipe_stays test -p "$tmp/pipe"
# A cache that cannot be written costs time, not the run.
: >"$tmp/not-a-folder"
says cache_unwritable 0 "done" env NIBBLE_CACHE="$tmp/not-a-folder/cache" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/nocache" \
    --set adapter=qlora --set load_in_4bit=true
mkdir "$tmp/disk"
if mount -t tmpfs -o size=600k tmpfs "$tmp/disk" 2>/dev/null; then
    trap 'umount "$tmp/disk" 2>/dev/null; rm -rf "$tmp"' EXIT
    many="--set output_dir=$tmp/disk/out --set num_epochs=20 --set save_steps=1 --set save_total_limit=0"
    refuses disk_fills "disk/out" train $many
    yes disk_filled test -e "$tmp/disk/out/checkpoint-1"
    is disk_nothing_half "" "$(find "$tmp/disk" -name '*.tmp*')"
    last=$(names "$tmp/disk/out" | xargs -n1 | grep checkpoint- | sort -V | tail -1)
    for n in $(names "$tmp/disk/out" | xargs -n1 | grep checkpoint- | grep -vx "$last"); do rm -r "$tmp/disk/out/$n"; done
    says disk_resumes 0 "resuming  $tmp/disk/out/$last" train ${many%=0}=1
    train --set num_epochs=20 --set output_dir="$tmp/long" >/dev/null 2>&1
    is disk_same "$(sha "$tmp/long/adapter/adapter_model.safetensors")" "$(sha "$tmp/disk/out/adapter/adapter_model.safetensors")"
    head -c 1M /dev/zero >"$tmp/disk/filler" 2>/dev/null
    refuses disk_full_at_once "free, checkpoints need about" train --set output_dir="$tmp/disk/new"
    rm "$tmp/disk/filler"
    mount -o remount,ro "$tmp/disk"
    refuses disk_read_only "cannot be written to" train --set output_dir="$tmp/disk/other"
    refuses merge_read_only "disk/merged" "$NIBBLE" merge --adapter "$tmp/adapter" --out "$tmp/disk/merged"
    umount "$tmp/disk"
else
    skip disk "mounting a small disk needs root"
fi
if [ "$(id -u)" -ne 0 ]; then
    mkdir -m 555 "$tmp/closed"
    refuses output_closed "cannot be written to" train --set output_dir="$tmp/closed/out"
fi
exit $failed
