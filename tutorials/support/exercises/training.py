"""The exercises on training: a masked loss, clipping, AdamW."""

import numpy as np

from gemma_np.training.losses import cross_entropy, masked_mean
from gemma_np.training.optimizer import AdamW, clip_by_global_norm
from support.exercise import Cases, Exercise


def _loss_cases(generator: np.random.Generator) -> Cases:
    draw, token = generator.standard_normal, generator.integers
    some = np.array([[False, True, True, False], [True, True, False, True]])
    return {
        "all positions": (draw((1, 3, 6)), token(0, 6, (1, 3)), np.ones((1, 3), bool)),
        "a text whose first half is masked": (draw((1, 4, 6)), token(0, 6, (1, 4)), np.arange(4)[None] >= 2),
        "two texts with different masks": (draw((2, 4, 6)), token(0, 6, (2, 4)), some),
        "logits in the thousands": (draw((2, 4, 6)) * 2000, token(0, 6, (2, 4)), some),
    }


def _masked_loss(logits: np.ndarray, targets: np.ndarray, loss_mask: np.ndarray) -> float:
    return masked_mean(*cross_entropy(logits, targets), loss_mask)[0]


def _losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return cross_entropy(logits, targets)[0]


MASKED_LOSS = Exercise(
    reference=_masked_loss,
    cases=_loss_cases,
    mistakes={
        "masked positions are left out of the sum, but not of the number it is divided by": (
            lambda logits, targets, loss_mask: float((_losses(logits, targets) * loss_mask).mean())
        ),
        "the losses are summed; divide by the number of positions in the mask": lambda logits, targets, loss_mask: (
            float(_losses(logits, targets)[loss_mask].sum())
        ),
        "the mask is not used; positions where loss_mask is False must not matter": lambda logits, targets, loss_mask: (
            float(_losses(logits, targets).mean())
        ),
        "the mean of each text is averaged; every position in the mask has the same weight": (
            lambda logits, targets, loss_mask: float(
                np.mean([_masked_loss(*text) for text in zip(logits, targets, loss_mask, strict=True)])
            )
        ),
        "the minus is missing; the loss is -log of the target's probability": lambda logits, targets, loss_mask: (
            -_masked_loss(logits, targets, loss_mask)
        ),
        "the logarithm is to base 2; the loss is in nats (np.log)": lambda logits, targets, loss_mask: (
            _masked_loss(logits, targets, loss_mask) / np.log(2)
        ),
    },
)

Pair = tuple[np.ndarray, np.ndarray]


def _clip_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "large gradients": (10 * draw((3, 4)), 10 * draw(4), 1.0),
        "small gradients": (0.01 * draw((3, 4)), 0.01 * draw(4), 1.0),
        "a large and a small gradient": (10 * draw((3, 4)), 0.1 * draw(4), 1.0),
        "another max_norm": (10 * draw((3, 4)), 10 * draw(4), 0.25),
    }


def _clip(first: np.ndarray, second: np.ndarray, max_norm: float) -> Pair:
    gradients = {"first": first.copy(), "second": second.copy()}
    clip_by_global_norm(gradients, max_norm)
    return gradients["first"], gradients["second"]


def _norm(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt((first * first).sum() + (second * second).sum()))


def _each_alone(first: np.ndarray, second: np.ndarray, max_norm: float) -> Pair:
    return _clip(first, 0 * second, max_norm)[0], _clip(0 * first, second, max_norm)[1]


def _always(first: np.ndarray, second: np.ndarray, max_norm: float) -> Pair:
    scale = max_norm / _norm(first, second)
    return first * scale, second * scale


def _sum_of_norms(first: np.ndarray, second: np.ndarray, max_norm: float) -> Pair:
    scale = min(1.0, max_norm / float(np.linalg.norm(first) + np.linalg.norm(second)))
    return first * scale, second * scale


def _no_root(first: np.ndarray, second: np.ndarray, max_norm: float) -> Pair:
    scale = min(1.0, max_norm / _norm(first, second) ** 2)
    return first * scale, second * scale


CLIP = Exercise(
    reference=_clip,
    cases=_clip_cases,
    mistakes={
        "each gradient is clipped by its own norm, which changes the direction; use one norm for both": _each_alone,
        "every number is clipped to max_norm; scale all of them by one factor": lambda first, second, max_norm: (
            np.clip(first, -max_norm, max_norm),
            np.clip(second, -max_norm, max_norm),
        ),
        "gradients with a smaller norm than max_norm are scaled up; leave them": _always,
        "the two norms are added; add the squares, then take the root": _sum_of_norms,
        "the norm is taken to be the sum of squares; take its square root": _no_root,
    },
)

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]

BETA1, BETA2, EPS, DECAY = 0.9, 0.95, 1e-8, 0.1


def _adamw_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "a vector, first step": (draw(4), draw(4), np.zeros(4), np.zeros(4), 1, 0.01),
        "a vector, later": (draw(4), draw(4), draw(4), draw(4) ** 2, 7, 0.01),
        "a matrix": (draw((3, 4)), draw((3, 4)), draw((3, 4)), draw((3, 4)) ** 2, 7, 0.01),
        "a gradient as small as eps": (draw(4), 1e-8 * draw(4), np.zeros(4), np.zeros(4), 1, 0.01),
    }


def _adamw(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    optimizer = AdamW(
        beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY, steps=step - 1, m={"": m.copy()}, v={"": v.copy()}
    )
    weights = {"": weight.copy()}
    optimizer.step(weights, {"": gradient}, learning_rate)
    return weights[""], optimizer.m[""], optimizer.v[""]


def _means(gradient: np.ndarray, m: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return m + (1 - BETA1) * (gradient - m), v + (1 - BETA2) * (gradient**2 - v)


def _decayed(weight: np.ndarray, learning_rate: float) -> np.ndarray:
    return weight * (1 - learning_rate * DECAY) if weight.ndim > 1 else weight


def _uncorrected(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    m, v = _means(gradient, m, v)
    return _decayed(weight, learning_rate) - learning_rate * m / (np.sqrt(v) + EPS), m, v


def _step_from_zero(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    return _adamw(weight, gradient, m, v, step + 1, learning_rate)


def _decay_in_gradient(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    pull = DECAY * weight if weight.ndim > 1 else 0.0
    new, m, v = _adamw(weight, gradient + pull, m, v, step, learning_rate)
    return new + (weight - _decayed(weight, learning_rate)), m, v


def _vectors_decay(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    new, m, v = _adamw(weight, gradient, m, v, step, learning_rate)
    return (new - learning_rate * DECAY * weight if weight.ndim == 1 else new), m, v


def _no_root_of_v(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    m, v = _means(gradient, m, v)
    size = v / (1 - BETA2**step) + EPS
    return _decayed(weight, learning_rate) - learning_rate / (1 - BETA1**step) * m / size, m, v


def _eps_in_root(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    m, v = _means(gradient, m, v)
    size = np.sqrt(v / (1 - BETA2**step) + EPS)
    return _decayed(weight, learning_rate) - learning_rate / (1 - BETA1**step) * m / size, m, v


def _uphill(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    new, m, v = _adamw(weight, gradient, m, v, step, learning_rate)
    return 2 * _decayed(weight, learning_rate) - new, m, v


def _corrected_means(
    weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, learning_rate: float
) -> Triple:
    new, m, v = _adamw(weight, gradient, m, v, step, learning_rate)
    return new, m / (1 - BETA1**step), v / (1 - BETA2**step)


ADAMW = Exercise(
    reference=_adamw,
    cases=_adamw_cases,
    mistakes={
        "m and v are not divided by 1 - beta ** step": _uncorrected,
        "beta is raised to step + 1; step is 1 in the first step": _step_from_zero,
        "the decay is added to the gradient (Adam with L2); multiply the weight by 1 - learning_rate * decay": (
            _decay_in_gradient
        ),
        "vectors decay as well; only weights with two axes do": _vectors_decay,
        "the step is divided by v; divide it by the square root": _no_root_of_v,
        "eps is added inside the square root; add it to the root": _eps_in_root,
        "the weight moves along the gradient; subtract the step": _uphill,
        "m and v are returned divided by 1 - beta ** step; the next step needs them undivided": (_corrected_means),
    },
)
