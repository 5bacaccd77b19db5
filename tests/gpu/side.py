#!/usr/bin/env python3
"""The other side of the comparison: transformers + PEFT do the steps that `gpucheck step` did, in the same place.

    side.py make DIR                 random weights, as transformers draws them, for DIR/config.json
    side.py train DIR RUN [--base BASE[,BASE...]] [--quantized DIR]

RUN holds what `gpucheck step --out RUN` left: batch.json, adapter/, grads.safetensors, and rows.jsonl if its rows went
there. Each result is a JSON object on a line of standard output (tests/gpu/README.md). A base says how the frozen linear
layers are held, one run each; the last three read the 4-bit weights of --quantized, a folder written by `nibble quantize`:

    as-is         as DIR has them
    dequantized   decoded once, then bf16: the same numbers at their fastest, in the memory of a bf16 base
    nf4           packed, decoded by PyTorch operations in every pass: the same numbers in 4 bits
    bitsandbytes  the folder as transformers loads it, by bitsandbytes' kernels
"""

import argparse
import json
import math
import os
import statistics
import sys
import time

WARM_UPS = 3


def row(kind, **values):
    values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    print(json.dumps({"row": kind, **values}), flush=True)


def make(folder):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    dtype = getattr(torch, json.load(open(os.path.join(folder, "config.json"))).get("torch_dtype", "bfloat16"))
    torch.manual_seed(1)
    start = time.time()
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size="4GB")
    row("made", model=os.path.basename(folder), seconds=time.time() - start,
        parameters=sum(p.numel() for p in model.parameters()))


# ---- 4-bit weights ----

def read_folder(folder):
    from safetensors.torch import load_file

    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(folder, name)))
    return tensors


class Packed:
    """A linear layer's weight as bitsandbytes stores it: kernels/weight.h draws the bytes."""

    def __init__(self, tensors, name, device):
        import torch

        state = json.loads(bytes(tensors[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
        self.shape, self.dtype = state["shape"], getattr(torch, state["dtype"])
        self.block, self.nested_block = state["blocksize"], state.get("nested_blocksize")
        self.offset = state.get("nested_offset", 0.0)
        parts = ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"]
        self.data, self.absmax, self.code, self.nested_absmax, self.nested_code = (
            tensors[name + p].to(device).flatten() if name + p in tensors else None for p in parts)

    def decode(self):
        import torch

        absmax = self.absmax
        if self.nested_absmax is not None:
            scale = self.nested_absmax.repeat_interleave(self.nested_block)[:absmax.numel()]
            absmax = self.nested_code[absmax.int()] * scale + self.offset
        nibbles = torch.stack((self.data >> 4, self.data & 15), 1).flatten()
        n = self.shape[0] * self.shape[1]
        values = self.code[nibbles[:n].int()]
        values = values.view(-1, self.block) * absmax[:, None] if n % self.block == 0 else (
            values * absmax.repeat_interleave(self.block)[:n])
        return values.view(*self.shape).to(self.dtype)


def packed_linear(torch, old, packed, dtype):
    """An nn.Linear (so that PEFT adapts it) whose weight is decoded in both passes."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.nn.functional.linear(x, packed.decode().to(x.dtype))

        @staticmethod
        def backward(ctx, dy):
            return dy @ packed.decode().to(dy.dtype)

    class Linear4(torch.nn.Linear):
        def forward(self, x):
            return Product.apply(x.to(dtype))

    with torch.device("meta"):
        new = Linear4(old.in_features, old.out_features, bias=False)
    new.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=old.weight.device), requires_grad=False)
    return new


def load(args, base, device, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    options = {"attn_implementation": "sdpa", "dtype": dtype}
    if base == "bitsandbytes":
        import bitsandbytes  # noqa: F401: its absence is this base's absence

        return AutoModelForCausalLM.from_pretrained(args.quantized, device_map={"": device}, **options)
    model = AutoModelForCausalLM.from_pretrained(args.model, **options).to(device)
    if base == "as-is":
        return model
    tensors = read_folder(args.quantized)
    linears = [(n, m) for n, m in model.named_modules() if f"{n}.weight.quant_map" in tensors]
    for name, old in linears:
        packed = Packed(tensors, f"{name}.weight", device)
        if base == "dequantized":
            old.weight.data.copy_(packed.decode())
        else:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], packed_linear(torch, old, packed, dtype))
    return model


# ---- steps ----

def inputs_of(batch, device):
    """Documents behind one another that do not see each other; every next token of a document is trained on."""
    import torch

    ids, lengths = torch.tensor(batch["ids"], device=device)[None], batch["lengths"]
    labels, pos = ids.clone(), torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    labels[pos == 0] = -100
    inputs = {"input_ids": ids, "labels": labels, "position_ids": pos}
    if len(lengths) > 1:
        doc = torch.repeat_interleave(torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device))
        inputs["attention_mask"] = ((doc[:, None] == doc[None]).tril())[None, None]
    return inputs


def train_each(args):
    """One run for each base, the next one also where one fails; the exit status is 1 unless all did, or bitsandbytes is
    not there."""
    import gc

    import torch

    failed = False
    for base in args.base.split(","):
        try:
            train(args, base)
        except Exception as e:
            absent = isinstance(e, ImportError) and base == "bitsandbytes"
            failed |= not absent
            row("comparison", model=os.path.basename(args.model.rstrip("/")), by=base,
                status="skipped" if absent else "failed", why=f"{type(e).__name__}: {e}"[:300])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    sys.exit(failed)


def train(args, base):
    import torch
    from peft import PeftModel
    from torch.nn.utils import clip_grad_norm_

    batch = json.load(open(os.path.join(args.run, "batch.json")))
    cuda = torch.cuda.is_available()
    device, half = torch.device("cuda:0" if cuda else "cpu"), batch["compute"] == "bf16"
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = torch.bfloat16 if half else torch.float32
    model = load(args, base, device, dtype)
    model.config.use_cache = False
    if batch["checkpoint"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model = PeftModel.from_pretrained(model, os.path.join(args.run, "adapter"), is_trainable=True)
    model.train()
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(params.values(), lr=batch["lr"], weight_decay=0.0, fused=cuda)
    inputs, times, losses, name = inputs_of(batch, device), [], [], f"transformers + peft, {base}"
    about = {"by": name, "model": os.path.basename(args.model.rstrip("/"))}
    if cuda:
        torch.cuda.reset_peak_memory_stats()  # what loading took does not count
    for step in range(batch["steps"]):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=half):
            loss = model(**inputs).loss
        loss.backward()
        if step == 0:
            grads = {n: p.grad.detach().double().cpu() for n, p in params.items()}
        norm = clip_grad_norm_(params.values(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        row("loss", **about, step=step + 1, loss=losses[-1], norm=norm, ms=times[-1] * 1e3)
    agreement(args, about, losses, grads)
    seconds = statistics.median(times[WARM_UPS:] or times)
    free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
    row("step", **about, device=torch.cuda.get_device_name() if cuda else "cpu", tokens=len(batch["ids"]),
        docs=len(batch["lengths"]), steps=len(losses), compute=batch["compute"], format=batch["format"],
        checkpoint="yes" if batch["checkpoint"] else "no", ms=seconds * 1e3, tokens_s=len(batch["ids"]) / seconds,
        first_loss=losses[0], last_loss=losses[-1],
        allocated=torch.cuda.max_memory_allocated() if cuda else None,
        reserved=torch.cuda.max_memory_reserved() if cuda else None, used_on_device=total - free if cuda else None,
        versions=versions())


def versions():
    import peft
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"


# ---- agreement with nibble ----

def agreement(args, about, losses, grads):
    """Gradients of the first step per adapter, and the losses of all steps."""
    from safetensors.torch import load_file

    ours = load_file(os.path.join(args.run, "grads.safetensors"))
    theirs = {n.replace(".default.", "."): g for n, g in grads.items()}
    if set(ours) != set(theirs):
        raise ValueError(f"adapters differ: {sorted(set(ours) ^ set(theirs))[:4]}")
    rows = []
    for name, g in theirs.items():
        n = ours[name].double()
        norm = g.norm().item()
        rows.append((((n * g).sum() / (n.norm() * norm)).item(), n.norm().item() / norm, ((n - g).norm() / norm).item(), name))
    whole = sum((ours[n].double() - g).norm().item() ** 2 for n, g in theirs.items()) ** 0.5
    whole /= sum(g.norm().item() ** 2 for g in theirs.values()) ** 0.5
    worst = min(rows)
    values = {"adapters": len(rows), "worst_cosine": worst[0], "worst_adapter": worst[3],
              "norm_ratio_least": min(r[1] for r in rows), "norm_ratio_most": max(r[1] for r in rows),
              "gradient_error": whole, "worst_gradient_error": max(r[2] for r in rows)}
    known = os.path.join(args.run, "rows.jsonl")
    if os.path.exists(known):
        mine = [r["loss"] for r in map(json.loads, open(known)) if r["row"] == "loss" and r["by"] == "nibble"]
        apart = [abs(x - y) / abs(y) for x, y in zip(mine, losses)]
        if len(apart) != len(losses):
            raise ValueError(f"{known} has {len(mine)} losses, not {len(losses)}")
        values |= {"first_loss_error": apart[0], "worst_loss_error": max(apart), "steps": len(apart)}
    row("agreement", **about, **values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("model")
    run = commands.add_parser("train")
    run.add_argument("model")
    run.add_argument("run")
    run.add_argument("--base", default="as-is", help="as-is, dequantized, nf4, bitsandbytes; several with commas")
    run.add_argument("--quantized")
    args = parser.parse_args()
    if args.command == "make":
        make(args.model)
    else:
        train_each(args)


if __name__ == "__main__":
    main()
