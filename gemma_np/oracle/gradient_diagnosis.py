"""Find what a training step of another implementation computes in place of the right gradients.

Known mistakes are planted in the reference's own step, alone and in pairs, and a common factor is solved. What makes
all gradients pass is a cause; how a single gradient relates to the right one is a clue.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import combinations
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.gradients import Gradients, Step, gradient_errors, gradient_noise, gradients
from gemma_np.oracle.mistakes import Mistake, inject_mistakes
from gemma_np.oracle.mistakes.training import TRAINING_CATALOGUE

_CLOSE = 1e-3  # of a number that is named; factors are solved more exactly than this


class GradientDiagnosis(NamedTuple):
    """What is wrong with the gradients of a step, and why."""

    compared: int
    excess: dict[str, float]  # error / largest error that passes, of each wrong one, in the order of the backward pass
    causes: list[str]  # each explains everything; several if they cannot be told apart
    clues: dict[str, str]  # how single gradients relate to the right ones
    blind_spots: list[str]  # mistakes that these gradients could not have shown
    skipped: Mapping[str, str] = MappingProxyType({})  # gradients that could not be compared, and why


def diagnose_gradients(step: Step, theirs: Gradients, dtype: str) -> GradientDiagnosis:
    """Compare their gradients of a step of the reference, and look for the cause of what differs.

    dtype: that of their computation. The known mistakes are those of `TRAINING_CATALOGUE`; at most some 200 steps run.
    """
    limits = gradient_noise(step, theirs, dtype)
    excess = _excess(gradient_errors(step, theirs), limits)
    known = [mistake for mistake in TRAINING_CATALOGUE if step.model.config.model_type in mistake.models]
    blind = [mistake.instead for mistake in known if not _excess(_shown(step, theirs, mistake), limits)]
    if not excess:
        return GradientDiagnosis(len(limits), excess, [], {}, blind)

    def explains(mistakes: Sequence[Mistake]) -> bool:
        with _planted(step, mistakes):
            return not _excess(gradient_errors(step, theirs), limits)

    causes = _factors(step, theirs, limits)
    causes += [_cause(mistake) for mistake in known if explains([mistake])]
    if not causes:
        causes = [" And: ".join(map(_cause, pair)) for pair in combinations(known, 2) if explains(pair)]
    return GradientDiagnosis(len(limits), excess, causes, {} if causes else _clues(step, theirs, excess), blind)


def _cause(mistake: Mistake) -> str:
    return f"{mistake.instead}. To fix it: {mistake.fix}"


def _planted(step: Step, mistakes: Sequence[Mistake]) -> AbstractContextManager[None]:
    return inject_mistakes(mistakes, step.model.config, [step.batch.ids.shape[1] - 1])


def _excess(errors: dict[str, float], limits: dict[str, float]) -> dict[str, float]:
    """Return error / limit of those that do not pass."""
    return {name: error / limits[name] for name, error in errors.items() if not error <= limits[name]}


def _shown(step: Step, theirs: Gradients, mistake: Mistake) -> dict[str, float]:
    """Return what the errors of these gradients are if a step makes only this mistake."""
    with _planted(step, [mistake]):
        wrong = gradients(step)
    return gradient_errors(step, {name: wrong[name] for name in theirs})


def _factors(step: Step, theirs: Gradients, limits: dict[str, float]) -> list[str]:
    """Return a cause if all gradients are the right ones times one factor, with what this number may be."""
    right = gradients(step)
    of_weights = [name for name in theirs if not name.startswith("grad.") and name != "loss"]
    if not of_weights:
        return []
    factor = _factor(theirs[of_weights[0]], right[of_weights[0]])
    if not np.isfinite(factor) or factor == 0:
        return []
    scaled = {name: gradient / (1 if name == "loss" else factor) for name, gradient in theirs.items()}
    errors = gradient_errors(step, scaled)
    loss_too = "loss" in theirs and not errors.pop("loss") <= limits["loss"]
    if loss_too and abs(_factor(theirs["loss"], right["loss"]) / factor - 1) > _CLOSE:
        return []
    if _excess(errors, limits):
        return []
    names = [name for name, value in _named_factors(step, right).items() if abs(value / factor - 1) < _CLOSE]
    subject = "The loss and every gradient are" if loss_too else "Every gradient is"
    return [f"{subject} {factor:.6g} times the right one" + (f": {' or '.join(names)}" if names else "")]


def _named_factors(step: Step, right: Gradients) -> dict[str, float]:
    """Return the factors that mistakes of training lead to."""
    B, T = step.batch.ids.shape[0], step.batch.ids.shape[1] - 1
    count = step.batch.num_targets
    norm = np.sqrt(sum(float((gradient**2).sum()) for name, gradient in right.items() if name.startswith("model.")))
    return {
        f"the sum over the {count} targets, not their mean": count,
        f"divided by {B * T}, the number of all positions, not by {count} targets": count / (B * T),
        f"the sum over the {B} texts of a batch": B,
        f"divided twice by the {B} texts of a batch": 1 / B,
        f"clipped to a norm of 1 (it is {norm:.4g})": 1 / norm,
        "the other sign": -1.0,
    }


def _factor(found: np.ndarray, right: np.ndarray) -> float:
    """Return the factor that fits best: found [...] is near factor * right [...]."""
    found, right = np.asarray(found, np.float64), np.asarray(right, np.float64)
    return float((found * right).sum() / max(float((right**2).sum()), 1e-300))


def _clues(step: Step, theirs: Gradients, excess: dict[str, float]) -> dict[str, str]:
    """Return how wrong gradients relate to the right ones, where this is simple."""
    right = gradients(step, theirs)
    clues = {}
    for name in excess:
        found = np.asarray(theirs[name], np.float64)
        if clue := next(_relations(name, found, right), None):
            clues[name] = clue
    return clues


def _relations(name: str, found: np.ndarray, right: Gradients) -> Iterator[str]:
    """Yield how a gradient relates to the right ones."""

    def is_near(value: np.ndarray) -> bool:
        return value.shape == found.shape and bool(np.abs(found - value).max() < _CLOSE * np.abs(value).max())

    if not found.any():
        yield "zero: frozen, or detached from the loss"
    factor = _factor(found, right[name])
    if is_near(factor * right[name]):
        yield f"{factor:.6g} times the right one"
    for other, value in right.items():
        if other != name and is_near(value):
            yield f"that of {other}"
    if found.ndim == 2 and is_near(right[name].T):
        yield "transposed"


def describe_gradients(diagnosis: GradientDiagnosis) -> list[str]:
    """Return the lines that `gemma-np diagnose` prints."""
    lines = [f"{name}: skipped, {reason}" for name, reason in diagnosis.skipped.items()]
    if not diagnosis.excess:
        lines.append(f"All {diagnosis.compared} gradients are right up to rounding.")
    else:
        lines.append(f"{len(diagnosis.excess)} of {diagnosis.compared} gradients are wrong, from the loss down:")
        for name, excess in diagnosis.excess.items():
            clue = f"; {diagnosis.clues[name]}" if name in diagnosis.clues else ""
            lines.append(f"  {name}: {excess:.3g} times as far off as rounding allows{clue}")
        lines += [f"Cause: {cause}" for cause in diagnosis.causes]
        if len(diagnosis.causes) > 1:
            lines.append("These gradients cannot tell the causes apart.")
        if not diagnosis.causes:
            lines.append("No known mistake, alone or with a second one, explains all of it.")
        if "loss" in diagnosis.excess and not diagnosis.causes:
            lines.append("The loss differs, too: check the forward pass first, with gemma-np diagnose on its records.")
    if diagnosis.blind_spots:
        lines.append("These gradients could not have shown:")
        lines += [f"  {mistake}" for mistake in diagnosis.blind_spots]
    return lines
