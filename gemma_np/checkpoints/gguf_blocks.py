"""Q8_0 and Q4_0, the two block formats of GGUF that this package computes with directly.

Both split each row into blocks of 32 channels and store the scale of a block before its numbers:

    Q8_0  float16 scale, 32 x int8                            w = scale * number
    Q4_0  float16 scale, 16 bytes of two numbers from 0 to 15  w = scale * (number - 8)

In a Q4_0 block, byte i holds channel i in its lower four bits and channel 16 + i in its upper four.
"""

from collections.abc import Callable

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.weights.formats import FORMATS, Int4, Int8, pack, unpack

BLOCK = 32
SCALE_BYTES = 2
GGUF_FORMATS = tuple(name for name, row in FORMATS.items() if row.gguf)

_ROWS = 4096  # rows unpacked at once


def block_bytes(format: str) -> int:
    """Return the bytes of one block: its scale and its numbers."""
    return SCALE_BYTES + BLOCK * FORMATS[format].bits // 8


def read_blocks(format: str, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> Int8 | Int4:
    """Read a weight of a GGUF file: format "Q8_0" or "Q4_0"; read(start, stop) returns the bytes of those rows.

    Raises GemmaError for a scale that is not finite.
    """
    rows, columns = shape
    scales = np.empty((rows, columns // BLOCK), np.float16)
    numbers = np.empty((rows, columns if format == "Q8_0" else columns // 2), np.uint8)
    for start in range(0, rows, _ROWS):
        part = slice(start, min(start + _ROWS, rows))
        blocks = read(part.start, part.stop).reshape(-1, columns // BLOCK, block_bytes(format))
        scales[part] = np.ascontiguousarray(blocks[..., :SCALE_BYTES]).view(np.float16)[..., 0]
        stored = blocks[..., SCALE_BYTES:]
        numbers[part] = stored.reshape(-1, columns) if format == "Q8_0" else pack(unpack(stored).reshape(-1, columns))
    if not np.isfinite(scales).all():
        raise GemmaError("scales: NaN or infinity among them, expected finite numbers")
    return Int8(numbers.view(np.int8), scales) if format == "Q8_0" else Int4(numbers, scales)


def is_stored_as(weight: object, format: str) -> bool:
    """Return whether a weight can be written in this format without rounding."""
    if isinstance(weight, Int8):
        fits = format == "Q8_0" and not weight.int8_activations
    elif isinstance(weight, Int4):
        fits = format == "Q4_0" and weight.zeros is None
    else:
        return False
    return fits and weight.scales.dtype == np.float16 and weight.shape[1] == BLOCK * weight.scales.shape[1]


def to_blocks(weight: Int8 | Int4) -> np.ndarray:
    """Return the bytes of a weight with a float16 scale per 32 channels: uint8 [out, n], n bytes per row."""
    rows, groups = weight.scales.shape
    if isinstance(weight, Int8):
        numbers = weight.integers.view(np.uint8).reshape(rows, groups, BLOCK)
    else:
        numbers = pack(unpack(weight.packed).reshape(rows, groups, BLOCK))
    scales = np.ascontiguousarray(weight.scales).view(np.uint8).reshape(rows, groups, SCALE_BYTES)
    return np.concatenate([scales, numbers], axis=-1).reshape(rows, -1)
