#!/bin/bash
# A model in GGUF as base_model, through every command that takes a base; what comes of it is what comes of the folder.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4100
tiny_data 40 "$tmp/train.jsonl"
for type in f32 q8_0 q4_0; do
    yes "made_$type" "$NIBBLE" export --threads 1 --base "$tmp/base" --format gguf --dtype $type --out "$tmp/$type.gguf"
done
tiny_yaml <<END
micro_batch_size: 4
max_steps: 6
learning_rate: 2e-2
logging_steps: 1
save_strategy: "no"
END

# ---- training: from the same numbers, the same adapter ----
run folder || bad folder "$(tail -n 3 "$tmp/folder.log")"
run f32 --set base_model="$tmp/f32.gguf" || bad f32 "$(tail -n 3 "$tmp/f32.log")"
is same_adapter "$(sha "$tmp/folder/adapter/adapter_model.safetensors")" "$(sha "$tmp/f32/adapter/adapter_model.safetensors")"
yes names_file grep -q "\"base_model_name_or_path\": \"$tmp/f32.gguf\"" "$tmp/f32/adapter/adapter_config.json"
yes names_sha grep -q "$(sha "$tmp/f32.gguf")" "$tmp/f32/adapter/nibble_manifest.json"
nf4="--set adapter=qlora --set load_in_4bit=true --set bnb_4bit_compute_dtype=float32"
run nf4 $nf4 || bad nf4 "$(tail -n 3 "$tmp/nf4.log")"
run nf4gguf $nf4 --set base_model="$tmp/f32.gguf" || bad nf4gguf "$(tail -n 3 "$tmp/nf4gguf.log")"
is same_qlora "$(sha "$tmp/nf4/adapter/adapter_model.safetensors")" "$(sha "$tmp/nf4gguf/adapter/adapter_model.safetensors")"

# ---- weights in blocks are trained on as they are, load_in_4bit or not ----
run q4 $nf4 --set base_model="$tmp/q4_0.gguf" || bad q4 "$(tail -n 3 "$tmp/q4.log")"
yes says_so grep -q "quantized already (q4_0)" "$tmp/q4.log"
run q4lora --set base_model="$tmp/q4_0.gguf" || bad q4lora "$(tail -n 3 "$tmp/q4lora.log")"
is no_difference "$(sha "$tmp/q4/adapter/adapter_model.safetensors")" "$(sha "$tmp/q4lora/adapter/adapter_model.safetensors")"
first=$(fields "$tmp/q4/metrics.jsonl" loss | head -n 1) last=$(fields "$tmp/q4/metrics.jsonl" loss | tail -n 1)
yes loss_falls awk "BEGIN { exit !($last < $first) }"

# ---- the other commands ----
q4="--adapter $tmp/q4/adapter"
says info 0 "q4_0" "$NIBBLE" info "$tmp/q4_0.gguf"
says info_tokens 0 "4096 tokens" "$NIBBLE" info "$tmp/q4_0.gguf"
says plan 0 "q4_0 base" "$NIBBLE" plan "$tmp/run.yaml" --set base_model="$tmp/q4_0.gguf"
says data 0 "tokens" "$NIBBLE" data "$tmp/run.yaml" --set base_model="$tmp/q4_0.gguf"
says score 0 "loss" "$NIBBLE" score $q4 --dtype f32 --text "Where is my parcel?"
a=$("$NIBBLE" score --base "$tmp/base" --dtype f32 --json --text "Where is my parcel?")
b=$("$NIBBLE" score --base "$tmp/f32.gguf" --dtype f32 --json --text "Where is my parcel?")
is same_score "$a" "$b"
a=$("$NIBBLE" tokenize --base "$tmp/base" "a parcel, 3 boxes")
b=$("$NIBBLE" tokenize --base "$tmp/q4_0.gguf" "a parcel, 3 boxes")
is same_ids "$a" "$b"
says generate 0 "" "$NIBBLE" generate $q4 --dtype f32 --max-new-tokens 5 --prompt "Where"
says eval 0 "perplexity" "$NIBBLE" eval $q4 --dtype f32 --data "$tmp/train.jsonl" --type prompt_completion

# ---- merging: a folder in bf16, or GGUF again ----
says merge 0 "drift" "$NIBBLE" merge --threads 1 $q4 --dtype f32 --out "$tmp/merged"
yes merged_bf16 grep -q bfloat16 "$tmp/merged/config.json"
yes merged_tokenizer test -s "$tmp/merged/tokenizer.json"
says merged_runs 0 "loss" "$NIBBLE" score --base "$tmp/merged" --dtype f32 --text "Where is my parcel?"
says no_roundtrip 1 "use --mode original" "$NIBBLE" merge --threads 1 $q4 --mode nf4-roundtrip --out "$tmp/no"
says requant 0 "drift" "$NIBBLE" merge --threads 1 $q4 --dtype f32 --mode requant --out "$tmp/four"
says gguf_again 0 "read back and agree" "$NIBBLE" export --threads 1 $q4 --format gguf --dtype q8_0 --out "$tmp/again.gguf"
says gguf_runs 0 "loss" "$NIBBLE" score --base "$tmp/again.gguf" --dtype f32 --text "Where is my parcel?"
says gguf_lora 0 "read back and agree" "$NIBBLE" export --threads 1 $q4 --format gguf-lora --out "$tmp/lora.gguf"
says other_type 0 "read back and agree" "$NIBBLE" export --threads 1 --base "$tmp/q8_0.gguf" --format gguf --dtype f16 --out "$tmp/f16.gguf"
says adapter_is_no_base 1 "is \"adapter\", not a model" "$NIBBLE" info "$tmp/lora.gguf"
says quantize 1 "--format hf" "$NIBBLE" quantize --base "$tmp/f32.gguf" --out "$tmp/no"

# ---- all weights, from floats ----
full="--set adapter=full --set learning_rate=1e-3"
run full $full || bad full "$(tail -n 3 "$tmp/full.log")"
run fullgguf $full --set base_model="$tmp/f32.gguf" || bad fullgguf "$(tail -n 3 "$tmp/fullgguf.log")"
is same_full "$(sha "$tmp/full/model/model.safetensors")" "$(sha "$tmp/fullgguf/model/model.safetensors")"
says full_runs 0 "loss" "$NIBBLE" score --base "$tmp/fullgguf/model" --dtype f32 --text "Where is my parcel?"

# ---- added tokens ----
sed 's/boxes of tea/<box> of tea/' "$tmp/train.jsonl" >"$tmp/tokens.jsonl"
box="--set tokens=[<box>] --set datasets.0.path=$tmp/tokens.jsonl"
run tokens $box --set base_model="$tmp/f32.gguf" || bad tokens "$(tail -n 3 "$tmp/tokens.log")"
says tokens_merged 0 "drift" "$NIBBLE" merge --threads 1 --adapter "$tmp/tokens/adapter" --dtype f32 --out "$tmp/grown"
yes tokens_there grep -q "<box>" "$tmp/grown/tokenizer.json"
# ---- a mixture of experts: the same adapter of its experts, and blocks are trained on as they are ----
export_() { "$NIBBLE" export --threads 1 --format gguf "$@"; }
tiny_config "$tmp/moe.shape" 64 2 4100 false
sed -i 's/LlamaForCausalLM/Qwen2MoeForCausalLM/; s/"llama"/"qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, '\
'"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64/' "$tmp/moe.shape/config.json"
tiny_weights "$tmp/moe"
for type in f32 q4_0; do
    yes "moe_made_$type" export_ --base "$tmp/moe" --dtype $type --out "$tmp/moe-$type.gguf"
done
says moe_info 0 "q4_0" "$NIBBLE" info "$tmp/moe-q4_0.gguf"
is moe_score "$("$NIBBLE" score --base "$tmp/moe" --dtype f32 --json --text "Where is it?")" \
    "$("$NIBBLE" score --base "$tmp/moe-f32.gguf" --dtype f32 --json --text "Where is it?")"
run moehf --set base_model="$tmp/moe" || bad moehf "$(tail -n 3 "$tmp/moehf.log")"
run moegguf --set base_model="$tmp/moe-f32.gguf" || bad moegguf "$(tail -n 3 "$tmp/moegguf.log")"
weights=adapter/adapter_model.safetensors
is moe_same_adapter "$(sha "$tmp/moehf/$weights")" "$(sha "$tmp/moegguf/$weights")"
yes moe_experts grep -aq "experts.3.down_proj.lora_B" "$tmp/moegguf/$weights"
run moeq4 --set base_model="$tmp/moe-q4_0.gguf" || bad moeq4 "$(tail -n 3 "$tmp/moeq4.log")"
first=$(fields "$tmp/moeq4/metrics.jsonl" loss | head -n 1) last=$(fields "$tmp/moeq4/metrics.jsonl" loss | tail -n 1)
yes moe_loss_falls awk "BEGIN { exit !($last < $first) }"
says moe_generates 0 "ended by" "$NIBBLE" generate --adapter "$tmp/moeq4/adapter" --prompt "Order" --max-new-tokens 3
says moe_merged 0 "read back and agree" export_ --adapter "$tmp/moegguf/adapter" --out "$tmp/moe-merged.gguf"
says moe_merged_same 0 "read back and agree" export_ --adapter "$tmp/moehf/adapter" --out "$tmp/moe-same.gguf"
is moe_merged_equal "$(sha "$tmp/moe-merged.gguf")" "$(sha "$tmp/moe-same.gguf")"
says moe_lora 0 "all 40 read back" export_ --adapter "$tmp/moegguf/adapter" --format gguf-lora --out "$tmp/moe-lora.gguf"
is nothing_left "" "$(find "$tmp" -name '*.tmp*' -o -name '*.part*' -o -name '*.old')"
exit $failed
