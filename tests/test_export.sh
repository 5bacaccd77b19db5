#!/bin/bash
# nibble export: every format from a trained adapter, read back; and what it refuses leaves nothing behind.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4100
tiny_data 40 "$tmp/train.jsonl"
tiny_yaml <<END
micro_batch_size: 4
max_steps: 6
learning_rate: 2e-2
save_strategy: "no"
END
export_() { "$NIBBLE" export --threads 1 "$@"; }
run lora || bad lora "$(tail -n 3 "$tmp/lora.log")"
lora=$tmp/lora/adapter

# ---- a model ----
for type in f32 f16 bf16 q8_0 q6_k q5_k_m q4_k_m q4_0; do
    says "gguf_$type" 0 "read back and agree" export_ --base "$tmp/base" --format gguf --dtype $type --out "$tmp/$type.gguf"
done
says gguf_default 0 "read back and agree" export_ --base "$tmp/base" --format gguf --out "$tmp/default.gguf"
is default_is_as_stored "$(sha "$tmp/f32.gguf")" "$(sha "$tmp/default.gguf")"
says not_verified 0 "wrote" export_ --base "$tmp/base" --format gguf --dtype q8_0 --no-verify --out "$tmp/again.gguf"
case $out in *"read back"*) bad says_only_what_it_did "$out";; *) ok says_only_what_it_did;; esac
says q4_k_is_q4_k_m 0 "read back and agree" export_ --base "$tmp/base" --format gguf --dtype q4_k --out "$tmp/q4_k.gguf"
is q4_k_same "$(sha "$tmp/q4_k_m.gguf")" "$(sha "$tmp/q4_k.gguf")"
is same_bytes "$(sha "$tmp/q8_0.gguf")" "$(sha "$tmp/again.gguf")"
is magic GGUF "$(head -c 4 "$tmp/f16.gguf")"

# ---- with an adapter ----
says merged 0 "read back and agree" export_ --adapter "$lora" --format gguf --out "$tmp/merged.gguf"
"$NIBBLE" merge --threads 1 --adapter "$lora" --out "$tmp/m/adapter" >"$tmp/merge.log" 2>&1
says of_merged 0 "read back and agree" export_ --base "$tmp/m/adapter" --format gguf --out "$tmp/of-merged.gguf"
is merged_as_merge_does "$(sha "$tmp/of-merged.gguf")" "$(sha "$tmp/merged.gguf")"
if [ "$(sha "$tmp/merged.gguf")" != "$(sha "$tmp/f32.gguf")" ]; then ok merged_differs; else bad merged_differs "from the base"; fi
says hf 0 "KL from base + adapter" export_ --adapter "$lora" --format hf --out "$tmp/hf"
is hf_as_merge_does "$(sha "$tmp/m/adapter/model.safetensors")" "$(sha "$tmp/hf/model.safetensors")"
says peft 0 "read back and are equal" export_ --adapter "$lora" --format peft --out "$tmp/peft"
is peft_equal "$(sha "$lora/adapter_model.safetensors")" "$(sha "$tmp/peft/adapter_model.safetensors")"
says gguf_lora 0 "all 28 read back" export_ --adapter "$lora" --format gguf-lora --out "$tmp/lora.gguf"

# ---- for Ollama: the same file, and a Modelfile ----
says ollama 0 "all 20 read back" export_ --adapter "$lora" --format ollama --system "Be brief." --out "$tmp/ollama/"
is ollama_files "Modelfile model.gguf" "$(names "$tmp/ollama")"
is ollama_gguf "$(sha "$tmp/merged.gguf")" "$(sha "$tmp/ollama/model.gguf")"
yes ollama_template grep -q '^TEMPLATE """{{ if .System }}<|im_start|>system$' "$tmp/ollama/Modelfile"
yes ollama_stop grep -q '^PARAMETER stop "<|im_end|>"$' "$tmp/ollama/Modelfile"
yes ollama_system grep -q '^SYSTEM """Be brief."""$' "$tmp/ollama/Modelfile"
says ollama_base 0 "ollama create base" export_ --base "$tmp/base" --format ollama --dtype q8_0 --out "$tmp/ollama-base"
says system_of_gguf 1 "only --format ollama" export_ --base "$tmp/base" --format gguf --system x --out "$tmp/no.gguf"
cp -r "$tmp/base" "$tmp/counts"
sed -i 's/"chat_template": *"/&{{ messages | length }}/' "$tmp/counts/tokenizer_config.json"
says ollama_no_template 0 "no form in Go" export_ --base "$tmp/counts" --format ollama --out "$tmp/ollama-counts"

# ---- 4 bits as bitsandbytes saves them ----
says bnb 0 "read back and agree" export_ --base "$tmp/base" --format bnb --out "$tmp/bnb"
"$NIBBLE" quantize --base "$tmp/base" --out "$tmp/quantized" >"$tmp/quantize.log" 2>&1
is bnb_as_quantize "$(sha "$tmp/quantized/model.safetensors")" "$(sha "$tmp/bnb/model.safetensors")"
says bnb_merged 0 "read back and agree" export_ --adapter "$lora" --format bnb --out "$tmp/bnb-merged"
"$NIBBLE" quantize --base "$tmp/hf" --out "$tmp/hf-quantized" >"$tmp/quantize.log" 2>&1
is bnb_of_merged "$(sha "$tmp/hf-quantized/model.safetensors")" "$(sha "$tmp/bnb-merged/model.safetensors")"
says bnb_generates 0 "" "$NIBBLE" generate --base "$tmp/bnb-merged" --prompt "Once upon" --max-new-tokens 4
says bnb_twice 1 "is saved in 4 bits" export_ --base "$tmp/bnb" --format bnb --out "$tmp/no.gguf"
says bnb_dtype 1 "have a choice of types" export_ --base "$tmp/base" --format bnb --dtype f16 --out "$tmp/no.gguf"

# ---- adapters of 4-bit bases, and those that a GGUF adapter cannot be ----
four="--set adapter=qlora --set load_in_4bit=true --set bnb_4bit_compute_dtype=float32"
run qlora $four || bad qlora "$(tail -n 3 "$tmp/qlora.log")"
says qlora_merged 0 "read back and agree" export_ --adapter "$tmp/qlora/adapter" --format gguf --dtype q8_0 --out "$tmp/q.gguf"
says qlora_lora 0 "all 28 read back" export_ --adapter "$tmp/qlora/adapter" --format gguf-lora --out "$tmp/ql.gguf"
"$NIBBLE" quantize --base "$tmp/base" --out "$tmp/stored" >"$tmp/quantize.log" 2>&1
says stored_gguf 0 "read back and agree" export_ --base "$tmp/stored" --format gguf --dtype f32 --out "$tmp/stored.gguf"
text="Order 37: 5 boxes of tea"
near stored_gguf_score "$("$NIBBLE" score --base "$tmp/stored" --dtype f32 --json --text "$text")" \
    "$("$NIBBLE" score --base "$tmp/stored.gguf" --dtype f32 --json --text "$text")"
says stored_hf 0 "KL from base" export_ --base "$tmp/stored" --format hf --out "$tmp/stored-hf"
says stored_merged 0 "read back and agree" export_ --base "$tmp/stored" --adapter "$lora" --format gguf --out "$tmp/sm.gguf"
says stored_bnb 0 "read back and agree" export_ --base "$tmp/stored" --adapter "$lora" --format bnb --out "$tmp/stored-bnb"
says stored_lora 0 "all 28 read back" export_ --base "$tmp/stored" --adapter "$lora" --format gguf-lora --out "$tmp/sl.gguf"
is stored_lora_equal "$(sha "$tmp/lora.gguf")" "$(sha "$tmp/sl.gguf")"
sed 's/boxes of tea/<box> of tea/' "$tmp/train.jsonl" >"$tmp/tokens.jsonl"
run tokens --set "tokens=[<box>]" --set datasets.0.path="$tmp/tokens.jsonl" || bad tokens "$(tail -n 3 "$tmp/tokens.log")"
says tokens_lora 1 "export the merged model" export_ --adapter "$tmp/tokens/adapter" --format gguf-lora --out "$tmp/no.gguf"
run dora --set peft_use_dora=true || bad dora "$(tail -n 3 "$tmp/dora.log")"
says dora_lora 1 "a DoRA adapter cannot be" export_ --adapter "$tmp/dora/adapter" --format gguf-lora --out "$tmp/no.gguf"
says dora_merged 0 "read back and agree" export_ --adapter "$tmp/dora/adapter" --format gguf --out "$tmp/dora.gguf"
says dora_peft 0 "read back and are equal" export_ --adapter "$tmp/dora/adapter" --format peft --out "$tmp/dora-peft"
says tokens_merged 0 "read back and agree" export_ --adapter "$tmp/tokens/adapter" --format gguf --out "$tmp/tokens.gguf"
yes tokens_there grep -aq "<box>" "$tmp/tokens.gguf"

# ---- GPT-2: weights that are stored the other way round ----
gpt2=tests/golden/gpt2
cd "$(dirname "$samples")/.." || exit 2
says gpt2_hf 0 "KL from base + adapter" export_ --base $gpt2 --adapter $gpt2/adapter --format hf --out "$tmp/gpt2"
says gpt2_scaled_hf 0 "KL from base + adapter" export_ --base $gpt2-scaled --adapter $gpt2-scaled/adapter --format hf --out "$tmp/gpt2s"
says gpt2_gguf 0 "all 28 read back" export_ --base $gpt2 --adapter $gpt2/adapter --format gguf --dtype q8_0 --out "$tmp/gpt2.gguf"
says gpt2_lora 0 "all 16 read back" export_ --base $gpt2 --adapter $gpt2/adapter --format gguf-lora --out "$tmp/gpt2-lora.gguf"
says gpt2_bnb 0 "all 28 tensors read back" export_ --base $gpt2 --adapter $gpt2/adapter --format bnb --out "$tmp/gpt2-bnb"
says gpt2_peft 0 "read back and are equal" export_ --base $gpt2 --adapter $gpt2/adapter --format peft --out "$tmp/gpt2-peft"
yes gpt2_peft_is_fan_in_fan_out grep -q '"fan_in_fan_out": true' "$tmp/gpt2-peft/adapter_config.json"
yes lora_is_not grep -q '"fan_in_fan_out": false' "$lora/adapter_config.json"
says gpt2_scaled_gguf 1 "another activation" export_ --base $gpt2-scaled --format gguf --out "$tmp/no.gguf"
cp -r $gpt2 "$tmp/gpt2-by-layer"
sed -i 's/"scale_attn_by_inverse_layer_idx": false/"scale_attn_by_inverse_layer_idx": true/' "$tmp/gpt2-by-layer/config.json"
says gpt2_by_layer 1 "scale_attn_by_inverse_layer_idx" export_ --base "$tmp/gpt2-by-layer" --format gguf --out "$tmp/no.gguf"

# ---- refusals ----
echo mine >"$tmp/mine.gguf"
for format in gguf gguf-lora peft ollama bnb; do
    says "exists_$format" 1 "exists; nothing was written" export_ --adapter "$lora" --format $format --out "$tmp/mine.gguf"
done
is left_alone mine "$(cat "$tmp/mine.gguf")"
says no_format 1 "are needed" export_ --base "$tmp/base" --out "$tmp/no.gguf"
says other_format 1 "say gguf, gguf-lora, ollama, hf, peft or bnb" export_ --base "$tmp/base" --format onnx --out "$tmp/no.gguf"
says other_dtype 1 "say f32, f16, bf16, q8_0" export_ --base "$tmp/base" --format gguf --dtype q2 --out "$tmp/no.gguf"
says dtype_of_hf 1 "only --format gguf" export_ --adapter "$lora" --format hf --dtype f16 --out "$tmp/no.gguf"
says no_adapter 1 "--adapter DIR is needed" export_ --base "$tmp/base" --format peft --out "$tmp/no.gguf"
says no_base 1 "--base DIR is needed" export_ --format gguf --out "$tmp/no.gguf"
cp -r "$tmp/base" "$tmp/odd"
sed -i 's/"rope_theta"/"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_theta"/' "$tmp/odd/config.json"
says dynamic_rope 1 "cannot be told" export_ --base "$tmp/odd" --format gguf --out "$tmp/no.gguf"
says no_room 1 "/dev/full" export_ --base "$tmp/base" --format gguf --out /dev/full
yes nothing_written test ! -e "$tmp/no.gguf"
is nothing_left "" "$(find "$tmp" -name '*.tmp*' -o -name '*.part*' -o -name '*.old')"
exit $failed
