"""The product with a weight, however it is stored.

A stored one is widened a few rows at a time, on all cores: the whole matrix is never held as floats.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from gemma_np.weights.formats import W8A8, Int8, Stored, Weight


def linear(x: np.ndarray, weight: Weight) -> np.ndarray:
    """Multiply each vector of x by a weight that is stored the way checkpoints store it.

    x [..., in], weight [out, in] -> [..., out]. The leading axes are folded into one, so that a batch is a single
    matrix product. NumPy hands the transposed view of an array to BLAS as it is: no copy of the weight is made.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, np.ndarray):
        y = rows @ weight.T
    elif isinstance(weight, W8A8):
        y = integer_product(rows, weight)
    else:
        y = _product_by_tiles(rows, weight)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undo `x @ weight.T`: the gradients of x and of the weight.

    dy [..., out], x [..., in], weight [out, in] -> dx [..., in], dweight [out, in]
    """
    rows = dy.reshape(-1, dy.shape[-1])
    return (rows @ weight).reshape(x.shape), rows.T @ x.reshape(-1, x.shape[-1])


def integer_product(x: np.ndarray, weight: Int8) -> np.ndarray:
    """x @ weight.T with both sides in int8: x [N, in], weight [out, in] with one scale a row -> [N, out].

    Each vector of x has a scale of its own; the sums of products are whole numbers, as an int32 accumulator has them.
    """
    activations, steps = round_to_int8(x)
    return (steps * integer_sums(activations, weight.integers) * weight.scales.T).astype(x.dtype)


def integer_sums(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The exact sums of products: int8 x [N, in], int8 weight [out, in] -> int32 [N, out].

    They are added up in float64, which holds every whole number up to 2^53: BLAS multiplies no integers.
    """
    sums = np.empty((len(x), len(weight)), np.int32)
    wide = x.astype(np.float64)
    for start, stop in _tiles(weight.shape, _TILE):
        sums[:, start:stop] = wide @ weight[start:stop].T.astype(np.float64)
    return sums


def round_to_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from -127 to 127 and, for each vector, the size of a step: [..., n] -> int8 [..., n], [..., 1]."""
    steps = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(x / np.where(steps, steps, 1)).astype(np.int8), steps


_TILE = 2**18  # floats, 1 MB: a tile is widened and multiplied before it leaves a core's own cache
_TILE_OF_MANY = 2**20  # with many vectors the product takes longer than the widening, and BLAS wants large matrices
_MANY = 8


def _product_by_tiles(x: np.ndarray, weight: Stored) -> np.ndarray:
    """x [N, in], weight [out, in] -> [N, out]. Each core takes a share of the weight's rows."""
    y = np.empty((len(x), weight.shape[0]), x.dtype)
    size = _TILE if len(x) < _MANY else _TILE_OF_MANY

    def multiply(share: tuple[int, int]) -> None:
        first, end = share
        tiles = _tiles((end - first, weight.shape[1]), size)
        buffer = np.empty((max(stop - start for start, stop in tiles), weight.shape[1]), np.float32)
        for start, stop in tiles:
            tile, columns = buffer[: stop - start], y[:, first + start : first + stop]
            scales = weight[first + start : first + stop].widen(tile)
            np.matmul(x, tile.T, out=columns)
            columns *= scales.T

    cores = os.cpu_count() or 1
    shares = _tiles(weight.shape, max(size, -(-weight.shape[0] // cores) * weight.shape[1]))
    on_all_cores(multiply, shares)
    return y


def _tiles(shape: tuple[int, ...], size: int) -> list[tuple[int, int]]:
    """(start, stop) of runs of rows that have at most `size` numbers each, or one row."""
    rows = max(1, size // shape[1])
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def on_all_cores(work: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Do the work on each part, side by side, as NumPy lets threads; on a single core, as in a browser, in turn."""
    if len(parts) == 1 or os.cpu_count() in (1, None):
        for part in parts:
            work(part)
    else:
        list(_threads().map(work, parts))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gemma_np")
