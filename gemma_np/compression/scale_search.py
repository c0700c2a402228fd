"""Find the scale, or the scale and the minimum, with which whole numbers describe each group of weights best.

    weight ~ scale * number            or            weight ~ scale * number + minimum

The best numbers depend on the scale, and the best scale on the numbers. So try a few scales; for each, round the
weights to numbers, and compute the scale and minimum of least squared error for these numbers. Repeat this a few times
from the best ones found, and keep the best of all.

A group is a column: weights x [..., channels, N] are N groups side by side, so each operation runs along many groups at
once. `importance`, of the same shape, multiplies the squared error of each weight.

Source: Lloyd, Least squares quantization in PCM, 1982 (round and fit in turn).
"""

from collections.abc import Callable

import numpy as np

Rounding = Callable[[np.ndarray], np.ndarray]
"""Replace each number of an array [..., channels, N] by the nearest one that can be stored; return the same array."""

_OFFSETS = np.linspace(-1.5, 1.5, 9)  # in steps: the scales tried first
_REPEATS = 2
_NO_SPREAD = 1e-5  # variance over mean square of numbers that differ by rounding errors only
_ZERO = 1e-20  # far below the least step of a float16 scale


def whole_numbers(lowest: int, highest: int) -> Rounding:
    """Return the rounding of [..., channels, N] to whole numbers from lowest to highest."""

    def round_numbers(numbers: np.ndarray) -> np.ndarray:
        np.rint(numbers, out=numbers)
        return np.clip(numbers, lowest, highest, out=numbers)

    return round_numbers


def best_scales(x: np.ndarray, importance: np.ndarray, rounding: Rounding, end: float, step: float = 1) -> np.ndarray:
    """Return a scale for each group: x and importance [..., channels, N] -> [..., 1, N].

    The first scales tried let the weight of the largest magnitude, whatever its sign, become a number near `end`, at
    most one and a half steps away; step: the distance of neighbouring numbers.
    """
    high, low = x.max(-2, keepdims=True), x.min(-2, keepdims=True)
    per_peak = reciprocal(np.where(high > -low, high, low))
    weighted = importance * x
    scales, gains = np.zeros_like(high), np.zeros_like(high)
    numbers, products = np.empty_like(x), np.empty_like(x)

    def fit(per_scale: np.ndarray) -> None:
        rounding(np.multiply(x, per_scale, out=numbers))
        along = _dot(weighted, numbers)
        fitted = along * reciprocal(_dot(np.multiply(importance, numbers, out=products), numbers))
        _keep_better(gains, fitted * along, (scales, fitted))

    for offset in _OFFSETS:
        fit(per_peak * np.float32(end + step * offset))
    for _ in range(_REPEATS):
        fit(reciprocal(scales))
    return scales


def best_scales_and_minima(
    x: np.ndarray, importance: np.ndarray, highest: int, largest_minimum: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scale and a minimum for each group: x and importance [..., channels, N] -> two arrays [..., 1, N].

    The numbers are 0 to highest; no minimum is above `largest_minimum`. The first scales tried let the largest weight
    become a number near `highest`, at most one and a half away.
    """
    low = np.minimum(x.min(-2, keepdims=True), np.float32(largest_minimum))
    above = x - low
    per_range = reciprocal(above.max(-2, keepdims=True))
    weighted = importance * above
    total, sum_x = importance.sum(-2, keepdims=True), weighted.sum(-2, keepdims=True)
    scales, minima, gains = np.zeros_like(low), np.zeros_like(low), np.zeros_like(low)
    numbers, products = np.empty_like(x), np.empty_like(x)
    rounding = whole_numbers(0, highest)

    def fit(per_scale: np.ndarray) -> None:
        rounding(np.multiply(numbers, per_scale, out=numbers))
        sum_n = np.multiply(importance, numbers, out=products).sum(-2, keepdims=True)
        sum_nn, sum_xn = _dot(products, numbers), _dot(weighted, numbers)
        variance = sum_nn - sum_n * sum_n / total
        variance[variance < _NO_SPREAD * sum_nn] = 0
        slope = (sum_xn - sum_x * sum_n / total) * reciprocal(variance)
        minimum = np.minimum((sum_x - slope * sum_n) / total, np.float32(largest_minimum) - low)
        scale = (sum_xn - minimum * sum_n) * reciprocal(sum_nn)
        gain = scale * (2 * sum_xn - scale * sum_nn - 2 * minimum * sum_n) + minimum * (2 * sum_x - minimum * total)
        _keep_better(gains, gain, (scales, scale), (minima, minimum))

    for offset in _OFFSETS:
        np.copyto(numbers, above)
        fit(per_range * np.float32(highest + offset))
    for _ in range(_REPEATS):
        np.subtract(above, minima, out=numbers)
        fit(reciprocal(scales))
    return scales, minima + low


def best_minima(x: np.ndarray, importance: np.ndarray, scales: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the minima of least squared error for given numbers.

    x, importance and numbers [..., channels, N], scales [..., 1, N] -> [..., 1, N]
    """
    left = _dot(importance, x) - scales * _dot(importance, numbers)
    return left / importance.sum(-2, keepdims=True)


def reciprocal(values: np.ndarray) -> np.ndarray:
    """Return 1 / value, or 0 where a value is too small for a float16 scale: [...] -> [...]."""
    return np.divide(1, values, out=np.zeros_like(values), where=np.abs(values) > _ZERO)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the sum of the products of each group: [..., channels, N] twice -> [..., 1, N]."""
    return np.einsum("...cn,...cn->...n", a, b)[..., None, :]


def _keep_better(gains: np.ndarray, gain: np.ndarray, *results: tuple[np.ndarray, np.ndarray]) -> None:
    """Copy each new result to the best one so far, where it reduces the squared error of the group by more."""
    better = gain > gains
    for best, new in ((gains, gain), *results):
        np.copyto(best, new, where=better)
