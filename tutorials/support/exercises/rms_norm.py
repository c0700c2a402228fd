"""The exercises on RMSNorm."""

import numpy as np

from gemma_np.model.rms_norm import rms_norm, rms_norm_backward
from support.exercise import Cases, Exercise, known

EPS = 1e-6


def _norm_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one vector": (draw(6), np.zeros(6), EPS),
        "a weight that is not zero": (draw(6), draw(6), EPS),
        "several tokens": (draw((4, 6)), draw(6), EPS),
        "a batch of texts": (draw((2, 4, 6)), draw(6), EPS),
        "a vector as small as eps": (draw((4, 6)) * 1e-3, draw(6), EPS),
        "float32": (draw((4, 6)).astype(np.float32), draw(6).astype(np.float32), EPS),
    }


def _root_mean_square(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(x * x, axis=-1, keepdims=True))


NORM = Exercise(
    reference=rms_norm,
    cases=_norm_cases,
    mistakes={
        known("norm-no-plus1"): lambda x, weight, eps: rms_norm(x, weight - 1, eps),
        "the mean is subtracted, as LayerNorm does; RMSNorm leaves it": lambda x, weight, eps: rms_norm(
            x - x.mean(axis=-1, keepdims=True), weight, eps
        ),
        "np.var measures from the mean, which RMSNorm leaves; take the mean of the squares": lambda x, weight, eps: (
            x / np.sqrt(np.var(x, axis=-1, keepdims=True) + eps) * (1 + weight)
        ),
        "x is divided by its length, which is sqrt(D) times its root mean square": lambda x, weight, eps: (
            x / np.linalg.norm(x, axis=-1, keepdims=True) * (1 + weight)
        ),
        "x is divided by its length plus eps; divide it by the root of the mean square plus eps": (
            lambda x, weight, eps: x / (np.linalg.norm(x, axis=-1, keepdims=True) + eps) * (1 + weight)
        ),
        "the squares are summed; take their mean": lambda x, weight, eps: (
            x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps) * (1 + weight)
        ),
        "the mean runs over all tokens; each token has its own (axis=-1, keepdims=True)": lambda x, weight, eps: (
            x / np.sqrt(np.mean(x * x) + eps) * (1 + weight)
        ),
        "eps is added to the root; add it to the mean square, below the root": lambda x, weight, eps: (
            x / (_root_mean_square(x) + eps) * (1 + weight)
        ),
        "eps is left out; add it to the mean square, below the root": lambda x, weight, eps: rms_norm(x, weight, 0.0),
        "x is divided by the mean square; divide it by its root (np.sqrt)": lambda x, weight, eps: (
            x / (np.mean(x * x, axis=-1, keepdims=True) + eps) * (1 + weight)
        ),
        "the weight is not used; multiply by 1 + weight": lambda x, weight, eps: rms_norm(x, 0 * weight, eps),
    },
)


def _backward_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one vector": (draw(6), draw(6), np.zeros(6), EPS),
        "a weight that is not zero": (draw(6), draw(6), draw(6), EPS),
        "several tokens": (draw((4, 6)), draw((4, 6)), draw(6), EPS),
    }


def _input_gradient(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return rms_norm_backward(dy, x, weight, eps)[0]


def _rms_held_fixed(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return dy * (1 + weight) / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


INPUT_GRADIENT = Exercise(
    reference=_input_gradient,
    cases=_backward_cases,
    mistakes={
        "the rms is treated as a constant; it depends on x as well": _rms_held_fixed,
        "dy is multiplied by weight; multiply it by 1 + weight": lambda dy, x, weight, eps: _input_gradient(
            dy, x, weight - 1, eps
        ),
        "eps is left out of the rms; add it to the mean square, below the root": lambda dy, x, weight, eps: (
            _input_gradient(dy, x, weight, 0.0)
        ),
        "the part along x is added; subtract it": lambda dy, x, weight, eps: (
            2 * _rms_held_fixed(dy, x, weight, eps) - _input_gradient(dy, x, weight, eps)
        ),
        "dy is not multiplied by 1 + weight": lambda dy, x, weight, eps: _input_gradient(dy, x, 0 * weight, eps),
        "the part along x is summed over the channels; the mean is needed (1/D)": lambda dy, x, weight, eps: (
            _rms_held_fixed(dy, x, weight, eps)
            + (_input_gradient(dy, x, weight, eps) - _rms_held_fixed(dy, x, weight, eps)) * x.shape[-1]
        ),
    },
)
