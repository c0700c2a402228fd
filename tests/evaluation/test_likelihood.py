"""Log-likelihoods of continuations: reading a shared beginning once changes no score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.evaluation.likelihood import Pair, likelihoods, read_sharing
from gemma_np.model.transformer import lm_head, transformer
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, random_ids, random_weights, seeds
from tests.support.tolerances import assert_close


def alone(pair, weights, config):
    """From the definition: one uncached pass, log softmax, the sum over the continuation."""
    ids = np.array(pair.context + pair.continuation)
    logits = lm_head(transformer(ids[:-1], weights, config), weights, config)[len(pair.context) - 1 :]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    greedy = (logits.argmax(axis=-1) == pair.continuation).all()
    return log_probs[np.arange(len(pair.continuation)), pair.continuation].sum(), greedy


@st.composite
def pairs_of_few_tokens(draw):
    """Draw pairs over three tokens, so that many share a beginning and some are equal."""
    ids = st.integers(0, 2)
    pair = st.builds(
        Pair, st.lists(ids, min_size=1, max_size=9).map(tuple), st.lists(ids, min_size=1, max_size=5).map(tuple)
    )
    return draw(st.lists(pair, min_size=1, max_size=8))


@given(configs(), pairs_of_few_tokens(), seeds)
def test_every_pair_scores_as_if_alone(config, pairs, seed):
    weights = random_weights(config, seed, np.float64)
    found = likelihoods(pairs, weights, config)
    expected = [alone(pair, weights, config) for pair in pairs]
    assert_close(np.array([f.log_prob for f in found]), np.array([e[0] for e in expected]), "model")
    assert [f.is_greedy for f in found] == [e[1] for e in expected]


@given(st.sets(st.lists(st.integers(0, 1), min_size=1, max_size=12).map(tuple), min_size=1, max_size=8), seeds)
def test_each_cache_is_as_if_its_context_were_read_alone(contexts, seed):
    config = tiny.config("gemma3_text")
    weights = random_weights(config, seed, np.float64)
    for context, (x, cache) in zip(sorted(contexts), read_sharing(sorted(contexts), 13, weights, config), strict=True):
        assert cache.length == len(context)
        assert_close(x, transformer(context, weights, config)[-1], "model")
        after = transformer([3], weights, config, cache)[-1]
        assert_close(after, transformer([*context, 3], weights, config)[-1], "model")


def test_a_shared_beginning_is_read_once(monkeypatch):
    model = tiny.gemma()
    read = []

    def counting(ids, *rest):
        read.append(len(ids))
        return original(ids, *rest)

    from gemma_np.evaluation import likelihood

    original = likelihood.prefill
    monkeypatch.setattr(likelihood, "prefill", counting)
    beginning = tuple(range(5, 35))
    pairs = [Pair((*beginning, n), (7, 8)) for n in range(4)]
    likelihoods(pairs, model.weights, model.config)
    assert sum(read) == 30 + 4


def test_the_same_choice_twice_scores_the_same_and_the_order_does_not_matter():
    model = tiny.gemma()
    pairs = [Pair((2, 5), c) for c in ((7,), (8, 9), (7,), (8, 9, 10))]
    found = likelihoods(pairs, model.weights, model.config)
    assert found[0] == found[2]
    back = likelihoods(pairs[::-1], model.weights, model.config)[::-1]
    assert_close(np.float32([f.log_prob for f in back]), np.array([f.log_prob for f in found]), "model")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair((), (5,)), "empty context or continuation, expected at least one token"),
        (Pair((5,), ()), "empty context or continuation"),
        (Pair((5,) * 60, (5,) * 6), "65 tokens, expected at most 64"),
    ],
)
def test_empty_and_too_long_pairs_are_refused(pair, message):
    model = tiny.gemma()
    with pytest.raises(GemmaError, match=message):
        likelihoods([pair], model.weights, model.config)


def test_a_full_context_is_scored():
    model = tiny.gemma()
    pair = Pair(tuple(random_ids(model.config, 0, 60).tolist()), (5, 6, 7, 8, 9))
    assert_close(
        np.float32(likelihoods([pair], model.weights, model.config)[0].log_prob),
        alone(pair, model.weights, model.config)[0],
        "model",
    )


def test_no_pairs_have_no_scores():
    model = tiny.gemma()
    assert likelihoods([], model.weights, model.config) == []


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("int8", [False, True])
def test_a_repeated_cache_continues_as_the_original(model_type, int8):
    from gemma_np.model.kv_cache import KVCache

    model = tiny.gemma(model_type)
    cache = KVCache(model.config, 20, int8=int8)
    transformer(random_ids(model.config, 0, 9), model.weights, model.config, cache)
    copies, copy = cache.repeated(3), cache.repeated()
    next_ids = random_ids(model.config, 1, 4)
    expected = transformer(next_ids, model.weights, model.config, copy)
    found = transformer(np.stack([next_ids] * 3), model.weights, model.config, copies)
    assert_close(found, np.stack([expected] * 3), "model")
    assert cache.length == 9
