"""Random weights in the shapes of a config, to test whether a model fits in memory and how fast it is."""

import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.weights.formats import BFloat16, Int4, Int8, Weight

RANDOM_FORMATS = ("float32", "bfloat16", "int8", "int4")

_GROUP_SIZE = 64
_ROWS = 4096  # rows filled at once


def random_weights(config: GemmaConfig, format: str, seed: int = 0) -> Iterator[tuple[str, Weight]]:
    """Return random weights by name, generated one at a time: matrices of variance 1 / in, norms at the identity.

    Raises GemmaError when the format is not one of `RANDOM_FORMATS`, and when a matrix has no whole groups for int4.
    """
    if format not in RANDOM_FORMATS:
        raise GemmaError(f"format: {format!r}, expected one of {', '.join(RANDOM_FORMATS)}")
    for name, shape in config.weight_shapes():
        if format == "int4" and len(shape) == 2 and shape[1] % _GROUP_SIZE:
            raise GemmaError(f"{name}: {shape[1]} channels, expected a multiple of {_GROUP_SIZE} for int4")
    generator = np.random.default_rng(seed)
    return (
        (name, np.zeros(shape, np.float32) if len(shape) == 1 else _matrix(shape, format, generator))
        for name, shape in config.weight_shapes()
    )


def _matrix(shape: tuple[int, ...], format: str, generator: np.random.Generator) -> Weight:
    rows, columns = shape
    std = 1 / math.sqrt(columns)
    if format in ("float32", "bfloat16"):
        weight = np.empty(shape, np.float32 if format == "float32" else ml_dtypes.bfloat16)
        for start in range(0, rows, _ROWS):
            block = weight[start : start + _ROWS]
            block[...] = std * generator.standard_normal(block.shape, np.float32)
        return weight if format == "float32" else BFloat16(weight)
    # Integers uniform from -m to m have a variance of about m^2 / 3.
    if format == "int8":
        integers = np.maximum(_random_bytes(shape, generator).view(np.int8), -127)
        return Int8(integers, np.full((rows, 1), std * math.sqrt(3) / 127, np.float32))
    scales = np.full((rows, columns // _GROUP_SIZE), std * math.sqrt(3) / 8, np.float32)
    return Int4(_random_bytes((rows, columns // 2), generator), scales)


def _random_bytes(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    return np.frombuffer(generator.bytes(math.prod(shape)), np.uint8).reshape(shape)
