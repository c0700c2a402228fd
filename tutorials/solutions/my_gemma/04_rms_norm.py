"""my_gemma.py, tutorial 4."""

import numpy as np


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last axis: x [..., D], weight [D] -> [..., D]."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * (1 + weight)
