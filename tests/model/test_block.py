"""One layer."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.block import block
from gemma_np.scope import Record, Scope
from tests.support import naive
from tests.support.strategies import configs, normal, random_weights, seeds
from tests.support.tolerances import assert_close


@given(configs(), st.integers(0, 1), st.integers(1, 6), seeds)
def test_against_loops(config, layer, T, seed):
    weights = Scope(random_weights(config, seed, np.float64)) / f"model.layers.{layer}"
    x = normal(seed, T, config.hidden_size)
    expected = naive.block(x.tolist(), dict(weights), config, layer)
    assert_close(block(x, weights, config, layer), np.array(expected), "operation")


@given(configs(), st.integers(1, 6), seeds)
def test_the_residual_stream_is_only_added_to(config, T, seed):
    """What a layer adds is what its (post-normed) attention and feed-forward return."""
    record, x = Record(), normal(seed, T, config.hidden_size)
    weights = Scope(random_weights(config, seed, np.float64)) / "model.layers.0"
    y = block(x, weights, config, 0, tape=record)
    names = ("self_attn.o", "mlp.down")
    if config.has_post_norms:
        names = ("post_attention_layernorm", "post_feedforward_layernorm")
    assert_close(y, x + record[names[0]] + record[names[1]], "operation")
    assert_close(record["resid_mid"], x + record[names[0]], "operation")
    assert record["resid_post"] is y
