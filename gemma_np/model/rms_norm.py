"""Root-mean-square normalisation: every vector is brought to length sqrt(D), then stretched per channel.

Source: Zhang and Sennrich, arXiv 1910.07467; Gemma's 1 + w makes a weight of zero the identity.
"""

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * (1 + weight), over the last axis.

    x [..., D], weight [D] -> [..., D]
    """
    mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    return x / np.sqrt(mean_square + eps) * (1 + weight)
