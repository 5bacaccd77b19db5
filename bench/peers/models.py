"""Model folders of random weights in real models' shapes, made once: the same for nibble, PyTorch and llama.cpp."""

import json
import os
import shutil
import subprocess

#   layers, hidden, mlp, heads, kv_heads, head_dim, vocab: the rows of measure/random_base.c
SHAPES = {
    "tiny": (2, 64, 128, 4, 2, 16, 4096),
    "smollm2-135m": (30, 576, 1536, 9, 3, 64, 49152),
    "llama-3.2-1b": (16, 2048, 8192, 32, 8, 64, 128256),
}
GGUF_TYPES = ("q4_0", "q8_0", "bf16")


def write_config(folder, shape):
    layers, hidden, mlp, heads, kv_heads, head_dim, vocab = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 0, "attention_bias": False, "mlp_bias": False,
    }
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)


def tensors(shape):
    """Names and sizes, as transformers has them."""
    layers, hidden, mlp, heads, kv_heads, head_dim, vocab = SHAPES[shape]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        yield at + "self_attn.q_proj.weight", (heads * head_dim, hidden)
        yield at + "self_attn.k_proj.weight", (kv_heads * head_dim, hidden)
        yield at + "self_attn.v_proj.weight", (kv_heads * head_dim, hidden)
        yield at + "self_attn.o_proj.weight", (hidden, heads * head_dim)
        yield at + "mlp.gate_proj.weight", (mlp, hidden)
        yield at + "mlp.up_proj.weight", (mlp, hidden)
        yield at + "mlp.down_proj.weight", (hidden, mlp)
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def write_weights(path, shape):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    weights = {}
    for name, size in tensors(shape):
        weights[name] = (torch.ones(size) if len(size) == 1 else torch.randn(size) * 0.02).to(torch.bfloat16)
    save_file(weights, path, metadata={"format": "pt"})


def model_folder(cache, shape, repo):
    folder = os.path.join(cache, shape)
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        os.makedirs(folder, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(os.path.join(repo, "data/samples/base", name), folder)
        write_config(folder, shape)
        write_weights(os.path.join(folder, "model.tmp"), shape)
        os.rename(os.path.join(folder, "model.tmp"), os.path.join(folder, "model.safetensors"))
    return folder


def four_bit_folder(cache, shape, nibble, folder):
    """The base in bitsandbytes' 4 bits, which transformers reads without quantizing again."""
    path = os.path.join(cache, f"{shape}-4bit")
    if not os.path.exists(path):
        subprocess.run([nibble, "quantize", "--base", folder, "--out", path], check=True, stdout=subprocess.DEVNULL)
    return path


def gguf_file(cache, shape, kind, nibble, folder):
    path = os.path.join(cache, f"{shape}-{kind}.gguf")
    if not os.path.exists(path):
        subprocess.run([nibble, "export", "--base", folder, "--format", "gguf", "--dtype", kind, "--out", path],
                       check=True, stdout=subprocess.DEVNULL)
    return path
