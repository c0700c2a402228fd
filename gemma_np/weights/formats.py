"""The formats in which a weight can be stored, in one table: plain floats, or 16, 8 or 4 bits.

A weight is a plain array or one of the classes below, which take a half to an eighth of the memory of float32. Each
class holds numbers and scales, one scale for every group of consecutive channels of a row; the weight is their product.
It can be sliced by rows and dequantized to float32; `linear.py` multiplies by it.

Sources: OCP Microscaling formats (E4M3, here float8); Dettmers et al., arXiv 2208.07339 (a scale per channel).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from gemma_np.errors import GemmaError

_ROWS = 4096  # checked at once

INT4_LEVELS = 16
INT4_ZERO = 8
"""The stored number that stands for 0 in an `Int4` without zero points."""


@dataclass(frozen=True)
class BFloat16:
    """The upper half of each float32."""

    numbers: np.ndarray  # bfloat16 [out, in]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (out, in)."""
        return self.numbers.shape

    @property
    def scales(self) -> np.ndarray:
        """Return a scale of 1 for each row: float32 [out, 1]."""
        return np.ones((*self.numbers.shape[:-1], 1), np.float32)

    def __getitem__(self, rows: Any) -> "BFloat16":
        return BFloat16(self.numbers[rows])

    def numbers_into(self, out: np.ndarray) -> None:
        """Write the numbers to `out`, float32 [out, in]."""
        bits = out.view(np.uint32)
        np.copyto(bits, self.numbers.view(np.uint16))
        np.left_shift(bits, 16, out=bits)


@dataclass(frozen=True)
class Int8:
    """Integers times scales: one scale for each row, or for each group of consecutive channels of a row."""

    integers: np.ndarray  # int8 [out, in]
    scales: np.ndarray  # float [out, groups]
    int8_activations: bool = False  # W8A8: multiply by activations that are rounded to int8 as well

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (out, in)."""
        return self.integers.shape

    def __getitem__(self, rows: Any) -> "Int8":
        return Int8(self.integers[rows], self.scales[rows], self.int8_activations)

    def numbers_into(self, out: np.ndarray) -> None:
        """Write the integers to `out`, float32 [out, in]."""
        np.copyto(out, self.integers)


@dataclass(frozen=True)
class Int4:
    """Integers from 0 to 15, two to a byte: scale * (integer - zero), in groups of consecutive channels."""

    packed: np.ndarray  # uint8 [out, in / 2], see `pack`
    scales: np.ndarray  # float [out, groups]
    zeros: np.ndarray | None = None  # uint8 [out, groups], 0 to 15; None: 8 everywhere

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (out, in)."""
        return *self.packed.shape[:-1], 2 * self.packed.shape[-1]

    def __getitem__(self, rows: Any) -> "Int4":
        return Int4(self.packed[rows], self.scales[rows], None if self.zeros is None else self.zeros[rows])

    def numbers_into(self, out: np.ndarray) -> None:
        """Write integer - zero to `out`, float32 [out, in]."""
        half = self.packed.shape[-1]
        for numbers, part in ((self.packed & 15, out[..., :half]), (self.packed >> 4, out[..., half:])):
            signed = numbers.view(np.int8)
            if self.zeros is None:
                signed -= INT4_ZERO
            np.copyto(part, signed)
        if self.zeros is not None:
            groups = out.reshape(*self.zeros.shape, -1)
            groups -= self.zeros[..., None].astype(np.float32)


@dataclass(frozen=True)
class Float8:
    """8-bit floats with four exponent and three mantissa bits (E4M3), times one scale per row."""

    numbers: np.ndarray  # float8_e4m3fn [out, in]
    scales: np.ndarray  # float [out, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (out, in)."""
        return self.numbers.shape

    def __getitem__(self, rows: Any) -> "Float8":
        return Float8(self.numbers[rows], self.scales[rows])

    def numbers_into(self, out: np.ndarray) -> None:
        """Write the numbers to `out`, float32 [out, in]."""
        np.take(_FLOAT8_VALUES, self.numbers.view(np.uint8), out=out, mode="clip")


_FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)

Quantized = Int8 | Int4 | Float8
Stored = BFloat16 | Quantized
Weight = np.ndarray | Stored
Weights = Mapping[str, Any]
"""The weights of a model by the names of the published checkpoints: each matrix a `Weight`, each norm an array. The
activations have the dtype of the norms."""


class Format(NamedTuple):
    """One row of the table of formats."""

    bits: int  # of a weight, without its scales
    stored_as: type  # the class of a matrix in this format
    arrays: Mapping[str, tuple[DTypeLike, ...]] = {}  # fields of a quantized matrix, and the dtypes of each
    group_size: int | None = None  # default number of channels that share a scale; None: one scale per row
    scale_dtype: DTypeLike = np.float32
    can_group: bool = False  # whether a row may have more than one scale
    int8_activations: bool = False
    gguf: bool = False  # a name that only GGUF files use
    computes_in: DTypeLike = np.float32


_SCALES = (np.float32, np.float16)
_INT8 = {"integers": (np.int8,), "scales": _SCALES}
_INT4 = {"packed": (np.uint8,), "scales": _SCALES, "zeros": (np.uint8,)}
_FLOAT8 = {"numbers": (ml_dtypes.float8_e4m3fn,), "scales": _SCALES}

FORMATS = {
    "float64": Format(64, np.ndarray, computes_in=np.float64),
    "float32": Format(32, np.ndarray),
    "bfloat16": Format(16, BFloat16),
    "int8": Format(8, Int8, _INT8, can_group=True),
    "w8a8": Format(8, Int8, _INT8, int8_activations=True),
    "int4": Format(4, Int4, _INT4, group_size=64, can_group=True),
    "float8": Format(8, Float8, _FLOAT8),
    "Q8_0": Format(8, Int8, _INT8, group_size=32, scale_dtype=np.float16, can_group=True, gguf=True),
    "Q4_0": Format(4, Int4, _INT4, group_size=32, scale_dtype=np.float16, can_group=True, gguf=True),
}
"""Every format by its name. Q8_0 and Q4_0 are GGUF's names for int8 and int4 in groups of 32 with float16 scales; a
safetensors checkpoint calls them int8 and int4."""


def matrix_bytes(shape: tuple[int, int], format: str, group_size: int | None = None) -> int:
    """Return the bytes of a matrix of this shape, with its scales; group_size: by default that of the format."""
    rows, columns = shape
    row = FORMATS[format]
    scales = columns // (group_size or row.group_size or columns) if "scales" in row.arrays else 0
    return rows * columns * row.bits // 8 + rows * scales * np.dtype(row.scale_dtype).itemsize


def dequantize_into(weight: Stored, out: np.ndarray) -> None:
    """Write a weight to `out`, float32 [out, in]."""
    weight.numbers_into(out)
    groups = out.reshape(*weight.scales.shape, -1)
    groups *= weight.scales[..., None].astype(np.float32)


def dequantize(weight: Weight) -> np.ndarray:
    """Return a weight as a plain array: a stored one as float32 [out, in], a plain array unchanged."""
    if isinstance(weight, np.ndarray):
        return weight
    floats = np.empty(weight.shape, np.float32)
    dequantize_into(weight, floats)
    return floats


def embedding_rows(weight: Weight, rows: np.ndarray) -> np.ndarray:
    """Return some rows of a weight [out, in], dequantized: rows [...] -> [..., in]."""
    return dequantize(weight[rows])


def stored_bytes(weight: Weight) -> int:
    """Return the bytes of the arrays of a weight."""
    arrays = [weight] if isinstance(weight, np.ndarray) else vars(weight).values()
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def check_finite(name: str, weight: Weight) -> None:
    """Check that no number or scale of a weight is NaN or infinite. Raises GemmaError, with its name, if one is."""
    arrays = [weight] if isinstance(weight, np.ndarray) else vars(weight).values()
    for array in arrays:
        if isinstance(array, np.ndarray) and array.dtype.kind not in "iu":
            for start in range(0, len(array), _ROWS):
                if not np.isfinite(array[start : start + _ROWS]).all():
                    raise GemmaError(f"{name}: NaN or infinity among its {array.dtype} numbers, expected finite ones")


def is_quantized(weight: Weight) -> bool:
    """Return whether a weight is quantized; it must be dequantized before it is trained or quantized again."""
    return isinstance(weight, Quantized)


def pack(numbers: np.ndarray) -> np.ndarray:
    """Pack two numbers from 0 to 15 into a byte: uint8 [..., n] -> uint8 [..., n / 2].

    The first half of the last axis goes into the lower four bits, the second half into the upper four.
    """
    low, high = np.split(numbers, 2, axis=-1)
    return low | high << 4


def unpack(packed: np.ndarray) -> np.ndarray:
    """Undo `pack`: uint8 [..., n / 2] -> uint8 [..., n]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)
