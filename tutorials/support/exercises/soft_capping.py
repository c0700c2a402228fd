"""The exercises on soft-capping."""

import numpy as np

from gemma_np.model.attention_mask import masked_softmax
from gemma_np.model.soft_cap import soft_cap, soft_cap_backward
from support.exercise import Cases, Exercise, known


def _cap_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "scores far below the cap": (draw(5) * 1e-3, 50.0),
        "scores as large as the cap": (draw((3, 5)) * 50, 50.0),
        "scores far above it": (np.array([-5000.0, 5000.0, 80.0]), 50.0),
        "another cap": (draw((2, 3, 5)) * 50, 30.0),
        "float32": (draw(5).astype(np.float32) * 50, 30.0),
    }


SOFT_CAP = Exercise(
    reference=soft_cap,
    cases=_cap_cases,
    mistakes={
        known("cap-formula"): lambda x, cap: x * np.tanh(x / cap),
        "it is a hard clip, without gradient beyond the cap; use cap * tanh(x / cap)": lambda x, cap: np.clip(
            x, -cap, cap
        ),
        "the result lies between -1 and 1; multiply it by the cap": lambda x, cap: np.tanh(x / cap),
        "x is not divided by the cap; use cap * tanh(x / cap)": lambda x, cap: cap * np.tanh(x),
        "the cap is always 50; it is an argument": lambda x, cap: soft_cap(x, 50.0),
    },
)


def _gradient_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "a score of zero": (draw(1), np.zeros(1), 50.0),
        "scores below the cap": (draw(5), soft_cap(draw(5) * 20, 50.0), 50.0),
        "scores above the cap": (draw((2, 5)), soft_cap(60 + 50 * generator.random((2, 5)), 50.0), 50.0),
        "another cap": (draw((2, 5)), soft_cap(draw((2, 5)) * 20, 30.0), 30.0),
    }


CAP_GRADIENT = Exercise(
    reference=soft_cap_backward,
    cases=_gradient_cases,
    mistakes={
        "tanh is applied again; y is capped already, so tanh(x / cap) is y / cap": lambda dy, y, cap: (
            dy * (1 - np.tanh(y / cap) ** 2)
        ),
        "it is the gradient of a hard clip; the slope of tanh is 1 - tanh^2": lambda dy, y, cap: np.where(
            np.abs(y) < cap, dy, 0
        ),
        "y is not divided by the cap; the slope is 1 - (y / cap)^2": lambda dy, y, cap: dy * (1 - y**2),
        "the slope is 1 - y / cap; square y / cap": lambda dy, y, cap: dy * (1 - y / cap),
        "1 / cap is left over; the cap before tanh and the one inside it cancel": lambda dy, y, cap: (
            soft_cap_backward(dy, y, cap) / cap
        ),
        "dy is left out; multiply the slope by it": lambda dy, y, cap: soft_cap_backward(np.ones_like(dy), y, cap),
    },
)


def _probs_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    past = np.tri(4, dtype=bool)
    return {
        "small scores, nothing hidden": (draw((4, 4)) * 1e-4, np.ones((4, 4), bool), 50.0),
        "small scores and a mask": (draw((4, 4)) * 1e-4, past, 50.0),
        "scores above the cap": (draw((4, 4)) * 100, past, 50.0),
        "visible scores near -cap": (draw((4, 4)) - 100, past, 50.0),
    }


def _probs(scores: np.ndarray, mask: np.ndarray, cap: float) -> np.ndarray:
    return masked_softmax(soft_cap(scores, cap), mask)


def _capped_after_mask(scores: np.ndarray, mask: np.ndarray, cap: float) -> np.ndarray:
    return masked_softmax(soft_cap(np.where(mask, scores, -np.inf), cap), np.ones_like(mask))


CAPPED_PROBS = Exercise(
    reference=_probs,
    cases=_probs_cases,
    mistakes={
        "the scores are not capped; cap them, then hide, then take the softmax": lambda scores, mask, cap: (
            masked_softmax(scores, mask)
        ),
        "scores are capped after the mask, which turns the -inf of hidden keys into -cap; cap first, then hide": (
            _capped_after_mask
        ),
        "the probabilities are capped; cap the scores, before softmax": lambda scores, mask, cap: soft_cap(
            masked_softmax(scores, mask), cap
        ),
        "hidden keys are zeroed after softmax, so rows do not sum to 1; hide their scores before softmax": (
            lambda scores, mask, cap: np.where(mask, _probs(scores, np.ones_like(mask), cap), 0)
        ),
        "hidden keys get the score 0, whose exponential is 1; give them -inf": lambda scores, mask, cap: _probs(
            np.where(mask, scores, 0), np.ones_like(mask), cap
        ),
        "the mask is not used; hidden keys have probability 0": lambda scores, mask, cap: _probs(
            scores, np.ones_like(mask), cap
        ),
    },
)
