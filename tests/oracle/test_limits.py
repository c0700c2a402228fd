"""What the oracle does not claim: nothing from noise, nothing that a dump cannot show."""

import ml_dtypes
import numpy as np
import pytest

from gemma_np.oracle import power
from gemma_np.oracle.diagnosis import describe_diagnosis
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.trace import Reference
from tests.oracle.test_diagnose import diagnose, mistaken, reference


def blind_spots(reference, records, dtype):
    return power.blind_spots(Alignment(reference, records, {}), dtype)


LOGITS = ("logits", "logits_capped")


def only(records, *ends):
    return {key: record for key, record in records.items() if key.endswith(ends)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kept", [("",), ("resid_post", *LOGITS), LOGITS])
def test_random_and_shuffled_numbers_are_never_explained(dtype, kept):
    ref, generator = reference("gemma2"), np.random.default_rng(0)
    right = only(ref.records(), *kept)
    for theirs in (
        {key: generator.standard_normal(record.shape) for key, record in right.items()},
        {key: generator.permutation(record.ravel()).reshape(record.shape) for key, record in right.items()},
    ):
        stored = {
            key: record.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for key, record in theirs.items()
        }
        found = diagnose(ref, stored, dtype)
        if found.wrong:
            assert found.unexplained
        else:
            assert found.silent


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_bfloat16_logits_of_something_unknown_name_nothing(model_type):
    """Noise of bfloat16 in a mistaken model may be as large as its logits: that is no explanation."""
    ref = reference(model_type)

    def tape(name, value):
        value = np.sin(3 * value) if name.endswith("mlp.up") else value
        return value.astype(ml_dtypes.bfloat16).astype(np.float64)

    theirs = only(ref.records(tape), *LOGITS)
    found = diagnose(ref, {key: record.astype(ml_dtypes.bfloat16) for key, record in theirs.items()}, "bfloat16")
    assert not found.causes


def test_a_short_text_cannot_show_the_window():
    long = reference("gemma2")
    short = Reference(long.model, [long.ids[:3]])  # a window of 3
    blind = blind_spots(short, short.records(), "float64")
    hidden = {"window-ignored", "window-off-by-one", "window-all-layers", "window-parity"}
    assert {blind[known] for known in hidden} == {"the text has 3 tokens, the window 3; use at least 5 tokens"}
    assert blind["decode-positions"] == "there is only one pass; decode some tokens, too"
    report = "\n".join(describe_diagnosis(diagnose(short, short.records(), "float64")._replace(blind_spots=blind)))
    assert report.startswith("Nothing is wrong")
    assert "This dump could not have shown:" in report
    assert "window-off-by-one, " in report


def test_what_is_not_a_blind_spot_is_seen():
    """A known mistake either shows in these records or is listed as one that could not."""
    for kept in (("",), LOGITS):
        ref = reference("gemma2")
        blind = blind_spots(ref, only(ref.records(), *kept), "float32")
        for known in ("window-off-by-one", "qscale-head-dim", "gelu-exact", "decode-positions", "rope-bf16"):
            seen = bool(diagnose(ref, only(mistaken("gemma2", known), *kept), "float32").wrong)
            assert seen != (known in blind), known


def test_rounding_hides_small_mistakes():
    ref = reference("gemma2")
    records = {key: record.astype(ml_dtypes.bfloat16) for key, record in ref.records().items()}
    blind = blind_spots(ref, records, "bfloat16")
    assert blind["embed-scale-rounding"] == "smaller than the rounding of bfloat16"
    assert "silu" not in blind


def test_what_is_between_two_records_is_named_when_nothing_explains_it():
    ref = reference("gemma2")
    strange = ref.records(lambda name, value: np.sin(3 * value) if name == "layers.2.mlp.up" else value)
    found = diagnose(ref, only(strange, "resid_post", *LOGITS), "float64")
    assert {key.split("layers.")[-1] for key in found.unexplained} == {"2.resid_post"}
    assert "Check the code that computes everything from layers.2.input_layernorm to layers.2.resid_post." in "\n".join(
        describe_diagnosis(found)
    )
