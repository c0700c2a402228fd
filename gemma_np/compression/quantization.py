"""Round weights to a grid of values, without calibration data.

`quantize` rounds each weight to the nearest value of its grid. The grid extends to the largest weight, or is clipped to
make the squared error smaller. `gptq.py` and `awq.py` also use statistics of the inputs.

Sources: Jacob et al., arXiv 1712.05877 (scales and zero points); Micikevicius et al., arXiv 2209.05433 (FP8).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from gemma_np.checkpoints.quantized_tensors import QUANTIZED_FORMATS
from gemma_np.errors import GemmaError
from gemma_np.threads import on_all_cores
from gemma_np.weights.formats import (
    FORMATS,
    INT4_LEVELS,
    INT4_ZERO,
    BFloat16,
    Float8,
    Int4,
    Int8,
    Stored,
    Weight,
    dequantize,
    pack,
)

QUANTIZE_FORMATS = ("bfloat16", *QUANTIZED_FORMATS)

_FLOAT8_LARGEST = 448.0
_BLOCK = 2**20  # weights dequantized at once by each core
_SHRINKS = tuple(1 - step / 20 for step in range(11))  # 1.0 to 0.5


@dataclass(frozen=True)
class Scheme:
    """How to quantize matrices. Raises GemmaError for invalid combinations of values."""

    format: str  # one of QUANTIZE_FORMATS
    group_size: int | None = None  # channels of a row that share a scale; None: all of them
    zero_points: bool = False  # int4 only: use an asymmetric grid
    scale_dtype: DTypeLike = np.float32

    def __post_init__(self) -> None:
        if self.format not in QUANTIZE_FORMATS:
            raise GemmaError(f"format: {self.format!r}, expected one of {', '.join(QUANTIZE_FORMATS)}")
        if self.group_size is not None and not FORMATS[self.format].can_group:
            raise GemmaError(f"group_size: {self.group_size} for {self.format}, expected one for int8 or int4 only")
        if self.group_size is not None and (self.group_size < 2 or self.group_size % 2):
            raise GemmaError(f"group_size: {self.group_size}, expected an even number, 2 or more")
        if self.zero_points and self.format != "int4":
            raise GemmaError(f"zero_points: for {self.format}, expected int4")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that a weight of this shape fits the scheme. Raises GemmaError when it does not."""
        if self.group_size and shape[1] % self.group_size:
            raise GemmaError(f"{name}: {shape[1]} channels, expected a multiple of group_size={self.group_size}")
        if self.format == "int4" and shape[1] % 2:
            raise GemmaError(f"{name}: {shape[1]} channels, expected an even number for int4")


class Grid(NamedTuple):
    """The values that the weights of each group can take: scale * (number - zero), lowest <= number <= highest."""

    scales: np.ndarray  # [out, groups, 1]
    zeros: np.ndarray  # whole numbers, [out, groups, 1]
    lowest: int
    highest: int

    def nearest(self, groups: np.ndarray) -> np.ndarray:
        """Return the number of the grid value nearest to each weight: [out, groups, channels] -> same shape, floats."""
        steps = groups / np.where(self.scales, self.scales, 1)
        return np.clip(np.rint(steps) + self.zeros, self.lowest, self.highest)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """Return the grid values of numbers: [out, groups, channels] -> same shape."""
        return self.scales * (numbers - self.zeros)


def quantize(weight: Weight, scheme: Scheme, *, mse: bool = False) -> Stored:
    """Round each weight to the nearest value of its grid, a few rows at a time: weight [out, in].

    The grid covers the weights of each group; with `mse`, it is clipped to the range with the least squared error.
    """
    scheme.check("weight", weight.shape)

    def of_rows(rows: slice) -> Stored:
        floats = dequantize(weight[rows]).astype(np.float32, copy=False)
        if scheme.format == "bfloat16":
            return BFloat16(floats.astype(ml_dtypes.bfloat16))
        if scheme.format == "float8":
            return _float8(floats)
        grid = mse_grid(floats, scheme) if mse else minmax_grid(floats, scheme)
        return store(grid.nearest(in_groups(floats, scheme)), grid, scheme)

    return _by_rows(of_rows, weight.shape)


def minmax_grid(weight: np.ndarray, scheme: Scheme, shrink: float | np.ndarray = 1.0) -> Grid:
    """Return the grid that covers the weights of each group, or `shrink` times that range.

    weight [out, in], shrink [out, groups, 1] or a number
    """
    groups = in_groups(weight, scheme)
    if scheme.zero_points:
        low, high = (np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0))
        scales = _at_least((high - low) * shrink / (INT4_LEVELS - 1), scheme.scale_dtype)
        zeros = np.rint(-low * shrink / np.where(scales, scales, 1))
        return Grid(scales, zeros, 0, INT4_LEVELS - 1)
    largest = np.abs(groups).max(-1, keepdims=True) * shrink
    if scheme.format == "int4":
        scales = _at_least(largest / (INT4_LEVELS - 1 - INT4_ZERO), scheme.scale_dtype)
        return Grid(scales, np.full_like(scales, INT4_ZERO), 0, INT4_LEVELS - 1)
    scales = _at_least(largest / 127, scheme.scale_dtype)
    return Grid(scales, np.zeros_like(scales), -127, 127)


def mse_grid(weight: np.ndarray, scheme: Scheme) -> Grid:
    """Return the grid with the least squared error for each group: weight [out, in].

    The candidates are clipped to 1.0, 0.95, ... 0.5 of the range of the weights.
    """
    groups = in_groups(weight, scheme)
    best = np.ones((*groups.shape[:2], 1), np.float32)
    least = np.full_like(best, np.inf)
    for shrink in _SHRINKS:
        grid = minmax_grid(weight, scheme, shrink)
        error = np.square(grid.values(grid.nearest(groups)) - groups).sum(-1, keepdims=True)
        best, least = np.where(error < least, np.float32(shrink), best), np.minimum(error, least)
    return minmax_grid(weight, scheme, best)


def in_groups(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Return the weights by group: [out, in] -> [out, groups, channels]."""
    return weight.reshape(weight.shape[0], -1, scheme.group_size or weight.shape[1])


def store(numbers: np.ndarray, grid: Grid, scheme: Scheme) -> Int8 | Int4:
    """Return numbers [out, groups, channels] on a grid as a stored weight."""
    flat = numbers.reshape(len(numbers), -1)
    scales = grid.scales[..., 0].astype(scheme.scale_dtype)
    if scheme.format == "int4":
        zeros = grid.zeros[..., 0].astype(np.uint8) if scheme.zero_points else None
        return Int4(pack(flat.astype(np.uint8)), scales, zeros)
    return Int8(flat.astype(np.int8), scales, FORMATS[scheme.format].int8_activations)


def _float8(weight: np.ndarray) -> Float8:
    scales = np.abs(weight).max(-1, keepdims=True) / _FLOAT8_LARGEST
    return Float8((weight / np.where(scales, scales, 1)).astype(ml_dtypes.float8_e4m3fn), scales)


def _at_least(scales: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Round float32 scales up to values of another dtype, so that the grid still covers all weights."""
    rounded = scales.astype(dtype)
    rounded = np.where(rounded < scales, np.nextafter(rounded, np.asarray(np.inf, dtype)), rounded)
    return rounded.astype(np.float32)


def _by_rows(of_rows: Callable[[slice], Stored], shape: tuple[int, ...]) -> Stored:
    """Build a weight of this shape a few rows at a time, on all cores."""
    size = max(1, _BLOCK // shape[1])
    blocks = [slice(start, start + size) for start in range(0, shape[0], size)]
    sample = of_rows(slice(0, 1))
    fields = dict(vars(sample))
    arrays = {
        name: np.empty((shape[0], row.shape[1]), row.dtype)
        for name, row in fields.items()
        if isinstance(row, np.ndarray)
    }

    def fill(rows: slice) -> None:
        part = of_rows(rows)
        for name, array in arrays.items():
            array[rows] = getattr(part, name)

    on_all_cores(fill, blocks)
    return type(sample)(**fields | arrays)
