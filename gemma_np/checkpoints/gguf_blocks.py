"""Q8_0 and Q4_0, the two block formats of GGUF that this package computes with directly.

Both split each row into blocks of 32 channels and store the scale of a block before its numbers:

    Q8_0  float16 scale, 32 x int8                            w = scale * number
    Q4_0  float16 scale, 16 bytes of two numbers from 0 to 15  w = scale * (number - 8)

In a Q4_0 block, byte i holds channel i in its lower four bits and channel 16 + i in its upper four.
"""

from collections.abc import Callable

import numpy as np

from gemma_np.threads import on_all_cores
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Blocks, Int4, Int8, pack, unpack

BLOCK = 32
SCALE_BYTES = 2
GGUF_FORMATS = ("Q8_0", "Q4_0")

_ROWS = 4096  # rows unpacked at once


def block_bytes(format: str) -> int:
    """Return the bytes of one block: its scale and its numbers."""
    return BLOCK_FORMATS[format].bytes


def read_blocks(format: str, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> Blocks:
    """Read a weight of a GGUF file; read(start, stop) returns the bytes of those rows: uint8 [rows, bytes of a row].

    The rows become the last axis, a few of them at a time and on all cores.
    """
    rows, columns = shape
    block = BLOCK_FORMATS[format]
    integers = np.empty((columns // block.channels, block.integers, rows), np.uint8)
    factors = np.empty((columns // block.channels, block.factors, rows), np.float16)
    split = block.integers if block.factors_last else 2 * block.factors

    def transpose(start: int) -> None:
        part = slice(start, min(start + _ROWS, rows))
        blocks = read(part.start, part.stop).reshape(part.stop - part.start, -1, block.bytes)
        pieces = blocks[..., :split], blocks[..., split:]
        of_integers, of_factors = pieces if block.factors_last else pieces[::-1]
        integers[..., part] = of_integers.transpose(1, 2, 0)
        factors[..., part] = np.ascontiguousarray(of_factors).view(np.float16).transpose(1, 2, 0)

    on_all_cores(transpose, range(0, rows, _ROWS))
    return Blocks(format, integers, factors)


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
