"""Keys and values in 8 bits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.int8_cache import Int8Vectors
from gemma_np.model.kv_cache import KVCache, LayerCache
from gemma_np.model.transformer import transformer
from tests.support import tiny
from tests.support.strategies import batches, normal, random_ids, seeds, splits


@given(batches, st.integers(1, 5), st.integers(1, 6), seeds)
def test_what_is_read_is_what_was_written_to_half_a_step(batch, vectors, size, seed):
    values = normal(seed, *batch, vectors, size)
    kept = Int8Vectors(values.shape, np.float64)
    kept[...] = values
    steps = np.abs(values).max(axis=-1, keepdims=True) / 127
    assert (np.abs(kept[...] - values) <= steps / 2 * (1 + 1e-9)).all()


def test_zeros_stay_zeros():
    kept = Int8Vectors((2, 3), np.float32)
    kept[...] = np.zeros((2, 3))
    assert (kept[...] == 0).all()


@given(st.data(), st.integers(1, 4), st.integers(1, 14))
def test_a_ring_of_them_keeps_what_a_ring_of_floats_keeps(data, slots, total):
    """Whole numbers up to 127 with a 127 in each vector are kept exactly."""
    k = np.rint(10 * normal(0, 2, total, 5))
    k[..., 0] = 127
    floats, int8 = LayerCache((2, slots, 5), np.float64), LayerCache((2, slots, 5), np.float64, int8=True)
    end = 0
    for size in data.draw(splits(total)):
        part = k[:, end : end + size]
        for found, expected in zip(int8.append(part, -part), floats.append(part, -part), strict=True):
            assert (found == expected).all()
        end += size


def test_a_model_reads_nearly_the_same_from_it_at_a_third_of_the_memory():
    model = tiny.gemma(head_dim=16)
    ids = random_ids(model.config, 0, 30)
    caches = [KVCache(model.config, 40, int8=int8) for int8 in (False, True)]
    exact, near = ([transformer([token], model.weights, model.config, cache)[0] for token in ids] for cache in caches)
    error = np.abs(np.subtract(exact, near)).max()
    assert 0 < error < 0.05 * np.abs(exact).max()
    sizes = [sum(layer.keys.nbytes for layer in cache.layers) for cache in caches]
    assert sizes[1] < sizes[0] / 3


def test_generation_with_it():
    model = tiny.gemma()
    exact = list(model.stream_ids([2, 5, 7], max_new_tokens=20))
    model.int8_cache = True
    assert list(model.stream_ids([2, 5, 7], max_new_tokens=20))[:3] == exact[:3]


def test_its_bytes_are_those_of_integers_and_scales():
    vectors = Int8Vectors((5, 7, 16), np.float32)
    assert vectors.nbytes == 5 * 7 * 16 + 5 * 7 * 4
    assert Int8Vectors((5, 7, 16), np.float64).nbytes == 5 * 7 * 16 + 5 * 7 * 8
