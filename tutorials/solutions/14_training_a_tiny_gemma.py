"""Solutions of tutorial 14."""

import numpy as np


def masked_loss(logits: np.ndarray, targets: np.ndarray, loss_mask: np.ndarray) -> float:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return float(losses[loss_mask].mean())


def clip(first: np.ndarray, second: np.ndarray, max_norm: float) -> tuple[np.ndarray, np.ndarray]:
    norm = np.sqrt((first**2).sum() + (second**2).sum())
    scale = min(1, max_norm / norm)
    return first * scale, second * scale


def adamw(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m = 0.9 * m + 0.1 * gradient
    v = 0.95 * v + 0.05 * gradient**2
    if weight.ndim > 1:
        weight = weight * (1 - learning_rate * 0.1)
    size = np.sqrt(v / (1 - 0.95**step)) + 1e-8
    return weight - learning_rate * m / (1 - 0.9**step) / size, m, v
