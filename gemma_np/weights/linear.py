"""The product with a weight in any format.

A stored weight is dequantized a few rows at a time, on all cores, so the whole matrix is never in memory as floats.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from gemma_np.weights.formats import Int8, Stored, Weight, dequantize_into


def linear(x: np.ndarray, weight: Weight) -> np.ndarray:
    """Multiply each vector of x by a weight in the layout of the checkpoints, [out, in].

    x [..., in], weight [out, in] -> [..., out]. The leading axes are merged into one, so a batch is a single matrix
    product. NumPy passes the transposed view of an array straight to BLAS, without copying the weight.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, np.ndarray):
        y = rows @ weight.T
    elif isinstance(weight, Int8) and weight.int8_activations:
        y = integer_product(rows, weight)
    else:
        y = _product_by_tiles(rows, weight)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of x and of the weight; undoes `x @ weight.T`.

    dy [..., out], x [..., in], weight [out, in] -> dx [..., in], dweight [out, in]
    """
    rows = dy.reshape(-1, dy.shape[-1])
    return (rows @ weight).reshape(x.shape), rows.T @ x.reshape(-1, x.shape[-1])


def integer_product(x: np.ndarray, weight: Int8) -> np.ndarray:
    """Compute x @ weight.T with both sides in int8: x [N, in], weight [out, in] with one scale per row -> [N, out].

    Each vector of x has its own scale. Products are summed exactly, as in an int32 accumulator.
    """
    activations, scales = round_to_int8(x)
    return (scales * integer_sums(activations, weight.integers) * weight.scales.T).astype(x.dtype)


def integer_sums(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the exact sums of products: int8 x [N, in], int8 weight [out, in] -> int32 [N, out].

    The sums are computed in float64, which holds every integer up to 2^53, because BLAS has no integer product.
    """
    sums = np.empty((len(x), len(weight)), np.int32)
    wide = x.astype(np.float64)
    for start, stop in _tiles(weight.shape, _TILE):
        sums[:, start:stop] = wide @ weight[start:stop].T.astype(np.float64)
    return sums


def round_to_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each vector to integers from -127 to 127 and a scale: [..., n] -> int8 [..., n], [..., 1]."""
    scales = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(x / np.where(scales, scales, 1)).astype(np.int8), scales


_TILE = 2**18  # floats, 1 MB: a tile stays in a core's own cache while it is dequantized and multiplied
_LARGE_TILE = 2**20  # with many vectors the product takes longer than dequantizing, and BLAS wants large matrices
_MANY = 8


def _product_by_tiles(x: np.ndarray, weight: Stored) -> np.ndarray:
    """Multiply tile by tile: x [N, in], weight [out, in] -> [N, out]. Each core takes a share of the rows."""
    y = np.empty((len(x), weight.shape[0]), x.dtype)
    size = _TILE if len(x) < _MANY else _LARGE_TILE
    has_row_scales = weight.scales.shape[-1] == 1

    def multiply(share: tuple[int, int]) -> None:
        first, end = share
        tiles = _tiles((end - first, weight.shape[1]), size)
        buffer = np.empty((max(stop - start for start, stop in tiles), weight.shape[1]), np.float32)
        for start, stop in tiles:
            rows, tile, columns = (
                weight[first + start : first + stop],
                buffer[: stop - start],
                y[:, first + start : first + stop],
            )
            if has_row_scales:  # scaling the product is cheaper than scaling the tile
                rows.numbers_into(tile)
                np.matmul(x, tile.T, out=columns)
                columns *= rows.scales.T
            else:
                dequantize_into(rows, tile)
                np.matmul(x, tile.T, out=columns)

    cores = os.cpu_count() or 1
    shares = _tiles(weight.shape, max(size, -(-weight.shape[0] // cores) * weight.shape[1]))
    on_all_cores(multiply, shares)
    return y


def tile_bytes() -> int:
    """Return the bytes of the tiles of a stored weight that all cores dequantize at once, at most."""
    return (os.cpu_count() or 1) * _LARGE_TILE * np.dtype(np.float32).itemsize


def _tiles(shape: tuple[int, ...], size: int) -> list[tuple[int, int]]:
    """Return (start, stop) of groups of rows with at most `size` numbers each, or one row."""
    rows = max(1, size // shape[1])
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def on_all_cores(work: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Call `work` on each part, in threads if there are several cores: NumPy releases the interpreter lock."""
    if len(parts) == 1 or os.cpu_count() in (1, None):
        for part in parts:
            work(part)
    else:
        list(_threads().map(work, parts))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gemma_np")
