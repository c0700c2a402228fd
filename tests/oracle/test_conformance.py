"""The conformance kit: the same wherever it is written, passed by the reference, failed by name."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_np import GemmaError, load
from gemma_np.cli import main
from gemma_np.oracle.conformance import describe_results, run_kit
from gemma_np.oracle.conformance_kit import CASES, CONFIGS, write_kit
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.judge_tokens import judge_tokens
from gemma_np.oracle.mistakes import CATALOGUE
from gemma_np.oracle.power import blind_spots
from gemma_np.oracle.trace import Reference
from gemma_np.testing import OPERATIONS
from gemma_np.text.tokenizer import read_tokenizer

pytest.importorskip("gguf")

PROGRAM = """
import json, sys
import numpy as np
from safetensors.numpy import save_file
import gemma_np
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.oracle.trace import Reference

model, ids, out, *names = sys.argv[1:]
model, passes = gemma_np.load(model, "float32"), json.load(open(ids))
mistakes = [mistake for mistake in CATALOGUE if mistake.id in names]
with inject_mistakes(mistakes, model.config, [len(one) for one in passes]):
    records = Reference(model, passes).records()
save_file({key: np.ascontiguousarray(value) for key, value in records.items() if "logits" in key}, out)
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance") / "kit"
    assert write_kit(folder) < 3e6
    (folder.parent / "my_gemma.py").write_text(PROGRAM)
    return folder


def command(kit, *more):
    return [sys.executable, str(kit.parent / "my_gemma.py"), "{model}", "{ids}", "{out}", *more]


def test_it_is_the_same_byte_for_byte(kit, tmp_path):
    write_kit(tmp_path / "kit")
    both = [
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (kit, tmp_path / "kit")
    ]
    assert [file for file in both[0] | both[1] if both[0].get(file) != both[1].get(file)] == []
    with pytest.raises(GemmaError, match="expected a new folder"):
        write_kit(kit)


def test_the_reference_passes(kit):
    results = list(run_kit(kit, command(kit)))
    assert len(results) == len(CONFIGS) * (len(CASES) + 1) + 1
    assert all(result.passed for result in results)
    table = describe_results(results)
    assert table[-1] == f"{len(results)} of {len(results)} pass"
    assert all("pass" in line for line in table[1:])


def test_a_mistake_fails_by_name(kit):
    results = [result for result in run_kit(kit, command(kit, "window-off-by-one")) if not result.passed]
    assert {result.case for result in results} >= {"past the window", "decoding", "chunks"}
    assert {result.model.split("-")[0].removesuffix(".gguf") for result in results} == {"gemma2", "gemma3"}
    assert any("known as window-off-by-one" in line for result in results for line in result.diagnosis)


def test_every_known_mistake_shows_in_the_kit(kit):
    """In the case with decoding, on the model of its generation."""
    shown = set()
    for name in CONFIGS:
        model = load(kit / "models" / name, "float64")
        cases = json.loads((kit / "expected.json").read_text())["cases"]
        (case,) = [one for one in cases if one["model"] == f"models/{name}" and one["name"] == "decoding"]
        reference = Reference(model, case["passes"])
        logits = {key: record for key, record in reference.records().items() if "logits" in key}
        blind = blind_spots(Alignment(reference, logits, {}), "float32")
        shown |= {mistake.id for mistake in CATALOGUE if model.config.model_type in mistake.models} - blind.keys()
    assert {mistake.id for mistake in CATALOGUE} - shown == set()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("raise SystemExit('no such layer')", "exit status 1: no such layer"),
        ("pass", "the output"),
        (
            "import sys, numpy as n; from safetensors.numpy import save_file as s; s({'norm': n.ones(3)}, sys.argv[3])",
            "norm",
        ),
    ],
)
def test_programs_that_fail(kit, tmp_path, script, error):
    (tmp_path / "program.py").write_text(script)
    words = [sys.executable, str(tmp_path / "program.py"), "{model}", "{ids}", "{out}"]
    assert error in next(run_kit(kit, words)).error


def test_bad_input(kit, tmp_path, capsys):
    with pytest.raises(GemmaError, match=r"expected \{out\} in it"):
        next(run_kit(kit, ["x", "{model}", "{ids}"]))
    with pytest.raises(GemmaError, match="expected a program"):
        next(run_kit(kit, ["./no-such-program", "{model}", "{ids}", "{out}"]))
    with pytest.raises(GemmaError, match="expected a kit of gemma-np conformance"):
        next(run_kit(tmp_path, ["x", "{model}", "{ids}", "{out}"]))
    assert main(["conformance"]) == 2
    assert "expected either -o DIR, or KIT" in capsys.readouterr().err


def test_from_the_command_line(kit, capsys):
    assert main(["conformance", str(kit), "--", *command(kit, "silu")]) == 1
    out = capsys.readouterr().out
    assert "known as silu" in out
    assert out.splitlines()[-1].startswith("0 of 16")


def test_single_operations_and_tokens(kit):
    for entry in json.loads((kit / "expected.json").read_text())["operations"]:
        arrays = load_file(kit / entry["file"])
        values = [arrays[f"in.{name}"] for name in entry["arguments"]]
        exact = [value.astype(np.float64) if value.dtype == np.float32 else value for value in values]
        results = OPERATIONS[entry["name"]].reference(*(value[0] if value.shape == (1,) else value for value in exact))
        for number, result in enumerate(results if isinstance(results, tuple) else (results,)):
            np.testing.assert_allclose(arrays[f"out.{number}"], result, rtol=1e-5, atol=1e-5)
    tokenizer = read_tokenizer(kit / "tokenizer/tokenizer.model")
    assert all(not found.difference for found in judge_tokens(kit / "tokenizer/cases.jsonl", tokenizer))
