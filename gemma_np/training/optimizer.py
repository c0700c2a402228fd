"""Gradient clipping, AdamW, and the learning-rate schedule.

Source: Loshchilov and Hutter, arXiv 1711.05101 (AdamW), arXiv 1608.03983 (cosine); Pascanu et al., arXiv 1211.5063
(clipping).
"""

import math
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(kw_only=True)
class AdamW:
    """Adam with decoupled weight decay. The moments have the names of their weights.

    Weight decay applies to matrices, not to the vectors of the norms.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    steps: int = 0
    m: dict[str, np.ndarray] = field(default_factory=dict)  # running mean of the gradient
    v: dict[str, np.ndarray] = field(default_factory=dict)  # running mean of its square

    def step(
        self, weights: MutableMapping[str, np.ndarray], gradients: MutableMapping[str, np.ndarray], learning_rate: float
    ) -> None:
        """Update every weight in place."""
        self.steps += 1
        # The running means start at zero; these corrections remove the bias towards it.
        correction1, correction2 = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps
        for name, gradient in gradients.items():
            weight = weights[name]
            m = self.m.setdefault(name, np.zeros_like(weight))
            v = self.v.setdefault(name, np.zeros_like(weight))
            m += (1 - self.beta1) * (gradient - m)
            v += (1 - self.beta2) * (gradient * gradient - v)
            if weight.ndim > 1:
                weight *= 1 - learning_rate * self.weight_decay
            weight -= (learning_rate / correction1) * m / (np.sqrt(v / correction2) + self.eps)


def clip_by_global_norm(gradients: MutableMapping[str, np.ndarray], max_norm: float) -> float:
    """Scale all gradients by one factor, in place, so that their global norm is at most `max_norm`.

    Return the norm before clipping, summed over rows in float64. Gradients with an infinite or NaN norm are unchanged.
    """
    norm = math.sqrt(sum(float(np.vecdot(g, g).sum(dtype=np.float64)) for g in gradients.values()))
    if max_norm < norm < math.inf:
        for gradient in gradients.values():
            gradient *= max_norm / norm
    return norm


def cosine_schedule(step: int, steps: int, peak: float, warmup_steps: int, final: float = 0.1) -> float:
    """Return the learning rate of a step: linear warm-up to the peak, then half a cosine to `final` times the peak.

    step: counted from 0 to steps - 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
