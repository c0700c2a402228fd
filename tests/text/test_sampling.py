"""Choosing a token: the laws of greedy, temperature, top-k and top-p."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.text.sampling import Sampling
from tests.support.strategies import normal, seeds

temperatures = st.floats(0.1, 5)
sizes = st.integers(1, 30) | st.sampled_from([2048, 4001])  # NumPy sorts small arrays where it should split them


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


@given(sizes, temperatures, seeds)
def test_without_narrowing_it_is_the_softmax(V, temperature, seed):
    logits = normal(seed, V)
    ids, probs = Sampling(temperature).distribution(logits)
    assert sorted(ids) == list(range(V))
    np.testing.assert_allclose(probs, softmax(logits / temperature)[ids], rtol=1e-12)
    assert (np.diff(probs) <= 0).all()


@given(sizes, temperatures, st.integers(1, 40), seeds)
def test_top_k_keeps_the_k_largest_in_proportion(V, temperature, k, seed):
    logits = normal(seed, V)
    ids, probs = Sampling(temperature, top_k=k).distribution(logits)
    assert set(ids) == set(np.argsort(-logits)[:k])
    np.testing.assert_allclose(probs, softmax(logits[ids] / temperature), rtol=1e-12)


@given(sizes, temperatures, st.floats(0.01, 1), seeds)
def test_top_p_keeps_the_fewest_that_reach_p(V, temperature, p, seed):
    logits = normal(seed, V)
    every, all_probs = Sampling(temperature).distribution(logits)
    ids, probs = Sampling(temperature, top_p=p).distribution(logits)
    kept = len(ids)
    assert list(ids) == list(every[:kept])
    assert all_probs[:kept].sum() >= p - 1e-9
    assert all_probs[: kept - 1].sum() < p
    assert probs.sum() == pytest.approx(1)


@given(sizes, temperatures, st.none() | st.integers(1, 40), st.none() | st.floats(0.3, 1), st.floats(0, 1), seeds)
def test_min_p_keeps_those_with_its_share_of_the_largest(V, temperature, k, p, share, seed):
    logits = normal(seed, V)
    every, all_probs = Sampling(temperature, k, p).distribution(logits)
    ids, probs = Sampling(temperature, k, p, min_p=share).distribution(logits)
    kept = all_probs >= share * all_probs.max()
    assert list(ids) == list(every[kept])
    np.testing.assert_allclose(probs, all_probs[kept] / all_probs[kept].sum(), rtol=1e-12)


@given(sizes, st.floats(0.2, 5), st.lists(st.integers(0, 5)), seeds, st.sampled_from([0.0, 0.7]))
def test_the_repetition_penalty_is_that_of_transformers(V, penalty, text, seed, temperature):
    text = [id % V for id in text]
    logits = normal(seed, V)
    expected = [x if id not in text else x / penalty if x > 0 else x * penalty for id, x in enumerate(logits.tolist())]
    before = logits.copy()
    found = Sampling(temperature, repetition_penalty=penalty).probs(logits, text)
    np.testing.assert_allclose(found, Sampling(temperature).probs(np.array(expected)), rtol=1e-12)
    assert (logits == before).all()


@pytest.mark.framework
@given(
    sizes,
    temperatures,
    st.integers(1, 40),
    st.sampled_from([0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.4]),
    st.sampled_from([0.7, 1.0, 1.4]),
    seeds,
)
def test_all_together_are_the_sampling_of_transformers(V, temperature, k, p, share, penalty, seed):
    import torch
    from transformers import GenerationConfig
    from transformers.generation import logits_process as theirs

    logits, text = normal(seed, V), [0, V // 2, 0]
    scores = torch.tensor(logits)[None]
    for process in (
        theirs.RepetitionPenaltyLogitsProcessor(penalty),
        theirs.TemperatureLogitsWarper(temperature),
        theirs.TopKLogitsWarper(k),
        theirs.TopPLogitsWarper(p),
        theirs.MinPLogitsWarper(share),
    ):
        scores = process(torch.tensor([text]), scores)
    found = Sampling(temperature, k, p, share, penalty).probs(logits, text)
    np.testing.assert_allclose(found, torch.softmax(scores, -1)[0].numpy(), rtol=1e-9, atol=1e-12)
    assert {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"} <= set(vars(GenerationConfig()))


@given(sizes, seeds, st.sampled_from([{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-6}]))
def test_at_their_limits_all_are_greedy(V, seed, narrow):
    logits = normal(seed, V)
    options = {"temperature": 1.0} | narrow
    assert Sampling(**options).choose(logits, np.random.default_rng(seed)) == logits.argmax()
    assert Sampling().choose(logits, np.random.default_rng(seed)) == logits.argmax()


@pytest.mark.parametrize(("temperature", "kept"), [(5e-324, 1), (1e-320, 1), (1e-300, 1), (1e308, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_temperatures_at_the_ends_of_the_float_numbers(temperature, kept, dtype):
    logits = normal(0, 9, dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        ids, probs = Sampling(temperature).distribution(logits)
    assert ids[0] == logits.argmax()
    np.testing.assert_allclose(probs, [1 / kept] * kept + [0] * (9 - kept))
    assert Sampling(temperature).choose(logits, np.random.default_rng(0)) in range(9)


@given(sizes, seeds, st.floats(-1e4, 1e4))
def test_a_constant_added_to_all_logits_changes_nothing(V, seed, constant):
    logits = normal(seed, V)
    _, probs = Sampling(0.7).distribution(logits)
    _, shifted = Sampling(0.7).distribution(logits + constant)
    np.testing.assert_allclose(shifted, probs, rtol=1e-9)


def test_draws_come_as_often_as_they_should():
    sampling, generator = Sampling(0.5, top_k=3), np.random.default_rng(0)
    logits = np.array([1.0, 0.0, 2.0, 1.5], np.float32)
    counts = np.bincount([sampling.choose(logits, generator) for _ in range(20_000)], minlength=4) / 20_000
    expected = softmax(np.array([1.0, -np.inf, 2.0, 1.5]) / 0.5)
    np.testing.assert_allclose(counts, expected, atol=0.015)  # four standard errors
    assert counts[1] == 0


def test_the_generator_is_all_the_chance_there_is():
    logits = normal(0, 50)
    draws = [[Sampling(2.0).choose(logits, np.random.default_rng(seed)) for _ in range(5)] for seed in (7, 7)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: -0.1, expected 0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": float("inf")}, "temperature: inf"),
        ({"top_k": 0}, "top_k: 0, expected 1 or more"),
        ({"top_p": 0.0}, "top_p: 0.0, expected more than 0"),
        ({"top_p": 1.1}, "top_p: 1.1"),
        ({"min_p": -0.1}, "min_p: -0.1, expected 0 to 1"),
        ({"min_p": float("nan")}, "min_p: nan"),
        ({"repetition_penalty": 0}, "repetition_penalty: 0, expected more than 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty: inf"),
    ],
)
def test_what_makes_no_sense(options, message):
    with pytest.raises(GemmaError, match=message):
        Sampling(**options)
