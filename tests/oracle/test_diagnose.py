"""From a dump to the name of its mistake: planted in this code, and by the command line."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import gemma_np
from gemma_np import Gemma
from gemma_np.cli import main
from gemma_np.config import GemmaConfig
from gemma_np.oracle import diagnosis
from gemma_np.oracle.diagnosis import describe_diagnosis, source_of_right
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.oracle.trace import Reference
from tests.support import goldens, tiny
from tests.support.strategies import random_ids


def diagnose(reference, records, dtype):
    return diagnosis.diagnose(Alignment(reference, records, {}), dtype)


BY_ID = {mistake.id: mistake for mistake in CATALOGUE}
LENGTHS = [8, 1, 1, 1, 1]


def reference(model_type, dtype=np.float64):
    config, weights, _ = goldens.load(model_type)
    ids = np.split(random_ids(config, 3, sum(LENGTHS)), np.cumsum(LENGTHS)[:-1])
    return Reference(Gemma(config, {name: w.astype(dtype) for name, w in weights.items()}, None), ids)


def mistaken(model_type, *names):
    """What the float32 model with these mistakes in it dumps."""
    theirs = reference(model_type, np.float32)
    with inject_mistakes([BY_ID[name] for name in names], theirs.config, theirs.lengths), np.errstate(all="ignore"):
        return theirs.records()


def applies(mistake, model_type):
    config, _, _ = goldens.load(model_type)
    no_change = mistake.id == "qscale-head-dim" and config.query_pre_attn_scalar == config.head_dim
    return model_type in mistake.models and not no_change


CASES = [(t, m.id) for t in ("gemma", "gemma2", "gemma3_text") for m in CATALOGUE if applies(m, t)]


@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_every_mistake_is_named(model_type, name):
    """From a full dump, from the residual stream, and from the logits alone."""
    records = mistaken(model_type, name)
    found = diagnose(reference(model_type), records, "float32")
    assert [mistake.id for mistake in found.mistakes] == [name]
    for kept in (("resid_post", "logits", "logits_capped"), ("logits", "logits_capped")):
        few = {key: record for key, record in records.items() if key.endswith(kept)}
        assert name in [mistake.id for mistake in diagnose(reference(model_type), few, "float32").mistakes]


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_nothing_is_wrong_with_a_right_one(model_type):
    found = diagnose(reference(model_type), mistaken(model_type), "float32")
    assert not found.wrong
    assert not found.mistakes
    assert describe_diagnosis(found)[0].startswith("Nothing is wrong")


@pytest.mark.parametrize(
    "pair",
    [
        ("embed-scale-absent", "gelu-exact"),
        ("norm-no-plus1", "rope-interleaved"),
        ("norm-cast-early", "norm-names-crossed"),
        ("gate-up-swapped", "silu"),
        ("attncap-missing", "window-off-by-one"),
        ("gqa-tile", "qscale-hidden-over-heads"),
        ("cap-formula", "finalcap-missing"),
        ("decode-positions", "rope-bf16"),
    ],
)
def test_two_mistakes_are_named(pair):
    found = diagnose(reference("gemma2"), mistaken("gemma2", *pair), "float32")
    assert {mistake.id for mistake in found.mistakes} == set(pair)


def changed(name, change, model_type="gemma2"):
    """What the float32 model dumps if one record is changed."""
    return reference(model_type, np.float32).records(lambda key, value: change(value) if key == name else value)


def test_what_nobody_thought_of_is_placed():
    records = changed("layers.1.mlp.up", lambda value: np.sin(3 * value))
    found = diagnose(reference("gemma2"), records, "float32")
    assert not found.mistakes
    assert not found.causes
    assert found.unexplained == [key for key in records if key.endswith("layers.1.mlp.up")] == list(found.wrong)
    report = "\n".join(describe_diagnosis(found))
    assert "Not explained: layers.1.mlp.up in passes 0-4." in report
    assert "Check the code that computes layers.1.mlp.up." in report


@pytest.mark.parametrize(
    ("model_type", "name", "change", "says"),
    [
        ("gemma2", "layers.1.mlp.up", lambda x: 2 * x, "it is multiplied by 2"),
        ("gemma2", "layers.1.self_attn.o", lambda x: x[..., ::-1], "the outputs are in another order: backwards"),
        ("gemma2", "layers.0.self_attn.q", lambda x: x[::-1], "the outputs are in another order: the heads in reverse"),
        ("gemma2", "logits", lambda x: x / 3, "they are multiplied by 0.333333"),
        ("gemma2", "logits_capped", lambda x: np.clip(x, -1, 1), "the cap"),
        ("gemma3_text", "layers.0.self_attn.q_norm", lambda x: 0.5 * x, "it is multiplied by 0.5"),
    ],
)
def test_what_the_catalogue_does_not_have_is_identified(model_type, name, change, says):
    found = diagnose(reference(model_type), changed(name, change, model_type), "float32")
    if says.startswith("the cap"):  # none of the alternatives: only the place is known
        assert {key.removeprefix("pass.").lstrip("1234.") for key in found.unexplained} == {name}
    else:
        assert [cause.says.startswith(says) for cause in found.causes] == [True]
        assert not found.unexplained


@pytest.mark.parametrize(
    ("model_type", "name", "says"),
    [
        ("gemma2", "qscale-hidden-over-heads", "scores are divided by sqrt(5), expected sqrt(3)"),
        ("gemma2", "gqa-tile", "query head i reads key-value head i % K"),
        ("gemma2", "window-off-by-one", "a query sees one key more than the window"),
        ("gemma2", "window-all-layers", "a global layer has the window, too"),
        ("gemma2", "rope-interleaved", "channels 2i and 2i + 1 are rotated as a pair, expected i and i + 3"),
        ("gemma3_text", "rope-theta-one", "the base is 100, that of global layers, expected 10"),
    ],
)
def test_what_is_computed_is_said(model_type, name, says):
    found = diagnose(reference(model_type), mistaken(model_type, name), "float32")
    assert any(says in cause.says for cause in found.causes), found.causes


def test_numbers_that_say_nothing_break_nothing():
    """A dump of zeros, which a norm without its 1 makes of fresh weights."""
    records = {key: np.zeros_like(record) for key, record in mistaken("gemma2").items()}
    assert diagnose(reference("gemma2"), records, "float32").wrong


@pytest.mark.parametrize(
    "pair", list(combinations(("norm-no-plus1", "silu", "window-ignored", "finalcap-50", "qscale-head-dim"), 2))
)
def test_planting_leaves_no_trace(pair):
    before = reference("gemma2").records()
    fields = dict(vars(GemmaConfig))
    mistaken("gemma2", *pair)
    assert dict(vars(GemmaConfig)) == fields
    after = reference("gemma2").records()
    assert all((before[key] == after[key]).all() for key in before)


@pytest.mark.parametrize("mistake", CATALOGUE, ids=BY_ID)
def test_the_right_line_is_there(mistake):
    file, line = source_of_right(mistake).split(" ")[0].rsplit(":", 1)
    lines = (Path(gemma_np.__file__).parent.parent / file).read_text(encoding="utf-8").splitlines()
    here = lines[int(line) - 1 : int(line) + 1]  # the second, where a decorator is the first
    assert any(f"def {mistake.right.__name__}(" in text for text in here)


def test_from_the_command_line(tmp_path, capsys):
    ids = [2, 5, 9, 40, 7, 31]
    tiny.gemma().save(tmp_path / "model")
    theirs = Reference(tiny.gemma(), [ids])
    with inject_mistakes([BY_ID["silu"]], theirs.config, theirs.lengths):
        records = {name: np.ascontiguousarray(record) for name, record in theirs.records().items()}
    save_file(records, tmp_path / "dump.safetensors", {"passes": json.dumps([ids])})
    words = ["diagnose", "--model", str(tmp_path / "model"), str(tmp_path / "dump.safetensors")]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "the activation is SiLU" in out
    assert "known as silu" in out
    assert "gemma_np/model/feed_forward.py:" in out
    assert "fix: use GELU in its tanh form" in out
    save_file({"logits_capped": records["logits_capped"]}, tmp_path / "dump.safetensors")
    assert main(words) == 2
    assert "names no token ids" in capsys.readouterr().err
    assert main([*words, "--ids", ",".join(map(str, ids))]) == 1
    assert "known as silu" in capsys.readouterr().out
