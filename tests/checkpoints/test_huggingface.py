"""Checkpoint folders: there and back, mapped, strict, and every way in which a file can lie."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_np import GemmaError, memory
from gemma_np.checkpoints import loading, saving
from gemma_np.checkpoints.huggingface import load_folder
from gemma_np.checkpoints.saving import save_folder
from gemma_np.errors import GemmaWarning
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES
from tests.support.tolerances import assert_close

CONFIG = tiny.config()
WEIGHTS = tiny.gemma().weights
NAME = "model.layers.3.self_attn.k_proj.weight"


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "model", CONFIG, WEIGHTS.items(), tiny.tokenizer())
    return tmp_path / "model"


def map_layers(folder, change):
    """Write the folder's weights again, after `change` was made to them."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
def test_there_and_back(model_type, shard_bytes, tmp_path):
    model = tiny.gemma(model_type)
    save_folder(tmp_path / "model", model.config, model.weights.items(), tiny.tokenizer(), shard_bytes)
    assert (tmp_path / "model" / "model.safetensors.index.json").exists() == (shard_bytes == 5000)
    config, weights, vocabulary = load_folder(tmp_path / "model", "float32")
    assert config == model.config
    assert vocabulary == tiny.vocabulary()
    assert list(weights) == [name for name, _ in config.weight_shapes()]
    assert all((weights[name] == model.weights[name]).all() for name in weights)


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_stored_dtype_becomes_the_one_asked_for(stored, dtype, tmp_path):
    written = {name: weight.astype(stored) for name, weight in WEIGHTS.items()}
    save_folder(tmp_path / "model", CONFIG, written.items(), None)
    _, weights, _ = load_folder(tmp_path / "model", dtype)
    for name, weight in weights.items():
        assert weight.dtype == dtype
        assert (weight == written[name].astype(dtype)).all()


def test_large_tensors_are_converted_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_BLOCK_BYTES", 100)
    written = {name: weight.astype(ml_dtypes.bfloat16) for name, weight in WEIGHTS.items()}
    save_folder(tmp_path / "model", CONFIG, written.items(), None)
    _, weights, _ = load_folder(tmp_path / "model", "float32")
    assert all((weights[name] == written[name].astype(np.float32)).all() for name in weights)


def test_what_is_stored_as_asked_for_stays_in_the_file(folder):
    _, weights, _ = load_folder(folder, "float32")
    for weight in weights.values():
        assert isinstance(weight, np.memmap)
        assert not weight.flags.writeable


def test_a_multimodal_checkpoint_gives_its_text_model(tmp_path):
    model = tiny.gemma("gemma3_text")
    for number, prefix in enumerate(["language_model.model.", "model.language_model."]):
        folder = tmp_path / str(number)
        save_folder(folder, model.config, model.weights.items(), None)
        renamed = {prefix + name.removeprefix("model."): w for name, w in model.weights.items()}
        renamed["vision_tower.x" if number == 0 else "model.vision_tower.x"] = np.zeros(3, np.float32)
        save_file(renamed, folder / "model.safetensors")
        _, weights, _ = load_folder(folder, "float32")
        assert all((weights[name] == model.weights[name]).all() for name in model.weights)


# Names and shapes


def test_every_missing_extra_and_misshapen_tensor_is_named(folder):
    def change(weights):
        del weights["model.norm.weight"]
        weights["other.weight"] = np.zeros((2, 2), np.float32)
        weights[NAME] = np.ascontiguousarray(weights[NAME].T)

    map_layers(folder, change)
    with pytest.raises(GemmaError) as error:
        load_folder(folder, "float32")
    message = str(error.value)
    assert "model.norm.weight: missing" in message
    assert "other.weight: extra" in message
    expected = "shape (12, 8), expected (8, 12) from num_key_value_heads=2, head_dim=4, hidden_size=12"
    assert f"{NAME}: {expected}" in message


@pytest.mark.parametrize("name", [name for name, _ in tiny.config("gemma3_text").weight_shapes()][:15])
def test_a_wrong_shape_is_explained_for_every_kind_of_tensor(name, tmp_path):
    model = tiny.gemma("gemma3_text")
    weights = dict(model.weights) | {name: np.zeros((3, 3), np.float32)}
    save_folder(tmp_path / "model", model.config, weights.items(), None)
    with pytest.raises(GemmaError, match=r"shape \(3, 3\), expected \(.*\) from .*="):
        load_folder(tmp_path / "model", "float32")


# Files that lie


def header_of(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(path, header, data, size=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)


def offsets_outside(path):
    header, data = header_of(path)
    header[NAME]["data_offsets"][1] += 10**9
    with_header(path, header, data)


def offsets_that_overlap(path):
    header, data = header_of(path)
    header[NAME]["data_offsets"] = [0, 384]
    with_header(path, header, data)


def shape_that_lies(path):
    header, data = header_of(path)
    header[NAME]["shape"] = [8, 13]
    with_header(path, header, data)


def unknown_dtype(path):
    header, data = header_of(path)
    header[NAME]["dtype"] = "F3"
    with_header(path, header, data)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "seven bytes": lambda path: path.write_bytes(b"1234567"),
    "truncated in the header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "truncated in the data": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "more than it says": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "header size huge": lambda path: with_header(path, *header_of(path), size=2**63),
    "header size all ones": lambda path: with_header(path, *header_of(path), size=2**64 - 1),
    "header size past the end": lambda path: with_header(path, *header_of(path), size=10**6),
    "header size zero": lambda path: with_header(path, *header_of(path), size=0),
    "header not JSON": lambda path: with_header(path, b"{not json}", b""),
    "header a list": lambda path: with_header(path, b"[]", b""),
    "offsets outside": offsets_outside,
    "offsets that overlap": offsets_that_overlap,
    "a shape that lies": shape_that_lies,
    "an unknown dtype": unknown_dtype,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_told_by_its_name(damage, folder):
    damage(folder / "model.safetensors")
    with pytest.raises(GemmaError, match=r"model\.safetensors: damaged \(") as error:
        load_folder(folder, "float32")
    assert "\n" not in str(error.value)


def test_integers_are_no_weights(folder):
    map_layers(folder, lambda weights: weights.update({NAME: np.zeros((8, 12), np.int8)}))
    with pytest.raises(GemmaError, match=f"{NAME}: dtype int8, expected one of F64, F32, F16, BF16"):
        load_folder(folder, "float32")


def test_an_empty_tensor_is_no_weight(folder):
    map_layers(folder, lambda weights: weights.update({NAME: np.zeros((0, 12), np.float32)}))
    with pytest.raises(GemmaError, match=rf"{NAME}: shape \(0, 12\), expected a non-empty tensor"):
        load_folder(folder, "float32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"a": "../model.safetensors"}}', 'names "../model.safetensors", expected a file in the same'),
        ('{"weight_map": {"a": "/etc/passwd"}}', 'names "/etc/passwd"'),
        ('{"weight_map": {"a": 5}}', "weight_map.a: 5, expected text"),
        ('{"weight_map": {"a": ".."}}', 'names ".."'),
        ('{"weight_map": {"a": "gone.safetensors"}}', 'names "gone.safetensors", which is missing'),
        ('{"weight_map": 5}', "weight_map: 5, expected a JSON object"),
        ("{}", "weight_map: missing, expected a JSON object"),
        ("nonsense", "not JSON"),
    ],
)
def test_an_index_that_lies(content, message, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(GemmaError) as error:
        load_folder(folder, "float32")
    assert message in str(error.value)


@pytest.fixture
def shards(tmp_path):
    """A checkpoint of several shards; its files and its index."""
    save_folder(tmp_path / "shards", CONFIG, WEIGHTS.items(), None, 2000)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    return sorted(index.parent.glob("*.safetensors")), index, json.loads(index.read_text())["weight_map"]


def listed(index, weight_map):
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(GemmaError) as error:
        load_folder(index.parent, "float32")
    return str(error.value)


def test_a_tensor_in_two_shards(shards):
    (first, second, *_), index, weight_map = shards
    again = load_file(first)
    save_file(load_file(second) | again, second)
    name = next(iter(again))
    assert f'"{name}" is in "{second.name}", but listed "{first.name}"' in listed(index, weight_map)


def test_a_tensor_that_the_index_does_not_list(shards):
    files, index, weight_map = shards
    path, name = next((path, name) for path in files for name in load_file(path) if len(load_file(path)) > 1)
    del weight_map[name]
    assert f'"{name}" is in "{path.name}", but listed nowhere' in listed(index, weight_map)


def test_a_tensor_that_is_not_where_the_index_lists_it(shards):
    (*_, before, last), index, weight_map = shards
    name = next(iter(load_file(last)))
    assert len(load_file(last)) > 1
    message = listed(index, weight_map | {name: before.name})
    assert f'"{name}" is listed in "{before.name}", but is not in it' in message
    name = next(iter(load_file(before)))
    assert len(load_file(before)) > 1
    message = listed(index, weight_map | {name: last.name})
    assert f'"{name}" is in "{before.name}", but listed "{last.name}"' in message


def test_two_names_of_one_weight(folder):
    map_layers(folder, lambda weights: weights.update({f"model.language_model.{NAME[6:]}": weights[NAME].copy()}))
    with pytest.raises(GemmaError) as error:
        load_folder(folder, "float32")
    both = [f"{NAME} and model.language_model.{NAME[6:]}", f"model.language_model.{NAME[6:]} and {NAME}"]
    assert any(f"{names}: expected one of them, not both" in str(error.value) for names in both)


def test_a_header_that_has_a_name_twice(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entry = b', "model.norm.weight": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header = data[8 : 8 + length].rstrip()[:-1] + entry
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with pytest.raises(GemmaError, match=r"model\.safetensors: "):
        load_folder(folder, "float32")


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(GemmaError, match=r"no weights, expected model\.safetensors"):
        load_folder(folder, "float32")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_that_are_none_are_warned_of_by_name(bad, dtype, folder):
    map_layers(folder, lambda weights: weights[NAME].__setitem__((7, 11), bad))
    with pytest.warns(GemmaWarning, match=f"{NAME}: has NaN or infinity"):
        load_folder(folder, dtype)


def test_too_little_memory_is_said_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    monkeypatch.setattr(loading, "load_tensor", lambda *_: pytest.fail("something was read"))
    needed = sum(weight.nbytes for weight in WEIGHTS.values()) * 2
    with pytest.raises(GemmaError, match=f"memory: 0.0 GB available, expected {needed / 1e9:.1f} GB .* in float64"):
        load_folder(folder, "float64")


def test_mapped_weights_need_no_memory(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert load_folder(folder, "float32")


def test_available_memory_is_a_sensible_number():
    assert 2**20 < memory.available_memory() < 2**50


# Saving


def test_saving_over_something_is_refused(folder):
    with pytest.raises(GemmaError, match="exists, expected a new folder"):
        save_folder(folder, CONFIG, WEIGHTS.items(), None)


@pytest.mark.parametrize("shard_bytes", [200, math.inf])
def test_a_weight_that_is_not_finite_is_not_saved(shard_bytes, tmp_path):
    model = tiny.with_number(tiny.gemma(), "model.layers.3.mlp.up_proj.weight", np.nan)
    with pytest.raises(GemmaError, match=r"model\.layers\.3\.mlp\.up_proj\.weight: NaN or infinity"):
        save_folder(tmp_path / "model", model.config, model.weights.items(), None, shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_saving_leaves_nothing_at_the_target(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "config_to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_folder(tmp_path / "model", CONFIG, WEIGHTS.items(), None)
    assert list(tmp_path.iterdir()) == []


# The framework


@pytest.mark.framework
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
def test_the_framework_loads_what_was_saved(model_type, shard_bytes, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny.gemma(model_type)
    save_folder(tmp_path / "model", model.config, model.weights.items(), tiny.tokenizer(), shard_bytes)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    ids = [2, 5, 300, 17, 21, 22, 23]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert expected.dtype == np.float32
    assert_close(model.logits(ids), expected, "framework")


@pytest.mark.framework
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_the_framework_saved_is_loaded(model_type, tmp_path):
    import torch

    from tests.support.framework import framework_model

    model = tiny.gemma(model_type)
    framework_model(model.config, model.weights).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    config, weights, _ = load_folder(tmp_path / "theirs", "float32")
    assert config == model.config
    for name, weight in weights.items():
        assert (weight == model.weights[name].astype(ml_dtypes.bfloat16).astype(np.float32)).all()
