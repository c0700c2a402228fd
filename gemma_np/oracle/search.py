"""Search for what explains a dump that lacks records: plant alternatives of the missing operations in the reference.

Each trial is one forward pass of the reference; `BUDGET` limits their number.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.alternatives import ALTERNATIVES, Alternative, Family
from gemma_np.oracle.identification import WIDENED, smallest
from gemma_np.oracle.isolation import Plan, isolated
from gemma_np.oracle.noise import Records, relative_errors
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference

BUDGET = 400
"""The largest number of forward passes."""

_NO_SIGNAL = 0.5
"""A record whose threshold is this fraction of its largest number shows nothing."""

_COARSE = 12
_REFINEMENTS = 36
_PAIRED = 16


Group = Mapping[str, Alternative | Family]
"""Name of a record -> what is planted there."""


class Trial(NamedTuple):
    """Alternatives planted together, and what remains wrong."""

    plan: Plan
    excesses: Mapping[str, float]  # of each record, in units of its threshold
    is_fitted: bool = False  # whether a number in it was searched for

    @property
    def rank(self) -> tuple[int, float]:
        """Return the number of wrong records and the largest excess."""
        return sum(excess > 1 for excess in self.excesses.values()), max(self.excesses.values())


class Search:
    """Trials on one dump, counted."""

    def __init__(
        self, reference: Reference, theirs: Records, thresholds: Mapping[str, float], before: Mapping[str, float]
    ) -> None:
        self.reference, self.theirs, self.thresholds, self.before = reference, theirs, thresholds, before
        self.trials = 0
        self.skipped = 0  # alternatives that the budget did not reach

    def plant(self, plan: Plan) -> Trial:
        """Return the trial of a plan."""
        self.trials += 1
        errors = relative_errors(self.reference, self.theirs, isolated(self.reference, self.theirs, plan))
        return Trial(plan, {key: self._excess(key, error) for key, (error, _) in errors.items()})

    def _excess(self, key: str, error: float) -> float:
        return error / self.thresholds[key] if np.isfinite(error) else np.inf

    def explains(self, trial: Trial) -> bool:
        """Return whether a trial leaves nothing wrong, by a clear reduction of what was wrong, and would not explain
        the same numbers in another order."""
        if any(excess > WIDENED for excess in trial.excesses.values()):
            return False
        wrong = {key: excess for key, excess in self.before.items() if excess > 1}
        return all(self._is_clear(trial, key, excess) for key, excess in wrong.items())

    def _is_clear(self, trial: Trial, key: str, before: float) -> bool:
        after = trial.excesses[key]
        return after <= before / 3 and max(after, 1.0) * self.thresholds[key] < _NO_SIGNAL

    def singles(self, inputs: Mapping[str, np.ndarray]) -> list[Trial]:
        """Return trials of the alternatives of operations that may have caused what is wrong, rank by rank, until one
        explains it."""
        from tqdm import tqdm

        groups = _groups(self.reference, self.theirs, inputs, self.before)
        found, last_rank = list[Trial](), 0
        for rank, group in tqdm(groups, desc="trying alternatives", unit=" alternatives", delay=2, leave=False):
            is_done = rank > last_rank and any(self.explains(trial) for trial in found)
            if self.skipped or is_done or self.trials >= BUDGET:
                self.skipped += 1
                continue
            is_fitted = any(isinstance(member, Family) for member in group.values())
            found.append(self.plant(self._fitted(group, inputs))._replace(is_fitted=is_fitted))
            last_rank = rank
        return found

    def _fitted(self, group: Group, inputs: Mapping[str, np.ndarray]) -> Plan:
        """Return the alternatives of a group; a family's number is the same for all records, and searched for."""
        plan = {name: member for name, member in group.items() if isinstance(member, Alternative)}
        families = {name: member for name, member in group.items() if isinstance(member, Family)}
        if not families:
            return plan
        operations = {name: Operation(name, self.reference, inputs) for name in families}

        def with_number(value: float) -> Plan:
            return {name: family.at(operations[name], value) for name, family in families.items()}

        def error(value: float) -> float:
            excess = self.plant(with_number(value)).rank[1]
            return excess if np.isfinite(excess) else np.inf

        values = next(iter(families.values())).values
        coarse = [values[int(place)] for place in np.linspace(0, len(values) - 1, min(_COARSE, len(values)))]
        return with_number(smallest(error, coarse, _REFINEMENTS, below=max(self.before.values()) / 2))

    def pairs(self, singles: Sequence[Trial]) -> list[Trial]:
        """Return trials of two alternatives of different operations, from those that are the best alone."""
        from tqdm import tqdm

        best = sorted(singles, key=lambda trial: trial.rank)[:_PAIRED]
        together = [
            {**one.plan, **other.plan}
            for one, other in combinations(best, 2)
            if not one.plan.keys() & other.plan.keys()
        ]
        room = max(BUDGET - self.trials, 0)
        self.skipped += max(len(together) - room, 0)
        bar = tqdm(together[:room], desc="trying pairs", unit=" pairs", delay=2, leave=False)
        return [self.plant(plan) for plan in bar]


def _groups(
    reference: Reference, theirs: Records, inputs: Mapping[str, np.ndarray], before: Mapping[str, float]
) -> list[tuple[int, Group]]:
    """Return the groups of alternatives that are planted together, each with its rank: 0: known mistakes, 1: families
    with likely numbers, 2: families, 3: others, all of them for every record of which the same can be said; 4 and 5:
    families and others for one kind of record."""
    ranked: dict[tuple[int, str], dict[str, Alternative | Family]] = {}

    def add(rank: int, title: str, name: str, member: Alternative | Family) -> None:
        ranked.setdefault((rank, title), {})[name] = member

    suspects = _suspects(reference, theirs, before)
    for name in dict.fromkeys(record_slice.name for record_slice in reference.slices.values()):
        operation = Operation(name, reference, inputs)
        for function in ALTERNATIVES.get(operation.kind, ()):
            for number, member in enumerate(function(operation)):
                singles = [member] if isinstance(member, Alternative) else _likely(member, operation)
                for single in singles:
                    if single.known:
                        add(0, single.known, name, single)
                if name in suspects:
                    if isinstance(member, Family):
                        add(2, f"{function.__name__} {number}", name, member)
                        add(4, f"{function.__name__} {number} {operation.kind}", name, member)
                    for single in singles:
                        add(1 if isinstance(member, Family) else 3, single.says, name, single)
                        add(5, f"{single.says} {operation.kind}", name, single)
    unique: dict[frozenset[tuple[str, int]], tuple[int, Group]] = {}
    for (rank, _), group in sorted(ranked.items(), key=lambda item: item[0][0]):
        if not group.keys().isdisjoint(suspects):
            unique.setdefault(frozenset((name, id(member)) for name, member in group.items()), (rank, group))
    return list(unique.values())


def _likely(family: Family, operation: Operation) -> list[Alternative]:
    return [family.at(operation, value) for value in family.likely(operation)]


def _suspects(reference: Reference, theirs: Records, before: Mapping[str, float]) -> set[str]:
    """Return the names of the records that a wrong one depends on, back to the residual stream that the dump has."""
    names = list(dict.fromkeys(record_slice.name for record_slice in reference.slices.values()))
    given = {reference.slices[key].name for key in theirs}
    suspects = set[str]()
    for key, excess in before.items():
        if excess > 1:
            place = names.index(reference.slices[key].name)
            suspects.add(names[place])
            for name in reversed(names[:place]):
                if name in given and name.endswith(("resid_post", "embedding")):
                    break
                if name not in given:
                    suspects.add(name)
    return suspects
