"""Activation-aware scaling: the same function, in weights that suffer less."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.compression.awq import awq_scale, best_scales
from gemma_np.compression.calibration import INPUTS, InputGram
from gemma_np.compression.gptq import output_error
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.model.block import block, pre_feedforward_name
from gemma_np.scope import Scope
from gemma_np.weights.formats import dequantize
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, normal, random_weights, seeds
from tests.support.tolerances import assert_close


def layer_of(config, seed):
    weights, x = random_weights(config, seed, np.float64), normal(seed, 3, 9, config.hidden_size)
    x[..., 0] *= 30  # a channel with large inputs, as real models have them
    layer, gram = dict(Scope(weights) / "model.layers.0"), InputGram()
    y = block(x, Scope(layer), config, 0, tape=gram)
    return layer, gram, x, y


@given(configs(), seeds)
def test_a_layer_computes_the_same(config, seed):
    layer, gram, x, y = layer_of(config, seed)
    scaled = awq_scale(layer, gram, Scheme("int8"), config)
    assert any((scaled[name] != layer[name]).any() for name in layer)
    assert_close(block(x, Scope(scaled), config, 0), y, "model")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_all_of_a_layer_takes_part(model_type):
    """Every matrix, and the two norms that the factors go into."""
    config = tiny.config(model_type)
    layer, gram, _, _ = layer_of(config, 0)
    scaled = awq_scale(layer, gram, Scheme("int8"), config)
    norms = {"input_layernorm.weight", f"{pre_feedforward_name(config)}.weight"}
    assert {name for name in layer if (scaled[name] != layer[name]).any()} == norms | INPUTS.keys()


@given(configs(), seeds)
def test_what_a_layer_multiplies_last_is_not_further_off(config, seed):
    """These two matrices have factors of their own alone, and what they return is what they returned before."""
    scheme = Scheme("int8")
    layer, gram, x, _ = layer_of(config, seed)
    scaled, new_moments = awq_scale(layer, gram, scheme, config), InputGram()
    block(x, Scope(scaled), config, 0, tape=new_moments)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        error, before = (
            output_error(dequantize(quantize(weights[name], scheme)), weights[name], seen[INPUTS[name]]).sum()
            for weights, seen in ((scaled, new_moments), (layer, gram))
        )
        assert error <= before * (1 + 1e-5), name


@given(st.sampled_from([Scheme("int8"), Scheme("int4"), Scheme("int4", 4), Scheme("int4", 4, True)]), seeds)
def test_factors_never_make_the_error_larger(scheme, seed):
    weight, x = normal(seed, 5, 12, dtype=np.float32), normal(seed + 1, 20, 12, dtype=np.float32)
    x *= 3 ** normal(seed + 2, 12, dtype=np.float32)
    s = best_scales([weight, 2 * weight[:2]], x.T @ x, scheme)
    errors = [
        sum(output_error(dequantize(quantize(w * by, scheme)) / by, w, x.T @ x).sum() for w in (weight, 2 * weight[:2]))
        for by in (s, np.ones_like(s))
    ]
    assert errors[0] <= errors[1]


def test_channels_with_large_inputs_get_finer_steps():
    weight, x = normal(0, 40, 32, dtype=np.float32), normal(1, 200, 32, dtype=np.float32)
    x[:, :3] *= 50
    x[:, 3] = 0  # one that never gets any
    gram, scheme = x.T @ x, Scheme("int4", 8)
    s = best_scales([weight], gram, scheme)
    with_s = output_error(dequantize(quantize(weight * s, scheme)) / s, weight, gram).sum()
    without = output_error(dequantize(quantize(weight, scheme)), weight, gram).sum()
    assert with_s < 0.7 * without
    assert (s[:3] > s[3:].max()).all()


def test_the_query_heads_of_a_group_share_their_factors():
    weight, x = normal(0, 12, 24, dtype=np.float32), np.exp(normal(1, 50, 24, dtype=np.float32))
    s = best_scales([weight], x.T @ x, Scheme("int4", 4), share=(2, 3, 4)).reshape(2, 3, 4)
    assert (s == s[:, :1]).all()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_channels_without_any_input_are_no_trouble(model_type):
    config = tiny.config(model_type)
    layer = {name: weight.copy() for name, weight in (Scope(random_weights(config, 0)) / "model.layers.0").items()}
    layer["mlp.up_proj.weight"][2] = 0
    gram, x = InputGram(), normal(0, 9, config.hidden_size, dtype=np.float32)
    y = block(x, Scope(layer), config, 0, tape=gram)
    with np.errstate(divide="raise", invalid="raise"):
        scaled = awq_scale(layer, gram, Scheme("int8"), config)
    assert_close(block(x, Scope(scaled), config, 0), y, "model")


def test_inputs_that_are_all_zero_are_no_trouble():
    with np.errstate(divide="raise", invalid="raise"):
        s = best_scales([normal(0, 4, 8)], np.zeros((8, 8)), Scheme("int8"))
    np.testing.assert_array_equal(s, 1)
