"""Read folders that bitsandbytes quantized to NF4, as QLoRA does.

A matrix `up_proj.weight` is split into blocks of 64 consecutive numbers, which are stored as

    up_proj.weight                                 uint8 [out * in / 2, 1]: the first of two numbers in the upper bits
    up_proj.weight.absmax                          float32 [blocks]: the scale of each block, or
                                                   uint8 [blocks]: indices into nested_quant_map ("double quantization")
    up_proj.weight.nested_quant_map                float32 [256]
    up_proj.weight.nested_absmax                   float32 [blocks / 256]: scales of 256 blocks
    up_proj.weight.quant_map                       float32 [16]: the table of NF4
    up_proj.weight.quant_state.bitsandbytes__nf4   JSON in UTF-8, uint8

Source: Dettmers et al., arXiv 2305.14314 (NF4 and double quantization).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.checkpoints.packing import quantized_tensor, take_array, take_scales
from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import (
    BOOLEAN,
    NUMBER,
    TEXT,
    check_json,
    list_of,
    object_of,
    optional,
    parse_json,
    whole_number,
)
from gemma_np.weights.formats import NF4_BLOCK, NF4_VALUES, Nf4

_CONFIG = object_of({"load_in_4bit": optional(BOOLEAN), "bnb_4bit_quant_type": optional(TEXT)})
_STATE = object_of(
    {
        "blocksize": whole_number(1),
        "shape": list_of(whole_number(1)),
        "nested_blocksize": optional(whole_number(1)),
        "nested_offset": optional(NUMBER),
    }
)
_STATE_NAME = ".quant_state.bitsandbytes__nf4"


def read_nf4(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the quantized weights of a folder by name, and remove their parts from its tensors.

    config: the value of quantization_config. Raises GemmaError when it or an array is invalid or not supported.
    """
    check_json(config, _CONFIG)
    if not config.get("load_in_4bit"):
        raise GemmaError("load_in_4bit: false, expected true (the 8-bit weights of bitsandbytes are not supported)")
    kind = config.get("bnb_4bit_quant_type") or "fp4"
    if kind != "nf4":
        raise GemmaError(f"bnb_4bit_quant_type: {quoted(kind)}, expected 'nf4'")
    names = [name.removesuffix(_STATE_NAME) for name in tensors if name.endswith(_STATE_NAME)]
    return {name: _read_weight(name, tensors) for name in names}


def _read_weight(name: str, tensors: dict[str, StoredTensor]) -> StoredTensor:
    state_name = name + _STATE_NAME
    text = take_array(tensors, state_name, (np.uint8,), (None,)).tobytes().decode(errors="replace")
    state = parse_json(text, _STATE, state_name)
    if state["blocksize"] != NF4_BLOCK or len(state["shape"]) != 2 or state["shape"][1] % NF4_BLOCK:
        raise GemmaError(
            f"{state_name}: shape {quoted(state['shape'])} in blocks of {state['blocksize']}, "
            f"expected a matrix whose rows are whole blocks of {NF4_BLOCK}"
        )
    rows, columns = state["shape"]
    table = take_scales(tensors, f"{name}.quant_map", (len(NF4_VALUES),))
    if np.abs(table - NF4_VALUES).max() > _TABLE_ERROR:
        raise GemmaError(f"{name}.quant_map: {quoted(table.tolist())}, expected the 16 values of NF4")
    packed = take_array(tensors, name, (np.uint8,), (rows * columns // 2, 1)).reshape(rows, -1)
    blocks = rows * columns // NF4_BLOCK
    if f"{name}.nested_absmax" in tensors:
        scales = _nested_scales(name, state, tensors, blocks)
    else:
        scales = take_scales(tensors, f"{name}.absmax", (blocks,)).astype(np.float32, copy=False)
    weight = Nf4(packed, scales.reshape(rows, -1))
    return quantized_tensor((rows, columns), lambda: weight)


_TABLE_ERROR = 1e-6


def _nested_scales(name: str, state: Mapping[str, Any], tensors: dict[str, StoredTensor], blocks: int) -> np.ndarray:
    """Return scales that were quantized to 8 bits themselves, in groups and around an offset: float32 [blocks]."""
    size = state.get("nested_blocksize") or 256
    table = take_scales(tensors, f"{name}.nested_quant_map", (256,))
    of_groups = take_scales(tensors, f"{name}.nested_absmax", (-(-blocks // size),))
    numbers = table[take_array(tensors, f"{name}.absmax", (np.uint8,), (blocks,))]
    return numbers * np.repeat(of_groups, size)[:blocks] + np.float32(state.get("nested_offset") or 0)
