import numpy as np
import pytest

import gemma_np
from gemma_np.compression.structured_pruning import keep_layers
from gemma_np.errors import GemmaError
from gemma_np.inspection.inspect_text import LONGEST, read
from gemma_np.model.log_probs import log_softmax
from tests.support.tolerances import assert_close

TEXT = "To be, or not to be, that is the question."


@pytest.fixture(scope="module")
def model():
    return gemma_np.load(dtype="float64")


@pytest.fixture(scope="module")
def reading(model):
    return read(model, TEXT)


def test_attention_and_stream_are_the_records(model, reading):
    record = model.trace(reading.ids)
    assert reading.attention.shape == (4, 4, len(reading.ids), len(reading.ids))
    for layer in range(4):
        assert np.array_equal(reading.attention[layer], record[f"layers.{layer}.self_attn.probs"])
    assert_close(reading.residual[0], np.sqrt((record["embedding"] ** 2).mean(-1)), "model")
    assert_close(reading.residual[4], np.sqrt((record["layers.3.resid_post"] ** 2).mean(-1)), "model")


def test_the_last_lens_is_what_the_model_says(model, reading):
    probs = np.exp(log_softmax(model.logits(reading.ids)))
    ids = np.argsort(-probs, axis=-1)
    pieces = [[model.tokenizer.piece(id) for id in row[:5]] for row in ids.tolist()]
    assert reading.lens_tokens[-1].tolist() == pieces
    assert [row[:5] for row in reading.next_tokens.tolist()] == pieces
    assert_close(reading.next_probs, np.take_along_axis(probs, ids[:, :10], axis=-1), "model")


def test_an_earlier_lens_is_the_model_without_the_layers_above(model, reading):
    probs = np.exp(log_softmax(keep_layers(model, [0, 1]).logits(reading.ids)))
    assert_close(reading.lens_probs[1], -np.sort(-probs, axis=-1)[:, :5], "model")


def test_without_the_cap_the_model_is_surer(model, reading):
    record = model.trace(reading.ids)
    assert_close(reading.next_logits[:, 0], record["logits"].max(-1), "model")
    assert_close(reading.next_uncapped[:, 0], np.exp(log_softmax(record["logits"])).max(-1), "model")
    assert np.all(reading.next_uncapped[:, 0] > reading.next_probs[:, 0])


def test_entropy_and_surprise_are_bits(model, reading):
    log_probs = log_softmax(model.logits(reading.ids)) / np.log(2)
    assert_close(reading.entropy, -(2**log_probs * log_probs).sum(-1), "model")
    assert_close(reading.surprise, -log_probs[range(len(reading.ids) - 1), reading.ids[1:]], "model")
    assert_close(np.array(2 ** reading.surprise.mean()), np.array(model.perplexity(TEXT)), "model")


def test_one_token_alone(model):
    reading = read(model, "\n")
    assert reading.surprise.shape == (len(reading.ids) - 1,)


def test_what_cannot_be_read(model):
    with pytest.raises(GemmaError, match="text: empty"):
        read(model, "")
    with pytest.raises(GemmaError, match=f"text: 40[01] tokens, expected at most {LONGEST}"):
        read(model, " to" * 400)
    with pytest.raises(GemmaError, match=r"tokenizer\.model: missing"):
        read(gemma_np.Gemma(model.config, model.weights, None), TEXT)
