"""Solutions of tutorial 19."""

import numpy as np


def relative_error(found: np.ndarray, expected: np.ndarray, masked: np.ndarray) -> float:
    difference = np.where(masked, 0, np.abs(found - expected))
    size = np.where(masked, 0, np.abs(expected))
    return difference.max() / size.max()


def first_wrong(theirs: list[np.ndarray], ours: list[np.ndarray], thresholds: list[float]) -> int:
    for number, (found, expected, threshold) in enumerate(zip(theirs, ours, thresholds, strict=True)):
        error = np.abs(found - expected).max() / np.abs(expected).max()
        if not error <= threshold:  # also for NaN
            return number
    return -1


def which_mistake(found: np.ndarray, x: np.ndarray, weight: np.ndarray) -> int:
    plain = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    for number, factor in enumerate((1 + weight, weight, 2 + weight)):
        if np.allclose(found, plain * factor, rtol=1e-4):
            return number
    return 3
