"""RoPE, rotary position embedding: rotate the pair of channels i and i + h/2 by an angle that grows with position.

The dot product of a rotated query and a rotated key depends only on the difference of their positions.

Source: Su et al., arXiv 2104.09864; Gemma 3 report, arXiv 2503.19786, section 2.1 (separate bases for local and global
layers, position scaling).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import DTypeLike


@lru_cache(maxsize=8)
def rope_cos_sin(
    positions: range, head_dim: int, base: float, divisor: float, dtype: DTypeLike
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosine and sine of the angles at each position, [T, h/2] each, read-only.

    The angle of pair i at position p is p / divisor * base^(-2i/h) radians. It is always computed in
    float64: at position 8191 a float32 angle would be off by 5e-4. The results are cached, since all layers of one kind
    use the same angles.
    """
    frequencies = base ** -(np.arange(0, head_dim, 2) / head_dim)  # [h/2]
    angles = np.outer(np.asarray(positions) / divisor, frequencies)  # [T, h/2]
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate each pair of channels by its angle.

    x [..., T, h], cos and sin [T, h/2] -> [..., T, h]
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rope_backward(dy: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Compute the gradient of `rope`: the transpose of a rotation is the rotation by the opposite angle.

    dy [..., T, h], cos and sin [T, h/2] -> dx [..., T, h]
    """
    return rope(dy, cos, -sin)
