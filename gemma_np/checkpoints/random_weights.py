"""Checkpoints of random weights in the true shapes: to try out whether a model fits, and how fast it is."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.huggingface import INDEX
from gemma_np.checkpoints.safetensors_file import file_header
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.weights.formats import BFloat16, Int4, Int8, Weight

KINDS = ("float32", "bfloat16", "int8", "int4")

_GROUP = 64
_ROWS = 4096  # made at once
_SPARSE_SHARD = 5 * 10**9


def random_weights(config: GemmaConfig, kind: str, seed: int = 0) -> Iterator[tuple[str, Weight]]:
    """Weights by name, made one by one: matrices of variance 1 / in, norms at the identity."""
    generator = np.random.default_rng(seed)
    for name, shape in config.weight_shapes():
        yield name, np.zeros(shape, np.float32) if len(shape) == 1 else _matrix(shape, kind, generator)


def _matrix(shape: tuple[int, ...], kind: str, generator: np.random.Generator) -> Weight:
    rows, columns = shape
    spread = 1 / math.sqrt(columns)
    if kind in ("float32", "bfloat16"):
        weight = np.empty(shape, np.float32 if kind == "float32" else ml_dtypes.bfloat16)
        for start in range(0, rows, _ROWS):
            block = weight[start : start + _ROWS]
            block[...] = spread * generator.standard_normal(block.shape, np.float32)
        return weight if kind == "float32" else BFloat16(weight)
    # Whole numbers that are all equally likely, from -m to m, have a variance of about m^2 / 3.
    if kind == "int8":
        integers = np.maximum(_random_bytes(shape, generator).view(np.int8), -127)
        return Int8(integers, np.full((rows, 1), spread * math.sqrt(3) / 127, np.float32))
    scales = np.full((rows, columns // _GROUP), spread * math.sqrt(3) / 8, np.float32)
    return Int4(_random_bytes((rows, columns // 2), generator), scales)


def _random_bytes(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    return np.frombuffer(generator.bytes(math.prod(shape)), np.uint8).reshape(shape)


def write_sparse(folder: Path, config: GemmaConfig) -> None:
    """A bfloat16 checkpoint of zeros that takes no room on the disk: its files are holes behind a header.

    Raises GemmaError when the folder exists.
    """
    if folder.exists():
        raise GemmaError(f"{folder}: exists, expected a new folder")
    folder.mkdir(parents=True)
    shards: list[dict[str, tuple[type, tuple[int, ...]]]] = [{}]
    size = 0
    for name, shape in config.weight_shapes():
        if size > _SPARSE_SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = (ml_dtypes.bfloat16, shape)
        size += 2 * math.prod(shape)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, _ = file_header(shard, {"format": "pt"})
        with (folder / file).open("wb") as opened:
            opened.write(header)
            opened.truncate(len(header) + 2 * sum(math.prod(shape) for _, shape in shard.values()))
        weight_map |= dict.fromkeys(shard, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config_to_json(config) | {"torch_dtype": "bfloat16"}, indent=2))
