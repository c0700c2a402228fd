"""How far a correct implementation may be off: what rounding alone does, measured record by record.

The reference is run in float64, and again with every intermediate rounded to the dtype in question: once to the
nearest number, and some times up or down at random. What comes out differs by the noise that an implementation in this
dtype is entitled to; a verdict is a multiple of it. For float32 the reference in float32 is one more such run: there,
the rounding inside of the sums is as large as that of their results.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from gemma_np.oracle.trace import Reference
from gemma_np.scope import Tape

ENTITLED = {"float64": 32.0, "float32": 32.0, "bfloat16": 8.0, "float16": 8.0}
"""Times the measured noise that passes. A correct implementation rounds in more places, and sums in another order: a
naive sum of thousands of float32 numbers is some ten times less exact than a BLAS's."""

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
_TRIALS = 4

Records = Mapping[str, np.ndarray]
Expectation = Callable[[Reference, Records], Records]
"""(reference, records) -> what each of these records should be."""


def limits(reference: Reference, keys: Iterable[str], dtype: str, expected: Expectation) -> dict[str, float]:
    """The relative error that passes for each of the named records, when they are held against `expected`."""
    largest = dict.fromkeys(keys, EPS[dtype] / 2)
    for trial in range(_TRIALS + (dtype == "float32")):
        rounded = _rounded(reference, dtype, trial)
        found = {key: rounded[key] for key in largest}
        for key, (error, _) in relative_errors(reference, found, expected(reference, found)).items():
            largest[key] = max(largest[key], error)
    return {key: ENTITLED[dtype] * error for key, error in largest.items()}


def _rounded(reference: Reference, dtype: str, trial: int) -> Records:
    """The records of a run whose intermediates are rounded; the first is to the nearest, the last in float32 itself."""
    if trial == _TRIALS:
        weights = {name: weight.astype(np.float32) for name, weight in reference.model.weights.items()}
        model = replace(reference.model, weights=weights)
        return Reference(model, reference.passes).records()
    return reference.records(rounding_tape(dtype, np.random.default_rng(trial) if trial else None))


def rounding_tape(dtype: str, generator: np.random.Generator | None = None) -> Tape:
    """The tape that rounds every value to the dtype, to the nearest number or, with a generator, at random to one of
    its neighbours, and goes on with it."""
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        if generator is not None:
            value = value * (1 + generator.uniform(-EPS[dtype] / 2, EPS[dtype] / 2, value.shape))
        return value.astype(target).astype(np.float64)

    return tape


def exact(reference: Reference, records: Records) -> Records:
    """The expectation that does not look at what was found: the reference's own records."""
    return reference.records()


def relative_errors(reference: Reference, found: Records, expected: Records) -> dict[str, tuple[float, tuple]]:
    """Of each record found, the largest difference as a part of the largest number expected, and where it is."""
    return {
        key: relative_error(found[key], expected[key], place.masked)
        for key, place in reference.slices.items()
        if key in found
    }


def relative_error(
    found: np.ndarray, expected: np.ndarray, masked: np.ndarray | None = None
) -> tuple[float, tuple[int, ...]]:
    """The largest difference as a part of the largest number expected, and where it is; `masked` ones do not count.

    found, expected and masked [...], of one shape
    """
    difference, size = np.abs(np.asarray(found, np.float64) - expected), np.abs(expected)
    if masked is not None:  # scores that say nothing
        difference, size = np.where(masked, 0, difference), np.where(masked, 0, size)
    where = np.unravel_index(int(difference.argmax()), difference.shape)  # argmax takes a NaN for the largest
    return float(difference[where] / max(size.max(), 1e-300)), tuple(int(i) for i in where)
