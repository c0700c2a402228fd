"""What the quantized formats of the hub share: parts of a weight, and small integers packed into 32-bit words.

A word holds four integers of 8 bits or eight of 4 bits, the first one in its lowest bits.
"""

from collections.abc import Callable, Sequence
from functools import cache

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.errors import GemmaError
from gemma_np.threads import on_all_cores
from gemma_np.weights.formats import INT4_ZERO, Int4, Quantized, dequantize, pack

SCALES = (np.float32, np.float16, ml_dtypes.bfloat16)
"""The dtypes that scales may have."""

_BLOCK = 2**22  # numbers converted at once by each core


def pack_words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack integers of 4 or 8 bits, the last word filled up: uint8 [..., n] -> int32 [..., n / 8] or [..., n / 4]."""
    per_word = 32 // bits
    padding = [(0, 0)] * (numbers.ndim - 1) + [(0, -numbers.shape[-1] % per_word)]
    numbers = np.pad(numbers, padding)
    if bits == 4:
        numbers = numbers[..., 0::2] | numbers[..., 1::2] << 4
    return np.ascontiguousarray(numbers).view("<i4")


def unpack_words(words: np.ndarray, bits: int) -> np.ndarray:
    """Undo `pack_words`: int32 [..., n] -> uint8 [..., 8 * n] or [..., 4 * n]."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return octets
    numbers = np.empty((*octets.shape[:-1], 2 * octets.shape[-1]), np.uint8)
    np.bitwise_and(octets, 15, out=numbers[..., 0::2])
    np.right_shift(octets, 4, out=numbers[..., 1::2])
    return numbers


def int4_by_rows(
    integers: Callable[[slice], np.ndarray], shape: tuple[int, int], scales: np.ndarray, zeros: np.ndarray
) -> Int4:
    """Build an Int4 of shape [out, in] a few rows at a time, on all cores.

    integers(rows) returns the integers of a few rows: uint8 [out, in].

    scales [out, groups]; zeros [out, groups], uint8.
    """
    packed = np.empty((shape[0], shape[1] // 2), np.uint8)

    def fill(rows: slice) -> None:
        packed[rows] = pack(integers(rows))

    on_all_cores(fill, row_slices(shape))
    return Int4(packed, scales, None if (zeros == INT4_ZERO).all() else zeros)


def int8_by_rows(integers: Callable[[slice], np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Build int8 [out, in] a few rows at a time, on all cores.

    integers(rows) returns the integers of a few rows, raised by 128: uint8 [out, in].
    """
    numbers = np.empty(shape, np.uint8)

    def fill(rows: slice) -> None:
        np.bitwise_xor(integers(rows), 128, out=numbers[rows])

    on_all_cores(fill, row_slices(shape))
    return numbers.view(np.int8)


def row_slices(shape: tuple[int, int]) -> list[slice]:
    """Return the rows of a matrix [out, in] in slices that a core converts at once."""
    size = max(8, _BLOCK // shape[1] // 8 * 8)
    return [slice(start, min(start + size, shape[0])) for start in range(0, shape[0], size)]


def plain(tensor: StoredTensor) -> np.ndarray:
    """Return a tensor of a safetensors file [...] as a view of the file."""
    assert tensor.mapped is not None
    return tensor.mapped


def take(
    tensors: dict[str, StoredTensor], name: str, dtypes: Sequence[DTypeLike], shape: tuple[int | None, ...]
) -> StoredTensor:
    """Remove the tensor of this name from the tensors and return it.

    dtypes: those that it may have; shape: its shape, where a size of None may be any. Raises GemmaError when the tensor
    is missing or another one.
    """
    sizes = f"({', '.join('any' if size is None else str(size) for size in shape)})"
    expected = f"expected {' or '.join(np.dtype(dtype).name for dtype in dtypes)} {sizes}"
    if name not in tensors:
        raise GemmaError(f"{name}: missing, {expected}")
    tensor = tensors.pop(name)
    array = plain(tensor)
    fits = len(shape) == array.ndim and all(size in (None, n) for size, n in zip(shape, array.shape, strict=True))
    if array.dtype not in dtypes or not fits:
        raise GemmaError(f"{name}: {array.dtype} {array.shape}, {expected}")
    return tensor


def take_array(
    tensors: dict[str, StoredTensor], name: str, dtypes: Sequence[DTypeLike], shape: tuple[int | None, ...]
) -> np.ndarray:
    """Remove a tensor as `take` does, and return it [...] as a view of its file."""
    return plain(take(tensors, name, dtypes, shape))


def take_scales(tensors: dict[str, StoredTensor], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Remove scales [...] from the tensors and return them; bfloat16 becomes float32.

    Raises GemmaError when they are missing, misshapen or not finite.
    """
    scales = take_array(tensors, name, SCALES, shape)
    if scales.dtype == ml_dtypes.bfloat16:
        scales = scales.astype(np.float32)
    if not np.isfinite(scales).all():
        raise GemmaError(f"{name}: has NaN or infinity, expected finite numbers")
    return scales


def count_groups(name: str, columns: int, group_size: int | None) -> int:
    """Return the number of groups in a row; None: the whole row. Raises GemmaError when the size does not divide it."""
    if group_size and columns % group_size:
        raise GemmaError(f"{name}: {columns} channels, expected a multiple of group_size={group_size}")
    return columns // group_size if group_size else 1


def check_consecutive(name: str, group_index: np.ndarray, groups: int) -> None:
    """Check that each group is made of consecutive channels: group_index [in].

    Raises GemmaError for groups in the order of the activations. -1 everywhere means that no order was chosen.
    """
    size = len(group_index) // groups
    if (group_index != -1).any() and (group_index != np.arange(len(group_index)) // size).any():
        raise GemmaError(
            f"{name}: groups in the order of activations (desc_act, actorder), expected groups of consecutive channels"
        )


def quantized_tensor(shape: tuple[int, int], convert: Callable[[], Quantized]) -> StoredTensor:
    """Return the tensor of a weight [out, in] that `convert` builds when it is first needed."""
    weight = cache(convert)
    return StoredTensor(shape, lambda start, stop: dequantize(weight()[start:stop]), quantized=weight)
