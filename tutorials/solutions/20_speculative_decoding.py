"""Solutions of tutorial 20."""

from collections.abc import Sequence

import numpy as np


def rejection_step(token: int, p: np.ndarray, q: np.ndarray) -> tuple[float, np.ndarray]:
    missing = np.maximum(p - q, 0)
    return min(1.0, p[token] / q[token]), missing / missing.sum()


def verify_chain(ids: Sequence[int], p: np.ndarray, q: np.ndarray, uniforms: np.ndarray) -> tuple[int, np.ndarray]:
    for i, token in enumerate(ids):
        accept, residual = rejection_step(token, p[i], q[i])
        if uniforms[i] >= accept:
            return i, residual
    return len(ids), p[len(ids)]


def speculative_speed(a: float, n: int, c: float, v: float) -> float:
    return sum(a**i for i in range(n + 1)) / (n * c + v)
