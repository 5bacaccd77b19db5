#!/bin/bash
# nibble train from a configuration to what it leaves behind: evaluation and saving on schedule, the best model, the
# reasons to stop, kinds of adapters and bases.
# shellcheck source=tests/tiny_run.sh
. "$(dirname "$0")/tiny_run.sh"
tiny_base "$tmp/base" 64 2 4100
tiny_data 40 "$tmp/train.jsonl"
tiny_data 8 "$tmp/test.jsonl" 100
tiny_yaml <<END
micro_batch_size: 4
num_epochs: 2
learning_rate: 1e-2
END
{
    cat "$tmp/run.yaml"
    echo "test_datasets: [{path: $tmp/test.jsonl, type: prompt_completion, name: test}]"
} >"$tmp/eval.yaml"
run() { # DIR CONFIG ARGS...
    local dir=$1 config=$2; shift 2
    "$NIBBLE" train "$tmp/$config.yaml" --set output_dir="$tmp/$dir" "$@" 2>&1 | tee "$tmp/$dir.log"
    return "${PIPESTATUS[0]}"
}
steps() { sed -n 's/^{"step":\([0-9]*\),.*"loss":.*"tokens":.*/\1/p' "$tmp/$1/metrics.jsonl" | xargs; }
evals() { sed -n 's/^{"step":\([0-9]*\),.*"eval":.*/\1/p' "$tmp/$1/metrics.jsonl" | xargs; }
checkpoints() { (cd "$tmp/$1" && echo checkpoint-* | xargs -n1 | sort -V | xargs); }
weights() { sha "$tmp/$1/adapter_model.safetensors"; }
step_of() { sed -n 's/^ *"step": \([0-9]*\),*$/\1/p' "$tmp/$1/nibble_manifest.json"; }
says_run() { local name=$1 status=$2 text=$3; shift 3; says "$name" "$status" "$text" run "$@"; }

# ---- on schedule: 10 rows an epoch fill 5 steps ----
says_run epochs 0 "done" epochs eval
is epochs_evals "5 10" "$(evals epochs)"
is epochs_checkpoints "checkpoint-5 checkpoint-10" "$(checkpoints epochs)"
says_run by_steps 0 "done" by_steps eval --set eval_steps=3 --set save_steps=4 --set save_total_limit=0
is by_steps_evals "3 6 9 10" "$(evals by_steps)"
is by_steps_checkpoints "checkpoint-4 checkpoint-8 checkpoint-10" "$(checkpoints by_steps)"
is by_steps_steps "$(seq -s ' ' 10)" "$(steps by_steps)"
says_run per_epoch 0 "done" per_epoch eval --set evals_per_epoch=2 --set saves_per_epoch=2 --set save_total_limit=1
is per_epoch_evals "3 5 8 10" "$(evals per_epoch)"
is per_epoch_checkpoints "checkpoint-10" "$(checkpoints per_epoch)"
says_run never 0 "done" never eval --set eval_strategy=no --set save_strategy=no
is never_leaves "adapter config.yaml metrics.jsonl" "$(names "$tmp/never")"
says_run never_again 1 "result of an earlier run" never eval --set eval_strategy=no --set save_strategy=no
is schedules_change_nothing "$(weights epochs/adapter)" "$(weights never/adapter)"
is val_set_size "5 10" "$(run split run --set val_set_size=4 --set num_epochs=2 >/dev/null; evals split)"

# ---- the best model, early stopping: a rate so high that the model gets worse ----
worse="--set eval_steps=1 --set learning_rate=0.25 --set warmup_steps=0 --set lr_scheduler=constant --set weight_decay=10"
says_run last_not_best 0 "done" last eval $worse
is last_step 10 "$(step_of last/adapter)"
best=$(step_of last/best)
is best_is_lowest "$best" "$(sed -n 's/^{"step":\([0-9]*\),.*"eval":{"loss":\([0-9.]*\).*/\2 \1/p' "$tmp/last/metrics.jsonl" |
    sort -n | head -1 | cut -d' ' -f2)"
if [ "${best:-10}" -lt 8 ]; then ok best_is_early; else bad best_is_early "$best"; fi
says_run load_best 0 "the best step was $best" best eval $worse --set load_best_model_at_end=true --set save_total_limit=1
is load_best_adapter "$(weights last/best)" "$(weights best/adapter)"
is load_best_step "$best" "$(step_of best/adapter)"
says_run early_stop 0 "stopping early" early eval $worse --set early_stopping_patience=2 --set load_best_model_at_end=true
is early_stop_steps "$(seq -s ' ' $((best + 2)))" "$(steps early)"
is early_stop_adapter "$(weights last/best)" "$(weights early/adapter)"
says_run early_stop_again 0 "nothing is left to do" early eval $worse --set early_stopping_patience=2 --set load_best_model_at_end=true
is early_stop_stays "$(seq -s ' ' $((best + 2)))" "$(steps early)"
says_run metric_unknown 1 '"test/f1" is not among the metrics' metric eval --set metric_for_best_model=test/f1
says_run metric_best 0 "done" metric eval --overwrite --set metric_for_best_model=test/perplexity

# ---- stopping for a reason ----
says_run watchdog 1 "above loss_watchdog_threshold 0.5 for 3 steps" watchdog run --set loss_watchdog_threshold=0.5 --set save_steps=2
is watchdog_steps "1 2 3" "$(steps watchdog)"
is watchdog_leaves "checkpoint-2 config.yaml metrics.jsonl" "$(names "$tmp/watchdog")"
says_run watchdog_again 1 "step 3: the loss was above" watchdog run --set loss_watchdog_threshold=0.5
absurd="--set learning_rate=10 --set weight_decay=10 --set max_grad_norm=0 --set lr_scheduler=constant --set warmup_steps=0"
absurd="$absurd --set num_epochs=20"
says_run not_finite 1 "nothing was updated" absurd run $absurd --set save_steps=1 --set save_total_limit=1
case $out in *"Samples of the step: "*) ok not_finite_samples;; *) bad not_finite_samples "$out";; esac
says_run not_finite_held_out 1 "the held-out loss is not finite" absurd_held_out eval $absurd --set eval_steps=1
last=$(steps absurd | awk '{print NF}')
is not_finite_checkpoint "checkpoint-$last" "$(checkpoints absurd)"
state=$(sha "$tmp/absurd/checkpoint-$last/state.safetensors")
says_run not_finite_again 1 "step $((last + 1)): loss" absurd run $absurd --set save_steps=1
is not_finite_kept "$state" "$(sha "$tmp/absurd/checkpoint-$last/state.safetensors")"
if [ -e "$tmp/absurd/adapter" ]; then bad not_finite_no_adapter "$(ls "$tmp/absurd")"; else ok not_finite_no_adapter; fi

# ---- whole pictures of other kinds ----
says_run accumulation 0 "done" accumulation run --set micro_batch_size=1 --set gradient_accumulation_steps=4 --set num_epochs=1
says_run batch 0 "done" batch run --set micro_batch_size=4 --set gradient_accumulation_steps=1 --set num_epochs=1
drift=$(paste <(fields "$tmp/accumulation/metrics.jsonl" loss) <(fields "$tmp/batch/metrics.jsonl" loss) |
    awk '{d = ($1 - $2) / $2; if (d < 0) d = -d; if (!(d <= m)) m = d} END {print NR == 5 && m <= 1e-6 ? "same" : NR " steps, " m}')
is accumulation_loss same "$drift"
says_run checkpointing 0 "done" checkpointing run --set gradient_checkpointing=true --set lora_dropout=0.1
says_run keeping 0 "done" keeping run --set lora_dropout=0.1
is checkpointing_changes_nothing "$(weights keeping/adapter)" "$(weights checkpointing/adapter)"
says_run smart 0 "again: all layers in part" smart run --set gradient_checkpointing=smart --set lora_dropout=0.1
is smart_changes_nothing "$(weights keeping/adapter)" "$(weights smart/adapter)"
# auto: what fits where keeping everything does not; what the first part of a run chose, a resumed one does again
auto=(run --set gradient_checkpointing=auto --set lora_dropout=0.1 --set save_steps=2)
limit=$("$NIBBLE" plan "$tmp/run.yaml" --set lora_dropout=0.1 | awk '$1 $2 == "inall" {print $3 - 0.1 $4}')
says_run auto_fits 0 " in part" auto "${auto[@]}" --set memory_limit="$limit"
is auto_changes_nothing "$(weights keeping/adapter)" "$(weights auto/adapter)"
again=$(sed -n 's/^backward *//p' "$tmp/auto.log")
rm -rf "$tmp/auto/checkpoint-10" "$tmp/auto/adapter"
says_run auto_resumes 0 "$again" auto "${auto[@]}"
is auto_resumes_the_same "$(weights keeping/adapter)" "$(weights auto/adapter)"
says_run auto_with_room 0 "computes again: all layers not" roomy "${auto[@]}"
# the output head in 4 and 8 bits: said in the manifest, used by what comes after, its cost printed; not where it is trained
for q in nf4 int8; do
    says_run "head_$q" 0 "done" "head_$q" eval --set lm_head_quant=$q --set num_epochs=1
    is "head_${q}_manifest" 1 "$(grep -c "\"lm_head_quant\": \"$q\"" "$tmp/head_$q/adapter/nibble_manifest.json")"
    says "head_${q}_cost" 0 "lm_head_quant $q: test: perplexity of the base" "$NIBBLE" eval "$tmp/eval.yaml" \
        --set lm_head_quant=$q --adapter "$tmp/head_$q/adapter"
    scored=$("$NIBBLE" score --adapter "$tmp/head_$q/adapter" --text 'boxes of tea')
    is "head_${q}_used" "$scored" "$("$NIBBLE" score --adapter "$tmp/head_$q/adapter" --lm-head-quant $q --text 'boxes of tea')"
    if [ "$scored" = "$("$NIBBLE" score --adapter "$tmp/head_$q/adapter" --lm-head-quant none --text 'boxes of tea')" ]; then
        bad "head_${q}_differs" "$scored"; else ok "head_${q}_differs"; fi
done
yes head_merges "$NIBBLE" merge --adapter "$tmp/head_nf4/adapter" --out "$tmp/head_merged"
says_run head_saved 1 "the output head is trained here" head_saved run --set lora_modules_to_save=[lm_head,embed_tokens] \
    --set lm_head_quant=nf4
says head_trained 1 "cannot be held in fewer bits" "$NIBBLE" train "$tmp/run.yaml" --set adapter=full --set lm_head_quant=nf4
says_run unpacked 0 "done" unpacked run --set sample_packing=false
says_run bf16 0 "computing in bfloat16" bf16 run --set bf16=true --set num_epochs=1
exit $failed
