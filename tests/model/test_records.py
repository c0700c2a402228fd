"""The table of intermediates and the code that computes them, held together both ways."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.kv_cache import KVCache
from gemma_np.model.records import RECORDS, record_shapes
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Record
from tests.support.strategies import batches, configs, random_ids, random_weights


def record_of(ids, weights, config, cache=None):
    record = Record()
    lm_head(transformer(ids, weights, config, cache, record), weights, config, record)
    return record


def without_batch(record, batch):
    assert all(value.shape[: len(batch)] == batch for value in record.values())
    return [(name, value.shape[len(batch) :]) for name, value in record.items()]


@given(configs(), batches, st.integers(1, 6))
def test_names_order_and_shapes(config, batch, T):
    record = record_of(random_ids(config, 0, *batch, T), random_weights(config, 0), config)
    assert without_batch(record, batch) == list(record_shapes(config, T).items())


@given(configs(), batches, st.integers(1, 6))
def test_names_order_and_shapes_with_a_cache(config, batch, T):
    """A token that is read after T others looks at T + 1 keys, on a local layer at no more than the window."""
    weights, ids = random_weights(config, 0), random_ids(config, 0, *batch, T + 1)
    cache = KVCache(config, batch=batch)
    transformer(ids[..., :T], weights, config, cache)
    found = without_batch(record_of(ids[..., T:], weights, config, cache), batch)
    expected = record_shapes(config, 1, T + 1)
    for layer in range(config.num_hidden_layers):
        seen = record_shapes(config, 1, min(T + 1, config.window(layer) or T + 1))
        expected |= {name: shape for name, shape in seen.items() if name.startswith(f"layers.{layer}.")}
    assert found == list(expected.items())


@given(configs())
def test_the_letters_are_those_of_the_config(config):
    shapes = record_shapes(config, 5, 9)
    H, K, h = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert shapes["embedding"] == (5, config.hidden_size)
    assert shapes["layers.1.self_attn.q_rope"] == (H, 5, h)
    assert shapes["layers.1.self_attn.v"] == (K, 5, h)
    assert shapes["layers.1.self_attn.probs"] == (H, 5, 9)
    assert shapes["layers.1.self_attn.context"] == (5, H * h)
    assert shapes["layers.1.mlp.hidden"] == (5, config.intermediate_size)
    assert shapes["logits"] == (5, config.vocab_size)


def test_no_row_is_there_twice_or_without_a_meaning():
    names = [row.name for row in RECORDS]
    assert len(set(names)) == len(names)
    assert all(row.meaning for row in RECORDS)
    assert np.all([row.name.count("*") <= 1 for row in RECORDS])
