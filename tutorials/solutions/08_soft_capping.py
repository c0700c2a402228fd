"""Solutions of tutorial 8."""

import numpy as np


def cap_scores(x: np.ndarray, cap: float) -> np.ndarray:
    return cap * np.tanh(x / cap)


def cap_gradient(dy: np.ndarray, y: np.ndarray, cap: float) -> np.ndarray:
    return dy * (1 - (y / cap) ** 2)


def capped_probs(scores: np.ndarray, mask: np.ndarray, cap: float) -> np.ndarray:
    capped = np.where(mask, cap * np.tanh(scores / cap), -np.inf)
    probs = np.exp(capped - capped.max(axis=-1, keepdims=True))
    return probs / probs.sum(axis=-1, keepdims=True)
