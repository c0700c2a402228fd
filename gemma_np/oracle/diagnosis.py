"""From a dump to the name of its mistake: which entry of the catalogue, or which two, would have given these numbers.

Every operation is first held against the reference on its own inputs. Each mistake that can show in what is wrong is
then planted in the reference: if that clears what was wrong, and breaks nothing, it is the one.
"""

import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.comparison import of_the_right_shape
from gemma_np.oracle.isolation import isolated
from gemma_np.oracle.mistakes import CATALOGUE, Mistake, inject_mistakes
from gemma_np.oracle.noise import Records, limits, relative_errors
from gemma_np.oracle.signatures import signatures
from gemma_np.oracle.trace import Reference

_NEARLY = 30
"""An explanation whose error is less is looked at again, in units of the noise that the mistaken model has."""


class Explanation(NamedTuple):
    """One mistake, or two together, planted in the reference."""

    mistakes: tuple[Mistake, ...]
    error: float  # the largest error that is left, in units of what passes
    left: int  # how many records are still wrong

    @property
    def explains(self) -> bool:
        """Whether nothing is left to explain."""
        return self.left == 0


class Diagnosis(NamedTuple):
    """What was found."""

    wrong: dict[str, float]  # records that are wrong given their inputs: error, in units of what passes
    explanations: list[Explanation]  # the best first; none when nothing is wrong
    signatures: list[str]  # what the numbers say by themselves

    @property
    def found(self) -> tuple[Mistake, ...]:
        """The mistakes that explain the dump; empty when none of the known ones do."""
        return self.explanations[0].mistakes if self.explanations and self.explanations[0].explains else ()


def diagnose(reference: Reference, theirs: Records, dtype: str) -> Diagnosis:
    """Explain a dump by the catalogue.

    theirs: records as `gemma_np.oracle.dump.align_dump` returns them, all or some; dtype: what they were computed in; the
    reference in float64. First single mistakes are tried, and pairs if none of them is enough.
    """
    from tqdm import tqdm

    theirs = of_the_right_shape(reference, theirs)
    allowed = limits(reference, theirs, dtype, isolated)
    excess = _excess(reference, theirs, allowed)
    wrong = {key: error for key, error in excess.items() if error > 1}
    if not wrong:
        return Diagnosis({}, [], [])
    told = signatures(reference, theirs)
    candidates = [mistake for mistake in CATALOGUE if _can_explain(mistake, reference, wrong, theirs)]
    singles = [
        _explanation((mistake,), reference, theirs, allowed, dtype)
        for mistake in tqdm(candidates, desc="one mistake", leave=False, disable=None)
    ]
    singles.sort(key=_rank)
    if singles and singles[0].explains:
        return Diagnosis(wrong, singles, told)
    pairs = [
        _explanation(pair, reference, theirs, allowed, dtype)
        for pair in tqdm(list(permutations(candidates, 2)), desc="two mistakes", leave=False, disable=None)
    ]
    return Diagnosis(wrong, sorted(singles + pairs, key=_rank), told)


def _excess(reference: Reference, theirs: Records, allowed: Mapping[str, float]) -> dict[str, float]:
    """Each record's isolated error, in units of what passes."""
    with np.errstate(all="ignore"):  # a mistake may well divide by zero
        errors = relative_errors(reference, theirs, isolated(reference, theirs))
    return {key: error / allowed[key] if np.isfinite(error) else np.inf for key, (error, _) in errors.items()}


def _can_explain(mistake: Mistake, reference: Reference, wrong: Mapping[str, float], theirs: Records) -> bool:
    """Whether the mistake exists in such a model, and shows in something that is wrong, or in nothing that is there."""
    if reference.config.model_type not in mistake.models:
        return False
    if any(fnmatchcase(key, pattern) for key in wrong for pattern in mistake.shows):
        return True
    return not any(fnmatchcase(key, pattern) for key in theirs for pattern in mistake.shows)


def _explanation(
    mistakes: tuple[Mistake, ...], reference: Reference, theirs: Records, allowed: Mapping[str, float], dtype: str
) -> Explanation:
    with inject_mistakes(mistakes, reference.config, reference.lengths):
        excess = _excess(reference, theirs, allowed)
        if 1 < max(excess.values()) < _NEARLY:  # a wrong model may be noisier than the right one
            excess = _excess(reference, theirs, limits(reference, theirs, dtype, isolated))
    return Explanation(mistakes, max(excess.values()), sum(error > 1 for error in excess.values()))


def _rank(explanation: Explanation) -> tuple[int, float]:
    return explanation.left, explanation.error


def place_of(mistake: Mistake) -> str:
    """File and line of the function that has it right."""
    right = inspect.unwrap(mistake.right)
    _, first = inspect.getsourcelines(right)
    file = Path(inspect.getsourcefile(right) or "")
    return f"gemma_np/{file.relative_to(Path(__file__).parent.parent)}:{first} ({mistake.right.__name__})"


def describe(diagnosis: Diagnosis, most: int = 3) -> Sequence[str]:
    """The diagnosis in lines."""
    if not diagnosis.wrong:
        return ["Nothing is wrong: every record is what the reference makes of its inputs, up to rounding."]
    lines = [f"{len(diagnosis.wrong)} records are wrong given their inputs, the first of them:"]
    for key, error in list(diagnosis.wrong.items())[:most]:
        lines.append(f"  {key}: {error:.3g} times what rounding explains")
    if diagnosis.signatures:
        lines += ["What the numbers say by themselves:", *(f"  {line}" for line in diagnosis.signatures[:most])]
    if not diagnosis.found:
        first = next(iter(diagnosis.wrong))
        lines.append(f"None of the known mistakes explains the dump. Look at what computes {first}.")
        return lines
    before = max(diagnosis.wrong.values())
    for mistake in diagnosis.found:
        lines += [
            f"{mistake.id}: {mistake.instead}",
            f"  right: {place_of(mistake)}",
            f"  to mend it: {mistake.fix}",
        ]
    lines.append(
        f"  error before and after, in units of what rounding explains: {before:.3g}, "
        f"{diagnosis.explanations[0].error:.3g}"
    )
    others = [e for e in diagnosis.explanations[1:] if e.explains]
    if others:
        names = "; ".join(" and ".join(m.id for m in e.mistakes) for e in others)
        lines.append(f"  the same numbers would come from: {names}")
    return lines
