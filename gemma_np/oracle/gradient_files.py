"""Write the gradients of a training step to a file, and compare or diagnose a file of another implementation's.

The loss is the mean of -log P of every next token, in nats. Texts of different lengths are one batch, padded on the
right; padding does not count.
"""

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.safetensors_file import write_tensors
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.transformer import validate_token_ids
from gemma_np.oracle.comparison import Row, rows_of
from gemma_np.oracle.dump import Dump, read_dump, shape_note
from gemma_np.oracle.files import against_trace, load_reference
from gemma_np.oracle.gradient_diagnosis import GradientDiagnosis, diagnose_gradients
from gemma_np.oracle.gradients import Step, batch_of, gradient_noise, gradients
from gemma_np.oracle.noise import relative_error
from gemma_np.training.trainer import check_trainable

Texts = Sequence[Sequence[int]]
"""The token ids of each text of a batch."""


def step_of(model: Gemma, texts: Texts) -> Step:
    """Return the training step on a batch of texts.

    Raises GemmaError for quantized weights, invalid ids, and a text of one token.
    """
    check_trainable(model.weights)
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
    step = _step(model or ours.model, [ours, dump])
    given, skipped = _matched(step, dump)
    right, limits = gradients(step, given), gradient_noise(step, given, dtype or dump.dtype)
    errors = {name: relative_error(given[name], right[name]) for name in right if name in given}
    return against_trace(rows_of(right, errors, limits, skipped), ours)


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
    step = _step(model or dump.model, [dump], texts)
    given, skipped = _matched(step, dump)
    return diagnose_gradients(step, given, dtype or dump.dtype)._replace(skipped=skipped)


def _step(model_name: str | Path | None, dumps: Sequence[Dump], texts: Texts | None = None) -> Step:
    """Return the step of the reference on the texts of the dumps, which must agree."""
    model = load_reference(model_name, dumps)
    expected = None if texts is None else [list(ids) for ids in texts]
    for dump in dumps:
        expected = expected or dump.texts
        if dump.texts is not None and dump.texts != expected:
            raise GemmaError(f"{dump.path}: gradients of other texts, expected {expected}")
    if expected is None:
        raise GemmaError(f"{dumps[-1].path}: names no texts, expected --ids for each, or `texts` in the metadata")
    return step_of(model, expected)


def _matched(step: Step, dump: Dump) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return their gradients that can be compared, and why others cannot."""
    shapes = step.shapes
    given, skipped = dict[str, np.ndarray](), dict[str, str]()
    for name, gradient in dump.records.items():
        if name not in shapes:
            skipped[name] = "unknown, expected the name of a weight, `loss`, or `grad.` and a record"
        elif gradient.size == math.prod(shapes[name]) == 1:
            given[name] = gradient.reshape(shapes[name])
        elif gradient.shape != shapes[name]:
            skipped[name] = shape_note(gradient.shape, shapes[name])
        elif not np.isfinite(np.asarray(gradient, np.float32)).all():
            skipped[name] = "has NaN or infinity"
        else:
            given[name] = gradient
    if not given:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise GemmaError(f"{dump.path}: nothing to compare: {reasons}")
    return given, skipped
