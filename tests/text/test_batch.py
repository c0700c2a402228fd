"""Several prompts at once, against each prompt alone."""

import dataclasses
import re
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemma_np
from gemma_np import GemmaError
from gemma_np.model import transformer as transformer_module
from gemma_np.model.batch_cache import BatchCache
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import transformer
from gemma_np.text.batch import generate_batch
from gemma_np.text.generation import generate_ids
from gemma_np.weights.linear import FEW_VECTORS
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, random_ids, random_weights, seeds
from tests.support.tolerances import assert_close

NEW_TOKENS = 9  # the windows of these models are 2 to 4


def recording_greedy(logits_of):
    """Choose greedily, and keep the logits of every choice."""

    def choose(logits):
        logits_of.append(logits.copy())
        return int(logits.argmax())

    return choose


def alone_and_at_once(prompts, weights, config, **options):
    """The ids and the logits of each prompt, generated alone and all at once."""
    alone_logits, batch_logits = ([[] for _ in prompts] for _ in range(2))
    alone = [
        list(generate_ids(prompt, weights, config, recording_greedy(kept), NEW_TOKENS, **options))
        for prompt, kept in zip(prompts, alone_logits, strict=True)
    ]
    choose = [recording_greedy(kept) for kept in batch_logits]
    return alone, generate_batch(prompts, weights, config, choose, NEW_TOKENS, **options), alone_logits, batch_logits


@given(configs(), st.lists(st.integers(1, 20), min_size=1, max_size=2 * FEW_VECTORS + 3), seeds, st.booleans())
def test_in_float64_every_text_is_that_of_the_prompt_alone_to_the_bit(config, lengths, seed, int8_cache):
    weights = random_weights(config, seed, np.float64)
    prompts = [random_ids(config, seed + number, T).tolist() for number, T in enumerate(lengths)]
    alone, at_once, alone_logits, batch_logits = alone_and_at_once(prompts, weights, config, int8_cache=int8_cache)
    assert at_once == alone
    for expected, found in zip(alone_logits, batch_logits, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_in_float64_a_model_of_a_real_size_gives_the_same_bits(model_type):
    """Large products are computed by other routines of BLAS than small ones."""
    name = {"gemma": "shakespeare-gemma1", "gemma2": "shakespeare-4m", "gemma3_text": "shakespeare-gemma3"}[model_type]
    model = gemma_np.load(name, "float64")
    texts = ("To be", "O Romeo, Romeo, wherefore art thou", "The king is dead. " * 12, "A", "What, ho!")
    prompts = [model.tokenizer.encode(text) for text in texts]
    alone, at_once, alone_logits, batch_logits = alone_and_at_once(prompts, model.weights, model.config)
    assert model.config.model_type == model_type
    assert at_once == alone
    for expected, found in zip(alone_logits, batch_logits, strict=True):
        np.testing.assert_array_equal(found, expected)


@given(configs(), st.lists(st.integers(1, 20), min_size=1, max_size=FEW_VECTORS), seeds)
def test_in_float32_a_pass_over_several_texts_differs_from_one_over_each_by_rounding(config, lengths, seed):
    weights = random_weights(config, seed)
    caches = [KVCache(config) for _ in lengths]
    for number, (T, cache) in enumerate(zip(lengths, caches, strict=True)):
        transformer(random_ids(config, seed + number, T), weights, config, cache)
    ids = random_ids(config, seed, len(lengths), 2)
    alone = [transformer(row, weights, config, cache.repeated()) for row, cache in zip(ids, caches, strict=True)]
    assert_close(transformer(ids, weights, config, BatchCache(caches)), np.stack(alone), "model")
    assert [cache.length for cache in caches] == [T + 2 for T in lengths]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 3, "top_k": 50, "top_p": 0.9},
        {"temperature": 1.5, "seed": 3, "min_p": 0.01, "repetition_penalty": 1.5, "ignore_eos": True},
    ],
)
def test_a_list_of_prompts_gives_the_list_of_their_texts(options):
    model = tiny.gemma()
    model.weights = {name: weight.astype(np.float64) for name, weight in model.weights.items()}
    prompts = [f"{text} ships" for text in ("The", "In 1847 the tower was raised, and", "a", "and", "She lit the")]
    expected = [model.generate(prompt, 12, **options) for prompt in prompts]
    assert len(set(expected)) > 1
    assert model.generate(prompts, 12, **options) == expected
    ids = [model.tokenizer.encode(prompt) for prompt in prompts]
    assert model.generate(ids, 12, **options) == expected
    assert model.generate([np.array(row) for row in ids], 12, **options) == expected
    without = dataclasses.replace(model, tokenizer=None)
    assert without.generate_batch_ids(ids, 12, **options) == [
        list(without.stream_ids(row, 12, **options)) for row in ids
    ]


@pytest.mark.parametrize("options", [{"stop": ["e", "sh"]}, {"stop": "a", "echo": True}, {"echo": True}])
def test_a_list_of_prompts_takes_the_options_of_texts(options):
    model = tiny.gemma()
    model.weights = {name: weight.astype(np.float64) for name, weight in model.weights.items()}
    prompts, options = ["The ships", "a", "She lit the"], options | {"temperature": 1.5, "seed": 2}
    expected = [model.generate(prompt, 12, **options) for prompt in prompts]
    assert model.generate(prompts, 12, **options) == expected
    alone = [model.generate(prompt, 12, logprobs=2, **options) for prompt in prompts]
    together = model.generate(prompts, 12, logprobs=2, **options)
    assert together == alone
    assert any(len(completion.logprobs) < 12 for completion in together) == ("stop" in options)


def test_an_option_that_a_list_of_prompts_does_not_take():
    with pytest.raises(
        TypeError, match=re.escape("Gemma.generate() with several prompts got an unexpected keyword argument 'draft'")
    ):
        tiny.gemma().generate(["The ships", "a"], 12, draft="lookup")


def test_a_complete_text_leaves_the_batch_and_the_next_takes_its_place(monkeypatch):
    """Each pass reads one token of every text; none reads a token of a complete one."""
    model, sizes = tiny.gemma(), []
    prompts, lengths = [[5 + number] for number in range(FEW_VECTORS + 2)], [1, 3, *[5] * FEW_VECTORS]
    scripts = [iter([7] * length + [1]) for length in lengths]

    def counting(ids, *arguments):
        sizes.append(len(ids))
        return transformer_module.transformer(ids, *arguments)

    monkeypatch.setattr("gemma_np.text.batch.transformer", counting)
    choose = [lambda _, script=script: next(script) for script in scripts]
    new = generate_batch(prompts, model.weights, model.config, choose, 5, stop={1})
    assert new == [[7] * length for length in lengths]
    assert sizes == [8, 7, 8, 7, 2, 2, 1, 1]


def test_the_caches_of_complete_texts_are_freed(monkeypatch):
    """A thousand prompts need no more caches at a time than a batch."""
    model, alive, counts = tiny.gemma(), weakref.WeakSet(), []

    def cache(*arguments, **options):
        alive.add(new := KVCache(*arguments, **options))
        return new

    def choose(logits):
        counts.append(len(alive))
        return int(logits.argmax())

    monkeypatch.setattr("gemma_np.text.batch.KVCache", cache)
    prompts = [[number] for number in range(4 * FEW_VECTORS)]
    generate_batch(prompts, model.weights, model.config, [choose] * len(prompts), 3)
    assert FEW_VECTORS <= max(counts) <= FEW_VECTORS + 1


def test_no_prompts_give_no_texts():
    model = tiny.gemma()
    assert model.generate_batch_ids([]) == []


def test_bad_prompts_are_refused_before_any_is_read():
    model = tiny.gemma()
    with pytest.raises(GemmaError, match="prompt: empty, expected some text"):
        model.generate(["The", ""])
    with pytest.raises(GemmaError, match="token ids: 999, expected 0 to 399"):
        model.generate([[2, 5], [2, 999]], 4)
    with pytest.raises(GemmaError, match="prompt of 60 tokens and 5 new ones: 65, expected at most 64"):
        model.generate([[2], [2] * 60], 5)


def test_the_fullest_cache_of_a_batch_limits_it():
    model = tiny.gemma()
    caches = [KVCache(model.config, 9), KVCache(model.config, 3)]
    for cache in caches:
        transformer([2, 5, 7], model.weights, model.config, cache)
    with pytest.raises(GemmaError, match="token ids: 1 after 3 in the cache, expected at most 3 together"):
        transformer([[5], [5]], model.weights, model.config, BatchCache(caches))


def test_logits_that_are_no_numbers_are_no_text():
    model = tiny.gemma()
    model.weights = dict(model.weights) | {"model.norm.weight": np.full(12, np.nan, np.float32)}
    with pytest.raises(GemmaError, match="logits: nan after 3 tokens, expected finite numbers"):
        model.generate([[2, 5, 7], [2]], 4)
