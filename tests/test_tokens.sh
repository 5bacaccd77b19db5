#!/bin/bash
# Added tokens: in an embedding with rows to spare, in one without, in one with some; trained, resumed, merged.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4097        # one row to spare
tiny_base "$tmp/untied" 64 2 4096 false # none
tiny_data 40 "$tmp/train.jsonl"
sed -i 's/boxes of tea/<box> of tea/; s/for house/for <house>/' "$tmp/train.jsonl"
tiny_yaml <<END
tokens: [<box>, <house>]
micro_batch_size: 32 # 2048 tokens planned for: the output head takes them in two rounds, a batch of fewer in one
num_epochs: 3
learning_rate: 2e-2
save_strategy: "no"
END
text="Order 37: 4 <box> of tea for <house> 12. house 12, 4 boxes"
score() { "$NIBBLE" score --text "$text" --json --threads 1 "$@" 2>"$tmp/score.log" || cat "$tmp/score.log"; }
ids() { "$NIBBLE" tokenize --no-special --base "$1" "$2"; }
apart() { # the largest difference among the nll of two answers of score
    paste <(echo "$1" | sed 's/.*"nll":\[\([^]]*\)\].*/\1/' | tr , '\n') <(echo "$2" | sed 's/.*"nll":\[\([^]]*\)\].*/\1/' | tr , '\n') |
        awk '$1 + 0 != $1 || $2 + 0 != $2 {bad = 1} {d = $1 - $2; if (d < 0) d = -d; if (!(d <= m)) m = d}
             END {print bad || NR < 5 ? "nothing comparable" : (m <= 1e-4 ? "equal" : m)}'
}
for kind in base untied; do
    yes "${kind}_trains" run "$kind" --set base_model="$tmp/$kind"
    first=4096
    is "${kind}_ids" "[$first, $((first + 1))]" "$(ids "$tmp/$kind/adapter" "<box><house>")"
    yes "${kind}_grows" grep -q "vocabulary grows by .* to 4098" "$tmp/$kind.log"
    says "${kind}_merge" 0 "drift from base + adapter" "$NIBBLE" merge --adapter "$tmp/$kind/adapter" --out "$tmp/$kind/merged"
    is "${kind}_merged_vocabulary" 4098 "$(sed -n 's/.*"vocab_size": \([0-9]*\).*/\1/p' "$tmp/$kind/merged/config.json")"
    is "${kind}_merged" equal "$(apart "$(score --adapter "$tmp/$kind/adapter")" "$(score --base "$tmp/$kind/merged" --dtype f32)")"
    says "${kind}_generates" 0 "ended by" "$NIBBLE" generate --adapter "$tmp/$kind/adapter" --prompt "Order" --max-new-tokens 3
done
says requant 0 "drift" "$NIBBLE" merge --adapter "$tmp/base/adapter" --out "$tmp/requant" --mode requant

# ---- resumed: the same bytes; done: left alone ----
run whole --set save_strategy=steps --set save_steps=1
cp -r "$tmp/whole" "$tmp/part"
rm -rf "$tmp/part/adapter" "$tmp/part"/checkpoint-[2-9]*
run part --set save_strategy=steps --set save_steps=1
is resumed "$(sha "$tmp/whole/adapter/adapter_model.safetensors")" "$(sha "$tmp/part/adapter/adapter_model.safetensors")"
before=$(find "$tmp/whole" -type f -printf '%P %T@ %i\n' | sort)
says complete 0 "nothing is left to do" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/whole" \
    --set save_strategy=steps --set save_steps=1
is complete_untouched "$before" "$(find "$tmp/whole" -type f -printf '%P %T@ %i\n' | sort)"

# ---- from an adapter that has them: its tokenizer and rows go on; it takes no others ----
run warm --set lora_model_dir="$tmp/base/adapter" --set "tokens=[]" --set learning_rate=0 --set max_steps=1
is warm_rows "$(sha "$tmp/base/adapter/adapter_model.safetensors")" "$(sha "$tmp/warm/adapter/adapter_model.safetensors")"
is warm_ids "[4096, 4097]" "$(ids "$tmp/warm/adapter" "<box><house>")"
says warm_new_token 1 "no row for it" "$NIBBLE" train "$tmp/run.yaml" --set output_dir="$tmp/no" \
    --set lora_model_dir="$tmp/base/adapter" --set "tokens=[<other>]"

# ---- all weights ----
yes full run full --set adapter=full --set learning_rate=1e-3
is full_vocabulary 4098 "$(sed -n 's/.*"vocab_size": \([0-9]*\).*/\1/p' "$tmp/full/model/config.json")"
says full_reads_them 0 "ids" score --base "$tmp/full/model" --dtype f32
is full_ids "[4096, 4097]" "$(ids "$tmp/full/model" "<box><house>")"

# ---- which are special: those the template or eot_tokens make control tokens ----
special() { sed -n 's/.*"special": \([a-z]*\).*/\1/p' <(grep -A8 "\"content\": \"$1\"" "$2/tokenizer.json" | tr -d '\n'); }
run control --set max_steps=1 --set chat_template=zephyr --set "tokens=['<|user|>', '<box>', '<end>']" --set "eot_tokens=['<end>']"
is template_token true "$(special '<|user|>' "$tmp/control/adapter")"
is plain_token false "$(special '<box>' "$tmp/control/adapter")"
is end_token true "$(special '<end>' "$tmp/control/adapter")"

# ---- a role given to a token that is there: the adapter's tokenizer says so, the merged model too ----
run role --set max_steps=1 --set "tokens=[]" --set "special_tokens.eos_token=<|im_end|>"
yes role_saved grep -q '"eos_token": "<|im_end|>"' "$tmp/role/adapter/tokenizer_config.json"
says role_merge 0 "drift" "$NIBBLE" merge --adapter "$tmp/role/adapter" --out "$tmp/role/merged"
yes role_merged grep -A1 '"eos_token_id": \(2\|\[\)' "$tmp/role/merged/config.json"

# ---- ids that no row has ----
says strange_id 1 "not below the vocabulary" "$NIBBLE" score --base "$tmp/base" --ids 1,2,99999
exit $failed
