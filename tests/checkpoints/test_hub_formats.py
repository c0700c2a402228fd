"""Folders that GPTQ, AWQ and bitsandbytes wrote (tests/golden/make_hub.py), and what is refused of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma_np
from gemma_np import GemmaError
from gemma_np.checkpoints.nf4 import read_nf4
from gemma_np.weights.formats import NF4_VALUES, Int4, Int8, Nf4, dequantize
from tests.support.stored_weights import stored

FOLDER = Path(__file__).parents[1] / "golden" / "hub"
FORMATS = {"gptq": Int4, "gptq-symmetric": Int4, "gptq-8": Int8, "awq": Int4, "nf4": Nf4, "nf4-double": Nf4}
MODULE = "model.layers.0.mlp.down_proj"
NF4_STATE = f"{MODULE}.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("label", FORMATS)
def test_each_weight_is_bit_for_bit_what_the_library_makes_of_it(label):
    model = gemma_np.load(FOLDER / label)
    expected = load_file(FOLDER / label / "dequantized.safetensors")
    assert len(expected) == 3
    for name, matrix in expected.items():
        weight = model.weights[name]
        assert type(weight) is FORMATS[label]
        found = dequantize(weight)
        assert ((found.astype(np.float16) if label == "awq" else found) == matrix).all(), name  # AutoAWQ computes so
    wide = gemma_np.load(FOLDER / label, "float32")
    assert (wide.weights[name] == found).all()


@pytest.mark.parametrize("label", ["gptq-symmetric", "awq"])
def test_what_was_read_can_be_saved(label, tmp_path):
    model = gemma_np.load(FOLDER / label)
    model.save(tmp_path / "again")
    assert (gemma_np.load(tmp_path / "again").logits([2, 5, 7]) == model.logits([2, 5, 7])).all()


def test_nf4_is_saved_as_floats_only(tmp_path):
    with pytest.raises(GemmaError, match="nf4, which no folder is written in; load it as float32"):
        gemma_np.load(FOLDER / "nf4").save(tmp_path / "again")


def changed(label, folder, tensors=lambda tensors: None, **quantization):
    """Copy a golden folder, and change its tensors and its quantization_config."""
    shutil.copytree(FOLDER / label, folder)
    arrays = load_file(folder / "model.safetensors")
    tensors(arrays)
    save_file(arrays, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] |= quantization
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("label", "quantization", "message"),
    [
        ("gptq", {"bits": 3}, "bits: 3, expected 4 or 8"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format: \"marlin\", expected 'gptq' or 'gptq_v2'"),
        ("gptq", {"dynamic": {"a": {}}}, "dynamic: .*, expected the same bits for all modules"),
        ("gptq", {"group_size": 0}, "group_size: 0, expected a positive number, or -1 for whole rows"),
        ("gptq", {"group_size": 48}, "channels, expected a multiple of group_size=48"),
        ("gptq", {"group_size": 64}, r"scales: float32 \(4, 64\), expected .* \(2, 64\)"),
        ("gptq-8", {"checkpoint_format": "gptq_v2"}, "qzeros: zero points other than 128, expected symmetric weights"),
        ("awq", {"bits": 8}, "bits: 8, expected 4"),
        ("awq", {"version": "gemv"}, "version: \"gemv\", expected 'gemm'"),
        ("nf4", {"load_in_4bit": False}, "load_in_4bit: false, expected true"),
        ("nf4", {"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type: \"fp4\", expected 'nf4'"),
    ],
)
def test_a_quantization_config_that_is_not_supported(label, quantization, message, tmp_path):
    with pytest.raises(GemmaError, match=message):
        gemma_np.load(changed(label, tmp_path / "model", **quantization))


def put(name, array):
    return lambda tensors: tensors.update({name: array})


@pytest.mark.parametrize(
    ("label", "change", "message"),
    [
        ("gptq", put(f"{MODULE}.bias", np.ones(64, np.float32)), "bias: not zero, expected zeros: Gemma has no biases"),
        (
            "gptq",
            put(f"{MODULE}.g_idx", np.arange(128, dtype=np.int32) % 4),
            "g_idx: groups in the order of activations",
        ),
        ("gptq", lambda t: t.pop(f"{MODULE}.qzeros"), r"qzeros: missing, expected int32 \(4, 8\)"),
        ("awq", put(f"{MODULE}.scales", np.full((4, 64), np.inf, np.float16)), "scales: has NaN or infinity"),
        ("awq", put(f"{MODULE}.qzeros", np.ones((4, 9), np.int32)), r"qzeros: int32 \(4, 9\), expected int32 \(4, 8\)"),
        ("nf4", put(NF4_STATE, np.frombuffer(b"{", np.uint8)), "quant_state.bitsandbytes__nf4: not JSON"),
        (
            "nf4",
            put(NF4_STATE, np.frombuffer(b'{"blocksize": 128, "shape": [64, 128]}', np.uint8)),
            r"shape \[64, 128\] in blocks of 128, expected a matrix whose rows are whole blocks of 64",
        ),
        ("nf4", put(f"{MODULE}.weight.quant_map", np.ones(16, np.float32)), "expected the 16 values of NF4"),
        ("nf4-double", lambda t: t.pop(f"{MODULE}.weight.nested_quant_map"), "nested_quant_map: missing"),
    ],
)
def test_damaged_tensors_are_named(label, change, message, tmp_path):
    with pytest.raises(GemmaError, match=message):
        gemma_np.load(changed(label, tmp_path / "model", change))


def test_nf4_scales_in_several_groups():
    """absmax = values[absmax of a block] * nested absmax of its group + offset."""
    generator = np.random.default_rng(0)
    table, of_groups = generator.random(256, np.float32), np.array([1.0, 3.0, 7.0], np.float32)
    absmax = generator.integers(0, 256, 600).astype(np.uint8)
    state = {"blocksize": 64, "shape": [200, 192], "nested_blocksize": 256, "nested_offset": 0.5}
    arrays = {
        "m": generator.integers(0, 256, (200 * 192 // 2, 1)).astype(np.uint8),
        "m.absmax": absmax,
        "m.quant_map": NF4_VALUES,
        "m.nested_absmax": of_groups,
        "m.nested_quant_map": table,
        "m.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    config = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    read = read_nf4(config, {name: stored(array) for name, array in arrays.items()})
    expected = [table[absmax[n]] * of_groups[n // 256] + np.float32(0.5) for n in range(600)]
    assert (read["m"].quantized().scales.ravel() == np.array(expected)).all()
