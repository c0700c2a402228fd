"""Soft-capping: squash logits smoothly into (-cap, cap), where a hard clip would have no gradient.

Source: Gemma 2 report, section 2 (caps of 50 in attention and 30 at the output).
"""

import numpy as np


def soft_cap(x: np.ndarray, cap: float) -> np.ndarray:
    """Compute cap * tanh(x / cap): x [...] -> [...]. Near zero it is close to the identity."""
    y = np.asarray(x / cap)
    np.tanh(y, out=y)
    y *= cap
    return y


def soft_cap_backward(dy: np.ndarray, y: np.ndarray, cap: float) -> np.ndarray:
    """Compute the gradient of `soft_cap` from its output y: the derivative is 1 - (y / cap)^2.

    dy and y [...] -> dx [...]
    """
    slope = np.asarray(y / cap)
    slope *= slope
    np.subtract(1, slope, out=slope)
    slope *= dy
    return slope
