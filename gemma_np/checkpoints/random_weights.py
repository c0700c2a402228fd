"""Random weights in the shapes of a config, to test whether a model fits in memory and how fast it is."""

import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.gguf_mixture import weight_formats
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import BFloat16, Blocks, Float16, Int4, Int8, Weight, dequantize

RANDOM_FORMATS = ("float32", "bfloat16", "int8", "int4", "q4_k_m")

_FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "F16": np.float16}
_GROUP_SIZE = 64
_ROWS = 4096  # rows filled at once
_SAMPLE = 64  # rows whose variance is measured


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
    formats = weight_formats(config, format) if format == "q4_k_m" else {}
    return (
        (name, np.zeros(shape, np.float32) if len(shape) == 1 else _matrix(shape, formats.get(name, format), generator))
        for name, shape in config.weight_shapes()
    )


def _matrix(shape: tuple[int, ...], format: str, generator: np.random.Generator) -> Weight:
    rows, columns = shape
    std = 1 / math.sqrt(columns)
    if format in _FLOATS:
        weight = np.empty(shape, _FLOATS[format])
        for start in range(0, rows, _ROWS):
            block = weight[start : start + _ROWS]
            block[...] = std * generator.standard_normal(block.shape, np.float32)
        if format == "float32":
            return weight
        return BFloat16(weight) if format == "bfloat16" else Float16(weight)
    if format in BLOCK_FORMATS:
        return _blocks(shape, format, generator)
    # Integers uniform from -m to m have a variance of about m^2 / 3.
    if format == "int8":
        integers = np.maximum(_random_bytes(shape, generator).view(np.int8), -127)
        return Int8(integers, np.full((rows, 1), std * math.sqrt(3) / 127, np.float32))
    scales = np.full((rows, columns // _GROUP_SIZE), std * math.sqrt(3) / 8, np.float32)
    return Int4(_random_bytes((rows, columns // 2), generator), scales)


def _blocks(shape: tuple[int, ...], format: str, generator: np.random.Generator) -> Blocks:
    rows, columns = shape
    block = BLOCK_FORMATS[format]
    blocks = columns // block.channels
    integers = _random_bytes((blocks, block.integers, rows), generator)
    # A minimum is as random as a scale, so it must be as much larger as the mean number to have weights of mean 0.
    factors = np.array([1, block.numbers(integers[:, :, :_SAMPLE]).mean()])[: block.factors, None]
    sample = integers[:, :, :_SAMPLE]
    unscaled = Blocks(format, sample, np.broadcast_to(factors, (blocks, block.factors, sample.shape[2])))
    factors /= dequantize(unscaled).std() * math.sqrt(columns)
    return Blocks(format, integers, np.full((blocks, block.factors, rows), factors, np.float16))


def _random_bytes(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    return np.frombuffer(generator.bytes(math.prod(shape)), np.uint8).reshape(shape)
