"""Products of a few vectors with one weight, measured in alternation: the choices of `gemma_np/weights/linear.py`.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/linear.py            # float32 and float64
    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/linear.py int8 Q4_K  # stored formats

For float weights, how much faster than `x @ weight.T` the product is, and how often it takes the time of one vector.
For stored ones, the same times by scaling the sums of groups and by dequantizing. Processor time on one core, which
other processes disturb less; medians.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

import gemma_np.weights.linear
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Stored
from gemma_np.weights.linear import float_product
from tests.support.stored_weights import KINDS, random_blocks, random_weight

SHAPES = ((9216, 2304), (2304, 9216), (2048, 2304), (2048, 640), (640, 2048), (65_536, 640))  # of 2B and of 270M
VECTORS = (1, 2, 3, 4, 8, 16)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("formats", nargs="*", help=f"any of {', '.join([*KINDS, *BLOCK_FORMATS])}")
    arguments.add_argument("--rounds", type=int, default=9)
    options = arguments.parse_args()
    os.cpu_count = lambda: 1
    if not options.formats:
        for dtype in (np.float32, np.float64):
            for shape in SHAPES:
                float_weight(shape, dtype, options.rounds)
    for format in options.formats:
        for shape in SHAPES[:1] + SHAPES[3:4]:
            stored_weight(shape, format, options.rounds)


def float_weight(shape: tuple[int, int], dtype: type, rounds: int) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(shape, dtype)
    for count in VECTORS:
        x = generator.standard_normal((count, shape[1]), dtype)
        one, plain, ours = seconds(
            lambda x=x: x[:1] @ weight.T, lambda x=x: x @ weight.T, lambda x=x: float_product(x, weight), rounds=rounds
        )
        print(
            f"{dtype.__name__} {shape!s:14}{count:3} vectors: {1e3 * ours:8.2f} ms, {plain / ours:5.2f} x as fast as "
            f"x @ weight.T, {ours / one:5.2f} times one vector",
            flush=True,
        )


def stored_weight(shape: tuple[int, int], format: str, rounds: int) -> None:
    generator = np.random.default_rng(0)
    weight = of_format(format, shape)
    for count in VECTORS:
        x = generator.standard_normal((count, weight.shape[1]), np.float32)
        one, groups, dequantized = seconds(
            lambda x=x: gemma_np.weights.linear._product_of_groups(x[:1], weight),
            lambda x=x: gemma_np.weights.linear._product_of_groups(x, weight),
            lambda x=x: gemma_np.weights.linear._dequantized_product(x, weight),
            rounds=rounds,
        )
        print(
            f"{format} {weight.shape!s:14}{count:3} vectors: {groups / one:5.2f} times one vector by sums of groups, "
            f"{dequantized / one:5.2f} dequantized ({1e3 * one:.2f} ms)",
            flush=True,
        )


def of_format(format: str, shape: tuple[int, int]) -> Stored:
    """A random weight of about this shape."""
    if format in BLOCK_FORMATS:
        return random_blocks(format, shape[0], shape[1] // BLOCK_FORMATS[format].channels, 0)
    return random_weight(format, shape[0], shape[1] // 64, 64, 0)


def seconds(*functions: Callable[[], object], rounds: int) -> np.ndarray:
    """Median processor time of each function, called in turn: [functions]."""
    table = []
    for _ in range(rounds + 1):  # the first round warms up
        row = []
        for function in functions:
            start = time.process_time()
            function()
            row.append(time.process_time() - start)
        table.append(row)
    return np.median(table[1:], axis=0)


if __name__ == "__main__":
    main()
