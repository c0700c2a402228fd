"""RMSNorm: scale every vector to length sqrt(D), then multiply each channel by 1 + weight.

With 1 + w, a weight of zero is the identity.

Source: Zhang and Sennrich, arXiv 1910.07467; gemma_pytorch (1 + w).
"""

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Compute x / sqrt(mean(x^2) + eps) * (1 + weight) over the last axis.

    x [..., D], weight [D] -> [..., D]
    """
    mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    return x / np.sqrt(mean_square + eps) * (1 + weight)


def rms_norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the gradients of x and of the weight.

    dy and x [..., D], weight [D] -> dx [..., D], dweight [D]

    With n = x / rms: the norm removes the length of x, so the component of the gradient along n is subtracted (almost
    all of it, because of eps).
    """
    rms = np.sqrt(np.vecdot(x, x)[..., None] / x.shape[-1] + eps)
    n = x / rms
    dn = dy * (1 + weight)  # undoes: n * (1 + weight)
    dweight = (dy * n).reshape(-1, x.shape[-1]).sum(axis=0)
    dx = (dn - n * (np.vecdot(dn, n)[..., None] / x.shape[-1])) / rms  # undoes: x / rms(x)
    return dx, dweight
