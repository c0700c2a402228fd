"""A weight as it is stored: in 32, 16, 8 or 4 bits.

A weight is a plain array, or one of the kinds below, which take a half to an eighth of its memory. Each can be
sliced by rows, and widened to floats; `linear.py` multiplies with it.

Sources: OCP Microscaling formats for E4M3 (float8); Dettmers et al., arXiv 2208.07339, for a scale per channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

INT4_LEVELS = 16
INT4_ZERO = 8
"""The stored number that means 0 in an `Int4` without zero points."""


@dataclass(frozen=True)
class BFloat16:
    """The upper half of each float32."""

    numbers: np.ndarray  # bfloat16 [out, in]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)"""
        return self.numbers.shape

    def __getitem__(self, rows: Any) -> "BFloat16":
        return BFloat16(self.numbers[rows])

    def widen(self, out: np.ndarray) -> np.ndarray:
        """Write the weight to `out`, float32 [out, in]; nothing is left to multiply with."""
        bits = out.view(np.uint32)
        np.copyto(bits, self.numbers.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
        return _NO_SCALE


@dataclass(frozen=True)
class Int8:
    """Whole numbers and the size of their steps: w = scale * integer. A row has one scale, or one for each of its
    groups of neighbouring channels."""

    integers: np.ndarray  # int8 [out, in]
    scales: np.ndarray  # float [out, groups]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)"""
        return self.integers.shape

    def __getitem__(self, rows: Any) -> "Int8":
        return type(self)(self.integers[rows], self.scales[rows])

    def widen(self, out: np.ndarray) -> np.ndarray:
        """Write integers to `out`, float32 [out, in], and return the scale of each row; with more scales a row, write
        the weight."""
        np.copyto(out, self.integers)
        return _scale_groups(out, self.scales)


class W8A8(Int8):
    """The same, multiplied by activations that are rounded to int8, too: whole numbers times whole numbers."""


@dataclass(frozen=True)
class Int4:
    """Whole numbers from 0 to 15, two to a byte: w = scale * (number - zero), in groups of neighbouring channels."""

    packed: np.ndarray  # uint8 [out, in / 2], see `pack`
    scales: np.ndarray  # float [out, groups]
    zeros: np.ndarray | None = None  # uint8 [out, groups], 0 to 15; None: 8 everywhere

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)"""
        return *self.packed.shape[:-1], 2 * self.packed.shape[-1]

    def __getitem__(self, rows: Any) -> "Int4":
        return Int4(self.packed[rows], self.scales[rows], None if self.zeros is None else self.zeros[rows])

    def widen(self, out: np.ndarray) -> np.ndarray:
        """Write integers to `out`, float32 [out, in], and return the scale of each row; with more scales a row, write
        the weight."""
        half = self.packed.shape[-1]
        for numbers, part in ((self.packed & 15, out[..., :half]), (self.packed >> 4, out[..., half:])):
            whole = numbers.view(np.int8)
            if self.zeros is None:
                whole -= INT4_ZERO
            np.copyto(part, whole)
        if self.zeros is not None:
            groups = out.reshape(*self.zeros.shape, -1)
            groups -= self.zeros[..., None].astype(np.float32)
        return _scale_groups(out, self.scales)


@dataclass(frozen=True)
class Float8:
    """Floats of a sign, four bits of exponent and three of fraction (E4M3), times one scale a row."""

    numbers: np.ndarray  # float8_e4m3fn [out, in]
    scales: np.ndarray  # float [out, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)"""
        return self.numbers.shape

    def __getitem__(self, rows: Any) -> "Float8":
        return Float8(self.numbers[rows], self.scales[rows])

    def widen(self, out: np.ndarray) -> np.ndarray:
        """Write the numbers to `out`, float32 [out, in], and return the scales."""
        np.take(_FLOAT8_VALUES, self.numbers.view(np.uint8), out=out, mode="clip")
        return self.scales


_NO_SCALE = np.ones(1, np.float32)
_FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)

Stored = BFloat16 | Int8 | Int4 | Float8
Weight = np.ndarray | Stored
Weights = Mapping[str, Any]
"""The weights of a model by the names of the published checkpoints: each matrix a `Weight`, each norm an array. What
the model computes has the dtype of its norms."""


def dequantize(weight: Weight) -> np.ndarray:
    """The plain array: float32 [out, in] of what is stored; an array as it is."""
    if isinstance(weight, np.ndarray):
        return weight
    wide = np.empty(weight.shape, np.float32)
    wide *= weight.widen(wide)
    return wide


def embedding_rows(weight: Weight, rows: np.ndarray) -> np.ndarray:
    """Some rows of a weight [out, in], widened: rows [...] -> [..., in]."""
    return dequantize(weight[rows])


def stored_bytes(weight: Weight) -> int:
    """The bytes that a weight takes."""
    arrays = [weight] if isinstance(weight, np.ndarray) else vars(weight).values()
    return sum(array.nbytes for array in arrays if array is not None)


def pack(numbers: np.ndarray) -> np.ndarray:
    """Two numbers from 0 to 15 to a byte: uint8 [..., n] -> uint8 [..., n / 2]. The first half of the last axis goes
    into the lower four bits, the second half into the upper ones."""
    low, high = np.split(numbers, 2, axis=-1)
    return low | high << 4


def unpack(packed: np.ndarray) -> np.ndarray:
    """The numbers that `pack` packed: uint8 [..., n / 2] -> uint8 [..., n]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _scale_groups(out: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Multiply each group by its scale; one scale a row is cheaper after the product, and returned."""
    if scales.shape[-1] == 1:
        return scales
    groups = out.reshape(*scales.shape, -1)
    groups *= scales[..., None].astype(np.float32)
    return _NO_SCALE
