"""The exercises on finding a bug: the error of a record, the first wrong one, and the name of a mistake."""

from collections.abc import Callable, Sequence

import numpy as np

from gemma_np.model.rms_norm import rms_norm
from gemma_np.oracle.noise import relative_error
from support.exercise import Cases, Exercise

Errors = Callable[[np.ndarray, np.ndarray], float]


def _error_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    expected, scores = draw((4, 6)), draw((4, 6))
    none, future = np.zeros((4, 6), bool), np.triu(np.ones((4, 6), bool), 1)
    return {
        "one number": (np.array([1.5]), np.array([2.0]), np.zeros(1, bool)),
        "a vector": (np.array([1.0, -3.5, 2.0]), np.array([1.0, -4.0, 0.5]), np.zeros(3, bool)),
        "a matrix": (expected + 0.1 * draw((4, 6)), expected, none),
        "a zero among the expected": (np.array([0.1, 5.0]), np.array([0.0, 5.0]), np.zeros(2, bool)),
        "masked scores": (scores + 0.1 * draw((4, 6)), np.where(future, 100 * scores, scores), future),
        "masked scores of minus infinity": (np.where(future, -np.inf, scores + 0.1), scores, future),
    }


def _error(found: np.ndarray, expected: np.ndarray, masked: np.ndarray) -> float:
    return relative_error(found, expected, masked)[0]


def _sizes(found: np.ndarray, expected: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return differences and sizes, zero where masked."""
    return np.where(masked, 0, np.abs(found - expected)), np.where(masked, 0, np.abs(expected))


def _number_by_number(found: np.ndarray, expected: np.ndarray, masked: np.ndarray) -> float:
    difference, size = _sizes(found, expected, masked)
    return float((difference / np.maximum(size, 1e-12)).max())


def _by_the_found(found: np.ndarray, expected: np.ndarray, masked: np.ndarray) -> float:
    return float(_sizes(found, expected, masked)[0].max() / np.where(masked, 0, np.abs(found)).max())


def _by_the_mean(found: np.ndarray, expected: np.ndarray, masked: np.ndarray) -> float:
    difference, size = _sizes(found, expected, masked)
    return float(difference.mean() / size.mean())


def _by_the_largest(found: np.ndarray, expected: np.ndarray, masked: np.ndarray) -> float:
    return float(_sizes(found, expected, masked)[0].max() / np.where(masked, -np.inf, expected).max())


RELATIVE_ERROR = Exercise(
    reference=_error,
    cases=_error_cases,
    mistakes={
        "each difference is divided by its own number, and a number near zero makes it huge; "
        "divide the largest difference by the largest number": _number_by_number,
        "it is divided by the largest number found; divide by the largest expected": _by_the_found,
        "means are compared, which hide a single wrong number; use the maximum": _by_the_mean,
        "it is divided by the largest signed number; use np.abs": _by_the_largest,
        "the difference is not divided; divide it by the largest number expected": lambda found, expected, masked: (
            float(_sizes(found, expected, masked)[0].max())
        ),
        "masked numbers are counted; exclude them": lambda found, expected, masked: _error(
            found, expected, np.zeros_like(masked)
        ),
        "masked numbers are excluded from the differences, but not from the sizes": lambda found, expected, masked: (
            float(_sizes(found, expected, masked)[0].max() / np.abs(expected).max())
        ),
    },
)


def _first_cases(generator: np.random.Generator) -> Cases:
    ours = [generator.standard_normal((3, 4)) for _ in range(6)]

    def dump(*wrong: tuple[int, float]) -> list[np.ndarray]:
        """Return the records with errors of these sizes in these places."""
        theirs = [record.copy() for record in ours]
        for number, error in wrong:
            record = theirs[number]
            record.flat[np.abs(record).argmin()] += error * np.abs(record).max()
        return theirs

    same = [1e-3] * len(ours)
    large = [1000 * record for record in ours]
    return {
        "one wrong record": (dump((3, 0.1)), ours, same),
        "a wrong record and those behind it": (dump((2, 0.1), (4, 0.5), (5, 0.2)), ours, same),
        "nothing wrong": (dump((1, 1e-5)), ours, same),
        "a threshold for each record": (dump((0, 0.05), (1, 0.05), (3, 0.05)), ours, [0.1, 0.1, 0.1, 1e-3, 1e-3, 1e-3]),
        "large numbers": ([1000 * record for record in dump((0, 1e-5), (4, 0.1))], large, same),
        "NaN": (dump((2, np.nan), (4, 0.1)), ours, same),
    }


def _largest_share(found: np.ndarray, expected: np.ndarray) -> float:
    return _error(found, expected, np.zeros(expected.shape, bool))


def _wrong(
    theirs: Sequence[np.ndarray],
    ours: Sequence[np.ndarray],
    thresholds: Sequence[float],
    error: Errors = _largest_share,
) -> list[int]:
    """Return the indices of all wrong records."""
    records = enumerate(zip(theirs, ours, thresholds, strict=True))
    return [number for number, (found, expected, threshold) in records if not error(found, expected) <= threshold]


def _first(wrong: Sequence[int], none: int = -1) -> int:
    return wrong[0] if wrong else none


def _largest(theirs: Sequence[np.ndarray], ours: Sequence[np.ndarray], thresholds: Sequence[float]) -> int:
    wrong = _wrong(theirs, ours, thresholds)
    errors = [_largest_share(found, expected) for found, expected in zip(theirs, ours, strict=True)]
    return int(np.argmax(errors)) if wrong else -1


def _past_nan(found: np.ndarray, expected: np.ndarray) -> float:
    error = _largest_share(found, expected)
    return 0.0 if np.isnan(error) else error


FIRST_WRONG = Exercise(
    reference=lambda theirs, ours, thresholds: _first(_wrong(theirs, ours, thresholds)),
    cases=_first_cases,
    mistakes={
        "it is the record with the largest error, which may be inherited; take the first wrong one": _largest,
        "it is the last wrong record; take the first": lambda theirs, ours, thresholds: _first(
            _wrong(theirs, ours, thresholds)[::-1]
        ),
        "when nothing is wrong it returns 0, which is the first record; return -1": (
            lambda theirs, ours, thresholds: _first(_wrong(theirs, ours, thresholds), none=0)
        ),
        "NaN passes, since no comparison with NaN is true; ask `not error <= threshold`": (
            lambda theirs, ours, thresholds: _first(_wrong(theirs, ours, thresholds, _past_nan))
        ),
        "the difference is not divided by the largest number expected": lambda theirs, ours, thresholds: _first(
            _wrong(theirs, ours, thresholds, lambda found, expected: float(np.abs(found - expected).max()))
        ),
        "all records are compared with the smallest threshold; each has its own": lambda theirs, ours, thresholds: (
            _first(_wrong(theirs, ours, [min(thresholds)] * len(thresholds)))
        ),
        "it tests for equality; a correct program also rounds": lambda theirs, ours, thresholds: _first(
            _wrong(theirs, ours, [0.0] * len(thresholds))
        ),
    },
)

EPS = 1e-6


def _mistake_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    x, weight = draw((3, 6)), draw(6)
    sure = rms_norm(x, weight, EPS)
    return {
        "a right norm": (sure, x, weight),
        "a norm times w": (rms_norm(x, weight - 1, EPS), x, weight),
        "a norm times 2 + w": (rms_norm(x, weight + 1, EPS), x, weight),
        "a norm without a weight": (rms_norm(x, 0 * weight, EPS), x, weight),
        "a norm that is right in its first token alone": (np.vstack([sure[:1], 2 * sure[1:]]), x, weight),
        "a norm with the rounding of float32": (sure.astype(np.float32).astype(np.float64), x, weight),
        "a norm with a wrong sign": (-sure, x, weight),
    }


def _named(
    found: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    order: Sequence[int] = (0, 1, 2),
    rtol: float = 1e-4,
    atol: float = 1e-8,
) -> int:
    """Return the number of the first weight that reproduces `found`, or 3."""
    tried = (weight, weight - 1, weight + 1)
    return next(
        (n for n, w in zip(order, tried, strict=True) if np.allclose(found, rms_norm(x, w, EPS), rtol, atol)), 3
    )


def _never_else(found: np.ndarray, x: np.ndarray, weight: np.ndarray) -> int:
    """Return the nearest of the three."""
    return int(np.argmin([np.abs(found - rms_norm(x, weight + more, EPS)).max() for more in (0, -1, 1)]))


WHICH_MISTAKE = Exercise(
    reference=_named,
    cases=_mistake_cases,
    mistakes={
        "1 and 2 are swapped": lambda found, x, weight: _named(found, x, weight, order=(0, 2, 1)),
        "it returns the nearest even when none of the three explains the numbers; return 3 then": _never_else,
        "it looks only at the first token": lambda found, x, weight: _named(found[:1], x[:1], weight),
        "it tests for equality; the rounding of float32 is no mistake": lambda found, x, weight: _named(
            found, x, weight, rtol=0, atol=0
        ),
        "it compares sizes and misses a wrong sign": lambda found, x, weight: next(
            (
                n
                for n, more in enumerate((0, -1, 1))
                if np.allclose(np.abs(found), np.abs(rms_norm(x, weight + more, EPS)), 1e-4)
            ),
            3,
        ),
        "the correct norm is not tried; return 0 when nothing is wrong": lambda found, x, weight: (
            _named(found, x, weight) or 3
        ),
    },
)
