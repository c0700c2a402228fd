"""What drafts propose, whatever becomes of their proposals."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.text.drafts import LookupDrafter, ModelDrafter
from gemma_np.text.sampling import Sampling
from tests.support import tiny
from tests.support.strategies import random_ids, seeds

GREEDY = Sampling()

texts = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def model_drafter(model, sampling=GREEDY, seed=0):
    return ModelDrafter(model, sampling, np.random.default_rng(seed), length=40, most=4)


@given(texts, st.integers(0, 6), st.integers(1, 4))
def test_lookup_copies_what_followed_the_longest_latest_match(text, count, longest):
    ids, probs = LookupDrafter(5, longest).propose(text, count)
    starts = [
        end + 1
        for n in range(longest, 0, -1)
        for end in reversed(range(n - 1, len(text) - 1))
        if text[end + 1 - n : end + 1] == text[-n:]
    ]
    expected = list(text)
    for step in range(count if starts else 0):
        expected.append(expected[starts[0] + step])
    assert ids == expected[len(text) :]
    assert [list(p) for p in probs] == [list(np.eye(5)[token]) for token in ids]


def test_lookup_in_a_period_goes_on_with_it():
    assert LookupDrafter(9).propose([7, 1, 2, 3, 1, 2, 3, 1], 7).ids == [2, 3, 1, 2, 3, 1, 2]
    assert LookupDrafter(9).propose([1, 2, 3], 4) == ([], [])


def test_a_model_proposes_what_it_would_generate():
    model = tiny.gemma()
    ids, probs = model_drafter(model).propose([2, 5, 7], 4)
    assert ids == list(model.stream_ids([2, 5, 7], 4))
    assert [p.argmax() for p in probs] == ids


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6), seeds)
def test_earlier_proposals_do_not_matter_to_later_ones(rounds, seed):
    """Each distribution is that of a model that has read only the text and the proposals before."""
    model, sampling = tiny.gemma(), Sampling(0.8, top_k=50)
    drafter, text = model_drafter(model, sampling, seed), [2, 5, 7]
    for step, (count, accepted) in enumerate(rounds):
        ids, probs = drafter.propose(text, count)
        assert len(ids) == count
        for n, (token, p) in enumerate(zip(ids, probs, strict=True)):
            assert p[token] > 0
            np.testing.assert_allclose(p, sampling.probs(model.logits(text + ids[:n])[-1]), atol=1e-4)
        text += [*ids[:accepted], int(random_ids(model.config, (seed, step), 1)[0])]


def test_a_model_proposes_nothing_beyond_its_context():
    short = tiny.gemma(max_position_embeddings=8)
    drafter = model_drafter(short)
    assert [len(drafter.propose([2] * length, 4).ids) for length in (5, 6, 7, 8, 9, 30)] == [4, 3, 2, 1, 0, 0]


def test_a_draft_that_is_no_numbers_is_an_error():
    model = tiny.gemma()
    model.weights = dict(model.weights) | {"model.norm.weight": np.full(12, np.nan, np.float32)}
    with pytest.raises(GemmaError, match="logits: nan after 1 tokens"):
        model_drafter(model).propose([2], 1)


@pytest.mark.parametrize("draft", ["shakespeare-1m", 3])
def test_what_is_no_draft_is_refused(draft):
    with pytest.raises(GemmaError, match=r"draft: .*, expected a model, a function that makes one, or 'lookup'"):
        tiny.gemma().resolve_draft(draft)


def test_a_draft_of_another_vocabulary_is_refused():
    model = tiny.gemma()
    with pytest.raises(GemmaError, match=r"draft: its tokenizer.model is not that of the model"):
        model.stream_ids([2], 1, draft=dataclasses.replace(model, tokenizer=None))
    bare = dataclasses.replace(tiny.gemma(vocab_size=100), tokenizer=None)
    for size in (99, 101, 164):
        other = dataclasses.replace(tiny.gemma(vocab_size=size), tokenizer=None)
        with pytest.raises(GemmaError, match=f"draft: vocab_size={size}, expected 100 as in the model"):
            bare.resolve_draft(other)


def test_a_draft_without_the_rows_for_images_is_taken():
    """The multimodal Gemma 3 checkpoints have 64 more rows than the others."""
    model, other = tiny.gemma(vocab_size=464), tiny.gemma(seed=1)
    assert model.resolve_draft(other) is other
    tokens = list(model.stream_ids([2, 5], 20, temperature=3.0, seed=0, draft=other))
    assert len(tokens) == 20
    assert max(tokens) >= 400  # one that the draft cannot read
    assert len(model_drafter(other).propose([2, 399], 4).ids) == 4
    assert model_drafter(other).propose([2, 400], 4) == ([], [])
