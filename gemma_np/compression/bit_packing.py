"""Pack small whole numbers into bytes, as the block formats of GGUF do.

All arrays have the numbers of one block in a column: N blocks side by side.

Source: llama.cpp, pull request 1684, 2023 (the formats).
"""

import numpy as np


def pack_bits(numbers: np.ndarray, bits: int, step: int) -> np.ndarray:
    """Pack numbers of 1, 2 or 4 bits into bytes: uint8 [n, N] -> uint8 [n * bits / 8, N].

    A byte holds the numbers that are `step` channels apart, the first one in its lowest bits.
    """
    parts = numbers.reshape(-1, 8 // bits, step, numbers.shape[-1])
    packed = parts[:, 0].copy()
    for i in range(1, 8 // bits):
        packed |= parts[:, i] << i * bits
    return packed.reshape(-1, numbers.shape[-1])


def float16_bytes(values: np.ndarray) -> np.ndarray:
    """Return the bytes of one float16 for each block: [N] -> uint8 [2, N]."""
    return values.astype(np.float16)[:, None].view(np.uint8).T
