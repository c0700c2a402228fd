"""Root-mean-square normalisation."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.rms_norm import rms_norm
from tests.support import naive
from tests.support.strategies import batches, normal, seeds, sizes
from tests.support.tolerances import assert_close


@given(batches, sizes, seeds, st.sampled_from([1e-6, 0.1, 2.0]))
def test_against_loops(batch, D, seed, eps):
    x, weight = normal(seed, *batch, D), normal(seed + 1, D)
    expected = [naive.rms_norm(vector, weight, eps) for vector in x.reshape(-1, D)]
    assert_close(rms_norm(x, weight, eps), np.reshape(expected, x.shape), "operation")


def test_a_weight_of_zero_brings_every_vector_to_length_sqrt_d():
    y = rms_norm(normal(0, 5, 16) * np.logspace(-3, 3, 5)[:, None], np.zeros(16), eps=1e-12)
    assert np.allclose(np.linalg.norm(y, axis=-1), 4, rtol=1e-5)


def test_the_length_of_a_vector_does_not_matter():
    x, weight = normal(0, 3, 8), normal(1, 8)
    assert_close(rms_norm(1000 * x, weight, eps=1e-18), rms_norm(x, weight, eps=1e-18), "operation")


def test_zeros_stay_zeros():
    assert_close(rms_norm(np.zeros((2, 4)), normal(0, 4), 1e-6), np.zeros((2, 4)), "operation")
