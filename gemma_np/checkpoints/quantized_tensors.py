"""Quantized weights in checkpoint folders: the formats of the hub are read, compressed-tensors is also written.

Weights in the block formats of GGUF are stored as the bytes [out, bytes of a row] that a GGUF file has, and
quantization_config says which format each has; no other program reads such a folder.

`gemma_np.weights.formats` defines how the weights are kept in memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gemma_np.checkpoints import compressed_tensors, gptq_awq, nf4
from gemma_np.checkpoints.compressed_tensors import Scheme, scheme_of
from gemma_np.checkpoints.gguf_blocks import stored_blocks, to_bytes
from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.checkpoints.packing import take
from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import check_json, object_of, one_of
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import FORMATS, BFloat16, Blocks, Float8, Float16, Int4, Int8, Weight, is_quantized

QUANTIZED_FORMATS = {name: FORMATS[name] for name in ("int8", "w8a8", "int4", "float8")}
"""The formats to which a model can be quantized in a checkpoint folder."""


def quantized_format(weight: Weight) -> str | None:
    """Return the name of a quantized weight's format; None for floats of 16 bits and more."""
    if not is_quantized(weight):
        return None
    if isinstance(weight, Blocks):
        return weight.format
    return next(
        name
        for name, row in FORMATS.items()
        if type(weight) is row.stored_as and getattr(weight, "int8_activations", False) == row.int8_activations
    )


def to_tensors(name: str, weight: Weight) -> dict[str, np.ndarray]:
    """Return the arrays of a weight by their names in a file.

    Raises GemmaError for a format that a folder cannot hold.
    """
    if isinstance(weight, np.ndarray):
        return {name: weight}
    if isinstance(weight, BFloat16 | Float16):
        return {name: weight.numbers}
    if isinstance(weight, Blocks):
        return {name: to_bytes(weight)}
    if isinstance(weight, Int8 | Int4 | Float8):
        return compressed_tensors.to_tensors(name, weight)
    raise GemmaError(f"{name}: {quantized_format(weight)}, which no folder is written in; load it as float32")


def describe(weight: Weight) -> Scheme | str | None:
    """Return what quantization_config says of a weight: its scheme, or its block format; None for floats."""
    if isinstance(weight, Blocks):
        return weight.format
    return scheme_of(weight) if isinstance(weight, Int8 | Int4 | Float8) else None


def quantization_config(matrices: Mapping[str, Scheme | str | None]) -> dict[str, Any] | None:
    """Return the value of quantization_config for all matrices by name (see `describe`); None: all are floats.

    Raises GemmaError when some are in block formats and others in other quantized formats.
    """
    formats = {name: kind for name, kind in matrices.items() if isinstance(kind, str)}
    schemes = {name: kind for name, kind in matrices.items() if not isinstance(kind, str)}
    if not any(schemes.values()):
        return {"quant_method": "gguf_blocks", "formats": formats} if formats else None
    if formats:
        name, format = next(iter(formats.items()))
        raise GemmaError(f"{name}: {format} beside other quantized formats, expected only block formats in a folder")
    return compressed_tensors.quantization_config(schemes)


def read_quantized(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the quantized weights of a folder by name, and remove their parts from its tensors.

    config: the value of quantization_config in config.json. Raises GemmaError when it or an array is invalid or not
    supported.
    """
    method = config.get("quant_method")
    if method not in _METHODS:
        hint = " (of an earlier version: quantize the original again)" if method == "gemma_np" else ""
        raise GemmaError(f"quant_method: {quoted(method)}{hint}, expected {', '.join(_METHODS)}")
    return _METHODS[method](config, tensors)


def _read_blocks(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    check_json(config, _BLOCKS)
    return {name: _block_tensor(name, format, tensors) for name, format in config["formats"].items()}


def _block_tensor(name: str, format: str, tensors: dict[str, StoredTensor]) -> StoredTensor:
    block = BLOCK_FORMATS[format]
    stored = take(tensors, name, (np.uint8,), (None, None))
    rows, row_bytes = stored.shape
    if row_bytes % block.bytes:
        raise GemmaError(f"{name}: {row_bytes} bytes a row, expected a multiple of {block.bytes} for {format}")
    columns = row_bytes // block.bytes * block.channels
    return stored_blocks(format, (rows, columns), stored.read)


_BLOCKS = object_of({"formats": object_of({}, others=one_of(*BLOCK_FORMATS))})

_Reader = Callable[[Mapping[str, Any], dict[str, StoredTensor]], dict[str, StoredTensor]]
_METHODS: dict[str, _Reader] = {
    "compressed-tensors": compressed_tensors.read_tensors,
    "gptq": gptq_awq.read_gptq,
    "awq": gptq_awq.read_awq,
    "bitsandbytes": nf4.read_nf4,
    "gguf_blocks": _read_blocks,
}
