"""The search for scales: against many more scales, and exact where the weights are on a grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.compression.scale_search import (
    best_minima,
    best_scales,
    best_scales_and_minima,
    reciprocal,
    whole_numbers,
)
from tests.support.strategies import normal, seeds

BITS = st.integers(2, 6)


def case(seed, groups=20, channels=32):
    return normal(seed, channels, groups), np.exp(normal(seed + 1, channels, groups))


def error(x, importance, found):
    return (importance * np.square(found - x)).sum(0)


def error_of_scale(x, importance, scales, rounding):
    return error(x, importance, scales * rounding(x * reciprocal(scales)))


def error_with_minima(x, importance, scales, minima, highest):
    return error(x, importance, scales * whole_numbers(0, highest)((x - minima) * reciprocal(scales)) + minima)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_a_scale_among_a_thousand_is_hardly_better(bits):
    x, importance = case(0, groups=400)
    half = 2 ** (bits - 1)
    rounding = whole_numbers(-half, half - 1)
    found = error_of_scale(x, importance, best_scales(x, importance, rounding, -half), rounding)
    peak = np.abs(x).max(0) / half
    best = np.min([error_of_scale(x, importance, peak * s, rounding) for s in np.linspace(-2, 2, 1001)], axis=0)
    assert best.sum() < found.sum() < 1.08 * best.sum()


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
@pytest.mark.parametrize("bound", [0, np.inf])
def test_nor_is_one_of_600_scales_and_minima(bits, bound):
    x, importance = case(0, groups=200)
    highest = 2**bits - 1
    scales, minima = best_scales_and_minima(x, importance, highest, bound)
    assert (minima <= bound).all()
    found = error_with_minima(x, importance, scales, minima, highest)
    low, high = np.minimum(x.min(0), bound), x.max(0)
    span = (high - low) / highest
    tried = [
        error_with_minima(x, importance, span * s, low + span * up, highest)
        for s in np.linspace(0.5, 1.2, 40)
        for up in np.linspace(0, 2, 15)
    ]
    assert found.sum() < 1.06 * np.min(tried, axis=0).sum()


@given(BITS, seeds)
def test_weights_on_a_grid_leave_no_error(bits, seed):
    generator = np.random.default_rng(seed)
    half = 2 ** (bits - 1)
    numbers = generator.integers(-half, half, (32, 9))
    numbers[0], numbers[1] = -half, half - 1
    scales = generator.uniform(-3, 3, (1, 9))
    x, importance = scales * numbers, np.exp(normal(seed, 32, 9))
    found = best_scales(x, importance, whole_numbers(-half, half - 1), -half)
    assert np.allclose(found, scales, rtol=1e-9)
    for bound in (0, np.inf):
        found, minima = best_scales_and_minima(x, importance, 2**bits - 1, bound)
        assert np.allclose(found, np.abs(scales), rtol=1e-9)
        assert np.allclose(minima, x.min(0), rtol=1e-9)


def test_positive_weights_have_no_minimum_above_the_largest():
    x = 5 + np.abs(normal(0, 32, 10))
    scales, minima = best_scales_and_minima(x, np.ones_like(x), 15, 0)
    assert (minima <= 0).all()
    assert (minima == 0).any()
    assert (error_with_minima(x, np.ones_like(x), scales, minima, 15) < 32 * 0.2**2).all()
    scales, minima = best_scales_and_minima(x, np.ones_like(x), 15)
    assert (minima > 4).all()


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_equal_weights(value):
    x, importance = np.full((32, 3), value), np.exp(normal(0, 32, 3))
    scales = best_scales(x, importance, whole_numbers(-8, 7), -8)
    assert np.allclose(error_of_scale(x, importance, scales, whole_numbers(-8, 7)), 0)
    for bound in (0, np.inf):
        scales, minima = best_scales_and_minima(x, importance, 15, bound)
        assert np.allclose(error_with_minima(x, importance, scales, minima, 15), 0)


@given(seeds)
def test_the_best_minima_are_where_the_error_has_no_slope(seed):
    x, importance = case(seed)
    numbers, scales = np.rint(5 + 2 * normal(seed + 2, 32, 20)), normal(seed + 3, 1, 20)
    minima = best_minima(x, importance, scales, numbers)
    at, below, above = (error(x, importance, scales * numbers + minima + d) for d in (0, -1e-3, 1e-3))
    assert (at < below).all()
    assert (at < above).all()
