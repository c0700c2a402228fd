"""A Hugging Face folder: config.json, tokenizer.model, and weights in one safetensors file or in shards with an index.

The safetensors library checks each file's header (sizes, overlaps, end of file); the numbers are then mapped, not
read: what the model does not touch costs no memory.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from gemma_np.checkpoints.config_json import config_to_json, read_config
from gemma_np.checkpoints.loading import StoredTensor, load_weights, row_reader
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_SHARD_BYTES = 4 * 10**9
_INDEX = "model.safetensors.index.json"

# A multimodal Gemma 3 holds the text model under one of these prefixes, beside a part for images.
_TEXT_PREFIXES = ("language_model.model.", "model.language_model.")
_IMAGE_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def load_folder(folder: Path, dtype: DTypeLike) -> tuple[GemmaConfig, dict[str, np.ndarray], bytes | None]:
    """Config, weights and the sentencepiece model (None if there is none) of a checkpoint folder.

    Raises GemmaError for anything missing or wrong in it.
    """
    config = read_config(folder / "config.json")
    stored = {}
    for path in _weight_files(folder):
        for name, tensor in stored_tensors(path):
            if name.startswith(_IMAGE_PREFIXES):
                continue
            for prefix in _TEXT_PREFIXES:
                if name.startswith(prefix):
                    name = "model." + name.removeprefix(prefix)
            stored[name] = tensor
    try:
        weights = load_weights(stored, config, dtype)
    except GemmaError as error:
        raise GemmaError(f"{folder}: {error}") from None
    vocabulary = folder / "tokenizer.model"
    return config, weights, vocabulary.read_bytes() if vocabulary.exists() else None


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / _INDEX
    if not index.exists():
        raise GemmaError(f"{folder}: no weights, expected model.safetensors or {_INDEX}")
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


def stored_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Name and place of each tensor of a safetensors file. Raises GemmaError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):
            pass  # opening is what checks the header
    except (SafetensorError, OSError) as error:
        raise GemmaError(f"{path}: damaged ({error}), expected a whole safetensors file") from None
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
    data = np.memmap(path, np.uint8, "r", offset=8 + header_size) if header_size + 8 < path.stat().st_size else None
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise GemmaError(f"{path}: {name}: dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
        start, end = entry["data_offsets"]
        if data is None or start == end:
            raise GemmaError(f"{path}: {name}: shape {tuple(entry['shape'])}, expected a tensor that is not empty")
        mapped = data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        reader = row_reader(path, 8 + header_size + start, mapped.dtype, mapped.shape[1:])
        yield name, StoredTensor(mapped.shape, reader, mapped)


def save_folder(
    folder: Path,
    config: GemmaConfig,
    weights: Mapping[str, np.ndarray],
    vocabulary: bytes | None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write a checkpoint folder that `load_folder` and the framework read.

    It is written beside its target and renamed, whole. Raises GemmaError when something is there already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise GemmaError(f"{folder}: is not empty, expected a new folder to save into")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        _write_folder(partial, config, weights, vocabulary, shard_bytes)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_folder(
    folder: Path,
    config: GemmaConfig,
    weights: Mapping[str, np.ndarray],
    vocabulary: bytes | None,
    shard_bytes: int,
) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    shards = _shards(weights, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        save_file({name: np.ascontiguousarray(weights[name]) for name in shard}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        size = sum(weight.nbytes for weight in weights.values())
        _write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    dtype = next(iter(weights.values())).dtype.name
    _write_json(folder / "config.json", config_to_json(config) | {"torch_dtype": dtype})
    if vocabulary is not None:
        (folder / "tokenizer.model").write_bytes(vocabulary)


def _shards(weights: Mapping[str, np.ndarray], shard_bytes: int) -> list[list[str]]:
    """The names, cut into runs of at most `shard_bytes` (or a single tensor that is larger)."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, weight in weights.items():
        if shards[-1] and size + weight.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weight.nbytes
    return shards


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
