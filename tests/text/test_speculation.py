"""Speculative decoding against plain decoding: the same tokens, the same distribution, the same errors."""

import dataclasses
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import Gemma, GemmaError
from gemma_np.config import GLOBAL, LOCAL
from gemma_np.text.drafts import Proposals
from gemma_np.text.sampling import Sampling
from gemma_np.text.speculation import Acceptance, acceptance_probability, residual, speculative_ids, verify
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, normal, random_ids, random_weights, seeds
from tests.support.tolerances import assert_close

samplings = st.builds(
    Sampling,
    st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    st.none() | st.integers(1, 30),
    st.none() | st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    st.none() | st.sampled_from([0.0, 0.1, 0.6]),
)
sizes = st.integers(1, 40) | st.sampled_from([2048, 5001])


def with_noise(model, noise, seed=1):
    """A draft that agrees with the model now and then."""
    weights = random_weights(model.config, seed, np.float64)
    return dataclasses.replace(
        model, weights={name: weight + noise * weights[name] for name, weight in model.weights.items()}
    )


# The law of rejection sampling


@given(sizes, samplings, samplings, seeds)
def test_accepted_and_replaced_tokens_together_have_the_models_distribution(V, own, drafts, seed):
    """The identity, in float64: q min(1, p / q) + P(rejected) residual = p."""
    p, q = own.probs(normal(seed, V)), drafts.probs(normal(seed + 1, V))
    accepted = np.array([q[y] * acceptance_probability(p[y], q[y]) if q[y] else 0.0 for y in range(V)])
    assert_close(accepted + (1 - accepted.sum()) * residual(p, q), p, "operation")


def test_distributions_that_differ_less_than_rounding_have_a_residual():
    """The draft proposes a token that the model never would, with a probability that is lost in the sum."""
    p, q = np.array([1.0, 0.0]), np.array([1.0, 1e-20])
    assert acceptance_probability(p[1], q[1]) == 0
    assert residual(p, q).tolist() == [1.0, 0.0]


@given(sizes, seeds)
def test_a_draft_without_the_last_tokens_has_probability_0_there(V, seed):
    p, q = Sampling(1.0).probs(normal(seed, V + 3)), Sampling(1.0).probs(normal(seed + 1, V))
    assert_close(residual(p, q), residual(p, np.append(q, np.zeros(3))), "operation")


class Scripted:
    """A generator whose uniform numbers are given."""

    def __init__(self, uniforms):
        self.uniforms = iter(uniforms)
        self.choice = np.random.default_rng(0).choice

    def random(self):
        return next(self.uniforms)


def test_a_proposal_is_accepted_below_its_acceptance_probability():
    with np.errstate(divide="ignore"):
        logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]])
    q = np.array([0.25, 0.6, 0.15])
    proposals, sampling = Proposals([1, 2], [q, q]), Sampling(1.0)
    assert verify(proposals, logits, sampling, Scripted([0.49, 0.99])) == [1, 2, 1]
    first, *others = verify(proposals, logits, sampling, Scripted([0.51]))
    assert first in (0, 2)  # 1 has no residual
    assert not others


@given(st.integers(2, 4), samplings, samplings, seeds)
def test_chains_of_proposals_keep_the_distribution_of_texts(V, own, drafts, seed):
    """The probability of each text of two tokens, from every proposal and both outcomes, in float64."""
    p = {text: own.probs(normal((seed, 1, *text), V)) for n in range(2) for text in product(range(V), repeat=n)}
    q = {text: drafts.probs(normal((seed, 2, *text), V)) for text in p}
    total = np.zeros((V, V))
    for a, b in product(range(V), repeat=2):
        if not q[()][a] * q[a,][b]:
            continue
        proposed = q[()][a] * q[a,][b]
        accept_a = acceptance_probability(p[()][a], q[()][a])
        accept_b = acceptance_probability(p[a,][b], q[a,][b])
        total[a, b] += proposed * accept_a * accept_b
        if accept_b < 1:
            total[a] += proposed * accept_a * (1 - accept_b) * residual(p[a,], q[a,])
        if accept_a < 1:
            other = residual(p[()], q[()])
            total += proposed * (1 - accept_a) * other[:, None] * np.array([p[token,] for token in range(V)])
    assert_close(total, p[()][:, None] * np.array([p[token,] for token in range(V)]), "operation")


# Greedy decoding


@given(
    configs(),
    st.integers(1, 9),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.03, 0.3, "lookup"]),
    st.booleans(),
    st.sampled_from([1.0, 1.2, 3.0]),
    seeds,
)
def test_greedy_tokens_are_those_of_plain_decoding(config, T, draft_tokens, noise, int8_cache, penalty, seed):
    """Windows are 2 to 4, so that rings wrap and are rewound many times, up to a full cache."""
    model = Gemma(config, random_weights(config, seed, np.float64), None)
    draft = noise if noise == "lookup" else with_noise(model, noise, seed + 1)
    ids, acceptance = random_ids(config, seed, T).tolist(), Acceptance()
    options = {"max_new_tokens": config.max_position_embeddings - T, "int8_cache": int8_cache}
    options["repetition_penalty"] = penalty
    found = list(model.stream_ids(ids, **options, draft=draft, draft_tokens=draft_tokens, acceptance=acceptance))
    assert found == list(model.stream_ids(ids, **options))
    assert 0 <= acceptance.accepted <= acceptance.proposed
    if noise == 0:
        assert acceptance.accepted == acceptance.proposed


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_draft_of_another_shape_and_generation(model_type):
    model, draft = tiny.gemma(model_type).dequantized(), tiny.gemma("gemma3_text", seed=3, head_dim=2)
    model.weights = {name: weight.astype(np.float64) for name, weight in model.weights.items()}
    assert list(model.stream_ids([2, 5, 7], 60, draft=draft)) == list(model.stream_ids([2, 5, 7], 60))


def test_a_draft_with_a_shorter_context_helps_as_far_as_it_reaches():
    model, acceptance = tiny.gemma(), Acceptance()
    short = dataclasses.replace(model, config=dataclasses.replace(model.config, max_position_embeddings=16))
    found = list(model.stream_ids([2, 5, 7], 61, draft=short, acceptance=acceptance))
    assert found == list(model.stream_ids([2, 5, 7], 61))
    assert 8 <= acceptance.accepted <= 14


@pytest.mark.parametrize("most", range(1, 12))
def test_it_ends_where_plain_decoding_ends(most):
    model = tiny.gemma()
    ids = list(model.stream_ids([2, 5, 7], 12))
    assert list(model.stream_ids([2, 5, 7], most, draft=model)) == ids[:most]
    stop = ids[most]
    options = {"sampling": Sampling(), "generator": np.random.default_rng(0), "stop": {stop}}
    found = speculative_ids([2, 5, 7], model.weights, model.config, model, 12, **options)
    assert list(found) == ids[: ids.index(stop)]


def test_the_model_reads_fewer_times_when_proposals_are_accepted(monkeypatch):
    model, passes = tiny.gemma(), []
    import gemma_np.text.speculation as module

    transformer = module.transformer
    monkeypatch.setattr(module, "transformer", lambda ids, *rest: passes.append(len(ids)) or transformer(ids, *rest))
    acceptance = Acceptance()
    assert len(list(model.stream_ids([2, 5, 7], 10, draft=model, draft_tokens=4, acceptance=acceptance))) == 10
    assert passes == [5, 4]
    assert acceptance == Acceptance(proposed=7, accepted=7)
    assert str(acceptance) == "7 of 7 proposed tokens accepted, 100%"
    assert str(Acceptance()) == "0 of 0 proposed tokens accepted"


# Sampling


def chi_square(counts, expected):
    """Return how many standard deviations the statistic is above its mean; rare outcomes count as one."""
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    degrees = len(expected) - 1
    return (np.sum((counts - expected) ** 2 / expected) - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("model", Sampling(1.0)),
        ("model", Sampling(1.5, top_k=4, top_p=0.9)),
        ("model", Sampling(1.2, min_p=0.1, repetition_penalty=1.5)),
        ("lookup", Sampling(1.3)),
        ("lookup", Sampling(1.3, repetition_penalty=0.7)),
    ],
    ids=str,
)
def test_sampled_texts_have_the_models_distribution(kind, sampling):
    """A chi-square test on all texts of three tokens, with an imperfect draft and a window of 3."""
    V, texts, prompt = 5, 2000, [1, 3, 1]
    model = tiny.gemma(vocab_size=V, num_hidden_layers=2, layer_types=(LOCAL, GLOBAL))
    draft = with_noise(model, 0.3) if kind == "model" else kind
    acceptance = Acceptance()
    options = {"sampling": sampling, "generator": np.random.default_rng(0), "draft_tokens": 2}
    counts = Counter(
        tuple(speculative_ids(prompt, model.weights, model.config, draft, 3, **options, acceptance=acceptance))
        for _ in range(texts)
    )
    expected = np.zeros((V, V, V))
    for a, b in product(range(V), repeat=2):
        text = [*prompt, a, b]
        first, second, third = (sampling.probs(model.logits(text)[n - 1], text[:n]) for n in (3, 4, 5))
        expected[a, b] = texts * first[a] * second[b] * third
    found = np.array([counts[text] for text in product(range(V), repeat=3)])
    assert np.count_nonzero(expected > 5) > 8
    assert chi_square(found, expected.ravel()) < 4
    assert 0.05 < acceptance.accepted / acceptance.proposed < 0.95


def test_the_same_seed_gives_the_same_tokens():
    model = tiny.gemma()
    draft = with_noise(model, 0.1)
    tokens = [list(model.stream_ids([2, 5], 30, temperature=1.5, seed=seed, draft=draft)) for seed in (1, 1, 2)]
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize("kind", ["model", "lookup"])
def test_each_token_is_reported_with_the_logits_that_it_was_chosen_from(kind):
    model, seen = tiny.gemma(), []
    draft = with_noise(model, 0.3) if kind == "model" else kind
    options = {"temperature": 1.0, "seed": 3, "draft": draft}
    ids = list(model.stream_ids([2, 5, 7], 20, **options, on_token=lambda *pair: seen.append(pair)))
    assert [id for id, _ in seen] == ids
    expected = model.logits([2, 5, 7, *ids])[2:-1]
    assert_close(np.array([logits for _, logits in seen]), expected, "model")


# Errors


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([2], {"draft_tokens": 0}, "draft_tokens: 0, expected 1 or more"),
        ([2], {"tape": lambda _, value: value}, "tape: given beside a draft"),
        ([2], {"max_new_tokens": 0}, "max_new_tokens: 0, expected 1 or more"),
        ([], {}, "token ids: shape .0,., expected at least one id"),
        ([2] * 60, {"max_new_tokens": 5}, "prompt of 60 tokens and 5 new ones: 65, expected at most 64"),
    ],
)
def test_bad_input_is_refused_at_the_call(prompt, options, message):
    model = tiny.gemma()
    with pytest.raises(GemmaError, match=message):
        model.stream_ids(prompt, **{"max_new_tokens": 4, "draft": "lookup"} | options)


def test_logits_that_are_no_numbers_are_no_text():
    model = tiny.gemma()
    broken = dict(model.weights) | {"model.norm.weight": np.full(12, np.nan, np.float32)}
    with pytest.raises(GemmaError, match="logits: nan after 3 tokens, expected finite numbers"):
        dataclasses.replace(model, weights=broken).generate([2, 5, 7], 1, draft=model)
