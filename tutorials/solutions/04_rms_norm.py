"""Solutions of tutorial 4."""

import numpy as np


def normalize(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + eps) * (1 + weight)


def input_gradient(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    n, dn = x / rms, dy * (1 + weight)
    return (dn - n * np.mean(dn * n, axis=-1, keepdims=True)) / rms
