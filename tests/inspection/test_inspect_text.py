"""What the page shows of a text, against the records and the logits of the model."""

import numpy as np
import pytest

import gemma_np
from gemma_np.compression.structured_pruning import keep_layers
from gemma_np.errors import GemmaError
from gemma_np.inspection.inspect_text import LONGEST, inspect_text
from gemma_np.model.log_probs import log_softmax
from tests.support.tolerances import assert_close

TEXT = "To be, or not to be, that is the question."


@pytest.fixture(scope="module")
def model():
    return gemma_np.load(dtype="float64")


@pytest.fixture(scope="module")
def inspection(model):
    return inspect_text(model, TEXT)


def test_attention_and_residual_stream_are_the_records(model, inspection):
    record = model.trace(inspection.ids)
    assert inspection.attention.shape == (4, 4, len(inspection.ids), len(inspection.ids))
    for layer in range(4):
        assert np.array_equal(inspection.attention[layer], record[f"layers.{layer}.self_attn.probs"])
    assert_close(inspection.residual[0], np.sqrt((record["embedding"] ** 2).mean(-1)), "model")
    assert_close(inspection.residual[4], np.sqrt((record["layers.3.resid_post"] ** 2).mean(-1)), "model")


def test_the_last_lens_is_the_models_prediction(model, inspection):
    probs = np.exp(log_softmax(model.logits(inspection.ids)))
    ids = np.argsort(-probs, axis=-1)
    pieces = [[model.tokenizer.piece(id) for id in row[:5]] for row in ids.tolist()]
    assert inspection.lens_tokens[-1].tolist() == pieces
    assert [row[:5] for row in inspection.next_tokens.tolist()] == pieces
    assert_close(inspection.next_probs, np.take_along_axis(probs, ids[:, :10], axis=-1), "model")


def test_an_earlier_lens_is_the_model_without_the_later_layers(model, inspection):
    probs = np.exp(log_softmax(keep_layers(model, [0, 1]).logits(inspection.ids)))
    assert_close(inspection.lens_probs[1], -np.sort(-probs, axis=-1)[:, :5], "model")


def test_without_the_final_cap_the_model_is_more_confident(model, inspection):
    record = model.trace(inspection.ids)
    assert_close(inspection.next_logits[:, 0], record["logits"].max(-1), "model")
    assert_close(inspection.next_uncapped[:, 0], np.exp(log_softmax(record["logits"])).max(-1), "model")
    assert np.all(inspection.next_uncapped[:, 0] > inspection.next_probs[:, 0])


def test_entropy_and_surprise_in_bits(model, inspection):
    log_probs = log_softmax(model.logits(inspection.ids)) / np.log(2)
    assert_close(inspection.entropy, -(2**log_probs * log_probs).sum(-1), "model")
    assert_close(inspection.surprise, -log_probs[range(len(inspection.ids) - 1), inspection.ids[1:]], "model")
    assert_close(np.array(2 ** inspection.surprise.mean()), np.array(model.perplexity(TEXT)), "model")


def test_a_single_token(model):
    inspection = inspect_text(model, "\n")
    assert inspection.surprise.shape == (len(inspection.ids) - 1,)


def test_texts_that_cannot_be_inspected(model):
    with pytest.raises(GemmaError, match="text: empty"):
        inspect_text(model, "")
    with pytest.raises(GemmaError, match=f"text: 40[01] tokens, expected at most {LONGEST}"):
        inspect_text(model, " to" * 400)
    with pytest.raises(GemmaError, match=r"tokenizer\.model: missing"):
        inspect_text(gemma_np.Gemma(model.config, model.weights, None), TEXT)
