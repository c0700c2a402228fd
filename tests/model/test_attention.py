"""Grouped-query attention of one layer, without its cache; with it: test_transformer.py."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.config import LOCAL
from gemma_np.model.attention import attention, grouped_matmul, merge_heads, split_heads
from gemma_np.scope import Record, Scope
from tests.support import naive
from tests.support.strategies import batches, configs, lengths, normal, random_weights, seeds, sizes
from tests.support.tolerances import assert_close

layers = st.integers(0, 3)


def layer_weights(config, layer, seed):
    return Scope(random_weights(config, seed, np.float64)) / f"model.layers.{layer}"


@given(configs(), layers, lengths, seeds)
def test_against_loops(config, layer, T, seed):
    weights, x = layer_weights(config, layer, seed), normal(seed, T, config.hidden_size)
    expected = naive.attention(x.tolist(), dict(weights), config, layer)
    assert_close(attention(x, weights / "self_attn", config, layer), np.array(expected), "operation")


@given(configs("gemma2"), lengths, st.integers(0, 3), seeds)
def test_a_window_as_long_as_the_text_is_global(config, T, more, seed):
    local = dataclasses.replace(config, layer_types=(LOCAL,) * 4, sliding_window=T + more)
    wide_open = dataclasses.replace(config, layer_types=("full_attention",) * 4)
    weights, x = layer_weights(config, 0, seed) / "self_attn", normal(seed, T, config.hidden_size)
    assert (attention(x, weights, local, 0) == attention(x, weights, wide_open, 0)).all()


@given(configs(), layers, lengths, seeds)
def test_multi_head_attention_is_the_case_of_equal_heads(config, layer, T, seed):
    """A model with as many key-value heads as query heads, those of a group being equal, gives the same."""
    weights, x = layer_weights(config, layer, seed) / "self_attn", normal(seed, T, config.hidden_size)
    multi_head = dataclasses.replace(config, num_key_value_heads=config.num_attention_heads)
    repeated = dict(weights)
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = weights[name].reshape(config.num_key_value_heads, config.head_dim, -1)
        repeated[name] = heads.repeat(config.num_attention_heads // config.num_key_value_heads, axis=0).reshape(
            -1, config.hidden_size
        )
    expected = attention(x, Scope(repeated), multi_head, layer)
    assert_close(attention(x, weights, config, layer), expected, "operation")


@given(configs(), layers, st.integers(2, 6), seeds)
def test_no_token_is_told_of_a_later_one(config, layer, T, seed):
    weights, x = layer_weights(config, layer, seed) / "self_attn", normal(seed, T, config.hidden_size)
    changed = x.copy()
    changed[-1] += 1
    before, after = attention(x, weights, config, layer), attention(changed, weights, config, layer)
    assert_close(after[:-1], before[:-1], "operation")
    assert np.abs(after[-1] - before[-1]).max() > 1e-6


@given(configs(), layers, lengths, seeds)
def test_probabilities_are_what_their_name_says(config, layer, T, seed):
    record = Record()
    weights, x = layer_weights(config, layer, seed) / "self_attn", normal(seed, T, config.hidden_size)
    attention(x, weights, config, layer, tape=record)
    assert_close(record["probs"].sum(axis=-1), np.ones((config.num_attention_heads, T)), "operation")
    seen = np.minimum(np.arange(1, T + 1), config.window(layer) or T)
    assert ((record["probs"] > 0).sum(axis=-1) == seen).all()


@given(batches, lengths, sizes, sizes, seeds)
def test_heads_are_neighbouring_channels(batch, T, heads, half, seed):
    h = 2 * half
    x = normal(seed, *batch, T, heads * h)
    split = split_heads(x, h)
    for head in range(heads):
        assert (split[..., head, :, :] == x[..., head * h : (head + 1) * h]).all()
    assert (merge_heads(split) == x).all()


@given(batches, sizes, sizes, lengths, sizes, sizes, seeds)
def test_query_heads_of_a_group_are_neighbours(batch, K, G, T, a, b, seed):
    heads, shared = normal(seed, *batch, K * G, T, a), normal(seed + 1, *batch, K, a, b)
    found = grouped_matmul(heads, shared)
    assert found.shape == (*batch, K * G, T, b)
    for head in range(K * G):
        expected = heads[..., head, :, :] @ shared[..., head // G, :, :]
        assert_close(found[..., head, :, :], expected, "operation", f"head {head}")
