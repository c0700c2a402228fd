"""Quantized checkpoints: written, read back, damaged."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma_np
from gemma_np import Gemma, GemmaError
from gemma_np.checkpoints import compressed_tensors, loading
from gemma_np.checkpoints.huggingface import load_folder
from gemma_np.checkpoints.quantized_tensors import to_tensors
from gemma_np.checkpoints.safetensors_file import read_metadata
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.weights.formats import BFloat16, Blocks, Int8, dequantize, stored_bytes
from tests.support import tiny
from tests.support.stored_weights import random_blocks, stored

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
def test_every_kind_comes_back_as_it_was(label, shard_bytes, tmp_path):
    weights = quantized(SCHEMES[label])
    save_folder(tmp_path / "model", MODEL.config, weights.items(), tiny.tokenizer(), shard_bytes)
    config, found, _ = load_folder(tmp_path / "model", dtype="stored")
    assert config == MODEL.config
    assert list(found) == list(weights)
    for name, weight in weights.items():
        assert_same(found[name], weight, name)


def assert_same(found, weight, name):
    assert type(found) is type(weight) or weight.__class__ is np.ndarray, name
    for field, array in () if isinstance(weight, np.ndarray) else vars(weight).items():
        kept = getattr(found, field)
        if isinstance(array, np.ndarray):
            assert kept.dtype == array.dtype, name
            assert (kept == array).all(), name
        else:
            assert kept == array, name


def test_blocks_of_gguf_come_back_as_they_were(tmp_path):
    model = tiny.gemma(hidden_size=64, intermediate_size=256)
    weights = {
        name: random_blocks(
            "Q4_K" if w.shape[1] == 256 else "Q8_0", len(w), w.shape[1] // (256 if w.shape[1] == 256 else 32), 0
        )
        if w.ndim == 2 and w.shape[1] % 32 == 0
        else w
        for name, w in model.weights.items()
    }
    save_folder(tmp_path / "model", model.config, weights.items(), tiny.tokenizer(), 20000)
    found = gemma_np.load(tmp_path / "model").weights
    assert {type(found[name]) for name in weights} >= {Blocks}
    for name, weight in weights.items():
        assert_same(found[name], weight, name)
    name = next(name for name, weight in weights.items() if isinstance(weight, Blocks))
    weights[name] = quantize(model.weights[name], Scheme("int8"))
    with pytest.raises(GemmaError, match="beside other quantized formats, expected only block formats in a folder"):
        save_folder(tmp_path / "mixed", model.config, weights.items(), None)
    assert not (tmp_path / "mixed").exists()


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
    groups = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["config_groups"]
    bits = {target: group["weights"]["num_bits"] for group in groups.values() for target in group["targets"]}
    assert bits == {"Linear": 4, "Embedding": 8}


def test_shards_are_no_larger_than_asked(tmp_path):
    weights = quantized(SCHEMES["int4"])
    save_folder(tmp_path / "model", MODEL.config, weights.items(), None, 2000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shards = [load_file(tmp_path / "model" / file) for file in sorted(set(index["weight_map"].values()))]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    shapes = 16 * sum(weight.ndim == 2 for weight in MODEL.weights.values())
    padding = sum(sizes) - shapes - sum(map(stored_bytes, weights.values()))  # to words of 32 bits
    assert index["metadata"]["total_size"] == sum(sizes)
    assert 0 <= padding < 0.3 * sum(sizes)
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
    save_folder(tmp_path / "model", MODEL.config, halves.items(), tiny.tokenizer())
    wide, stored = (gemma_np.load(tmp_path / "model", dtype) for dtype in ("float32", "stored"))
    assert type(stored.weights[NAME]) is BFloat16
    assert stored.weights["model.norm.weight"].dtype == np.float32
    assert wide.weights[NAME].dtype == np.float32
    assert stored.generate("The ships", 12) == wide.generate("The ships", 12)
    stored.save(tmp_path / "again")
    assert (load_file(tmp_path / "again" / "model.safetensors")[NAME] == halves[NAME]).all()


def damage(folder, change, quantization=None):
    """Rewrite the files of a folder: its tensors changed in place by `change`, its quantization_config replaced."""
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    if quantization:
        values = json.loads((folder / "config.json").read_text())
        values["quantization_config"] = quantization(values["quantization_config"])
        (folder / "config.json").write_text(json.dumps(values))


def nan_scale(tensors):
    tensors[f"{NAME}_scale"][1, 0] = np.nan


def put(part, array):
    return lambda tensors: tensors.update({f"{NAME}{part}": array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NAME}_scale"), rf"{NAME}_scale: missing, expected float32 or float16 or bfloat16 \(8, 3\)"),
        (lambda t: t.pop(f"{NAME}_packed"), rf"{NAME}_packed: missing, expected int32 \(8, 2\)"),
        (lambda t: t.pop(f"{NAME}_shape"), rf"{NAME}_shape: missing, expected int64 or int32 \(2\)"),
        (lambda t: t.pop(f"{NAME}_zero_point"), rf"{NAME}_zero_point: missing, expected int32 \(1, 3\)"),
        (nan_scale, f"{NAME}_scale: has NaN or infinity, expected finite numbers"),
        (put("_scale", np.ones((8, 5), np.float32)), rf"{NAME}_scale: float32 \(8, 5\), expected .* \(8, 3\)"),
        (put("_scale", np.ones((8, 3), np.float64)), rf"{NAME}_scale: float64 \(8, 3\), expected float32 or float16"),
        (put("_zero_point", np.ones((8, 3), np.int32)), rf"{NAME}_zero_point: int32 \(8, 3\), expected int32 \(1, 3\)"),
        (put("_packed", np.ones((8, 2), np.int8)), rf"{NAME}_packed: int8 \(8, 2\), expected int32 \(8, 2\)"),
        (put("_packed", np.ones((8, 3), np.int32)), rf"{NAME}_packed: int32 \(8, 3\), expected int32 \(8, 2\)"),
        (put("_shape", np.array([8, 13])), f"{NAME}: 13 channels, expected a multiple of group_size=4"),
        (put("_shape", np.array([9, 12])), rf"{NAME}_packed: int32 \(8, 2\), expected int32 \(9, 2\)"),
        (put("_shape", np.array([-8, 12])), rf"{NAME}_shape: \[-8, 12\], expected two positive numbers"),
        (put("_shape", np.array([8, 2**61])), rf"{NAME}_packed: int32 \(8, 2\), expected int32 \(8, "),
        (put("_other", np.ones(3, np.int32)), f"{NAME}_other: dtype int32, expected one of F64, F32, F16, BF16"),
        (put("_g_idx", np.arange(12, dtype=np.int32)), f"{NAME}_g_idx: groups in the order of activations"),
    ],
)
def test_damaged_tensors_are_named(change, message, tmp_path):
    save_folder(tmp_path / "model", MODEL.config, quantized(SCHEMES["int4 with zeros"]).items(), None)
    damage(tmp_path / "model", change)
    with pytest.raises(GemmaError, match=message):
        gemma_np.load(tmp_path / "model")


def group(**changes):
    """Return a change of the only group of a quantization_config: to its weights, or to the whole."""

    def change(quantization):
        of_group = quantization["config_groups"]["group_0"]
        for name, value in changes.items():
            (of_group["weights"] if name in of_group["weights"] else of_group)[name] = value
        return quantization

    return change


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (lambda q: None, "embed_tokens.weight_.*: dtype int.*, expected one of F64, F32, F16, BF16"),
        (lambda q: {"quant_method": "quip"}, 'quant_method: "quip", expected compressed-tensors, gptq, awq'),
        (lambda q: {"quant_method": "gemma_np"}, "of an earlier version: quantize the original again"),
        (lambda q: {"quant_method": 4}, "quantization_config.quant_method: 4, expected text"),
        (lambda q: q | {"config_groups": []}, r"config_groups: \[\], expected a JSON object"),
        (
            lambda q: q | {"config_groups": {}},
            "embed_tokens: quantized, expected a group of config_groups that targets",
        ),
        (lambda q: q | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme: .*, expected null"),
        (lambda q: q | {"transform_config": {"a": 1}}, "transform_config: .*, expected null"),
        (lambda q: q | {"sparsity_config": {"format": "2:4"}}, "sparsity_config.format: \"2:4\", expected 'dense'"),
        (group(num_bits=3), "config_groups.group_0.weights.num_bits: 3, expected 4 or 8 for type int"),
        (group(num_bits=4, type="float"), "config_groups.group_0.weights.num_bits: 4, expected 8 for type float"),
        (
            group(num_bits=8, symmetric=False),
            "config_groups.group_0.weights.symmetric: false, expected true for 8 bits",
        ),
        (group(strategy="block"), "strategy: \"block\", expected 'tensor', 'channel' or 'group'"),
        (group(group_size=0), "weights.group_size: 0, expected a positive number for strategy 'group'"),
        (group(group_size=5), "12 channels, expected a multiple of group_size=5"),
        (group(output_activations={"num_bits": 8}), "config_groups.group_0.output_activations: .*, expected null"),
        (group(targets=["re:("]), r'targets: "re:\(": .*, expected a regular expression'),
    ],
)
def test_a_quantization_config_that_does_not_fit(quantization, message, tmp_path):
    save_folder(tmp_path / "model", MODEL.config, quantized(SCHEMES["int4"]).items(), None)
    damage(tmp_path / "model", lambda tensors: None, quantization)
    with pytest.raises(GemmaError, match=message):
        gemma_np.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 4}, "input_activations: {}.* for 4 bits, expected symmetric, dynamic int8 per token"),
        (
            {"input_activations": {"num_bits": 8, "strategy": "token", "dynamic": False}},
            "'dynamic': False|dynamic.*false",
        ),
        ({"strategy": "group", "group_size": 4}, "strategy: 'group', expected 'channel' or 'tensor'"),
    ],
)
def test_activations_that_are_not_rounded_as_w8a8_rounds_them(changes, message, tmp_path):
    save_folder(tmp_path / "model", MODEL.config, quantized(SCHEMES["w8a8"]).items(), None)
    damage(tmp_path / "model", lambda tensors: None, group(**changes))
    with pytest.raises(GemmaError, match=message):
        gemma_np.load(tmp_path / "model")


def test_one_scale_for_a_whole_matrix():
    weight = quantize(MODEL.weights[NAME], Scheme("float8"))
    weight = dataclasses.replace(weight, scales=np.full((8, 1), 0.25, np.float32))
    tensors = compressed_tensors.to_tensors(NAME, weight)
    tensors[f"{NAME}_scale"] = np.array([0.25], ml_dtypes.bfloat16)
    tensors[NAME.replace("weight", "input_scale")] = np.ones(1, np.float32)  # of activations, which stay floats
    of_group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    tensors = {name: stored(array) for name, array in tensors.items()}
    found = compressed_tensors.read_tensors({"config_groups": {"a": of_group}}, tensors)
    assert not tensors
    assert (dequantize(found[NAME].quantized()) == dequantize(weight)).all()


@pytest.mark.parametrize("equal", [True, False])
def test_a_copy_of_the_embedding_as_output_head(equal, tmp_path):
    embedding = MODEL.weights["model.embed_tokens.weight"]
    weights = {**MODEL.weights, "lm_head.weight": embedding if equal else embedding[::-1].copy()}
    save_folder(tmp_path / "model", MODEL.config, weights.items(), tiny.tokenizer())
    if equal:
        assert (gemma_np.load(tmp_path / "model").logits([2, 5]) == MODEL.logits([2, 5])).all()
    else:
        with pytest.raises(GemmaError, match=r"lm_head.weight: differs from model.embed_tokens.weight"):
            gemma_np.load(tmp_path / "model")


def test_a_shape_that_the_config_does_not_say(tmp_path):
    weights = quantized(SCHEMES["int8"])
    weights[NAME] = Int8(np.ones((9, 12), np.int8), np.ones((9, 1), np.float32))
    save_folder(tmp_path / "model", MODEL.config, weights.items(), None)
    with pytest.raises(GemmaError, match=rf"{NAME}: shape \(9, 12\), expected \(8, 12\) from num_key_value_heads=2"):
        gemma_np.load(tmp_path / "model")


def test_auto_keeps_16_bits_only_in_a_quantized_checkpoint(tmp_path):
    floats = {name: BFloat16(w.astype(ml_dtypes.bfloat16)) if w.ndim == 2 else w for name, w in MODEL.weights.items()}
    partly = floats | {NAME: quantize(MODEL.weights[NAME], Scheme("int8"))}
    for name, weights in {"floats": floats, "partly": partly}.items():
        save_folder(tmp_path / name, MODEL.config, weights.items(), tiny.tokenizer())
    embedding = "model.embed_tokens.weight"
    assert gemma_np.load(tmp_path / "floats").weights[embedding].dtype == np.float32
    assert isinstance(gemma_np.load(tmp_path / "partly").weights[embedding], BFloat16)
    assert gemma_np.load(tmp_path / "partly", "float64").weights[embedding].dtype == np.float64
