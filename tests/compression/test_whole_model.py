"""A whole model, quantized."""

import numpy as np
import pytest

import gemma_np
from gemma_np import Gemma, GemmaError
from gemma_np.compression.calibration import calibration_texts
from gemma_np.compression.gptq import gptq, moment_error
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.compression.whole_model import METHODS, quantize_model
from gemma_np.storage import Int4, Int8, dequantize
from tests import tiny
from tests.strategies import MODEL_TYPES, random_ids

SCHEME = Scheme("int4", 4)


def model_of(model_type):
    return tiny.gemma(model_type, intermediate_size=8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_weight_comes_in_its_order_and_shape(model_type, method):
    model = model_of(model_type)
    found = list(quantize_model(model, SCHEME, method, random_ids(model.config, 0, 3, 20), Scheme("int8")))
    assert [(name, weight.shape) for name, weight in found] == list(model.config.weight_shapes())
    for name, weight in found:
        if len(weight.shape) == 1:
            assert method == "awq" or (weight == model.weights[name]).all()
        else:
            assert type(weight) is (Int8 if "embed" in name else Int4)


def test_rounding_is_rounding_each_weight():
    model = model_of("gemma2")
    for method, least_error in (("round", False), ("clip", True)):
        for name, weight in quantize_model(model, SCHEME, method):
            if len(weight.shape) == 2:
                assert (dequantize(weight) == dequantize(quantize(model.weights[name], SCHEME, least_error))).all()


def test_gptq_sees_what_the_quantized_layers_before_make_of_the_texts():
    """The last matrix of all, from the definition: its inputs come from a model that is quantized up to there."""
    model = model_of("gemma2")
    ids = random_ids(model.config, 0, 3, 20)
    weights = dict(quantize_model(model, SCHEME, "gptq", ids))
    name = "model.layers.3.mlp.down_proj.weight"
    last = {key: weight for key, weight in model.weights.items() if key.startswith("model.layers.3")}
    hidden = Gemma(model.config, weights | last, None).trace(ids)["layers.3.mlp.hidden"].reshape(-1, 8)
    moments = hidden.T @ hidden
    found, expected = (
        moment_error(dequantize(w), model.weights[name], moments).sum()
        for w in (weights[name], gptq(model.weights[name], moments, SCHEME))
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_16_bits_change_nothing_that_16_bits_hold():
    model = gemma_np.load()
    weights = dict(quantize_model(model, Scheme("bfloat16"), "round"))
    assert all((dequantize(weights[name]) == weight).all() for name, weight in model.weights.items())


@pytest.fixture(scope="module")
def bundled():
    """The bundled model, and texts of its own to calibrate with."""
    model = gemma_np.load()
    text = "".join(model.generate([model.tokenizer.bos], 240, temperature=1.0, seed=seed) for seed in range(8))
    return model, calibration_texts(model, text, 16, 64)


HELD_OUT = """O, what a rogue and peasant slave am I!
Is it not monstrous that this player here,
But in a fiction, in a dream of passion,
Could force his soul so to his own conceit
That from her working all his visage wann'd,
Tears in his eyes, distraction in's aspect,
A broken voice, and his whole function suiting
With forms to his conceit? And all for nothing!
"""


def test_int8_costs_less_than_half_a_percent(bundled):
    model, _ = bundled
    small = Gemma(model.config, dict(quantize_model(model, Scheme("int8"))), model.tokenizer)
    assert abs(small.perplexity(HELD_OUT) / model.perplexity(HELD_OUT) - 1) < 0.005


def divergence(model, small):
    """KL from the model to the small one, nats a token, on a text that neither was calibrated with."""
    ids = model.tokenizer.encode(HELD_OUT)
    logs = [gemma.logits(ids) for gemma in (model, small)]
    ours, theirs = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in logs)
    return (np.exp(ours) * (ours - theirs)).sum(axis=-1).mean()


def test_gptq_is_clearly_better_than_rounding_in_four_bits(bundled):
    model, ids = bundled
    losses = {}
    for method in ("round", "gptq"):
        weights = dict(quantize_model(model, Scheme("int4", 64), method, ids, Scheme("int8")))
        losses[method] = divergence(model, Gemma(model.config, weights, model.tokenizer))
    assert losses["gptq"] < 0.8 * losses["round"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCHEME, "guess"), "method: 'guess', expected one of round, clip, gptq, awq"),
        ((SCHEME, "gptq"), "method gptq: expected a text to calibrate with"),
        ((Scheme("int4", 8),), r"model.embed_tokens.weight: 12 channels, expected a multiple of the group of 8"),
        ((Scheme("float8"), "awq", np.ones((1, 4), int)), "method awq: for float8, expected int8, w8a8 or int4"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(arguments, message):
    with pytest.raises(GemmaError, match=message):
        quantize_model(model_of("gemma2"), *arguments)


def test_what_is_quantized_already():
    model = model_of("gemma2")
    small = Gemma(model.config, dict(quantize_model(model, Scheme("int8"))), model.tokenizer)
    with pytest.raises(GemmaError, match=r"model.embed_tokens.weight: is quantized already, expected floats"):
        quantize_model(small, Scheme("int8"))
    assert dict(quantize_model(small.widened(), Scheme("int8")))


def test_calibration_texts_begin_with_bos_and_go_on_where_the_last_ended():
    model = tiny.gemma()
    ids = calibration_texts(model, tiny.TEXT, 3, 10)
    assert ids.shape == (3, 10)
    assert (ids[:, 0] == model.tokenizer.bos).all()
    assert ids[:, 1:].ravel().tolist() == model.tokenizer.encode(tiny.TEXT, bos=False)[:27]


def test_a_calibration_text_that_is_too_short():
    with pytest.raises(GemmaError, match=r"calibration text: \d+ tokens, expected 6300 for 100 texts of 64"):
        calibration_texts(tiny.gemma(), tiny.TEXT, 100, 64)
