"""Every intermediate of tiny random models against what the framework makes of them."""

import numpy as np
import pytest

from gemma_np.model.records import record_shapes
from gemma_np.training.task import Batch, next_token
from gemma_np.training.trainer import loss_and_gradients
from tests.support.goldens import CASES, MODEL_TYPES, check_golden, expected_records, load
from tests.support.tolerances import assert_close


@pytest.mark.parametrize(("model_type", "case"), CASES)
def test_every_intermediate_agrees(model_type, case):
    check_golden(model_type, case)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_gradient_of_every_weight_agrees(model_type):
    config, weights, tensors = load(model_type)
    _, gradients, _ = loss_and_gradients(weights, config, Batch(tensors["past-window/ids"]), next_token)
    assert set(gradients) == set(weights)
    for name, gradient in gradients.items():
        assert_close(gradient, tensors[f"gradients/{name}"], "gradient", name)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_golden_files_hold_every_record(model_type):
    config, _, _ = load(model_type)
    for case in ("short", "past-window"):
        (records,) = expected_records(model_type, case)
        shapes = record_shapes(config, T=records["embedding"].shape[1])
        assert {name: record.shape[1:] for name, record in records.items()} == shapes


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_golden_models_bite(model_type):
    """A cap, a window or a second token that changes nothing would be tested by nothing."""
    config, _, _ = load(model_type)
    (records,) = expected_records(model_type, "past-window")
    for name, record in records.items():
        assert np.abs(record).max() > 0.1, name
    for layer in range(config.num_hidden_layers):
        seen = (records[f"layers.{layer}.self_attn.probs"][0, 0] > 0).sum(axis=-1)
        assert seen.max() == (config.window(layer) or 11)
        if cap := config.attn_logit_softcapping:
            assert np.abs(records[f"layers.{layer}.self_attn.scores"]).max() > cap
    if cap := config.final_logit_softcapping:
        assert np.abs(records["logits"]).max() > cap
