"""The K-quants of GGUF: blocks of 256 weights in groups of 16 or 32, whose scales are quantized themselves.

The scale of a group is a whole number s of 4 to 8 bits, times one float16 scale for the block, so that it costs less
than a float16 scale of its own. Three of the formats have minima as well, stored in the same way and subtracted:

           groups   number  s       m       bytes  weight
    Q2_K   16 of 16  2 bits  4 bits  4 bits     84  scale * s * n - minimum * m
    Q3_K   16 of 16  3 bits  6 bits            110  scale * s * n, n from -4 to 3, s from -32 to 31
    Q4_K    8 of 32  4 bits  6 bits  6 bits    144  scale * s * n - minimum * m
    Q5_K    8 of 32  5 bits  6 bits  6 bits    176  scale * s * n - minimum * m
    Q6_K   16 of 16  6 bits  8 bits            210  scale * s * n, n from -32 to 31, s from -128 to 127

Each function quantizes a tile, one block in each of its N columns, in three steps: find the best scale and minimum of
each group, find the scale of the block that describes these best, and round the weights with the scales as stored.
`importance` [256, N] multiplies the squared error of each weight.

Source: llama.cpp, pull request 1684, 2023 (the formats).
"""

from typing import NamedTuple

import numpy as np

from gemma_np.compression.bit_packing import float16_bytes, pack_bits
from gemma_np.compression.scale_search import (
    Rounding,
    best_minima,
    best_scales,
    best_scales_and_minima,
    reciprocal,
    whole_numbers,
)

K_BLOCK = 256


def q2_k(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q2_K: x and importance [256, N] -> uint8 [84, N]."""
    numbers, scales, minima = _with_minima(x, importance, groups=16, highest=3, highest_scale=15)
    pairs = (scales.numbers | minima.numbers << 4).view(np.uint8)
    return np.concatenate([pairs, pack_bits(numbers, 2, 32), float16_bytes(scales.scale), float16_bytes(minima.scale)])


def q3_k(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q3_K: x and importance [256, N] -> uint8 [110, N]."""
    numbers, scales = _without_minima(x, importance, half=4, half_scale=32)
    numbers, of_groups = (numbers + 4).view(np.uint8), (scales.numbers + 32).view(np.uint8)
    return np.concatenate(
        [
            pack_bits(numbers >> 2, 1, 32),
            pack_bits(numbers & 3, 2, 32),
            pack_bits(of_groups & 15, 4, 8),
            pack_bits(of_groups >> 4, 2, 4),
            float16_bytes(scales.scale),
        ]
    )


def q4_k(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q4_K: x and importance [256, N] -> uint8 [144, N]."""
    numbers, scales, minima = _with_minima(x, importance, groups=8, highest=15, highest_scale=63)
    return np.concatenate([_scales_and_minima(scales, minima), pack_bits(numbers, 4, 32)])


def q5_k(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q5_K: x and importance [256, N] -> uint8 [176, N]."""
    numbers, scales, minima = _with_minima(x, importance, groups=8, highest=31, highest_scale=63)
    upper = pack_bits(numbers >> 4, 1, 32)
    return np.concatenate([_scales_and_minima(scales, minima), upper, pack_bits(numbers & 15, 4, 32)])


def q6_k(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Quantize a tile to Q6_K: x and importance [256, N] -> uint8 [210, N]."""
    numbers, scales = _without_minima(x, importance, half=32, half_scale=128)
    numbers = (numbers + 32).view(np.uint8)
    return np.concatenate(
        [
            pack_bits(numbers & 15, 4, 64),
            pack_bits(numbers >> 4, 2, 32),
            scales.numbers.view(np.uint8),
            float16_bytes(scales.scale),
        ]
    )


class _Scales(NamedTuple):
    """The scales, or the minima, of the groups as they are stored."""

    numbers: np.ndarray  # int8 [groups, N]
    scale: np.ndarray  # float16 [N]

    @property
    def values(self) -> np.ndarray:
        """Return the products of both: float32 [groups, 1, N]."""
        return (self.scale.astype(np.float32) * self.numbers)[:, None]


def _with_minima(
    x: np.ndarray, importance: np.ndarray, *, groups: int, highest: int, highest_scale: int
) -> tuple[np.ndarray, _Scales, _Scales]:
    """Return the numbers, uint8 [256, N], the scales and the minima of a tile.

    The minima are fitted again once the scales are rounded. Their sign is changed, since they are subtracted.
    """
    x, importance = (each.reshape(groups, -1, x.shape[-1]) for each in (x, importance))
    to_numbers = whole_numbers(0, highest)
    exact, minima = best_scales_and_minima(x, importance, highest, largest_minimum=0)
    scales = _store(exact, whole_numbers(0, highest_scale), highest_scale)
    numbers = to_numbers((x - minima) * reciprocal(scales.values))
    minima = np.minimum(best_minima(x, importance, scales.values, numbers), 0)
    subtracted = _store(-minima, whole_numbers(0, highest_scale), highest_scale)
    numbers = to_numbers((x + subtracted.values) * reciprocal(scales.values))
    return numbers.astype(np.uint8).reshape(K_BLOCK, -1), scales, subtracted


def _without_minima(x: np.ndarray, importance: np.ndarray, *, half: int, half_scale: int) -> tuple[np.ndarray, _Scales]:
    """Return the numbers, int8 [256, N] from -half to half - 1, and the scales of a tile."""
    x, importance = (each.reshape(16, -1, x.shape[-1]) for each in (x, importance))
    to_numbers = whole_numbers(-half, half - 1)
    exact = best_scales(x, importance, to_numbers, -half)
    scales = _store(exact, whole_numbers(-half_scale, half_scale - 1), -half_scale)
    numbers = to_numbers(x * reciprocal(scales.values))
    return numbers.astype(np.int8).reshape(K_BLOCK, -1), scales


def _store(values: np.ndarray, to_numbers: Rounding, end: int) -> _Scales:
    """Round the scales of groups, [groups, 1, N], to whole numbers times a float16."""
    values = values[:, 0]
    scale = best_scales(values, np.ones_like(values), to_numbers, end)[0].astype(np.float16)
    numbers = to_numbers(values * reciprocal(scale.astype(np.float32)))
    return _Scales(numbers.astype(np.int8), scale)


def _scales_and_minima(scales: _Scales, minima: _Scales) -> np.ndarray:
    """Pack the scales and minima of Q4_K and Q5_K: uint8 [16, N].

    Two float16 scales, then 12 bytes: those of the first four groups lie in the lower six bits of eight bytes, those of
    the last four are split into the upper two bits of these and four more bytes.
    """
    s, m = (each.numbers.view(np.uint8) for each in (scales, minima))
    return np.concatenate(
        [
            float16_bytes(scales.scale),
            float16_bytes(minima.scale),
            s[:4] | s[4:] >> 4 << 6,
            m[:4] | m[4:] >> 4 << 6,
            s[4:] & 15 | (m[4:] & 15) << 4,
        ]
    )
