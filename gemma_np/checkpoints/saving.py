"""Write checkpoint folders: config.json, tokenizer.model, and the weights a shard at a time."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.checkpoints.atomic_write import atomic_write, write_content, write_json
from gemma_np.checkpoints.companion_files import write_companion_files
from gemma_np.checkpoints.compressed_tensors import Scheme
from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.huggingface import INDEX
from gemma_np.checkpoints.quantized_tensors import describe, quantization_config, to_tensors
from gemma_np.checkpoints.safetensors_file import file_header, write_tensors
from gemma_np.config import GemmaConfig
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.weights.formats import Weight, check_finite

SHARD_BYTES = 5 * 10**8


def save_folder(
    folder: Path,
    config: GemmaConfig,
    weights: Iterable[tuple[str, Weight]],
    tokenizer: Tokenizer | None,
    shard_bytes: float = SHARD_BYTES,
    *,
    source: Path | None = None,
) -> None:
    """Write a new checkpoint folder that `load_folder` and the framework read; quantized weights as compressed-tensors.

    The weights may be computed one by one: no more than one shard is in memory. source: the folder that they come from,
    of which other files are kept (see `write_companion_files`).

    Raises GemmaError when the folder is not empty, when a weight is not finite, and when the folder cannot be written;
    then nothing is left of it.
    """
    atomic_write(
        folder,
        lambda partial: write_checkpoint(partial, config, weights, tokenizer, shard_bytes, source=source),
        as_folder=True,
    )


def write_checkpoint(
    folder: Path,
    config: GemmaConfig,
    weights: Iterable[tuple[str, Weight]],
    tokenizer: Tokenizer | None,
    shard_bytes: float = math.inf,
    *,
    source: Path | None = None,
) -> None:
    """Write the files of a checkpoint into an existing folder, each file whole or not at all.

    Raises GemmaError when a weight is not finite, and when a file cannot be written.
    """
    shards: list[list[str]] = []
    matrices: dict[str, Scheme | str | None] = {}
    total, dtype = 0, ""

    def in_files() -> Iterator[dict[str, np.ndarray]]:
        for name, weight in weights:
            check_finite(name, weight)
            if len(weight.shape) == 2:
                matrices[name] = describe(weight)
            yield to_tensors(name, weight)

    for tensors in _shards(in_files(), shard_bytes):
        write_tensors(folder / _unnumbered(len(shards)), tensors, {"format": "pt"})
        shards.append(list(tensors))
        total += _bytes(tensors)
        dtype = dtype or next(iter(tensors.values())).dtype.name
        tensors.clear()  # frees their memory for the next shard

    if len(shards) > 1:
        for number in range(len(shards)):
            (folder / _unnumbered(number)).replace(folder / _shard_name(number, len(shards)))
    _write_index(folder, shards, total)
    values = config_to_json(config) | {"torch_dtype": dtype}
    if quantization := quantization_config(matrices):
        # transformers converts the scales to this dtype; in float32 they stay what they are.
        values |= {"torch_dtype": "float32", "quantization_config": quantization}
    write_json(folder / "config.json", values)
    if tokenizer is not None:
        write_content(folder / "tokenizer.model", tokenizer.model)
    write_companion_files(folder, tokenizer, source)


def save_sparse_folder(folder: Path, config: GemmaConfig, shard_bytes: float = 10 * SHARD_BYTES) -> None:
    """Write a bfloat16 checkpoint of zeros that takes no disk space: its files are holes after a header.

    Raises GemmaError when the folder is not empty, and when it cannot be written.
    """
    atomic_write(folder, lambda partial: _write_sparse_checkpoint(partial, config, shard_bytes), as_folder=True)


def _write_sparse_checkpoint(folder: Path, config: GemmaConfig, shard_bytes: float) -> None:
    shards: list[dict[str, tuple[type, tuple[int, ...]]]] = [{}]
    size = total = 0
    for name, shape in config.weight_shapes():
        if size > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = (bfloat16, shape)
        size += 2 * math.prod(shape)
        total += 2 * math.prod(shape)
    for number, shard in enumerate(shards):
        header, _ = file_header(shard, {"format": "pt"})
        with (folder / _shard_name(number, len(shards))).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + 2 * sum(math.prod(shape) for _, shape in shard.values()))
    _write_index(folder, [list(shard) for shard in shards], total)
    write_json(folder / "config.json", config_to_json(config) | {"torch_dtype": "bfloat16"})


def _unnumbered(number: int) -> str:
    """Return the name of a shard while the number of shards is not known yet; the only one keeps it."""
    return f"shard-{number}" if number else _shard_name(0, 1)


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"


def _shards(weights: Iterable[dict[str, np.ndarray]], shard_bytes: float) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of weights in groups of at most `shard_bytes` (or those of a single larger weight)."""
    shard: dict[str, np.ndarray] = {}
    for tensors in weights:
        if shard and _bytes(shard) + _bytes(tensors) > shard_bytes:
            yield shard
            shard = {}
        shard |= tensors
    yield shard


def _bytes(tensors: dict[str, np.ndarray]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _write_index(folder: Path, shards: list[list[str]], total: int) -> None:
    """Write the index of a checkpoint with more than one shard: the file of each tensor."""
    if len(shards) > 1:
        weight_map = {name: _shard_name(number, len(shards)) for number, names in enumerate(shards) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
