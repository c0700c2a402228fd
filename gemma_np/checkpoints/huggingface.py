"""Read a Hugging Face folder: config.json, tokenizer.model, and weights in one safetensors file or in shards.

The safetensors library checks the header of each file (sizes, overlaps, end of file). The numbers are memory-mapped:
what the model does not use takes no memory.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.config_json import read_config, read_quantization
from gemma_np.checkpoints.loading import StoredTensor, load_weights
from gemma_np.checkpoints.packing import plain
from gemma_np.checkpoints.quantized_tensors import read_quantized
from gemma_np.checkpoints.safetensors_file import FLOATS, QUANTIZED, stored_tensors
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.input_files import read_bytes
from gemma_np.json_input import TEXT, object_of, read_json
from gemma_np.weights.formats import Weight

_ROWS = 4096  # compared at once

INDEX = "model.safetensors.index.json"

_INDEX = object_of({"weight_map": object_of({}, others=TEXT)})

# A multimodal Gemma 3 has the text model under one of these prefixes, beside the vision model.
_TEXT_PREFIXES = ("language_model.model.", "model.language_model.")
_IMAGE_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def load_folder(folder: Path, dtype: str = "auto") -> tuple[GemmaConfig, dict[str, Weight], bytes | None]:
    """Return config, weights (see `load_weights`) and tokenizer.model (None if there is none) of a checkpoint folder.

    Raises GemmaError when a part of it is missing, damaged or invalid.
    """
    config = read_config(folder / "config.json")
    quantization = read_quantization(folder / "config.json")
    tensors = _read_files(folder)
    try:
        stored = _by_text_name(_join_quantized(tensors, quantization))
        _remove_tied_head(stored)
        weights = load_weights(stored, config, dtype)
    except GemmaError as error:
        raise GemmaError(f"{folder}: {error}") from None
    tokenizer_model = folder / "tokenizer.model"
    return config, weights, read_bytes(tokenizer_model, "a tokenizer.model") if tokenizer_model.exists() else None


def _read_files(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all files by name, without those of a vision model."""
    found: dict[str, StoredTensor] = {}
    paths, weight_map = _weight_files(folder)
    for path in paths:
        tensors = stored_tensors(path, FLOATS | QUANTIZED)
        if weight_map is not None:
            _check_listed(folder / INDEX, path.name, tensors, weight_map)
        found |= {name: tensor for name, tensor in tensors.items() if not name.startswith(_IMAGE_PREFIXES)}
    return found


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return model.safetensors, or the shards and the map of the index that names them."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"], None
    index = folder / INDEX
    if not index.exists():
        raise GemmaError(f"{folder}: no weights, expected model.safetensors or {INDEX}")
    weight_map: dict[str, str] = read_json(index, _INDEX)["weight_map"]
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise GemmaError(f"{index}: names {quoted(name)}, expected a file in the same folder")
        if not os.path.exists(folder / name):  # unlike Path.exists, False for a name that is too long
            raise GemmaError(f"{index}: names {quoted(name)}, which is missing")
    return [folder / name for name in names], weight_map


def _check_listed(index: Path, shard: str, found: Mapping[str, StoredTensor], weight_map: Mapping[str, str]) -> None:
    """Check that a shard has the tensors that the index names, and no others."""
    for name in found:
        if weight_map.get(name) != shard:
            elsewhere = quoted(weight_map[name]) if name in weight_map else "nowhere"
            raise GemmaError(f"{index}: {quoted(name)} is in {quoted(shard)}, but listed {elsewhere}")
    for name, listed in weight_map.items():
        if listed == shard and name not in found:
            raise GemmaError(f"{index}: {quoted(name)} is listed in {quoted(shard)}, but is not in it")


def _join_quantized(
    tensors: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None
) -> dict[str, StoredTensor]:
    """Return the weights by name: the arrays of each quantized one are joined into one tensor."""
    left = dict(tensors)
    joined = read_quantized(quantization, left) if quantization else {}
    for name, tensor in left.items():
        if plain(tensor).dtype not in FLOATS.values():
            raise GemmaError(
                f"{name}: dtype {plain(tensor).dtype}, expected one of {', '.join(FLOATS)} "
                "(it is not part of a weight that quantization_config in config.json describes)"
            )
    return left | joined


def _by_text_name(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors by the names that they have outside of a multimodal checkpoint."""
    stored, stored_as = dict[str, StoredTensor](), dict[str, str]()
    for full_name, tensor in tensors.items():
        name = full_name
        for prefix in _TEXT_PREFIXES:
            if full_name.startswith(prefix):
                name = "model." + full_name.removeprefix(prefix)
        if name in stored:
            raise GemmaError(f"{stored_as[name]} and {full_name}: expected one of them, not both")
        stored[name], stored_as[name] = tensor, full_name
    return stored


def _remove_tied_head(tensors: dict[str, StoredTensor]) -> None:
    """Remove the output head that some libraries write beside the embedding, which Gemma uses for both."""
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head is None or embedding is None or head.mapped is None or embedding.mapped is None:
        return
    starts = range(0, max(len(head.mapped), len(embedding.mapped)), _ROWS)
    if not all(np.array_equal(head.mapped[i : i + _ROWS], embedding.mapped[i : i + _ROWS]) for i in starts):
        raise GemmaError("lm_head.weight: differs from model.embed_tokens.weight, expected the same numbers or none")
    del tensors["lm_head.weight"]
