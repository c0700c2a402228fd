"""Search for what explains a dump that lacks records: plant alternatives of the missing operations in the reference.

Each trial is one forward pass of the reference; `BUDGET` limits their number.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.alternatives import Alternative, Family
from gemma_np.oracle.groups import Group, Title, distinct, groups_of
from gemma_np.oracle.identification import CLEARLY, WIDENED, smallest
from gemma_np.oracle.isolation import IsolatedRun, Plan, isolated, isolated_run
from gemma_np.oracle.noise import Records, excesses, noise_thresholds, relative_errors
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
_PROMISING = 0.9  # a family's number is refined if one of its values leaves less of the largest excess than this


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
    """Trials on one dump; their cost is counted in forward passes over all of its tokens.

    wrong: the excesses of the records that are to be explained; by default those of the dump.
    """

    def __init__(
        self,
        reference: Reference,
        theirs: Records,
        thresholds: Mapping[str, float],
        run: IsolatedRun,
        wrong: Mapping[str, float] | None = None,
    ) -> None:
        self.reference, self.theirs, self.thresholds, self.run = reference, theirs, thresholds, run
        self.before = excesses(reference, theirs, run.expected, thresholds)
        self.groups = groups_of(reference, theirs, run, self.before if wrong is None else wrong)
        self.cost = 0.0
        self.cost_of_one = 1.0
        self.skipped = 0  # alternatives that the budget did not reach

    def plant(self, plan: Plan) -> Trial:
        """Return the trial of a plan."""
        self.cost += self.cost_of_one
        expected = isolated(self.reference, self.theirs, plan)
        return Trial(plan, excesses(self.reference, self.theirs, expected, self.thresholds))

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

    def singles(self, dtype: str) -> list[Trial]:
        """Return trials of the alternatives of operations that may have caused what is wrong, rank by rank, until one
        explains it. What does not explain the first tokens is not tried on all of them, unless it looks ahead of them.
        """
        from tqdm import tqdm

        first = self._on_first_tokens(dtype)
        found, last_rank = list[Trial](), 0
        groups = distinct(self.groups)
        bar = tqdm(groups.items(), desc="trying alternatives", unit=" alternatives", delay=2, leave=False)
        for tried, (title, group) in enumerate(bar):
            rank, _ = title
            is_done = rank > last_rank and any(self.explains(trial) for trial in found)
            if is_done or self.cost + (first.cost if first else 0) >= BUDGET:
                self.skipped = len(groups) - tried
                break
            last_rank = rank
            if first and first.rules_out(title, group):
                continue
            found.append(self.try_group(group))
        self.cost += first.cost if first else 0
        return found

    def rules_out(self, title: Title, group: Group) -> bool:
        """Return whether a group of a longer text cannot explain this one, the first tokens, up to a few times the
        noise."""
        if any(member.looks_ahead for member in group.values()):
            return False
        own = self.groups.get(title)
        is_right = not any(excess > 1 for excess in self.before.values())
        if own is None:  # it makes no difference to these tokens
            return not is_right
        if is_right and any(isinstance(member, Family) for member in own.values()):
            return True  # another number would make a difference to the first tokens, too
        return any(excess > 4 * WIDENED for excess in self.try_group(own).excesses.values())

    def _on_first_tokens(self, dtype: str) -> "Search | None":
        """Return the search on the first tokens, or None if the first pass is right, or has no more tokens."""
        count = max(_FEWEST, len(self.reference.ids) // _PARTS)
        tokens = self.reference.lengths[0]
        keys = [key for key in self.theirs if not key.startswith("pass.")]
        if count >= tokens or any(self.reference.slices[key].shape[-2] != tokens for key in keys):
            return None
        if not any(self.before[key] > 1 for key in keys):
            return None
        reference = Reference(self.reference.model, [self.reference.ids[:count]])
        theirs = {}
        for key in keys:
            columns = slice(None) if reference.slices[key].columns is None else slice(count)
            theirs[key] = np.asarray(self.theirs[key])[..., :count, columns]
        thresholds = noise_thresholds(reference, theirs, dtype, isolated)
        wrong = {key: self.before[key] for key in keys}
        first = Search(reference, theirs, thresholds, isolated_run(reference, theirs), wrong)
        first.cost_of_one = count / len(self.reference.ids)
        return first

    def try_group(self, group: Group) -> Trial:
        """Return the trial of a group; a family's number is the same for all records, and searched for."""
        families = {name: member for name, member in group.items() if isinstance(member, Family)}
        if not families:
            return self.plant({name: member for name, member in group.items() if isinstance(member, Alternative)})
        run = self.run
        operations = {name: Operation(name, self.reference, run.inputs, run.computed[name]) for name in families}

        def with_number(value: float) -> Plan:
            return {name: family.at(operations[name], value) for name, family in families.items()}

        values = next(iter(families.values())).values
        coarse = [values[int(place)] for place in np.linspace(0, len(values) - 1, min(_COARSE, len(values)))]
        best = smallest(
            lambda value: self.plant(with_number(value)).rank[1],
            coarse,
            _REFINEMENTS,
            below=_PROMISING * max(self.before.values()),
        )
        return self.plant(with_number(best))._replace(is_fitted=True)

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
