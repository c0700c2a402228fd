"""The block formats in a GGUF file: each row of a matrix is its blocks, one after the other.

A weight in memory has the rows as its last axis instead, and the float16s of the blocks separately.
"""

from collections.abc import Callable

import numpy as np

from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.errors import GemmaError
from gemma_np.threads import on_all_cores
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Blocks, dequantize

_ROWS = 4096  # rows transposed at once


def read_blocks(format: str, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> Blocks:
    """Read a weight of a GGUF file; read(start, stop) returns the bytes of those rows: uint8 [rows, bytes of a row].

    The rows become the last axis, a few of them at a time and on all cores. Raises GemmaError for a scale that is not
    finite.
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
    if not np.isfinite(factors).all():
        raise GemmaError("scales: NaN or infinity among them, expected finite numbers")
    return Blocks(format, integers, factors)


def stored_blocks(format: str, shape: tuple[int, ...], rows: Callable[[int, int], np.ndarray]) -> StoredTensor:
    """Return a weight of this shape, to be read when it is needed; rows(start, stop): see `read_blocks`."""

    def read(start: int = 0, stop: int = shape[0]) -> Blocks:
        part = (stop - start, shape[1])
        return read_blocks(format, part, lambda first, end: rows(start + first, start + end))

    return StoredTensor(shape, lambda start, stop: dequantize(read(start, stop)), quantized=read)


def to_bytes(weight: Blocks) -> np.ndarray:
    """Undo `read_blocks`: return the bytes of a weight [out, in] as uint8 [out, n], n bytes per row."""
    rows = weight.shape[0]
    integers = np.ascontiguousarray(weight.integers.transpose(2, 0, 1))
    factors = np.ascontiguousarray(weight.factors.transpose(2, 0, 1)).view(np.uint8)
    last = BLOCK_FORMATS[weight.format].factors_last
    return np.concatenate([integers, factors] if last else [factors, integers], axis=-1).reshape(rows, -1)
