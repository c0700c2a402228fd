"""my_gemma.py, tutorial 8."""

import numpy as np


def soft_cap(x, cap):
    """cap * tanh(x / cap): x [...] -> [...]."""
    return cap * np.tanh(x / cap)
