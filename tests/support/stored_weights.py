"""Random weights in every format in which they can be stored."""

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.gguf_blocks import read_blocks
from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.compression.block_quantization import quantize_blocks
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import NF4_BLOCK, NF4_VALUES, BFloat16, Blocks, Float8, Float16, Int4, Int8, Nf4

KINDS = ("bfloat16", "float16", "int8", "int8 in groups", "w8a8", "int4", "int4 with zeros", "float8", "nf4")


def random_weight(kind, rows, groups, size, seed):
    """Return a stored weight of random numbers; each row has `groups` groups of `size` channels, an even number."""
    generator = np.random.default_rng(seed)
    columns = groups * size
    whole = generator.integers(-127, 128, (rows, columns)).astype(np.int8)
    packed = generator.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    scales, of_groups = (generator.random((rows, n), np.float32) + 0.1 for n in (1, groups))
    floats = generator.standard_normal((rows, columns), np.float32)
    return {
        "bfloat16": lambda: BFloat16(floats.astype(ml_dtypes.bfloat16)),
        "float16": lambda: Float16(floats.astype(np.float16)),
        "int8": lambda: Int8(whole, scales),
        "int8 in groups": lambda: Int8(whole, of_groups.astype(np.float16)),
        "w8a8": lambda: Int8(whole, scales, int8_activations=True),
        "int4": lambda: Int4(packed, of_groups),
        "int4 with zeros": lambda: Int4(packed, of_groups, generator.integers(0, 16, of_groups.shape).astype(np.uint8)),
        "nf4": lambda: Nf4(packed, of_groups),
        "float8": lambda: Float8((80 * floats).astype(ml_dtypes.float8_e4m3fn), scales),
    }[kind]()


def random_blocks(format, rows, blocks, seed):
    """Return a weight in a block format of GGUF; its integers are random bytes."""
    generator, block = np.random.default_rng(seed), BLOCK_FORMATS[format]
    integers = generator.integers(0, 256, (blocks, block.integers, rows)).astype(np.uint8)
    factors = generator.normal(0, 0.01, (blocks, block.factors, rows)).astype(np.float16)
    return Blocks(format, integers, factors)


def stored(array):
    """The tensor that reading an array from a file gives."""
    return StoredTensor(array.shape, lambda start, stop: array[start:stop], array)


def in_kind(weight, kind):
    """Return a matrix [out, in] stored in one of KINDS or in a block format."""
    if kind in BLOCK_FORMATS:
        encoded = quantize_blocks(weight, kind)
        return read_blocks(kind, weight.shape, lambda start, stop: encoded[start:stop])
    if kind == "nf4":
        blocks = weight.reshape(len(weight), -1, NF4_BLOCK)
        scales = np.abs(blocks).max(axis=-1)
        nearest = np.abs(blocks[..., None] / scales[..., None, None] - NF4_VALUES).argmin(axis=-1)
        nearest = nearest.astype(np.uint8).reshape(weight.shape)
        return Nf4(nearest[:, 0::2] << 4 | nearest[:, 1::2], scales)
    if kind == "float16":
        return Float16(weight.astype(np.float16))
    format, group_size, zero_points = {
        "int8 in groups": ("int8", 32, False),
        "int4": ("int4", 32, False),
        "int4 with zeros": ("int4", 32, True),
    }.get(kind, (kind, None, False))
    return quantize(weight, Scheme(format, group_size, zero_points))
