"""Whole parts taken out: the same as setting what they add to zero, and a checkpoint like any other."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemma_np
from gemma_np import Gemma, GemmaError
from gemma_np.compression.structured_pruning import (
    choose_layers,
    keep_channels,
    keep_groups,
    keep_layers,
    measure_importance,
)
from gemma_np.config import layer_pattern
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, normal, random_ids, random_weights, seeds
from tests.support.tolerances import assert_close


def largest(scores, keep):
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:keep])


@given(configs(), seeds)
def test_a_channel_that_goes_is_one_whose_column_is_zero(config, seed):
    model = Gemma(config, random_weights(config, seed, np.float64), None)
    keep, scores = config.intermediate_size // 2, normal(seed, config.num_hidden_layers, config.intermediate_size)
    zeroed = {name: weight.copy() for name, weight in model.weights.items()}
    for layer, row in enumerate(scores):
        gone = [c for c in range(config.intermediate_size) if c not in largest(row, keep)]
        zeroed[f"model.layers.{layer}.mlp.down_proj.weight"][:, gone] = 0
    smaller, ids = keep_channels(model, scores, keep), random_ids(config, seed, 7)
    assert smaller.config.intermediate_size == keep
    assert_close(smaller.logits(ids), Gemma(config, zeroed, None).logits(ids), "model")


@given(configs(), seeds)
def test_a_group_that_goes_is_one_whose_columns_of_o_proj_are_zero(config, seed):
    model = Gemma(config, random_weights(config, seed, np.float64), None)
    K, width = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads * config.head_dim
    keep, scores = max(1, K - 1), normal(seed, config.num_hidden_layers, K)
    zeroed = {name: weight.copy() for name, weight in model.weights.items()}
    for layer, row in enumerate(scores):
        for group in set(range(K)) - set(largest(row, keep)):
            zeroed[f"model.layers.{layer}.self_attn.o_proj.weight"][:, group * width : (group + 1) * width] = 0
    smaller, ids = keep_groups(model, scores, keep), random_ids(config, seed, 7)
    assert smaller.config.num_attention_heads == keep * config.num_attention_heads // K
    assert_close(smaller.logits(ids), Gemma(config, zeroed, None).logits(ids), "model")


@given(configs(), seeds)
def test_keeping_everything_changes_nothing(config, seed):
    model, ids = Gemma(config, random_weights(config, seed), None), random_ids(config, seed, 2, 7)
    importance = measure_importance(model, ids)
    for same in (
        keep_channels(model, importance.channels, config.intermediate_size),
        keep_groups(model, importance.groups, config.num_key_value_heads),
        keep_layers(model, range(config.num_hidden_layers)),
    ):
        assert same.config == config
        assert all((same.weights[name] == weight).all() for name, weight in model.weights.items())


def test_importance_is_the_energy_that_a_part_adds():
    """From the definition, for one layer: what down_proj, or o_proj, makes of each part alone."""
    model = tiny.gemma()
    ids = random_ids(model.config, 0, 2, 9)
    importance, record = measure_importance(model, ids), model.trace(ids)
    down, o = (model.weights[f"model.layers.2.{name}.weight"] for name in ("mlp.down_proj", "self_attn.o_proj"))
    hidden, context = record["layers.2.mlp.hidden"], record["layers.2.self_attn.context"]
    channels = [np.square(np.outer(hidden[..., c], down[:, c])).sum() for c in range(7)]
    groups = [np.square(context[..., 8 * g : 8 * g + 8] @ o[:, 8 * g : 8 * g + 8].T).sum() for g in range(2)]
    assert_close(importance.channels[2], np.array(channels), "precision")
    assert_close(importance.groups[2].astype(np.float32), np.array(groups), "precision")
    x, y = (record[f"layers.{layer}.resid_post"].reshape(-1, 12) for layer in (1, 2))
    cosines = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    assert_close(importance.layers[2].astype(np.float32), 1 - cosines.mean(), "precision")


@given(st.sampled_from([0, 1, 5]), st.integers(1, 12), st.data())
def test_the_layers_chosen_are_the_most_important_ones_in_the_pattern(local_per_global, layers, data):
    """Against trying all subsets."""
    config = tiny.config("gemma" if local_per_global == 0 else "gemma2")
    kinds = layer_pattern(layers, local_per_global)
    object.__setattr__(config, "num_hidden_layers", layers)
    object.__setattr__(config, "layer_types", kinds)
    importance = normal(data.draw(seeds), layers) ** 2
    keep = data.draw(st.integers(1, layers))
    pattern = layer_pattern(keep, local_per_global) if "full_attention" in kinds else kinds[:keep]
    fitting = [
        subset for subset in itertools.combinations(range(layers), keep) if tuple(kinds[i] for i in subset) == pattern
    ]
    best = max(fitting, key=lambda subset: importance[list(subset)].sum())
    assert choose_layers(importance, config, keep) == list(best)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_smaller_checkpoint_is_saved_and_loaded(model_type, tmp_path):
    model = tiny.gemma(model_type)
    importance = measure_importance(model, random_ids(model.config, 0, 2, 9))
    smaller = keep_layers(model, choose_layers(importance.layers, model.config, 2))
    smaller = keep_groups(keep_channels(smaller, importance.channels[:2], 4), importance.groups[:2], 1)
    smaller.save(tmp_path / "smaller")
    loaded = gemma_np.load(tmp_path / "smaller")
    assert loaded.config == smaller.config
    assert (loaded.logits([2, 5, 7]) == smaller.logits([2, 5, 7])).all()


@pytest.mark.framework
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_framework_with_the_same_rows_deleted(model_type, tmp_path):
    """The framework's own model, its rows and layers deleted by hand, and the checkpoint that it loads from us."""
    import torch
    import transformers

    model = tiny.gemma(model_type)
    ids = random_ids(model.config, 0, 2, 9)
    importance = measure_importance(model, ids)
    channels = np.array([largest(row, 4) for row in importance.channels])
    groups = np.array([largest(row, 1) for row in importance.groups])
    smaller = keep_groups(keep_channels(model, importance.channels, 4), importance.groups, 1)
    smaller.save(tmp_path / "ours")
    model.save(tmp_path / "whole")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", attn_implementation="eager")
    with torch.no_grad():
        for layer, block in enumerate(theirs.model.layers):
            attention, mlp = block.self_attn, block.mlp
            queries = [8 * g + i for g in groups[layer] for i in range(8)]
            keys = [4 * g + i for g in groups[layer] for i in range(4)]
            for linear, rows in ((attention.q_proj, queries), (attention.k_proj, keys), (attention.v_proj, keys)):
                linear.weight.data = linear.weight.data[rows]
            attention.o_proj.weight.data = attention.o_proj.weight.data[:, queries]
            for linear in (mlp.gate_proj, mlp.up_proj):
                linear.weight.data = linear.weight.data[channels[layer]]
            mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, channels[layer]]
        text = torch.tensor(ids)
        assert_close(smaller.logits(ids), theirs(text).logits.numpy(), "framework")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
        assert_close(smaller.logits(ids), loaded(text).logits.numpy(), "framework")


@pytest.mark.framework
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_framework_without_some_layers(model_type, tmp_path):
    import torch
    import transformers

    model = tiny.gemma(model_type)
    keep_layers(model, [2, 3]).save(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    ids = random_ids(model.config, 0, 2, 9)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert_close(keep_layers(model, [2, 3]).logits(ids), expected, "framework")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda m, i: keep_layers(m, [0, 9]), "layer 9: does not exist, expected 0 to 3"),
        (lambda m, i: keep_channels(m, i.channels, 8), "intermediate-size: 8 channels to keep, expected 1 to 7"),
        (lambda m, i: keep_groups(m, i.groups, 0), "kv-heads: 0 to keep, expected 1 to 2"),
        (lambda m, i: choose_layers(i.layers, m.config, 5), "layers: 5 to keep, expected 1 to 4"),
    ],
)
def test_parts_that_do_not_exist(what, message):
    model = tiny.gemma()
    importance = measure_importance(model, random_ids(model.config, 0, 1, 5))
    with pytest.raises(GemmaError, match=message):
        what(model, importance)
