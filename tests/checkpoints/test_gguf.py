"""GGUF files, written here with the `gguf` library: weights, config, vocabulary, and damage."""

import re
import struct
from contextlib import contextmanager

import gguf
import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.checkpoints import gguf_blocks
from gemma_np.checkpoints.gguf import config_from_metadata, load_gguf, sentencepiece_model
from gemma_np.checkpoints.gguf_blocks import to_bytes
from gemma_np.checkpoints.gguf_file import read_gguf
from gemma_np.config import RELEASED
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import dequantize, stored_bytes
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES

TYPES = gguf.GGMLQuantizationType
ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}

# llama.cpp's names of the tensors, written out once more
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name, model_type):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    if model_type == "gemma" and part == "post_attention_layernorm":
        return f"blk.{layer}.ffn_norm.weight"
    return f"blk.{layer}.{NAMES[part]}.weight"


WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "query_pre_attn_scalar": 64}


def model_of(model_type, **sizes):
    """Matrices a multiple of 32 wide, as quantization wants them; the pattern that the format implies."""
    kinds = tiny.config(model_type).layer_types
    if model_type == "gemma3_text":
        kinds = ("sliding_attention",) * 4  # the global layer would be the sixth
    small = {"hidden_size": 32, "head_dim": 32, "intermediate_size": 64, "query_pre_attn_scalar": 32}
    return tiny.gemma(model_type, layer_types=kinds, **(small | sizes))


def random_bytes(weight, kind):
    """Blocks of random integers and finite float16s, for types that the library cannot quantize to."""
    generator, block = np.random.default_rng(0), BLOCK_FORMATS[kind.name]
    shape = (*weight.shape[:-1], weight.shape[-1] // block.channels)
    integers = generator.integers(0, 256, (*shape, block.integers)).astype(np.uint8)
    factors = generator.normal(0, 0.01, (*shape, block.factors)).astype(np.float16).view(np.uint8)
    blocks = [integers, factors] if block.factors_last else [factors, integers]
    return np.concatenate(blocks, axis=-1).reshape(len(weight), -1)


def write(path, model, kind=TYPES.F32, without=(), quantize=gguf.quantize, **extra):
    config, arch = model.config, ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.rope_scaling_factor != 1:
        writer.add_rope_scaling_factor(config.rope_scaling_factor)
    if config.rope_local_base_freq:
        writer.add_float32(f"{arch}.rope.freq_base_swa", config.rope_local_base_freq)
    library = sentencepiece.SentencePieceProcessor(model_proto=tiny.vocabulary())
    ids = range(len(library))
    writer.add_token_list([token_text(library, id) for id in ids])
    writer.add_token_scores([library.get_score(id) for id in ids])
    writer.add_token_types([token_type(library, id) for id in ids])
    for name, weight in model.weights.items():
        if name in without:
            continue
        stored = weight + 1 if weight.ndim == 1 else weight
        kept = TYPES.F32 if weight.ndim == 1 else kind
        encode = gguf.quantize if kept == TYPES.F32 else quantize
        writer.add_tensor(gguf_name(name, config.model_type), encode(stored, kept), raw_dtype=kept)
    for name, tensor in extra.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def token_text(library, id):
    """Where a piece is user-defined, the common converter writes its spaces as spaces."""
    piece = library.id_to_piece(id)
    return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") if token_type(library, id) == 4 else piece


def token_type(library, id):
    user_defined = library.id_to_piece(id) in tiny.USER_DEFINED
    flags = [library.is_unknown(id), library.is_control(id), user_defined, library.is_unused(id), library.is_byte(id)]
    return (2, 3, 4, 5, 6)[flags.index(True)] if any(flags) else 1


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_config_weights_and_vocabulary(model_type, tmp_path):
    model = model_of(model_type)
    config, weights, vocabulary = load_gguf(write(tmp_path / "model.gguf", model), "auto")
    assert config == model.config
    for name, weight in weights.items():
        expected = (model.weights[name] + 1) - 1 if weight.ndim == 1 else model.weights[name]
        assert (weight == expected).all(), name
    theirs = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    assert theirs.encode(tiny.TEXT) == model.tokenizer.encode(tiny.TEXT, bos=False)


@pytest.mark.parametrize(
    "kind",
    [TYPES.F16, TYPES.BF16, TYPES.Q8_0, TYPES.Q4_0, TYPES.Q4_1, TYPES.Q5_0, TYPES.Q5_1],
    ids=lambda kind: kind.name,
)
def test_every_type_is_widened_as_the_library_does(kind, tmp_path):
    model = model_of("gemma2")
    _, weights, _ = load_gguf(write(tmp_path / "model.gguf", model, kind), "auto")
    for name, weight in model.weights.items():
        if weight.ndim > 1:
            assert (dequantize(weights[name]) == gguf.dequantize(gguf.quantize(weight, kind), kind)).all(), name


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_blocks_stay_what_they_are(name, tmp_path, monkeypatch):
    """In memory, and to the very bytes of the file, which is read some rows at a time."""
    monkeypatch.setattr(gguf_blocks, "_ROWS", 7)
    model, block = model_of("gemma2", **WIDE), BLOCK_FORMATS[name]
    path = write(tmp_path / "model.gguf", model, TYPES[name], quantize=random_bytes)
    _, weights, _ = load_gguf(path, "auto")
    _, floats, _ = load_gguf(path, "float32")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for own, weight in model.weights.items():
        if weight.ndim > 1:
            of_file = stored[gguf_name(own, "gemma2")]
            assert weights[own].format == name
            assert stored_bytes(weights[own]) == of_file.nbytes == weight.size // block.channels * block.bytes
            expected = gguf.dequantize(of_file, TYPES[name])
            assert (dequantize(weights[own]) == expected).all(), own
            assert (floats[own] == expected).all(), own
            assert (to_bytes(weights[own]) == of_file).all(), own


@pytest.mark.parametrize("kind", [TYPES.Q8_0, TYPES.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_scale_that_is_not_finite(bad, kind, tmp_path):
    path = write(tmp_path / "model.gguf", model_of("gemma2"), kind)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(np.float16(bad).tobytes())
    with pytest.raises(GemmaError, match=r"model.layers.1.mlp.up_proj.weight.*: .*NaN or infinity"):
        load_gguf(path, "auto")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_the_one_asked_for(dtype, tmp_path):
    _, weights, _ = load_gguf(write(tmp_path / "model.gguf", model_of("gemma2")), dtype)
    assert {weight.dtype for weight in weights.values()} == {np.dtype(dtype)}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("gguf") / "model.gguf", model_of("gemma2"))
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(read_gguf(path).metadata))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_rebuilt_vocabulary_gives_the_same_ids(rebuilt, text):
    original = sentencepiece.SentencePieceProcessor(model_proto=tiny.vocabulary())
    assert rebuilt.encode(text) == original.encode(text)


@pytest.mark.parametrize("name", RELEASED)
def test_what_the_format_leaves_out_is_filled_in(name):
    """Query scale, layer pattern and local RoPE base of each released model, from what its file says."""
    config = RELEASED[name]
    arch = ARCHITECTURES[config.model_type]
    said = {
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
        "attention.sliding_window": config.sliding_window,
        "rope.scaling.factor": config.rope_scaling_factor,
    }
    if arch == "gemma3":
        said["rope.freq_base"] = 1e6
    metadata = {"general.architecture": arch, "tokenizer.ggml.tokens": range(config.vocab_size)}
    metadata |= {f"{arch}.{key}": value for key, value in said.items() if value is not None}
    assert config_from_metadata(metadata) == config


def test_a_missing_and_an_extra_tensor_are_named(tmp_path):
    path = write(
        *(tmp_path / "model.gguf", model_of("gemma2")),
        without=["model.layers.1.mlp.up_proj.weight"],
        **{"output.weight": np.zeros((2, 2), np.float32)},
    )
    with pytest.raises(GemmaError) as error:
        load_gguf(path, "auto")
    assert "model.layers.1.mlp.up_proj.weight: missing" in str(error.value)
    assert "output.weight: extra" in str(error.value)


def move(path, tensor, offset):
    """Say that a tensor begins at this offset from the beginning of the numbers."""
    position = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts[:-1])  # the last is its offset
    data = bytearray(path.read_bytes())
    data[position : position + 8] = offset.to_bytes(8, "little")
    path.write_bytes(data)


def test_tensors_that_overlap_are_named(tmp_path):
    path = write(tmp_path / "model.gguf", model_of("gemma2"))
    first, second, *_ = sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    move(path, second, second.data_offset - first.data_offset)
    load_gguf(path, "auto")
    move(path, second, second.data_offset - first.data_offset - 32)
    with pytest.raises(GemmaError, match=rf"model\.gguf: {first.name} and {second.name}: overlap in the file"):
        load_gguf(path, "auto")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("offset", ["one too far", 2**40, 2**63, 2**64 - 4096, 2**64 - 128])
def test_a_tensor_that_leaves_the_file_is_named(offset, tmp_path):
    """Offsets are unsigned numbers of 64 bits: 2**64 - 128 is no place before the numbers."""
    path = write(tmp_path / "model.gguf", model_of("gemma2"))
    reader = gguf.GGUFReader(path)
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == "output_norm.weight"]
    size, start = path.stat().st_size, min(tensor.data_offset for tensor in reader.tensors)
    offset = size - start - tensor.n_bytes + 1 if offset == "one too far" else offset
    move(path, tensor, offset)
    end = start + offset + tensor.n_bytes
    with pytest.raises(GemmaError, match=rf"damaged \(output_norm\.weight: ends at byte {end} of {size}\), expected"):
        load_gguf(path, "auto")


def test_a_norm_in_blocks_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    blocks = gguf.quantize(np.ones(32, np.float32), TYPES.Q4_0)
    with monkeypatch_tensor("output_norm.weight", blocks, TYPES.Q4_0):
        write(path, model_of("gemma2"))
    with pytest.raises(GemmaError, match=r'output_norm\.weight": shape \(32,\) in Q4_0, expected a matrix'):
        load_gguf(path, "auto")


def test_integers_are_no_weights(tmp_path):
    with monkeypatch_tensor("output_norm.weight", np.ones(32, np.int8), None):
        path = write(tmp_path / "model.gguf", model_of("gemma2"))
    with pytest.raises(GemmaError, match=r'output_norm\.weight": I8, expected one of F32, .*Q6_K'):
        load_gguf(path, "auto")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (4, "type 4 (no longer in use)"),
        (39, "MXFP4"),
        (41, "Q1_0"),
        (42, "Q2_0"),
        (43, "type 43 (newer than this reader)"),
        (2**32 - 1, "type 4294967295 (newer than this reader)"),
    ],
)
def test_a_type_that_is_not_read_is_named(number, says, tmp_path):
    path = write(tmp_path / "model.gguf", model_of("gemma2"))
    content = path.read_bytes()
    place = content.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8  # after one size
    path.write_bytes(content[:place] + struct.pack("<I", number) + content[place + 4 :])
    with pytest.raises(GemmaError, match=rf'output_norm\.weight": {re.escape(says)}, expected one of F32, .*Q6_K'):
        load_gguf(path, "auto")


@contextmanager
def monkeypatch_tensor(name, blocks, kind):
    """Write this tensor in these blocks instead."""
    add = gguf.GGUFWriter.add_tensor

    def add_tensor(writer, own, *arguments, **options):
        if own == name:
            return add(writer, own, blocks, raw_dtype=kind)
        return add(writer, own, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
        yield


def test_two_tensors_of_one_weight_are_named(tmp_path):
    path = write(tmp_path / "model.gguf", model_of("gemma"), **{"model.norm.weight": np.zeros(32, np.float32)})
    message = r"output_norm\.weight and model\.norm\.weight: both are model\.norm\.weight"
    with pytest.raises(GemmaError, match=message):
        load_gguf(path, "auto")


def test_another_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "llama.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GemmaError, match="expected 'gemma', 'gemma2' or 'gemma3'"):
        load_gguf(tmp_path / "llama.gguf", "auto")


@pytest.mark.parametrize("share", [0, 0.00001, 0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_damaged(share, tmp_path):
    path = write(tmp_path / "model.gguf", model_of("gemma2"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(GemmaError, match=r"model\.gguf: ") as error:
        load_gguf(path, "auto")
    assert "\n" not in str(error.value)


def test_no_gguf_at_all(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGML and some more bytes that say nothing" * 10)
    with pytest.raises(GemmaError, match=r"damaged \(.*expected a complete GGUF file"):
        load_gguf(tmp_path / "model.gguf", "auto")


def test_a_length_that_lies_does_not_hang(tmp_path):
    path = write(tmp_path / "model.gguf", model_of("gemma2"))
    data = path.read_bytes()
    length = len(tiny.tokenizer()).to_bytes(8, "little")
    path.write_bytes(data.replace(length, (2**60).to_bytes(8, "little")))
    with pytest.raises(GemmaError, match="damaged"):
        load_gguf(path, "auto")


TINY = {"general.architecture": "gemma2", "tokenizer.ggml.tokens": ["a", "b"]} | {
    f"gemma2.{name}": value
    for name, value in {
        "embedding_length": 8,
        "block_count": 2,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 8,
        "feed_forward_length": 8,
        "context_length": 8,
        "attention.sliding_window": 4,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }.items()
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gemma2.embedding_length": "8"}, 'gemma2.embedding_length: "8", expected a whole number from 1 to'),
        ({"gemma2.block_count": [2]}, r"gemma2.block_count: \[2\], expected a whole number"),
        ({"gemma2.block_count": True}, "gemma2.block_count: true, expected a whole number"),
        ({"gemma2.context_length": 8.5}, "gemma2.context_length: 8.5, expected a whole number"),
        ({"gemma2.context_length": 2**40}, "gemma2.context_length: 1099511627776, expected a whole number"),
        ({"gemma2.context_length": None}, "gemma2.context_length: missing"),
        ({"gemma2.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon: NaN, expected a positive number"),
        ({"gemma2.rope.freq_base": -1.0}, "gemma2.rope.freq_base: -1.0, expected a positive number"),
        ({"gemma2.final_logit_softcapping": [30.0]}, r"softcapping: \[30.0\], expected a positive number"),
        ({"general.architecture": ["gemma2"]}, r'general.architecture: \["gemma2"\], expected'),
        ({"tokenizer.ggml.tokens": 5}, "tokenizer.ggml.tokens: 5, expected a list"),
        ({"tokenizer.ggml.tokens": "ab"}, 'tokenizer.ggml.tokens: "ab", expected a list'),
    ],
)
def test_metadata_of_the_wrong_kind(change, message):
    assert config_from_metadata(TINY).vocab_size == 2
    with pytest.raises(GemmaError, match=message):
        config_from_metadata(TINY | change)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["a", 5]},
        {"tokens": ["a"]},
        {"tokens": "ab"},
        {"scores": [0.0, "x"]},
        {"token_type": [1, 77]},
        {"token_type": [1, 1.5]},
        {"bos_token_id": 2},
        {"eos_token_id": "1"},
        {"padding_token_id": -1},
    ],
)
def test_a_vocabulary_of_the_wrong_kind(change):
    good = {"tokens": ["a", "b"], "scores": [0.0, 1.0], "token_type": [1, 1]}
    good |= {f"{name}_token_id": 1 for name in ("bos", "eos", "unknown", "padding")}
    assert sentencepiece_model({f"tokenizer.ggml.{name}": value for name, value in good.items()})
    with pytest.raises(GemmaError, match=r"tokenizer\.ggml.*expected"):
        sentencepiece_model({f"tokenizer.ggml.{name}": value for name, value in (good | change).items()})


def test_an_absurd_number_of_layers_fills_no_memory():
    metadata = {"general.architecture": "gemma", "gemma.embedding_length": 8, "gemma.attention.head_count": 1}
    metadata |= {"gemma.block_count": 2**32 - 1, "gemma.attention.key_length": 8, "gemma.context_length": 8}
    metadata |= {"gemma.feed_forward_length": 8, "gemma.attention.head_count_kv": 1}
    with pytest.raises(GemmaError, match="block_count: 4294967295, expected a whole number from 1 to 1000"):
        config_from_metadata(metadata | {"gemma.attention.layer_norm_rms_epsilon": 1e-6})
