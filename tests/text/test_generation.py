"""One token after another, against the uncached model asked again for each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.model.attention_mask import masked_softmax
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text import generation
from gemma_np.text.generation import generate_ids, prefill
from tests.support import tiny
from tests.support.strategies import configs, random_ids, random_weights, seeds
from tests.support.tolerances import assert_close


def greedy(logits):
    return int(logits.argmax())


@given(configs(), st.integers(1, 12), seeds)
def test_greedy_is_the_argmax_of_the_uncached_logits(config, T, seed):
    weights, ids = random_weights(config, seed, np.float64), random_ids(config, seed, T).tolist()
    expected = list(ids)
    for _ in range(8):
        expected.append(greedy(lm_head(transformer(expected, weights, config), weights, config)[-1]))
    assert list(generate_ids(ids, weights, config, greedy, max_new_tokens=8)) == expected[T:]


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 100])
def test_the_size_of_a_chunk_does_not_matter(chunk, monkeypatch):
    monkeypatch.setattr(generation, "PREFILL_CHUNK", chunk)
    model = tiny.gemma()
    ids = random_ids(model.config, 0, 17)
    cache = KVCache(model.config)
    x = prefill(ids, model.weights, model.config, cache)
    assert_close(x, transformer(ids, model.weights, model.config)[-1], "model")
    assert cache.length == 17


def test_a_long_prompt_is_scored_a_chunk_at_a_time_and_on_local_layers_a_window_before_it(monkeypatch):
    """All scores at once would be T^2 numbers, and local layers would compute mostly what they cannot see."""
    T, chunk = 61, 5
    model, shapes = tiny.gemma(), []

    def softmax(scores, mask):
        shapes.append(scores.shape[-2:])
        return masked_softmax(scores, mask)

    monkeypatch.setattr(generation, "PREFILL_CHUNK", chunk)
    monkeypatch.setattr("gemma_np.model.attention.masked_softmax", softmax)
    prefill(random_ids(model.config, 0, T), model.weights, model.config, KVCache(model.config))
    windows = [model.config.window(layer) for layer in range(model.config.num_hidden_layers)]
    assert {window is None for window in windows} == {False, True}
    for number, (rows, keys) in enumerate(shapes):
        read, window = number // len(windows) * chunk, windows[number % len(windows)]
        assert rows == min(chunk, T - read)
        assert keys <= (read if window is None else min(window, read)) + rows


def test_it_stops_before_the_token_that_stops_it():
    model = tiny.gemma()
    arguments = ([2, 5, 7], model.weights, model.config, greedy)
    ids = list(generate_ids(*arguments, max_new_tokens=12))
    stop = ids[4]
    assert list(generate_ids(*arguments, max_new_tokens=12, stop={stop})) == ids[: ids.index(stop)]


@pytest.mark.parametrize("piece", ["<eos>", "<end_of_turn>"])
def test_both_ends_of_a_turn_stop_the_text(piece, monkeypatch):
    model = tiny.gemma()
    end = model.tokenizer.id(piece)
    script = iter([*model.tokenizer.encode_verbatim("the sea"), end, 5, 5])
    monkeypatch.setattr("gemma_np.text.sampling.Sampling.choose", lambda *_: next(script))
    assert model.generate("x", max_new_tokens=20) == "the sea"


def test_the_longest_text_that_fits_and_one_token_more():
    model = tiny.gemma()
    ids = random_ids(model.config, 0, 60).tolist()
    assert len(list(generate_ids(ids, model.weights, model.config, greedy, max_new_tokens=4))) == 4
    with pytest.raises(GemmaError, match="prompt of 60 tokens and 5 new ones: 65, expected at most 64"):
        next(generate_ids(ids, model.weights, model.config, greedy, max_new_tokens=5))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_no_text(temperature):
    model = tiny.gemma()
    model.weights = dict(model.weights) | {"model.norm.weight": np.full(12, np.nan, np.float32)}
    with pytest.raises(GemmaError, match="logits: nan after 3 tokens, expected finite numbers"):
        model.generate([2, 5, 7], temperature=temperature, max_new_tokens=1)
    with pytest.raises(GemmaError, match="perplexity: nan, expected a finite number"):
        model.perplexity("The sea")
