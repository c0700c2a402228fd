"""Run a program over a conformance kit, and say what it computes right and wrong."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gemma_np.errors import GemmaError
from gemma_np.gemma import load
from gemma_np.json_input import TEXT, list_of, object_of, read_json, whole_number
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.diagnosis import describe_diagnosis, diagnose
from gemma_np.oracle.dump import align_dump, read_dump
from gemma_np.oracle.trace import Reference

_CASE = object_of({"name": TEXT, "model": TEXT, "passes": list_of(list_of(whole_number(0))), "expected": TEXT})
_KIT = object_of({"version": whole_number(1), "cases": list_of(_CASE)})
_PLACES = ("{model}", "{ids}", "{out}")
_TIMEOUT = 300.0  # seconds


class Result(NamedTuple):
    """The result of one case."""

    model: str
    case: str
    error: str  # empty when every record is right
    diagnosis: list[str]  # the lines of a report

    @property
    def passed(self) -> bool:
        """Return whether every record is right."""
        return not self.error


def run_kit(kit: str | Path, command: Sequence[str]) -> Iterator[Result]:
    """Call a program for each case of a kit, and yield the results; see the kit's README.

    command: with `{model}`, `{ids}` and `{out}` among its words. Raises GemmaError when one of these is missing, when
    the kit cannot be read, and when the program cannot be started.
    """
    missing = [place for place in _PLACES if not any(place in word for word in command)]
    if missing:
        raise GemmaError(f"command: {' '.join(command) or 'empty'}, expected {', '.join(missing)} in it")
    folder = Path(kit)
    for case in read_json(folder / "expected.json", _KIT, "a kit of gemma-np conformance")["cases"]:
        with tempfile.TemporaryDirectory() as temporary:
            ids, out = Path(temporary) / "ids.json", Path(temporary) / "out.safetensors"
            ids.write_text(json.dumps(case["passes"]) + "\n")
            values = dict(zip(_PLACES, (str(folder / case["model"]), str(ids), str(out)), strict=True))
            error, lines = _run(command, values), list[str]()
            if not error:
                error, lines = _judge(folder / case["model"], case["passes"], out)
        yield Result(Path(case["model"]).name, case["name"], error, lines)


def _run(command: Sequence[str], values: dict[str, str]) -> str:
    """Call the program; return what went wrong."""
    words = list(command)
    for place, value in values.items():
        words = [word.replace(place, value) for word in words]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except OSError as error:
        raise GemmaError(f"{words[0]}: {error.strerror or error}, expected a program") from None
    except subprocess.TimeoutExpired:
        return f"took more than {_TIMEOUT:g} seconds"
    last = (done.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
    return f"exit status {done.returncode}: {last[:200]}" if done.returncode else ""


def _judge(model_path: Path, passes: list[list[int]], out: Path) -> tuple[str, list[str]]:
    """Compare what a program wrote with the reference; return what is wrong, and the diagnosis."""
    model = load(model_path, "float64")
    try:
        dump = read_dump(out)
        alignment = align_dump(dump, Reference(model, passes))
    except GemmaError as error:
        return str(error).replace(str(out), "the output"), []
    last = f"pass.{len(passes) - 1}.logits" if len(passes) > 1 else "logits"
    if not any(key in alignment.records for key in (last, f"{last}_capped")):
        return f"the output has no {last}", []
    wrong = [row.key for row in compare(alignment, dump.dtype) if row.differs]
    if not wrong:
        return "", []
    return f"{len(wrong)} records differ, the first is {wrong[0]}", describe_diagnosis(diagnose(alignment, dump.dtype))


def describe_results(results: Sequence[Result]) -> list[str]:
    """Return the lines of a table: a row for each model, a column for each case."""
    cases = list(dict.fromkeys(result.case for result in results))
    models = list(dict.fromkeys(result.model for result in results))
    found = {(result.model, result.case): "pass" if result.passed else "FAIL" for result in results}
    lines = [f"{'':14}" + "".join(f"{case:>17}" for case in cases)]
    lines += [f"{model:14}" + "".join(f"{found.get((model, case), '-'):>17}" for case in cases) for model in models]
    passed = sum(result.passed for result in results)
    return [*lines, f"{passed} of {len(results)} pass"]
