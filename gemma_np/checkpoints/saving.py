"""Writing a checkpoint folder, whole or not at all, a shard at a time."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.huggingface import INDEX
from gemma_np.checkpoints.quantized_tensors import KINDS, kind_of, to_tensors
from gemma_np.checkpoints.safetensors_file import file_header
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.weights.formats import Weight, stored_bytes

SHARD_BYTES = 5 * 10**8


def save_folder(
    folder: Path,
    config: GemmaConfig,
    weights: Iterable[tuple[str, Weight]],
    vocabulary: bytes | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint folder that `load_folder` reads and, unless it is quantized, the framework.

    The weights may be made one by one: no more than a shard of them is held. The folder is written beside its target
    and renamed. Raises GemmaError when something is there already, and when it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise GemmaError(f"{folder}: is not empty, expected a new folder to save into")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _write_weights(partial, config, weights, shard_bytes)
        if vocabulary is not None:
            (partial / "tokenizer.model").write_bytes(vocabulary)
        partial.replace(folder)
    except OSError as error:
        raise GemmaError(f"{folder}: could not be written ({error}); nothing is left of it") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(folder: Path, config: GemmaConfig, weights: Iterable[tuple[str, Weight]], shard_bytes: int) -> None:
    files: list[list[str]] = []
    total, stored_as = 0, ""
    for shard in _shards(weights, shard_bytes):
        kinds = {name: kind for name, weight in shard.items() if (kind := kind_of(weight))}
        metadata = {"format": "pt"} | ({"storage": json.dumps(kinds)} if kinds else {})
        tensors: dict[str, np.ndarray] = {}
        for name, weight in shard.items():
            tensors |= to_tensors(name, weight)
            total += stored_bytes(weight)
        _write_tensors(folder / f"{len(files)}.safetensors", tensors, metadata)
        files.append(list(tensors))
        stored_as = next(iter(kinds.values()), "") or stored_as or next(iter(tensors.values())).dtype.name
        shard.clear()  # its memory is needed for the next one
        tensors.clear()

    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors" if len(files) > 1 else "model.safetensors"
        (folder / f"{number}.safetensors").replace(folder / file)
        weight_map |= dict.fromkeys(names, file)
    if len(files) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    told = {"quantization_config": {"quant_method": "gemma_np"}} if stored_as in KINDS else {"torch_dtype": stored_as}
    _write_json(folder / "config.json", config_to_json(config) | told)


def _write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """A safetensors file. The library's own writer would copy all tensors first."""
    header, _ = file_header({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, metadata)
    with path.open("wb") as file:
        file.write(header)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def _shards(weights: Iterable[tuple[str, Weight]], shard_bytes: int) -> Iterator[dict[str, Weight]]:
    """The weights in runs of at most `shard_bytes` (or a single one that is larger)."""
    shard: dict[str, Weight] = {}
    for name, weight in weights:
        if shard and sum(map(stored_bytes, shard.values())) + stored_bytes(weight) > shard_bytes:
            yield shard
            shard = {}
        shard[name] = weight
    yield shard


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
