"""Parse a GGUF file: its metadata, and where its tensors are.

A file is "GGUF", a version, the number of tensors and of metadata entries; the entries (name, type, value); the tensors
(name, sizes from the last axis to the first, type, offset); and, aligned, the numbers. All integers are little-endian.

Source: the specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_np.errors import GemmaError, quoted
from gemma_np.input_files import require_file
from gemma_np.weights.block_formats import BLOCK_FORMATS

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_NUMBERS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9

TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
"""The names of ggml's types by their numbers."""

FLOAT_TYPES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number in the types that are not blocks."""


class GGUFTensor(NamedTuple):
    """Where a tensor is in a file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int  # from the start of the file
    bytes: int


class GGUFFile(NamedTuple):
    """The content of a GGUF file, without the numbers of its tensors."""

    metadata: dict[str, Any]
    tensors: list[GGUFTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Parse a GGUF file. Raises GemmaError for a damaged file, for types that are not supported, and for overlaps."""
    require_file(path, "a GGUF file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data))
    except GemmaError as error:
        raise GemmaError(f"{path}: {error}") from None
    except (ValueError, OSError) as error:
        raise GemmaError(f"{path}: damaged ({error}), expected a complete GGUF file") from None


class _Cursor:
    """A position in the bytes of a file; every read moves it. Raises ValueError at the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> int:
        """Move by some bytes, and return where they start."""
        start = self.position
        if size > len(self.data) - start:
            raise ValueError(f"ends at byte {len(self.data)}")
        self.position += size
        return start

    def number(self, code: str) -> Any:
        """Read one number, with a code of the `struct` module."""
        return struct.unpack_from(f"<{code}", self.data, self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        """Read a string: its length in bytes, then UTF-8."""
        size = self.number("Q")
        start = self.take(size)
        return self.data[start : start + size].decode("utf-8")

    def texts(self, count: int) -> list[str]:
        """Read strings. A vocabulary has hundreds of thousands, so this repeats `text` in one loop."""
        data, position, found = self.data, self.position, []
        if count > (len(data) - position) // 8:
            raise ValueError(f"ends at byte {len(data)}")
        for _ in range(count):
            start = position + 8
            position = start + int.from_bytes(data[position:start], "little")
            found.append(data[start:position].decode("utf-8"))
            if position > len(data):
                raise ValueError(f"ends at byte {len(data)}")
        self.position = position
        return found

    def value(self, kind: int) -> Any:
        """Read a value of the metadata."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            return self.texts(count) if kind == _STRING else self._numbers(kind, count).tolist()
        return self._numbers(kind, 1).tolist()[0]

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in _NUMBERS:
            raise ValueError(f"type {kind} in the metadata")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize)).copy()


def _parse(cursor: _Cursor) -> GGUFFile:
    if cursor.data[: cursor.take(4) + 4] != _MAGIC:
        raise ValueError("does not start with GGUF")
    version, tensors, entries = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, expected 2 or 3")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        name = cursor.text()
        if name in metadata:
            raise GemmaError(f"{quoted(name)}: twice in the metadata, expected once")
        metadata[name] = cursor.value(cursor.number("I"))
    found = [_parse_tensor(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise GemmaError(f"general.alignment: {quoted(alignment)}, expected a positive whole number")
    start = -(-cursor.position // alignment) * alignment
    placed = [tensor._replace(offset=start + tensor.offset) for tensor in found]
    _check_places(placed, len(cursor.data))
    return GGUFFile(metadata, placed)


def _parse_tensor(cursor: _Cursor) -> GGUFTensor:
    """Read the entry of a tensor; its offset is from the first number."""
    name = cursor.text()
    shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
    number, offset = cursor.number("I"), cursor.number("Q")
    unknown = "newer than this reader" if number > max(TENSOR_TYPES) else "no longer in use"
    type = TENSOR_TYPES.get(number, f"type {number} ({unknown})")
    size, channels = FLOAT_TYPES.get(type, 0), 1
    if type in BLOCK_FORMATS:
        size, channels = BLOCK_FORMATS[type].bytes, BLOCK_FORMATS[type].channels
        if len(shape) != 2:
            raise GemmaError(f"{quoted(name)}: shape {shape} in {type}, expected a matrix (other tensors are floats)")
    elif not size:
        supported = ", ".join((*FLOAT_TYPES, *BLOCK_FORMATS))
        raise GemmaError(f"{quoted(name)}: {type}, expected one of {supported} (llama-quantize converts it)")
    if not shape or not all(shape):
        raise GemmaError(f"{quoted(name)}: shape {shape}, expected positive sizes")
    if shape[-1] % channels:
        raise GemmaError(f"{quoted(name)}: {shape[-1]} channels in {type}, expected a multiple of {channels}")
    return GGUFTensor(name, shape, type, offset, math.prod(shape) // channels * size)


def _check_places(tensors: list[GGUFTensor], size: int) -> None:
    """Check that tensors end before the end of the file, and that no two of them share bytes."""
    for tensor in tensors:
        if tensor.offset + tensor.bytes > size:
            raise ValueError(f"{tensor.name}: ends at byte {tensor.offset + tensor.bytes} of {size}")
    for first, second in pairwise(sorted(tensors, key=attrgetter("offset"))):
        if first.offset + first.bytes > second.offset:
            raise GemmaError(f"{first.name} and {second.name}: overlap in the file, expected one after the other")
