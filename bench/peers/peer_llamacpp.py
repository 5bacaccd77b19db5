"""Prompt processing and generation of llama.cpp, through the calls that its own benchmark makes.

Prints {"seconds": [a run each], "tokens": N} as JSON. The first run does not count.
"""

import argparse
import ctypes
import json
import time

import llama_cpp as ll
import numpy as np


def open_model(args):
    ll.llama_backend_init()
    # the binding wants a callback that stays alive
    open_model.quiet = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(open_model.quiet, ctypes.c_void_p(0))
    model = ll.llama_model_load_from_file(args.model.encode(), ll.llama_model_default_params())
    p = ll.llama_context_default_params()
    p.n_ctx = 1024
    p.n_batch = p.n_ubatch = 512
    p.n_threads = p.n_threads_batch = args.threads
    context = ll.llama_init_from_model(model, p)
    if not model or not context:
        raise SystemExit(f"{args.model}: llama.cpp cannot open it")
    return model, context


def decode(context, tokens):
    array = (ll.llama_token * len(tokens))(*tokens)
    if ll.llama_decode(context, ll.llama_batch_get_one(array, len(tokens))):
        raise SystemExit("llama_decode failed")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--prompt", type=int, default=0)
    p.add_argument("--generate", type=int, default=0)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--threads", type=int, required=True)
    args = p.parse_args()
    model, context = open_model(args)
    vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    tokens = np.random.default_rng(1).integers(0, vocab, max(args.prompt, 1)).tolist()
    seconds = []
    for _ in range(args.runs + 1):
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        start = time.perf_counter()
        if args.prompt:
            decode(context, tokens)
            ll.llama_get_logits_ith(context, -1)
        token = tokens[0]
        for _ in range(args.generate):
            decode(context, [token])
            logits = np.ctypeslib.as_array(ll.llama_get_logits_ith(context, -1), (vocab,))
            token = int(logits.argmax())
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds[1:], "tokens": args.prompt or args.generate}))


if __name__ == "__main__":
    main()
