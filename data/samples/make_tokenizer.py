#!/usr/bin/env python3
"""Train the tokenizer of the sample base model and write its folder, without weights.

    python3 data/samples/make_text.py --out build/text
    python3 data/samples/make_tokenizer.py --books FOLDER --text build/text --out data/samples/base

Needs the package tokenizers (0.23.3 made the committed files). The result is a byte-level BPE of exactly 4,096
entries: 3 special tokens, the 256 bytes, 3,837 merges. Digits stand alone, so that numbers and codes are copied digit
by digit. Same input, same files.
"""

import argparse
import glob
import json
import os

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 4096
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 640,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCAB,
}


def parameters(c):
    """The number of weights a folder with this config holds (tied embedding counted once)."""
    dim, kv = c["hidden_size"], c["num_key_value_heads"] * c["head_dim"]
    q = c["num_attention_heads"] * c["head_dim"]
    layer = 2 * dim * q + 2 * dim * kv + 3 * dim * c["intermediate_size"] + 2 * dim
    return c["vocab_size"] * dim + c["num_hidden_layers"] * layer + dim


def texts(books, generated):
    for path in sorted(glob.glob(os.path.join(books, "*.txt"))):
        with open(path, encoding="utf-8") as f:
            yield f.read()
    for name, field in (("text.jsonl", "text"), ("chat.jsonl", "messages")):
        with open(os.path.join(generated, name), encoding="utf-8") as f:
            for line in f:
                value = json.loads(line)[field]
                yield value if field == "text" else "\n".join(m["role"] + "\n" + m["content"] for m in value)


def train(books, generated):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts(books, generated), trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END, IM_START, IM_END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", required=True, help="folder of .txt files")
    parser.add_argument("--text", required=True, help="folder written by make_text.py")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    train(args.books, args.text).save(os.path.join(args.out, "tokenizer.json"))
    write(args.out, "config.json", CONFIG)
    write(args.out, "generation_config.json", {"bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 0})
    write(args.out, "special_tokens_map.json", {
        "additional_special_tokens": [IM_START, IM_END], "bos_token": END, "eos_token": END, "pad_token": END})
    added = {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                      "special": True} for i, t in enumerate([END, IM_START, IM_END])}
    write(args.out, "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": [IM_START, IM_END], "bos_token": END, "chat_template": CHATML,
        "clean_up_tokenization_spaces": False, "eos_token": END, "model_max_length": CONFIG["max_position_embeddings"],
        "pad_token": END, "tokenizer_class": "PreTrainedTokenizerFast"})
    n = parameters(CONFIG)
    print(f"{args.out}: {n} parameters, {2 * n} bytes in bf16")


if __name__ == "__main__":
    main()
