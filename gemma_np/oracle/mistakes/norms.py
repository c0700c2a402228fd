"""Mistakes in RMSNorm, made in every norm: the factor 1 + weight."""

from collections.abc import Callable

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.model.rms_norm import rms_norm
from gemma_np.oracle.mistakes.mistake import mistake

Norm = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

EVERY_NORM = ("model.attention.rms_norm", "model.block.rms_norm", "model.transformer.rms_norm")


@mistake(fix="multiply by 1 + w", right=rms_norm, replaces=EVERY_NORM, shows="*norm")
def norm_no_plus1(x: np.ndarray, weight: np.ndarray, eps: float, *, original: Norm) -> np.ndarray:
    """The norm multiplies by w instead of 1 + w.

    Multiply x / rms(x) by w: x [..., D], weight [D] -> [..., D].
    """
    return original(x, weight - 1, eps)


@mistake(
    fix="subtract 1 when loading such weights, or do not add it", right=rms_norm, replaces=EVERY_NORM, shows="*norm"
)
def norm_plus1_twice(x: np.ndarray, weight: np.ndarray, eps: float, *, original: Norm) -> np.ndarray:
    """The norm adds 1 to weights that already include it, as in GGUF files.

    Multiply x / rms(x) by 2 + w: x [..., D], weight [D] -> [..., D].
    """
    return original(x, weight + 1, eps)


@mistake(fix="multiply in float32, then round the product", right=rms_norm, replaces=EVERY_NORM, shows="*norm")
def norm_cast_early(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """The normalized vector is rounded to bfloat16 before it is multiplied by 1 + w.

    Round x / rms(x), then multiply it: x [..., D], weight [D] -> [..., D].
    """
    normalised = rms_norm(x, np.zeros_like(weight), eps)
    return normalised.astype(bfloat16).astype(x.dtype) * (1 + weight)
