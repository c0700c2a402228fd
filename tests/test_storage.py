"""The product with a weight as it is stored."""

import numpy as np
from hypothesis import given

from gemma_np.linear import linear
from tests import naive
from tests.strategies import batches, normal, seeds, sizes
from tests.tolerances import assert_close


@given(batches, sizes, sizes, seeds)
def test_linear_against_loops(batch, size_in, size_out, seed):
    x, weight = normal(seed, *batch, size_in), normal(seed + 1, size_out, size_in)
    expected = [naive.linear(vector, weight) for vector in x.reshape(-1, size_in)]
    assert_close(linear(x, weight), np.reshape(expected, (*batch, size_out)), "operation")


def test_linear_takes_what_is_not_contiguous():
    x, weight = normal(0, 4, 3, 5), normal(1, 7, 5)
    assert_close(linear(x.swapaxes(0, 1), weight), linear(x, weight).swapaxes(0, 1), "operation")
