#!/bin/bash
# Reads what nibble exports with the programs it is for: the gguf package, llama.cpp, transformers, PEFT, bitsandbytes and Go's
# templates, from PyPI in a virtual environment under build/interop (llama.cpp is compiled there, which takes minutes).
#   tests/interop/run.sh NIBBLE [BASE [ADAPTER]]    default: the sample base and small models of other families, each
#                                                   with an adapter of a few steps
set -eu
nibble=$(realpath "$1")
cd "$(dirname "$0")/../.."
venv=$PWD/build/interop
python=$venv/bin/python
if ! cat tests/{golden,interop}/requirements.txt | cmp -s - "$venv/ready"; then
    python3 -m venv "$venv"
    # Only llama.cpp's library: not its tools for images.
    CMAKE_ARGS="-DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}" "$venv/bin/pip" install -q -r tests/interop/requirements.txt
    cat tests/{golden,interop}/requirements.txt >"$venv/ready"
fi
export OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
failed=0
# run COMMAND...: goes on after a difference; all of them count
run() { echo "== ${*#"$python"}"; "$@" 2>"$tmp/log" || { tail -n 5 "$tmp/log"; failed=1; }; }
train() { # BASE OUT SETTINGS...
    "$nibble" train configs/quickstart.yaml --set base_model="$1" --set output_dir="$2" --set max_steps=4 \
        --set load_in_4bit=false "${@:3}" >"$tmp/train.log" 2>&1 || { tail -n 5 "$tmp/train.log"; exit 1; }
}

# every format of BASE and ADAPTER
check() {
    local base=$1 adapter=$2 out
    out=$tmp/$(basename "$base")-out
    "$nibble" export --base "$base" --adapter "$adapter" --format peft --out "$out-peft"
    "$nibble" export --base "$base" --adapter "$adapter" --format hf --out "$out-hf"
    run "$python" tests/interop/check_peft.py --base "$base" --adapter "$out-peft" --nibble "$nibble" >/dev/null
    run "$python" tests/interop/check_peft.py --base "$out-hf" --nibble "$nibble" >/dev/null
    run "$python" tests/interop/check_bnb.py --nibble "$nibble" --base "$base" --adapter "$adapter"
    run "$python" tests/interop/check_gguf.py --nibble "$nibble" --base "$base" --adapter "$adapter"
}

# Random weights that a few steps are trained into, of families that the sample is not of, with the sample's tokenizer.
small() { # NAME ARCHITECTURE MODEL_TYPE KEYS
    local dir=$tmp/$1
    mkdir "$dir-config"
    cp data/samples/base/{tokenizer,tokenizer_config,special_tokens_map}.json "$dir-config"
    cat >"$dir-config/config.json" <<END
{"architectures": ["$2"], "model_type": "$3", "vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0,
 $4}
END
    train "$dir-config" "$dir-run" --set adapter=full --set reinit_weights=true --set bf16=false
    mv "$dir-run/model" "$dir"
    train "$dir" "$dir-lora" --set adapter=lora --set learning_rate=1e-2
}
sizes() { # HIDDEN MLP HEADS KV_HEADS LAYERS
    echo "\"initializer_range\": $(awk "BEGIN {print 1.6 / sqrt($1)}"), \"hidden_size\": $1, \"intermediate_size\": $2,
 \"num_attention_heads\": $3, \"num_key_value_heads\": $4, \"num_hidden_layers\": $5,
 \"max_position_embeddings\": 256, \"tie_word_embeddings\": false"
}
experts() { echo "\"num_experts\": $1, \"num_experts_per_tok\": $2"; } # ALL CHOSEN
families() {
    local moe='"moe_intermediate_size": 96'
    small gpt2 GPT2LMHeadModel gpt2 '"initializer_range": 0.2, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256'
    small neox GPTNeoXForCausalLM gpt_neox "$(sizes 64 160 4 4 3), \"rotary_pct\": 0.25"
    small mixtral MixtralForCausalLM mixtral "$(sizes 256 256 4 2 2), \"num_local_experts\": 8, \"sliding_window\": null"
    small qwen2moe Qwen2MoeForCausalLM qwen2_moe \
        "$(sizes 64 128 4 2 3), $(experts 6 3), $moe, \"shared_expert_intermediate_size\": 128"
    small qwen3moe Qwen3MoeForCausalLM qwen3_moe \
        "$(sizes 64 128 4 2 3), $(experts 8 2), $moe, \"head_dim\": 32, \"norm_topk_prob\": true"
    small olmoe OlmoeForCausalLM olmoe "$(sizes 256 256 4 4 2), $(experts 5 2)"
    small qwen3 Qwen3ForCausalLM qwen3 "$(sizes 64 160 4 2 3), \"head_dim\": 32"
    small smollm3 SmolLM3ForCausalLM smollm3 "$(sizes 64 160 4 2 5)"
    small gemma3 Gemma3ForCausalLM gemma3_text \
        "$(sizes 64 160 4 2 7 | sed s/false/true/), \"head_dim\": 32, \"query_pre_attn_scalar\": 32, \"sliding_window\": 24"
}

# What an adapter can hold besides, trained on BASE: it and its merged model.
kind() { # NAME BASE SETTINGS...
    local out=$tmp/$1
    train "$2" "$out" --set adapter=lora --set learning_rate=1e-2 "${@:3}"
    "$nibble" export --base "$2" --adapter "$out/adapter" --format hf --out "$out-hf"
    run "$python" tests/interop/check_peft.py --base "$2" --adapter "$out/adapter" --nibble "$nibble" >/dev/null
    run "$python" tests/interop/check_peft.py --base "$out-hf" --nibble "$nibble" >/dev/null
}
kinds() {
    local base=data/samples/base ends="--set lora_target_modules=[embed_tokens,lm_head,q_proj]"
    kind whole $base --set "lora_modules_to_save=[lm_head, embed_tokens, norm]"
    kind tied $base --set "lora_modules_to_save=[embed_tokens]" --set peft_ensure_weight_tying=true
    kind dora $base --set peft_use_dora=true --set lora_dropout=0.1
    kind ends $base $ends
    kind untied "$tmp/whole-hf" $ends --set lora_dropout=0.1 # a head of its own
    run "$python" tests/interop/check_gguf.py --nibble "$nibble" --base "$tmp/whole-hf" --adapter "$tmp/untied/adapter" \
        --prompt "Once upon a time"
}

if [ $# -gt 1 ]; then
    adapter=${3:-}
    if [ -z "$adapter" ]; then train "$2" "$tmp/run" --set adapter=lora; adapter=$tmp/run/adapter; fi
    check "$2" "$adapter"
else
    train data/samples/base "$tmp/llama" --set adapter=lora
    check data/samples/base "$tmp/llama/adapter"
    kinds
    run "$python" tests/interop/check_gguf_base.py --nibble "$nibble" --base data/samples/base
    families
    check "$tmp/gpt2" "$tmp/gpt2-lora/adapter"
    for family in neox mixtral qwen2moe qwen3moe olmoe qwen3 smollm3 gemma3; do
        run "$python" tests/interop/check_gguf.py --nibble "$nibble" --base "$tmp/$family" \
            --adapter "$tmp/$family-lora/adapter" --prompt "Once upon a time"
    done
fi
templates=${NIBBLE_VECTORS:+$NIBBLE_VECTORS/chat/rendered.json}
run "$python" tests/interop/check_modelfile.py --nibble "$nibble" --go "$venv/bin/go" ${templates:+--templates "$templates"}
if [ $failed -ne 0 ]; then echo "something differs"; else echo "all agree"; fi
exit $failed
