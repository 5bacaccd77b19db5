"""Training steps of transformers + PEFT: LoRA on all seven linear layers, AdamW, one sequence of random tokens.

Prints {"seconds": [a step each], "tokens": N, "loss": x} as JSON. The first step does not count; when it begins and is
done is said on standard error.
"""

import argparse
import json
import sys
import time

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(args):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more = {}
    if args.nf4:
        more["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                                         bnb_4bit_use_double_quant=True,
                                                         bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), **more)
    model.config.use_cache = False
    if args.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0, target_modules=LINEAR,
                      task_type="CAUSAL_LM")
    # PEFT holds adapters of a bf16 base in f32 unless told otherwise, which costs speed
    return get_peft_model(model, lora, autocast_adapter_dtype=not args.narrow_adapters)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--dtype", default="bfloat16")
    p.add_argument("--nf4", action="store_true")
    p.add_argument("--narrow-adapters", action="store_true", help="adapters in the base's type")
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--threads", type=int, required=True)
    args = p.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = load(args)
    model.train()
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (1, args.tokens))
    seconds = []
    print("the first step begins", file=sys.stderr, flush=True)
    for step in range(args.steps + 1):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        if step == 0:
            print("the first step is done", file=sys.stderr, flush=True)
    print(json.dumps({"seconds": seconds[1:], "tokens": args.tokens, "loss": loss.item()}))


if __name__ == "__main__":
    main()
