#!/usr/bin/env python3
"""Writes tests/golden/blocks.safetensors: GGUF's formats of blocks as the gguf package decodes them, and how well ggml
encodes.

    pip install gguf==0.19.0 safetensors llama-cpp-python
    python3 tests/golden/make_blocks.py .../site-packages/llama_cpp/lib/libggml-base.so

Per format the bytes of random blocks, two rows of them, and their values. Scales are any finite f16. `x` is a matrix,
and FORMAT.error the norm of what ggml's quantizer loses of it, relative to that of x.
"""

import ctypes
import os
import sys

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where a block has its f16 scales.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}
ROWS = 2


def ggml_error(ggml, kind, x):
    values, size = GGML_QUANT_SIZES[kind]
    data = np.zeros((x.shape[0], x.shape[1] // values * size), np.uint8)
    ggml.ggml_quantize_chunk(ctypes.c_int(int(kind)), x.ctypes.data_as(ctypes.c_void_p),
                             data.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0), ctypes.c_int64(x.shape[0]),
                             ctypes.c_int64(x.shape[1]), None)
    return np.float32([np.linalg.norm(dequantize(data, kind) - x) / np.linalg.norm(x)])


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    rng = np.random.default_rng(4)
    tensors = {"x": (rng.standard_t(5, (8, 512)) * 0.02).astype(np.float32)}
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
        tensors[name.lower() + ".error"] = ggml_error(ggml, kind, tensors["x"])
    save_file(tensors, os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks.safetensors"))


if __name__ == "__main__":
    main()
