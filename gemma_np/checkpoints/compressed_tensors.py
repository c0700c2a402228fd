"""Read and write quantized weights in the format of the compressed-tensors library, which transformers and vLLM load.

A matrix `up_proj.weight` is stored as

    up_proj.weight             int8 or float8 [out, in]: formats int-quantized and float-quantized
    up_proj.weight_packed      int32 [out, in / 8] or [out, in / 4], in place of it: format pack-quantized; integers of
                               4 or 8 bits, raised by 8 or 128 so that none is negative
    up_proj.weight_shape       int64 [2], beside it: out and in
    up_proj.weight_scale       [out, groups]
    up_proj.weight_zero_point  int32 [out / 8, groups]: zero points, packed along the rows

and `quantization_config` in config.json says which modules have which scheme.

Source: https://github.com/vllm-project/compressed-tensors
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.checkpoints.packing import (
    check_consecutive,
    count_groups,
    int4_by_rows,
    int8_by_rows,
    pack_words,
    quantized_tensor,
    take,
    take_array,
    take_scales,
    unpack_words,
)
from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import (
    BOOLEAN,
    TEXT,
    check_json,
    list_of,
    object_of,
    one_of,
    optional,
    whole_number,
)
from gemma_np.weights.formats import INT4_ZERO, Float8, Int4, Int8, Quantized, unpack

_STRATEGIES = ("tensor", "channel", "group")
_WEIGHTS = {
    "num_bits": optional(whole_number(1)),
    "type": optional(one_of("int", "float")),
    "symmetric": optional(BOOLEAN),
    "strategy": one_of(*_STRATEGIES),
    "group_size": optional(whole_number(-1)),
}
_GROUP = object_of(
    {
        "targets": list_of(TEXT),
        "weights": object_of(_WEIGHTS),
        "input_activations": optional(object_of({})),
        "output_activations": optional(object_of({})),
    }
)
_CONFIG = object_of(
    {
        "config_groups": object_of({}, others=_GROUP),
        "kv_cache_scheme": optional(object_of({})),
        "transform_config": optional(object_of({})),
        "sparsity_config": optional(object_of({"format": optional(TEXT)})),
    }
)

_ROUNDED_ACTIVATIONS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
"""Activations as w8a8 rounds them: a scale for each vector, from its largest number."""


class Scheme(NamedTuple):
    """How the library describes a quantized matrix."""

    num_bits: int
    type: str  # "int" or "float"
    symmetric: bool
    strategy: str  # how many weights share a scale: "tensor", "channel" (a row) or "group"
    group_size: int | None
    int8_activations: bool = False

    @property
    def format(self) -> str:
        """Return the library's name for how the numbers are stored."""
        if self.type == "float":
            return "float-quantized"
        return "int-quantized" if self.int8_activations else "pack-quantized"


def scheme_of(weight: Int8 | Int4 | Float8) -> Scheme:
    """Return the scheme of a weight."""
    columns, groups = weight.shape[1], weight.scales.shape[1]
    strategy, group_size = ("group", columns // groups) if groups > 1 else ("channel", None)
    if isinstance(weight, Float8):
        return Scheme(8, "float", True, strategy, group_size)
    if isinstance(weight, Int8):
        return Scheme(8, "int", True, strategy, group_size, weight.int8_activations)
    return Scheme(4, "int", weight.zeros is None, strategy, group_size)


def to_tensors(name: str, weight: Int8 | Int4 | Float8) -> dict[str, np.ndarray]:
    """Return the arrays of a weight by their names in a file."""
    parts: dict[str, np.ndarray | None] = {"weight_scale": weight.scales}
    if isinstance(weight, Float8):
        parts["weight"] = weight.numbers
    elif isinstance(weight, Int8) and weight.int8_activations:
        parts["weight"] = weight.integers
    else:
        parts["weight_shape"] = np.array(weight.shape)
        if isinstance(weight, Int8):
            parts["weight_packed"] = pack_words(weight.integers.view(np.uint8) ^ 128, 8)
        else:
            parts["weight_packed"] = pack_words(unpack(weight.packed), 4)
            if weight.zeros is not None:
                parts["weight_zero_point"] = pack_words(weight.zeros.T, 4).T
    module = name.removesuffix("weight")
    return {module + part: array for part, array in parts.items() if array is not None}


def quantization_config(schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
    """Return the value of quantization_config for the schemes of all matrices by name; None: not quantized.

    The head is not quantized by itself, since it is the embedding.
    """
    modules: dict[Scheme, list[str]] = {}
    plain = []
    for name, scheme in schemes.items():
        module = name.removesuffix(".weight")
        if scheme:
            modules.setdefault(scheme, []).append(module)
        elif not _is_embedding(module):
            plain.append(module)
    linear = [scheme for scheme, names in modules.items() if not all(map(_is_embedding, names))]
    groups = {}
    for number, scheme in enumerate([*linear, *(scheme for scheme in modules if scheme not in linear)]):
        targets = ["Embedding"] if any(map(_is_embedding, modules[scheme])) else []
        if len(linear) == 1 and scheme in linear:
            targets.append("Linear")
        else:
            targets += [module for module in modules[scheme] if not _is_embedding(module)]
        groups[f"group_{number}"] = _group_to_json(scheme, targets)
    formats = {scheme.format for scheme in modules}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", *plain],
    }


def _group_to_json(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights = {name: getattr(scheme, name) for name in _WEIGHTS} | {"dynamic": False}
    activations = _ROUNDED_ACTIVATIONS if scheme.int8_activations else None
    return {"targets": targets, "weights": weights, "input_activations": activations, "format": scheme.format}


def _is_embedding(module: str) -> bool:
    return module.endswith("embed_tokens")


def read_tensors(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the quantized weights of a folder by name, and remove their parts from its tensors.

    config: the value of quantization_config. Raises GemmaError when it or an array is invalid or not supported.
    """
    groups = _read_config(config)
    suffixes = (".weight_scale", ".weight_packed")
    modules = dict.fromkeys(name.rpartition(".")[0] for name in tensors if name.endswith(suffixes))
    return {f"{module}.weight": _read_weight(module, _find_scheme(module, groups), tensors) for module in modules}


def _read_config(config: Mapping[str, Any]) -> list[tuple[list[str], Scheme]]:
    """Return the targets and the scheme of each group of a quantization_config."""
    check_json(config, _CONFIG)
    for name in ("kv_cache_scheme", "transform_config"):
        if config.get(name):
            raise GemmaError(f"{name}: {quoted(config[name])}, expected null")
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise GemmaError(f"sparsity_config.format: {quoted(sparsity)}, expected 'dense'")
    return [
        (group["targets"], _read_scheme(f"config_groups.{name}", group))
        for name, group in config["config_groups"].items()
    ]


def _read_scheme(place: str, group: Mapping[str, Any]) -> Scheme:
    weights, activations = group["weights"], group.get("input_activations")
    if group.get("output_activations"):
        raise GemmaError(f"{place}.output_activations: {quoted(group['output_activations'])}, expected null")
    size = weights.get("group_size")
    scheme = Scheme(
        num_bits=_default(weights, "num_bits", 8),
        type=_default(weights, "type", "int"),
        symmetric=_default(weights, "symmetric", True),
        strategy=weights["strategy"],
        group_size=size if weights["strategy"] == "group" else None,
        int8_activations=activations is not None and weights.get("type") != "float",
    )
    place = f"{place}.weights"
    bits = (8,) if scheme.type == "float" else (4, 8)
    if scheme.num_bits not in bits:
        raise GemmaError(
            f"{place}.num_bits: {scheme.num_bits}, expected {' or '.join(map(str, bits))} for type {scheme.type}"
        )
    if not scheme.symmetric and scheme.num_bits == 8:
        raise GemmaError(f"{place}.symmetric: false, expected true for 8 bits")
    if scheme.strategy == "group" and (size or 0) < 1:
        raise GemmaError(f"{place}.group_size: {quoted(size)}, expected a positive number for strategy 'group'")
    if scheme.strategy == "group" and (scheme.type == "float" or scheme.int8_activations):
        raise GemmaError(
            f"{place}.strategy: 'group', expected 'channel' or 'tensor' for float8 and for int8 activations"
        )
    if scheme.int8_activations:
        _check_activations(place.replace(".weights", ".input_activations"), activations or {}, scheme)
    return scheme


def _check_activations(place: str, activations: Mapping[str, Any], scheme: Scheme) -> None:
    """Check that activations are rounded as w8a8 rounds them. Those of float8 are not rounded here, so any will do."""
    found = {name: _default(activations, name, default) for name, default in _DEFAULT_ACTIVATIONS.items()}
    if found != _ROUNDED_ACTIVATIONS or scheme.num_bits != 8:
        wrong = {name: value for name, value in found.items() if value != _ROUNDED_ACTIVATIONS[name]}
        raise GemmaError(
            f"{place}: {quoted(wrong)} for {scheme.num_bits} bits, "
            "expected symmetric, dynamic int8 per token for 8 bits, or null"
        )


_DEFAULT_ACTIVATIONS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


def _default(values: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a value, or the library's default where it is missing or null."""
    return default if values.get(name) is None else values[name]


def _find_scheme(module: str, groups: list[tuple[list[str], Scheme]]) -> Scheme:
    """Return the scheme of the first group that names a module, its class, or a pattern that it fits."""
    for targets, scheme in groups:
        if any(_matches(target, module) for target in targets):
            return scheme
    raise GemmaError(f"{module}: quantized, expected a group of config_groups that targets it")


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        try:
            return bool(re.match(target[3:], module))
        except re.error as error:
            raise GemmaError(f"targets: {quoted(target)}: {error}, expected a regular expression") from None
    return target in (module, "Embedding" if _is_embedding(module) else "Linear")


def _read_weight(module: str, scheme: Scheme, tensors: dict[str, StoredTensor]) -> StoredTensor:
    if scheme.format == "pack-quantized" and f"{module}.weight" not in tensors:
        return _read_packed(module, scheme, tensors)
    if scheme.num_bits == 4:
        take(tensors, f"{module}.weight_packed", (np.int32,), (None, None))
    dtype = ml_dtypes.float8_e4m3fn if scheme.type == "float" else np.int8
    numbers = take_array(tensors, f"{module}.weight", (dtype,), (None, None))
    rows, columns = numbers.shape
    scales = _take_scales(module, scheme, tensors, (rows, columns))
    weight: Quantized = Float8(numbers, scales)
    if scheme.type == "int":
        weight = Int8(numbers, scales, scheme.int8_activations)
    else:
        for part in ("input_scale", "input_zero_point"):  # of activations, which stay floats here
            tensors.pop(f"{module}.{part}", None)
    return quantized_tensor((rows, columns), lambda: weight)


def _read_packed(module: str, scheme: Scheme, tensors: dict[str, StoredTensor]) -> StoredTensor:
    bits = scheme.num_bits
    rows, columns = map(int, take_array(tensors, f"{module}.weight_shape", (np.int64, np.int32), (2,)))
    if rows < 1 or columns < 1:
        raise GemmaError(f"{module}.weight_shape: [{rows}, {columns}], expected two positive numbers")
    words = take(tensors, f"{module}.weight_packed", (np.int32,), (rows, -(-columns * bits // 32)))
    scales = _take_scales(module, scheme, tensors, (rows, columns))
    shape = (rows, columns)

    def integers(part: slice) -> np.ndarray:
        return unpack_words(words.read(part.start, part.stop), bits)[:, :columns]

    if bits == 8:
        return quantized_tensor(shape, lambda: Int8(int8_by_rows(integers, shape), scales))
    if columns % 2:
        raise GemmaError(f"{module}.weight_shape: {columns} channels, expected an even number")
    zeros = np.full(scales.shape, INT4_ZERO, np.uint8)
    if not scheme.symmetric:
        packed = take_array(tensors, f"{module}.weight_zero_point", (np.int32,), (-(-rows // 8), scales.shape[1]))
        zeros = np.ascontiguousarray(unpack_words(packed.T, 4)[:, :rows].T)
    return quantized_tensor(shape, lambda: int4_by_rows(integers, shape, scales, zeros))


def _take_scales(module: str, scheme: Scheme, tensors: dict[str, StoredTensor], shape: tuple[int, int]) -> np.ndarray:
    """Return the scales of a weight of this shape as [out, groups]."""
    rows, columns = shape
    groups = count_groups(f"{module}.weight", columns, scheme.group_size)
    name = f"{module}.weight_scale"
    if scheme.strategy == "tensor":
        scales = np.full((rows, 1), take_scales(tensors, name, (1,))[0])
    else:
        scales = take_scales(tensors, name, (rows, groups))
    if f"{module}.weight_g_idx" in tensors:
        index = take_array(tensors, f"{module}.weight_g_idx", (np.int32, np.int64), (columns,))
        check_consecutive(f"{module}.weight_g_idx", index, groups)
    zero_point = f"{module}.weight_zero_point"
    if scheme.symmetric and zero_point in tensors and np.any(tensors.pop(zero_point).read_all().astype(np.float32)):
        raise GemmaError(f"{zero_point}: not zero, expected zeros for a symmetric scheme")
    return scales
