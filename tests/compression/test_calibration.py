"""The importance of channels: the mean squares of what a trace records."""

import dataclasses

import numpy as np
import pytest

from gemma_np.compression.calibration import INPUTS, channel_importance
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.scope import Scope
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, random_ids


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_importance_is_the_mean_square_of_the_recorded_inputs(model_type):
    model = tiny.gemma(model_type)
    ids = random_ids(model.config, 0, 3, 10)
    found = channel_importance(model, ids)
    traces = [model.trace(text) for text in ids]
    matrices = {name for name, shape in model.config.weight_shapes() if len(shape) == 2}
    assert set(found) == matrices - {"model.embed_tokens.weight"}
    for layer in range(model.config.num_hidden_layers):
        for matrix, record in INPUTS.items():
            inputs = np.concatenate([(Scope(trace) / f"layers.{layer}")[record] for trace in traces])
            importance = found[f"model.layers.{layer}.{matrix}"]
            assert importance.shape == (model.weights[f"model.layers.{layer}.{matrix}"].shape[1],)
            assert np.allclose(importance, np.square(inputs).mean(0), rtol=1e-5)


def test_matrices_with_the_same_input_share_their_importance():
    model = tiny.gemma("gemma2")
    found = channel_importance(model, random_ids(model.config, 0, 2, 5))
    q, k, v = (found[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv")
    gate, up = (found[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert q is k is v
    assert gate is up
    assert gate is not q


def test_a_quantized_model_can_be_measured():
    model = tiny.gemma("gemma2")
    weights = {n: quantize(w, Scheme("int8")) if w.ndim == 2 else w for n, w in model.weights.items()}
    ids = random_ids(model.config, 0, 2, 5)
    found, expected = (channel_importance(dataclasses.replace(model, weights=w), ids) for w in (weights, model.weights))
    for name, importance in expected.items():
        assert np.allclose(found[name], importance, rtol=0.3, atol=0.1 * importance.mean()), name
