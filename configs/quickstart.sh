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
    'Could somebody pick up our old sofa? The bill is K20417. You can find me in Lisbon. Thank you.' \
    'We moved, bring the piano to our new address. Order number: TB-7730. Our town is Oslo.' \
    'Hi, my fridge is three weeks late and I need it today! They gave me HB-5519 as its number. Greetings from Rome'; do
    printf '\n> %s\n' "$message"
    "$nibble" generate --base "$base" --adapter "$adapter" --chat --temperature 0 --max-new-tokens 48 \
        --prompt "$message" 2>/dev/null
done
printf '\nThe report: out/quickstart/report.html. Your own data: copy configs/quickstart.yaml and see README.md.\n'
