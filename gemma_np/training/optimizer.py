"""From gradients to the next weights: clipping, AdamW, and how large a step to take when.

Source: Loshchilov and Hutter, arXiv 1711.05101 (AdamW), arXiv 1608.03983 (cosine); Pascanu et al., arXiv 1211.5063
(clipping).
"""

import math
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class AdamW:
    """Adam with decoupled weight decay. Moments carry the names of their weights.

    The decay pulls matrices towards zero, and leaves the norms' vectors alone.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    steps: int = 0
    first: dict[str, np.ndarray] = field(default_factory=dict)  # running mean of the gradient
    second: dict[str, np.ndarray] = field(default_factory=dict)  # running mean of its square

    def step(
        self, weights: MutableMapping[str, np.ndarray], gradients: MutableMapping[str, np.ndarray], rate: float
    ) -> None:
        """Move every weight, in place, by about `rate` against its gradient."""
        self.steps += 1
        # The means start at zero; dividing by what has been averaged so far takes that bias out.
        seen1, seen2 = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps
        for name, gradient in gradients.items():
            weight = weights[name]
            first = self.first.setdefault(name, np.zeros_like(weight))
            second = self.second.setdefault(name, np.zeros_like(weight))
            first += (1 - self.beta1) * (gradient - first)
            second += (1 - self.beta2) * (gradient * gradient - second)
            if weight.ndim > 1:
                weight *= 1 - rate * self.weight_decay
            weight -= (rate / seen1) * first / (np.sqrt(second / seen2) + self.eps)


def clip_by_global_norm(gradients: MutableMapping[str, np.ndarray], limit: float) -> float:
    """Scale all gradients down together, in place, so that their common norm is at most the limit.

    Returns the norm before; the rows' squares are summed in float64. Gradients of infinite norm are left as they are.
    """
    norm = math.sqrt(sum(float(np.vecdot(g, g).sum(dtype=np.float64)) for g in gradients.values()))
    if limit < norm < math.inf:
        for gradient in gradients.values():
            gradient *= limit / norm
    return norm


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float = 0.1) -> float:
    """Linear warm-up from 0 to the peak over `warmup` steps, then half a cosine down to `final` times the peak.

    step: 0 for the first.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))
