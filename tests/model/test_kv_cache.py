"""Keys and values kept between calls: what a layer's cache hands back, against a list that forgets nothing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import RELEASED, GemmaError
from gemma_np.model.kv_cache import KVCache, LayerCache
from tests.support.strategies import batches, normal, splits

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
