"""Drafts made from the model itself, and by name."""

import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.compression.drafts import half_draft, int4_draft, read_draft
from gemma_np.text.speculation import Acceptance
from gemma_np.weights.formats import Int4
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("draft", [int4_draft, half_draft])
def test_drafts_of_a_bundled_model_give_its_own_tokens(draft, dtype):
    model, acceptance = gemma_np.load("shakespeare-4m", dtype), Acceptance()
    prompt = model.tokenizer.encode("To be, or not to be")
    found = list(model.stream_ids(prompt, 40, draft=draft, acceptance=acceptance))
    assert found == list(model.stream_ids(prompt, 40))
    assert acceptance.accepted > (0.5 if draft is int4_draft else 0.02) * acceptance.proposed


def test_every_matrix_of_the_int4_draft_is_in_int4():
    model = gemma_np.load("shakespeare-4m", "float64")
    for name, weight in int4_draft(model).weights.items():
        assert isinstance(weight, Int4) if len(weight.shape) == 2 else weight.dtype == np.float32, name


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("layers", "kept"), [(4, 2), (1, 1)])
def test_the_half_draft_has_the_first_half_of_the_layers_and_shares_their_weights(model_type, layers, kept):
    kinds = tiny.config(model_type).layer_types[:layers]
    model = tiny.gemma(model_type, num_hidden_layers=layers, layer_types=kinds)
    draft = half_draft(model)
    assert draft.config.layer_types == kinds[:kept]
    assert all(weight is model.weights[name] for name, weight in draft.weights.items())


def test_a_name_is_one_of_the_drafts_or_a_checkpoint(tmp_path):
    assert read_draft("lookup") == "lookup"
    assert read_draft("half") is half_draft
    assert read_draft("shakespeare-1m").config == gemma_np.load("shakespeare-1m").config
    with pytest.raises(GemmaError, match="no such folder or file"):
        read_draft(str(tmp_path / "none"))
