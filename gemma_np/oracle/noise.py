"""Measure, record by record, the error that rounding alone may cause in a correct implementation.

The reference runs in float64, and again with every intermediate rounded to the dtype in question: once to the nearest
number, and a few times up or down at random. The differences are the noise of this dtype; a record passes when its
error is at most a multiple of the noise. For float32, a run of the reference in float32 is added, because rounding
inside the sums is then as large as rounding of their results.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.oracle.trace import Reference
from gemma_np.progress import progress_bar
from gemma_np.scope import Tape, no_tape

SAFETY_FACTOR = {"float64": 32.0, "float32": 32.0, "bfloat16": 8.0, "float16": 8.0}
"""Thresholds in multiples of the measured noise. Correct implementations round in more places and sum in other orders:
a naive sum of thousands of float32 numbers is about ten times less accurate than that of a BLAS."""

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
_TRIALS = 4

Records = Mapping[str, np.ndarray]
Expectation = Callable[[Reference, Records], Records]
"""(reference, records) -> what each of these records should be."""


def noise_thresholds(reference: Reference, keys: Iterable[str], dtype: str, expected: Expectation) -> dict[str, float]:
    """Return the largest relative error that passes, for each of the named records compared with `expected`.

    Raises GemmaError for a dtype without measured noise.
    """
    keys = list(keys)

    def errors(model: Gemma, tape: Tape) -> dict[str, float]:
        all_rounded = reference.with_model(model).records(tape)
        rounded = {key: all_rounded[key] for key in keys}
        found = relative_errors(reference, rounded, expected(reference, rounded))
        return {key: error for key, (error, _) in found.items()}

    return passing_errors(reference.model, keys, dtype, errors)


def passing_errors(
    model: Gemma, keys: Iterable[str], dtype: str, errors: Callable[[Gemma, Tape], Mapping[str, float]]
) -> dict[str, float]:
    """Return the largest error that passes for each key: a multiple of that of the worst rounded run.

    errors: (the model, in float64 or in float32; the tape that rounds every value of a run) -> the error of each key.

    Raises GemmaError for a dtype without measured noise.
    """
    if dtype not in SAFETY_FACTOR:
        raise GemmaError(f"dtype: {dtype!r}, expected one of {', '.join(SAFETY_FACTOR)}")
    generators = [None, *(np.random.default_rng(trial) for trial in range(1, _TRIALS))]
    runs = [(model, rounding_tape(dtype, generator)) for generator in generators]
    if dtype == "float32":
        weights = {name: np.asarray(weight, np.float32) for name, weight in model.weights.items()}
        runs.append((replace(model, weights=weights), no_tape))
    noise = dict.fromkeys(keys, EPS[dtype] / 2)
    for run in progress_bar(runs, desc=f"rounding to {dtype}", unit="runs"):
        for key, error in errors(*run).items():
            noise[key] = max(noise[key], error)
    return {key: SAFETY_FACTOR[dtype] * error for key, error in noise.items()}


def rounding_tape(dtype: str, generator: np.random.Generator | None = None) -> Tape:
    """Return a tape that rounds every value to the dtype: to the nearest number or, with a generator, up or down at
    random."""
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        if generator is not None:
            value = value * (1 + generator.uniform(-EPS[dtype] / 2, EPS[dtype] / 2, value.shape))
        return value.astype(target).astype(np.float64)

    return tape


def relative_errors(reference: Reference, records: Records, expected: Records) -> dict[str, tuple[float, tuple]]:
    """Compute the `relative_error` of each record, in the order of execution."""
    return {
        key: relative_error(records[key], expected[key], record_slice.masked)
        for key, record_slice in reference.slices.items()
        if key in records
    }


def excesses(
    reference: Reference, records: Records, expected: Records, thresholds: Mapping[str, float]
) -> dict[str, float]:
    """Return the error of each record in units of its threshold, in the order of execution; infinite for NaN."""
    errors = relative_errors(reference, records, expected)
    return {key: np.inf if np.isnan(error) else error / thresholds[key] for key, (error, _) in errors.items()}


def relative_error(
    found: np.ndarray, expected: np.ndarray, masked: np.ndarray | None = None
) -> tuple[float, tuple[int, ...]]:
    """Return the largest difference, as a fraction of the largest expected number, and its index. Skip masked numbers.

    found, expected and masked [...], all of the same shape
    """
    difference, size = np.abs(np.asarray(found, np.float64) - expected), np.abs(expected)
    if masked is not None:
        difference, size = np.where(masked, 0, difference), np.where(masked, 0, size)
    where = np.unravel_index(int(difference.argmax()), difference.shape)  # argmax treats NaN as the largest
    return float(difference[where] / max(size.max(), 1e-300)), tuple(int(i) for i in where)
