"""Quantized checkpoints: written, read back, damaged."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma_np
from gemma_np import Gemma, GemmaError
from gemma_np.checkpoints import loading
from gemma_np.checkpoints.huggingface import load_folder
from gemma_np.checkpoints.quantized_tensors import to_tensors
from gemma_np.checkpoints.safetensors_file import read_metadata
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.weights.formats import BFloat16, Int8, dequantize, stored_bytes
from tests.support import tiny

MODEL = tiny.gemma(intermediate_size=8)
SCHEMES = {
    "bfloat16": Scheme("bfloat16"),
    "int8": Scheme("int8"),
    "int8 in groups": Scheme("int8", 4, scale_dtype=np.float16),
    "w8a8": Scheme("w8a8"),
    "int4": Scheme("int4", 4),
    "int4 with zeros": Scheme("int4", 4, zero_points=True),
    "float8": Scheme("float8"),
}
NAME = "model.layers.3.self_attn.k_proj.weight"


def quantized(scheme):
    return {name: quantize(w, scheme) if w.ndim == 2 else w for name, w in MODEL.weights.items()}


@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
@pytest.mark.parametrize("label", SCHEMES)
def test_every_kind_comes_back_as_it_was_mapped_from_its_file(label, shard_bytes, tmp_path):
    weights = quantized(SCHEMES[label])
    save_folder(tmp_path / "model", MODEL.config, weights.items(), tiny.vocabulary(), shard_bytes)
    config, found, _ = load_folder(tmp_path / "model", dtype="stored")
    assert config == MODEL.config
    assert list(found) == list(weights)
    for name, weight in weights.items():
        assert type(found[name]) is type(weight) or weight.__class__ is np.ndarray, name
        if not isinstance(weight, np.ndarray):
            for field, array in vars(weight).items():
                kept = getattr(found[name], field)
                assert type(kept) is type(array) or isinstance(kept, np.memmap), name
                if not isinstance(array, np.ndarray):
                    assert kept == array
                else:
                    assert kept.dtype == array.dtype
                    assert (kept == array).all()
                    assert not kept.flags.writeable  # of a mapped file


@pytest.mark.parametrize("label", SCHEMES)
def test_float64_widens_everything(label, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_BLOCK_BYTES", 500)
    weights = quantized(SCHEMES[label])
    save_folder(tmp_path / "model", MODEL.config, weights.items(), None)
    for name, weight in gemma_np.load(tmp_path / "model", "float64").weights.items():
        assert weight.dtype == np.float64
        assert (weight == dequantize(weights[name])).all()


def test_kinds_may_be_mixed(tmp_path):
    name = "model.embed_tokens.weight"
    weights = quantized(SCHEMES["int4"]) | {name: quantize(MODEL.weights[name], Scheme("int8"))}
    mixed = Gemma(MODEL.config, weights, MODEL.tokenizer)
    mixed.save(tmp_path / "model")
    found = gemma_np.load(tmp_path / "model")
    assert (found.logits([2, 5, 7]) == mixed.logits([2, 5, 7])).all()
    assert "quantization_config" in json.loads((tmp_path / "model" / "config.json").read_text())
    kinds = json.loads(read_metadata(tmp_path / "model" / "model.safetensors")["storage"])
    assert kinds.pop(name) == "int8"
    assert set(kinds.values()) == {"int4"}


def test_shards_are_no_larger_than_asked(tmp_path):
    weights = quantized(SCHEMES["int4"])
    save_folder(tmp_path / "model", MODEL.config, weights.items(), None, 2000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shards = [load_file(tmp_path / "model" / file) for file in sorted(set(index["weight_map"].values()))]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    assert index["metadata"]["total_size"] == sum(sizes) == sum(map(stored_bytes, weights.values()))
    assert set(shards[0]) == set(to_tensors("model.embed_tokens.weight", weights["model.embed_tokens.weight"]))
    assert 1000 < min(sizes[1:-1]) <= max(sizes[1:]) <= 2000


def test_the_config_tells_what_only_a_later_shard_has(tmp_path):
    """A large embedding that stays in 16 bits fills the first one alone."""
    name = "model.embed_tokens.weight"
    weights = quantized(SCHEMES["int4"]) | {name: quantize(MODEL.weights[name], Scheme("bfloat16"))}
    save_folder(tmp_path / "model", MODEL.config, weights.items(), None, 2000)
    assert "quantization_config" in json.loads((tmp_path / "model" / "config.json").read_text())


def test_what_other_readers_of_the_format_want(tmp_path):
    """Metadata that older versions of transformers insist on, and numbers that begin at a multiple of 8."""
    save_folder(tmp_path / "model", MODEL.config, quantized(SCHEMES["int4"]).items(), None)
    assert read_metadata(tmp_path / "model" / "model.safetensors")["format"] == "pt"
    assert int.from_bytes((tmp_path / "model" / "model.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_16_bits_stay_in_their_file_only_if_asked(tmp_path):
    halves = {name: weight.astype(ml_dtypes.bfloat16) for name, weight in MODEL.weights.items()}
    save_folder(tmp_path / "model", MODEL.config, halves.items(), tiny.vocabulary())
    wide, stored = (gemma_np.load(tmp_path / "model", dtype) for dtype in ("float32", "stored"))
    assert type(stored.weights[NAME]) is BFloat16
    assert stored.weights["model.norm.weight"].dtype == np.float32
    assert wide.weights[NAME].dtype == np.float32
    assert stored.generate("The ships", 12) == wide.generate("The ships", 12)
    stored.save(tmp_path / "again")
    assert (load_file(tmp_path / "again" / "model.safetensors")[NAME] == halves[NAME]).all()


def damage(folder, change, metadata=None):
    """Rewrite the file, its tensors changed in place by `change`."""
    path = folder / "model.safetensors"
    told, tensors = read_metadata(path), dict(load_file(path))
    change(tensors)
    save_file(tensors, path, told | (metadata or {}))


def nan_scale(tensors):
    tensors[f"{NAME}.scales"][1, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NAME}.scales"), f"{NAME}.scales: missing, expected since {NAME} is stored as int4"),
        (nan_scale, f"{NAME}.scales: has NaN or infinity, expected finite numbers"),
        (
            lambda t: t.update({f"{NAME}.scales": np.ones((8, 5), np.float32)}),
            rf"{NAME}.scales: shape \(8, 5\), expected \(8, a divisor of 12\)",
        ),
        (
            lambda t: t.update({f"{NAME}.scales": np.ones((7, 3), np.float32)}),
            rf"{NAME}.scales: shape \(7, 3\), expected \(8, a divisor of 12\)",
        ),
        (
            lambda t: t.update({f"{NAME}.zeros": np.ones((8, 2), np.uint8)}),
            rf"{NAME}.zeros: shape \(8, 2\), expected \(8, 3\), that of its scales",
        ),
        (
            lambda t: t.update({f"{NAME}.scales": np.ones((8, 3), np.float64)}),
            rf"{NAME}.scales: float64 \(8, 3\), expected float32 or float16 with two axes",
        ),
        (
            lambda t: t.update({f"{NAME}.scales": np.ones(8, np.float32)}),
            rf"{NAME}.scales: float32 \(8,\), expected float32 or float16 with two axes",
        ),
        (lambda t: t.update({NAME: np.ones((8, 6), np.int8)}), rf"{NAME}: int8 \(8, 6\), expected uint8 with two axes"),
        (lambda t: t.update({NAME: np.ones((9, 6), np.uint8)}), rf"{NAME}.scales: shape \(8, 3\), expected \(9,"),
    ],
)
def test_damaged_tensors_are_named(change, message, tmp_path):
    save_folder(tmp_path / "model", MODEL.config, quantized(SCHEMES["int4 with zeros"]).items(), None)
    damage(tmp_path / "model", change)
    with pytest.raises(GemmaError, match=message):
        gemma_np.load(tmp_path / "model")


@pytest.mark.parametrize("kind", ["w8a8", "float8"])
def test_one_scale_a_row_is_all_that_these_kinds_have(kind, tmp_path):
    weights = quantized(SCHEMES[kind])
    weights[NAME] = dataclasses.replace(weights[NAME], scales=np.ones((8, 2), np.float32))
    save_folder(tmp_path / "model", MODEL.config, weights.items(), None)
    with pytest.raises(GemmaError, match=rf"{NAME}.scales: shape \(8, 2\), expected"):
        gemma_np.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("{}", "model.embed_tokens.weight: dtype uint8, expected one of F64, F32, F16, BF16"),
        ("no JSON", r"storage: not JSON \(.*\), expected a JSON object"),
        ("[1]", r"storage: \[1\], expected a JSON object"),
        (json.dumps({NAME: "int3"}), f"storage: {NAME}: \"int3\", expected 'int8', 'w8a8', 'int4', 'float8', 'Q8_0'"),
        (json.dumps({"nothing": "int4"}), "nothing: missing"),
    ],
)
def test_metadata_that_do_not_fit(storage, message, tmp_path):
    save_folder(tmp_path / "model", MODEL.config, quantized(SCHEMES["int4"]).items(), None)
    damage(tmp_path / "model", lambda tensors: None, {"storage": storage})
    with pytest.raises(GemmaError, match=message):
        gemma_np.load(tmp_path / "model")


def test_a_shape_that_the_config_does_not_say(tmp_path):
    weights = quantized(SCHEMES["int8"])
    weights[NAME] = Int8(np.ones((9, 12), np.int8), np.ones((9, 1), np.float32))
    save_folder(tmp_path / "model", MODEL.config, weights.items(), None)
    with pytest.raises(GemmaError, match=rf"{NAME}: shape \(9, 12\), expected \(8, 12\) from num_key_value_heads=2"):
        gemma_np.load(tmp_path / "model")
