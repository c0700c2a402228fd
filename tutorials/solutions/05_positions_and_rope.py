"""Solutions of tutorial 5."""

import numpy as np


def cos_and_sin(positions: np.ndarray, head_dim: int, base: float, divisor: float) -> tuple[np.ndarray, np.ndarray]:
    pair = np.arange(head_dim // 2)
    frequencies = base ** (-2 * pair / head_dim)
    angles = np.outer(positions / divisor, frequencies)
    return np.cos(angles), np.sin(angles)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def rotate_chunk(x: np.ndarray, start: int, base: float) -> np.ndarray:
    length, head_dim = x.shape[-2:]
    cos, sin = cos_and_sin(np.arange(start, start + length), head_dim, base, 1.0)
    return rotate(x, cos, sin)
