"""Single weights pruned: how many, which, and that they stay away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import Gemma, GemmaError
from gemma_np.compression.pruning import PRUNING_METHODS, keep_fraction, keep_sparsity, prune_weights, two_of_four
from tests.support import tiny
from tests.support.strategies import normal, random_ids, seeds


@given(st.floats(0, 0.99), st.integers(1, 5), st.integers(1, 9), seeds)
def test_a_share_of_each_row_goes_and_it_is_the_smallest(sparsity, rows, columns, seed):
    scores = np.abs(normal(seed, rows, columns))
    kept = keep_fraction(sparsity)(scores)
    assert (columns - kept.sum(axis=1) == round(sparsity * columns)).all()
    for row, mask in zip(scores, kept, strict=True):
        assert row[~mask].max(initial=-np.inf) <= row[mask].min(initial=np.inf)


@given(st.integers(1, 5), st.integers(1, 4), seeds)
def test_two_of_four_are_kept_and_they_are_the_largest(rows, fours, seed):
    scores = np.abs(normal(seed, rows, 4 * fours))
    kept = two_of_four(scores)
    for row, mask in zip(scores.reshape(-1, 4), kept.reshape(-1, 4), strict=True):
        assert mask.sum() == 2
        assert row[~mask].max() <= row[mask].min()


def test_two_of_four_takes_no_other_rows():
    with pytest.raises(GemmaError, match="2:4: 6 channels, expected a multiple of 4"):
        two_of_four(np.ones((2, 6)))
    message = r"^model\.layers\.0\.mlp\.down_proj\.weight: 2:4: 7 channels, expected a multiple of 4$"
    with pytest.raises(GemmaError, match=message):
        dict(prune_weights(tiny.gemma(), two_of_four, "magnitude"))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_share_is_less_than_all(sparsity):
    with pytest.raises(GemmaError, match=r"sparsity: .*, expected 0 or more and less than 1"):
        keep_fraction(sparsity)


@pytest.mark.parametrize("method", PRUNING_METHODS)
def test_pruning_nothing_changes_nothing(method):
    model = tiny.gemma()
    pruned = dict(prune_weights(model, keep_fraction(0), method, random_ids(model.config, 0, 2, 9)))
    assert list(pruned) == [name for name, _ in model.config.weight_shapes()]
    for name, weight in model.weights.items():
        assert (pruned[name] == weight).all(), name


def test_norms_and_embedding_are_left_alone():
    model = tiny.gemma()
    for name, weight in prune_weights(model, keep_fraction(0.5), "magnitude"):
        zeros = (weight == 0).mean()
        assert (zeros > 0.4) if weight.ndim == 2 and "embed" not in name else zeros == 0, name


def test_wanda_weighs_with_the_inputs_that_the_pruned_layers_before_make():
    """One row of the last layer's down_proj, worked out from the definition."""
    model, keep = tiny.gemma(), keep_fraction(0.5)
    ids = random_ids(model.config, 0, 2, 9)
    pruned = dict(prune_weights(model, keep, "wanda", ids))
    name = "model.layers.3.mlp.down_proj.weight"
    before = {key: pruned[key] if ".layers.3." not in key else weight for key, weight in model.weights.items()}
    hidden = Gemma(model.config, before, None).trace(ids)["layers.3.mlp.hidden"].reshape(-1, 7)
    scores = np.abs(model.weights[name]) * np.sqrt(np.square(hidden).sum(axis=0))
    assert ((pruned[name] != 0) == keep(scores)).all()


def test_wanda_needs_a_text():
    with pytest.raises(GemmaError, match="method wanda: needs calibration text"):
        prune_weights(tiny.gemma(), two_of_four, "wanda")


def test_an_unknown_method():
    with pytest.raises(GemmaError, match="method: 'random', expected one of magnitude, wanda"):
        prune_weights(tiny.gemma(), two_of_four, "random")


def test_zeros_stay_however_the_weights_move():
    model = tiny.gemma()
    pruned = dict(prune_weights(model, keep_fraction(0.5), "magnitude"))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        pruned[name] = np.zeros_like(pruned[name])  # only the zeros of pruned matrices stay
    moved = {name: weight + 1 for name, weight in pruned.items()}
    for name, weight in keep_sparsity(pruned)(moved).items():
        if weight.ndim == 2 and "embed" not in name:
            assert ((weight == 0) == (pruned[name] == 0)).all(), name
        else:
            assert (weight == moved[name]).all(), name
