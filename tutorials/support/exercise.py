"""Exercises, and the check that tells readers what is wrong with their answer."""

import copy
import traceback
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from gemma_np.oracle.mistakes import CATALOGUE
from support.difference import difference

NOT_WRITTEN = "it returns nothing yet: write its body, with a `return` at its end, and run this cell again"
RETURNS_NOTHING = "it returns nothing here: each way through it needs a `return`"

Answer = Callable[..., Any]

Cases = dict[str, tuple[Any, ...]]
"""description of a case -> the arguments of the call."""


class Exercise(NamedTuple):
    """A function that the reader writes."""

    reference: Answer
    cases: Callable[[np.random.Generator], Cases]  # random inputs, the easiest first
    mistakes: Mapping[str, Answer]
    """hint -> an answer with the mistake that the hint is about; it may raise an error."""
    remark: Callable[[Answer, Cases], str | None] | None = None
    """Says what is wrong with the way in which a correct answer computes its results, or returns None."""


class Verdict(NamedTuple):
    """The result of a check; a notebook shows the message."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.message}"


def known(id: str) -> str:
    """Return the hint for a mistake of `gemma_np.oracle.mistakes`: what is wrong, and the fix."""
    [mistake] = (mistake for mistake in CATALOGUE if mistake.id == id)
    instead = mistake.instead if mistake.instead[:2].isupper() else mistake.instead[0].lower() + mistake.instead[1:]
    return f"{instead}; {mistake.fix}"


def check(answer: Answer, exercise: Exercise, seed: int = 0) -> Verdict:
    """Try an answer on random inputs, the easiest first, and say what is wrong with it."""
    cases = exercise.cases(np.random.default_rng(seed))
    passed: list[str] = []
    for case, arguments in cases.items():
        complaint = _complaint(answer, exercise.reference, arguments)
        if complaint == RETURNS_NOTHING and not passed:
            return Verdict(False, NOT_WRITTEN)
        if complaint:
            hint = _hint(answer, exercise, cases, failing=len(passed)) or complaint
            before = f"right for {', '.join(passed)}; " if passed else ""
            return Verdict(False, f"{before}wrong for {case}: {hint}")
        passed.append(case)
    remark = exercise.remark and exercise.remark(answer, cases)
    return Verdict(False, remark) if remark else Verdict(True, f"right: {', '.join(passed)}")


def _complaint(answer: Answer, reference: Answer, arguments: tuple[Any, ...]) -> str | None:
    """Say what is wrong with an answer on one input, or return None. It may raise the same error as the reference."""
    given = copy.deepcopy(arguments)
    found, expected = _outcome(answer, given), _outcome(reference, arguments)
    if isinstance(found, Exception):
        same = repr(found) == repr(expected)
        return None if same else f"raises {type(found).__name__}: {str(found).strip()}{_where(answer, found)}"
    if found is None:
        return RETURNS_NOTHING
    if any(not _equal(now, before) for now, before in zip(given, arguments, strict=True)):
        return "it changes its arguments; compute into new arrays"
    return difference(found, expected)


def _outcome(answer: Answer, arguments: tuple[Any, ...]) -> Any:
    """Return the result of an answer, or the error that it raises."""
    try:
        return answer(*arguments)
    except Exception as error:
        return error


def _where(answer: Answer, error: Exception) -> str:
    """Quote the line of the answer that raised an error, if its source is known."""
    file = answer.__code__.co_filename if hasattr(answer, "__code__") else None
    own = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" in your line `{own[-1]}`" if own and own[-1] else ""


def _equal(now: Any, before: Any) -> bool:
    return not isinstance(now, np.ndarray) or np.array_equal(now, before, equal_nan=now.dtype.kind == "f")


def _hint(answer: Answer, exercise: Exercise, cases: Cases, failing: int) -> str | None:
    """Return the hint of the known mistake that agrees with the answer for the most cases, up to the failing one at
    least. A reader who made two mistakes gets the hint for the first."""
    agreeing = {hint: _agreeing(answer, mistaken, cases) for hint, mistaken in exercise.mistakes.items()}
    best = max(agreeing, key=agreeing.__getitem__, default=None)
    return best if best and agreeing[best] > failing else None


def _agreeing(answer: Answer, mistaken: Answer, cases: Cases) -> int:
    """Return the number of cases, from the first one on, in which two answers return the same."""
    complaints = (_complaint(answer, mistaken, arguments) for arguments in cases.values())
    with np.errstate(all="ignore"):
        return sum(1 for _ in takewhile(lambda complaint: complaint is None, complaints))
