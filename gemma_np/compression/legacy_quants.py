"""The formats of GGUF with a float16 scale for each block of 32 weights: llama.cpp's "legacy" quants, and IQ4_NL.

            number  bytes  weight
    Q4_0    4 bits     18  scale * n, n from -8 to 7
    Q4_1    4 bits     20  scale * n + minimum
    Q5_0    5 bits     22  scale * n, n from -16 to 15
    Q5_1    5 bits     24  scale * n + minimum
    Q8_0    8 bits     34  scale * n, n from -127 to 127
    IQ4_NL  4 bits     18  scale * n, n one of 16 values that are denser near 0

Each function quantizes a tile, one block in each of its N columns: find the best scale and minimum, and round the
weights with these as they are stored. `importance` [32, N] multiplies the squared error of each weight.

Source: llama.cpp, pull requests 1405 (2023) and 5590 (2024) (the formats).
"""

import numpy as np

from gemma_np.compression.bit_packing import float16_bytes, pack_bits
from gemma_np.compression.scale_search import (
    Rounding,
    best_scales,
    best_scales_and_minima,
    reciprocal,
    whole_numbers,
)

LEGACY_BLOCK = 32

IQ4_NL_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The values of the 16 numbers of IQ4_NL."""

_HALVES = np.arange(-254, 254) / 2 + 0.25  # one number in each half-open interval of 1/2, where IQ4_NL rounds alike
_IQ4_NL_CODES = np.abs(_HALVES[:, None] - IQ4_NL_VALUES).argmin(1).astype(np.uint8)


def q4_0(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q4_0: x and importance [32, N] -> uint8 [18, N]."""
    scale, numbers = _with_scale(x, importance, whole_numbers(-8, 7), -8)
    return np.concatenate([float16_bytes(scale), pack_bits((numbers + 8).astype(np.uint8), 4, 16)])


def q4_1(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q4_1: x and importance [32, N] -> uint8 [20, N]."""
    scale, minimum, numbers = _with_minimum(x, importance, 15)
    return np.concatenate([float16_bytes(scale), float16_bytes(minimum), pack_bits(numbers, 4, 16)])


def q5_0(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q5_0: x and importance [32, N] -> uint8 [22, N]."""
    scale, numbers = _with_scale(x, importance, whole_numbers(-16, 15), -16)
    return np.concatenate([float16_bytes(scale), _pack_5_bits((numbers + 16).astype(np.uint8))])


def q5_1(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q5_1: x and importance [32, N] -> uint8 [24, N]."""
    scale, minimum, numbers = _with_minimum(x, importance, 31)
    return np.concatenate([float16_bytes(scale), float16_bytes(minimum), _pack_5_bits(numbers)])


def q8_0(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q8_0: x and importance [32, N] -> uint8 [34, N]."""
    scale, numbers = _with_scale(x, importance, whole_numbers(-127, 127), -127)
    return np.concatenate([float16_bytes(scale), numbers.astype(np.int8).view(np.uint8)])


def iq4_nl(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to IQ4_NL: x and importance [32, N] -> uint8 [18, N]."""
    scale, values = _with_scale(x, importance, round_to_iq4_nl, -127, step=16)
    return np.concatenate([float16_bytes(scale), pack_bits(_iq4_nl_codes(values), 4, 16)])


def _with_scale(
    x: np.ndarray, importance: np.ndarray, rounding: Rounding, end: int, step: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scales, float16 [N], and the numbers, float32 [32, N], of a tile."""
    scale = best_scales(x, importance, rounding, end, step).astype(np.float16)
    return scale[0], rounding(x * reciprocal(scale.astype(np.float32)))


def _with_minimum(x: np.ndarray, importance: np.ndarray, highest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scales and minima, float16 [N], and the numbers, uint8 [32, N], of a tile."""
    scale, minimum = (each.astype(np.float16) for each in best_scales_and_minima(x, importance, highest))
    above = x - minimum.astype(np.float32)
    numbers = whole_numbers(0, highest)(above * reciprocal(scale.astype(np.float32)))
    return scale[0], minimum[0], numbers.astype(np.uint8)


def _pack_5_bits(numbers: np.ndarray) -> np.ndarray:
    """Pack numbers from 0 to 31: the upper bits of all, then the lower four: uint8 [32, N] -> uint8 [20, N]."""
    return np.concatenate([pack_bits(numbers >> 4, 1, 1), pack_bits(numbers & 15, 4, 16)])


def round_to_iq4_nl(numbers: np.ndarray) -> np.ndarray:
    """Replace each number by the nearest of IQ4_NL_VALUES, in place: float32 [...] -> the same array."""
    return np.take(IQ4_NL_VALUES, _iq4_nl_codes(numbers), out=numbers)


def _iq4_nl_codes(numbers: np.ndarray) -> np.ndarray:
    """Return the index of the nearest value of IQ4_NL: [..., channels, N] -> uint8, same shape."""
    halves = np.clip(np.floor(2 * numbers), -254, 253).astype(np.int16)
    return _IQ4_NL_CODES[halves + 254]
