"""Identify what was computed: try every alternative of an operation on the inputs in the dump, and fit its number."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.alternatives import ANY, Alternative, Family, candidates, candidates_of_kind, likely_members
from gemma_np.oracle.isolation import IsolatedRun
from gemma_np.oracle.noise import Records, relative_error
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference

WIDENED = 4.0
"""A wrong model may be noisier than the right one: its errors may be larger than the right one's by this factor."""

_REFINEMENTS = 48
_GOLDEN = (5**0.5 - 1) / 2
CLEARLY = 3
"""An alternative must reduce the error by this factor, and one that is better than another by it excludes the other."""


class Finding(NamedTuple):
    """What was computed in place of one record, given its inputs."""

    key: str  # the record's name in the dump
    alternatives: tuple[Alternative, ...]  # those that explain it equally well, best first; empty: unknown
    error: float = np.inf  # what remains with the best of them, in units of the threshold


def identify(
    reference: Reference,
    theirs: Records,
    run: IsolatedRun,
    excesses: Mapping[str, float],
    thresholds: Mapping[str, float],
) -> list[Finding]:
    """Return a finding for each wrong record; it has no alternatives when the dump does not have the record's inputs.

    run: the reference on their records; excesses: the error of each wrong record, in units of its threshold.
    """
    findings, explained = [], dict[str, list[Alternative]]()  # kind -> what explained an earlier record of it
    names = reference.names
    given = {reference.slices[key].name for key in theirs}
    for key, excess in excesses.items():
        name = reference.slices[key].name
        place = names.index(name)
        if place and names[place - 1] not in given:
            findings.append(Finding(key, ()))
            continue
        operation = Operation(name, reference, run.inputs, run.computed[name], _found(reference, theirs, name))
        error = _error_of(reference, theirs, key)
        limit = thresholds[key] * min(WIDENED, excess / CLEARLY)
        passing: list[tuple[float, Alternative]] = []
        for tried in _stages(operation, explained.get(operation.kind, ())):
            if not passing:
                passing = list(_passing(operation, tried, error, limit))
        smallest_error = min((value for value, _ in passing), default=np.inf)
        as_good = max(CLEARLY * smallest_error, thresholds[key])  # below the threshold, differences are noise
        best = tuple(alternative for value, alternative in sorted(passing, key=_plausible) if value <= as_good)
        best = tuple(alternative for alternative in best if not alternative.rare) or best
        findings.append(Finding(key, best, smallest_error / thresholds[key]))
        explained.setdefault(operation.kind, []).extend(best)
    return [_without_contradictions(finding, reference, theirs, run, excesses, thresholds) for finding in findings]


def _stages(operation: Operation, explained: Sequence[Alternative]) -> Iterator[Sequence[Alternative | Family]]:
    """Yield what is tried one after the other until something passes: what explained an earlier record; for what is
    peculiar to the operation and then for what is not, alternatives with likely numbers, and families."""
    says = {alternative.says for alternative in explained}
    yield [member for member in candidates(operation) if isinstance(member, Alternative) and member.says in says]
    for kind in (operation.kind, ANY):
        members = list(candidates_of_kind(kind, operation))
        yield [single for member in members for single in likely_members(member, operation)]
        yield [member for member in members if isinstance(member, Family)]


def _plausible(passing: tuple[float, Alternative]) -> tuple[int, float]:
    """Return the order in which alternatives that are as good are told: one known mistake, an unknown one, several."""
    error, alternative = passing
    known = len(alternative.known.split())
    return (0 if known == 1 else 1 + known), error


def _without_contradictions(
    finding: Finding,
    reference: Reference,
    theirs: Records,
    run: IsolatedRun,
    excesses: Mapping[str, float],
    thresholds: Mapping[str, float],
) -> Finding:
    """Return a finding without those of several alternatives that would make a right record of another layer wrong."""
    if len(finding.alternatives) < 2:
        return finding
    name = reference.slices[finding.key].name
    kind = Operation(name, reference, run.inputs, run.computed[name]).kind
    says = {alternative.says for alternative in finding.alternatives}
    contradicted = set[str]()
    for key in theirs.keys() - excesses.keys():
        name = reference.slices[key].name
        operation = Operation(name, reference, run.inputs, run.computed[name])
        if operation.kind == kind:
            error = _error_of(reference, theirs, key)
            same = (one for one in candidates(operation) if isinstance(one, Alternative) and one.says in says)
            contradicted |= {one.says for one in same if error(one.compute(operation)) > thresholds[key]}
    kept = tuple(alternative for alternative in finding.alternatives if alternative.says not in contradicted)
    return finding._replace(alternatives=kept or finding.alternatives)


def _passing(
    operation: Operation,
    members: Sequence[Alternative | Family],
    error: Callable[[np.ndarray], float],
    limit: float,
) -> Iterator[tuple[float, Alternative]]:
    """Yield the alternatives whose error is within the limit, with their error."""
    for member in members:
        alternative = fitted(member, operation, error) if isinstance(member, Family) else member
        with np.errstate(all="ignore"):
            value = error(alternative.compute(operation))
        if value <= limit:
            yield value, alternative


def fitted(family: Family, operation: Operation, error: Callable[[np.ndarray], float]) -> Alternative:
    """Return the member of a family with the smallest error: the best of its values, refined by golden sections."""

    def at(value: float) -> float:
        with np.errstate(all="ignore"):
            return error(family.compute(operation, value))

    return family.at(operation, smallest(at, family.values))


def smallest(
    function: Callable[[float], float],
    values: Sequence[float],
    refinements: int = _REFINEMENTS,
    *,
    below: float = np.inf,
) -> float:
    """Return where a function is smallest: at the best of increasing values, refined between its neighbours if it is
    small enough there."""
    at_values = [function(value) for value in values]
    best = int(np.argmin(at_values))
    if at_values[best] > below:
        return values[best]
    low, high = values[max(best - 1, 0)], values[min(best + 1, len(values) - 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(refinements):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return min((at_values[best], values[best]), (at_left, left), (at_right, right))[1]


def _error_of(reference: Reference, theirs: Records, key: str) -> Callable[[np.ndarray], float]:
    """Return a function that measures the error of a record, if all N tokens were computed as in its argument."""
    record_slice, found = reference.slices[key], theirs[key]

    def error(value: np.ndarray) -> float:
        expected = record_slice.select(np.asarray(value, np.float64))
        if expected.shape != record_slice.shape:
            return np.inf
        result, _ = relative_error(found, expected, record_slice.masked)
        return np.inf if np.isnan(result) else result

    return error


def _found(reference: Reference, theirs: Records, name: str) -> np.ndarray | None:
    """Return their record of all tokens, if every pass has it and its last axis is not that of keys."""
    slices = [record_slice for record_slice in reference.slices.values() if record_slice.name == name]
    if any(record_slice.key not in theirs or record_slice.columns is not None for record_slice in slices):
        return None
    return np.concatenate([np.asarray(theirs[record_slice.key], np.float64) for record_slice in slices], axis=-2)
