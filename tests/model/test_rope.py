"""Rotary positions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.rope import rope, rope_cos_sin
from tests.support import naive
from tests.support.strategies import batches, lengths, normal, seeds
from tests.support.tolerances import assert_close

pairs = st.integers(1, 4)
bases = st.sampled_from([10.0, 10_000.0, 1_000_000.0])
divisors = st.sampled_from([1.0, 8.0])
starts = st.integers(0, 8191)


@given(batches, lengths, pairs, starts, bases, divisors, seeds)
def test_against_loops(batch, T, half, start, base, divisor, seed):
    x, positions = normal(seed, *batch, T, 2 * half), range(start, start + T)
    vectors = x.reshape(-1, T, 2 * half)
    expected = [
        [naive.rope(vector, position, base, divisor) for vector, position in zip(text, positions, strict=True)]
        for text in vectors
    ]
    turned = rope(x, *rope_cos_sin(positions, 2 * half, base, divisor, np.float64))
    # An angle of 8191 radians is itself known to 1e-12 only.
    assert_close(turned, np.reshape(expected, x.shape), "operation" if start < 100 else "model")


@given(pairs, st.integers(0, 50), st.integers(0, 50), st.integers(0, 500), seeds)
def test_scores_depend_on_the_difference_of_positions_alone(half, q_position, k_position, shift, seed):
    q, k = normal(seed, 1, 2 * half), normal(seed + 1, 1, 2 * half)

    def score(q_position, k_position):
        positions = (range(p, p + 1) for p in (q_position, k_position))
        turned_q, turned_k = (
            rope(x, *rope_cos_sin(p, 2 * half, 100.0, 2.0, np.float64)) for x, p in zip((q, k), positions, strict=True)
        )
        return turned_q @ turned_k.T

    length = np.linalg.norm(q) * np.linalg.norm(k)  # a score may vanish; what it is made of does not
    found, expected = score(q_position + shift, k_position + shift), score(q_position, k_position)
    assert_close(found + length, expected + length, "model")


def test_other_differences_give_other_scores():
    q, k = normal(0, 5, 8), normal(1, 1, 8)
    turned = rope(np.repeat(k, 5, axis=0), *rope_cos_sin(range(5), 8, 100.0, 1.0, np.float64))
    assert len(np.unique(np.round(turned @ q[0], 6))) == 5


def test_position_zero_is_not_turned():
    x = normal(0, 1, 6)
    assert_close(rope(x, *rope_cos_sin(range(1), 6, 10_000.0, 1.0, np.float64)), x, "operation")


def test_turning_keeps_the_length():
    x = normal(0, 9, 6)
    turned = rope(x, *rope_cos_sin(range(1000, 1009), 6, 10_000.0, 1.0, np.float64))
    assert_close(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), "operation")


@pytest.mark.parametrize("position", [8191, 131_071])
def test_float32_gets_angles_worked_out_in_float64(position):
    """A float32 angle would be off by 5e-4 at position 8191; its cosine, once right, is off by no more than 6e-8."""
    wanted = rope_cos_sin(range(position, position + 1), 256, 10_000.0, 1.0, np.float64)
    found = rope_cos_sin(range(position, position + 1), 256, 10_000.0, 1.0, np.float32)
    assert all(array.dtype == np.float32 for array in found)
    assert max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)) < 6.1e-8


def test_the_angles_are_shared_and_hence_read_only():
    cos, sin = rope_cos_sin(range(3), 4, 10.0, 1.0, np.float64)
    with pytest.raises(ValueError, match="read-only"):
        cos[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        sin[0] = 0
