"""Quantization-aware training: the model learns with the weights that it will have once they are quantized.

The forward pass sees each matrix rounded to its grid, and the gradient of the rounded weight goes, straight through the
rounding, to the float behind it.

Source: Jacob et al., arXiv 1712.05877, section 3; Bengio et al., arXiv 1308.3432 (straight-through estimator).
"""

from collections.abc import Callable, Mapping

import numpy as np

from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.weights.formats import dequantize


def fake_quantize(scheme: Scheme) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A view of weights for a `Task`: every matrix rounded as `quantize` will round it, norms as they are."""

    def seen(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: dequantize(quantize(w, scheme)) if w.ndim == 2 else w for name, w in weights.items()}

    return seen
