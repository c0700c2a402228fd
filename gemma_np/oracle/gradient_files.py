"""Write the gradients of a training step to a file, and compare or diagnose a file of another implementation's.

The loss is the mean of -log P of every next token, in nats. Texts of different lengths are one batch, padded on the
right; padding does not count.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.safetensors_file import read_metadata, write_tensors
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.json_input import list_of, parse_json, whole_number
from gemma_np.model.transformer import validate_token_ids
from gemma_np.oracle.comparison import Row
from gemma_np.oracle.dump import Dump, read_dump, shape_note
from gemma_np.oracle.gradient_diagnosis import GradientDiagnosis, diagnose_gradients
from gemma_np.oracle.gradients import Step, batch_of, gradient_noise, gradients
from gemma_np.oracle.noise import relative_error

Texts = Sequence[Sequence[int]]
"""The token ids of each text of a batch."""

_TEXTS = list_of(list_of(whole_number(0)))


def step_of(model: Gemma, texts: Texts) -> Step:
    """Return the training step on a batch of texts. Raises GemmaError for invalid ids, and for a text of one token."""
    for ids in texts:
        validate_token_ids(ids, model.config)
        if len(ids) < 2:
            raise GemmaError(f"token ids: {list(ids)}, expected 2 or more, to have a next token")
    return Step(model, batch_of([list(ids) for ids in texts]))


def write_gradients(model: Gemma, texts: Texts, path: str | Path, source: str = "") -> int:
    """Write the loss and all gradients of a training step to a safetensors file, and return their number.

    The metadata has `texts` (the token ids), `model` (`source`), `config` and `gemma_np`, as in a trace.

    Raises GemmaError as `step_of` does.
    """
    found = gradients(step_of(model, texts))
    metadata = {
        "config": json.dumps(config_to_json(model.config)),
        "texts": json.dumps([[int(token) for token in ids] for ids in texts]),
        "model": source,
        "gemma_np": version("gemma-np"),
    }
    arrays = {name: np.ascontiguousarray(gradient) for name, gradient in found.items()}
    atomic_write(Path(path), lambda partial: write_tensors(partial, arrays, metadata))
    return len(found)


def has_gradients(path: str | Path) -> bool:
    """Return whether a file was written by `write_gradients`, or names its texts as that does."""
    return Path(path).suffix == ".safetensors" and "texts" in read_metadata(Path(path))


def compare_gradient_files(
    trace: str | Path,
    theirs: str | Path,
    *,
    model: str | Path | None = None,
    name_map: str | Path | None = None,
    dtype: str | None = None,
) -> list[Row]:
    """Compare gradients with those of a file of `write_gradients`; return a row for each, from the loss down.

    Each gradient is judged from their gradients of intermediates above it. The arguments are those of `compare_files`.

    Raises GemmaError when a file cannot be read, or when the files have different models or texts.
    """
    ours, dump = read_dump(trace), read_dump(theirs, name_map)
    step = _step([ours, dump], model, None)
    given, skipped = _matched(step, dump)
    limits = gradient_noise(step, given, dtype or dump.dtype)
    right = gradients(step, given)
    rows = []
    for name in right:
        if name in given:
            error, where = relative_error(given[name], right[name])
            rows.append(Row(name, "OK" if error <= limits[name] else "DIFF", error, limits[name], where))
        elif name in skipped:
            rows.append(Row(name, "SKIPPED", note=skipped[name]))
        elif name in ours.records:
            rows.append(Row(name, "MISSING"))
    return rows + [Row(name, "UNKNOWN", note=skipped[name]) for name in sorted(skipped.keys() - right.keys())]


def diagnose_gradient_file(
    theirs: str | Path,
    *,
    model: str | Path | None = None,
    texts: Texts | None = None,
    name_map: str | Path | None = None,
    dtype: str | None = None,
) -> GradientDiagnosis:
    """Find what a training step of another implementation gets wrong.

    theirs: a safetensors file with some or all gradients; texts: the token ids (default: `texts` in its metadata); the
    other arguments are those of `diagnose_file`.

    Raises GemmaError when the file cannot be read, has no gradient of the model, or names no texts.
    """
    dump = read_dump(theirs, name_map)
    step = _step([dump], model, texts)
    given, skipped = _matched(step, dump)
    return diagnose_gradients(step, given, dtype or dump.dtype)._replace(skipped=skipped)


def _step(dumps: Sequence[Dump], model: str | Path | None, texts: Texts | None) -> Step:
    """Return the step of a float64 reference on the texts of the files, which must agree."""
    name = model or dumps[0].model
    if name is None:
        raise GemmaError(f"{dumps[0].path}: names no model, expected --model or `model` in the metadata")
    for dump in dumps:
        metadata = {} if dump.path.suffix == ".npz" else read_metadata(dump.path)
        found = parse_json(metadata["texts"], _TEXTS, f"{dump.path}: texts") if "texts" in metadata else None
        if found is not None and texts is not None and found != [list(ids) for ids in texts]:
            raise GemmaError(f"{dump.path}: gradients of other texts, expected {[list(ids) for ids in texts]}")
        texts = texts or found
    if texts is None:
        raise GemmaError(f"{dumps[0].path}: names no texts, expected --ids for each, or `texts` in the metadata")
    return step_of(load(name, "float64"), texts)


def _matched(step: Step, dump: Dump) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return their gradients that can be compared, in the order of the backward pass, and why others cannot."""
    right = gradients(step)
    given, skipped = dict[str, np.ndarray](), dict[str, str]()
    for name in [*right, *(name for name in dump.records if name not in right)]:
        if name not in dump.records:
            continue
        gradient = dump.records[name]
        if name not in right:
            skipped[name] = "unknown, expected the name of a weight, `loss`, or `grad.` and a record"
        elif gradient.size == right[name].size == 1:
            given[name] = gradient.reshape(right[name].shape)
        elif gradient.shape != right[name].shape:
            skipped[name] = shape_note(gradient.shape, right[name].shape)
        elif not np.isfinite(np.asarray(gradient, np.float32)).all():
            skipped[name] = "has NaN or infinity"
        else:
            given[name] = gradient
    if not given:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise GemmaError(f"{dump.path}: nothing to compare: {reasons}")
    return given, skipped
