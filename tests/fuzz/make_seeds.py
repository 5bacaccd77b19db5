#!/usr/bin/env python3
"""Writes seeds/TARGET/NAME: small inputs that are well formed, for libFuzzer to begin with. Needs nothing but Python."""
import base64
import json
import math
import os
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")


def save(target, name, *parts):
    """Parts are texts or bytes, put together with a zero byte between."""
    folder = os.path.join(HERE, "seeds", target)
    os.makedirs(folder, exist_ok=True)
    raw = [p if isinstance(p, bytes) else (p if isinstance(p, str) else json.dumps(p, ensure_ascii=False)).encode()
           for p in parts]
    with open(os.path.join(folder, name), "wb") as f:
        f.write(b"\0".join(raw))


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


# ---- files of weights ----

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I64": 8}


def tensors(*entries):
    """(header, data) of a safetensors file; entries: (name, dtype, shape[, bytes])."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype, shape, *given in entries:
        n = SIZES[dtype]
        for d in shape:
            n *= d
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + n]}
        data += given[0] if given else b"\0" * n
    return json.dumps(header, separators=(",", ":")), data


def whole(header, data):
    return struct.pack("<Q", len(header)) + header.encode() + data


def safetensors():
    save("safetensors", "two", whole(*tensors(("a.weight", "F32", [2, 3]), ("b", "BF16", [4]))))
    save("safetensors", "scalar", whole(*tensors(("s", "F32", []), ("e", "U8", [0, 3]), ("i", "I64", [1]))))
    save("safetensors", "none", whole("{}", b""))


TINY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 4, "rms_norm_eps": 1e-5, "torch_dtype": "float32", "tie_word_embeddings": True,
        "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
LINEAR = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8), "self_attn.o_proj": (8, 8),
          "mlp.gate_proj": (8, 8), "mlp.up_proj": (8, 8), "mlp.down_proj": (8, 8)}


def state(rows, nested):
    s = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, 8]}
    return json.dumps(dict(s, nested_blocksize=256, nested_dtype="float32", nested_offset=0.5) if nested else s)


def base():
    common = [("model.embed_tokens.weight", "F32", [8, 8]), ("model.norm.weight", "F32", [8])]
    common += [(f"model.layers.0.{n}.weight", "F32", [8]) for n in ("input_layernorm", "post_attention_layernorm")]
    plain = [(f"model.layers.0.{n}.weight", "BF16", list(s)) for n, s in LINEAR.items()]
    save("base", "plain", TINY, *tensors(*common, *plain))
    packed = []
    for n, (rows, _) in LINEAR.items():
        name, text = f"model.layers.0.{n}.weight", state(rows, True).encode()
        packed += [(name, "U8", [rows * 4, 1]), (name + ".absmax", "U8", [1]), (name + ".quant_map", "F32", [16]),
                   (name + ".nested_absmax", "F32", [1]), (name + ".nested_quant_map", "F32", [256]),
                   (name + ".quant_state.bitsandbytes__nf4", "U8", [len(text)], text)]
    q = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
         "bnb_4bit_use_double_quant": True}
    save("base", "nf4", dict(TINY, quantization_config=q), *tensors(*common, *packed))
    for nested in (False, True):
        save("quant_state", "nested" if nested else "plain", state(8, nested))


def adapter():
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM",
              "target_modules": ["q_proj", "v_proj"], "use_rslora": False, "base_model_name_or_path": "x"}
    stem = "base_model.model.model.layers.0.self_attn."
    two = [(stem + f"{m}.lora_{ab}.weight", "F32", s) for m, rows in (("q_proj", 8), ("v_proj", 4))
           for ab, s in (("A", [2, 8]), ("B", [rows, 2]))]
    save("adapter", "lora", config, *tensors(*two))
    save("adapter", "patterns", dict(config, rank_pattern={"q_proj": 2}, alpha_pattern={".*v_proj": 8}, use_rslora=True,
                                     target_modules=".*(q|v)_proj", layers_to_transform=[0]), *tensors(*two))
    dora = [(stem + f"{m}.lora_magnitude_vector", "F32", [rows]) for m, rows in (("q_proj", 8), ("v_proj", 4))]
    save("adapter", "dora", dict(config, use_dora=True), *tensors(*two, *dora))
    embed = "base_model.model.model.embed_tokens."
    save("adapter", "embedding", dict(config, target_modules=["q_proj", "v_proj", "embed_tokens"]), *tensors(
        *two, (embed + "lora_embedding_A", "F32", [2, 8]), (embed + "lora_embedding_B", "F32", [8, 2])))
    save("adapter", "saved", dict(config, modules_to_save=["embed_tokens"]), *tensors(*two, (embed + "weight", "F32", [8, 8])))


# ---- GGUF ----

def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def gguf():
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("llama"),
            text("llama.block_count") + struct.pack("<II", 4, 1),
            text("a.f32") + struct.pack("<If", 6, 0.5), text("a.bool") + struct.pack("<IB", 7, 1),
            text("a.u64") + struct.pack("<IQ", 10, 3), text("a.f64") + struct.pack("<Id", 12, 1.5),
            text("a.strings") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("yz"),
            text("a.ints") + struct.pack("<IIQ", 9, 5, 2) + struct.pack("<ii", 1, -1)]
    kinds = [("t.f32", 0, [32, 2], 256), ("t.f16", 1, [32], 64), ("t.q8_0", 8, [32, 1], 34), ("t.bf16", 30, [32], 64),
             ("t.q4_0", 2, [64], 36), ("t.q4_k", 12, [256], 144), ("t.q6_k", 14, [256], 210)]
    infos, data = b"", b""
    for name, kind, ne, n in kinds:
        infos += text(name) + struct.pack("<I", len(ne)) + struct.pack(f"<{len(ne)}Q", *ne)
        infos += struct.pack("<IQ", kind, len(data))
        data += bytes(n) + bytes(-n % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(kinds), len(keys)) + b"".join(keys) + infos
    save("gguf", "kinds", head + bytes(-len(head) % 32) + data)
    save("gguf", "none", b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    gguf_models()


def u32(v):
    return struct.pack("<II", 4, v)


def f32(v):
    return struct.pack("<If", 6, v)


def string(v):
    return struct.pack("<I", 8) + text(v)


def array(kind, items):
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)


def gguf_file(name, arch, keys, shapes):
    """A whole model of 8 channels with these keys behind "ARCH.", these tensors, and a tokenizer of 8 tokens."""
    tokens = ["<|end|>", "a", "b", "\u0120", "ab", "\u0120ab", "c", "ba"]
    keys = {"block_count": u32(1), "context_length": u32(16), "embedding_length": u32(8), "feed_forward_length": u32(8),
            "attention.head_count": u32(2), "rope.dimension_count": u32(4), "rope.freq_base": f32(1e4),
            "vocab_size": u32(8), **keys}
    keys = {"general.architecture": string(arch), **{f"{arch}.{k}": v for k, v in keys.items()},
            "tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string("gpt-2"),
            "tokenizer.ggml.tokens": array(8, [text(t) for t in tokens]),
            "tokenizer.ggml.token_type": array(5, [struct.pack("<i", 3 if i == 0 else 1) for i in range(8)]),
            "tokenizer.ggml.merges": array(8, [text(m) for m in ("a b", "\u0120 ab", "b a")]),
            "tokenizer.ggml.bos_token_id": u32(0), "tokenizer.ggml.eos_token_id": u32(0),
            "tokenizer.chat_template": string("{% for m in messages %}{{ m.content }}{% endfor %}")}
    infos, data = b"", b""
    for tensor, *ne in shapes:
        infos += text(tensor if tensor.endswith(".bias") else tensor + ".weight")
        infos += struct.pack("<I", len(ne)) + struct.pack(f"<{len(ne)}Q", *ne) + struct.pack("<IQ", 0, len(data))
        n = 4 * math.prod(ne)
        data += bytes(n) + bytes(-n % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(text(k) + v for k, v in keys.items()) + infos
    save("gguf", name, head + bytes(-len(head) % 32) + data)


def gguf_models():
    rms = {"attention.head_count_kv": u32(1), "attention.layer_norm_rms_epsilon": f32(1e-5)}
    experts = {**rms, "expert_count": u32(3), "expert_used_count": u32(2)}
    ends = [("token_embd", 8, 8), ("output_norm", 8), ("blk.0.attn_norm", 8), ("blk.0.ffn_norm", 8)]
    qkv = [("blk.0.attn_q", 8, 8), ("blk.0.attn_k", 8, 4), ("blk.0.attn_v", 8, 4), ("blk.0.attn_output", 8, 8)]
    routed = [("blk.0.ffn_gate_inp", 8, 3)] + [(f"blk.0.ffn_{k}_exps", 8, 8, 3) for k in ("gate", "up", "down")]
    gguf_file("model", "llama", rms, ends + qkv + [(f"blk.0.ffn_{k}", 8, 8) for k in ("gate", "up", "down")])
    gguf_file("mixtral", "llama", experts, ends + qkv + routed)
    gguf_file("qwen2moe", "qwen2moe", {
        **experts, "expert_feed_forward_length": u32(8), "expert_shared_feed_forward_length": u32(8)},
        ends + qkv + routed + [(f"{name}.bias", rows) for name, _, rows in qkv[:3]] +
        [("blk.0.ffn_gate_inp_shexp", 8)] + [(f"blk.0.ffn_{k}_shexp", 8, 8) for k in ("gate", "up", "down")])
    linear = [("blk.0.attn_qkv", 8, 24), ("blk.0.attn_output", 8, 8), ("blk.0.ffn_up", 8, 8), ("blk.0.ffn_down", 8, 8)]
    gguf_file("neox", "gptneox", {"attention.layer_norm_epsilon": f32(1e-5),
                                  "use_parallel_residual": struct.pack("<IB", 7, 1)},
              ends + linear + [("output", 8, 8)] + [(f"{name}.bias", shape[-1]) for name, *shape in ends[1:] + linear])


# ---- tokenizers ----

def tokenizer(**changes):
    letters = [chr(c) for c in range(0x21, 0x7F)] + ["\u0120", "\u010a"]
    vocab = {t: i for i, t in enumerate(letters + ["he", "ll", "\u0120w"])}
    t = {"version": "1.0", "truncation": None, "padding": None,
         "added_tokens": [{"id": len(vocab), "content": "<|im_end|>", "single_word": False, "lstrip": False,
                           "rstrip": True, "normalized": False, "special": True}],
         "normalizer": {"type": "NFC"},
         "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
         "post_processor": None, "decoder": {"type": "ByteLevel"},
         "model": {"type": "BPE", "unk_token": None, "byte_fallback": False, "ignore_merges": False, "vocab": vocab,
                   "merges": ["h e", ["l", "l"], "\u0120 w"]}}
    t.update(changes)
    return t


def tokenizers():
    config = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": "{{ messages }}"}
    save("tokenizer", "bytes", tokenizer(), config)
    save("tokenizer", "split", tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
         "behavior": "Isolated", "invert": False}, {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
        post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
                                                                {"Sequence": {"id": "A", "type_id": 0}}],
                        "pair": [], "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [99],
                                                                     "tokens": ["<|im_end|>"]}}}), "", "hello w 123")
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] +
                                        ["\u2581", "h", "e", "he", "\u2581he"])}
    spm = tokenizer(added_tokens=[{"id": i, "content": c, "special": True, "normalized": False}
                                  for i, c in enumerate(["<unk>", "<s>", "</s>"])],
                    normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {
                        "type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}, pre_tokenizer=None,
                    decoder={"type": "Sequence", "decoders": [
                        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
                    model={"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                           "merges": ["h e", "\u2581 he"]})
    save("tokenizer", "spm", spm)
    unigram = tokenizer(added_tokens=[], model={"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                                                "vocab": [["<unk>", 0.0], ["\u2581", -2.0], ["he", -3.5], ["l", -4.0]]},
                        pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"})
    save("tokenizer", "unigram", unigram)
    unigram["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap()).decode()}
    save("tokenizer", "precompiled", unigram, "", "banana a\u0301 \r\n")


def charsmap():
    """A precompiled map: a trie of 512 units that has "a" to the text at 0."""
    unit = [0] * 512
    unit[0] = 256 << 10  # the children begin at 256
    at = 256 ^ ord("a")
    unit[at] = ord("a") | 1 << 8 | (at ^ 384) << 10  # has a leaf
    unit[384] = 1 << 31
    return struct.pack("<I", 4 * len(unit)) + struct.pack(f"<{len(unit)}I", *unit) + b"bc\0"


def field(number, value):
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if isinstance(value, int) else \
        bytes([number << 3 | 5]) + struct.pack("<f", value)


def varint(v):
    out = b""
    while v > 127:
        out, v = out + bytes([v & 127 | 128]), v >> 7
    return out + bytes([v])


def sentencepiece():
    def model(kind, normalizer=b""):
        pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
        pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)] if kind == 2 else []
        pieces += [("\u2581", -1.0, 1), ("h", -2.0, 1), ("e", -3.0, 1), ("he", -4.0, 1), ("\u2581he", -5.0, 1), ("<x>", 0.0, 4)]
        out = b"".join(field(1, field(1, p.encode()) + field(2, s) + field(3, t)) for p, s, t in pieces)
        trainer = field(3, kind) + (field(35, 1) if kind == 2 else b"")
        return out + field(2, trainer) + field(3, normalizer + field(3, 1) + field(4, 0) + field(5, 1))
    save("sentencepiece", "bpe", model(2))
    save("sentencepiece", "unigram", model(1))
    save("sentencepiece", "precompiled", model(1, field(2, charsmap())))
    save("sentencepiece", "ranks", "".join(f"{base64.b64encode(bytes([b])).decode()} {b}\n" for b in range(256))
         + f"{base64.b64encode(b'the').decode()} 256\n")


# ---- texts ----

def templates():
    golden = json.loads(read("tests/golden/jinja/renderings.json"))
    for name, t in golden["templates"].items():
        save("template", name, t)
    with open(os.path.join(ROOT, "tests/golden/jinja/semantics.txt"), newline="\n", encoding="utf-8") as f:
        lines = [x for x in f.read().split("\n") if x]
    for i in range(0, len(lines), 24):  # as blocks that stand alone, so that one that raises does not hide the others
        save("template", f"semantics{i // 24}", "\n".join(lines[i:i + 24]))
    save("template", "data", "{{ messages[0].content | tojson }}{{ tools }}", {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "tools": [], "x": [1, {}]})


ROWS = [  # in the order of the target's forms (jsonl, json, csv, tsv, txt) and types
    ("completion", '{"text": "a b"}', '[{"text": "a"},\n{"text": "b"}]', "text\nx y\n", "text\tn\nx\t1\n", "A text.\n"),
    ("alpaca", '{"instruction": "i", "input": "", "output": "o"}\n', '{"instruction": ["i"], "output": ["o"]}',
     'instruction,input,output\n"a ""q"" b",,o\n', "instruction\toutput\ni\to\n", None),
    ("prompt", '{"prompt": "p", "completion": 3}', '[{"prompt": "p", "completion": "c"}]', "prompt,completion\r\np,c\r\n",
     None, None),
    ("chat", '{"messages": [{"role": "user", "content": "q <|im_end|>"}, {"role": "assistant", "content": "a"}]}',
     '[{"messages": [{"role": "system", "content": "s"}, {"role": "human", "content": "q"}]}]', None, None, None),
    ("tokenized", '{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}', '[{"input_ids": [1], "labels": [1]}]', None, None, None),
]


def rows():
    for i, (name, *forms) in enumerate(ROWS):
        for k, form in enumerate(forms):
            if form:
                save("rows", f"{name}{k}", bytes([i * 5 + k]) + form.encode())


def yaml():
    save("yaml", "all", """base_model: data/samples/base
load_in_4bit: true
adapter: qlora
datasets:
  - path: data/samples/domain/train.jsonl
    type: chat_template
    roles: {assistant: [gpt]}
test_datasets:
  - {path: x, type: completion, metrics: [loss]}
special_tokens:
  pad_token: "<|pad|>"
lora_r: 8
lora_target_modules: [q_proj, "v_proj"]
learning_rate: 1e-4
sequence_len: 128
num_epochs: 1
output_dir: ${env:HOME}/out
""")
    save("yaml", "anchors", "a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}\ntext: |\n  line\n  line\nfolded: >-\n  x\n  y\n'q': \"\\u00e9\"\n")


def configs():
    golden = os.path.join(ROOT, "tests", "golden")
    for family in sorted(os.listdir(golden)):
        path = os.path.join(golden, family, "config.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                save("config", family, json.load(f))


if __name__ == "__main__":
    shutil.rmtree(os.path.join(HERE, "seeds"), ignore_errors=True)
    for make in (safetensors, base, adapter, gguf, tokenizers, sentencepiece, templates, rows, yaml, configs):
        make()
