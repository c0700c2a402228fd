"""GeGLU."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.scope import Scope
from tests.support import naive
from tests.support.strategies import batches, lengths, normal, seeds, sizes
from tests.support.tolerances import assert_close


@given(arrays(np.float64, (2, 3), elements=st.floats(-100, 100)))
def test_gelu_against_loops(x):
    x[0, 0] = 1.0  # far to the left, 1 + tanh has no digits to compare
    kept = x.copy()
    expected = [naive.gelu(value) for value in x.ravel().tolist()]
    assert_close(gelu(x), np.reshape(expected, x.shape), "operation")
    assert (x == kept).all()


def test_gelu_far_out():
    assert gelu(np.array([-50.0, 0.0, 50.0])).tolist() == [0, 0, 50]


def test_gelu_of_a_number():
    assert_close(gelu(1.5), np.array(naive.gelu(1.5)), "operation")


@given(batches, lengths, sizes, sizes, seeds)
def test_feed_forward_against_loops(batch, T, D, F, seed):
    shapes = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    weights = {f"mlp.{name}.weight": normal(seed + n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    x = normal(seed + 3, *batch, T, D)
    expected = [naive.feed_forward(vector, weights) for vector in x.reshape(-1, D).tolist()]
    found = feed_forward(x, Scope(weights) / "mlp")
    assert_close(found, np.reshape(expected, x.shape), "operation")
