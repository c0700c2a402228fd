"""How far a correct implementation may be off: the error that rounding alone causes, measured record by record.

The reference runs in float64, and again with every intermediate rounded to the dtype in question: once to the nearest
number, and some times up or down at random. The differences are the noise of this dtype, and a record passes when its
error is at most a multiple of it. For float32 the reference in float32 is one more such run: there, rounding inside of
the sums is as large as that of their results.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.oracle.trace import Reference
from gemma_np.scope import Tape

SAFETY_FACTOR = {"float64": 32.0, "float32": 32.0, "bfloat16": 8.0, "float16": 8.0}
"""How many times the measured noise passes. A correct implementation rounds in more places, and sums in another order:
a naive sum of thousands of float32 numbers is some ten times less exact than a BLAS's."""

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
_TRIALS = 4

Records = Mapping[str, np.ndarray]
Expectation = Callable[[Reference, Records], Records]
"""(reference, records) -> what each of these records should be."""


def noise_thresholds(reference: Reference, keys: Iterable[str], dtype: str, expected: Expectation) -> dict[str, float]:
    """Return the relative error that passes for each of the named records, when they are compared with `expected`.

    Raises GemmaError for a dtype without measured noise.
    """
    if dtype not in SAFETY_FACTOR:
        raise GemmaError(f"dtype: {dtype!r}, expected one of {', '.join(SAFETY_FACTOR)}")
    noise = dict.fromkeys(keys, EPS[dtype] / 2)
    for trial in range(_TRIALS + (dtype == "float32")):
        all_rounded = _rounded(reference, dtype, trial)
        rounded = {key: all_rounded[key] for key in noise}
        for key, (error, _) in relative_errors(reference, rounded, expected(reference, rounded)).items():
            noise[key] = max(noise[key], error)
    return {key: SAFETY_FACTOR[dtype] * error for key, error in noise.items()}


def _rounded(reference: Reference, dtype: str, trial: int) -> Records:
    """Return the records of a run whose intermediates are rounded: to the nearest in the first trial, at random in the
    others; the last computes in float32 itself."""
    if trial == _TRIALS:
        weights = {name: weight.astype(np.float32) for name, weight in reference.model.weights.items()}
        model = replace(reference.model, weights=weights)
        return Reference(model, reference.passes).records()
    return reference.records(rounding_tape(dtype, np.random.default_rng(trial) if trial else None))


def rounding_tape(dtype: str, generator: np.random.Generator | None = None) -> Tape:
    """Make a tape that rounds every value to the dtype: to the nearest number or, with a generator, to one of its
    neighbours at random."""
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        if generator is not None:
            value = value * (1 + generator.uniform(-EPS[dtype] / 2, EPS[dtype] / 2, value.shape))
        return value.astype(target).astype(np.float64)

    return tape


def exact(reference: Reference, records: Records) -> Records:
    """Return the reference's own records; an `Expectation` that does not depend on the records compared."""
    return reference.records()


def relative_errors(reference: Reference, records: Records, expected: Records) -> dict[str, tuple[float, tuple]]:
    """Compute the `relative_error` of each record, in the order of execution."""
    return {
        key: relative_error(records[key], expected[key], record_slice.masked)
        for key, record_slice in reference.slices.items()
        if key in records
    }


def relative_error(
    found: np.ndarray, expected: np.ndarray, masked: np.ndarray | None = None
) -> tuple[float, tuple[int, ...]]:
    """Return the largest difference as a fraction of the largest number expected, and its index; masked numbers do not
    count.

    found, expected and masked [...], of one shape
    """
    difference, size = np.abs(np.asarray(found, np.float64) - expected), np.abs(expected)
    if masked is not None:
        difference, size = np.where(masked, 0, difference), np.where(masked, 0, size)
    where = np.unravel_index(int(difference.argmax()), difference.shape)  # argmax takes a NaN for the largest
    return float(difference[where] / max(size.max(), 1e-300)), tuple(int(i) for i in where)
