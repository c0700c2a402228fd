"""Random weights in every format in which they can be stored."""

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.loading import StoredTensor
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import BFloat16, Blocks, Float8, Float16, Int4, Int8, Nf4

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
