"""Quantized weights in safetensors files: the numbers under the name of the weight, scales and zero points beside it.

    model.layers.0.mlp.up_proj.weight          I8 [out, in], U8 [out, in / 2] or F8_E4M3 [out, in]
    model.layers.0.mlp.up_proj.weight.scales   F32 or F16 [out, groups]
    model.layers.0.mlp.up_proj.weight.zeros    U8 [out, groups], for int4 with zero points

A weight in a block format of GGUF is the bytes that a GGUF file has: U8 [out, bytes of a row].

The metadata key `storage` has the format of each: {"model.layers.0.mlp.up_proj.weight": "int4"}.
`gemma_np.weights.formats` defines the formats.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_np.checkpoints.gguf_blocks import stored_blocks, to_bytes
from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.errors import GemmaError
from gemma_np.json_input import object_of, one_of, parse_json
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import (
    FORMATS,
    BFloat16,
    Blocks,
    Float8,
    Int4,
    Int8,
    Quantized,
    Weight,
    is_quantized,
)

QUANTIZED_FORMATS = {name: row for name, row in FORMATS.items() if row.arrays}
"""The quantized formats of a safetensors checkpoint, without the block formats of GGUF."""


def to_tensors(name: str, weight: Weight) -> dict[str, np.ndarray]:
    """Return the arrays of a weight by their names in a file: the numbers [out, in], scales and zero points."""
    if isinstance(weight, np.ndarray):
        return {name: weight}
    if isinstance(weight, BFloat16):
        return {name: weight.numbers}
    if isinstance(weight, Blocks):
        return {name: to_bytes(weight)}
    numbers, *others = FORMATS[quantized_format(weight) or ""].arrays
    arrays = {name: getattr(weight, numbers)} | {f"{name}.{field}": getattr(weight, field) for field in others}
    return {part: array for part, array in arrays.items() if array is not None}


def quantized_format(weight: Weight) -> str | None:
    """Return the name of a quantized weight's format; None for floats of 16 bits and more."""
    if not is_quantized(weight):
        return None
    if isinstance(weight, Blocks):
        return weight.format
    return next(
        name
        for name, row in QUANTIZED_FORMATS.items()
        if type(weight) is row.stored_as and getattr(weight, "int8_activations", False) == row.int8_activations
    )


def read_formats(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the format of each quantized weight of a file. Raises GemmaError for an unknown format."""
    formats = object_of({}, others=one_of(*QUANTIZED_FORMATS, *BLOCK_FORMATS))
    names: dict[str, str] = parse_json(metadata.get("storage", "{}"), formats, "storage")
    return names


def from_tensors(name: str, format: str, tensors: Mapping[str, Any]) -> Quantized:
    """Return the weight of this name and format from the arrays of a file.

    Raises GemmaError when an array is missing or has the wrong dtype or shape, and when a scale is not finite.
    """
    row = QUANTIZED_FORMATS[format]
    arrays: dict[str, Any] = {}
    for number, (field, dtypes) in enumerate(row.arrays.items()):
        full = f"{name}.{field}" if number else name
        if full not in tensors:
            if field != "zeros":
                raise GemmaError(f"{full}: missing, expected since {name} is stored as {format}")
            continue
        array = arrays[field] = tensors[full]
        if array.dtype not in dtypes or array.ndim != 2:
            expected = " or ".join(np.dtype(dtype).name for dtype in dtypes)
            raise GemmaError(f"{full}: {array.dtype} {array.shape}, expected {expected} with two axes")
    weight: Int8 | Int4 | Float8 = row.stored_as(
        **arrays, **({"int8_activations": True} if row.int8_activations else {})
    )
    rows, columns = weight.shape
    scales = weight.scales
    if not row.can_group and scales.shape != (rows, 1):
        raise GemmaError(f"{name}.scales: shape {scales.shape}, expected ({rows}, 1) as {name} is stored as {format}")
    if len(scales) != rows or columns % scales.shape[1]:
        raise GemmaError(f"{name}.scales: shape {scales.shape}, expected ({rows}, a divisor of {columns})")
    if not np.isfinite(scales).all():
        raise GemmaError(f"{name}.scales: has NaN or infinity, expected finite numbers")
    if "zeros" in arrays and arrays["zeros"].shape != scales.shape:
        raise GemmaError(f"{name}.zeros: shape {arrays['zeros'].shape}, expected {scales.shape}, that of its scales")
    return weight


def block_tensor(name: str, format: str, tensor: StoredTensor) -> StoredTensor:
    """Return a weight [out, in] in a block format, to be read when it is needed, from the tensor of its bytes [out, n].

    Raises GemmaError when the tensor has the wrong dtype or shape.
    """
    block, dtype = BLOCK_FORMATS[format], None if tensor.mapped is None else tensor.mapped.dtype
    if dtype != np.uint8 or len(tensor.shape) != 2 or tensor.shape[1] % block.bytes:
        expected = f"uint8 (rows, a multiple of {block.bytes}) as it is stored as {format}"
        raise GemmaError(f"{name}: {dtype} {tensor.shape}, expected {expected}")
    return stored_blocks(format, (tensor.shape[0], tensor.shape[1] // block.bytes * block.channels), tensor.read)
