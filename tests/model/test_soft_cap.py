"""Soft-capping."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.soft_cap import soft_cap, soft_cap_backward
from tests.support import naive
from tests.support.strategies import batches, normal, seeds
from tests.support.tolerances import assert_close

caps = st.sampled_from([0.5, 2.0, 30.0, 50.0])


@given(batches, caps, seeds)
def test_against_loops(batch, cap, seed):
    x = 2 * cap * normal(seed, *batch, 3)
    expected = [naive.soft_cap(value, cap) for value in x.ravel()]
    assert_close(soft_cap(x, cap), np.reshape(expected, x.shape), "operation")


@given(caps)
def test_limits(cap):
    assert_close(soft_cap(np.array([1e300, -1e300]), cap), np.array([cap, -cap]), "operation")
    tiny = np.array([-1e-9, 0.0, 1e-9])
    assert_close(soft_cap(tiny, cap), tiny, "operation")  # the identity near zero


def test_the_order_is_kept_and_the_input_untouched():
    x = np.linspace(-5, 5, 11)
    kept = x.copy()
    assert (np.diff(soft_cap(x, 2.0)) > 0).all()
    assert (x == kept).all()


def test_a_number_is_an_array_without_axes():
    assert_close(soft_cap(60.0, 50.0), soft_cap(np.array([60.0]), 50.0)[0], "operation")
    assert_close(soft_cap_backward(2.0, 40.0, 50.0), np.array(2 * (1 - 0.8**2)), "operation")
