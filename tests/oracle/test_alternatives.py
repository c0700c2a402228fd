"""Wrong ways to compute a record: each has its shape, differs from the right way, and is identified when planted."""

import numpy as np
import pytest

from gemma_np.oracle.alternatives import Alternative, Family, candidates
from gemma_np.oracle.diagnosis import places, ranges
from gemma_np.oracle.identification import smallest
from gemma_np.oracle.isolation import isolated_run
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference
from tests.oracle.test_diagnose import diagnose, reference

MODEL_TYPES = ("gemma", "gemma2", "gemma3_text")


def operations(ref: Reference):
    """Each operation of the model, with the right records as its inputs."""
    records = ref.records()
    run = isolated_run(ref, records)
    for name in dict.fromkeys(record_slice.name for record_slice in ref.slices.values()):
        yield Operation(name, ref, run.inputs, run.computed[name]), run.inputs[name]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_record_has_alternatives_of_its_shape(model_type):
    for operation, right in operations(reference(model_type)):
        members = list(candidates(operation))
        if operation.part in ("scores_capped", "logits_capped"):
            assert members
        for member in members:
            one = member if isinstance(member, Alternative) else member.at(operation, float(member.values[-1]))
            with np.errstate(all="ignore"):
                value = one.compute(operation)
            assert value.shape == right.shape, (operation.name, one.says)
            assert one.says, operation.name


def every_kind():
    ref = reference("gemma2")
    return sorted({operation.kind for operation, _ in operations(ref)})


@pytest.mark.parametrize("kind", every_kind())
def test_what_is_planted_in_one_layer_is_identified(kind):
    """Every third of the alternatives of each operation of layer 1, or outside the layers."""
    ref = reference("gemma2")
    name = kind.replace("*", "1")
    (operation, right), *_ = [pair for pair in operations(ref) if pair[0].name == name]
    members = list(candidates(operation))
    alternatives = [member for member in members if isinstance(member, Alternative)]
    for planted in alternatives[::3]:
        with np.errstate(all="ignore"):
            difference = np.abs(planted.compute(operation) - right)
            if operation.part.endswith("scores"):
                difference = difference[:, np.tril(np.ones(right.shape[1:], bool))]
        if not difference.max() > 1e-3 * np.abs(right).max():
            continue  # this config does not show it, or it is as small as rounding
        records = isolated_run(ref, {}, {name: planted}).inputs
        theirs = {key: ref.slices[key].select(records[ref.slices[key].name]).astype(np.float32) for key in ref.slices}
        if not all(np.isfinite(record).all() for record in theirs.values()):
            continue
        found = diagnose(ref, theirs, "float32")
        said = {says for cause in found.causes for says in (cause.says, *cause.ties)}
        assert not found.unexplained, (planted.says, found.unexplained)
        assert planted.says in said or len(said) == 1, (planted.says, said)


def test_a_number_is_found_to_many_digits():
    assert smallest(lambda x: abs(x - 0.1234567), [0.0, 1.0, 2.0]) == pytest.approx(0.1234567, abs=1e-8)
    assert smallest(lambda x: abs(x - 1.9), np.linspace(0, 2, 5).tolist(), below=0.01) == 2.0  # not worth refining


def test_a_family_finds_its_number():
    ref = reference("gemma2")
    records = ref.records(lambda name, value: value * 1.37 if name == "layers.2.mlp.down" else value)
    found = diagnose(ref, {key: record.astype(np.float32) for key, record in records.items()}, "float32")
    assert [cause.says for cause in found.causes] == ["it is multiplied by 1.37"]
    families = [member for operation, _ in operations(ref) for member in candidates(operation)]
    assert all(np.all(np.diff(family.values) > 0) for family in families if isinstance(family, Family))


def test_places_are_grouped():
    keys = ["layers.0.mlp.up", "layers.1.mlp.up", "layers.3.mlp.up", "pass.1.layers.0.mlp.up", "norm", "pass.2.norm"]
    assert places(keys) == ["layers.0-1,3.mlp.up in passes 0-1", "norm in passes 0,2"]
    assert places(["pass.4.logits"]) == ["logits in pass 4"]
    assert places(["logits"]) == ["logits"]
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
