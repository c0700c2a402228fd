"""The product with a weight in any format.

A stored weight is dequantized a few rows at a time, on all cores, so the whole matrix is never in memory as floats.
"""

import math
import os

import numpy as np

from gemma_np.threads import even_parts, on_all_cores
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Blocks, Int8, Stored, Weight, dequantize


def linear(x: np.ndarray, weight: Weight) -> np.ndarray:
    """Multiply each vector of x by a weight in the layout of the checkpoints, [out, in].

    x [..., in], weight [out, in] -> [..., out]. The leading axes are merged into one, so a batch is a single matrix
    product. NumPy passes the transposed view of an array straight to BLAS, without copying the weight.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, np.ndarray):
        y = float_product(rows, weight)
    elif isinstance(weight, Int8) and weight.int8_activations:
        y = integer_product(rows, weight)
    else:
        few = 3 if isinstance(weight, Blocks) or not _AVX512 else 1  # scaling their sums is cheaper than the weights
        y = _product_of_groups(rows, weight) if len(rows) <= few else _dequantized_product(rows, weight)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of x and of the weight; undoes `x @ weight.T`.

    dy [..., out], x [..., in], weight [out, in] -> dx [..., in], dweight [out, in]
    """
    rows = dy.reshape(-1, dy.shape[-1])
    return (rows @ weight).reshape(x.shape), rows.T @ x.reshape(-1, x.shape[-1])


def float_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Compute x @ weight.T in the way that is fastest for this many vectors: x [N, in], weight [out, in] -> [N, out].

    For more than one vector, OpenBLAS first copies the weight into another order, which takes as long as three products
    with one vector. With AVX-512 it copies nothing for a small product, so two to eight vectors are multiplied by a few
    rows of the weight at a time: two then cost little more than one. `tests/benchmarks/linear.py` measures it.

    In float64, which is there to measure errors, up to eight vectors are multiplied one by one instead, so that the
    result of each is the same to the bit whatever the others are. BLAS rounds a product of several vectors in an order
    that depends on their number.
    """
    few = 2 <= len(x) <= FEW_VECTORS
    if few and x.dtype == np.float64:
        return np.stack([row @ weight.T for row in x])
    if few and _AVX512 and weight.flags.c_contiguous:
        high = max(1, min(_SMALL_PRODUCT // x.size, _SMALL_RESULT // len(x)))
        if high < len(weight):
            return product_by_tiles(x, weight, high)
    return x @ weight.T


def product_by_tiles(x: np.ndarray, weight: np.ndarray, high: int) -> np.ndarray:
    """Compute x @ weight.T, up to `high` rows of the weight at a time: x [N, in], weight [out, in] -> [N, out]."""
    y = np.empty((len(x), len(weight)), np.result_type(x, weight))
    tiles = even_parts(len(weight), -(-len(weight) // high))
    cores = (os.cpu_count() or 1) if x.size * len(weight) >= _ONE_CORE else 1

    def multiply_share(core: int) -> None:
        for rows in tiles[core::cores]:
            np.matmul(x, weight[rows].T, out=y[:, rows])

    on_all_cores(multiply_share, range(cores))
    return y


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
    for rows in even_parts(len(weight), -(-weight.size // _TILE)):
        sums[:, rows] = wide @ weight[rows].T.astype(np.float64)
    return sums


def round_to_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each vector to integers from -127 to 127 and a scale: [..., n] -> int8 [..., n], [..., 1]."""
    scales = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(x / np.where(scales, scales, 1)).astype(np.int8), scales


FEW_VECTORS = 8
"""The most vectors that `float_product` multiplies in its own way: faster, or in float64 one by one."""

_AVX512 = not {"X86_V4", "AVX512F"}.isdisjoint(np.show_config(mode="dicts")["SIMD Extensions"]["found"])
_SMALL_PRODUCT = 10**6  # multiplications, and numbers of the result, for which OpenBLAS copies nothing
_SMALL_RESULT = 1200
_TILE = 2**20  # weights; with smaller tiles the cores would wait for each other between the calls of NumPy
_ROWS = 4096  # of a tile of a block format, at most
_DEQUANTIZED = 2**22  # weights that are dequantized at once, 16 MB
_ONE_CORE = 2**20  # products, which one core computes in the time that waking another one takes

np.empty(2**25 - 2**16, np.uint8)  # once freed, glibc keeps freed blocks up to this size instead of unmapping them


def _product_of_groups(x: np.ndarray, weight: Stored) -> np.ndarray:
    """Multiply tile by tile, and scale the sums of groups: x [N, in], weight [out, in] -> [N, out].

    Each core takes a share of the tiles and adds up its own result.
    """
    cores = (os.cpu_count() or 1) if len(x) * math.prod(weight.shape) >= _ONE_CORE else 1
    tiles = _tiles(weight, cores)
    y = np.zeros((cores, len(x), weight.shape[0]), x.dtype)

    def multiply_share(core: int) -> None:
        for rows, columns in tiles[core::cores]:
            tile = weight[rows]
            if isinstance(tile, Blocks):
                tile = tile.columns(columns)
            y[core, :, rows] += _product_of_tile(x[:, columns], tile)

    on_all_cores(multiply_share, range(cores))
    return y.sum(axis=0) if cores > 1 else y[0]


def _product_of_tile(x: np.ndarray, tile: Stored) -> np.ndarray:
    """Return x @ tile.T: x [N, in], tile [out, in] -> [N, out]."""
    scales, zeros, minima = tile.groups()
    numbers = tile.unpacked().reshape(len(scales), -1, tile.shape[0])  # [groups, channels, out]
    of_groups = x.reshape(len(x), len(scales), -1).swapaxes(0, 1)  # [groups, N, channels]
    # einsum converts integers to floats in pieces that fit into the cache; matmul would convert all of them first.
    sums = np.einsum("gco,gnc->gno", numbers, of_groups)
    totals = of_groups.sum(axis=-1)  # [groups, N]
    if not isinstance(zeros, int):
        sums -= totals[..., None] * zeros[:, None]
    elif zeros:
        sums -= totals[..., None] * zeros
    y: np.ndarray = np.einsum("gno,go->no", sums, scales)
    return y if minima is None else y - totals.T @ minima


def _tiles(weight: Stored, cores: int) -> list[tuple[slice, slice]]:
    """Return the rows and the columns of tiles of about `_TILE` weights, at least one for each core.

    Most formats are stored row by row, so a tile is whole rows. The block formats are stored along the rows; a tile has
    many rows and few columns.
    """
    rows, columns = weight.shape
    if isinstance(weight, Blocks):
        channels = BLOCK_FORMATS[weight.format].channels
        high = max(1, min(rows, _ROWS, _TILE // channels))
        parts = even_parts(columns // channels, cores * -(-high * columns // (_TILE * cores)))
        wide = [slice(part.start * channels, part.stop * channels) for part in parts]
        return [(slice(row, min(row + high, rows)), part) for row in range(0, rows, high) for part in wide]
    return [(part, slice(None)) for part in even_parts(rows, cores * -(-rows * columns // (_TILE * cores)))]


def _dequantized_product(x: np.ndarray, weight: Stored) -> np.ndarray:
    """Multiply a few rows after the other, dequantized on all cores: x [N, in], weight [out, in] -> [N, out]."""
    y = np.empty((len(x), weight.shape[0]), x.dtype)
    for rows in even_parts(weight.shape[0], -(-math.prod(weight.shape) // _DEQUANTIZED)):
        y[:, rows] = float_product(x, dequantize(weight[rows]))
    return y


def tile_bytes() -> int:
    """Return the bytes that the product with a stored weight takes, at most: dequantized rows, and a tile per core."""
    return np.dtype(np.float32).itemsize * (_DEQUANTIZED + (os.cpu_count() or 1) * _TILE)
