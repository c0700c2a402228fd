"""Keys and values kept between calls: what a layer's cache hands back, against a list that forgets nothing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import RELEASED, GemmaError
from gemma_np.config import GLOBAL, LOCAL
from gemma_np.model.kv_cache import KVCache, LayerCache
from gemma_np.model.transformer import transformer
from tests.support.strategies import batches, configs, normal, random_ids, random_weights, seeds, splits

K, h = 2, 4
CONFIG = RELEASED["gemma-2-2b"]


@given(st.data(), batches, st.integers(1, 4), st.integers(1, 14))
def test_every_key_in_sight_comes_back_once_under_its_position(data, batch, slots, total):
    k, v = normal(0, *batch, K, total, h), normal(1, *batch, K, total, h)
    cache, end = LayerCache((*batch, K, slots, h), np.float64), 0
    for size in data.draw(splits(total)):
        start, end = end, end + size
        keys, values, positions = cache.append(k[..., start:end, :], v[..., start:end, :])
        assert cache.length == end
        assert len(set(positions)) == len(positions)
        in_sight = range(max(0, start - slots + 1), end)  # of the first of the new tokens, or of a later one
        assert set(in_sight) <= set(positions) <= set(range(end))
        assert (keys == k[..., positions, :]).all()
        assert (values == v[..., positions, :]).all()


def test_a_ring_that_wraps_many_times_stays_as_large_as_it_is():
    k = normal(0, K, 1000, h)
    cache = LayerCache((K, 3, h), np.float64)
    memory = cache.keys
    for position in range(1000):
        keys, _, positions = cache.append(k[:, [position]], k[:, [position]])
    assert cache.keys is memory
    assert sorted(positions) == [997, 998, 999]
    assert (keys == k[:, positions]).all()


def test_local_layers_keep_a_window_and_global_ones_everything():
    cache = KVCache(CONFIG, 5000, batch=(2,), dtype=np.float16)
    assert [layer.keys.shape for layer in cache.layers] == [(2, 4, 4096, 256), (2, 4, 5000, 256)] * 13
    assert {layer.values.dtype for layer in cache.layers} == {np.dtype(np.float16)}


def test_no_layer_keeps_more_than_was_asked_for():
    assert {layer.slots for layer in KVCache(CONFIG, 10).layers} == {10}


def test_room_for_the_longest_text_by_default():
    config = dataclasses.replace(CONFIG, max_position_embeddings=20)
    cache = KVCache(config)
    assert cache.max_length == 20
    assert cache.length == 0
    assert cache.layers[1].keys.shape == (4, 20, 256)


@pytest.mark.parametrize("length", [0, -1, 8193, 5.0])
def test_room_that_the_model_cannot_use_is_refused(length):
    expected = f"cache: room for {length} tokens, expected 1 to max_position_embeddings=8192"
    with pytest.raises(GemmaError, match=expected):
        KVCache(CONFIG, length)


# Rewinding


def small_cache(window, spare, *, batch=(), room=200, int8=False):
    """A cache with a ring and a layer that keeps everything, and a dtype that is exact."""
    shape = {"num_attention_heads": K, "num_key_value_heads": K, "head_dim": h, "sliding_window": window}
    config = dataclasses.replace(CONFIG, num_hidden_layers=2, layer_types=(LOCAL, GLOBAL), **shape)
    return KVCache(config, room, batch, np.float64, int8=int8, spare=spare)


@given(st.data(), batches, st.integers(1, 4), st.integers(0, 5), st.booleans(), seeds)
def test_after_any_reads_and_rewinds_every_key_in_sight_is_there_once(data, batch, window, spare, int8, seed):
    """Whole numbers up to 127 with a 127 in each vector are kept exactly in 8 bits, too."""
    cache, room = small_cache(window, spare, batch=batch, room=30, int8=int8), 30
    kept = np.zeros((*batch, K, 0, h))
    for step in range(data.draw(st.integers(1, 8))):
        start = cache.length
        if start == room:
            break
        new = np.rint(10 * normal((seed, step), *batch, K, data.draw(st.integers(1, min(7, room - start))), h))
        new[..., 0] = 127
        kept = np.concatenate([kept, new], axis=-2)
        end = kept.shape[-2]
        for layer, sight in zip(cache.layers, (window, room), strict=True):
            keys, values, positions = layer.append(new, -new)
            assert len(set(positions)) == len(positions)
            in_sight = range(max(0, start - sight + 1), end)
            assert set(in_sight) <= set(positions) <= set(range(end))
            places = [list(positions).index(position) for position in in_sight]
            assert (keys[..., places, :] == kept[..., in_sight, :]).all()
            assert (values[..., places, :] == -kept[..., in_sight, :]).all()
        shortest = max(layer.shortest for layer in cache.layers)
        cache.rewind(data.draw(st.integers(shortest, end)))
        kept = kept[..., : cache.length, :]


@given(st.data(), configs(), batches, st.integers(0, 5), st.booleans(), seeds)
def test_to_rewind_what_was_read_is_never_to_have_read_it(data, config, batch, spare, int8, seed):
    """Bit for bit: the next tokens see the same keys in the same slots."""
    weights = random_weights(config, seed)
    rewound, other = (KVCache(config, 24, batch, int8=int8, spare=spare) for _ in range(2))
    for step, size in enumerate(data.draw(splits(15))):
        ids = random_ids(config, (seed, step), *batch, size)
        found, expected = (transformer(ids, weights, config, cache) for cache in (rewound, other))
        assert (found == expected).all()
        if spare:
            extra = random_ids(config, (seed, step, 1), *batch, data.draw(st.integers(1, spare)))
            transformer(extra, weights, config, rewound)
        rewound.rewind(other.length)


@pytest.mark.parametrize(("spare", "shortest"), [(0, 10), (1, 9), (4, 6), (6, 4), (7, 0), (20, 0)])
def test_how_far_a_full_ring_can_be_rewound(spare, shortest):
    cache = small_cache(3, spare)
    for layer in cache.layers:
        layer.append(normal(0, K, 10, h), normal(1, K, 10, h))
    for length in (shortest - 1, 11):
        message = f"cache: rewind to {length} tokens, expected {shortest} to 10 .spare={spare}."
        with pytest.raises(GemmaError, match=message):
            cache.rewind(length)
        assert {layer.length for layer in cache.layers} == {10}
    cache.rewind(shortest)
    assert {layer.length for layer in cache.layers} == {shortest}


def test_a_second_rewind_does_not_reach_further_than_the_first():
    cache = small_cache(3, 2)
    for layer in cache.layers:
        layer.append(normal(0, K, 10, h), normal(1, K, 10, h))
    cache.rewind(8)
    for layer in cache.layers:
        layer.append(normal(2, K, 1, h), normal(3, K, 1, h))
    cache.rewind(8)
    with pytest.raises(GemmaError, match="cache: rewind to 7 tokens, expected 8 to 8"):
        cache.rewind(7)


def test_a_copy_can_be_rewound_as_far():
    cache = small_cache(3, 2)
    for layer in cache.layers:
        layer.append(normal(0, K, 10, h), normal(1, K, 10, h))
    cache.rewind(9)
    copy = cache.repeated(2)
    assert [layer.slots for layer in copy.layers] == [5, 200]
    with pytest.raises(GemmaError, match="expected 8 to 9"):
        copy.rewind(7)
    copy.rewind(8)


def test_spare_slots_are_for_rings_only_and_never_more_than_asked_for():
    assert [layer.slots for layer in small_cache(3, 2, room=50).layers] == [5, 50]
    assert [layer.slots for layer in small_cache(3, 2, room=4).layers] == [4, 4]


def test_a_few_tokens_fit_into_a_ring_with_spare_slots():
    """They are written in place: a ring that is read by a draft's few tokens at a time is never copied."""
    cache = small_cache(3, 2)
    [ring, _] = cache.layers
    ring.append(normal(0, K, 10, h), normal(1, K, 10, h))
    keys, _, _ = ring.append(normal(2, K, 3, h), normal(3, K, 3, h))
    assert np.shares_memory(keys, ring.keys)
    keys, _, _ = ring.append(normal(2, K, 4, h), normal(3, K, 4, h))
    assert not np.shares_memory(keys, ring.keys)
