"""The exercises on the files of a checkpoint."""

import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.checkpoints.safetensors_file import file_header
from support.exercise import Cases, Exercise


def _decoded(stored: np.ndarray) -> np.ndarray:
    return stored.view(bfloat16).astype(np.float32)


def _stored(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(bfloat16).view(np.uint16)


def _bfloat16_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "1, 2 and 3": (_stored(np.array([1.0, 2.0, 3.0])),),
        "negative numbers": (_stored(-np.abs(draw(6)) - 0.1),),
        "very small and very large numbers": (_stored(np.array([1e-38, 1e-20, 1e20, 3e38])),),
        "a matrix": (_stored(draw((3, 4))),),
    }


BFLOAT16 = Exercise(
    reference=_decoded,
    cases=_bfloat16_cases,
    mistakes={
        "the bits are those of another format, float16 (5 bits of exponent); put them into the upper half of 32": (
            lambda stored: stored.view(np.float16).astype(np.float32)
        ),
        "the whole numbers were converted, as if they were values; view the bits as float32": (
            lambda stored: (stored.astype(np.uint32) << 16).astype(np.float32)
        ),
        "the numbers are zero, or nearly: the bits belong into the upper half of 32. A uint16 has no room for a shift "
        "by 16; stored.astype(np.uint32) has": lambda stored: np.zeros(stored.shape, np.float32),
        "the sign is lost; keep the highest bit": lambda stored: np.abs(_decoded(stored)),
    },
)


def _file(generator: np.random.Generator, **shapes: tuple[int, ...]) -> bytes:
    """Return a safetensors file of random tensors, those whose name begins with f in float32."""
    dtypes = {name: np.dtype(np.float32 if name.startswith("f") else bfloat16) for name in shapes}
    header, _ = file_header({name: (dtypes[name], shape) for name, shape in shapes.items()}, {"format": "pt"})
    numbers = (generator.standard_normal(shape).astype(dtypes[name]) for name, shape in shapes.items())
    return header + b"".join(array.tobytes() for array in numbers)


def _tensor_cases(generator: np.random.Generator) -> Cases:
    several = _file(generator, a=(4,), b=(3,), c=(2, 3), d=(5, 2))
    return {
        "the only tensor of a file": (_file(generator, a=(6,)), "a"),
        "a later one": (several, "b"),
        "a matrix": (several, "c"),
        "a float32 among bfloat16": (_file(generator, a=(4,), f=(2, 2), c=(2, 3)), "f"),
    }


def _cut(
    place: Callable[[int, int, int], tuple[int, int | None]], order: Literal["C", "F"] | None = "C", dtype: str = ""
) -> Callable[[bytes, str], np.ndarray]:
    """Return an answer that takes the bytes at a place: (length of the header, start, end) -> (first, last).

    order: that of the reshape, None for none; dtype: the one to read, by default that of the tensor.
    """

    def answer(data: bytes, name: str) -> np.ndarray:
        size = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + size])[name]
        first, last = place(size, *entry["data_offsets"])
        numbers = np.frombuffer(data[first:last], {"BF16": "<u2", "F32": "<f4"}[dtype or entry["dtype"]])
        numbers = _decoded(numbers) if numbers.dtype == np.uint16 else numbers
        fits = numbers.size == math.prod(entry["shape"])
        return numbers.reshape(entry["shape"], order=order) if order and fits else numbers

    return answer


def _place(size: int, start: int, end: int) -> tuple[int, int]:
    return 8 + size + start, 8 + size + end


TENSOR = Exercise(
    reference=_cut(_place),
    cases=_tensor_cases,
    mistakes={
        "the offsets count from the end of the header, not from the beginning of the file": _cut(
            lambda size, start, end: (start, end)
        ),
        "the 8 bytes before the header are forgotten; the numbers begin at 8 + its length": _cut(
            lambda size, start, end: (size + start, size + end)
        ),
        "the length of the header is forgotten; the numbers begin at 8 + its length": _cut(
            lambda size, start, end: (8 + start, 8 + end)
        ),
        "these are the first numbers of the file, whatever the name; begin at its own offset": _cut(
            lambda size, start, end: (8 + size, 8 + size + end - start)
        ),
        "it reads to the end of the file; stop at the second offset": _cut(
            lambda size, start, end: (8 + size + start, None)
        ),
        "the numbers are in one row; reshape them to entry['shape']": _cut(_place, order=None),
        "the matrix is filled column by column; its rows come one after the other": _cut(_place, order="F"),
        "every tensor is read as bfloat16; look at its dtype": _cut(_place, dtype="BF16"),
    },
)


_ITEMSIZE = {"BF16": 2, "F16": 2, "F32": 4}


def _entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


def _count(header: dict[str, Any]) -> tuple[int, int]:
    entries = _entries(header)
    parameters = sum(math.prod(entry["shape"]) for entry in entries)
    return parameters, sum(_ITEMSIZE[entry["dtype"]] * math.prod(entry["shape"]) for entry in entries)


def _header(generator: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, Any]:
    data = _file(generator, **shapes)
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def _count_cases(generator: np.random.Generator) -> Cases:
    rows = int(generator.integers(3, 9))
    plain = _header(generator, norm=(rows,))
    del plain["__metadata__"]
    return {
        "one vector, without metadata": (plain,),
        "a matrix, with metadata": (_header(generator, a=(rows, 5)),),
        "several tensors": (_header(generator, a=(rows, 5), b=(2, 3), norm=(7,)),),
        "float32 among bfloat16": (_header(generator, a=(rows, 5), f=(4, 3), norm=(2,)),),
    }


COUNT = Exercise(
    reference=_count,
    cases=_count_cases,
    mistakes={
        "the sizes of the axes are added; multiply them": lambda header: (
            sum(sum(entry["shape"]) for entry in _entries(header)),
            _count(header)[1],
        ),
        "tensors are counted, not their numbers": lambda header: (len(_entries(header)), _count(header)[1]),
        "only matrices are counted; vectors are parameters, too": lambda header: _count(
            {name: entry for name, entry in header.items() if len(entry.get("shape", ())) == 2}
        ),
        "each number is taken for 2 bytes; F32 takes 4": lambda header: (_count(header)[0], 2 * _count(header)[0]),
        "each number is taken for 4 bytes; BF16 takes 2": lambda header: (_count(header)[0], 4 * _count(header)[0]),
        "the bytes come first; return (parameters, bytes)": lambda header: _count(header)[::-1],
        "the first offset of the last tensor is taken for the end; its second one is the end": lambda header: (
            _count(header)[0],
            max(entry["data_offsets"][0] for entry in _entries(header)),
        ),
    },
)
