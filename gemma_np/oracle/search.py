"""Search for what explains a dump that lacks records: plant alternatives of the missing operations in the reference.

Each trial is one forward pass of the reference; `BUDGET` limits their number.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.alternatives import Alternative, Family, candidates
from gemma_np.oracle.identification import CLEARLY, WIDENED, smallest
from gemma_np.oracle.isolation import IsolatedRun, Plan, isolated, isolated_run
from gemma_np.oracle.noise import Records, noise_thresholds, relative_errors
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference

BUDGET = 400
"""The largest number of forward passes."""

NO_SIGNAL = 0.5
"""A record whose threshold is this fraction of its largest number shows nothing."""

_COARSE = 12
_REFINEMENTS = 36
_PARTS, _FEWEST = 8, 3  # what is tried first: the first eighth of the tokens, but at least three
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
    """Trials on one dump; their cost is counted in forward passes over all of its tokens."""

    def __init__(
        self, reference: Reference, theirs: Records, thresholds: Mapping[str, float], before: Mapping[str, float]
    ) -> None:
        self.reference, self.theirs, self.thresholds, self.before = reference, theirs, thresholds, before
        self.cost = 0.0
        self.cost_of_one = 1.0
        self.skipped = 0  # alternatives that the budget did not reach

    def plant(self, plan: Plan) -> Trial:
        """Return the trial of a plan."""
        self.cost += self.cost_of_one
        errors = relative_errors(self.reference, self.theirs, isolated(self.reference, self.theirs, plan))
        return Trial(plan, {key: self._excess(key, error) for key, (error, _) in errors.items()})

    def _excess(self, key: str, error: float) -> float:
        return error / self.thresholds[key] if np.isfinite(error) else np.inf

    def explains(self, trial: Trial) -> bool:
        """Return whether a trial leaves nothing wrong, clearly reduces what was wrong, and would not explain the same
        numbers in another order."""
        if any(excess > WIDENED for excess in trial.excesses.values()):
            return False
        wrong = {key: excess for key, excess in self.before.items() if excess > 1}
        limits = {key: max(trial.excesses[key], 1.0) * self.thresholds[key] for key in wrong}
        is_clear = all(
            trial.excesses[key] <= before / CLEARLY and limits[key] < NO_SIGNAL for key, before in wrong.items()
        )
        return is_clear and not self._explains_shuffled(trial, limits)

    def _explains_shuffled(self, trial: Trial, limits: Mapping[str, float]) -> bool:
        """Return whether the wrong records pass within these limits if their numbers are shuffled."""
        expected, generator = isolated(self.reference, self.theirs, trial.plan), np.random.default_rng(0)
        shuffled = {}
        for key in limits:
            record = np.asarray(self.theirs[key])
            shuffled[key] = generator.permutation(record.ravel()).reshape(record.shape)
        errors = relative_errors(self.reference, shuffled, expected)
        return all(error <= limits[key] for key, (error, _) in errors.items())

    def singles(self, run: IsolatedRun, dtype: str) -> list[Trial]:
        """Return trials of the alternatives of operations that may have caused what is wrong, rank by rank, until one
        explains it. What does not explain the first tokens alone is not tried on all of them.
        """
        from tqdm import tqdm

        first = self._of_first_tokens(dtype)
        first_groups = {} if first is None else {title: group for _, title, group in first.groups()}
        found, last_rank = list[Trial](), 0
        groups = _groups(self.reference, self.theirs, run, self.before)
        for rank, title, group in tqdm(groups, desc="trying alternatives", unit=" alternatives", delay=2, leave=False):
            is_done = rank > last_rank and any(self.explains(trial) for trial in found)
            if self.skipped or is_done or self.cost + (first.cost if first else 0) >= BUDGET:
                self.skipped += 1
                continue
            last_rank = rank
            if first is not None and not (title in first_groups and first.may_explain(first_groups[title])):
                continue
            is_fitted = any(isinstance(member, Family) for member in group.values())
            found.append(self.plant(self._fitted(group, run))._replace(is_fitted=is_fitted))
        self.cost += first.cost if first else 0
        return found

    def groups(self) -> list[tuple[int, str, Group]]:
        """Return the groups of this dump."""
        return _groups(self.reference, self.theirs, isolated_run(self.reference, self.theirs), self.before)

    def may_explain(self, group: Group) -> bool:
        """Return whether a group explains the dump, up to a few times the noise."""
        trial = self.plant(self._fitted(group, isolated_run(self.reference, self.theirs)))
        return all(excess <= 4 * WIDENED for excess in trial.excesses.values())

    def _of_first_tokens(self, dtype: str) -> "Search | None":
        """Return the search on the first tokens, or None if they are right, or not all there."""
        count = max(_FEWEST, len(self.reference.ids) // _PARTS)
        if count >= self.reference.lengths[0] or any(
            self.reference.slices[key].shape[-2] != length
            for key, length in ((key, self.reference.lengths[0]) for key in self.theirs if not key.startswith("pass."))
        ):
            return None
        reference = Reference(self.reference.model, [self.reference.ids[:count]])
        theirs = {}
        for key, record in self.theirs.items():
            if not key.startswith("pass."):
                columns = slice(None) if reference.slices[key].columns is None else slice(count)
                theirs[key] = np.asarray(record)[..., :count, columns]
        thresholds = noise_thresholds(reference, theirs, dtype, isolated)
        first = Search(reference, theirs, thresholds, {})
        first.before = first.plant({}).excesses
        first.cost_of_one = count / len(self.reference.ids)
        return first if any(excess > 1 for excess in first.before.values()) else None

    def _fitted(self, group: Group, run: IsolatedRun) -> Plan:
        """Return the alternatives of a group; a family's number is the same for all records, and searched for."""
        plan = {name: member for name, member in group.items() if isinstance(member, Alternative)}
        families = {name: member for name, member in group.items() if isinstance(member, Family)}
        if not families:
            return plan
        operations = {name: Operation(name, self.reference, run.inputs, run.computed[name]) for name in families}

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
        room = max(int(BUDGET - self.cost), 0)
        self.skipped += max(len(together) - room, 0)
        bar = tqdm(together[:room], desc="trying pairs", unit=" pairs", delay=2, leave=False)
        return [self.plant(plan) for plan in bar]


def _groups(
    reference: Reference, theirs: Records, run: IsolatedRun, before: Mapping[str, float]
) -> list[tuple[int, str, Group]]:
    """Return the groups of alternatives that are planted together, each with its rank and a title: 0: known mistakes,
    1: families with likely numbers, 2: families, 3: others, all of them for every record of which the same can be said;
    4 and 5: families and others for one kind of record."""
    ranked: dict[tuple[int, str], dict[str, Alternative | Family]] = {}

    def add(rank: int, title: str, name: str, member: Alternative | Family) -> None:
        ranked.setdefault((rank, title), {})[name] = member

    suspects = suspects_of(reference, theirs, before)
    for name in suspects:
        operation = Operation(name, reference, run.inputs, run.computed[name])
        for number, member in enumerate(candidates(operation)):
            if member.rare:
                continue
            if isinstance(member, Family):
                title = f"family {number} of {operation.part.split('.')[-1].removeprefix('q_').removeprefix('k_')}"
                add(2, title, name, member)
                add(4, f"{title} {operation.kind}", name, member)
            for single in _members(member, operation):
                add(1 if isinstance(member, Family) else 3, single.says, name, single)
                add(5, f"{single.says} {operation.kind}", name, single)
    groups: list[tuple[int, str, Group]] = [(0, known, plan) for known, plan in known_plans(reference, run).items()]
    groups += [(rank, title, group) for (rank, title), group in sorted(ranked.items(), key=lambda item: item[0][0])]
    unique: dict[frozenset[tuple[str, str]], tuple[int, str, Group]] = {}
    for rank, title, group in groups:
        if not group.keys().isdisjoint(suspects):
            key = frozenset((name, _title(member)) for name, member in group.items())
            unique.setdefault(key, (rank, f"{rank} {title}", group))
    return list(unique.values())


def _title(member: Alternative | Family) -> str:
    return member.says if isinstance(member, Alternative) else f"family {id(member)}"


def known_plans(reference: Reference, run: IsolatedRun) -> dict[str, Plan]:
    """Return the plan of each known mistake, by its id in the catalogue, for all records that it concerns.

    run: of the reference, on no records.
    """
    plans: dict[str, dict[str, Alternative]] = {}
    for name in dict.fromkeys(record_slice.name for record_slice in reference.slices.values()):
        operation = Operation(name, reference, run.inputs, run.computed[name])
        for member in candidates(operation):
            for single in _members(member, operation):
                if single.known:
                    plans.setdefault(single.known, {})[name] = single
    return {known: plans[known] for known in plans if " " not in known}


def _members(member: Alternative | Family, operation: Operation) -> list[Alternative]:
    """Return the alternative, or the likely members of a family."""
    if isinstance(member, Alternative):
        return [member]
    return [member.at(operation, value) for value in member.likely(operation)]


def suspects_of(reference: Reference, theirs: Records, before: Mapping[str, float]) -> list[str]:
    """Return the names of the records that a wrong one depends on, in the order of execution, back to the residual
    stream that the dump has."""
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
    return [name for name in names if name in suspects]
