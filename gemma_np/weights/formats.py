"""The formats in which a weight can be stored, in one table: plain floats, or 16, 8 or 4 bits.

A weight is a plain array or one of the classes below, which take a half to a twelfth of the memory of float32. Each
class holds numbers, and scales for groups of consecutive channels of a row: a weight is

    scale * (number - zero) - minimum

where zero and minimum are 0 in most formats. It can be sliced by rows and dequantized to float32; `linear.py`
multiplies by it.

Sources: OCP Microscaling formats (E4M3, here float8); Dettmers et al., arXiv 2208.07339 (a scale per channel).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from gemma_np.errors import GemmaError
from gemma_np.threads import even_parts, on_all_cores
from gemma_np.weights.block_formats import BLOCK_FORMATS, Groups

_ROWS = 4096  # checked at once
_LOOKED_UP = 2**16  # numbers at once: NumPy converts them to indices of eight bytes
_BLOCK = 2**20  # floats dequantized at once

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

    def __getitem__(self, rows: Any) -> "BFloat16":
        return BFloat16(self.numbers[rows])

    def unpacked(self) -> np.ndarray:
        """Return the numbers: float32 [in, out]."""
        bits = self.numbers.view(np.uint16).astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32).T

    def groups(self) -> Groups:
        """Return a scale of 1 for each row."""
        return Groups(np.ones((1, self.shape[0]), np.float32))


@dataclass(frozen=True)
class Float16:
    """16-bit floats with five exponent and ten mantissa bits."""

    numbers: np.ndarray  # float16 [out, in]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (out, in)."""
        return self.numbers.shape

    def __getitem__(self, rows: Any) -> "Float16":
        return Float16(self.numbers[rows])

    def unpacked(self) -> np.ndarray:
        """Return the numbers: float16 [in, out]."""
        return self.numbers.T

    def groups(self) -> Groups:
        """Return a scale of 1 for each row."""
        return Groups(np.ones((1, self.shape[0]), np.float32))


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

    def unpacked(self) -> np.ndarray:
        """Return the integers: int8 [in, out]."""
        return self.integers.T

    def groups(self) -> Groups:
        """Return the scales of the groups."""
        return Groups(self.scales.T.astype(np.float32))


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

    def unpacked(self) -> np.ndarray:
        """Return the integers: uint8 [in, out]."""
        return unpack(self.packed).T

    def groups(self) -> Groups:
        """Return the scales and the zero points of the groups."""
        zeros = INT4_ZERO if self.zeros is None else self.zeros.T.astype(np.float32)
        return Groups(self.scales.T.astype(np.float32), zeros)


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

    def unpacked(self) -> np.ndarray:
        """Return the numbers: float32 [in, out]."""
        floats, numbers = np.empty(self.shape, np.float32), self.numbers.view(np.uint8)
        for rows in even_parts(len(floats), -(-floats.size // _LOOKED_UP)):
            np.take(_FLOAT8_VALUES, numbers[rows], out=floats[rows], mode="clip")
        return floats.T

    def groups(self) -> Groups:
        """Return the scale of each row."""
        return Groups(self.scales.T.astype(np.float32))


@dataclass(frozen=True)
class Blocks:
    """One of the block formats of GGUF; the rows of the matrix are the last axis (see `block_formats.py`)."""

    format: str  # one of BLOCK_FORMATS
    integers: np.ndarray  # uint8 [blocks, n, out]
    factors: np.ndarray  # float16 [blocks, factors, out]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (out, in)."""
        return self.integers.shape[-1], len(self.integers) * BLOCK_FORMATS[self.format].channels

    def __getitem__(self, rows: Any) -> "Blocks":
        return Blocks(self.format, self.integers[..., rows], self.factors[..., rows])

    def columns(self, part: slice) -> "Blocks":
        """Return some columns, whole blocks of them."""
        channels = BLOCK_FORMATS[self.format].channels
        blocks = slice(part.start // channels, part.stop // channels)
        return Blocks(self.format, self.integers[blocks], self.factors[blocks])

    def unpacked(self) -> np.ndarray:
        """Return the numbers: 8-bit integers [in, out]."""
        return BLOCK_FORMATS[self.format].numbers(self.integers).reshape(-1, self.shape[0])

    def groups(self) -> Groups:
        """Return the scales, zero points and minima of the groups."""
        return BLOCK_FORMATS[self.format].groups(self.integers, self.factors)


@dataclass(frozen=True)
class Nf4:
    """Indices into a table of 16 values, two to a byte, times a scale for every block of 64 channels."""

    packed: np.ndarray  # uint8 [out, in / 2], the first of two channels in the upper four bits
    scales: np.ndarray  # float [out, in / 64]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (out, in)."""
        return *self.packed.shape[:-1], 2 * self.packed.shape[-1]

    def __getitem__(self, rows: Any) -> "Nf4":
        return Nf4(self.packed[rows], self.scales[rows])

    def unpacked(self) -> np.ndarray:
        """Return the values of the table: float32 [in, out]."""
        pairs = np.empty((*self.packed.shape, 2), np.float32)
        for rows in even_parts(len(pairs), -(-self.packed.size // _LOOKED_UP)):
            np.take(_NF4_PAIRS, self.packed[rows], axis=0, out=pairs[rows], mode="clip")
        return pairs.reshape(self.shape).T

    def groups(self) -> Groups:
        """Return the scales of the blocks."""
        return Groups(self.scales.T.astype(np.float32))


_FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)

NF4_BLOCK = 64
# Quantiles of a normal distribution, scaled to -1 ... 1, with an exact zero.
NF4_VALUES = np.array(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ],
    np.float32,
)
_NF4_PAIRS = np.stack([np.repeat(NF4_VALUES, 16), np.tile(NF4_VALUES, 16)], axis=-1)  # of each byte

Quantized = Int8 | Int4 | Float8 | Nf4 | Blocks
Stored = BFloat16 | Float16 | Quantized
Weight = np.ndarray | Stored
Weights = Mapping[str, Any]
"""The weights of a model by the names of the published checkpoints: each matrix a `Weight`, each norm an array. The
activations have the dtype of the norms."""


class Format(NamedTuple):
    """One row of the table of formats."""

    bits: float  # of a weight; of a block format with its scales
    stored_as: type  # the class of a matrix in this format
    has_scales: bool = False  # beside the numbers; those of a block are part of its bits
    group_size: int | None = None  # default number of channels that share a scale; None: one scale per row
    scale_dtype: DTypeLike = np.float32
    can_group: bool = False  # whether a row may have more than one scale
    int8_activations: bool = False
    computes_in: DTypeLike = np.float32


FORMATS = {
    "float64": Format(64, np.ndarray, computes_in=np.float64),
    "float32": Format(32, np.ndarray),
    "bfloat16": Format(16, BFloat16),
    "float16": Format(16, Float16),
    "int8": Format(8, Int8, has_scales=True, can_group=True),
    "w8a8": Format(8, Int8, has_scales=True, int8_activations=True),
    "int4": Format(4, Int4, has_scales=True, group_size=64, can_group=True),
    "float8": Format(8, Float8, has_scales=True),
    "nf4": Format(4, Nf4, has_scales=True, group_size=NF4_BLOCK, can_group=True),
} | {name: Format(8 * block.bytes / block.channels, Blocks) for name, block in BLOCK_FORMATS.items()}
"""Every format by its name; the capital ones are the block formats of GGUF."""


def matrix_bytes(shape: tuple[int, int], format: str, group_size: int | None = None) -> int:
    """Return the bytes of a matrix of this shape, with its scales; group_size: by default that of the format."""
    rows, columns = shape
    row = FORMATS[format]
    scales = columns // (group_size or row.group_size or columns) if row.has_scales else 0
    return rows * int(columns * row.bits) // 8 + rows * scales * np.dtype(row.scale_dtype).itemsize


def dequantize(weight: Weight) -> np.ndarray:
    """Return a weight as a plain array: a stored one as float32 [out, in], a plain array unchanged."""
    if isinstance(weight, np.ndarray):
        return weight
    # The memory has the order of the stored numbers, along rows or along columns.
    floats = np.empty(weight.shape, np.float32, order="F" if isinstance(weight, Blocks) else "C")
    parts = -(-floats.size // _BLOCK)
    if isinstance(weight, Blocks):
        channels = BLOCK_FORMATS[weight.format].channels
        columns = [slice(p.start * channels, p.stop * channels) for p in even_parts(len(weight.integers), parts)]
        on_all_cores(lambda part: _dequantize_into(weight.columns(part), floats.T[part]), columns)
    else:
        on_all_cores(lambda part: _dequantize_into(weight[part], floats.T[:, part]), even_parts(len(floats), parts))
    return floats


def _dequantize_into(weight: Stored, out: np.ndarray) -> None:
    """Write a weight to `out`, float32 [in, out]."""
    scales, zeros, minima = weight.groups()
    np.copyto(out, weight.unpacked())
    groups = out.reshape(len(scales), -1, out.shape[-1])
    if not isinstance(zeros, int):
        groups -= zeros[:, None]
    elif zeros:
        groups -= zeros
    groups *= scales[:, None]
    if minima is not None:
        groups -= minima[:, None]


def embedding_rows(weight: Weight, rows: np.ndarray) -> np.ndarray:
    """Return some rows of a weight [out, in], dequantized: rows [...] -> [..., in]."""
    return dequantize(weight[rows.ravel()]).reshape(*rows.shape, -1)


def stored_bytes(weight: Weight) -> int:
    """Return the bytes of the arrays of a weight."""
    arrays = [weight] if isinstance(weight, np.ndarray) else vars(weight).values()
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def check_finite(name: str, weight: Weight) -> None:
    """Check that no number or scale of a weight is NaN or infinite. Raises GemmaError, with its name, if one is."""
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight[start : start + _ROWS]
        for array in [rows] if isinstance(rows, np.ndarray) else vars(rows).values():
            if isinstance(array, np.ndarray) and array.dtype.kind not in "iu" and not np.isfinite(array).all():
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
