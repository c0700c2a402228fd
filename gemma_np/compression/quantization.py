"""Choosing the whole numbers that stand for a weight: first a grid of values, then a number for each weight.

Without any calibration: `quantize` rounds each weight to the nearest value of its grid. The grid reaches to the largest
weight, or less far, where that makes the error smaller. `gptq.py` and `activation_aware.py` look at what the weights
are multiplied with, too.

Sources: Jacob et al., arXiv 1712.05877 (scales and zero points); the OCP FP8 specification, arXiv 2209.05433.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from gemma_np.errors import GemmaError
from gemma_np.weights.formats import (
    INT4_LEVELS,
    INT4_ZERO,
    W8A8,
    BFloat16,
    Float8,
    Int4,
    Int8,
    Stored,
    Weight,
    dequantize,
    pack,
)
from gemma_np.weights.linear import on_all_cores

KINDS = ("bfloat16", "int8", "w8a8", "int4", "float8")

_FLOAT8_LARGEST = 448.0
_BLOCK = 2**20  # weights widened at once, by each core
_SHRINKS = tuple(1 - step / 20 for step in range(11))  # 1.0 to 0.5


@dataclass(frozen=True)
class Scheme:
    """How matrices are stored. Raises GemmaError for what does not go together."""

    kind: str  # one of KINDS
    group: int | None = None  # channels of a row that share a scale; None: all of them
    zero_points: bool = False  # int4 alone: the grid need not be symmetric
    scale_dtype: DTypeLike = np.float32

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GemmaError(f"kind: {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.group is not None and (self.kind not in ("int8", "int4") or self.group < 2 or self.group % 2):
            raise GemmaError(f"group: {self.group} for {self.kind}, expected an even number, for int8 or int4")
        if self.zero_points and self.kind != "int4":
            raise GemmaError(f"zero_points: for {self.kind}, expected int4")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise a GemmaError when a weight of that shape cannot be stored so."""
        if self.group and shape[1] % self.group:
            raise GemmaError(f"{name}: {shape[1]} channels, expected a multiple of the group of {self.group}")
        if self.kind == "int4" and shape[1] % 2:
            raise GemmaError(f"{name}: {shape[1]} channels, expected an even number for int4")


Q8_0 = Scheme("int8", 32, scale_dtype=np.float16)
Q4_0 = Scheme("int4", 32, scale_dtype=np.float16)


class Grid(NamedTuple):
    """The values that the weights of each group can take: scale * (number - zero), lowest <= number <= highest."""

    scales: np.ndarray  # [out, groups, 1]
    zeros: np.ndarray  # whole numbers, [out, groups, 1]
    lowest: int
    highest: int

    def nearest(self, groups: np.ndarray) -> np.ndarray:
        """The number of the value that is nearest to each weight: [out, groups, channels] -> the same, as floats."""
        steps = groups / np.where(self.scales, self.scales, 1)
        return np.clip(np.rint(steps) + self.zeros, self.lowest, self.highest)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """What the numbers stand for: [out, groups, channels] -> the same."""
        return self.scales * (numbers - self.zeros)


def quantize(weight: Weight, scheme: Scheme, least_error: bool = False) -> Stored:
    """Round each weight to the nearest value of its grid, some rows at a time: weight [out, in].

    The grid reaches from the smallest to the largest weight of each group; with `least_error` to the part of it that
    makes the sum of squared errors smallest.
    """
    scheme.check("weight", weight.shape)

    def of_rows(rows: slice) -> Stored:
        floats = dequantize(weight[rows]).astype(np.float32, copy=False)
        if scheme.kind == "bfloat16":
            return BFloat16(floats.astype(ml_dtypes.bfloat16))
        if scheme.kind == "float8":
            return _float8(floats)
        grid = mse_grid(floats, scheme) if least_error else minmax_grid(floats, scheme)
        return store(grid.nearest(in_groups(floats, scheme)), grid, scheme)

    return _by_rows(of_rows, weight.shape)


def minmax_grid(weight: np.ndarray, scheme: Scheme, shrink: float | np.ndarray = 1.0) -> Grid:
    """The grid that reaches from the smallest to the largest weight of each group, or `shrink` times as far.

    weight [out, in], shrink [out, groups, 1] or a number
    """
    groups = in_groups(weight, scheme)
    if scheme.zero_points:
        low, high = (np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0))
        scales = _at_least((high - low) * shrink / (INT4_LEVELS - 1), scheme.scale_dtype)
        zeros = np.rint(-low * shrink / np.where(scales, scales, 1))
        return Grid(scales, zeros, 0, INT4_LEVELS - 1)
    largest = np.abs(groups).max(-1, keepdims=True) * shrink
    if scheme.kind == "int4":
        scales = _at_least(largest / (INT4_LEVELS - 1 - INT4_ZERO), scheme.scale_dtype)
        return Grid(scales, np.full_like(scales, INT4_ZERO), 0, INT4_LEVELS - 1)
    scales = _at_least(largest / 127, scheme.scale_dtype)
    return Grid(scales, np.zeros_like(scales), -127, 127)


def mse_grid(weight: np.ndarray, scheme: Scheme) -> Grid:
    """Of the grids that reach 1.0, 0.95, ... 0.5 times as far as the full one, that of the least squared error, chosen
    for each group on its own: weight [out, in]."""
    groups = in_groups(weight, scheme)
    best = np.ones((*groups.shape[:2], 1), np.float32)
    least = np.full_like(best, np.inf)
    for shrink in _SHRINKS:
        grid = minmax_grid(weight, scheme, shrink)
        error = np.square(grid.values(grid.nearest(groups)) - groups).sum(-1, keepdims=True)
        best, least = np.where(error < least, np.float32(shrink), best), np.minimum(error, least)
    return minmax_grid(weight, scheme, best)


def in_groups(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The weights of a group side by side: [out, in] -> [out, groups, channels]."""
    return weight.reshape(weight.shape[0], -1, scheme.group or weight.shape[1])


def store(numbers: np.ndarray, grid: Grid, scheme: Scheme) -> Int8 | Int4:
    """The weight of those numbers: [out, groups, channels] on their grid."""
    flat = numbers.reshape(len(numbers), -1)
    scales = grid.scales[..., 0].astype(scheme.scale_dtype)
    if scheme.kind == "int4":
        zeros = grid.zeros[..., 0].astype(np.uint8) if scheme.zero_points else None
        return Int4(pack(flat.astype(np.uint8)), scales, zeros)
    return (W8A8 if scheme.kind == "w8a8" else Int8)(flat.astype(np.int8), scales)


def _float8(weight: np.ndarray) -> Float8:
    scales = np.abs(weight).max(-1, keepdims=True) / _FLOAT8_LARGEST
    return Float8((weight / np.where(scales, scales, 1)).astype(ml_dtypes.float8_e4m3fn), scales)


def _at_least(scales: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """The scales, as float32, rounded to numbers of another dtype that are not smaller: the grid reaches as far."""
    rounded = scales.astype(dtype)
    rounded = np.where(rounded < scales, np.nextafter(rounded, np.asarray(np.inf, dtype)), rounded)
    return rounded.astype(np.float32)


def _by_rows(of_rows: Callable[[slice], Stored], shape: tuple[int, ...]) -> Stored:
    """A weight of that shape, made some rows at a time, on all cores."""
    size = max(1, _BLOCK // shape[1])
    blocks = [slice(start, start + size) for start in range(0, shape[0], size)]
    sample = of_rows(slice(0, 1))
    arrays = {
        name: np.empty((shape[0], row.shape[1]), row.dtype) for name, row in vars(sample).items() if row is not None
    }

    def fill(rows: slice) -> None:
        part = of_rows(rows)
        for name, array in arrays.items():
            array[rows] = getattr(part, name)

    on_all_cores(fill, blocks)
    return type(sample)(**arrays)
