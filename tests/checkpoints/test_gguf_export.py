"""A .gguf file out of any model: the library reads it, and so do we."""

import sys
from dataclasses import replace

import gguf
import ml_dtypes
import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.checkpoints.gguf import weight_name
from gemma_np.checkpoints.gguf_mixture import MIXTURES, weight_formats
from gemma_np.compression.block_quantization import quantize_blocks
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.compression.structured_pruning import keep_layers
from gemma_np.text.chat import chat_ids
from gemma_np.text.chat_template import CHAT_TEMPLATE
from gemma_np.weights.formats import BFloat16, Blocks, Float16
from tests.support import tiny
from tests.support.llama_server import llama_server, post
from tests.support.strategies import MODEL_TYPES

SIZES = {"hidden_size": 32, "head_dim": 32, "intermediate_size": 256, "query_pre_attn_scalar": 32}


def model_of(model_type):
    """Matrices a multiple of 32 or 256 wide; the pattern that the format implies."""
    kinds = tiny.config(model_type).layer_types
    if model_type == "gemma3_text":
        kinds = ("sliding_attention",) * 4  # the global layer would be the sixth
    return tiny.gemma(model_type, layer_types=kinds, **SIZES)


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_library_reads_the_very_numbers(model_type, kind, tmp_path):
    model = model_of(model_type)
    export_gguf(model, kind, tmp_path / "model.gguf")
    formats = weight_formats(model.config, kind)
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    assert len(tensors) == len(model.weights)
    for tensor, weight in zip(tensors, model.weights.values(), strict=True):
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = weight_name(tensor.name, model.config)
        assert tensor.tensor_type.name == formats[name]
        if weight.ndim == 1:
            assert (found == weight + 1).all(), tensor.name
        elif formats[name] in ("F32", "F16", "BF16"):
            dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[formats[name]]
            assert (found == weight.astype(dtype)).all(), tensor.name
        else:
            assert (tensor.data == quantize_blocks(weight, formats[name])).all(), tensor.name


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("gemma", gguf.MODEL_ARCH.GEMMA),
        ("gemma2", gguf.MODEL_ARCH.GEMMA2),
        ("gemma3_text", gguf.MODEL_ARCH.GEMMA3),
    ],
)
def test_the_library_knows_the_names_of_the_tensors(model_type, architecture, tmp_path):
    model = model_of(model_type)
    export_gguf(model, "q8_0", tmp_path / "model.gguf")
    known = {
        gguf.TENSOR_NAMES[tensor].format(bid=layer) + ".weight"
        for tensor in gguf.MODEL_TENSORS[architecture]
        for layer in range(model.config.num_hidden_layers)
    }
    assert {tensor.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors} <= known


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_model_comes_back_and_keeps_its_integers_from_then_on(model_type, kind, tmp_path):
    model = model_of(model_type)
    (tmp_path / "again").mkdir()
    first, second = tmp_path / "model.gguf", tmp_path / "again/model.gguf"
    export_gguf(model, kind, first)
    loaded = gemma_np.load(first, "stored")
    assert loaded.config == model.config
    assert loaded.tokenizer.encode(tiny.TEXT) == model.tokenizer.encode(tiny.TEXT)
    expected = {"f32": {np.ndarray}, "bf16": {np.ndarray, BFloat16}, "f16": {np.ndarray, Float16}}
    assert {np.ndarray if isinstance(w, np.ndarray) else type(w) for w in loaded.weights.values()} == expected.get(
        kind, {np.ndarray, Blocks}
    )
    export_gguf(loaded, kind, second)
    assert first.read_bytes() == second.read_bytes()


def test_the_special_ids_and_the_flags_of_the_vocabulary(tmp_path):
    """They are not our readers' defaults only: other programs read them from the file."""
    export_gguf(model_of("gemma2"), "q8_0", tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    expected = {"model": "llama", "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0}
    expected |= {"eot_token_id": 5, "add_bos_token": True, "add_space_prefix": False}
    assert {name: fields[f"tokenizer.ggml.{name}"].contents() for name in expected} == expected


FILE_TYPES = {
    **{"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11},
    **{"q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18},
    **{"iq4_nl": 25, "bf16": 32},
}
"""llama.cpp's numbers of the mixtures, written out once more."""


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_name_the_mixture_and_the_chat_template_are_in_the_file(kind, tmp_path):
    export_gguf(model_of("gemma2"), kind, tmp_path / "the-sea.gguf")
    fields = gguf.GGUFReader(tmp_path / "the-sea.gguf").fields
    assert fields["general.name"].contents() == "the-sea"
    assert fields["general.file_type"].contents() == FILE_TYPES[kind]
    assert fields["tokenizer.chat_template"].contents() == CHAT_TEMPLATE


def test_a_vocabulary_without_turns_has_no_chat_template(tmp_path):
    model = replace(model_of("gemma2"), tokenizer=tiny.tokenizer_without_turns())
    export_gguf(model, "q8_0", tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    absent = {"tokenizer.chat_template", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.padding_token_id"}
    assert not absent & set(fields)
    assert gemma_np.load(tmp_path / "model.gguf").tokenizer.ends == {1}


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_llama_cpp_replies_in_gemmas_turns(kind, tmp_path):
    export_gguf(gemma_np.load("shakespeare-chat"), kind, tmp_path / "model.gguf")
    model = gemma_np.load(tmp_path / "model.gguf")
    texts = ["  What news from the battle?\n", "The king is dead.", "Who is there?"]
    messages, asked = (
        [{"role": role, "content": text} for role, text in zip(("user", other, "user"), texts, strict=True)]
        for other in ("model", "assistant")
    )
    with llama_server(tmp_path / "model.gguf") as url:
        prompt = post(f"{url}/apply-template", {"messages": asked})["prompt"]
        options = {"add_special": True, "parse_special": True}
        ids = post(f"{url}/tokenize", {"content": prompt, **options})["tokens"]
        reply = post(f"{url}/v1/chat/completions", {"messages": asked, "temperature": 0, "max_tokens": 40})
    assert ids == chat_ids(messages, model.tokenizer)
    assert reply["usage"]["prompt_tokens"] == len(ids)
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["message"]["content"] == model.chat(messages, 40)


def test_a_pattern_that_the_format_cannot_say(tmp_path):
    with pytest.raises(GemmaError, match=r"layer_types: .*, which GGUF cannot store"):
        export_gguf(keep_layers(model_of("gemma2"), [0, 2]), "q8_0", tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "wrong", "format", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", np.nan, "q8_0", "NaN or infinity among its float32 numbers"),
        ("model.layers.1.mlp.up_proj.weight", 1e38, "q8_0", "NaN, infinity or more than 65504"),
        ("model.layers.1.mlp.up_proj.weight", 1e38, "f16", "NaN or infinity among its float16 numbers"),
        ("model.norm.weight", np.inf, "f32", "NaN or infinity among its float32 numbers"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(name, wrong, format, message, tmp_path):
    model = tiny.with_number(model_of("gemma2"), name, wrong)
    with pytest.raises(GemmaError, match=f"^{name}: {message}"):
        export_gguf(model, format, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_no_block_fills_are_float16(tmp_path):
    model = tiny.gemma()
    export_gguf(model, "q4_k_m", tmp_path / "model.gguf")
    for name, weight in gemma_np.load(tmp_path / "model.gguf", "stored").weights.items():
        if len(weight.shape) == 2:
            assert isinstance(weight, Float16)
            assert (weight.numbers == model.weights[name].astype(np.float16)).all()


def test_an_unknown_mixture(tmp_path):
    with pytest.raises(GemmaError, match='mixture: "q4", expected one of q2_k, '):
        export_gguf(model_of("gemma2"), "q4", tmp_path / "model.gguf")


def test_rows_beyond_the_vocabulary_are_unused_pieces(tmp_path):
    model = tiny.gemma(vocab_size=464, **SIZES)
    export_gguf(model, "q8_0", tmp_path / "model.gguf")
    assert gemma_np.load(tmp_path / "model.gguf").config.vocab_size == 464


def test_the_library_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(GemmaError, match=r"gguf: not installed; to write \.gguf files, pip install"):
        export_gguf(model_of("gemma2"), "q8_0", tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []
