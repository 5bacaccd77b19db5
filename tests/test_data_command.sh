#!/bin/sh
# nibble data: the ledger, one row with its mask, and messages. $NIBBLE is the program.
bad=0
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
base=$(dirname "$0")/../data/samples/base
printf 'prompt,completion\nOne?, yes\n"Two, or three?"," no, not at all"\n' >"$dir/qa.csv"
cat >"$dir/run.yaml" <<END
base_model: $base
output_dir: $dir/out
sequence_len: 32
datasets: [{path: $dir/qa.csv, type: prompt_completion, name: qa}]
dataset_prepared_path: none
END
check() { # NAME WANTED_STATUS TEXT ARGS...
    name=$1 want=$2 text=$3; shift 3
    out=$("$NIBBLE" data "$@" 2>&1); rc=$?
    case $out in *"$text"*) found=yes;; *) found=no;; esac
    if [ $rc -eq "$want" ] && [ $found = yes ]; then echo "[       OK ] data_$name"
    else echo "[  FAILED  ] data_$name"; echo "status $rc (wanted $want), wanted '$text' in: $out"; bad=1; fi
}
check summary 0 "2 rows, " "$dir/run.yaml"
check ledger 0 "trained on" "$dir/run.yaml"
check packing 0 "of sequences of 32 tokens; 1 steps an epoch" "$dir/run.yaml"
check row 0 "Two, or three?[ no, not at all<|endoftext|>]" "$dir/run.yaml" --row 2
printf 'prompt,completion\na\033[1mb,\302\233c\n' >"$dir/control.csv"
check row_control_characters 0 'a\x1b[1mb[\u009bc<' "$dir/run.yaml" --row 1 --set datasets.0.path="$dir/control.csv"
check row_origin 0 "qa.csv:3" "$dir/run.yaml" --row 2
check row_outside 1 "qa has the rows 1 to 2" "$dir/run.yaml" --row 3
check dataset_name 1 'did you mean "qa"' "$dir/run.yaml" --row 1 --dataset qaa
check too_long 1 "excess_length_strategy: split" "$dir/run.yaml" --set sequence_len=4
check drop 1 "no row is left" "$dir/run.yaml" --set sequence_len=3 --set excess_length_strategy=drop
check missing_field 1 'qa.csv:2: no field "answer" in this row, which has "prompt", "completion"' "$dir/run.yaml" \
    --set datasets.0.field_completion=answer
check missing_file 1 "no such file or folder" "$dir/run.yaml" --set datasets.0.path="$dir/none.csv"
check no_config 1 "which configuration"
exit $bad
