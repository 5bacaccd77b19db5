#!/usr/bin/env python3
"""Write the golden files beside this script with Hugging Face's tokenizers, SentencePiece and tiktoken.

    python3 -m venv .venv && .venv/bin/pip install tokenizers==0.23.2 sentencepiece==0.2.1 tiktoken==0.14.0
    build/gcc/tests/test_tokenizer_golden --write mixed.bin
    NIBBLE_VECTORS=... .venv/bin/python tests/golden/tokenizers/make_golden.py mixed.bin

mixed.bin holds the documents of tests/mixed_text.h: each its length as 8 bytes, little-endian, and its bytes. Small
tokenizers, one of each kind, are trained on them and on docs/*.md and written as NAME.json. golden.json says, for each of them and for each tokenizer of the vectors, what became of every document: the
first 8 hexadecimal digits of the sha256 of its ids (int32, little-endian, with the special tokens around them) and of
the text they decode to, special tokens included.
"""

import argparse
import base64
import glob
import hashlib
import json
import os
import struct
import unicodedata

import sentencepiece
import tiktoken
import tiktoken.load
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

HERE = os.path.dirname(os.path.abspath(__file__))
META = "\u2581"
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
          r"|\s+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join([r"[^\r\n\p{L}\p{N}]?" + UPPER + "*" + LOWER + "+" + SUFFIX,
                  r"[^\r\n\p{L}\p{N}]?" + UPPER + "+" + LOWER + "*" + SUFFIX,
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
VECTORS = ["gpt2", "llama3", "qwen2.5", "smollm2", "phi-2", "phi-3", "phi-4-mini", "olmo1-gptneox", "llama2",
           "tiny-random-llama", "gemma-cropped"]
TIKTOKEN = ["llama3/tokenizer.model", "cl100k/cl100k_base.tiktoken"]
SENTENCEPIECE = ["llama2/tokenizer.model", "spm/albert_spiece.model", "spm/test_sentencepiece.model",
                 "spm/test_sentencepiece_with_bytefallback.model", "spm/torchtune_m.model",
                 "spm/torchtune_t5_sentencepiece.model"]


# ---- a precompiled character map: darts-clone's double array, written plainly ----

def double_array(entries):
    """{bytes: value} as units. Children of a node at p lie at base ^ byte; base ^ p is what the unit at p says."""
    trie = {}
    for key, value in entries.items():
        node = trie
        for byte in key:
            node = node.setdefault(byte, {})
        node["value"] = value
    units, used, bases = {0: 0}, {0}, set()

    def place(node, at):
        labels = [0] if "value" in node else []
        labels += [b for b in node if b != "value"]
        base = 1
        while base in bases or any((base ^ label) in used for label in labels):
            base += 1
        bases.add(base)
        used.update(base ^ label for label in labels)
        assert (at ^ base) < 1 << 21
        units[at] |= (at ^ base) << 10 | (0x100 if "value" in node else 0)
        if "value" in node:
            units[base] = node["value"] | 1 << 31
        for label in labels:
            if label:
                units[base ^ label] = label
        for label in labels:
            if label:
                place(node[label], base ^ label)

    place(trie, 0)
    return [units.get(i, 0) for i in range(max(units) + 256)]


def character_map():
    """Some of what SentencePiece's nmt_nfkc rules say: controls and white space, compatibility forms, compositions."""
    rules = {chr(c): "" for c in (*range(1, 9), 11, *range(14, 32), 127, 0xad, 0x200b)}
    rules.update({chr(c): " " for c in (9, 10, 12, 13, 0xa0, 0x1680, 0x2003, 0x2028, 0x2029, 0x202f, 0x3000, 0xfeff)})
    for c in (*range(0xa1, 0x250), *range(0x2070, 0x209d), *range(0x2100, 0x218a), *range(0x2460, 0x2474),
              *range(0xfb00, 0xfb07), *range(0xff01, 0xff5f), *range(0x1d400, 0x1d410)):
        if unicodedata.normalize("NFKC", chr(c)) != chr(c):
            rules[chr(c)] = unicodedata.normalize("NFKC", chr(c))
    for base in "aeioucnAEO":
        for mark in "\u0300\u0301\u0302\u0303\u0308\u0327":
            both = unicodedata.normalize("NFC", base + mark)
            if len(both) == 1:
                rules[base + mark] = both
    rules["\u1112\u1161\u11ab"] = "\ud55c"
    rules["\u1112\u1161"] = "\ud558"
    texts, entries = b"", {}
    for source, target in sorted(rules.items()):
        entries[source.encode()] = len(texts)
        texts += target.encode() + b"\0"
    units = double_array(entries)
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts


# ---- small tokenizers ----

def bpe(size, pre, normalizer=None, ignore_merges=False, special=(), post=None):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    if post:
        t.post_processor = post
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return t, trainer


def with_split(regex, behavior="isolated", invert=False):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), behavior, invert=invert),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece_bpe(pre, normalizer, fallback=True):
    t = Tokenizer(models.BPE(byte_fallback=fallback, fuse_unk=True, unk_token="<unk>"))
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.decoder = decoders.Sequence([decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if fallback else [])
    return t, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, limit_alphabet=120,
                                  max_token_length=12)


def unigram(pre, normalizer, decoder=None, special=("<pad>", "</s>", "<unk>"), post=None):
    t = Tokenizer(models.Unigram())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoder or decoders.Metaspace()
    if post:
        t.post_processor = post
    return t, trainers.UnigramTrainer(vocab_size=700, special_tokens=list(special), unk_token="<unk>",
                                      show_progress=False, initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"))


def around(*template, ids):
    return processors.TemplateProcessing(single=" ".join(template), special_tokens=ids)


def small():
    """name: (tokenizer, trainer)"""
    meta, bytes_ = pre_tokenizers.Metaspace, pre_tokenizers.ByteLevel
    prepend = normalizers.Sequence([normalizers.Prepend(META), normalizers.Replace(" ", META)])
    precompiled = normalizers.Precompiled(character_map())
    albert = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
                                   normalizers.StripAccents(), normalizers.Lowercase(), precompiled])
    nmt = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    return {
        "bpe-gpt2": bpe(500, bytes_(add_prefix_space=False), special=["<|endoftext|>"],
                        post=processors.ByteLevel(trim_offsets=False)),
        "bpe-roberta": bpe(500, bytes_(add_prefix_space=True), special=["<s>", "</s>"],
                           post=processors.RobertaProcessing(("</s>", 1), ("<s>", 0))),
        "bpe-llama3": bpe(500, with_split(CL100K % r"\p{N}{1,3}"), ignore_merges=True, special=["<|eot_id|>"],
                          post=processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                    around("<|eot_id|>", "$A", ids=[("<|eot_id|>", 0)])])),
        "bpe-qwen2": bpe(500, with_split(CL100K % r"\p{N}"), normalizers.NFC(), special=["<|im_start|>"]),
        "bpe-cl100k-removed": bpe(500, with_split(CL100K % r"\p{N}{1,3}", "removed", True)),
        "bpe-o200k": bpe(500, with_split(O200K)),
        "bpe-smollm": bpe(500, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                        bytes_(add_prefix_space=False)])),
        "bpe-falcon": bpe(500, pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"),
                                                        bytes_(add_prefix_space=False),
                                                        pre_tokenizers.Digits(individual_digits=False),
                                                        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")])),
        "sp-llama2": sentencepiece_bpe(None, prepend),
        "sp-mistral-v3": sentencepiece_bpe(meta(prepend_scheme="first", split=False), None),
        "sp-gemma": sentencepiece_bpe(pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", META)),
        "sp-unknown": sentencepiece_bpe(meta(prepend_scheme="always", split=True), normalizers.NFKD(), False),
        "unigram-t5": unigram(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), meta()]), precompiled,
                              post=around("$A", "</s>", ids=[("</s>", 1)])),
        "unigram-albert": unigram(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), meta()]), albert),
        "unigram-nmt": unigram(meta(prepend_scheme="first", split=True), nmt),
        "unigram-bytes": unigram(meta(prepend_scheme="never", split=False),
                                 normalizers.Strip(left=True, right=True),
                                 decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]),
                                 ["<unk>"] + [f"<0x{b:02X}>" for b in range(256)]),
    }


def train(name, t, trainer, texts, path):
    if name.startswith("unigram"):  # every character becomes a piece: not too many
        texts = ["".join(c for c in text if ord(c) < 0x180).replace("<unk>", "").replace("</s>", "") for text in texts]
    t.train_from_iterator(texts, trainer)
    t.add_tokens([AddedToken("/* x */", lstrip=True, rstrip=True, normalized=False),
                  AddedToken("rock", single_word=True, normalized=name != "sp-llama2")])
    state = json.loads(t.to_str())
    if name == "unigram-bytes":
        state["model"]["byte_fallback"] = True
        state["added_tokens"] = [a for a in state["added_tokens"] if not a["content"].startswith("<0x")]
    if name.startswith("sp-"):
        state["added_tokens"] = [a for a in state["added_tokens"] if not a["content"].startswith("<0x")]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(state, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


# ---- what becomes of the documents ----

def short(data):
    return hashlib.sha256(data).hexdigest()[:8]


def hashes(encode, decode, documents):
    ids, texts = [], []
    for document in documents:
        got = encode(document)
        ids.append(short(struct.pack(f"<{len(got)}i", *got)))
        texts.append(short(decode(got).encode()))
    return {"ids": ids, "texts": texts}


def with_tokenizers(path, documents):
    t = Tokenizer.from_file(path)
    return hashes(lambda s: t.encode(s).ids, lambda ids: t.decode(ids, skip_special_tokens=False), documents)


def with_sentencepiece(path, documents):
    """Its decoder writes unknown characters in a way of its own: no texts."""
    t = sentencepiece.SentencePieceProcessor(model_file=path)
    return {"ids": hashes(t.encode, lambda ids: "", documents)["ids"]}


def with_tiktoken(path, documents):
    ranks = tiktoken.load.load_tiktoken_bpe(path)
    t = tiktoken.Encoding(name=path, pat_str=CL100K % r"\p{N}{1,3}", mergeable_ranks=ranks, special_tokens={})
    return hashes(t.encode_ordinary, t.decode, documents)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixed")
    parser.add_argument("--only", nargs="*", help="these names alone; the rest of golden.json stays")
    args = parser.parse_args()
    raw, at, documents = open(args.mixed, "rb").read(), 0, []
    while at < len(raw):
        n = struct.unpack_from("<Q", raw, at)[0]
        documents.append(raw[at + 8:at + 8 + n])
        at += 8 + n
    golden = {"sha256": hashlib.sha256(b"".join(documents)).hexdigest(), "tokenizers": {}}
    if args.only:
        with open(os.path.join(HERE, "golden.json"), encoding="utf-8") as f:
            golden["tokenizers"] = json.load(f)["tokenizers"]

    def wanted(name):
        return not args.only or name in args.only

    documents = [d.decode() for d in documents]
    texts = [open(p, encoding="utf-8").read() for p in sorted(glob.glob(os.path.join(HERE, "../../../docs/*.md")))]
    for name, (t, trainer) in small().items():
        path = os.path.join(HERE, name + ".json")
        if not wanted(name):
            continue
        train(name, t, trainer, texts + [d.replace("\0", "") for d in documents], path)
        golden["tokenizers"][name] = with_tokenizers(path, documents)
        print(name, os.path.getsize(path), "bytes")
    vectors = os.path.join(os.environ["NIBBLE_VECTORS"], "tok")
    for name in filter(lambda name: wanted("tok/" + name), VECTORS):
        golden["tokenizers"]["tok/" + name] = with_tokenizers(os.path.join(vectors, name, "tokenizer.json"), documents)
        print(name)
    for name in filter(lambda name: wanted("tok/" + name), SENTENCEPIECE):
        golden["tokenizers"]["tok/" + name] = with_sentencepiece(os.path.join(vectors, name), documents)
        print(name)
    for name in filter(lambda name: wanted("tok/" + name), TIKTOKEN):
        golden["tokenizers"]["tok/" + name] = with_tiktoken(os.path.join(vectors, name), documents)
        print(name)
    with open(os.path.join(HERE, "golden.json"), "w", encoding="utf-8") as f:
        rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}"
                          for k, v in golden["tokenizers"].items())
        f.write(f'{{"sha256": "{golden["sha256"]}", "tokenizers": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
