"""Arrays seen through a prefix, and the tape."""

import numpy as np
import pytest

from gemma_np.scope import Record, Scope, no_tape, prefixed


@pytest.fixture
def arrays():
    names = ("model.norm.weight", "model.layers.1.norm.weight", "model.layers.1.mlp.up", "model.layers.10.norm.weight")
    return {name: np.full(2, number) for number, name in enumerate(names)}


def test_a_scope_is_a_view_through_a_prefix(arrays):
    layer = Scope(arrays) / "model" / "layers.1"
    assert layer["norm.weight"] is arrays["model.layers.1.norm.weight"]
    assert (layer / "mlp")["up"] is arrays["model.layers.1.mlp.up"]


def test_a_scope_lists_its_own_names_and_no_others(arrays):
    layer = Scope(arrays) / "model" / "layers.1"
    assert list(layer) == ["norm.weight", "mlp.up"]  # and not those of layer 10
    assert len(layer) == 2
    assert len(Scope(arrays)) == 4
    assert "mlp.up" in layer
    assert "model.norm.weight" not in layer
    assert dict(layer / "mlp") == {"up": arrays["model.layers.1.mlp.up"]}


def test_a_missing_name_is_reported_in_full(arrays):
    with pytest.raises(KeyError, match=r"model\.layers\.1\.mlp\.down"):
        (Scope(arrays) / "model.layers.1" / "mlp")["down"]


def test_writing_and_deleting_reach_the_arrays_below(arrays):
    mlp = Scope(arrays) / "model.layers.1.mlp"
    mlp["down"] = np.ones(3)
    assert arrays["model.layers.1.mlp.down"].shape == (3,)
    del mlp["up"]
    assert "model.layers.1.mlp.up" not in arrays
    assert len(arrays) == 4


def test_the_tape_that_is_off_hands_the_value_on():
    value = np.ones(2)
    assert no_tape("q", value) is value
    assert prefixed(no_tape, "layers.0") is no_tape


def test_a_record_keeps_values_in_the_order_of_execution():
    record, q, k = Record(), np.zeros(1), np.ones(1)
    assert record("q", q) is q
    assert prefixed(prefixed(record, "layers.0"), "self_attn")("k", k) is k
    assert list(record) == ["q", "layers.0.self_attn.k"]
    assert record["q"] is q
    assert record["layers.0.self_attn.k"] is k
