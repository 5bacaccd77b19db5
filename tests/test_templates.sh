#!/bin/bash
# A Jinja template of the run's own, from a file and from the configuration: it is trained with, kept in the adapter's
# folder, used by generation when the file is gone, and merged into the model.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4100
cat >"$tmp/own.jinja" <<'END'
{%- for m in messages %}
    {{- '<|im_start|>' ~ m.role ~ '\n' }}
    {%- if m.role == 'assistant' %}{{ '[thought]\n' }}{% endif %}
    {{- m.content | trim ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
END
for i in 1 2 3 4 5 6 7 8; do
    echo "{\"messages\": [{\"role\": \"user\", \"content\": \" Say $i \"}, {\"role\": \"assistant\", \"content\": \"It is $i\"}]}"
done >"$tmp/train.jsonl"
cat >"$tmp/run.yaml" <<END
base_model: $tmp/base
adapter: lora
load_in_4bit: false
bf16: false
lora_r: 4
datasets: [{path: $tmp/train.jsonl, type: chat_template}]
sequence_len: 64
micro_batch_size: 2
gradient_accumulation_steps: 1
max_steps: 2
save_strategy: "no"
dataset_prepared_path: none
threads: 1
output_dir: $tmp/out
END
trained='[[thought]
It is 1<|im_end|>]'
says row_of_a_file 0 "$trained" "$NIBBLE" data "$tmp/run.yaml" --row 1 --set "chat_template=jinja:$tmp/own.jinja"
marked="{% for m in messages %}{% if m.role == 'user' %}{{ m.content ~ '\\n' }}{% else %}"
marked="$marked{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
says row_of_text 0 '[It is 1</s>]' "$NIBBLE" data "$tmp/run.yaml" --row 1 --set "special_tokens.eos_token=</s>" \
    --set "chat_template_jinja=$marked"
says no_file 1 "$tmp/none.jinja" "$NIBBLE" data "$tmp/run.yaml" --set "chat_template=jinja:$tmp/none.jinja"
says place_of_a_mistake 1 "line 1, column 7" "$NIBBLE" data "$tmp/run.yaml" --set "chat_template_jinja={% if %}"
picky="{{ raise_exception('no thanks') if messages[0].content not in 'us' }}"
picky="$picky{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
says refused_row 1 "train.jsonl:1: chat template, line 1, column 4: the template refuses this conversation: no thanks" \
    "$NIBBLE" data "$tmp/run.yaml" --set "chat_template_jinja=$picky"
says template_missing 1 "needs the template" "$NIBBLE" data "$tmp/run.yaml" --set chat_template=jinja
says two_templates 1 "excludes" "$NIBBLE" data "$tmp/run.yaml" --set chat_template=chatml --set "chat_template_jinja={{ x }}"

yes train "$NIBBLE" train "$tmp/run.yaml" --set "chat_template=jinja:$tmp/own.jinja"
is kept_with_the_adapter "$(sha "$tmp/own.jinja")" "$(sha "$tmp/out/adapter/chat_template.jinja")"
yes merge "$NIBBLE" merge --adapter "$tmp/out/adapter" --out "$tmp/merged" --threads 1
is kept_with_the_merged_model "$(sha "$tmp/own.jinja")" "$(sha "$tmp/merged/chat_template.jinja")"
mv "$tmp/own.jinja" "$tmp/gone.jinja"
says chat_without_the_file 0 "" sh -c \
    "echo hello | '$NIBBLE' chat --adapter '$tmp/out/adapter' --max-new-tokens 3 --threads 1 2>&1"
says evaluation_without_the_file 0 "loss" "$NIBBLE" eval --adapter "$tmp/out/adapter" --data "$tmp/train.jsonl" \
    --type chat_template --threads 1
exit $failed
