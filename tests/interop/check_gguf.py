#!/usr/bin/env python3
"""Export a model (and an adapter) as GGUF with nibble, and read the files with the programs they are for.

    python3 tests/interop/check_gguf.py --nibble ./nibble --base DIR [--adapter DIR] [--prompt TEXT]... [--no-llama]

The gguf package reads every file, and each tensor of the smaller types is that of the F32 file within the type's error.
In llama.cpp the F32 and F16 files tokenize as nibble does, give the text that nibble finds most likely token by token,
and the F32 file the same negative log-likelihoods. Files of smaller types have the types that llama.cpp's own quantizer
gives each tensor, lose no more, and give the F32 file's logits within the format's error or as nearly as the quantizer's
file does. nibble computes on the quantizer's files what llama.cpp does on the same numbers in F32. The GGUF adapter on the
F32 file is base + adapter, the merged file is the merged folder. Needs gguf, and llama-cpp-python unless --no-llama. Exits
with 1 on a difference. (llama.cpp refuses some tokenizers by the model's name: a folder called phi3 must have Phi-3's
tokens.)
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

NEW_TOKENS = 60
# Largest difference of a value, relative to the largest of its row.
STEP = {"f32": 0, "f16": 2.0 ** -11, "bf16": 2.0 ** -8, "q8_0": 0.57 / 127}
# llama.cpp's numbers of the types that its quantizer makes
NUMBERS = {"f16": 1, "bf16": 32, "q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q4_k_m": 15, "q5_0": 8, "q4_0": 2}
# How far a format takes the logits depends on the weights and the text. What a trained model keeps to, and else ours
# against llama.cpp's own, either way by chance.
USUAL = {"bf16": 0.02, "q8_0": 0.03}
LOGITS = 1.35
TYPES = ["f32", *NUMBERS]
failed = 0


def check(what, good, detail=""):
    global failed
    failed += not good
    print(f"{'ok      ' if good else 'DIFFERS '} {what} {detail}".rstrip())


def nibble(args, *words):
    return subprocess.run([args.nibble, *words], check=True, capture_output=True, text=True).stdout


def tensors(path):
    return {t.name: dequantize(t.data, t.tensor_type).reshape(-1, t.shape[0]) for t in GGUFReader(path).tensors}


def read_files(files):
    """The gguf package's reading of the smaller types against its reading of F32."""
    whole = tensors(files["f32"])
    for kind, path in files.items():
        fields = GGUFReader(path).fields
        check(f"gguf reads {kind}", "tokenizer.ggml.tokens" in fields and "general.architecture" in fields,
              f"{len(fields)} keys")
        parts = tensors(path)
        worst = 0.0
        for name, want in whole.items():
            scale = np.abs(want).max(axis=1, keepdims=True)
            worst = max(worst, float((np.abs(parts[name] - want) / np.maximum(scale, 1e-30)).max()))
        check(f"gguf tensors of {kind}", parts.keys() == whole.keys() and worst <= STEP.get(kind, 0.2),
              f"error {worst:.2e}")


def quantize(source, target, number):
    import llama_cpp
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = number, 1, True
    return llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) == 0


def compare_quantizers(files, tmp):
    """Types of tensors and what they lose, against llama.cpp's quantizer on the same F32 file. Returns its files."""
    made = {}
    whole = tensors(files["f32"])
    for kind, number in NUMBERS.items():
        made[kind] = theirs = os.path.join(tmp, f"theirs-{kind}.gguf")
        done = quantize(files["f32"], theirs, number)
        types = [{t.name: t.tensor_type.name for t in GGUFReader(p).tensors} for p in (files[kind], theirs)]
        number_in_file = GGUFReader(files[kind]).fields["general.file_type"].contents()
        check(f"{kind}: types as llama.cpp chooses", done and types[0] == types[1] and number_in_file == number,
              str([(n, types[0].get(n), types[1][n]) for n in types[1] if types[0].get(n) != types[1][n]][:4]))
        lost = [sum(float(((parts[n] - whole[n]) ** 2).sum()) for n in whole) ** 0.5
                for parts in (tensors(files[kind]), tensors(theirs))]
        check(f"{kind}: loses no more than llama.cpp", lost[0] <= 1.005 * lost[1], f"{lost[0]:.4g}, its own {lost[1]:.4g}")
    return made


class Model:
    """llama.cpp with one sequence, its keys and values in F32 (type 0), not F16."""

    def __init__(self, path, lora=None):
        from llama_cpp import Llama
        arch = GGUFReader(path).fields["general.architecture"].contents()
        # ggml computes GELU by a table in F16; in its tanh form where a GPT-NeoX has the other
        self.tolerance = 5e-3 if arch.startswith(("gemma", "phi2", "gpt")) else 1e-4
        self.llama = Llama(model_path=path, lora_path=lora, n_ctx=128, n_threads=1, logits_all=True, type_k=0,
                           type_v=0, verbose=False)

    def tokenize(self, text):
        return self.llama.tokenize(text.encode(), add_bos=True, special=False)

    def logits(self, ids):
        self.llama.reset()
        self.llama.eval(ids)
        return np.array(self.llama.scores[:len(ids)], dtype=np.float64)

    def greedy(self, ids):
        ids = list(ids)
        self.llama.reset()
        self.llama.eval(ids)
        for _ in range(NEW_TOKENS):
            ids.append(int(np.argmax(self.llama.scores[len(ids) - 1])))
            self.llama.eval(ids[-1:])
        return ids


def nll(logits, ids):
    top = logits.max(axis=1, keepdims=True)
    p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return -p[np.arange(len(ids) - 1), ids[1:]]


def same_text(args, what, model, prompt, words, exact, own=None):
    """llama.cpp's most likely text is nibble's: at every position nibble finds the same token most likely, or a tie. Where
    rounding may send a token to other experts, `own`, the file of llama.cpp's quantizer, may decide as the model does."""
    ids = json.loads(nibble(args, "tokenize", "--base", args.base, prompt))
    check(f"{what}: tokens of {prompt!r}", model.tokenize(prompt) == ids, str(ids[:8]))
    text = model.greedy(ids)
    theirs = model.logits(text)
    ours = json.loads(nibble(args, "score", *words, "--ids", ",".join(map(str, text)), "--json", "--dtype", "f32",
                             "--no-load-in-4bit"))
    start = len(ids) - 1
    other = [i for i in range(start, len(text) - 1) if ours["argmax"][i] != text[i + 1]
             and theirs[i, text[i + 1]] - theirs[i, ours["argmax"][i]] > model.tolerance]
    if other and own:
        decided = own.logits(text).argmax(axis=1)
        other = [i for i in other if decided[i] != text[i + 1]]
    check(f"{what}: greedy text after {prompt!r}", not other, f"{len(text) - 1 - start} tokens")
    worst = float(np.abs(nll(theirs, text) - np.array(ours["nll"])).max())
    if exact:
        check(f"{what}: nll", worst <= model.tolerance, f"largest difference {worst:.1e}")
    return text


def apart(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def nibble_reads(args, kind, path, tmp):
    """nibble's nll on a file of llama.cpp's quantizer are llama.cpp's on the same numbers in F32."""
    decoded = os.path.join(tmp, "decoded.gguf")
    done = quantize(path, decoded, 0)
    model = Model(decoded)
    ours = json.loads(nibble(args, "score", "--base", path, "--text", args.prompt[-1], "--json", "--dtype", "f32",
                             "--no-load-in-4bit"))
    worst = float(np.abs(nll(model.logits(ours["ids"]), ours["ids"]) - np.array(ours["nll"])).max())
    check(f"nibble reads llama.cpp's {kind}", done and worst <= model.tolerance, f"largest difference of nll {worst:.1e}")


def run_llama(args, files, theirs, adapter_files):
    models = {kind: Model(path) for kind, path in files.items()}
    their_models = {kind: Model(path) for kind, path in theirs.items()}
    for prompt in args.prompt:
        for kind in ("f32", "f16"):
            text = same_text(args, f"llama.cpp {kind}", models[kind], prompt, ["--base", args.base], kind == "f32",
                             their_models.get(kind))
        want = models["f32"].logits(text)
        for kind in NUMBERS:
            error, usual = apart(models[kind].logits(text), want), apart(their_models[kind].logits(text), want)
            check(f"llama.cpp {kind}: logits after {prompt!r}", error <= max(LOGITS * usual, USUAL.get(kind, 0)),
                  f"relative error {error:.1e}, its own file's {usual:.1e}")
        if adapter_files:
            same_text(args, "llama.cpp merged", Model(adapter_files["gguf"]), prompt, ["--base", adapter_files["hf"]],
                      True)
            same_text(args, "llama.cpp gguf-lora", Model(files["f32"], adapter_files["gguf-lora"]), prompt,
                      ["--base", args.base, "--adapter", args.adapter], True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", required=True, help="path of the program")
    parser.add_argument("--base", required=True, help="Hugging Face folder")
    parser.add_argument("--adapter", help="PEFT folder")
    parser.add_argument("--prompt", action="append", help="may be given again")
    parser.add_argument("--no-llama", action="store_true", help="only what the gguf package can tell")
    args = parser.parse_args()
    args.prompt = args.prompt or ["Once upon a time", "The little dog, \u201cMax\u201d, said:  12 + 30?"]
    with tempfile.TemporaryDirectory() as tmp:
        files, adapter_files = {}, {}
        for kind in TYPES:
            files[kind] = os.path.join(tmp, f"{kind}.gguf")
            nibble(args, "export", "--base", args.base, "--format", "gguf", "--dtype", kind, "--out", files[kind])
        for form in ("hf", "gguf", "gguf-lora") if args.adapter else ():
            adapter_files[form] = os.path.join(tmp, f"adapter-{form}.gguf")
            nibble(args, "export", "--base", args.base, "--adapter", args.adapter, "--format", form, "--out",
                   adapter_files[form], *(["--dtype", "f32"] if form == "gguf" else []))
            if form != "hf":
                check(f"gguf reads {form} of the adapter", len(GGUFReader(adapter_files[form]).tensors) > 0)
        read_files(files)
        if not args.no_llama:
            theirs = compare_quantizers(files, tmp)
            for kind, path in theirs.items():
                nibble_reads(args, kind, path, tmp)
            run_llama(args, files, theirs, adapter_files)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
