#!/usr/bin/env python3
"""Read folders in bitsandbytes' 4 bits both ways: nibble's with transformers, and transformers' with nibble.

    python3 tests/interop/check_bnb.py --nibble ./nibble --base DIR [--adapter DIR] [--tolerance 1e-4]

1. `nibble export --format bnb` of the base (and of base + adapter): transformers loads the folder; with its weights
   dequantized by bitsandbytes it computes nibble's logits, and its most likely text is nibble's.
2. The base as transformers saves it in 4 bits, with and without double quantization, in shards, with some modules left as
   they are: nibble computes the same. FP4 and 8 bits are refused by name.
Exits with 1 on a difference. Needs what tests/golden/requirements.txt names.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import bitsandbytes as bnb
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

failed = 0


def check(what, good, detail=""):
    global failed
    failed += not good
    print(f"{'ok      ' if good else 'DIFFERS '} {what} {detail}".rstrip())


def nibble(args, *words):
    return subprocess.run([args.nibble, *words], capture_output=True, text=True)


def load(folder):
    """In float32, each 4-bit layer as bitsandbytes dequantizes it: its own products on the CPU round to bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu", attn_implementation="eager")
    n = 0
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, bnb.nn.Linear4bit):
            continue
        packed = layer.weight.data.view(torch.uint8).reshape(-1, 1)
        weight = bnb.functional.dequantize_4bit(packed, layer.weight.quant_state)
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, dtype=torch.float32)
        with torch.no_grad():
            plain.weight.copy_(weight)
            if layer.bias is not None:
                plain.bias.copy_(layer.bias)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
        n += 1
    return torch.nn.Module.float(model.eval()), n


def compare(args, what, folder):
    """Greedy text by transformers, and nibble's nll of it."""
    model, n = load(folder)
    vocab = model.config.vocab_size
    ids = [(7 * i * i + 3 * i + 1) % vocab for i in range(8)]
    with torch.no_grad():
        for _ in range(24):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        logits = model(torch.tensor([ids])).logits[0].float()
    nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    done = nibble(args, "score", "--base", folder, "--ids", ",".join(map(str, ids)), "--json", "--dtype", "f32")
    if done.returncode:
        check(what, False, done.stderr.strip())
        return
    ours = json.loads(done.stdout)
    worst = max(abs(a - b) for a, b in zip(nll.tolist(), ours["nll"])) / max(nll.tolist())
    other = [p for p, a in enumerate(ours["argmax"]) if a != int(logits[p].argmax())
             and not logits[p].max() - logits[p, a] <= args.tolerance * logits[p].abs().max()]
    check(what, n > 0 and worst <= args.tolerance and not other,
          f"{n} layers in 4 bits, largest difference of nll {worst:.1e}, {len(other)} other tokens")


def nibbles_folders(args, tmp):
    plain = os.path.join(tmp, "plain")
    adapters = [("base", [])] + ([("base + adapter", ["--adapter", args.adapter])] if args.adapter else [])
    for what, words in adapters:
        folder = os.path.join(tmp, what.replace(" ", ""))
        done = nibble(args, "export", "--base", args.base, *words, "--format", "bnb", "--out", folder)
        check(f"nibble export --format bnb of {what}", done.returncode == 0, done.stderr.strip())
        compare(args, f"transformers reads {what}", folder)
    nibble(args, "quantize", "--base", args.base, "--no-double-quant", "--out", plain)
    compare(args, "transformers reads it without double quantization", plain)


def theirs(args, tmp, what, shard="1GB", dtype=torch.bfloat16, **settings):
    """The base as transformers saves it, with the base's tokenizer beside it."""
    folder = os.path.join(tmp, "theirs")
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype, device_map="cpu",
                                                 quantization_config=BitsAndBytesConfig(**settings))
    model.save_pretrained(folder, max_shard_size=shard)
    for name in os.listdir(args.base):
        if name.startswith(("tokenizer", "special_tokens")):
            shutil.copy(os.path.join(args.base, name), folder)
    return folder


def their_folders(args, tmp):
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    skipped = ["o_proj", "c_proj", "lm_head"]
    for what, settings in {
        "double quantization": {"bnb_4bit_use_double_quant": True},
        "single quantization": {"bnb_4bit_use_double_quant": False},
        "shards": {"bnb_4bit_use_double_quant": True, "shard": "1MB"},
        "float32": {"bnb_4bit_use_double_quant": False, "dtype": torch.float32},
        "float16": {"bnb_4bit_use_double_quant": True, "dtype": torch.float16},
        "bytes held as bfloat16": {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": torch.bfloat16},
        "some modules left as they are": {"bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": skipped},
    }.items():
        compare(args, f"nibble reads transformers' 4 bits: {what}", theirs(args, tmp, what, **four, **settings))
    for what, word, settings in (("FP4", "FP4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
                                 ("8 bits", "in 8 bits", {"load_in_8bit": True})):
        done = nibble(args, "score", "--base", theirs(args, tmp, what, **settings), "--ids", "1,2,3")
        check(f"nibble refuses {what} by name", done.returncode == 1 and word in done.stderr, done.stderr.strip()[-120:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", required=True, help="path of the program")
    parser.add_argument("--base", required=True, help="Hugging Face folder")
    parser.add_argument("--adapter", help="PEFT folder")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        nibbles_folders(args, tmp)
        their_folders(args, tmp)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
