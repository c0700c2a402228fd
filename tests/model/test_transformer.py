"""The whole model: against loops, and the laws that hold between its own ways to the same result."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaConfig, GemmaError
from gemma_np.config import GLOBAL, LOCAL
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer, validate_token_ids
from gemma_np.scope import Record, no_tape
from tests.support import naive, tiny
from tests.support.strategies import MODEL_TYPES, batches, configs, lengths, random_ids, random_weights, seeds, splits
from tests.support.tolerances import assert_close

dtypes = st.sampled_from([np.float32, np.float64])

SIZES = {  # the fixed model of each type, for tests that need no other
    "vocab_size": 11,
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 7,
    "max_position_embeddings": 24,
    "query_pre_attn_scalar": 3,
}
MIXED = {"layer_types": (LOCAL, GLOBAL, LOCAL, GLOBAL), "sliding_window": 3}
MODELS = {
    "gemma": GemmaConfig(model_type="gemma", layer_types=(GLOBAL,) * 4, **SIZES),
    "gemma2": GemmaConfig(
        model_type="gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **SIZES, **MIXED
    ),
    "gemma3_text": GemmaConfig(
        model_type="gemma3_text",
        rope_theta=300.0,
        rope_local_base_freq=10.0,
        rope_scaling_factor=4.0,
        **SIZES,
        **MIXED,
    ),
}
every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


def forward(ids, weights, config, cache=None, tape=no_tape):
    return lm_head(transformer(ids, weights, config, cache, tape), weights, config, tape)


def forward_in_chunks(ids, weights, config, sizes, tape=no_tape):
    """The logits of ids [..., T] read piece by piece, and the cache afterwards."""
    cache = KVCache(config, ids.shape[-1], ids.shape[:-1], weights["model.norm.weight"].dtype)
    logits, start = [], 0
    for size in sizes:
        logits.append(forward(ids[..., start : start + size], weights, config, cache, tape))
        start += size
    return np.concatenate(logits, axis=-2), cache


class RecordWithCopies(Record):
    """The tape that also keeps each value as it was when it passed."""

    def __init__(self):
        super().__init__()
        self.copies = {}

    def __call__(self, name, value):
        self.copies[name] = value.copy()
        return super().__call__(name, value)


@given(configs(), st.integers(1, 6), seeds)
def test_against_loops(config, T, seed):
    weights, ids = random_weights(config, seed, np.float64), random_ids(config, seed, T)
    expected = naive.logits(ids.tolist(), weights, config)
    assert_close(forward(ids, weights, config), np.array(expected), "model")


# Cache


@every_model
def test_every_split_of_a_text_gives_what_one_pass_gives(config):
    """All 64 ways to cut 7 tokens, with a window of 3: chunks below, at, one past and far past the window."""
    weights, ids = random_weights(config, 0, np.float64), random_ids(config, 0, 7)
    expected = forward(ids, weights, config)
    for cuts in product([False, True], repeat=6):
        edges = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), 7]
        logits, cache = forward_in_chunks(ids, weights, config, np.diff(edges))
        assert_close(logits, expected, "model", f"cut at {edges}")
        assert cache.length == 7


@given(st.data(), configs(), batches, st.integers(1, 16), dtypes, seeds)
def test_any_split_of_any_batch_gives_what_one_pass_gives(data, config, batch, T, dtype, seed):
    weights, ids = random_weights(config, seed, dtype), random_ids(config, seed, *batch, T)
    logits, _ = forward_in_chunks(ids, weights, config, data.draw(splits(T)))
    assert_close(logits, forward(ids, weights, config), "model")


@every_model
def test_intermediates_of_single_tokens_are_the_rows_of_one_pass(config):
    weights, ids, whole = random_weights(config, 0, np.float64), random_ids(config, 0, 7), Record()
    forward(ids, weights, config, tape=whole)
    cache = KVCache(config, dtype=np.float64)
    for t in range(7):
        record = Record()
        forward(ids[t : t + 1], weights, config, cache, record)
        for name, value in record.items():
            if not name.endswith((".scores", ".scores_capped", ".probs")):  # in the order of the ring
                assert_close(value, whole[name][..., t : t + 1, :], "model", name)


@every_model
def test_the_ring_wraps_many_times_up_to_a_full_cache(config):
    T = config.max_position_embeddings
    weights, ids = random_weights(config, 0, np.float64), random_ids(config, 0, T)
    logits, cache = forward_in_chunks(ids, weights, config, [1] * T)
    assert_close(logits, forward(ids, weights, config), "model")
    assert cache.length == T == 8 * (config.sliding_window or 3)


@every_model
def test_a_cache_with_room_to_spare_changes_nothing(config):
    weights, ids = random_weights(config, 0, np.float64), random_ids(config, 0, 5)
    expected = forward(ids, weights, config)
    for room in (5, 6, 24):
        cache = KVCache(config, room, dtype=np.float64)
        for layer in cache.layers:  # what was never written must never be read
            layer.keys[:], layer.values[:] = np.nan, np.nan
        assert_close(forward(ids, weights, config, cache), expected, "model")


# Batch


@given(configs(), st.integers(2, 4), lengths, dtypes, seeds)
def test_permuting_the_batch_permutes_the_output(config, B, T, dtype, seed):
    weights, ids = random_weights(config, seed, dtype), random_ids(config, seed, B, T)
    order = np.random.default_rng(seed).permutation(B)
    assert_close(forward(ids[order], weights, config), forward(ids, weights, config)[order], "model")


@given(configs(), batches, lengths, dtypes, seeds)
def test_each_text_of_a_batch_is_read_as_if_alone(config, batch, T, dtype, seed):
    weights, ids = random_weights(config, seed, dtype), random_ids(config, seed, *batch, T)
    logits = forward(ids, weights, config)
    assert logits.shape == (*batch, T, config.vocab_size)
    for index in np.ndindex(*batch):
        assert_close(logits[index], forward(ids[index], weights, config), "model")


# Positions and windows


@given(configs(), st.integers(2, 9), seeds)
def test_no_token_is_told_of_a_later_one(config, T, seed):
    weights, ids = random_weights(config, seed, np.float64), random_ids(config, seed, T)
    assert_close(forward(ids[:-1], weights, config), forward(ids, weights, config)[:-1], "model")


@given(configs("gemma2"), lengths, st.integers(0, 3), seeds)
def test_a_window_as_long_as_the_text_is_global(config, T, more, seed):
    weights, ids = random_weights(config, seed, np.float64), random_ids(config, seed, T)
    wide = dataclasses.replace(config, sliding_window=T + more)
    wide_open = dataclasses.replace(config, layer_types=(GLOBAL,) * 4)
    assert_close(forward(ids, weights, wide), forward(ids, weights, wide_open), "model")


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_the_window_shows_one_token_past_it_and_no_earlier(model_type):
    config = MODELS[model_type]
    config = dataclasses.replace(config, rope_local_base_freq=config.rope_theta, rope_scaling_factor=1.0)
    wide_open = dataclasses.replace(config, layer_types=(GLOBAL,) * 4)
    weights, ids = random_weights(config, 0, np.float64), random_ids(config, 0, config.sliding_window + 1)
    local, open_ = forward(ids, weights, config), forward(ids, weights, wide_open)
    assert_close(local[:-1], open_[:-1], "model")
    assert np.abs(local[-1] - open_[-1]).max() > 1e-3


# Numbers


@given(st.data(), configs(), dtypes, st.booleans(), st.integers(1, 7), seeds)
def test_dtype_follows_the_weights(data, config, dtype, cached, T, seed):
    weights, ids, record = random_weights(config, seed, dtype), random_ids(config, seed, T), Record()
    if cached:
        logits, cache = forward_in_chunks(ids, weights, config, data.draw(splits(T)), record)
        assert {array.dtype for layer in cache.layers for array in (layer.keys, layer.values)} == {np.dtype(dtype)}
    else:
        logits = forward(ids, weights, config, tape=record)
    assert logits.dtype == dtype
    assert {name: value.dtype for name, value in record.items() if value.dtype != dtype} == {}


@given(configs(), batches, lengths, seeds)
def test_float32_is_as_good_as_float32_can_be(config, batch, T, seed):
    weights, ids = random_weights(config, seed, np.float32), random_ids(config, seed, *batch, T)
    exact = {name: weight.astype(np.float64) for name, weight in weights.items()}
    assert_close(forward(ids, weights, config), forward(ids, exact, config), "precision")


# Tape


@given(st.data(), configs(), batches, st.booleans(), st.integers(1, 7), seeds)
def test_what_passed_the_tape_is_never_changed(data, config, batch, cached, T, seed):
    weights, ids, tape = random_weights(config, seed), random_ids(config, seed, *batch, T), RecordWithCopies()
    if cached:
        forward_in_chunks(ids, weights, config, data.draw(splits(T)), tape)
    else:
        forward(ids, weights, config, tape=tape)
    assert [name for name, value in tape.items() if not (value == tape.copies[name]).all()] == []


@every_model
def test_the_tape_only_listens(config):
    weights, ids = random_weights(config, 0), random_ids(config, 0, 6)
    assert (forward(ids, weights, config, tape=Record()) == forward(ids, weights, config)).all()


@every_model
def test_the_model_goes_on_with_what_the_tape_returns(config):
    """Whichever intermediate a tape replaces, the next tokens' scores are others."""
    weights, ids, record = random_weights(config, 0), random_ids(config, 0, 6), Record()
    logits = forward(ids, weights, config, tape=record)

    def replacing(replaced):
        factors = np.random.default_rng(0).uniform(0.5, 1.5, record[replaced].shape[-1])  # a norm undoes one factor
        return lambda name, value: (value * factors).astype(np.float32) if name == replaced else value

    for name in record:
        assert np.abs(forward(ids, weights, config, tape=replacing(name)) - logits).max() > 1e-3, name


# Bad input


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "token ids: shape (0,), expected at least one id along an axis T"),
        (np.zeros((2, 0), int), "token ids: shape (2, 0), expected at least one id along an axis T"),
        (5, "token ids: shape (), expected at least one id along an axis T"),
        ([[1, 2], [3]], "token ids: texts of different lengths, expected one array [..., T]"),
        ([1.0, 2.0], "token ids: dtype float64, expected integers"),
        ([True], "token ids: dtype bool, expected integers"),
        (["a"], "token ids: dtype <U1, expected integers"),
        ("To be", "token ids: dtype <U5, expected integers"),
        ([1, -1], "token ids: -1, expected 0 to 10 (vocab_size=11)"),
        ([[1, 2], [3, 11]], "token ids: 11, expected 0 to 10 (vocab_size=11)"),
        ([1] * 25, "token ids: 25 after 0 in the cache, expected at most 24 together (max_position_embeddings=24)"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_ids_that_the_model_cannot_read(ids, message, cached):
    config = MODELS["gemma2"]
    cache = KVCache(config) if cached else None
    with pytest.raises(GemmaError) as error:
        transformer(ids, random_weights(config, 0), config, cache)
    assert str(error.value) == message
    assert cache is None or cache.length == 0


def test_the_longest_text_is_read_and_one_token_more_is_refused():
    config = MODELS["gemma2"]
    weights, ids = random_weights(config, 0), random_ids(config, 0, 25)
    cache = KVCache(config)
    assert_close(forward(ids[:24], weights, config, cache), forward(ids[:24], weights, config), "model")
    with pytest.raises(GemmaError, match="1 after 24 in the cache, expected at most 24 together"):
        transformer(ids[24:], weights, config, cache)
    assert cache.length == 24


@pytest.mark.parametrize(("batch", "ids"), [((2,), [1, 2]), ((), [[1, 2], [3, 4]]), ((2,), [[1, 2]] * 3)])
def test_a_cache_made_for_another_batch_is_refused(batch, ids):
    config = MODELS["gemma2"]
    cache = KVCache(config, batch=batch)
    with pytest.raises(GemmaError, match="batch axes"):
        transformer(ids, random_weights(config, 0), config, cache)
    assert [layer.length for layer in cache.layers] == [0] * config.num_hidden_layers


def test_a_cache_of_another_dtype_is_refused():
    config = MODELS["gemma2"]
    with pytest.raises(GemmaError, match="cache: dtype float64, expected float32, that of the weights"):
        transformer([1], random_weights(config, 0, np.float32), config, KVCache(config, dtype=np.float64))


def test_a_cache_made_for_less_refuses_more():
    config = MODELS["gemma2"]
    weights, cache = random_weights(config, 0), KVCache(config, 5)
    transformer([1, 2, 3], weights, config, cache)
    with pytest.raises(GemmaError, match="3 after 3 in the cache, expected at most 5 together"):
        transformer([1, 2, 3], weights, config, cache)
    assert cache.length == 3


def test_lists_and_any_integers_are_ids():
    config = MODELS["gemma2"]
    weights = random_weights(config, 0)
    expected = forward(np.array([1, 2, 3]), weights, config)
    assert (forward([1, 2, 3], weights, config) == expected).all()
    assert (forward(np.array([1, 2, 3], np.uint8), weights, config) == expected).all()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_caller_keeps_what_he_gave(model_type):
    """Weights are read-only (random_weights), so that writing to one raises; ids, too, stay as they were."""
    config = MODELS[model_type]
    weights, ids = random_weights(config, 0), random_ids(config, 0, 2, 6)
    kept = ids.copy()
    assert not any(weight.flags.writeable for weight in weights.values())
    forward(ids, weights, config, KVCache(config, batch=(2,)))
    assert (ids == kept).all()


@pytest.mark.parametrize(
    ("ids", "wrong"), [([3, 99, -2], 99), ([3, -2, 99], -2), ([[1, 2], [5, 17]], 17), ([16, 17], 17), ([0, 99], 99)]
)
def test_the_first_wrong_id_is_named(ids, wrong):
    config = dataclasses.replace(tiny.config(), vocab_size=17)
    with pytest.raises(GemmaError, match=rf"^token ids: {wrong}, expected 0 to 16 \(vocab_size=17\)$"):
        validate_token_ids(ids, config)
