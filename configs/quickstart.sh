#!/bin/sh
# make quickstart: fine-tunes an adapter on the sample base, compares base and adapter on held-out rows, and lets the
# adapter answer. Usage: configs/quickstart.sh NIBBLE
set -e
nibble=$1
say() { printf '\n== %s\n$ %s\n' "$1" "$2"; }
base=data/samples/base adapter=out/quickstart/adapter

say 'Train: a LoRA adapter on the 4-bit base' 'nibble train configs/quickstart.yaml --overwrite'
"$nibble" train configs/quickstart.yaml --overwrite

say 'Evaluate: base and adapter on rows whose sentences were never trained on' \
    'nibble eval configs/quickstart.yaml --html out/quickstart/report.html'
"$nibble" eval configs/quickstart.yaml --html out/quickstart/report.html

say 'Generate: the adapter answers' "nibble generate --base $base --adapter $adapter --chat --prompt '...'"
for message in \
    'Good morning. My kettle stopped working this week. It is order RX-4821. We live in Leeds. It is urgent.' \
    'Hello, how much is a garden bench? I am in no hurry. The bill says K20417. Theo' \
    'We moved to Lisbon, so please use the new address for our piano. Order number: TB-7730.'; do
    printf '\n> %s\n' "$message"
    "$nibble" generate --base "$base" --adapter "$adapter" --chat --temperature 0 --max-new-tokens 48 --prompt "$message" 2>/dev/null
done
printf '\nThe report: out/quickstart/report.html. Your own data: copy configs/quickstart.yaml and see README.md.\n'
