"""A Hugging Face folder: config.json, tokenizer.model, and weights in one safetensors file or in shards with an index.

The safetensors library checks each file's header (sizes, overlaps, end of file); the numbers are then mapped, not
read: what the model does not touch costs no memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from numpy.typing import DTypeLike

from gemma_np.checkpoints.config_json import read_config
from gemma_np.checkpoints.loading import StoredTensor, load_weights
from gemma_np.checkpoints.quantized_tensors import from_tensors, read_kinds, to_tensors
from gemma_np.checkpoints.safetensors_file import FLOATS, QUANTIZED, read_metadata, stored_tensors
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.weights.formats import Stored, Weight, dequantize

INDEX = "model.safetensors.index.json"

# A multimodal Gemma 3 holds the text model under one of these prefixes, beside a part for images.
_TEXT_PREFIXES = ("language_model.model.", "model.language_model.")
_IMAGE_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def load_folder(
    folder: Path, dtype: DTypeLike, as_stored: bool = False
) -> tuple[GemmaConfig, dict[str, Weight], bytes | None]:
    """Config, weights (see `load_weights`) and the sentencepiece model (None if there is none) of a checkpoint folder.

    Raises GemmaError for anything missing or wrong in it.
    """
    config = read_config(folder / "config.json")
    stored = {}
    for path in _weight_files(folder):
        for name, tensor in _with_quantized(path):
            if name.startswith(_IMAGE_PREFIXES):
                continue
            for prefix in _TEXT_PREFIXES:
                if name.startswith(prefix):
                    name = "model." + name.removeprefix(prefix)
            stored[name] = tensor
    try:
        weights = load_weights(stored, config, dtype, as_stored)
    except GemmaError as error:
        raise GemmaError(f"{folder}: {error}") from None
    vocabulary = folder / "tokenizer.model"
    return config, weights, vocabulary.read_bytes() if vocabulary.exists() else None


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if not index.exists():
        raise GemmaError(f"{folder}: no weights, expected model.safetensors or {INDEX}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GemmaError(f"{index}: no index of shards ({error!r}), expected a JSON object with weight_map") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise GemmaError(f"{index}: names {name!r}, expected a file in the same folder")
        if not (folder / name).exists():
            raise GemmaError(f"{index}: names {name!r}, which is missing")
    return [folder / name for name in names]


def _with_quantized(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Name and place of each weight of a safetensors file; the arrays of a quantized one are put together."""
    tensors = dict(stored_tensors(path, FLOATS | QUANTIZED))
    arrays = {name: tensor.mapped for name, tensor in tensors.items()}
    try:
        for name, kind in read_kinds(read_metadata(path)).items():
            weight = from_tensors(name, kind, arrays)
            for used in to_tensors(name, weight):
                del tensors[used]
            yield name, _quantized_tensor(weight)
    except GemmaError as error:
        raise GemmaError(f"{path}: {error}") from None
    for name, tensor in tensors.items():
        if tensor.mapped is not None and tensor.mapped.dtype not in FLOATS.values():
            raise GemmaError(
                f"{path}: {name}: dtype {tensor.mapped.dtype}, expected one of {', '.join(FLOATS)} "
                "(the file's metadata names no quantized weights of it)"
            )
        yield name, tensor


def _quantized_tensor(weight: Stored) -> StoredTensor:
    return StoredTensor(weight.shape, lambda start, stop: dequantize(weight[start:stop]), quantized=lambda: weight)
