"""A whole model, quantized."""

import re
import warnings

import numpy as np
import pytest

import gemma_np
from gemma_np import Gemma, GemmaError
from gemma_np.compression.awq import awq_scale
from gemma_np.compression.calibration import INPUTS, InputGram, calibration_ids
from gemma_np.compression.gptq import gptq
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.compression.quantize_model import CALIBRATED, QUANTIZATION_METHODS, quantize_model
from gemma_np.errors import GemmaWarning
from gemma_np.model.attention import merge_heads
from gemma_np.scope import Scope
from gemma_np.weights.formats import Int4, Int8, dequantize
from gemma_np.weights.linear import linear
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, random_ids

SCHEME = Scheme("int4", 4)
NAME = "model.layers.3.self_attn.k_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def model_of(model_type):
    return tiny.gemma(model_type, intermediate_size=8)


@pytest.mark.parametrize("method", QUANTIZATION_METHODS)
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
    for method, mse in (("round", False), ("clip", True)):
        for name, weight in quantize_model(model, SCHEME, method, embedding=SCHEME):
            if len(weight.shape) == 2:
                assert (dequantize(weight) == dequantize(quantize(model.weights[name], SCHEME, mse=mse))).all()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_each_matrix_is_multiplied_with_the_record_that_the_table_names(model_type):
    model = model_of(model_type)
    record = Scope(model.trace(random_ids(model.config, 0, 5))) / "layers.3"
    for name, read in INPUTS.items():
        made = linear(record[read], model.weights[f"model.layers.3.{name}"])
        output = record[name.removesuffix("_proj.weight")]
        assert (made == (merge_heads(output) if output.ndim == 3 else output)).all(), name
    assert len(INPUTS) == 7


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_layer_is_calibrated_with_what_the_quantized_ones_before_it_make_of_the_texts(model_type, method):
    """All of the last layer, from the definition: its inputs come from a model that is quantized up to there."""
    model = model_of(model_type)
    ids = random_ids(model.config, 0, 3, 20)
    weights = dict(quantize_model(model, SCHEME, method, ids))
    last = {name: weight for name, weight in model.weights.items() if name.startswith("model.layers.3")}
    gram = InputGram()
    for text in ids:
        for name, value in (Scope(Gemma(model.config, weights | last, None).trace(text)) / "layers.3").items():
            gram(name, value)
    layer = dict(Scope(model.weights) / "model.layers.3")
    if method == "awq":
        layer = awq_scale(layer, gram, SCHEME, model.config)
    for name, weight in layer.items():
        if name in INPUTS and method == "gptq":
            weight = gptq(weight, gram[INPUTS[name]], SCHEME)
        elif name in INPUTS:
            weight = quantize(weight, SCHEME, mse=True)
        assert (dequantize(weights[f"model.layers.3.{name}"]) == dequantize(weight)).all(), name


def test_16_bits_change_nothing_that_16_bits_hold():
    model = gemma_np.load()
    weights = dict(quantize_model(model, Scheme("bfloat16"), "round"))
    assert all((dequantize(weights[name]) == weight).all() for name, weight in model.weights.items())


@pytest.fixture(scope="module")
def bundled():
    """The bundled model, and texts of its own to calibrate with."""
    model = gemma_np.load()
    text = "".join(model.generate([model.tokenizer.bos], 240, temperature=1.0, seed=seed) for seed in range(8))
    return model, calibration_ids(model, text, 16, 64)


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
        ((SCHEME, "gptq"), "method gptq: needs calibration text"),
        ((Scheme("int4", 8),), r"layers.0.self_attn.q_proj.weight: 12 channels, expected a multiple of group_size=8"),
        ((SCHEME, "clip", None, Scheme("int8", 8)), r"model.embed_tokens.weight: 12 channels, expected a multiple of"),
        ((Scheme("float8"), "awq", np.ones((1, 4), int)), "method awq: for float8, expected int8, w8a8 or int4"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(arguments, message):
    with pytest.raises(GemmaError, match=message):
        quantize_model(model_of("gemma2"), *arguments)


@pytest.mark.parametrize("method", QUANTIZATION_METHODS)
@pytest.mark.parametrize("kind", ["int8", "w8a8", "int4", "float8"])
def test_what_is_quantized_in_part_is_dequantized_first(kind, method):
    model, scheme = model_of("gemma2"), Scheme("int8")
    partly = dict(model.weights) | {n: quantize(model.weights[n], Scheme(kind)) for n in (NAME, EMBEDDING)}
    small, ids = Gemma(model.config, partly, model.tokenizer), random_ids(model.config, 0, 2, 9)
    matrices = sum(weight.ndim == 2 for weight in model.weights.values())
    message = rf"2 of {matrices} matrices are quantized already \({kind}\) and are rounded a second time"
    with pytest.warns(GemmaWarning, match=message):
        found = dict(quantize_model(small, scheme, method, ids))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning about a model in floats
        expected = dict(quantize_model(small.dequantized(), scheme, method, ids))
    for name, weight in expected.items():
        np.testing.assert_array_equal(dequantize(found[name]), dequantize(weight))


@pytest.mark.parametrize("method", QUANTIZATION_METHODS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("name", [NAME, EMBEDDING])
def test_a_weight_that_is_not_finite_is_named(name, wrong, method):
    model = tiny.with_number(model_of("gemma2"), name, wrong)
    with pytest.raises(GemmaError, match=rf"^{re.escape(name)}: NaN or infinity among its float32 numbers"):
        dict(quantize_model(model, Scheme("int8"), method, random_ids(model.config, 0, 2, 9)))


def test_calibration_texts_begin_with_bos_and_go_on_where_the_last_ended():
    model = tiny.gemma()
    ids = calibration_ids(model, tiny.TEXT, 3, 10)
    assert ids.shape == (3, 10)
    assert (ids[:, 0] == model.tokenizer.bos).all()
    assert ids[:, 1:].ravel().tolist() == model.tokenizer.encode(tiny.TEXT, bos=False)[:27]


def test_calibration_texts_are_no_longer_than_the_model_reads():
    assert calibration_ids(tiny.gemma(max_position_embeddings=8), tiny.TEXT, 2, 100).shape == (2, 8)


def test_calibration_texts_need_a_tokenizer():
    model = tiny.gemma()
    with pytest.raises(GemmaError, match=r"tokenizer\.model: missing"):
        calibration_ids(Gemma(model.config, model.weights, None), tiny.TEXT, 3, 10)


def test_a_calibration_text_that_is_too_short():
    with pytest.raises(GemmaError, match=r"calibration text: \d+ tokens, expected 6300 for 100 samples of 64"):
        calibration_ids(tiny.gemma(), tiny.TEXT, 100, 64)
