"""Exercises that check themselves: what is asked, on what it is tried, and the mistakes that people make with it."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gemma_np.oracle.mistakes import CATALOGUE

NOT_WRITTEN = "it returns nothing yet: write its body and run this cell again"

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
"""How far an answer may be off, of the largest number expected."""

Cases = dict[str, tuple[Any, ...]]
"""What a case is in words, and the arguments of the call."""


class Exercise(NamedTuple):
    """What is asked for: to write `reference` anew.

    `cases` draws the inputs, from the easiest to the hardest; `mistakes` tells of answers that are wrong, each under
    the hint that helps.
    """

    reference: Callable[..., Any]
    cases: Callable[[np.random.Generator], Cases]
    mistakes: Mapping[str, Callable[..., Any]]


class Verdict(NamedTuple):
    """Whether an answer is right, and what to say about it. A notebook shows the words."""

    right: bool
    words: str

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.words}"


def known(id: str) -> str:
    """The hint for a mistake of the catalogue (`gemma_np.oracle.mistakes`): what was done, and what to do."""
    [mistake] = (mistake for mistake in CATALOGUE if mistake.id == id)
    return f"{mistake.instead}; {mistake.fix}"


def check(answer: Callable[..., Any], exercise: Exercise, seed: int = 0) -> Verdict:
    """Try an answer on inputs drawn anew, the easy ones first, and say in words what is wrong with it."""
    cases = exercise.cases(np.random.default_rng(seed))
    passed: list[str] = []
    for case, arguments in cases.items():
        complaint = _complaint(answer, exercise.reference, arguments)
        if complaint == NOT_WRITTEN:
            return Verdict(False, complaint)
        if complaint:
            hint = _hint(answer, exercise, cases) or complaint
            return Verdict(False, f"{_before(passed)}{case}: {hint}")
        passed.append(case)
    return Verdict(True, f"right: {', '.join(passed)}")


def _before(passed: list[str]) -> str:
    return f"right for {', '.join(passed)}; wrong for " if passed else "wrong for "


def _complaint(answer: Callable[..., Any], reference: Callable[..., Any], arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with an answer on one input, or None."""
    given = copy.deepcopy(arguments)
    try:
        found = answer(*given)
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    if found is None:
        return NOT_WRITTEN
    if any(not _equal(now, before) for now, before in zip(given, arguments, strict=True)):
        return "it changes what it is given; compute into new arrays"
    expected = reference(*arguments)
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            return f"returns {type(found).__name__}, expected a tuple of {len(expected)}"
        complaints = (_difference(*pair) for pair in zip(found, expected, strict=True))
        return next((f"part {n} of what it returns: {said}" for n, said in enumerate(complaints) if said), None)
    return _difference(found, expected)


def _equal(now: Any, before: Any) -> bool:
    return not isinstance(now, np.ndarray) or np.array_equal(now, before, equal_nan=now.dtype.kind == "f")


def _difference(found: Any, expected: Any) -> str | None:
    """How an array, a number or a list differs from what is expected, or None."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if expected.dtype.kind != "f":
        return None if np.array_equal(found, expected) else f"{found.tolist()}, expected {expected.tolist()}"
    if found.dtype.kind not in "fiu":
        return f"dtype {found.dtype}, expected {expected.dtype}"
    if expected.ndim and found.dtype != expected.dtype:
        return f"dtype {found.dtype}, expected {expected.dtype} as of the input"
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return "NaN or infinity, where a number is expected"
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    error = np.where(same, 0.0, np.abs(found - np.where(np.isfinite(expected), expected, 0)))
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    if error.max(initial=0) <= TOLERANCE.get(str(expected.dtype), 1e-9) * (scale or 1):
        return None
    if not expected.ndim:
        return f"{found:.6g}, expected {expected:.6g}"
    place = np.unravel_index(np.argmax(error), error.shape)
    where = f" at [{', '.join(map(str, place))}]" if place else ""
    return f"{found[place]:.6g}{where}, expected {expected[place]:.6g} (the largest error)"


def _hint(answer: Callable[..., Any], exercise: Exercise, cases: Cases) -> str | None:
    """The hint of the known mistake whose results are the answer's own in every case."""
    for hint, mistaken in exercise.mistakes.items():
        if all(_complaint(answer, mistaken, arguments) is None for arguments in cases.values()):
            return hint
    return None
