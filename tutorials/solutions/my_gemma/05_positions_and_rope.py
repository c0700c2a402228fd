"""my_gemma.py, tutorial 5."""

import numpy as np


def split_heads(x, head_dim):
    """Cut the channels into heads of h: x [..., T, H*h] -> [..., H, T, h]."""
    return x.reshape(*x.shape[:-1], -1, head_dim).swapaxes(-2, -3)


def rope(x, positions, base):
    """Rotate channels i and i + h/2 by position * base^(-2i/h): x [..., T, h], positions [T] -> [..., T, h].

    Compute the angles in float64, and the result in the dtype of x.
    """
    half = x.shape[-1] // 2
    angles = np.outer(positions, base ** (-np.arange(half) / half))  # [T, h/2]
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
