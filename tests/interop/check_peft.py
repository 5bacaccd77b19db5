#!/usr/bin/env python3
"""Load a base and an adapter with transformers and PEFT, score token ids, and compare with nibble if asked to.

    python3 tests/interop/check_peft.py --base DIR [--adapter DIR] [--ids 1,2,3]... [--nibble PROGRAM] [--tolerance 1e-4]

Prints one JSON object a sequence, as `nibble score --json` does: ids, nll of each next token, argmax at each position,
loss. Everything in float32 on the CPU. With --nibble, runs `PROGRAM score` on the same files and ids and exits with 1
unless every nll agrees within the tolerance (relative to the largest nll) and every argmax is the same or a tie.
Needs what tests/golden/requirements.txt names, less bitsandbytes.
"""

import argparse
import json
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM


def load(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def score(model, ids):
    """What nibble score says, and the logits [T, V]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return {"ids": ids, "nll": nll.tolist(), "argmax": logits.argmax(-1).tolist(), "loss": nll.mean().item()}, logits


def score_by_nibble(args, ids):
    command = [args.nibble, "score", "--base", args.base, "--ids", ",".join(map(str, ids)), "--json", "--dtype", "f32",
               "--no-load-in-4bit"]
    if args.adapter:
        command += ["--adapter", args.adapter]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(here, theirs, logits, tolerance):
    """True if both agree; prints what differs. nibble's argmax may lack the last position."""
    if theirs["ids"] != here["ids"] or len(theirs["nll"]) != len(here["nll"]):
        print("nibble scored other ids", file=sys.stderr)
        return False
    scale = max(here["nll"])
    worst = max(abs(a - b) / scale for a, b in zip(here["nll"], theirs["nll"]))
    other = [p for p, (a, b) in enumerate(zip(here["argmax"], theirs["argmax"]))
             if a != b and not logits[p, a] - logits[p, b] <= tolerance * logits[p].abs().max()]
    print(f"largest difference of nll {worst:.2e} (tolerance {tolerance:g}), {len(other)} other argmax of "
          f"{len(theirs['argmax'])}", file=sys.stderr)
    return worst <= tolerance and not other


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="Hugging Face folder")
    parser.add_argument("--adapter", help="PEFT folder")
    parser.add_argument("--ids", action="append", help="token ids with commas; may be given again; default: 32 made up")
    parser.add_argument("--nibble", help="path of the program to compare with")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.base, args.adapter)
    vocab = model.config.vocab_size
    rows = [[int(i) for i in t.split(",")] for t in args.ids or []] or [[(7 * i * i + 3 * i + 1) % vocab for i in range(32)]]
    good = True
    for ids in rows:
        here, logits = score(model, ids)
        print(json.dumps(here))
        if args.nibble:
            good = compare(here, score_by_nibble(args, ids), logits, args.tolerance) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
