#!/bin/sh
# nibble info and nibble quantize on the command line. NIBBLE and TMPDIR come from run.sh.
# Prints "[       OK ] name", "[  FAILED  ] name" or "[  SKIPPED ] name" per test, as cmocka does.
: "${NIBBLE:=build/gcc/nibble}"
tmp=$(mktemp -d "${TMPDIR:-/tmp}/nibble-info-XXXXXX"); trap 'rm -rf "$tmp"' EXIT
failed=0
ok() { echo "[       OK ] $1"; }
bad() { echo "[  FAILED  ] $1: $2"; failed=1; }
# says NAME TEXT STATUS command...: runs it; stdout and stderr together must hold TEXT
says() {
    name=$1 text=$2 status=$3; shift 3
    out=$("$@" 2>&1); rc=$?
    case $out in *"$text"*) ;; *) bad "$name" "no '$text' in: $out"; return;; esac
    if [ "$rc" = "$status" ]; then ok "$name"; else bad "$name" "status $rc, wanted $status"; fi
}

says info_help "usage: nibble info DIR|FILE" 0 "$NIBBLE" info --help
says info_nothing "name a model folder" 1 "$NIBBLE" info
says info_missing "no such folder" 1 "$NIBBLE" info "$tmp/none"
says info_bad_file "is no safetensors file" 1 "$NIBBLE" info "$0"
header='{"\u001b[31mred":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0%s\\0\\0\\0\\0" "$header" >"$tmp/names.safetensors"
says info_control_characters '\x1b[31mred' 0 "$NIBBLE" info "$tmp/names.safetensors"
rm "$tmp/names.safetensors"
says quantize_help "usage: nibble quantize" 0 "$NIBBLE" quantize --help
says quantize_needs_both "are needed" 1 "$NIBBLE" quantize --base "$tmp"
says quantize_no_config "has no config.json" 1 "$NIBBLE" quantize --base "$tmp" --out "$tmp/out"
mkdir "$tmp/unknown"
echo '{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}' >"$tmp/unknown/config.json"
says info_unsupported '"MambaForCausalLM"' 1 "$NIBBLE" info "$tmp/unknown"
cat >"$tmp/unknown/config.json" <<'END'
{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 300,
 "max_position_embeddings": 128, "torch_dtype": "bfloat16"}
END
says info_of_config "none in this folder; they would be" 0 "$NIBBLE" info "$tmp/unknown"
says info_of_config_experts "M parameters a token" 0 "$NIBBLE" info "$tmp/unknown"
printf 'base_model: %s\ndatasets:\n  - {path: none.jsonl, type: completion}\noutput_dir: %s/out\n' "$tmp/unknown" "$tmp" \
    >"$tmp/plan.yaml"
says plan_of_config "nf4 base: config.json alone, the weights are not there" 0 "$NIBBLE" plan "$tmp/plan.yaml"
says plan_of_config_memory "in all" 0 "$NIBBLE" plan "$tmp/plan.yaml"
says train_of_config "fetch the weights" 1 "$NIBBLE" train "$tmp/plan.yaml"
rm -r "$tmp/unknown" "$tmp/plan.yaml"
if [ -n "$NIBBLE_VECTORS" ]; then
    v=$NIBBLE_VECTORS
    says info_model "260032" 0 "$NIBBLE" info "$v/stories260K-hf"
    says info_shards "bf16" 0 "$NIBBLE" info "$v/stories260K-hf-bf16-sharded"
    says info_rope "llama3, factor 8, from a context of 32" 0 "$NIBBLE" info "$v/tiny/llama3"
    says info_window "2 layers see a window of 8" 0 "$NIBBLE" info "$v/tiny/mistral"
    says info_experts "layers send a token to 2 of" 0 "$NIBBLE" info "$v/tiny/mixtral"
    says info_adapter "rank          4, alpha 8" 0 "$NIBBLE" info "$v/stories260K-lora"
    says info_file "model.norm.weight" 0 "$NIBBLE" info "$v/stories260K-hf/model.safetensors"
    says quantize "$tmp/four" 0 "$NIBBLE" quantize --base "$v/stories260K-hf" --out "$tmp/four"
    says quantize_once "is not empty" 1 "$NIBBLE" quantize --base "$v/stories260K-hf" --out "$tmp/four"
    says quantize_twice "is saved in 4 bits" 1 "$NIBBLE" quantize --base "$tmp/four" --out "$tmp/again"
    says info_quantized "NF4 with double quantization" 0 "$NIBBLE" info "$tmp/four"
    says quantize_single "$tmp/single" 0 "$NIBBLE" quantize --base "$v/tiny/llama2" --out "$tmp/single" --no-double-quant
    left=$(ls "$tmp" | tr '\n' ' ')
    if [ "$left" = "four single " ]; then ok nothing_left; else bad nothing_left "$left"; fi
else
    echo "skipped: NIBBLE_VECTORS is not set (wanted stories260K-hf)"
    echo "[  SKIPPED ] info_and_quantize_of_models"
fi
exit $failed
