"""GGUF's block formats: how the bytes of a block hold the numbers and the scales of 32 or 256 channels of a row.

A block is split into groups of 16 or 32 channels, and every weight of a group is

    scale * (number - zero) - minimum

A block of 32 channels is one group: it has a float16 scale d and, in the formats whose name ends in _1, a float16
minimum. A K-quant (Q2_K to Q6_K) has a block of 256 channels with several groups; their scales and minima are small
integers, which are multiplied by a float16 of the block: scale = d * integer, minimum = dmin * integer.

Here the rows of a matrix are the last axis, not the first, because NumPy is fast only along a long axis; and the
float16s of the blocks, the factors, are separate from the other bytes, the integers.

Source: the formats are defined in ggml (ggml-common.h, ggml-quants.c); the `gguf` library dequantizes them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Groups(NamedTuple):
    """What turns the numbers of each group into weights: scale * (number - zero) - minimum."""

    scales: np.ndarray  # float32 [groups, out]
    zeros: np.ndarray | int = 0  # float32 [groups, out], or one number
    minima: np.ndarray | None = None  # float32 [groups, out]; None: 0


class BlockFormat(NamedTuple):
    """One of the block formats."""

    channels: int  # of a block
    integers: int  # bytes of a block without its factors
    factors: int  # float16s of a block
    numbers: Callable[[np.ndarray], np.ndarray]
    """Return the numbers: uint8 [blocks, integers, out] -> 8-bit integers [blocks, channels, out]."""
    groups: Callable[[np.ndarray, np.ndarray], Groups]
    """Return the scales: uint8 [blocks, integers, out], float16 [blocks, factors, out] -> those of all groups."""
    factors_last: bool = False  # whether the factors of a block come after its integers in a file

    @property
    def bytes(self) -> int:
        """Return the bytes of a block in a file."""
        return self.integers + 2 * self.factors


def _split(packed: np.ndarray, bits: int, chunk: int, shift: int = 0) -> np.ndarray:
    """Split bytes into numbers of 1, 2 or 4 bits, shifted to the left: uint8 [blocks, n, out] -> [blocks, m, out].

    The bytes come in chunks. The first numbers are the lowest bits of every byte in the first chunk, then come the next
    bits of the same bytes.
    """
    if packed.shape[-1] % 8 == 0 and packed.strides[-1] == 1:
        packed = packed.view(np.uint64)  # NumPy shifts eight bytes at once as fast as one
    blocks, _, words = packed.shape
    chunks = packed.reshape(blocks, -1, 1, chunk, words)
    positions = np.arange(0, 8, bits, dtype=packed.dtype)[:, None, None]
    numbers = chunks >> positions
    numbers &= packed.dtype.type(0x0101010101010101 * ((1 << bits) - 1) & np.iinfo(packed.dtype).max)
    if shift:
        numbers <<= packed.dtype.type(shift)
    return numbers.reshape(blocks, -1, words).view(np.uint8)


def _join(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    low |= high
    return low


def _one_group(zero: int = 0) -> Callable[[np.ndarray, np.ndarray], Groups]:
    """Return a function that gives the only scale of each block and, if it has one, its minimum."""

    def groups(_: np.ndarray, factors: np.ndarray) -> Groups:
        scales, *minima = factors.astype(np.float32).swapaxes(0, 1)  # these formats add their minimum
        return Groups(scales, zero, -minima[0] if minima else None)

    return groups


def _scaled(factors: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """Multiply the integers of the groups by the factor of their block.

    factors float16 [blocks, out], integers [blocks, groups, out] -> float32 [blocks * groups, out]
    """
    return (factors[:, None].astype(np.float32) * integers.astype(np.float32)).reshape(-1, factors.shape[-1])


def _six_bit_groups(integers: np.ndarray, factors: np.ndarray) -> Groups:
    """Read the 8 scales and 8 minima of Q4_K and Q5_K: six bits each, in 12 bytes.

    Bytes 0 to 3 have scales 0 to 3 in their lower six bits, bytes 4 to 7 minima 0 to 3. Bytes 8 to 11 have the lower
    four bits of scales and minima 4 to 7, whose upper two bits are the upper bits of bytes 0 to 7.
    """
    first, second, third = (integers[:, start : start + 4] for start in (0, 4, 8))
    scales = np.concatenate([first & 63, third & 15 | first // 64 * 16], axis=1)
    minima = np.concatenate([second & 63, third // 16 | second // 64 * 16], axis=1)
    return Groups(_scaled(factors[:, 0], scales), 0, _scaled(factors[:, 1], minima))


def _q2_k_groups(integers: np.ndarray, factors: np.ndarray) -> Groups:
    """Read 16 scales and minima, both of four bits: bytes 0 to 15."""
    packed = integers[:, :16]
    return Groups(_scaled(factors[:, 0], packed & 15), 0, _scaled(factors[:, 1], packed // 16))


def _q3_k_groups(integers: np.ndarray, factors: np.ndarray) -> Groups:
    """Read 16 scales of six bits: the lower four in bytes 96 to 103, the upper two in bytes 104 to 107."""
    scales = _split(integers[:, 96:104], 4, 8) | _split(integers[:, 104:108], 2, 4, 4)
    return Groups(_scaled(factors[:, 0], scales.view(np.int8) - 32), 4)


def _q6_k_groups(integers: np.ndarray, factors: np.ndarray) -> Groups:
    """Read 16 scales of eight bits: bytes 192 to 207."""
    return Groups(_scaled(factors[:, 0], integers[:, 192:208].view(np.int8)), 32)


def _q5_numbers(integers: np.ndarray) -> np.ndarray:
    """Read 32 numbers of five bits: the fifth in bytes 0 to 3, the lower four in bytes 4 to 19."""
    return _join(_split(integers[:, 4:], 4, 16), _split(integers[:, :4], 1, 1, 4))


def _q3_k_numbers(integers: np.ndarray) -> np.ndarray:
    return _join(_split(integers[:, 32:96], 2, 32), _split(integers[:, :32], 1, 32, 2))


def _q5_k_numbers(integers: np.ndarray) -> np.ndarray:
    return _join(_split(integers[:, 44:], 4, 32), _split(integers[:, 12:44], 1, 32, 4))


def _q6_k_numbers(integers: np.ndarray) -> np.ndarray:
    return _join(_split(integers[:, :128], 4, 64), _split(integers[:, 128:192], 2, 32, 4))


_IQ4_NL_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)

BLOCK_FORMATS = {
    "Q8_0": BlockFormat(32, 32, 1, lambda integers: integers.view(np.int8), _one_group()),
    "Q4_0": BlockFormat(32, 16, 1, lambda integers: _split(integers, 4, 16), _one_group(8)),
    "Q4_1": BlockFormat(32, 16, 2, lambda integers: _split(integers, 4, 16), _one_group()),
    "Q5_0": BlockFormat(32, 20, 1, _q5_numbers, _one_group(16)),
    "Q5_1": BlockFormat(32, 20, 2, _q5_numbers, _one_group()),
    "IQ4_NL": BlockFormat(32, 16, 1, lambda integers: _IQ4_NL_VALUES[_split(integers, 4, 16)], _one_group()),
    "Q2_K": BlockFormat(256, 80, 2, lambda integers: _split(integers[:, 16:], 2, 32), _q2_k_groups, factors_last=True),
    "Q3_K": BlockFormat(256, 108, 1, _q3_k_numbers, _q3_k_groups, factors_last=True),
    "Q4_K": BlockFormat(256, 140, 2, lambda integers: _split(integers[:, 12:], 4, 32), _six_bit_groups),
    "Q5_K": BlockFormat(256, 172, 2, _q5_k_numbers, _six_bit_groups),
    "Q6_K": BlockFormat(256, 208, 1, _q6_k_numbers, _q6_k_groups, factors_last=True),
}
"""Every block format by its name in ggml."""
