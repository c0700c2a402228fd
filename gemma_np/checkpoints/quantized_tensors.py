"""Quantized weights in safetensors files: the numbers under the weight's name, their scales and zero points beside it.

    model.layers.0.mlp.up_proj.weight          I8 [out, in], U8 [out, in / 2] or F8_E4M3 [out, in]
    model.layers.0.mlp.up_proj.weight.scales   F32 or F16 [out, groups]
    model.layers.0.mlp.up_proj.weight.zeros    U8 [out, groups], for int4 with zero points

The file's metadata says under `storage` how each of them is stored: {"model.layers.0.mlp.up_proj.weight": "int4"}.
What the arrays of each kind mean is in `gemma_np.weights.formats`.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.weights.formats import W8A8, BFloat16, Float8, Int4, Int8, Stored, Weight

KINDS: dict[str, type[Stored]] = {"int8": Int8, "w8a8": W8A8, "int4": Int4, "float8": Float8}

_DTYPES = {
    "integers": (np.int8,),
    "packed": (np.uint8,),
    "numbers": (ml_dtypes.float8_e4m3fn,),
    "scales": (np.float32, np.float16),
    "zeros": (np.uint8,),
}


def to_tensors(name: str, weight: Weight) -> dict[str, np.ndarray]:
    """The arrays that a weight is stored as, by the names they have in a file."""
    if isinstance(weight, np.ndarray):
        return {name: weight}
    if isinstance(weight, BFloat16):
        return {name: weight.numbers}
    (_, first), *others = vars(weight).items()
    arrays = {name: first} | {f"{name}.{field}": array for field, array in others}
    return {part: array for part, array in arrays.items() if array is not None}


def kind_of(weight: Weight) -> str | None:
    """The name of a quantized weight's kind; None for floats of 16 bits and more."""
    return next((name for name, kind in KINDS.items() if type(weight) is kind), None)


def read_kinds(metadata: Mapping[str, str]) -> dict[str, str]:
    """Of each quantized weight of a file, how it is stored. Raises GemmaError for a kind that is none of `KINDS`."""
    try:
        kinds: dict[str, str] = json.loads(metadata.get("storage", "{}"))
        unknown = {kind for kind in kinds.values() if kind not in KINDS}
    except (ValueError, AttributeError, TypeError):
        raise GemmaError(f"storage: {metadata['storage']!r}, expected a JSON object of names and kinds") from None
    if unknown:
        raise GemmaError(f"storage: {', '.join(map(repr, unknown))}, expected some of {', '.join(KINDS)}")
    return kinds


def from_tensors(name: str, kind: str, tensors: Mapping[str, Any]) -> Stored:
    """The weight of that name and kind, from a file's arrays by name.

    Raises GemmaError when an array is missing, has another dtype or shape, or when a scale is not finite.
    """
    arrays = {}
    for number, field in enumerate(fields(KINDS[kind])):
        full = f"{name}.{field.name}" if number else name
        if full not in tensors:
            if field.name != "zeros":
                raise GemmaError(f"{full}: missing, expected since {name} is stored as {kind}")
            continue
        array = arrays[field.name] = tensors[full]
        if array.dtype not in _DTYPES[field.name] or array.ndim != 2:
            expected = " or ".join(np.dtype(dtype).name for dtype in _DTYPES[field.name])
            raise GemmaError(f"{full}: {array.dtype} {array.shape}, expected {expected} with two axes")
    weight: Stored = KINDS[kind](**arrays)
    rows, columns = weight.shape
    scales = arrays["scales"]
    if kind in ("w8a8", "float8") and scales.shape != (rows, 1):
        raise GemmaError(f"{name}.scales: shape {scales.shape}, expected ({rows}, 1) as {name} is stored as {kind}")
    if len(scales) != rows or columns % scales.shape[1]:
        raise GemmaError(f"{name}.scales: shape {scales.shape}, expected ({rows}, a divisor of {columns})")
    if not np.isfinite(scales).all():
        raise GemmaError(f"{name}.scales: has NaN or infinity, expected finite numbers")
    if "zeros" in arrays and arrays["zeros"].shape != scales.shape:
        raise GemmaError(f"{name}.zeros: shape {arrays['zeros'].shape}, expected {scales.shape} as of its scales")
    return weight
