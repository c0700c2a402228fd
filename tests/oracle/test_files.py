"""The oracle's commands from Python: passes, comparisons and diagnoses of files, and what they cannot do."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from gemma_np.errors import GemmaError
from gemma_np.gemma import load
from gemma_np.oracle.comparison import compare, describe_comparison
from gemma_np.oracle.diagnosis import diagnose
from gemma_np.oracle.dump import align_dump, read_dump
from gemma_np.oracle.files import compare_files, diagnose_file, plan_passes
from gemma_np.oracle.mistakes import inject_mistakes
from gemma_np.oracle.mistakes.feed_forward import silu
from gemma_np.oracle.trace import Reference, write_trace
from tests.support import tiny

IDS = [2, 5, 9, 40, 7, 31]


@pytest.fixture
def folder(tmp_path):
    """A model, a trace of it, and a trace of it with SiLU, which names the model."""
    model = tiny.gemma()
    model.save(tmp_path / "model")
    write_trace(model, [IDS], tmp_path / "ref.safetensors", source=str(tmp_path / "model"))
    with inject_mistakes([silu], model.config, [len(IDS)]):
        write_trace(model, [IDS], tmp_path / "theirs.safetensors", source=str(tmp_path / "model"))
    return tmp_path


def test_passes_of_ids_and_of_a_text():
    model = tiny.gemma()
    assert plan_passes(model, IDS) == [IDS]
    assert plan_passes(model, np.array(IDS), chunk=4) == [IDS[:4], IDS[4:]]
    assert plan_passes(model, "The lamp") == [tiny.tokenizer().encode("The lamp")]
    greedy = list(model.stream_ids(IDS, max_new_tokens=3))
    passes = plan_passes(model, IDS, decode=3)
    assert passes[0] == IDS
    assert [token for ids in passes[1:] for token in ids][: len(greedy)] == greedy
    assert [len(ids) for ids in passes] == [6, 1, 1, 1]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt: empty"),
        ([], {}, "expected at least one id"),
        ([2, 999], {}, "token ids: 999"),
        (IDS, {"chunk": 0}, "chunk: 0, expected at least 1"),
        (IDS, {"decode": -1}, "decode: -1, expected at least 0"),
        (IDS, {"decode": 70}, "expected at most 64"),
    ],
)
def test_passes_that_cannot_be(prompt, options, message):
    with pytest.raises(GemmaError, match=message):
        plan_passes(tiny.gemma(), prompt, **options)


def test_a_trace_without_records_is_not_written(tmp_path):
    with pytest.raises(GemmaError, match="'nothing' matches no record"):
        write_trace(tiny.gemma(), [IDS], tmp_path / "a.safetensors", pattern="nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("isolate", [False, True])
def test_compare_files_returns_what_compare_does(folder, isolate):
    rows = compare_files(folder / "ref.safetensors", folder / "theirs.safetensors", isolate=isolate)
    reference = Reference(load(folder / "model", "float64"), [IDS])
    theirs = align_dump(read_dump(folder / "theirs.safetensors"), reference)
    assert rows == compare(theirs, "float32", isolate=isolate)
    differ = [row.key for row in rows if row.differs]
    assert len(differ) == 4 if isolate else len(differ) > 40
    lines = describe_comparison(rows)
    assert len(lines) == len(rows) + 3
    assert lines[-1] == "first difference: layers.0.mlp.hidden"


def test_diagnose_file_reads_model_and_passes_from_the_metadata(folder):
    path = str(folder / "theirs.safetensors")
    assert diagnose_file(path).mistakes == (silu,)
    reference = Reference(load(folder / "model", "float64"), [IDS])
    found = diagnose_file(path)
    assert "silu" not in found.blind_spots
    assert "decode-positions" in found.blind_spots  # one pass
    assert found._replace(blind_spots={}) == diagnose(align_dump(read_dump(path), reference), "float32")
    assert diagnose_file(path, dtype="float16").wrong.keys() == diagnose_file(path).wrong.keys()
    assert diagnose_file(path, dtype="float16").wrong != diagnose_file(path).wrong


def test_what_no_file_says(folder):
    path = folder / "bare.safetensors"
    save_file({"norm": np.zeros((6, 12), np.float32)}, path)
    with pytest.raises(GemmaError, match="names no model, expected --model"):
        diagnose_file(path)
    with pytest.raises(GemmaError, match="names no token ids"):
        diagnose_file(path, model=folder / "model")
    assert diagnose_file(path, model=folder / "model", ids=IDS).wrong
    with pytest.raises(GemmaError, match="dtype: 'int8', expected one of float64, float32, bfloat16, float16"):
        diagnose_file(path, model=folder / "model", ids=IDS, dtype="int8")
    with pytest.raises(GemmaError, match=r"from token ids .*, expected "):
        diagnose_file(folder / "theirs.safetensors", ids=[2])
