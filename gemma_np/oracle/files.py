"""Plan passes, compare files and diagnose a file: `gemma-np trace`, `compare` and `diagnose` as functions."""

from collections.abc import Sequence
from pathlib import Path

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.model.transformer import validate_token_ids
from gemma_np.oracle.comparison import Row, compare
from gemma_np.oracle.diagnosis import Diagnosis, diagnose
from gemma_np.oracle.dump import Dump, align_dump, read_dump
from gemma_np.oracle.power import blind_spots
from gemma_np.oracle.trace import Passes, Reference


def plan_passes(
    model: Gemma, prompt: str | Sequence[int], *, chunk: int | None = None, decode: int = 0
) -> list[list[int]]:
    """Return the token ids of each pass for `write_trace`.

    prompt: a text or token ids; chunk: number of tokens in each pass over the prompt (default: all in one); decode:
    number of tokens to generate greedily after it, one in each pass.

    Raises GemmaError for an empty prompt, invalid ids, a text when there is no tokenizer, and a `chunk` or `decode` out
    of range.
    """
    if chunk is not None and chunk < 1:
        raise GemmaError(f"chunk: {chunk}, expected at least 1")
    if decode < 0:
        raise GemmaError(f"decode: {decode}, expected at least 0")
    if isinstance(prompt, str):
        if not prompt:
            raise GemmaError("prompt: empty, expected some text")
        prompt = model.require_tokenizer().encode(prompt)
    validate_token_ids(prompt, model.config)
    ids, size = [int(token) for token in prompt], chunk or len(prompt)
    passes = [ids[start : start + size] for start in range(0, len(ids), size)]
    for _ in range(decode):
        token = int(model.logits(ids)[-1].argmax())
        ids.append(token)
        passes.append([token])
    return passes


def compare_files(
    trace: str | Path,
    theirs: str | Path,
    *,
    model: str | Path | None = None,
    name_map: str | Path | None = None,
    dtype: str | None = None,
    isolate: bool = False,
) -> list[Row]:
    """Compare a dump with a trace of the same token ids; return a row for each record, in the order of execution.

    trace: written by `write_trace`; theirs: a safetensors file; model: the weights (default: those that the trace
    names); name_map: a JSON file, see `gemma_np.oracle.dump`; dtype: that of their computation (default: the file's);
    isolate: see `compare`. Records that are only in the dump are EXTRA.

    Raises GemmaError when a file cannot be read, or when the files have different models or token ids.
    """
    ours, dump = read_dump(trace), read_dump(theirs, name_map)
    reference = _reference(model or ours.model, [ours, dump])
    rows = compare(align_dump(dump, reference), dtype or dump.dtype, isolate=isolate)
    return against_trace(rows, ours)


def against_trace(rows: Sequence[Row], trace: Dump) -> list[Row]:
    """Return the rows of what a trace or the dump compared with it has; what only the dump has is EXTRA."""
    return [
        row if row.key in trace.records or row.status == "UNKNOWN" else row._replace(status="EXTRA")
        for row in rows
        if row.key in trace.records or row.status != "MISSING"
    ]


def diagnose_file(
    theirs: str | Path,
    *,
    model: str | Path | None = None,
    ids: Sequence[int] | None = None,
    name_map: str | Path | None = None,
    dtype: str | None = None,
) -> Diagnosis:
    """Find what a dump computes in place of Gemma, and say which known mistakes it could not show.

    theirs: a safetensors file with some or all records; model: the weights (default: those that its metadata names);
    ids: the tokens of its single pass (default: `passes` in its metadata); name_map, dtype: as for `compare_files`.

    Raises GemmaError when the file cannot be read, when it has another model or other token ids, and when neither the
    arguments nor its metadata name them.
    """
    dump = read_dump(theirs, name_map)
    reference = _reference(model or dump.model, [dump], passes=None if ids is None else [list(ids)])
    alignment, dtype = align_dump(dump, reference), dtype or dump.dtype
    return diagnose(alignment, dtype)._replace(blind_spots=blind_spots(alignment, dtype))


def _reference(model_name: str | Path | None, dumps: Sequence[Dump], passes: Passes | None = None) -> Reference:
    """Return the reference on the passes of the dumps, which must agree."""
    model = load_reference(model_name, dumps)
    for dump in dumps:
        passes = passes or dump.passes
        if dump.passes is not None and dump.passes != passes:
            raise GemmaError(f"{dump.path}: from token ids {dump.passes}, expected {passes}")
    if passes is None:
        raise GemmaError(f"{dumps[-1].path}: names no token ids, expected --ids or `passes` in the metadata")
    validate_token_ids([token for ids in passes for token in ids], model.config)
    return Reference(model, passes)


def load_reference(model_name: str | Path | None, dumps: Sequence[Dump]) -> Gemma:
    """Load a model in float64.

    Raises GemmaError when there is no name, and when a dump comes from a model with another config.
    """
    if model_name is None:
        raise GemmaError(f"{dumps[0].path}: names no model, expected --model or `model` in the metadata")
    model = load(model_name, "float64")
    for dump in dumps:
        if dump.config is not None and dump.config != model.config:
            fields = vars(model.config)
            field = next(field for field in fields if getattr(dump.config, field) != fields[field])
            raise GemmaError(
                f"{dump.path}: from a model with {field}={getattr(dump.config, field)}, "
                f"expected {fields[field]} as in {model_name}"
            )
    return model
