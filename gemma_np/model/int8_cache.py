"""Vectors kept in int8, each with the size of its own steps: a cache of keys and values at a quarter of the memory.

Source: Dettmers et al., arXiv 2208.07339 (a step for each vector).
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gemma_np.weights.linear import round_to_int8


class Int8Vectors:
    """An array [..., n] whose vectors are rounded when they are written, and widened when they are read."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Room for vectors of the last axis of `shape`; dtype is that of what is read."""
        self.integers = np.zeros(shape, np.int8)
        self.steps = np.zeros((*shape[:-1], 1), dtype)

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return self.integers.nbytes + self.steps.nbytes

    def __setitem__(self, index: Any, vectors: np.ndarray) -> None:
        self.integers[index], self.steps[index] = round_to_int8(vectors)

    def __getitem__(self, index: Any) -> np.ndarray:
        dequantized: np.ndarray = self.integers[index] * self.steps[index]
        return dequantized
