"""Which key a query may see, and the softmax over those."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.attention_mask import attention_mask, masked_softmax
from tests.support import naive
from tests.support.strategies import batches, lengths, normal, seeds
from tests.support.tolerances import assert_close

positions = st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True)  # in any order, as those of a ring
windows = st.none() | st.integers(1, 14)


@given(positions, positions, windows)
def test_visible_against_loops(query_positions, key_positions, window):
    expected = [[naive.attention_mask(q, k, window) for k in key_positions] for q in query_positions]
    assert attention_mask(query_positions, key_positions, window).tolist() == expected


@given(lengths, st.integers(0, 5))
def test_a_window_as_long_as_the_text_hides_nothing(T, more):
    text = range(T)
    assert (attention_mask(text, text, T + more) == attention_mask(text, text, None)).all()


def test_how_many_keys_are_seen():
    text = range(6)
    assert attention_mask(text, text, None).sum(axis=1).tolist() == [1, 2, 3, 4, 5, 6]
    assert attention_mask(text, text, 3).sum(axis=1).tolist() == [1, 2, 3, 3, 3, 3]
    assert attention_mask([5], text, 1).tolist() == [[False] * 5 + [True]]


@given(batches, lengths, lengths, seeds, st.sampled_from([1.0, 1000.0]))
def test_masked_softmax_against_loops(batch, T, S, seed, scale):
    scores = scale * normal(seed, *batch, T, S)
    mask = normal(seed + 1, T, S) > 0
    mask[:, 0] |= ~mask.any(axis=1)  # every query sees one key at least
    expected = [
        [naive.masked_softmax(row, seen) for row, seen in zip(rows, mask, strict=True)]
        for rows in scores.reshape(-1, T, S)
    ]
    probs = masked_softmax(scores, mask)
    assert_close(probs, np.reshape(expected, scores.shape), "operation")
    assert (probs[..., ~mask] == 0).all()


@given(lengths, seeds, st.floats(-1e6, 1e6))
def test_softmax_rows_sum_to_one_wherever_the_scores_lie(S, seed, shift):
    probs = masked_softmax(normal(seed, 2, S) + shift, np.ones((2, S), bool))
    assert_close(probs.sum(axis=-1), np.ones(2), "operation")


def test_masked_softmax_does_not_touch_its_input():
    scores = normal(0, 3, 3)
    kept = scores.copy()
    masked_softmax(scores, np.tri(3, dtype=bool))
    assert (scores == kept).all()
