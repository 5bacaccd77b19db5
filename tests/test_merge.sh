#!/bin/bash
# Adapters of every form, trained, loaded by score and generate, and merged: the merged model is base + adapter.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4100
tiny_base "$tmp/untied" 64 2 4100 false
tiny_data 40 "$tmp/train.jsonl"
tiny_yaml <<END
micro_batch_size: 4
num_epochs: 3
learning_rate: 2e-2
save_strategy: "no"
END
text="Order 37: 4 boxes of tea for house 12. house 12, 4 boxes; who knows why?" plain=$text
modules() { sed -n 's/^training .* on \([0-9]*\) modules.*/\1/p' "$tmp/$1.log"; }

trains lora
is lora_modules 14 "$(modules lora)"
trains rslora --set peft_use_rslora=true --set lora_alpha=3
is rslora_config true "$(sed -n 's/.*"use_rslora": \([a-z]*\).*/\1/p' "$tmp/rslora/adapter/adapter_config.json")"
trains list --set "lora_target_modules=[q_proj, down_proj]"
is list_modules 4 "$(modules list)"
trains pattern --set 'lora_target_modules=model\.layers\.1\..*(k|v|gate)_proj'
is pattern_modules 3 "$(modules pattern)"
trains layers --set "peft_layers_to_transform=[1]"
is layers_modules 7 "$(modules layers)"
trains patterns --set 'rank_pattern={"layers.1.mlp.(up|gate)_proj": 7, v_proj: 2}' --set 'alpha_pattern={up_proj: 3}'
is rank_pattern '{"model.layers.1.mlp.gate_proj":7,"model.layers.1.mlp.up_proj":7,"v_proj":2}' \
    "$(sed -n '/"rank_pattern"/,/}/p' "$tmp/patterns/adapter/adapter_config.json" | tr -d ' \n' | sed 's/.*pattern"://; s/,$//')"
says info_patterns 0 "v_proj 2" "$NIBBLE" info "$tmp/patterns/adapter"
says no_such_pattern 1 "q_porj" "$NIBBLE" train "$tmp/run.yaml" --set "rank_pattern={q_porj: 3}"
trains dora --set peft_use_dora=true --set learning_rate=5e-3
yes dora_saved grep -q lora_magnitude_vector "$tmp/dora/adapter/adapter_model.safetensors"
trains loraplus --set loraplus_lr_ratio=8 --set learning_rate=5e-3
says no_such_module 1 "q_porj" "$NIBBLE" train "$tmp/run.yaml" --set "lora_target_modules=[q_porj]"
trains untied --set base_model="$tmp/untied"

# ---- starting from an adapter ----
run warm --set lora_model_dir="$tmp/lora/adapter" --set learning_rate=0 --set max_steps=1
is warm_start "$(sha "$tmp/lora/adapter/adapter_model.safetensors")" "$(sha "$tmp/warm/adapter/adapter_model.safetensors")"
trains warmer --set lora_model_dir="$tmp/lora/adapter"
first() { fields "$tmp/$1/metrics.jsonl" loss | head -1; }
if awk -v a="$(first warmer)" -v b="$(first lora)" 'BEGIN {exit !(a < b - 0.1)}'; then ok warm_start_loss
else bad warm_start_loss "$(first warmer) after $(first lora)"; fi

# ---- added tokens in spare rows ----
extra="--set tokens=[<box>,<house>]"
sed 's/boxes of tea/<box> of tea/; s/for house/for <house>/' "$tmp/train.jsonl" >"$tmp/tokens.jsonl"
text="Order 37: 4 <box> of tea for <house> 12. house 12, 4 boxes; who knows why?"
for kind in "" untied; do
    trains "tokens$kind" $extra --set datasets.0.path="$tmp/tokens.jsonl" --set base_model="$tmp/${kind:-base}"
    yes "tokens${kind}_saved" grep -q trainable_token_indices "$tmp/tokens$kind/adapter/adapter_config.json"
    says "tokens${kind}_one_token" 0 "[4096, 4097]" "$NIBBLE" tokenize --no-special --base "$tmp/tokens$kind/merged" "<box><house>"
    says "tokens${kind}_adapter_tokenizer" 0 "[4096, 4097]" "$NIBBLE" tokenize --no-special --base "$tmp/tokens$kind/adapter" "<box><house>"
done
run special --set special_tokens.pad_token="<pad>" --set special_tokens.eos_token="<end>"
says special_tokens 0 "[4096]" "$NIBBLE" tokenize --no-special --base "$tmp/special/adapter" "<end>"

text=$plain

# ---- 4-bit bases ----
four="--set adapter=qlora --set load_in_4bit=true --set bnb_4bit_compute_dtype=float32"
run qlora $four --set "lora_target_modules=[q_proj, v_proj, up_proj]" || bad qlora "$(tail -n 3 "$tmp/qlora.log")"
both=$(score --adapter "$tmp/qlora/adapter")
far qlora_differs "$(score --base "$tmp/base" --load-in-4bit --dtype f32)" "$both"
says roundtrip 0 "drift from base + adapter" merge --adapter "$tmp/qlora/adapter" --out "$tmp/roundtrip/" --mode nf4-roundtrip
near roundtrip_merged "$both" "$(score --base "$tmp/roundtrip" --dtype f32)"
says original 0 "drift from base + adapter" merge --adapter "$tmp/qlora/adapter" --out "$tmp/a/new/folder" --mode original
near original_merged "$(score --adapter "$tmp/qlora/adapter" --no-load-in-4bit)" "$(score --base "$tmp/a/new/folder" --dtype f32)"
says requant 0 "drift from base + adapter" merge --adapter "$tmp/qlora/adapter" --out "$tmp/requant" --mode requant
yes requant_config grep -q quantization_config "$tmp/requant/config.json"
near requant_is_quantized "$(score --base "$tmp/a/new/folder" --load-in-4bit --dtype f32)" "$(score --base "$tmp/requant" --dtype f32)"
says roundtrip_of_lora 1 "use --mode original" merge --adapter "$tmp/lora/adapter" --out "$tmp/no" --mode nf4-roundtrip
mkdir "$tmp/full" && echo mine >"$tmp/full/mine"
says merge_not_empty 1 "is not empty" merge --adapter "$tmp/lora/adapter" --out "$tmp/full"
is merge_left_alone mine "$(names "$tmp/full")"
says merge_mode 1 "original, nf4-roundtrip or requant" merge --adapter "$tmp/lora/adapter" --out "$tmp/no" --mode none
says merge_no_adapter 1 "no such adapter folder" merge --base "$tmp/base" --adapter "$tmp/none" --out "$tmp/no"

run qdora $four --set peft_use_dora=true || bad qdora "$(tail -n 3 "$tmp/qdora.log")"
says qdora_roundtrip 0 "drift from base + adapter" merge --adapter "$tmp/qdora/adapter" --out "$tmp/qdora/whole" --mode nf4-roundtrip
near qdora_merged "$(score --adapter "$tmp/qdora/adapter")" "$(score --base "$tmp/qdora/whole" --dtype f32)"

# A base stored in 4 bits is the base quantized on load: the same adapter comes of it.
says quantize 0 "$tmp/stored" "$NIBBLE" quantize --base "$tmp/base" --out "$tmp/stored/"
run stored $four --set base_model="$tmp/stored" --set "lora_target_modules=[q_proj, v_proj, up_proj]" ||
    bad stored "$(tail -n 3 "$tmp/stored.log")"
is stored_adapter "$(sha "$tmp/qlora/adapter/adapter_model.safetensors")" "$(sha "$tmp/stored/adapter/adapter_model.safetensors")"
for mode in original requant; do
    says "stored_$mode" 1 "stored in 4 bits" merge --base "$tmp/stored" --adapter "$tmp/stored/adapter" --out "$tmp/no" --mode $mode
done
says stored_roundtrip 0 "100.0 % same" merge --base "$tmp/stored" --adapter "$tmp/stored/adapter" --out "$tmp/decoded" --mode nf4-roundtrip
is decoded_as_quantized_on_load "$(sha "$tmp/roundtrip/model.safetensors")" "$(sha "$tmp/decoded/model.safetensors")"
no_config=$(grep -c quantization_config "$tmp/decoded/config.json")
is decoded_is_float 0 "$no_config"
yes nothing_written test ! -e "$tmp/no"
is nothing_left "" "$(find "$tmp" -name '*.tmp*' -o -name '*.old')"

# ---- all weights ----
run all --set adapter=full --set learning_rate=1e-3 --set num_epochs=1
all=$(score --base "$tmp/all/model" --dtype f32)
far full_differs "$(score --base "$tmp/base" --dtype f32)" "$all"
says full_generates 0 "ended by" "$NIBBLE" generate --base "$tmp/all/model" --prompt "Order" --max-new-tokens 3
exit $failed
