#!/bin/bash
# nibble bench: the limits and every part in JSON with figures that can be, the table, a configuration's model, bad ones.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
quick=(bench --threads 1 --seconds 0 --prompt 24 --generate 3 --tokens 32)
# numbers FILE KEY: every value of a key, null included
numbers() { sed -n "s/.*\"$2\": *\([-0-9.e+]*\|null\),*}*$/\1/p" "$1"; }
# sane NAME FILE KEY COUNT: at least so many, all of them numbers above 0 and, where there is a fifth argument, up to it
sane() {
    is "$1" sane "$(numbers "$2" "$3" | awk -v n="$4" -v top="${5:-1e30}" '
        !($1 + 0 > 0 && $1 + 0 <= top) {bad = bad " " $1} END {print (bad == "" && NR >= n ? "sane" : NR ":" bad)}')"
}

says writes_json 0 '"operations"' "$NIBBLE" "${quick[@]}" --shape tiny --json -
echo "$out" | grep -v '^bench ' >"$tmp/bench.json"
if command -v python3 >/dev/null; then yes json_parses python3 -m json.tool "$tmp/bench.json"
else skip json_parses "no python3"; fi
sane times "$tmp/bench.json" ms 10
sane medians "$tmp/bench.json" median_ms 3
sane rates "$tmp/bench.json" tokens_per_second 3
sane bandwidth "$tmp/bench.json" read_gb_s 2 10000
if grep -q avx2 /proc/cpuinfo; then sane percentages "$tmp/bench.json" percent 10 5000; else skip percentages "no AVX2"; fi
for part in machine limits model prompt generation step; do
    is "has_$part" 1 "$(grep -c "^ \"$part\":" "$tmp/bench.json")"
done
says one_part 0 "generation" "$NIBBLE" "${quick[@]}" --shape tiny --only generation
case $out in *"training step"*) bad one_part_alone "$out";; *) ok one_part_alone;; esac
says recomputes 0 "gradient_checkpointing smart" "$NIBBLE" "${quick[@]}" --shape tiny --layers 1 --base bf16 --dtype f32 \
    --only step --checkpointing smart
says unknown_shape 1 "no shape 'llama-9'; there are tiny," "$NIBBLE" bench --shape llama-9
says unknown_part 1 "limits, prompt, generation or step" "$NIBBLE" bench --shape tiny --only everything
says unknown_base 1 "nf4, bf16 or f32" "$NIBBLE" bench --shape tiny --base q3
says unwritable 1 "cannot be written" "$NIBBLE" "${quick[@]}" --shape tiny --only limits --json "$tmp/none/out.json"

tiny_base "$tmp/base" 64 2 4096
tiny_data 10 "$tmp/train.jsonl"
cat >"$tmp/run.yaml" <<END
base_model: $tmp/base
datasets: [{path: $tmp/train.jsonl, type: prompt_completion}]
lora_r: 4
sequence_len: 48
micro_batch_size: 2
gradient_checkpointing: auto
output_dir: $tmp/out
END
says of_a_config 0 "LoRA of rank 4, gradient_checkpointing auto" "$NIBBLE" "${quick[@]}" "$tmp/run.yaml" --json "$tmp/c.json"
is of_its_batch 96 "$(sed -n '/"step"/,$s/^ *"tokens": \([0-9]*\),$/\1/p' "$tmp/c.json")"
if [ -e "$tmp/out" ]; then bad leaves_nothing "$(names "$tmp/out")"; else ok leaves_nothing; fi
says bad_config 1 "lora_rr" "$NIBBLE" bench "$tmp/run.yaml" --set lora_rr=3
says no_config 1 "none.yaml" "$NIBBLE" bench "$tmp/none.yaml"
exit $failed
