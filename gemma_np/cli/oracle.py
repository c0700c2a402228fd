"""The commands that hold other implementations against this one, one function each: trace, compare, diagnose.

Each raises GemmaError for what it cannot do, in the one line that `gemma-np` then prints.
"""

import argparse
import json
import sys
from pathlib import Path

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.model.records import RECORDS
from gemma_np.model.transformer import validate_token_ids
from gemma_np.oracle.comparison import Row, compare
from gemma_np.oracle.diagnosis import describe
from gemma_np.oracle.diagnosis import diagnose as explain
from gemma_np.oracle.dump import Dump, align_dump, read_dump
from gemma_np.oracle.plots import plot_comparison
from gemma_np.oracle.trace import Passes, Reference, write_trace

STATUSES = ("OK", "DIFF", "SHAPE", "MISSING", "EXTRA")


def trace(options: argparse.Namespace) -> None:
    """Write every intermediate of a run to a safetensors file."""
    if options.names:
        for row in RECORDS:
            note = f" (only with {row.needs})" if row.needs else ""
            print(f"{row.name:40}{row.letters:10}{row.meaning}{note}")
        return
    if options.output is None:
        raise GemmaError("-o: missing, expected the file to write")
    model = load(options.model, options.dtype)
    prompt = _prompt(options, model)
    chunk = options.chunk or len(prompt)
    passes = [prompt[start : start + chunk] for start in range(0, len(prompt), chunk)]
    validate_token_ids(prompt, model.config)
    for _ in range(options.decode):
        ids = [token for read in passes for token in read]
        passes.append([int(model.logits(ids)[-1].argmax())])
    count = write_trace(model, passes, Path(options.output), options.only, str(options.model))
    if not count:
        raise GemmaError(f"--filter: {options.only!r} matches no record, expected names as records lists them")
    print(f"{count} records of {sum(map(len, passes))} tokens in {options.output}", file=sys.stderr)


def compare_dumps(options: argparse.Namespace) -> int:
    """Hold a dump against a trace, record by record; exit status 1 when they differ."""
    ours = read_dump(Path(options.reference))
    theirs = read_dump(Path(options.dump), _path(options.names))
    reference = _reference(options.model or ours.model, ours, theirs)
    rows = compare(reference, align_dump(theirs, reference), options.dtype or theirs.dtype, options.isolate)
    rows = [
        row if row.key in ours.records else row._replace(status="EXTRA")
        for row in rows
        if row.key in ours.records or row.status != "MISSING"
    ]
    if options.plot:
        plot_comparison(rows, Path(options.plot))
    if options.json:
        print(json.dumps([row._asdict() for row in rows]))
    else:
        _print_rows(rows)
    return int(any(row.status in ("DIFF", "SHAPE") for row in rows))


def diagnose(options: argparse.Namespace) -> int:
    """Find the known mistake, or the two, that a dump is made of; exit status 1 when something is wrong."""
    theirs = read_dump(Path(options.dump), _path(options.names))
    passes = [read_ids(options.ids)] if options.ids else None
    reference = _reference(options.model, theirs, theirs, passes)
    found = explain(reference, align_dump(theirs, reference), options.dtype or theirs.dtype)
    for line in describe(found):
        print(line)
    return int(bool(found.wrong))


def _reference(name: str | None, ours: Dump, theirs: Dump, passes: Passes | None = None) -> Reference:
    """The model in float64, and the passes of both dumps, which must be the same."""
    if name is None:
        raise GemmaError(f"{ours.path}: does not say which model it is of, expected --model")
    model = load(name, "float64")
    for dump in (ours, theirs):
        if dump.config is not None and dump.config != model.config:
            fields = vars(model.config)
            field = next(field for field in fields if getattr(dump.config, field) != fields[field])
            found = getattr(dump.config, field)
            raise GemmaError(f"{dump.path}: is of a model with {field}={found}, expected {fields[field]} as in {name}")
        if passes is not None and dump.passes is not None and dump.passes != [list(ids) for ids in passes]:
            raise GemmaError(f"{dump.path}: is of token ids {dump.passes}, expected {[list(ids) for ids in passes]}")
        passes = passes or dump.passes
    if passes is None:
        raise GemmaError(f"{theirs.path}: does not say which token ids it is of, expected --ids or metadata `passes`")
    validate_token_ids([token for ids in passes for token in ids], model.config)
    return Reference(model, passes)


def _prompt(options: argparse.Namespace, model: Gemma) -> list[int]:
    if (options.prompt is None) == (options.ids is None):
        raise GemmaError("expected --prompt TEXT or --ids 2,651,...")
    if options.ids is not None:
        return read_ids(options.ids)
    if model.tokenizer is None:
        raise GemmaError("--prompt: the checkpoint has no tokenizer.model, expected --ids")
    if not options.prompt:
        raise GemmaError("--prompt: empty, expected some text")
    return model.tokenizer.encode(options.prompt)


def read_ids(text: str) -> list[int]:
    """The token ids of a comma list."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise GemmaError(f"--ids: {text!r}, expected whole numbers with commas between them") from None


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


def _print_rows(rows: list[Row]) -> None:
    width = max(len(row.key) for row in rows)
    print(f"{'record':{width}}  status   error    passes   where it is largest")
    for row in rows:
        if row.where:
            print(f"{row.key:{width}}  {row.status:7}{row.error:9.2e}{row.limit:9.2e}  {list(row.where)}")
        else:
            print(f"{row.key:{width}}  {row.status:7} {row.note}")
    first = next((row for row in rows if row.status in ("DIFF", "SHAPE")), None)
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    if first:
        print(f"the first that differs: {first.key}")
