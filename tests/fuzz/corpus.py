"""The corpus: past failures, each reduced to the edits that it needs, in corpus/<target>/<name>.json."""

import json
import re
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def read_corpus(name):
    """Return the inputs of a target by the names of their files."""
    paths = sorted((CORPUS / name).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="ascii"))["case"] for path in paths}


def write_case(name, case, outcome):
    """Write a new failure; return its path."""
    words = re.sub(r"gemma_np/(?:\w+/)*(\w+\.py):|:\d+$", r"\1 ", outcome.signature)
    short = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:70]
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = next(
        path for n in range(1, 1000) if not (path := folder / f"{short}{f'-{n}' if n > 1 else ''}.json").exists()
    )
    path.write_text(json.dumps({"failure": outcome.message[:200], "case": case}, indent=1) + "\n", encoding="ascii")
    return path


def reduced(case, outcome, run, tries=60):
    """Return a smaller input with the same failure, found by leaving out and by shortening one thing after another."""
    changed = True
    while changed and tries > 0:
        changed = False
        for smaller in smaller_cases(case):
            tries -= 1
            if tries < 0:
                break
            if run(smaller).signature == outcome.signature:
                case, changed = smaller, True
                break
    return case


def smaller_cases(case):
    """Yield inputs that are a little smaller."""
    for name in ("edits", "arguments"):
        items = case.get(name, [])
        for index in range(len(items)):
            if name == "edits" or index:
                yield case | {name: items[:index] + items[index + 1 :]}
    if case.get("stream", "utf-8") != "utf-8":
        yield case | {"stream": "utf-8"}
    if case.get("input"):
        yield case | {"input": ""}
    for index, edit in enumerate(case["edits"]):
        for value in smaller_values(edit.get("value")):
            yield case | {"edits": [*case["edits"][:index], edit | {"value": value}, *case["edits"][index + 1 :]]}


def smaller_values(value):
    if isinstance(value, str) and len(value) > 8:
        yield value[:4]
        yield value[: len(value) // 2]
    elif isinstance(value, dict) and "repeat" in value and value["repeat"][1] > 2000:
        yield {"repeat": [value["repeat"][0], value["repeat"][1] // 2]}
    elif isinstance(value, list) and len(value) > 1 and not isinstance(value[0], int):
        yield value[:1]
