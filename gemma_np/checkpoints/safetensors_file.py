"""Read and write safetensors files: the library checks the header, the numbers are memory-mapped."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.loading import StoredTensor, row_reader
from gemma_np.errors import GemmaError
from gemma_np.input_files import require_file
from gemma_np.json_input import TEXT, list_of, object_of, optional, parse_json, whole_number

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
IDS = {"U16": np.uint16, "U32": np.uint32}
QUANTIZED = {
    "I8": np.int8,
    "U8": np.uint8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "I32": np.int32,
    "I64": np.int64,
}
"""What the parts of quantized weights are stored in, besides floats."""


_ENTRY = object_of({"dtype": TEXT, "shape": list_of(whole_number(0)), "data_offsets": list_of(whole_number(0))})
_HEADER = object_of({"__metadata__": optional(object_of({}, others=TEXT))}, others=_ENTRY)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file. Raises GemmaError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    require_file(path, "a safetensors file")
    try:
        with safe_open(path, "numpy") as file:  # opening checks the header
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise GemmaError(f"{path}: damaged ({error}), expected a complete safetensors file") from None


def stored_tensors(path: Path, dtypes: Mapping[str, DTypeLike] = FLOATS) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name. Raises GemmaError when it is damaged or has other dtypes."""
    read_metadata(path)
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(header_size).decode(), _HEADER, path)  # the library has checked that it is UTF-8
    data = np.memmap(path, np.uint8, "r", offset=8 + header_size) if header_size + 8 < path.stat().st_size else None
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in dtypes:
            raise GemmaError(f"{path}: {name}: dtype {entry['dtype']}, expected one of {', '.join(dtypes)}")
        start, end = entry["data_offsets"]
        if data is None or start == end:
            raise GemmaError(f"{path}: {name}: shape {tuple(entry['shape'])}, expected a non-empty tensor")
        mapped = data[start:end].view(dtypes[entry["dtype"]]).reshape(entry["shape"])
        reader = row_reader(path, 8 + header_size + start, mapped.dtype, mapped.shape[1:])
        tensors[name] = StoredTensor(mapped.shape, reader, mapped)
    return tensors


def file_header(
    tensors: Mapping[str, tuple[DTypeLike, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the header of a safetensors file for tensors of these dtypes and shapes, and the offset of each tensor
    after the header. With it a file can be written piece by piece."""
    names = {np.dtype(dtype): name for name, dtype in (FLOATS | QUANTIZED | IDS).items()}
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets, end = {}, 0
    for key, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        entries[key] = {"dtype": names[np.dtype(dtype)], "shape": shape, "data_offsets": [start, end]}
        offsets[key] = start
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # aligns the numbers to 8 bytes
    return len(text).to_bytes(8, "little") + text, offsets


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays [...] to a safetensors file. The library's own writer would copy all of them first.

    Raises GemmaError when the file cannot be written.
    """
    header, _ = file_header({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, metadata)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(header)
            for tensor in tensors.values():
                file.write(np.ascontiguousarray(tensor).view(np.uint8).data)

    atomic_write(path, write)
