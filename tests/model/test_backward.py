"""The backward pass of every operation, by finite differences in float64, and of the whole model."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model import (
    attention,
    attention_mask,
    block,
    embedding,
    feed_forward,
    rms_norm,
    rope,
    soft_cap,
    transformer,
)
from gemma_np.scope import Record, Scope
from gemma_np.weights.linear import linear, linear_backward
from tests.support.finite_differences import assert_gradient
from tests.support.strategies import batches, configs, normal, random_ids, random_weights, seeds, sizes
from tests.support.tolerances import assert_close


def weighted(function, dy):
    """The number whose gradient of the function's result is dy."""
    return lambda *arguments: (function(*arguments) * dy).sum()


@given(batches, sizes, sizes, seeds)
def test_linear(batch, n_in, n_out, seed):
    x, weight, dy = normal(seed, *batch, n_in), normal(seed + 1, n_out, n_in), normal(seed + 2, *batch, n_out)
    assert_gradient(weighted(linear, dy), (x, weight), linear_backward(dy, x, weight))


@given(batches, sizes, sizes, sizes, seeds)
def test_embed(batch, T, D, V, seed):
    ids = np.random.default_rng(seed).integers(0, V, (*batch, T))
    E, dx = normal(seed, V, D), normal(seed + 1, *batch, T, D)
    gradient = embedding.embed_backward(dx, ids, E)
    assert_gradient(weighted(lambda E: embedding.embed(ids, E), dx), (E,), (gradient,))


def test_a_token_that_comes_twice_gets_both_gradients():
    gradient = embedding.embed_backward(np.ones((3, 4)), np.array([1, 0, 1]), np.zeros((3, 4)))
    assert (gradient[:, 0] == [2, 4, 0]).all()  # sqrt(4) each time


@given(batches, sizes, seeds, st.sampled_from([1e-6, 0.5]))
def test_rms_norm(batch, D, seed, eps):
    x, weight, dy = normal(seed, *batch, D) + 0.5, normal(seed + 1, D), normal(seed + 2, *batch, D)
    function = weighted(lambda x, w: rms_norm.rms_norm(x, w, eps), dy)
    assert_gradient(function, (x, weight), rms_norm.rms_norm_backward(dy, x, weight, eps), step=1e-4, tolerance=1e-6)


@given(sizes, seeds)
def test_a_norm_without_eps_passes_nothing_along_its_input(D, seed):
    x = normal(seed, D) + 2
    dx, _ = rms_norm.rms_norm_backward(normal(seed + 1, D), x, normal(seed + 2, D), 0.0)
    assert abs(dx @ x) < 1e-12 * max(1, abs(dx).max()) * abs(x).max() * D


@given(batches, sizes, st.sampled_from([2, 4, 6]), seeds)
def test_rope(batch, T, h, seed):
    cos, sin = rope.rope_cos_sin(range(T), h, 10.0, 2.0, np.float64)
    x, dy = normal(seed, *batch, T, h), normal(seed + 1, *batch, T, h)
    assert_gradient(weighted(lambda x: rope.rope(x, cos, sin), dy), (x,), (rope.rope_backward(dy, cos, sin),))
    assert_close(rope.rope_backward(rope.rope(x, cos, sin), cos, sin), x, "operation")


@given(batches, sizes, seeds, st.sampled_from([0.5, 2.0, 30.0]))
def test_soft_cap(batch, n, seed, cap):
    x, dy = 3 * normal(seed, *batch, n), normal(seed + 1, *batch, n)
    dx = soft_cap.soft_cap_backward(dy, soft_cap.soft_cap(x, cap), cap)
    assert_gradient(weighted(lambda x: soft_cap.soft_cap(x, cap), dy), (x,), (dx,), step=1e-4, tolerance=1e-7)


@given(batches, sizes, seeds, st.sampled_from([None, 1, 2, 3]))
def test_masked_softmax(batch, T, seed, window):
    mask = attention_mask.attention_mask(range(T), range(T), window)
    scores, dprobs = normal(seed, *batch, T, T), normal(seed + 1, *batch, T, T)
    dscores = attention_mask.masked_softmax_backward(dprobs, attention_mask.masked_softmax(scores, mask))
    assert_gradient(weighted(lambda s: attention_mask.masked_softmax(s, mask), dprobs), (scores,), (dscores,))
    assert (dscores[..., ~mask] == 0).all()


@given(seeds)
def test_gelu_and_slope(seed):
    x, dy = 3 * normal(seed, 7), normal(seed + 1, 7)
    y, slope = feed_forward.gelu_and_slope(x)
    np.testing.assert_allclose(y, feed_forward.gelu(x), rtol=1e-14)
    assert_gradient(weighted(feed_forward.gelu, dy), (x,), (dy * slope,), step=1e-4)


@given(batches, sizes, sizes, sizes, seeds)
def test_feed_forward(batch, T, D, F, seed):
    x, dy = normal(seed, *batch, T, D), normal(seed + 1, *batch, T, D)
    names = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    weights = [normal(seed + 2, F, D), normal(seed + 3, F, D), normal(seed + 4, D, F)]
    record, gradients = Record(), {}
    feed_forward.feed_forward(x, Scope(dict(zip(names, weights, strict=True))), record)
    dx = feed_forward.feed_forward_backward(
        dy, x, Scope(dict(zip(names, weights, strict=True))), Scope(record), Scope(gradients)
    )

    def function(x, *weights):
        return (feed_forward.feed_forward(x, Scope(dict(zip(names, weights, strict=True)))) * dy).sum()

    assert_gradient(function, (x, *weights), (dx, *(gradients[name] for name in names)), step=1e-4)


def layer_of(config, seed, layer):
    """The weights of one layer by their short names, in float64."""
    scope = Scope(random_weights(config, seed, np.float64)) / "model" / f"layers.{layer}"
    return {name: scope[name] for name in scope}


@given(configs(), batches, sizes, seeds, st.data())
def test_attention(config, batch, T, seed, data):
    layer = data.draw(st.integers(0, config.num_hidden_layers - 1))
    every = layer_of(config, seed, layer)
    weights = {name.removeprefix("self_attn."): w for name, w in every.items() if name.startswith("self_attn.")}
    x, dy = normal(seed, *batch, T, config.hidden_size), normal(seed + 1, *batch, T, config.hidden_size)
    record, gradients = Record(), {}
    attention.attention(x, Scope(weights), config, layer, tape=record)
    dx = attention.attention_backward(
        dy, x, Scope(weights), config, layer, record=Scope(record), gradients=Scope(gradients)
    )

    def function(x, *values):
        named = Scope(dict(zip(weights, values, strict=True)))
        return (attention.attention(x, named, config, layer) * dy).sum()

    assert set(gradients) == set(weights)
    assert_gradient(function, (x, *weights.values()), (dx, *(gradients[name] for name in weights)))


@given(configs(), batches, sizes, seeds, st.data())
def test_block(config, batch, T, seed, data):
    layer = data.draw(st.integers(0, config.num_hidden_layers - 1))
    weights = layer_of(config, seed, layer)
    x, dy = normal(seed, *batch, T, config.hidden_size), normal(seed + 1, *batch, T, config.hidden_size)
    record, gradients = Record(), {}
    block.block(x, Scope(weights), config, layer, tape=record)
    dx = block.block_backward(dy, x, Scope(weights), config, layer, record=Scope(record), gradients=Scope(gradients))

    def function(x, *values):
        return (block.block(x, Scope(dict(zip(weights, values, strict=True))), config, layer) * dy).sum()

    assert set(gradients) == set(weights)
    assert_gradient(function, (x, *weights.values()), (dx, *(gradients[name] for name in weights)))


def gradients_of(ids, weights, config, dlogits):
    """The gradient of (logits * dlogits).sum() with respect to every weight."""
    record, gradients = Record(), {}
    transformer.lm_head(transformer.transformer(ids, weights, config, tape=record), weights, config, record)
    dx = transformer.lm_head_backward(dlogits, weights, config, record, gradients)
    transformer.transformer_backward(dx, ids, weights, config, record, gradients)
    return gradients


@given(configs(), batches, st.integers(1, 7), seeds)
def test_the_whole_model(config, batch, T, seed):
    weights, ids = random_weights(config, seed, np.float64), random_ids(config, seed, *batch, T)
    dlogits = normal(seed, *batch, T, config.vocab_size)
    gradients = gradients_of(ids, weights, config, dlogits)
    assert set(gradients) == set(weights)

    def function(*values):
        named = dict(zip(weights, values, strict=True))
        x = transformer.transformer(ids, named, config)
        return (transformer.lm_head(x, named, config) * dlogits).sum()

    assert_gradient(function, list(weights.values()), [gradients[name] for name in weights])


@given(configs(), seeds)
def test_the_gradient_of_a_sum_is_the_sum_of_gradients(config, seed):
    weights, ids = random_weights(config, seed, np.float64), random_ids(config, seed, 2, 5)
    dlogits = normal(seed, 2, 5, config.vocab_size)
    together = gradients_of(ids, weights, config, dlogits)
    apart = [gradients_of(ids[row], weights, config, dlogits[row]) for row in range(2)]
    for name, gradient in together.items():
        assert_close(gradient, apart[0][name] + apart[1][name], "model", name)


@given(configs(), seeds)
def test_gradients_have_the_dtype_and_the_shape_of_their_weights(config, seed):
    weights, ids = random_weights(config, seed, np.float32), random_ids(config, seed, 5)
    for name, gradient in gradients_of(
        ids, weights, config, normal(seed, 5, config.vocab_size, dtype=np.float32)
    ).items():
        assert (gradient.dtype, gradient.shape) == (np.float32, weights[name].shape), name


@pytest.mark.framework
@given(configs(), st.integers(1, 8), seeds)
def test_gradients_are_those_of_the_framework(config, T, seed):
    import torch

    from tests.support.framework import framework_model

    weights, ids = random_weights(config, seed, np.float32), random_ids(config, seed, 2, T)
    dlogits = normal(seed, 2, T, config.vocab_size, dtype=np.float32)
    model = framework_model(config, weights)
    model.model.embed_tokens.padding_idx = None  # the framework gives the padding token's row no gradient
    (model(torch.tensor(ids)).logits * torch.tensor(dlogits)).sum().backward()
    for name, gradient in gradients_of(ids, weights, config, dlogits).items():
        expected = model.get_parameter(name).grad.numpy()
        if math.isclose(
            np.abs(expected).max(), 0, abs_tol=1e-6
        ):  # one token: its probability is 1 whatever q and k are
            assert np.abs(gradient).max() < 1e-4
        else:
            assert_close(gradient, expected, "gradient", name)
