#!/bin/bash
# What an adapter can hold beside LoRA of linear layers: modules trained whole, adapters of embedding and head, DoRA with
# dropout. Trained, loaded, merged, exported, stopped and resumed, on tied and untied bases.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 48 2 4096
tiny_base "$tmp/untied" 48 2 4096 false
tiny_data 24 "$tmp/train.jsonl"
tiny_yaml <<END
lora_target_modules: [q_proj, down_proj]
micro_batch_size: 4
num_epochs: 2
learning_rate: 1e-2
save_strategy: "no"
END
text="Order 37: 4 boxes of tea for house 12. house 12, 4 boxes; who knows why?" plain=$text
tie() { sed -n 's/.*"tie_word_embeddings": \([a-z]*\).*/\1/p' "$tmp/$1/merged/config.json"; }
own_head() { grep -c '"lm_head.weight"' "$tmp/$1/merged/model.safetensors"; } # in the merged file?
ends="--set lora_target_modules=[embed_tokens,lm_head,q_proj]"

# ---- every kind, merged ----
trains whole_head --set "lora_modules_to_save=[lm_head]"
is whole_head_unties "false 1" "$(tie whole_head) $(own_head whole_head)"
says whole_info 0 "trained whole lm_head" "$NIBBLE" info "$tmp/whole_head/adapter"
trains whole_embedding --set "lora_modules_to_save=[embed_tokens]"
is whole_embedding_unties "false 1" "$(tie whole_embedding) $(own_head whole_embedding)"
trains whole_untied --set base_model="$tmp/untied" --set "lora_modules_to_save=[lm_head,embed_tokens,norm,1.mlp]"
yes whole_saved grep -q '"base_model.model.model.layers.1.mlp.up_proj.weight"' "$tmp/whole_untied/adapter/adapter_model.safetensors"
is whole_not_adapted 3 "$(sed -n 's/^training .* on \([0-9]*\) modules.*/\1/p' "$tmp/whole_untied.log")"
trains whole_tied --set "lora_modules_to_save=[embed_tokens]" --set peft_ensure_weight_tying=true
is whole_stays_tied "true 0" "$(tie whole_tied) $(own_head whole_tied)"
run whole_tied_more --set lora_model_dir="$tmp/whole_tied/adapter" --set learning_rate=0 --set max_steps=1
is whole_tied_again "$(sha "$tmp/whole_tied/adapter/adapter_model.safetensors")" \
    "$(sha "$tmp/whole_tied_more/adapter/adapter_model.safetensors")"
says tied_head_alone 1 "ensure_weight_tying" "$NIBBLE" train "$tmp/run.yaml" --set peft_ensure_weight_tying=true \
    --set "lora_modules_to_save=[lm_head]"
trains whole_norm --set "lora_modules_to_save=[model.norm]"
is whole_norm_stays_tied "true 0" "$(tie whole_norm) $(own_head whole_norm)"
trains ends $ends --set lora_dropout=0.1
is ends_unties "false 1" "$(tie ends) $(own_head ends)"
trains ends_untied $ends --set base_model="$tmp/untied" --set "rank_pattern={embed_tokens: 2}"
trains dora_dropout --set peft_use_dora=true --set lora_dropout=0.2

# ---- added tokens among rows that are trained whole ----
sed 's/boxes of tea/<box> of tea/' "$tmp/train.jsonl" >"$tmp/tokens.jsonl"
extra="--set tokens=[<box>] --set datasets.0.path=$tmp/tokens.jsonl"
text="Order 37: 4 <box> of tea for house 12."
trains grown $extra --set "lora_modules_to_save=[lm_head,embed_tokens]"
is grown_vocabulary 4097 "$(sed -n 's/.*"vocab_size": \([0-9]*\).*/\1/p' "$tmp/grown/merged/config.json")"
text=$plain
run grown_more $extra --set lora_model_dir="$tmp/grown/adapter" --set learning_rate=0 --set max_steps=1
is grown_warm_start "$(sha "$tmp/grown/adapter/adapter_model.safetensors")" "$(sha "$tmp/grown_more/adapter/adapter_model.safetensors")"
says half_grown 1 "both saved" "$NIBBLE" train "$tmp/run.yaml" $extra --set "lora_modules_to_save=[embed_tokens]"

# ---- going on, byte for byte ----
for kind in "whole --set lora_modules_to_save=[lm_head,embed_tokens]" "ends $ends" "dropped --set peft_use_dora=true"; do
    name=${kind%% *} more="${kind#* } --set lora_dropout=0.2 --set save_strategy=steps --set save_steps=3"
    run "$name-once" $more
    run "$name-twice" $more
    rm -r "$tmp/$name-twice/adapter"
    find "$tmp/$name-twice" -maxdepth 1 -name "checkpoint-*" ! -name checkpoint-3 -exec rm -r {} +
    run "$name-twice" $more
    yes "${name}_resumed" grep -q "^resuming .*checkpoint-3" "$tmp/$name-twice.log"
    is "${name}_same_bytes" "$(sha "$tmp/$name-once/adapter/adapter_model.safetensors")" \
        "$(sha "$tmp/$name-twice/adapter/adapter_model.safetensors")"
done

# ---- for other programs ----
export_() { "$NIBBLE" export --threads 1 "$@"; }
for name in whole_untied ends grown; do
    says "${name}_peft" 0 "read back and are equal" export_ --adapter "$tmp/$name/adapter" --format peft --out "$tmp/$name-peft"
    says "${name}_gguf" 0 "read back and agree" export_ --adapter "$tmp/$name/adapter" --format gguf --out "$tmp/$name.gguf"
done
says whole_lora 1 "modules trained whole cannot be" export_ --adapter "$tmp/whole_head/adapter" --format gguf-lora --out "$tmp/no.gguf"
says ends_lora 1 "merge instead" export_ --adapter "$tmp/ends/adapter" --format gguf-lora --out "$tmp/no.gguf"
says ends_untied_lora 0 "read back and agree" export_ --adapter "$tmp/ends_untied/adapter" --format gguf-lora --out "$tmp/ends-lora.gguf"

# ---- what is said where it cannot be ----
says no_such_module 1 'no module'"'"'s name ends with "lm_haed"' "$NIBBLE" train "$tmp/run.yaml" --set "lora_modules_to_save=[lm_haed]"
says dora_on_head 1 "DoRA on" "$NIBBLE" train "$tmp/run.yaml" --set peft_use_dora=true $ends
use() { # NAME TEXT SED-SCRIPT: an adapter with another configuration
    rm -rf "$tmp/changed"; cp -r "$tmp/whole_head/adapter" "$tmp/changed"
    sed -i "$3" "$tmp/changed/adapter_config.json"
    says "$1" 1 "$2" "$NIBBLE" score --base "$tmp/base" --adapter "$tmp/changed" --text a
}
use pissa 'init_lora_weights "pissa"' 's/"init_lora_weights": true/"init_lora_weights": "pissa"/'
use saved_missing "embed_tokens.weight, which modules_to_save means" 's/"modules_to_save": \[/&"embed_tokens",/'
use saved_not_names "other than names" 's/"modules_to_save": \[/&7,/'
use trained_bias 'bias "lora_only"' 's/"bias": "none"/"bias": "lora_only"/'
use alora "alora_invocation_tokens" 's/"bias": "none"/&, "alora_invocation_tokens": [5]/'
cp -r "$tmp/whole_head/adapter" "$tmp/old" # as an old PEFT wrote it
cat >"$tmp/old/adapter_config.json" <<END
{"base_model_name_or_path": "$tmp/base", "init_lora_weights": "gaussian", "lora_alpha": 8, "peft_type": "LORA", "r": 4,
 "modules_to_save": ["lm_head"], "target_modules": "all-linear", "exclude_modules": ["k_proj"], "layers_pattern": "layers"}
END
near old_config "$(score --adapter "$tmp/whole_head/adapter")" "$(score --adapter "$tmp/old")"
exit $failed
