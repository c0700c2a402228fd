"""Find the mistake in a dump: which entry of the catalogue, or which two, reproduce its numbers.

Each operation of the dump is first compared with the reference on the dump's own inputs. Then each mistake that can
explain the wrong records is injected into the reference; the right one makes all records agree.
"""

import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.comparison import of_the_right_shape
from gemma_np.oracle.isolation import isolated
from gemma_np.oracle.mistakes import CATALOGUE, Mistake, inject_mistakes
from gemma_np.oracle.noise import Records, noise_thresholds, relative_errors
from gemma_np.oracle.signatures import signatures
from gemma_np.oracle.trace import Reference

_NEARLY = 30
"""An explanation whose error is below this many thresholds is tried again with the noise of the mistaken model."""

_MOST_LINES = 3


class Explanation(NamedTuple):
    """One mistake, or two together, injected into the reference."""

    mistakes: tuple[Mistake, ...]
    error: float  # the largest remaining error, in units of its threshold
    num_wrong: int  # the number of records that are still wrong

    @property
    def explains(self) -> bool:
        """Return whether the mistakes explain all records."""
        return self.num_wrong == 0


class Diagnosis(NamedTuple):
    """The result of `diagnose`."""

    wrong: dict[str, float]  # records that are wrong given their inputs: error, in units of its threshold
    explanations: list[Explanation]  # best first; empty when nothing is wrong
    signatures: list[str]  # what the numbers show by themselves

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Return the mistakes that explain the dump; empty when no known mistake does."""
        return self.explanations[0].mistakes if self.explanations and self.explanations[0].explains else ()


def diagnose(reference: Reference, theirs: Records, dtype: str) -> Diagnosis:
    """Explain a dump by one mistake of the catalogue, or by two if no single one explains it.

    reference: in float64; theirs: some or all records, as `gemma_np.oracle.dump.align_dump` returns them; dtype:
    that of their computation.
    """
    from tqdm import tqdm

    theirs = of_the_right_shape(reference, theirs)
    thresholds = noise_thresholds(reference, theirs, dtype, isolated)
    wrong = {key: excess for key, excess in _excesses(reference, theirs, thresholds).items() if excess > 1}
    if not wrong:
        return Diagnosis({}, [], [])
    lines = signatures(reference, theirs)
    candidates = [mistake for mistake in CATALOGUE if _can_explain(mistake, reference, wrong, theirs)]
    singles = [
        _explanation((mistake,), reference, theirs, thresholds, dtype)
        for mistake in tqdm(candidates, desc="one mistake", leave=False, disable=None)
    ]
    singles.sort(key=_rank)
    if singles and singles[0].explains:
        return Diagnosis(wrong, singles, lines)
    pairs = [
        _explanation(pair, reference, theirs, thresholds, dtype)
        for pair in tqdm(list(permutations(candidates, 2)), desc="two mistakes", leave=False, disable=None)
    ]
    return Diagnosis(wrong, sorted(singles + pairs, key=_rank), lines)


def _excesses(reference: Reference, theirs: Records, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return the isolated error of each record, in units of its threshold."""
    with np.errstate(all="ignore"):  # a mistake may divide by zero
        errors = relative_errors(reference, theirs, isolated(reference, theirs))
    return {key: error / thresholds[key] if np.isfinite(error) else np.inf for key, (error, _) in errors.items()}


def _can_explain(mistake: Mistake, reference: Reference, wrong: Mapping[str, float], theirs: Records) -> bool:
    """Return whether a mistake applies to the model and shows in a wrong record, or only in records not in the dump."""
    if reference.config.model_type not in mistake.models:
        return False
    if any(fnmatchcase(key, pattern) for key in wrong for pattern in mistake.shows):
        return True
    return not any(fnmatchcase(key, pattern) for key in theirs for pattern in mistake.shows)


def _explanation(
    mistakes: tuple[Mistake, ...], reference: Reference, theirs: Records, thresholds: Mapping[str, float], dtype: str
) -> Explanation:
    with inject_mistakes(mistakes, reference.config, reference.lengths):
        excesses = _excesses(reference, theirs, thresholds)
        if 1 < max(excesses.values()) < _NEARLY:  # a wrong model may be noisier than the right one
            excesses = _excesses(reference, theirs, noise_thresholds(reference, theirs, dtype, isolated))
    return Explanation(mistakes, max(excesses.values()), sum(excess > 1 for excess in excesses.values()))


def _rank(explanation: Explanation) -> tuple[int, float]:
    return explanation.num_wrong, explanation.error


def source_of_right(mistake: Mistake) -> str:
    """Return the file, line and name of the function that does it right."""
    right = inspect.unwrap(mistake.right)
    _, first_line = inspect.getsourcelines(right)
    file = Path(inspect.getsourcefile(right) or "")
    return f"gemma_np/{file.relative_to(Path(__file__).parent.parent)}:{first_line} ({mistake.right.__name__})"


def describe_diagnosis(diagnosis: Diagnosis) -> list[str]:
    """Return the lines of a report: the wrong records, the mistakes that explain them, and how to fix them."""
    if not diagnosis.wrong:
        return ["Nothing is wrong: every record equals what the reference computes from its inputs, up to rounding."]
    first_wrong = list(diagnosis.wrong.items())[:_MOST_LINES]
    lines = [f"{len(diagnosis.wrong)} records are wrong given their inputs; the first ones are:"]
    lines += [f"  {key}: {excess:.3g} times the error that rounding explains" for key, excess in first_wrong]
    if diagnosis.signatures:
        lines += ["The numbers themselves show:", *(f"  {line}" for line in diagnosis.signatures[:_MOST_LINES])]
    if not diagnosis.mistakes:
        lines.append(f"None of the known mistakes explains the dump. Check the code that computes {first_wrong[0][0]}.")
        return lines
    for mistake in diagnosis.mistakes:
        lines += [f"{mistake.id}: {mistake.instead}", f"  right: {source_of_right(mistake)}", f"  fix: {mistake.fix}"]
    before, after = max(diagnosis.wrong.values()), diagnosis.explanations[0].error
    lines.append(f"  error without and with it, in units of what rounding explains: {before:.3g}, {after:.3g}")
    others = [explanation.mistakes for explanation in diagnosis.explanations[1:] if explanation.explains]
    if others:
        names = "; ".join(" and ".join(mistake.id for mistake in mistakes) for mistakes in others)
        lines.append(f"  other explanations: {names}")
    return lines
