"""The pruning plan in one line."""

import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.compression.pruning_plan import PruningPlan, prune, read_plan
from tests.support import tiny
from tests.support.strategies import random_ids


def test_a_plan_is_read():
    assert read_plan("layers=20, intermediate-size=6912,kv-heads=2") == PruningPlan(
        layers=20, intermediate_size=6912, kv_heads=2
    )
    assert read_plan("drop-layers=3+7,wanda=2:4") == PruningPlan(drop_layers=(3, 7), wanda="2:4")
    assert read_plan("magnitude=0.5") == PruningPlan(magnitude=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads=2", "'heads=2': expected NAME=VALUE with one of layers, drop-layers, intermediate-size"),
        ("layers", "'layers': expected NAME=VALUE"),
        ("layers=few", "layers: 'few', expected a number"),
        ("magnitude=3:4", "magnitude: '3:4', expected a number"),
    ],
)
def test_what_is_no_plan(text, message):
    with pytest.raises(GemmaError, match=message):
        read_plan(text)


def test_parts_go_before_single_weights():
    model = tiny.gemma()
    plan = read_plan("layers=2,intermediate-size=4,kv-heads=1,wanda=2:4")
    smaller = prune(model, plan, random_ids(model.config, 0, 2, 9))
    config = smaller.config
    assert (config.num_hidden_layers, config.intermediate_size, config.num_key_value_heads) == (2, 4, 1)
    for name, shape in config.weight_shapes():
        assert smaller.weights[name].shape == shape
        if len(shape) == 2 and "embed" not in name:
            assert ((smaller.weights[name].reshape(-1, 4) != 0).sum(axis=1) <= 2).all()


def test_named_layers_are_dropped_without_a_text():
    model = tiny.gemma()
    smaller = prune(model, read_plan("drop-layers=0+1"), None)
    assert smaller.config.layer_types == model.config.layer_types[2:]
    old, new = model.weights["model.layers.2.mlp.up_proj.weight"], smaller.weights["model.layers.0.mlp.up_proj.weight"]
    assert (old == new).all()


def test_a_layer_that_does_not_exist():
    with pytest.raises(GemmaError, match="layer 4: does not exist, expected 0 to 3"):
        prune(tiny.gemma(), read_plan("drop-layers=4"), None)


def test_a_share_beyond_all():
    with pytest.raises(GemmaError, match=r"sparsity: 1.5, expected 0 or more and less than 1"):
        prune(tiny.gemma(), read_plan("magnitude=1.5"), None)


def test_importance_needs_a_text():
    with pytest.raises(GemmaError, match="this plan needs calibration text"):
        prune(tiny.gemma(), read_plan("layers=2"), None)


def test_the_model_given_is_not_changed():
    model = tiny.gemma()
    before = {name: weight.copy() for name, weight in model.weights.items()}
    prune(model, read_plan("intermediate-size=4,magnitude=0.5"), random_ids(model.config, 0, 2, 9))
    assert all(np.array_equal(model.weights[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("plan", ["layers=0", "intermediate-size=0", "kv-heads=0"])
def test_a_size_of_zero_is_refused(plan):
    model = tiny.gemma()
    with pytest.raises(GemmaError, match=r"0 .*to keep, expected 1 to"):
        prune(model, read_plan(plan), random_ids(model.config, 0, 2, 9))
