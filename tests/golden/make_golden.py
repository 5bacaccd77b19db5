#!/usr/bin/env python3
"""Write the golden files beside this script with transformers, PEFT and bitsandbytes. README.md says what they are.

    python3 -m venv .venv && .venv/bin/pip install -r tests/golden/requirements.txt
    .venv/bin/python tests/golden/make_golden.py [--out tests/golden]

Everything is computed in float32 on the CPU by one thread, with PyTorch's plain ("eager") attention. All weights are
random; the seeds are fixed.
"""

import argparse
import copy
import json
import os
import random
import shutil

import bitsandbytes as bnb
import numpy as np
import peft
import torch
import transformers
from bitsandbytes.functional import create_dynamic_map, get_4bit_type, quantize_4bit
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, BitsAndBytesConfig, Gemma2Config, Gemma3TextConfig, GemmaConfig,
                          GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, MixtralConfig, Olmo2Config, OlmoConfig,
                          OlmoeConfig, Phi3Config, PhiConfig, Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig,
                          SmolLM3Config)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

STEPS = 20
ADAMW = {"learning_rate": 2e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}
CLIPPED = {"max_grad_norm": 0.5, "warmup_steps": 4, "total_steps": STEPS}

COMMON = dict(vocab_size=96, hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
              pad_token_id=0, tie_word_embeddings=False)
GPT2 = dict(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
ALL_LINEAR = dict(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=False)

# folder, seed, config, adapter, lengths of the two sequences, dtype on disk, shard size
MODELS = [
    ("llama", 1, LlamaConfig(**COMMON), ALL_LINEAR, (23, 14), torch.float32, "1GB"),
    ("llama3", 2, LlamaConfig(**{**COMMON, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
                                 "tie_word_embeddings": True, "rope_theta": 500000.0, "hidden_size": 40},
                              rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                high_freq_factor=4.0, original_max_position_embeddings=32)),
     dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True), (49, 17), torch.float32, "1GB"),
    ("mistral", 3, MistralConfig(**COMMON, sliding_window=6), ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("smollm2", 4, LlamaConfig(**{**COMMON, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1,
                                  "tie_word_embeddings": True, "rope_theta": 100000.0}),
     ALL_LINEAR, (21, 9), torch.bfloat16, "24KB"),
    ("qwen2-yarn", 5, Qwen2Config(**{**COMMON, "max_position_embeddings": 64}, use_sliding_window=True, sliding_window=7,
                                  max_window_layers=1,
                                  rope_scaling=dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=32)),
     ALL_LINEAR, (29, 12), torch.float32, "1GB"),
    ("qwen3", 6, Qwen3Config(**COMMON, head_dim=12), ALL_LINEAR, (18, 11), torch.float32, "1GB"),
    ("gemma", 7, GemmaConfig(**{**COMMON, "tie_word_embeddings": True}, head_dim=10), ALL_LINEAR, (18, 11), torch.float32,
     "1GB"),
    ("gemma2", 8, Gemma2Config(**{**COMMON, "tie_word_embeddings": True}, head_dim=12, query_pre_attn_scalar=20,
                               sliding_window=5, attn_logit_softcapping=8.0, final_logit_softcapping=6.0),
     ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("gemma3", 9, Gemma3TextConfig(**{**COMMON, "num_hidden_layers": 3, "tie_word_embeddings": True}, head_dim=12,
                                   query_pre_attn_scalar=20, sliding_window=5, sliding_window_pattern=3,
                                   layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                                   rope_scaling=dict(rope_type="linear", factor=4.0)),
     ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("phi3-longrope", 10, Phi3Config(**COMMON, partial_rotary_factor=0.75, original_max_position_embeddings=32,
                                     rope_scaling=dict(type="longrope", short_factor=[1.0, 1.2, 1.5],
                                                       long_factor=[1.0, 2.0, 4.0])),
     ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("phi", 11, PhiConfig(**COMMON, partial_rotary_factor=0.5), ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("smollm3", 12, SmolLM3Config(**{**COMMON, "tie_word_embeddings": True, "num_hidden_layers": 3},
                                  no_rope_layers=[1, 0, 1]), ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("olmo", 13, OlmoConfig(**COMMON, clip_qkv=1.5), ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("olmo2", 14, Olmo2Config(**COMMON), ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("neox", 15, GPTNeoXConfig(**COMMON, rotary_pct=0.5), ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("neox-serial", 16, GPTNeoXConfig(**COMMON, rotary_pct=1.0, use_parallel_residual=False),
     dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense_h_to_4h"], use_rslora=False), (17, 9),
     torch.float32, "1GB"),
    ("gpt2", 19, GPT2Config(**GPT2), ALL_LINEAR, (19, 11), torch.float32, "1GB"),
    ("gpt2-scaled", 20, GPT2Config(**GPT2, n_inner=72, activation_function="gelu", scale_attn_weights=False,
                                   scale_attn_by_inverse_layer_idx=True),
     dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], use_rslora=False, use_dora=True), (17, 9),
     torch.bfloat16, "24KB"),
    ("dora", 18, PhiConfig(**COMMON, partial_rotary_factor=0.5),
     dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "fc1", "fc2"], use_rslora=False,
          use_dora=True), (19, 11), torch.float32, "1GB"),
    ("lora-patterns", 17, LlamaConfig(**COMMON),
     dict(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=False,
          rank_pattern={r"layers\.1\.self_attn\.(q|v)_proj": 6, "mlp.up_proj": 3, "proj": 5, "v_proj": 2},
          alpha_pattern={"layers.0.mlp.down_proj": 16, "up_proj|k_proj": 3.5}), (19, 11), torch.float32, "1GB"),
    ("mixtral", 19, MixtralConfig(**{**COMMON, "intermediate_size": 24}, num_local_experts=4, num_experts_per_tok=2,
                                  sliding_window=6, output_router_logits=True, router_aux_loss_coef=0.2),
     dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"],
          use_rslora=False), (23, 14), torch.float32, "1GB"),
    ("qwen2-moe", 20, Qwen2MoeConfig(**{**COMMON, "num_hidden_layers": 3, "intermediate_size": 40}, num_experts=5,
                                     num_experts_per_tok=2, moe_intermediate_size=20, mlp_only_layers=[1],
                                     shared_expert_intermediate_size=28),
     dict(r=2, lora_alpha=4, target_modules="all-linear", use_rslora=False), (23, 14), torch.float32, "1GB"),
    ("qwen3-moe", 21, Qwen3MoeConfig(**COMMON, head_dim=12, num_experts=6, num_experts_per_tok=3,
                                     moe_intermediate_size=20, norm_topk_prob=True, decoder_sparse_step=2),
     dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
          use_rslora=False), (23, 14), torch.float32, "1GB"),
    ("olmoe", 22, OlmoeConfig(**{**COMMON, "intermediate_size": 20}, num_experts=5, num_experts_per_tok=2, clip_qkv=1.2),
     dict(r=2, lora_alpha=4, target_modules=["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
          use_rslora=False), (23, 14), torch.float32, "1GB"),
]

# The same on the base of another folder: folder, seed, that folder, adapter, lengths
ON_BASES = [
    ("saved", 19, "llama", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], use_rslora=False,
                                modules_to_save=["lm_head", "embed_tokens", "norm", "layers.1.mlp"]), (19, 11)),
    ("saved-tied", 20, "smollm2", dict(r=4, lora_alpha=8, target_modules=["q_proj", "embed_tokens"], use_rslora=False,
                                       modules_to_save=["lm_head"]), (19, 11)),
    ("ends", 21, "phi", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "fc1"], use_rslora=True,
                             rank_pattern={"embed_tokens": 3}, alpha_pattern={"lm_head": 5}), (19, 11)),
    ("ends-tied", 22, "gemma2", dict(r=4, lora_alpha=8, target_modules=["lm_head", "o_proj", "k_proj"], use_rslora=False,
                                     modules_to_save=["embed_tokens"], lora_dropout=0.25), (19, 11)),
    ("dora-dropout", 23, "phi", dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "fc1"],
                                     use_rslora=False, use_dora=True, lora_dropout=0.25,
                                     modules_to_save=["lm_head", "final_layernorm", "layers.0.mlp.fc2"]), (19, 11)),
    ("gpt2-saved", 24, "gpt2", dict(r=4, lora_alpha=8, target_modules=["wte", "attn.c_proj"], use_rslora=False,
                                    fan_in_fan_out=True, modules_to_save=["wpe", "lm_head", "h.1.mlp.c_fc", "ln_f"]),
     (19, 11)),
]


WHOLE = ("gpt2", "phi", "neox", "olmo")  # all weights are trained too


def floats(values, figures=9):
    return [float(f"%.{figures}g" % v) for v in np.asarray(values, dtype=np.float64).reshape(-1)]


def write_json(path, value):
    """One line per member of the outermost object."""
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
    with open(path, "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")


def randomize(model, seed):
    """Weights large enough that logits differ and attention is not uniform."""
    g = torch.Generator().manual_seed(seed)
    middle = 0 if "Gemma" in type(model).__name__ else 1  # Gemma multiplies by 1 + weight
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                p.copy_(middle + 0.1 * noise)
            elif "embed" in name or "lm_head" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * 1.3 / p.shape[1] ** 0.5)


def make_sequence(rng, length, vocab):
    """Ids, and labels that leave out the first third and one token further on."""
    ids = [1] + [rng.randrange(3, vocab) for _ in range(length - 1)]
    labels = list(ids)
    for i in list(range(length // 3)) + [length - 3]:
        labels[i] = -100
    return {"ids": ids, "labels": labels}


def token_nll(model, ids):
    """Logits [T, V] and the negative log-likelihood of each next token [T-1]."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return logits, nll


# ---- dropout -----------------------------------------------------------------------------------------------------

SLOTS = ["q_proj", "k_proj", "v_proj", "o_proj", "dense", "gate_proj", "up_proj", "fc1", "down_proj", "fc2"]


def philox(counter, key):
    """Philox 4x32-10 (Salmon et al., 2011): counter [4, ...] and key [2] as uint64 arrays -> words [4, ...]."""
    low = np.uint64(0xFFFFFFFF)
    c, k = [np.asarray(x, dtype=np.uint64) for x in counter], list(key)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c)


class KeyedDropout(torch.nn.Module):
    """Inverted dropout with nibble's masks, which are a function of step, sequence, position, module and column."""

    step, sample = 0, 0
    stream = 2 << 24  # seed 0

    def __init__(self, p, site):
        super().__init__()
        self.p, self.site = p, site

    def forward(self, x):
        if not self.training:
            return x
        t, c = np.meshgrid(np.arange(x.shape[-2]), np.arange(x.shape[-1]), indexing="ij")
        words = philox([c // 4, t, np.full_like(t, self.sample), np.full_like(t, self.site)],
                       [np.uint64(self.stream), np.uint64(self.step)])
        keep = np.take_along_axis(words, (c % 4)[None], axis=0)[0] >= self.p * 2.0**32
        return x * torch.from_numpy(keep.astype(np.float32) / np.float32(1 - self.p))


def key_dropout(model, p):
    """Our masks in the place of PyTorch's. A module's number is that of its place among all linear layers."""
    linear = [n for n, _ in model.named_modules() if n.split(".")[-1] in SLOTS]
    linear.sort(key=lambda n: (int(n.split("layers.")[1].split(".")[0]), SLOTS.index(n.split(".")[-1])))
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            module.lora_dropout["default"] = KeyedDropout(p, linear.index(name) if name in linear else len(linear))


def batch_loss(model, batch):
    """Sum of the nll of the trained tokens of all sequences / their number."""
    total, count = 0.0, 0
    for KeyedDropout.sample, seq in enumerate(batch):
        _, nll = token_nll(model, seq["ids"])
        keep = torch.tensor(seq["labels"][1:]) != -100
        total, count = total + nll[keep].sum(), count + int(keep.sum())
    return total / count


def balance_loss(model, batch):
    """The load-balancing loss of a batch as transformers computes it over sequences of equal length, times its
    coefficient; 0 where the model would not add it."""
    config = model.config
    if not getattr(config, "output_router_logits", False):
        return 0.0
    runs = [model(input_ids=torch.tensor([seq["ids"]]), use_cache=False).router_logits for seq in batch]
    layers = tuple(torch.cat(parts) for parts in zip(*runs))
    return config.router_aux_loss_coef * load_balancing_loss_func(layers, config.num_local_experts,
                                                                  config.num_experts_per_tok)


def backward(model, batch):
    """Gradients of what is minimized; an expert that got no token has zeros. Returns the batch's loss alone."""
    loss = batch_loss(model, batch)
    (loss + balance_loss(model, batch)).backward()
    for p in model.parameters():
        if p.requires_grad and p.grad is None:
            p.grad = torch.zeros_like(p)
    return loss.item()


def describe(model, batch):
    """What the model says about the sequences of a batch."""
    with torch.no_grad():
        seqs, all_nll = [], []
        for seq in batch:
            logits, nll = token_nll(model, seq["ids"])
            last = len(seq["ids"]) - 1
            at = sorted({0, 1, last // 2, last})
            seqs.append({"nll": floats(nll), "argmax": logits.argmax(-1).tolist(),
                         "logits": [{"position": p, "values": floats(logits[p])} for p in at]})
            all_nll.append(nll)
        return {"sequences": seqs, "loss": floats(torch.cat(all_nll).mean())[0],
                "masked_loss": floats(batch_loss(model, batch))[0]}


def in_file(name):
    """A parameter's name in PEFT's file."""
    return (name.replace(".modules_to_save", "").replace(".default", "")
            .replace("lora_magnitude_vector.weight", "lora_magnitude_vector"))


def adapter_tensors(model, gradients=False):
    """The adapter's tensors, or their gradients, under the names of PEFT's file."""
    if not gradients:
        return {k: v.detach().clone().contiguous() for k, v in get_peft_model_state_dict(model).items()
                if ".base_layer." not in k}
    return {in_file(n): p.grad.clone().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def train(model, batches, clip, ratio=None, decay=ADAMW["weight_decay"]):
    """STEPS steps of AdamW; step i uses batches[i % 4]; with a ratio as PEFT's LoRA+. Returns losses before each step, learning rates, norms."""
    params = [p for p in model.parameters() if p.requires_grad]
    vectors = {p for n, p in model.named_parameters() if p.dim() == 1 and "lora_magnitude" not in n}
    groups = [{"params": [p for p in params if p not in vectors]},
              {"params": [p for p in params if p in vectors], "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=ADAMW["learning_rate"], betas=(ADAMW["beta1"], ADAMW["beta2"]),
                            eps=ADAMW["epsilon"], weight_decay=ADAMW["weight_decay"])
    if ratio:
        opt = create_loraplus_optimizer(model, torch.optim.AdamW, lr=ADAMW["learning_rate"], loraplus_lr_ratio=ratio,
                                        betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["epsilon"],
                                        loraplus_weight_decay=decay)
    schedule = transformers.get_scheduler("cosine" if clip else "constant", opt, CLIPPED["warmup_steps"], STEPS)
    losses, rates, norms = [], [], []
    for step in range(STEPS):
        KeyedDropout.step = step
        opt.zero_grad()
        loss = backward(model, batches[step % len(batches)])
        norms.append(torch.nn.utils.clip_grad_norm_(params, CLIPPED["max_grad_norm"] if clip else float("inf")).item())
        losses.append(loss)
        rates.append(schedule.get_last_lr()[0])
        opt.step()
        schedule.step()
    return {"losses": floats(losses), "learning_rates": floats(rates, 17), "grad_norms": floats(norms)}


def train_whole(folder, batches):
    """STEPS steps of AdamW on all parameters; vectors do not decay, as transformers' Trainer has it."""
    model = load(folder)
    params = list(model.parameters())
    groups = [{"params": [p for p in params if p.dim() > 1]},
              {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=ADAMW["learning_rate"], betas=(ADAMW["beta1"], ADAMW["beta2"]),
                            eps=ADAMW["epsilon"], weight_decay=ADAMW["weight_decay"])
    losses, norms = [], []
    for step in range(STEPS):
        loss = batch_loss(model, batches[step % len(batches)])
        opt.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, float("inf")).item())
        losses.append(loss.item())
        opt.step()
    return {"losses": floats(losses), "learning_rates": [ADAMW["learning_rate"]] * STEPS, "grad_norms": floats(norms)}


def add_adapter(model, adapter, seed):
    model = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", "lora_dropout": 0.0, **adapter}))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_magnitude_vector" in name:
                p.mul_(1 + 0.2 * torch.randn(p.shape, generator=g))
            elif p.requires_grad and "modules_to_save" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
            elif p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g) * (0.25 if "lora_A" in name else 0.1))
    return model


def restore(model, tensors):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(tensors[in_file(name)])


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def save_adapter(model, folder):
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    config["base_model_name_or_path"] = "tests/golden/" + os.path.basename(os.path.dirname(os.path.abspath(folder)))
    config["target_modules"].sort()  # PEFT keeps a set there: its order changes from run to run
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2, sort_keys=True)


def save_tokenizer(folder):
    """A byte-level BPE without merges for the 96 ids: 3 special tokens, the space, the characters ! to |."""
    special = ["<pad>", "<s>", "</s>"]
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(special)]
    vocab = {t: i for i, t in enumerate(special + ["\u0120"] + [chr(c) for c in range(ord("!"), ord("|") + 1)])}
    write_json(os.path.join(folder, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                            "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": []}})


def make_model(out, name, seed, config, adapter, lengths, dtype, shard):
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(model, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    os.remove(os.path.join(folder, "generation_config.json"))
    save_tokenizer(folder)
    make_adapter(folder, folder, {}, seed, adapter, lengths)


def make_on_base(out, name, seed, base, adapter, lengths):
    shutil.rmtree(os.path.join(out, name), ignore_errors=True)
    os.makedirs(os.path.join(out, name))
    make_adapter(os.path.join(out, name), os.path.join(out, base), {"base_folder": base}, seed, adapter, lengths)


def rounding(model, twin, batches):
    """How far PyTorch's own float32 has taken each tensor from where float64 takes it: AdamW divides small gradients by
    small moments, and what rounding did to them grows. Tensors below 5e-5 are left out."""
    torch.set_default_dtype(torch.float64)
    train(twin, batches, False)
    torch.set_default_dtype(torch.float32)
    exact = adapter_tensors(twin)
    off = {k: ((v.double() - exact[k]).norm() / exact[k].norm()).item() for k, v in adapter_tensors(model).items()}
    off = {k: float(f"%.3g" % v) for k, v in off.items() if v > 5e-5}
    return {"float32_error": off} if off else {}


def make_adapter(folder, base, golden, seed, adapter, lengths):
    rng = random.Random(seed)
    model = load(base)
    batches = [[make_sequence(rng, n - b, model.config.vocab_size) for n in lengths] for b in range(4)]
    golden.update({"batches": batches, "base": describe(model, batches[0])})
    model = add_adapter(model, adapter, seed + 100)
    start = adapter_tensors(model)
    save_adapter(model, os.path.join(folder, "adapter"))
    golden["adapter"] = describe(model.eval(), batches[0])
    if getattr(model.config, "output_router_logits", False):
        golden["balance_loss"] = float(balance_loss(model, batches[0]))
    if adapter.get("lora_dropout"):
        key_dropout(model, adapter["lora_dropout"])
        model.train()
    KeyedDropout.step = 0
    backward(model, batches[0])
    save_file(adapter_tensors(model, True), os.path.join(folder, "grads.safetensors"), {"format": "pt"})
    twin = copy.deepcopy(model).double()
    golden["adamw"] = {**ADAMW, **train(model, batches, False)}
    save_file(adapter_tensors(model), os.path.join(folder, "trained.safetensors"), {"format": "pt"})
    golden["adamw"].update(rounding(model, twin, batches))
    restore(model, start)
    golden["clipped"] = {**ADAMW, **CLIPPED, "lr_scheduler": "cosine", **train(model, batches, True)}
    name = os.path.basename(folder)
    if name in WHOLE:
        golden["whole"] = {**ADAMW, **train_whole(folder, batches)}
    if name in ("lora-patterns", "dora", "saved"):
        restore(model, start)
        # PEFT's decays norms that are not LayerNorm, as nothing else does
        decay = 0 if adapter.get("modules_to_save") else ADAMW["weight_decay"]
        golden["loraplus"] = {**ADAMW, "weight_decay": decay, "ratio": 4, **train(model, batches, False, 4, decay)}
        save_file(adapter_tensors(model), os.path.join(folder, "loraplus.safetensors"), {"format": "pt"})
    write_json(os.path.join(folder, "golden.json"), golden)


# ---- NF4 ---------------------------------------------------------------------------------------------------------

CODE = create_dynamic_map().numpy()
NF4 = get_4bit_type("nf4", device="cpu").numpy()


def code_bytes(v, short_divides):
    """The 8-bit codes of v and the maxima of its blocks of 256: bitsandbytes' default op, in float32."""
    edges = (CODE[:-1] + CODE[1:]) / np.float32(2)
    codes, maxima = [], []
    for i in range(0, len(v), 256):
        block = v[i:i + 256]
        top = np.maximum(np.abs(block).max(), np.float32(1e-38))
        short = short_divides and len(block) < 256
        scaled = block / top if short else block * (np.float32(1) / top)
        codes.append(np.searchsorted(edges, np.clip(scaled, -1, 1), side="left"))
        maxima.append(top)
    return np.concatenate(codes).astype(np.uint8), np.array(maxima, np.float32)


def statistics(absmax):
    """Double quantization: bytes, nested maxima, offset. None where rounding the mean otherwise would change a byte."""
    offset = np.float32(absmax.mean().item())
    codes, maxima = code_bytes(absmax.numpy() - offset, True)
    around = [np.nextafter(offset, np.float32(s)) for s in (-np.inf, np.inf)]
    around += [np.nextafter(a, np.float32(s)) for a, s in zip(around, (-np.inf, np.inf))]
    for other in [offset] + (around if len(absmax) > 1 else []):
        for divides in (True, False):
            if not np.array_equal(code_bytes(absmax.numpy() - other, divides)[0], codes):
                return None
    return codes, maxima, offset


def dequantize(packed, absmax, count):
    """bf16 of code * absmax, the product in float32 and rounded once. packed: bytes, high nibble first."""
    bits = packed.reshape(-1).numpy()
    nibbles = np.stack([bits >> 4, bits & 15], axis=1).reshape(-1)[:count]
    scale = np.repeat(absmax, 64)[:count]
    return torch.from_numpy(NF4[nibbles] * scale).to(torch.bfloat16)


def make_matrix(rows, columns, seed, kind):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=g) * 0.05
    if kind == "outliers":
        x *= torch.exp(torch.randn(rows, columns, generator=g))
    if kind == "zero_block":
        x.view(-1)[64:128] = 0
    return x.to(torch.bfloat16)


CASES = [("row", 8, 64, "normal"), ("straddle", 5, 100, "normal"), ("odd", 3, 33, "normal"), ("tiny", 1, 7, "normal"),
         ("one", 1, 1, "normal"), ("zero_block", 4, 80, "zero_block"), ("two_nested", 41, 448, "outliers"),
         ("nested_full", 128, 128, "normal")]


def make_nf4(out):
    tensors, cases = {}, []
    for name, rows, columns, kind in CASES:
        for seed in range(1000, 1100):
            weight = make_matrix(rows, columns, seed, kind)
            packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
            found = statistics(state.absmax)
            if found:
                break
        codes, maxima, offset = found
        absmax = CODE[codes] * np.repeat(maxima, 256)[:len(codes)] + offset
        tensors.update({f"{name}.weight": weight, f"{name}.packed": packed, f"{name}.absmax": state.absmax,
                        f"{name}.absmax_u8": torch.from_numpy(codes), f"{name}.nested_absmax": torch.from_numpy(maxima),
                        f"{name}.nested_offset": torch.tensor([float(offset)]),
                        f"{name}.plain": dequantize(packed, state.absmax.numpy(), weight.numel()).view(rows, columns),
                        f"{name}.double": dequantize(packed, absmax, weight.numel()).view(rows, columns)})
        cases.append({"name": name, "rows": rows, "columns": columns, "seed": seed})
    tensors["quant_map"] = torch.from_numpy(NF4.copy())
    tensors["nested_quant_map"] = torch.from_numpy(CODE.copy())
    os.makedirs(os.path.join(out, "nf4"), exist_ok=True)
    save_file(tensors, os.path.join(out, "nf4", "cases.safetensors"), {"format": "pt"})
    write_json(os.path.join(out, "nf4", "cases.json"), {"blocksize": 64, "nested_blocksize": 256, "cases": cases})


def unpack_checkpoint(path):
    """The weights of a checkpoint saved by bitsandbytes, as float32 holding bf16 values."""
    stored, weights = load_file(path), {}
    for name, value in stored.items():
        state_name = name + ".quant_state.bitsandbytes__nf4"
        if state_name in stored:
            state = json.loads(bytes(stored[state_name].tolist()))
            maxima, table = stored[name + ".nested_absmax"].numpy(), stored[name + ".nested_quant_map"].numpy()
            codes = stored[name + ".absmax"].numpy()
            scale = table[codes] * np.repeat(maxima, 256)[:len(codes)] + np.float32(state["nested_offset"])
            rows, columns = state["shape"]
            weights[name] = dequantize(value, scale, rows * columns).view(rows, columns).float()
        elif ".weight." not in name:
            weights[name] = value.float()
    return weights


def make_bnb4(out):
    """A Llama as transformers and bitsandbytes save it in 4 bits, and what its dequantized weights compute."""
    folder, plain = os.path.join(out, "llama-bnb4"), os.path.join(out, "llama-bnb4-plain")
    shutil.rmtree(folder, ignore_errors=True)
    config = LlamaConfig(**{**COMMON, "hidden_size": 64, "intermediate_size": 160})
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, 5)
    model.to(torch.bfloat16).save_pretrained(plain)
    quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=torch.bfloat16)
    four = AutoModelForCausalLM.from_pretrained(plain, quantization_config=quant, dtype=torch.bfloat16, device_map="cpu")
    four.save_pretrained(folder)
    shutil.rmtree(plain)
    os.remove(os.path.join(folder, "generation_config.json"))
    save_tokenizer(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    model.load_state_dict(unpack_checkpoint(os.path.join(folder, "model.safetensors")))
    rng = random.Random(5)
    batch = [make_sequence(rng, n, config.vocab_size) for n in (20, 12)]
    golden = {"batches": [batch], "base": describe(model, batch)}
    model = add_adapter(model, ALL_LINEAR, 105)
    save_adapter(model, os.path.join(folder, "adapter"))
    golden["adapter"] = describe(model, batch)
    batch_loss(model, batch).backward()
    save_file(adapter_tensors(model, True), os.path.join(folder, "grads.safetensors"), {"format": "pt"})
    write_json(os.path.join(folder, "golden.json"), golden)


def make_schedules(out):
    """The factors on the learning rate at steps 0.. of transformers' schedules."""
    found = {}
    for kind in ("constant", "constant_with_warmup", "linear", "cosine"):
        for warmup, total in ((0, 10), (3, 10), (4, 20)):
            opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            schedule = transformers.get_scheduler(kind, opt, warmup, total)
            rates = []
            for _ in range(total):
                rates.append(schedule.get_last_lr()[0])
                opt.step()
                schedule.step()
            found[f"{kind}/{warmup}/{total}"] = floats(rates, 17)
    write_json(os.path.join(out, "schedules.json"), found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--only", nargs="*", help="these folders of MODELS and ON_BASES, and nothing else")
    args = parser.parse_args()
    out = args.out
    torch.set_num_threads(1)
    for model in MODELS:
        if args.only is None or model[0] in args.only:
            make_model(out, *model)
    for model in ON_BASES:
        if args.only is None or model[0] in args.only:
            make_on_base(out, *model)
    if args.only is None:
        make_nf4(out)
        make_bnb4(out)
        make_schedules(out)
    print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__,
          "bitsandbytes", bnb.__version__)


if __name__ == "__main__":
    main()
