"""Plan, compare and diagnose from files: what `gemma-np trace`, `compare` and `diagnose` do, in one call each."""

from collections.abc import Sequence
from pathlib import Path

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.model.transformer import validate_token_ids
from gemma_np.oracle.comparison import Row, compare
from gemma_np.oracle.diagnosis import Diagnosis, diagnose
from gemma_np.oracle.dump import Dump, align_dump, read_dump
from gemma_np.oracle.trace import Passes, Reference


def plan_passes(
    model: Gemma, prompt: str | Sequence[int], *, chunk: int | None = None, decode: int = 0
) -> list[list[int]]:
    """Return the token ids of each pass that `write_trace` is to record.

    prompt: a text, or token ids as they are; chunk: tokens in each pass over the prompt (default: all in one); decode:
    how many tokens to add greedily, one in each pass.

    Raises GemmaError for an empty prompt, ids that the model cannot read, a text without a tokenizer, and numbers of
    tokens that are too small.
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
    """Compare a dump with a trace of the same token ids: a row for each record of either, in the order of execution.

    trace: written by `write_trace`; theirs: a safetensors file; model: the weights (default: those that the trace
    names); name_map: a JSON file, see `gemma_np.oracle.dump`; dtype: that of their computation (default: the file's);
    isolate: see `compare`. Records that the trace lacks are EXTRA.

    Raises GemmaError when a file cannot be read, or when the files are of other models or token ids.
    """
    ours, dump = read_dump(trace), read_dump(theirs, name_map)
    reference = _reference(model or ours.model, [ours, dump])
    rows = compare(reference, align_dump(dump, reference), dtype or dump.dtype, isolate=isolate)
    return [
        row if row.key in ours.records else row._replace(status="EXTRA")
        for row in rows
        if row.key in ours.records or row.status != "MISSING"
    ]


def diagnose_file(
    theirs: str | Path,
    *,
    model: str | Path | None = None,
    ids: Sequence[int] | None = None,
    name_map: str | Path | None = None,
    dtype: str | None = None,
) -> Diagnosis:
    """Find the known mistake, or the two, that explain a dump.

    theirs: a safetensors file with all records or some; model: the weights (default: those that its metadata names);
    ids: the tokens of its only pass (default: the `passes` of its metadata); name_map and dtype as of `compare_files`.

    Raises GemmaError when the file cannot be read, when it is of another model or other token ids, and when neither
    the arguments nor its metadata say which.
    """
    dump = read_dump(theirs, name_map)
    reference = _reference(model or dump.model, [dump], passes=None if ids is None else [list(ids)])
    return diagnose(reference, align_dump(dump, reference), dtype or dump.dtype)


def _reference(model_name: str | Path | None, dumps: Sequence[Dump], passes: Passes | None = None) -> Reference:
    """Load the model in float64, with the passes of all dumps, which must be the same."""
    path = dumps[-1].path
    if model_name is None:
        raise GemmaError(f"{dumps[0].path}: names no model, expected --model or metadata `model`")
    model = load(model_name, "float64")
    for dump in dumps:
        if dump.config is not None and dump.config != model.config:
            fields = vars(model.config)
            field = next(field for field in fields if getattr(dump.config, field) != fields[field])
            raise GemmaError(
                f"{dump.path}: is of a model with {field}={getattr(dump.config, field)}, "
                f"expected {fields[field]} as in {model_name}"
            )
        passes = passes or dump.passes
        if dump.passes is not None and dump.passes != passes:
            raise GemmaError(f"{dump.path}: is of token ids {dump.passes}, expected {passes}")
    if passes is None:
        raise GemmaError(f"{path}: does not say which token ids it is of, expected --ids or metadata `passes`")
    validate_token_ids([token for ids in passes for token in ids], model.config)
    return Reference(model, passes)
