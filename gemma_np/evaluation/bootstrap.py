"""Paired bootstrap: test whether the difference between two models is significant.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_CHUNK = 1000


class Difference(NamedTuple):
    """The mean difference of two models on the same questions: the second minus the first."""

    mean: float
    low: float  # 95 % confidence interval
    high: float
    p: float  # two-sided p-value: how often chance alone gives a difference at least as large
    resampled: np.ndarray  # means of the resamples, [n]

    @property
    def is_significant(self) -> bool:
        """Return whether p is below 5 %."""
        return self.p < 0.05

    @property
    def verdict(self) -> str:
        """Return in words what the test shows."""
        return f"{'shown' if self.is_significant else 'not shown'} to differ (p = {self.p:.2g})"


def paired_bootstrap(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Difference:
    """Estimate the mean difference of two models' results on the same questions: first and second [N]."""
    differences = np.asarray(second, float) - np.asarray(first, float)
    generator, count = np.random.default_rng(seed), len(differences)
    resampled = np.concatenate(
        [differences[generator.integers(0, count, (_CHUNK, count))].mean(axis=1) for _ in range(RESAMPLES // _CHUNK)]
    )
    mean = float(differences.mean())
    low, high = np.quantile(resampled, [0.025, 0.975])
    as_large = np.abs(resampled - mean) >= abs(mean) - 1e-12  # centered at zero, the null hypothesis
    return Difference(mean, float(low), float(high), (as_large.sum() + 1) / (RESAMPLES + 1), resampled)
