"""Read a Hugging Face folder: config.json, tokenizer.model, and weights in one safetensors file or in shards.

The safetensors library checks the header of each file (sizes, overlaps, end of file). The numbers are memory-mapped:
what the model does not use takes no memory.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gemma_np.checkpoints.config_json import read_config
from gemma_np.checkpoints.loading import StoredTensor, load_weights
from gemma_np.checkpoints.quantized_tensors import block_tensor, from_tensors, read_formats, to_tensors
from gemma_np.checkpoints.safetensors_file import FLOATS, QUANTIZED, read_metadata, stored_tensors
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.input_files import read_bytes
from gemma_np.json_input import TEXT, object_of, read_json
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Stored, Weight, dequantize

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
    stored, stored_as = dict[str, StoredTensor](), dict[str, str]()
    paths, weight_map = _weight_files(folder)
    for path in paths:
        tensors = stored_tensors(path, FLOATS | QUANTIZED)
        if weight_map is not None:
            _check_listed(folder / INDEX, path.name, tensors, weight_map)
        for full_name, tensor in _with_quantized(path, tensors):
            if full_name.startswith(_IMAGE_PREFIXES):
                continue
            name = _text_name(full_name)
            if name in stored:
                raise GemmaError(f"{folder}: {stored_as[name]} and {full_name}: expected one of them, not both")
            stored[name], stored_as[name] = tensor, full_name
    try:
        weights = load_weights(stored, config, dtype)
    except GemmaError as error:
        raise GemmaError(f"{folder}: {error}") from None
    tokenizer_model = folder / "tokenizer.model"
    return config, weights, read_bytes(tokenizer_model, "a tokenizer.model") if tokenizer_model.exists() else None


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


def _text_name(name: str) -> str:
    """Return the name that a weight of the text model has outside of a multimodal checkpoint."""
    for prefix in _TEXT_PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name


def _with_quantized(path: Path, tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """Yield each weight of a safetensors file by name; the arrays of a quantized weight are joined into one tensor."""
    arrays = {name: tensor.mapped for name, tensor in tensors.items()}
    try:
        for name, format in read_formats(read_metadata(path)).items():
            if format in BLOCK_FORMATS:
                if name not in tensors:
                    raise GemmaError(f"{name}: missing, expected since it is stored as {format}")
                yield name, block_tensor(name, format, tensors.pop(name))
                continue
            weight = from_tensors(name, format, arrays)
            for used in to_tensors(name, weight):
                del tensors[used]
            yield name, _quantized_tensor(weight)
    except GemmaError as error:
        raise GemmaError(f"{path}: {error}") from None
    for name, tensor in tensors.items():
        if tensor.mapped is not None and tensor.mapped.dtype not in FLOATS.values():
            raise GemmaError(
                f"{path}: {name}: dtype {tensor.mapped.dtype}, expected one of {', '.join(FLOATS)} "
                "(the metadata does not list it as quantized)"
            )
        yield name, tensor


def _quantized_tensor(weight: Stored) -> StoredTensor:
    return StoredTensor(weight.shape, lambda start, stop: dequantize(weight[start:stop]), quantized=lambda: weight)
