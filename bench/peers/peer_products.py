"""Products of PyTorch (oneDNN), with the weight as nn.Linear stores it, outputs x inputs.

Reads a line of JSON each, {"rows", "outputs", "inputs", "backward", "seconds", "dtype"}, and answers {"gflops": x}: the
median call. Stays alive in between, so that it takes turns with others after every product.
"""

import argparse
import json
import statistics
import sys
import time

import torch


def measure(rows, outputs, inputs, backward, seconds, dtype):
    dtype = getattr(torch, dtype)
    weight = torch.randn(outputs, inputs).to(dtype)
    x = torch.randn(rows, outputs if backward else inputs).to(dtype)
    seconds_each = []
    once = (lambda: x @ weight) if backward else (lambda: torch.nn.functional.linear(x, weight))
    for _ in range(2):
        once()
    end = time.perf_counter() + seconds
    while not seconds_each or time.perf_counter() < end:
        start = time.perf_counter()
        once()
        seconds_each.append(time.perf_counter() - start)
    return {"gflops": 2e-9 * rows * outputs * inputs / statistics.median(seconds_each)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, required=True)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(measure(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
