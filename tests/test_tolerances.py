"""The comparison itself: what it must let pass and what it must not."""

import numpy as np
import pytest

from tests.support.tolerances import TOLERANCES, assert_close

CASES = list(TOLERANCES.items())
NUMBERS = np.array([[1.0, -100.0, 0.001], [3.0, 4.0, 5.0]])


def fails(found, expected, kind="operation", match=None):
    with pytest.raises(AssertionError, match=match):
        assert_close(found, expected, kind)


@pytest.mark.parametrize(("row", "tolerance"), CASES)
def test_the_limit_is_relative_to_the_largest_expected_number(row, tolerance):
    dtype, kind = row
    expected = NUMBERS.astype(dtype)
    change = np.zeros_like(expected)
    change[0, 2] = 100 * tolerance  # max|expected| is 100, though the number itself is small
    assert_close(expected, expected, kind)
    assert_close(expected + change / 2, expected, kind)
    fails(expected + change * 2, expected, kind)


def test_the_dtype_of_what_was_found_chooses_the_limit():
    off = NUMBERS * (1 + 1e-6)
    assert_close(off.astype(np.float32), NUMBERS, "model")
    fails(off, NUMBERS, "model")


def test_zeros_do_not_pass_for_small_numbers_nor_small_numbers_for_zeros():
    zeros, small = np.zeros(3), np.full(3, 1e-30)
    assert_close(zeros, zeros, "operation")
    fails(zeros, small)
    fails(small, zeros)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(wrong):
    found = NUMBERS.copy()
    found[1, 1] = wrong
    fails(found, NUMBERS)
    fails(NUMBERS, found)
    fails(found, found)


def test_shapes_are_not_broadcast():
    fails(NUMBERS[:1], NUMBERS, match=r"shape \(1, 3\), expected \(2, 3\)")


def test_nothing_equals_nothing_is_no_comparison():
    fails(NUMBERS[:0], NUMBERS[:0], match="empty")


def test_the_message_says_what_differs_and_where_most():
    found = NUMBERS.copy()
    found[0, 0] += 1e-3
    found[1, 1] += 2
    with pytest.raises(AssertionError, match=r"^scores: 6\.0 at \[1, 1\], expected 4\.0; off by 2, allowed 1e-10 "):
        assert_close(found, NUMBERS, "operation", "scores")
