#!/usr/bin/env python3
"""GGUF's formats of blocks as the gguf package decodes them: tests/golden/blocks.safetensors.

    pip install gguf==0.19.0 safetensors; python3 tests/golden/make_blocks.py

Per format the bytes of random blocks, two rows of them, and their values. Scales are any finite f16.
"""

import os

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where a block has its f16 scales.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}
ROWS = 2


def main():
    rng = np.random.default_rng(4)
    tensors = {}
    for name, places in SCALES.items():
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (ROWS, 512 // values, size), dtype=np.uint8)
        for at in places:
            scale = blocks[:, :, at + 1]
            scale[scale & 0x7C == 0x7C] ^= 0x40  # neither infinite nor NaN
        data = blocks.reshape(ROWS, -1)
        tensors[name.lower() + ".blocks"] = data
        tensors[name.lower() + ".values"] = dequantize(data, kind)
    save_file(tensors, os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks.safetensors"))


if __name__ == "__main__":
    main()
