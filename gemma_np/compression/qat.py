"""Quantization-aware training: train with the weights rounded as they will be after quantization.

The forward pass uses each matrix rounded to its grid. The gradient of the rounded weight is applied to the float weight
unchanged.

Source: Jacob et al., arXiv 1712.05877, section 3; Bengio et al., arXiv 1308.3432 (straight-through estimator).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.weights.formats import dequantize


@dataclass(frozen=True)
class FakeQuantize:
    """A weight view for a `Task`: every matrix is rounded as by `quantize`, norms are unchanged."""

    scheme: Scheme

    def __call__(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rounded weights by name."""
        return {
            name: dequantize(quantize(weight, self.scheme)) if weight.ndim == 2 else weight
            for name, weight in weights.items()
        }
