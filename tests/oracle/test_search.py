"""What is found from a few records of programs with other weights, other numbers, and mistakes in later passes."""

from dataclasses import replace

import numpy as np
import pytest

from gemma_np.model.attention_mask import masked_softmax
from gemma_np.oracle.diagnosis import describe_diagnosis
from gemma_np.oracle.search import BUDGET
from gemma_np.oracle.trace import Reference
from tests.oracle.test_diagnose import diagnose, reference
from tests.oracle.test_limits import LOGITS, only
from tests.support.strategies import random_ids

STREAM = ("resid_post", *LOGITS)


def exchanged(*parts):
    """Return weights in which two parts of each layer have each other's."""

    def change(weights, config):
        for layer in range(config.num_hidden_layers):
            one, other = (f"model.layers.{layer}.{part}.weight" for part in parts)
            weights[one], weights[other] = weights[other], weights[one]

    return change


def reordered(order, *only_parts):
    """Return weights in which each layer has those of layer order(its number, their count)."""

    def change(weights, config):
        old = dict(weights)
        for path in old:
            number, _, part = path.removeprefix("model.layers.").partition(".")
            if part and number.isdecimal() and part.startswith(only_parts or ("",)):
                other = order(int(number), config.num_hidden_layers)
                weights[path] = old[f"model.layers.{other}.{part}"]

    return change


def of_other_weights(model_type, change, kept):
    """Return the reference, and the records of a program with other weights."""
    model = reference(model_type).model
    ref = Reference(model, [random_ids(model.config, 3, model.config.max_position_embeddings)])
    weights = dict(model.weights)
    change(weights, ref.config)
    other = ref.with_model(replace(model, weights=weights))
    return ref, only(other.records(), *kept)


@pytest.mark.parametrize("kept", [STREAM, LOGITS])
@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (exchanged("self_attn.k_proj", "self_attn.v_proj"), {"self_attn.k", "self_attn.v"}),
        (
            exchanged("post_attention_layernorm", "post_feedforward_layernorm"),
            {"post_attention_layernorm", "post_feedforward_layernorm"},
        ),
        (reordered(lambda layer, count: (layer + 1) % count, "input_layernorm"), {"input_layernorm"}),
        (reordered(lambda layer, count: count - 1 - layer, "self_attn.o_proj"), {"self_attn.o"}),
        (reordered(lambda layer, count: 0 if layer == 1 else layer, "mlp.up_proj"), {"mlp.up"}),
    ],
)
def test_what_belongs_together_is_found_together(change, kinds, kept):
    ref, theirs = of_other_weights("gemma2", change, kept)
    found = diagnose(ref, theirs, "float64")
    assert found.wrong
    assert not found.unexplained
    assert {key.split(".", 2)[2] for cause in found.causes for key in cause.keys} == kinds
    assert found.passes <= BUDGET


@pytest.mark.parametrize("kept", [STREAM, LOGITS])
def test_a_number_that_all_norms_share_is_found(kept):
    ref = reference("gemma2")
    other = Reference(replace(ref.model, config=replace(ref.config, rms_norm_eps=0.0123)), ref.passes)
    (cause,) = diagnose(ref, only(other.records(), *kept), "float32").causes
    assert cause.says == "the norm's eps is 0.0123, expected rms_norm_eps=0.001"
    assert len(cause.keys) == 4 * ref.config.num_hidden_layers + 1


@pytest.mark.parametrize("kept", [STREAM, LOGITS])
def test_a_mistake_of_later_passes_is_found_there(kept):
    ref = reference("gemma2")
    masks = {}

    def tape(name, value):
        if name.endswith("scores_capped"):
            masks["scores"] = value
        if not name.endswith("probs") or ref.config.window(int(name.split(".")[1])) is None:
            return value
        everything = masked_softmax(masks["scores"], np.tri(len(ref.ids), dtype=bool))
        return np.where(ref.pass_starts[:, None] == 0, value, everything)

    found = diagnose(ref, only(ref.records(tape), *kept), "float64")
    assert found.wrong
    assert not found.unexplained
    assert {cause.says for cause in found.causes} == {"in passes after the first, a local layer has no window"}


def test_the_report_says_what_was_not_tried():
    ref, theirs = of_other_weights("gemma2", exchanged("self_attn.k_proj", "self_attn.v_proj"), LOGITS)
    found = diagnose(ref, theirs, "float64")
    last = describe_diagnosis(found)[-1]
    expected = f"Searched in {found.passes} forward passes, up to the first explanation; {found.untried} "
    assert last == f"{expected}alternatives were not tried."


def test_the_first_tokens_decide_only_what_they_can():
    """A window that is too wide shows in no token that it covers: nothing that shows there may explain it."""
    ref = reference("gemma2")
    one_pass = Reference(ref.model, [ref.ids])
    other = Reference(replace(ref.model, config=replace(ref.config, sliding_window=5)), one_pass.passes)
    found = diagnose(one_pass, only(other.records(), *LOGITS), "float64")
    assert {cause.says for cause in found.causes} == {"a query sees two keys more than the window"}
