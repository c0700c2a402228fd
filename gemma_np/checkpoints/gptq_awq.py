"""Read folders that GPTQ and AWQ libraries wrote (AutoGPTQ, GPTQModel, AutoAWQ).

Both store a matrix `up_proj.weight` with its axes swapped, in words of 32 bits:

    up_proj.qweight  GPTQ: int32 [in / 8, out] or, of 8 bits, [in / 4, out]; AWQ: int32 [in, out / 8]
    up_proj.qzeros   int32 [groups, out / 8] or [groups, out / 4]
    up_proj.scales   float16 [groups, out]
    up_proj.g_idx    GPTQ: int32 [in], the group of each channel
    up_proj.bias     zeros [out], which some versions add

A weight is scale * (integer - zero). Two oddities: GPTQ's first format, which most folders have, stores zero - 1; and
the eight numbers in a word of AWQ are those of the rows 0, 2, 4, 6, 1, 3, 5, 7.

Sources: https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/casper-hansen/AutoAWQ
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.checkpoints.packing import (
    check_consecutive,
    count_groups,
    int4_by_rows,
    int8_by_rows,
    quantized_tensor,
    take,
    take_array,
    take_scales,
    unpack_words,
)
from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import TEXT, check_json, object_of, optional, whole_number
from gemma_np.weights.formats import Int4, Int8, Quantized

_GPTQ = object_of(
    {
        "bits": whole_number(1),
        "group_size": whole_number(-1),
        "checkpoint_format": optional(TEXT),
        "dynamic": optional(object_of({})),
    }
)
_AWQ = object_of({"bits": whole_number(1), "group_size": whole_number(-1), "version": optional(TEXT)})

_GPTQ_ZERO = {"gptq": 1, "gptq_v2": 0}
"""What a checkpoint_format subtracts from the zero points that it stores."""

_AWQ_POSITIONS = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where the number of each of eight rows is in a word."""


def read_gptq(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the quantized weights of a GPTQ folder by name, and remove their parts from its tensors.

    config: the value of quantization_config. Raises GemmaError when it or an array is invalid or not supported.
    """
    check_json(config, _GPTQ)
    bits, format = config["bits"], config.get("checkpoint_format") or "gptq"
    if bits not in (4, 8):
        raise GemmaError(f"bits: {bits}, expected 4 or 8")
    if format not in _GPTQ_ZERO:
        raise GemmaError(f"checkpoint_format: {quoted(format)}, expected {' or '.join(map(repr, _GPTQ_ZERO))}")
    if config.get("dynamic"):
        raise GemmaError(f"dynamic: {quoted(config['dynamic'])}, expected the same bits for all modules")
    group_size = _group_size(config)
    return {
        f"{module}.weight": _read_gptq_weight(module, tensors, bits, group_size, _GPTQ_ZERO[format])
        for module in _modules(tensors)
    }


def read_awq(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the quantized weights of an AWQ folder by name, and remove their parts from its tensors.

    config: the value of quantization_config. Raises GemmaError when it or an array is invalid or not supported.
    """
    check_json(config, _AWQ)
    version = config.get("version") or "gemm"
    if config["bits"] != 4:
        raise GemmaError(f"bits: {config['bits']}, expected 4")
    if version.lower() != "gemm":
        raise GemmaError(f"version: {quoted(version)}, expected 'gemm'")
    group_size = _group_size(config)
    return {f"{module}.weight": _read_awq_weight(module, tensors, group_size) for module in _modules(tensors)}


def _group_size(config: Mapping[str, Any]) -> int | None:
    size: int = config["group_size"]
    if size == 0:
        raise GemmaError("group_size: 0, expected a positive number, or -1 for whole rows")
    return None if size == -1 else size


def _modules(tensors: Mapping[str, StoredTensor]) -> list[str]:
    return [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]


def _read_gptq_weight(
    module: str, tensors: dict[str, StoredTensor], bits: int, group_size: int | None, subtracted: int
) -> StoredTensor:
    words = take(tensors, f"{module}.qweight", (np.int32,), (None, None))
    rows, columns = words.shape[1], words.shape[0] * 32 // bits
    groups = count_groups(f"{module}.weight", columns, group_size)
    scales = np.ascontiguousarray(take_scales(tensors, f"{module}.scales", (groups, rows)).T)
    stored = take_array(tensors, f"{module}.qzeros", (np.int32,), (groups, -(-rows * bits // 32)))
    zeros = (unpack_words(stored, bits)[:, :rows].T + np.uint8(subtracted)) & np.uint8(2**bits - 1)
    if f"{module}.bias" in tensors and np.any(tensors.pop(f"{module}.bias").read_all()):
        raise GemmaError(f"{module}.bias: not zero, expected zeros: Gemma has no biases")
    if f"{module}.g_idx" in tensors:
        index = take_array(tensors, f"{module}.g_idx", (np.int32, np.int64), (columns,))
        check_consecutive(f"{module}.g_idx", index, groups)

    if bits == 8 and (zeros != 128).any():
        raise GemmaError(f"{module}.qzeros: zero points other than 128, expected symmetric weights for 8 bits")

    def convert() -> Quantized:
        numbers = words.read_all()

        def integers(part: slice) -> np.ndarray:
            return unpack_words(numbers[:, part].T, bits)

        if bits == 4:
            return int4_by_rows(integers, (rows, columns), scales, zeros)
        return Int8(int8_by_rows(integers, (rows, columns)), scales)

    return quantized_tensor((rows, columns), convert)


def _read_awq_weight(module: str, tensors: dict[str, StoredTensor], group_size: int | None) -> StoredTensor:
    words = take(tensors, f"{module}.qweight", (np.int32,), (None, None))
    columns, rows = words.shape[0], words.shape[1] * 8
    groups = count_groups(f"{module}.weight", columns, group_size)
    scales = np.ascontiguousarray(take_scales(tensors, f"{module}.scales", (groups, rows)).T)
    zeros = _unpack_awq(take_array(tensors, f"{module}.qzeros", (np.int32,), (groups, rows // 8)))
    if columns % 2:
        raise GemmaError(f"{module}.qweight: {columns} channels, expected an even number")

    def convert() -> Int4:
        numbers = words.read_all()

        def integers(part: slice) -> np.ndarray:  # row_slices are multiples of eight rows
            return _unpack_awq(numbers[:, part.start // 8 : part.stop // 8])

        return int4_by_rows(integers, (rows, columns), scales, zeros)

    return quantized_tensor((rows, columns), convert)


def _unpack_awq(words: np.ndarray) -> np.ndarray:
    """Return numbers of 4 bits by rows: int32 [n, out / 8] -> uint8 [out, n]."""
    numbers = unpack_words(words, 4).reshape(len(words), -1, 8)
    return np.ascontiguousarray(numbers[..., _AWQ_POSITIONS].reshape(len(words), -1).T)
