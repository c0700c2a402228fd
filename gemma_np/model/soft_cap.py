"""Soft-capping: logits are squeezed smoothly into (-cap, cap), where a hard clip would kill the gradient.

Source: Gemma 2 report, section 2 (caps of 50 in attention and 30 at the output).
"""

import numpy as np


def soft_cap(x: np.ndarray, cap: float) -> np.ndarray:
    """cap * tanh(x / cap), for an x of any shape. Near zero it is the identity."""
    y = x / cap
    np.tanh(y, out=y)
    y *= cap
    return y
