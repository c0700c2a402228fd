"""Traces: every record, streamed, in a file that any safetensors library reads."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from gemma_np import Gemma
from gemma_np.cli import main
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.records import record_shapes
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.oracle.trace import Reference, write_trace
from gemma_np.scope import Record
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, random_ids, random_weights, seeds
from tests.support.tolerances import assert_close


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_file_holds_every_record_in_the_order_of_execution(model_type, tmp_path):
    model, ids = tiny.gemma(model_type), [2, 5, 9, 40, 7]
    assert write_trace(model, [ids], tmp_path / "a.safetensors", source="here") == len(record_shapes(model.config, 5))
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        metadata = file.metadata()
        expected = model.trace(ids)
        assert list(expected) == sorted(file.keys(), key=list(expected).index)
        for name, value in expected.items():
            found = file.get_tensor(name)
            assert found.dtype == np.float32
            assert (found == value).all(), name
    assert json.loads(metadata["passes"]) == [ids]
    assert json.loads(metadata["config"])["model_type"] == model_type
    assert metadata["model"] == "here"


@given(configs(), st.lists(st.integers(1, 4), min_size=1, max_size=4), seeds)
def test_passes_are_what_the_cache_gives(config, lengths, seed):
    """The records of each pass are those of reading the passes one after the other with a cache."""
    weights, ids = random_weights(config, seed, np.float64), random_ids(config, seed, sum(lengths))
    passes = np.split(ids, np.cumsum(lengths)[:-1])
    records = Reference(Gemma(config, weights, None), passes).records()
    cache, end = KVCache(config, dtype=np.float64), 0
    for number, read in enumerate(passes):
        record, end = Record(), end + len(read)
        lm_head(transformer(read, weights, config, cache, record), weights, config, record)
        for name, value in record.items():
            found = records[name if number == 0 else f"pass.{number}.{name}"]
            if (name.endswith("probs") and value.shape[-1] == end) or ("scores" not in name and "probs" not in name):
                assert_close(found, value, "model", name)


def test_a_trace_keeps_nothing_in_memory(tmp_path):
    """Its peak does not grow with the number of layers."""
    import tracemalloc

    def peak(layers):
        config = tiny.config("gemma2")
        values = {**vars(config), "num_hidden_layers": layers, "layer_types": config.layer_types[:2] * (layers // 2)}
        values |= {"hidden_size": 32, "intermediate_size": 256, "max_position_embeddings": 256}
        config = type(config)(**values)
        model = Gemma(config, random_weights(config, 0), None)
        ids = np.arange(200) % config.vocab_size
        tracemalloc.start()
        write_trace(model, [ids], tmp_path / f"{layers}.safetensors")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(16) < 1.3 * peak(2)


def test_only_some_records(tmp_path, capsys):
    tiny.gemma().save(tmp_path / "model")
    words = ["trace", "--model", str(tmp_path / "model"), "--ids", "2,5,9", "-o", str(tmp_path / "a.safetensors")]
    assert main([*words, "--filter", "*.probs", "--dtype", "float64"]) == 0
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == {f"layers.{layer}.self_attn.probs" for layer in range(4)}
    assert {value.dtype for value in found.values()} == {np.dtype(np.float64)}
    assert "4 records of 3 tokens" in capsys.readouterr().err
    assert main([*words, "--force", "--filter", "layers.0.*", "--chunk", "1"]) == 0
    assert {"layers.0.mlp.up", "pass.2.layers.0.mlp.up"} <= set(load_file(tmp_path / "a.safetensors"))
    capsys.readouterr()
    assert main([*words, "--force", "--filter", "nothing"]) == 2
    assert "matches no record" in capsys.readouterr().err


def test_chunks_and_decoding(tmp_path):
    tiny.gemma().save(tmp_path / "model")
    out = tmp_path / "a.safetensors"
    words = ["trace", "--model", str(tmp_path / "model"), "--prompt", "The lamp", "-o", str(out)]
    assert main([*words, "--chunk", "2", "--decode", "3"]) == 0
    with safe_open(out, "numpy") as file:
        passes = json.loads(file.metadata()["passes"])
        last = len(passes) - 1
        assert file.get_tensor(f"pass.{last}.logits").shape == (1, 400)
        assert file.get_tensor(f"pass.{last}.layers.0.self_attn.probs").shape[-1] == sum(map(len, passes))
    prompt = tiny.tokenizer().encode("The lamp")
    assert [len(ids) for ids in passes[:-3]] == [2] * (len(prompt) // 2) + [1] * (len(prompt) % 2)
    text = tiny.gemma().tokenizer.decode([token for ids in passes[-3:] for token in ids])
    assert tiny.gemma().generate("The lamp", max_new_tokens=3) in (text, text.lstrip())


def test_the_names(capsys):
    assert main(["records"]) == 0
    out = capsys.readouterr().out
    assert "layers.*.self_attn.probs" in out
    assert "only with has_qk_norm" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --prompt TEXT or --ids"),
        (["--prompt", "x", "--ids", "2"], "expected --prompt TEXT or --ids"),
        (["--ids", "2,x"], "expected whole numbers"),
        (["--ids", "2,999"], "token ids: 999"),
        (["--ids", ",".join(["2"] * 70)], "expected at most 64"),
    ],
)
def test_bad_input(options, message, tmp_path, capsys):
    tiny.gemma().save(tmp_path / "model")
    assert main(["trace", "--model", str(tmp_path / "model"), "-o", str(tmp_path / "a.safetensors"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()
