"""The paired bootstrap: means, intervals, p-values."""

import numpy as np
from hypothesis import given

from gemma_np.evaluation.bootstrap import paired_bootstrap
from tests.support.strategies import normal, seeds
from tests.support.tolerances import assert_close


def test_no_difference_is_not_significant():
    found = paired_bootstrap(np.ones(20), np.ones(20))
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.is_significant


def test_a_large_difference_is_significant():
    first = normal(0, 200)
    found = paired_bootstrap(first, first + 0.5 + 0.1 * normal(1, 200))
    assert found.is_significant
    assert 0.4 < found.low < 0.5 < found.high < 0.6


@given(seeds)
def test_the_interval_is_the_normal_one_for_many_questions(seed):
    differences = normal(seed, 400)
    found = paired_bootstrap(np.zeros(400), differences, seed)
    half = 1.96 * differences.std() / 20
    assert abs(found.low - (differences.mean() - half)) < 0.1 * half
    assert abs(found.high - (differences.mean() + half)) < 0.1 * half


def test_chance_is_rarely_significant():
    significant = [paired_bootstrap(np.zeros(100), normal(seed, 100)).is_significant for seed in range(100)]
    assert sum(significant) <= 12


def test_the_same_seed_gives_the_same_result_and_swapping_changes_the_sign():
    first, second = normal(0, 50), normal(1, 50)
    found, again = paired_bootstrap(first, second), paired_bootstrap(first, second)
    back = paired_bootstrap(second, first)
    assert (found.resampled == again.resampled).all()
    assert_close(-back.resampled, found.resampled, "operation")
