"""A .gguf file out of any model: the library reads it, and so do we."""

import sys

import gguf
import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.compression.quantization import GGUF_SCHEMES, quantize
from gemma_np.compression.quantize_model import export_gguf
from gemma_np.compression.structured_pruning import keep_layers
from gemma_np.weights.formats import Blocks, dequantize
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES

SIZES = {"hidden_size": 32, "head_dim": 32, "intermediate_size": 64, "query_pre_attn_scalar": 32}


def model_of(model_type):
    """Matrices a multiple of 32 wide; the pattern that the format implies."""
    kinds = tiny.config(model_type).layer_types
    if model_type == "gemma3_text":
        kinds = ("sliding_attention",) * 4  # the global layer would be the sixth
    return tiny.gemma(model_type, layer_types=kinds, **SIZES)


@pytest.mark.parametrize("kind", GGUF_SCHEMES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_library_reads_the_very_numbers(model_type, kind, tmp_path):
    model = model_of(model_type)
    export_gguf(model, kind, tmp_path / "model.gguf")
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    assert len(tensors) == len(model.weights)
    for tensor, weight in zip(tensors, model.weights.values(), strict=True):
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        if weight.ndim == 1:
            assert (found == weight + 1).all(), tensor.name
        else:
            assert tensor.tensor_type.name == kind
            assert (found == dequantize(quantize(weight, GGUF_SCHEMES[kind], mse=True))).all(), tensor.name


@pytest.mark.parametrize("kind", GGUF_SCHEMES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_model_comes_back_and_keeps_its_integers_from_then_on(model_type, kind, tmp_path):
    model = model_of(model_type)
    export_gguf(model, kind, tmp_path / "one.gguf")
    loaded = gemma_np.load(tmp_path / "one.gguf")
    assert loaded.config == model.config
    assert loaded.tokenizer.encode(tiny.TEXT) == model.tokenizer.encode(tiny.TEXT)
    assert {type(w) for w in loaded.weights.values()} == {np.ndarray, Blocks}
    export_gguf(loaded, kind, tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_the_special_ids_and_the_flags_of_the_vocabulary(tmp_path):
    """They are not our readers' defaults only: other programs read them from the file."""
    export_gguf(model_of("gemma2"), "Q8_0", tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    expected = {"model": "llama", "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0}
    expected |= {"add_bos_token": True, "add_space_prefix": False}
    assert {name: fields[f"tokenizer.ggml.{name}"].contents() for name in expected} == expected


def test_a_pattern_that_the_format_cannot_say(tmp_path):
    with pytest.raises(GemmaError, match=r"layer_types: .*, which GGUF cannot store"):
        export_gguf(keep_layers(model_of("gemma2"), [0, 2]), "Q8_0", tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "wrong", "what"),
    [
        ("model.layers.1.mlp.up_proj.weight", np.nan, "float32"),
        ("model.layers.1.mlp.up_proj.weight", 1e38, "float16"),  # the scale overflows
        ("model.norm.weight", np.inf, "float32"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(name, wrong, what, tmp_path):
    model = tiny.with_number(model_of("gemma2"), name, wrong)
    message = f"{name}: NaN or infinity among its {what} numbers"
    with np.errstate(over="ignore"), pytest.raises(GemmaError, match=message):
        export_gguf(model, "Q8_0", tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_width_that_is_no_multiple_of_32(tmp_path):
    with pytest.raises(GemmaError, match=r"embed_tokens.weight: 12 channels, expected a multiple of group_size=32"):
        export_gguf(tiny.gemma(), "Q8_0", tmp_path / "model.gguf")


def test_rows_beyond_the_vocabulary_are_unused_pieces(tmp_path):
    model = tiny.gemma(vocab_size=464, **SIZES)
    export_gguf(model, "Q8_0", tmp_path / "model.gguf")
    assert gemma_np.load(tmp_path / "model.gguf").config.vocab_size == 464


def test_the_library_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(GemmaError, match=r"export-gguf: needs the gguf library, which pip install"):
        export_gguf(model_of("gemma2"), "Q8_0", tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []
