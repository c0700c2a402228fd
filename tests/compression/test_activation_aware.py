"""Activation-aware scaling: the same function, in weights that suffer less."""

import numpy as np
import pytest
from hypothesis import given

from gemma_np.compression.activation_aware import best_factors, rescale
from gemma_np.compression.calibration import Moments
from gemma_np.compression.gptq import moment_error
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.model.block import block
from gemma_np.scope import Scope
from gemma_np.storage import dequantize
from tests import tiny
from tests.strategies import MODEL_TYPES, configs, normal, random_weights, seeds
from tests.tolerances import assert_close


def layer_of(config, seed):
    weights, x = random_weights(config, seed, np.float64), normal(seed, 3, 9, config.hidden_size)
    x[..., 0] *= 30  # a channel with large inputs, as real models have them
    layer, moments = dict(Scope(weights) / "model.layers.0"), Moments()
    y = block(x, Scope(layer), config, 0, tape=moments)
    return layer, moments, x, y


@given(configs(), seeds)
def test_a_layer_computes_the_same(config, seed):
    layer, moments, x, y = layer_of(config, seed)
    scaled = rescale(layer, moments, Scheme("int8"), config)
    assert any((scaled[name] != layer[name]).any() for name in layer)
    assert_close(block(x, Scope(scaled), config, 0), y, "model")


def test_factors_never_make_the_error_larger():
    weight, x = normal(0, 40, 32, dtype=np.float32), normal(1, 200, 32, dtype=np.float32)
    x[:, :3] *= 50
    moments, scheme = x.T @ x, Scheme("int4", 8)
    s = best_factors([weight], moments, scheme)
    with_s = moment_error(dequantize(quantize(weight * s, scheme)) / s, weight, moments).sum()
    without = moment_error(dequantize(quantize(weight, scheme)), weight, moments).sum()
    assert with_s < 0.7 * without
    assert (s[:3] > s[3:].max()).all()


def test_the_query_heads_of_a_group_share_their_factors():
    weight, x = normal(0, 12, 24, dtype=np.float32), np.exp(normal(1, 50, 24, dtype=np.float32))
    s = best_factors([weight], x.T @ x, Scheme("int4", 4), share=(2, 3, 4)).reshape(2, 3, 4)
    assert (s == s[:, :1]).all()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_channels_without_any_input_are_no_trouble(model_type):
    config = tiny.config(model_type)
    layer = {name: weight.copy() for name, weight in (Scope(random_weights(config, 0)) / "model.layers.0").items()}
    layer["mlp.up_proj.weight"][2] = 0
    moments, x = Moments(), normal(0, 9, config.hidden_size, dtype=np.float32)
    y = block(x, Scope(layer), config, 0, tape=moments)
    scaled = rescale(layer, moments, Scheme("int8"), config)
    assert_close(block(x, Scope(scaled), config, 0), y, "model")
