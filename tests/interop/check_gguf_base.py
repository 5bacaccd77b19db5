#!/usr/bin/env python3
"""Files that llama.cpp quantizes, as nibble's base: their logits are those of the weights as transformers decodes them.

    python3 tests/interop/check_gguf_base.py --nibble ./nibble --base DIR [--text TEXT]

The base is exported as F32, llama.cpp's quantizer makes Q8_0, Q6_K, Q4_K_M, Q4_0 and F16 of it, and nibble's negative
log-likelihoods of a text on each file are compared with transformers', which reads the same file with the gguf package.
Needs gguf, llama-cpp-python, torch and transformers. Exits with 1 on a difference.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile

TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}


def nibble(args, *words):
    return subprocess.run([args.nibble, *words], check=True, capture_output=True, text=True).stdout


def quantize(source, target, number):
    import llama_cpp
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 1
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not quantize {source}")


def nll(path, ids):
    import torch
    from transformers import AutoModelForCausalLM
    folder, name = os.path.split(path)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(log_p[i, ids[i + 1]]) for i in range(len(ids) - 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", required=True, help="path of the program")
    parser.add_argument("--base", required=True, help="Hugging Face folder of a Llama, rows of 256 for the K types")
    parser.add_argument("--text", default="Where is parcel RX-4821? It was sent on the 3rd, \u201cexpress\u201d.")
    parser.add_argument("--no-llama", action="store_true", help="nibble's own export instead of llama.cpp's quantizer")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as tmp:
        whole = os.path.join(tmp, "f32.gguf")
        nibble(args, "export", "--base", args.base, "--format", "gguf", "--dtype", "f32", "--out", whole)
        for kind, number in TYPES.items():
            path = os.path.join(tmp, f"{kind}.gguf")
            if args.no_llama:
                nibble(args, "export", "--base", args.base, "--format", "gguf", "--dtype", kind.lower(), "--out", path)
            else:
                quantize(whole, path, number)
            ours = json.loads(nibble(args, "score", "--base", path, "--text", args.text, "--json", "--dtype", "f32"))
            theirs = nll(path, ours["ids"])
            worst = max(abs(x - y) for x, y in zip(ours["nll"], theirs))
            good = len(theirs) == len(ours["nll"]) and worst <= 1e-4
            failed += not good
            print(f"{'ok      ' if good else 'DIFFERS '} {kind}: largest difference of {len(theirs)} nll {worst:.1e}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
