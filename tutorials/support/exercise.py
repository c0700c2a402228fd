"""Exercises that check themselves: what is asked, on what it is tried, and the mistakes that people make with it."""

import copy
import traceback
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from gemma_np.oracle.mistakes import CATALOGUE

NOT_WRITTEN = "it returns nothing yet: write its body and run this cell again"

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
"""How far an answer may be off, of the largest number expected."""

Answer = Callable[..., Any]

Cases = dict[str, tuple[Any, ...]]
"""What a case is in words, and the arguments of the call."""


class Exercise(NamedTuple):
    """What is asked for: to write `reference` anew.

    `cases` draws the inputs, from the easiest to the hardest; `mistakes` tells of answers that are wrong, each under
    the hint that helps. `remark`, where there is one, looks at how an answer comes to its results, all of which are
    right, and says what is wrong with that, or None.
    """

    reference: Answer
    cases: Callable[[np.random.Generator], Cases]
    mistakes: Mapping[str, Answer]
    remark: Callable[[Answer, Cases], str | None] | None = None


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


def check(answer: Answer, exercise: Exercise, seed: int = 0) -> Verdict:
    """Try an answer on inputs drawn anew, the easy ones first, and say in words what is wrong with it."""
    cases = exercise.cases(np.random.default_rng(seed))
    passed: list[str] = []
    for case, arguments in cases.items():
        complaint = _complaint(answer, exercise.reference, arguments)
        if complaint == NOT_WRITTEN:
            return Verdict(False, complaint)
        if complaint:
            hint = _hint(answer, exercise, cases, failing=len(passed)) or complaint
            return Verdict(False, f"{_before(passed)}{case}: {hint}")
        passed.append(case)
    remark = exercise.remark and exercise.remark(answer, cases)
    return Verdict(False, remark) if remark else Verdict(True, f"right: {', '.join(passed)}")


def _before(passed: list[str]) -> str:
    return f"right for {', '.join(passed)}; wrong for " if passed else "wrong for "


def _complaint(answer: Answer, reference: Answer, arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with an answer on one input, or None."""
    given = copy.deepcopy(arguments)
    try:
        found = answer(*given)
    except Exception as error:
        return f"raises {type(error).__name__}: {str(error).strip()}{_where(answer, error)}"
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


def _where(answer: Answer, error: Exception) -> str:
    """The line of the answer's own code from which an error came; nothing when its source is not found."""
    file = answer.__code__.co_filename if hasattr(answer, "__code__") else None
    own = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" in your line `{own[-1]}`" if own and own[-1] else ""


def _equal(now: Any, before: Any) -> bool:
    return not isinstance(now, np.ndarray) or np.array_equal(now, before, equal_nan=now.dtype.kind == "f")


def _difference(found: Any, expected: Any) -> str | None:
    """How an array, a number or a list differs from what is expected, or None."""
    if isinstance(expected, np.ndarray) and isinstance(found, list | tuple):
        return f"returns a {type(found).__name__}, expected an array"
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
        return "{}, expected {}".format(*_told_apart(found, expected))
    place = np.unravel_index(np.argmax(error), error.shape)
    number, right = _told_apart(found[place], expected[place])
    return f"{number} at [{', '.join(map(str, place))}], expected {right} (the largest error)"


def _told_apart(found: Any, expected: Any) -> tuple[str, str]:
    """Two numbers with 6 digits, or with as many more as it takes to see that they differ."""
    pairs = [(f"{found:.{digits}g}", f"{expected:.{digits}g}") for digits in range(6, 18)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])


def _hint(answer: Answer, exercise: Exercise, cases: Cases, failing: int) -> str | None:
    """The hint of the known mistake whose results are the answer's own in all cases, or else for the longest, at least
    up to the failing one: whoever has made two mistakes hears of the first."""
    agreeing = {hint: _agreeing(answer, mistaken, cases) for hint, mistaken in exercise.mistakes.items()}
    best = max(agreeing, key=agreeing.__getitem__, default=None)
    return best if best and agreeing[best] > failing else None


def _agreeing(answer: Answer, mistaken: Answer, cases: Cases) -> int:
    """In how many cases, from the first on, two answers return the same."""
    complaints = (_complaint(answer, mistaken, arguments) for arguments in cases.values())
    with np.errstate(all="ignore"):
        return sum(1 for _ in takewhile(lambda complaint: complaint is None, complaints))
