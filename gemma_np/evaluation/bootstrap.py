"""Is one model better than another, or was it luck? Both answer the same questions, and the differences are drawn anew.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16.
"""

from typing import NamedTuple

import numpy as np

DRAWS = 10_000
_AT_ONCE = 1000


class Difference(NamedTuple):
    """Of two models, on the same questions: the second less the first."""

    mean: float
    low: float  # 95 % of the draws are between low and high
    high: float
    p: float  # how often a difference of no more than luck is at least as large, in either direction
    draws: np.ndarray  # the means of the draws, [DRAWS]

    @property
    def is_more_than_chance(self) -> bool:
        """At the usual level of 5 %."""
        return self.p < 0.05


def paired_bootstrap(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Difference:
    """The mean difference of two models' results on the same questions, and how sure it is: first and second [N]."""
    differences = np.asarray(second, float) - np.asarray(first, float)
    generator, count = np.random.default_rng(seed), len(differences)
    draws = np.concatenate(
        [differences[generator.integers(0, count, (_AT_ONCE, count))].mean(axis=1) for _ in range(DRAWS // _AT_ONCE)]
    )
    mean = float(differences.mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    as_large = np.abs(draws - mean) >= abs(mean) - 1e-12  # around zero, as if there were no difference
    return Difference(mean, float(low), float(high), (as_large.sum() + 1) / (DRAWS + 1), draws)
