"""Keys and values in int8, each vector with its own scale: a quarter of the memory of a float32 cache.

Source: Dettmers et al., arXiv 2208.07339 (one scale per vector).
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gemma_np.weights.linear import round_to_int8


class Int8Vectors:
    """An array [..., n] whose vectors are rounded when written and dequantized when read."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Allocate an array of this shape, whose last axis is that of the vectors; dtype: that of the values read."""
        self.integers = np.zeros(shape, np.int8)
        self.scales = np.zeros((*shape[:-1], 1), dtype)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the integers and scales."""
        return self.integers.nbytes + self.scales.nbytes

    def __setitem__(self, index: Any, vectors: np.ndarray) -> None:
        self.integers[index], self.scales[index] = round_to_int8(vectors)

    def __getitem__(self, index: Any) -> np.ndarray:
        dequantized: np.ndarray = self.integers[index] * self.scales[index]
        return dequantized
