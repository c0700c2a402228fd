"""Search for what explains a dump that lacks records: plant alternatives of the missing operations in the reference.

Each trial is one forward pass of the reference; `BUDGET` limits their number.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, product
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.alternatives import Family
from gemma_np.oracle.groups import Title, distinct, groups_of
from gemma_np.oracle.identification import CLEARLY, WIDENED, smallest
from gemma_np.oracle.isolation import Plan, isolated, isolated_run
from gemma_np.oracle.noise import Records, excesses, noise_thresholds, relative_errors
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference
from gemma_np.progress import progress_bar

BUDGET = 400
"""The largest number of forward passes."""

NO_SIGNAL = 0.5
"""A record whose threshold is this fraction of its largest number shows nothing."""

_LEFT = {"float64": WIDENED, "float32": WIDENED, "bfloat16": 0.4, "float16": 0.4}
"""The largest excess that an explanation may leave of a wrong record. In 16 bits, what passes is so large a part of the
signal that other mistakes come below it; the right explanations leave little more than the noise, an eighth of it."""

_COARSE = 24
_REFINEMENTS = 36
_PARTS = 4  # what is tried first: the first quarter of the tokens, and before that its first quarter, and so on
_ALLOWED = 4 * WIDENED  # the largest excess that an explanation may leave in the first tokens
_FOR_PAIRS = 80  # forward passes that are left for pairs
_PAIRED, _BEST = 2, 4  # pairs are of groups up to this rank, and of that many which are best alone
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

    @property
    def remaining(self) -> float:
        """Return by how many factors of e the records are wrong, all together."""
        return float(sum(np.log(excess) for excess in self.excesses.values() if excess > 1))


class Search:
    """Trials on one dump; their cost is counted in forward passes over all of its tokens.

    dtype: that of their computation; wrong: the excesses of the records that are to be explained, by default those of
    the dump.
    """

    def __init__(
        self,
        reference: Reference,
        theirs: Records,
        thresholds: Mapping[str, float],
        dtype: str,
        wrong: Mapping[str, float] | None = None,
    ) -> None:
        self.reference, self.theirs, self.thresholds, self.dtype = reference, theirs, thresholds, dtype
        self.run = isolated_run(reference, theirs)
        self.before = excesses(reference, theirs, self.run.expected, thresholds)
        self.is_right = all(excess <= 1 for excess in self.before.values())
        self.wrong = self.before if wrong is None else wrong
        self.groups = groups_of(reference, theirs, self.run, self.wrong)
        self.trials = 0
        self.skipped = 0  # alternatives that the budget did not reach

    @property
    def cost(self) -> float:
        """Return the cost of all trials so far, those on the first tokens included."""
        on_first = self.first.cost * len(self.first.reference.ids) / len(self.reference.ids) if self.first else 0
        return self.trials + on_first

    @cached_property
    def first(self) -> "Search | None":
        """Return the search on the first tokens, or None if there is only one, or if the first pass is right."""
        tokens = self.reference.lengths[0]
        keys = [key for key in self.theirs if not key.startswith("pass.")]
        if tokens == 1 or any(self.reference.slices[key].shape[-2] != tokens for key in keys):
            return None
        if not any(self.wrong[key] > 1 for key in keys):
            return None
        count = max(1, tokens // _PARTS)
        reference = Reference(self.reference.model, [self.reference.ids[:count]])
        theirs = {}
        for key in keys:
            columns = slice(None) if reference.slices[key].columns is None else slice(count)
            theirs[key] = np.asarray(self.theirs[key])[..., :count, columns]
        thresholds = noise_thresholds(reference, theirs, self.dtype, isolated)
        return Search(reference, theirs, thresholds, self.dtype, {key: self.wrong[key] for key in keys})

    def plant(self, plan: Plan) -> Trial:
        """Return the trial of a plan."""
        self.trials += 1
        expected = isolated(self.reference, self.theirs, plan)
        return Trial(plan, excesses(self.reference, self.theirs, expected, self.thresholds))

    def explains(self, trial: Trial) -> bool:
        """Return whether a trial leaves nothing wrong, clearly reduces what was wrong, and would not explain the same
        numbers in another order."""
        wrong = {key: excess for key, excess in self.before.items() if excess > 1}
        if any(excess > WIDENED for excess in trial.excesses.values()):
            return False
        if any(trial.excesses[key] > min(_LEFT[self.dtype], before / CLEARLY) for key, before in wrong.items()):
            return False
        limits = {key: max(trial.excesses[key], 1.0) * self.thresholds[key] for key in wrong}
        return max(limits.values()) < NO_SIGNAL and not self._explains_shuffled(trial, limits)

    def _explains_shuffled(self, trial: Trial, limits: Mapping[str, float]) -> bool:
        """Return whether the wrong records pass within these limits if their numbers are shuffled."""
        expected, generator = isolated(self.reference, self.theirs, trial.plan), np.random.default_rng(0)
        shuffled = {}
        for key in limits:
            record = np.asarray(self.theirs[key])
            shuffled[key] = generator.permutation(record.ravel()).reshape(record.shape)
        errors = relative_errors(self.reference, shuffled, expected)
        return all(error <= limits[key] for key, (error, _) in errors.items())

    def singles(self) -> list[Trial]:
        """Return trials of the alternatives of operations that may have caused what is wrong, rank by rank, until one
        explains it. What cannot explain the first tokens is not tried on all of them, unless it looks ahead of them.
        """
        found, last_rank = list[Trial](), 0
        groups = distinct(self.groups)
        bar = progress_bar(groups.items(), desc="trying alternatives", unit="alternatives")
        for tried, (title, group) in enumerate(bar):
            rank, _ = title
            is_done = rank > last_rank and any(self.explains(trial) for trial in found)
            if is_done or self.cost >= BUDGET - _FOR_PAIRS:
                self.skipped = len(groups) - tried
                break
            last_rank = rank
            looks_ahead = any(member.looks_ahead for member in group.values())
            if looks_ahead or self.first is None or self.first.allows(title):
                found.append(self.trial(title))
        return found

    def allows(self, *titles: Title) -> bool:
        """Return whether groups of a longer text leave these first tokens as they are in the dump, up to a few times
        the noise."""
        own = [title for title in titles if title in self.groups]
        if not own:  # they make no difference to these tokens
            return self.is_right
        if self.first and not self.first.allows(*titles):
            return False
        trials = self._extremes(*own) if self.is_right else [self.trial(*own)]
        return all(excess <= _ALLOWED for trial in trials for excess in trial.excesses.values())

    def trial(self, *titles: Title) -> Trial:
        """Return the trial of groups; a family's number is the same for all records, and searched for."""
        values = self._values(*titles)
        if not values:
            return self.plant(self.plan(*titles))
        coarse = [values[int(place)] for place in np.linspace(0, len(values) - 1, min(_COARSE, len(values)))]
        best = smallest(
            lambda value: self.plant(self.plan(*titles, value=value)).rank[1],
            coarse,
            _REFINEMENTS,
            below=_PROMISING * max(self.before.values()),
        )
        return self.plant(self.plan(*titles, value=best))._replace(is_fitted=True)

    def _extremes(self, *titles: Title) -> list[Trial]:
        """Return the trials of groups with the smallest and the largest number, if there is a family."""
        values = self._values(*titles)
        return [self.plant(self.plan(*titles, value=value)) for value in ((values[0], values[-1]) if values else (0,))]

    def _values(self, *titles: Title) -> Sequence[float]:
        """Return the numbers of a family; none for alternatives."""
        members = chain.from_iterable(self.groups[title].values() for title in titles)
        return next((member.values for member in members if isinstance(member, Family)), ())

    def plan(self, *titles: Title, value: float = 0) -> Plan:
        """Return the groups of these titles as a plan, with the number of their family."""
        plan = {}
        for name, member in chain.from_iterable(self.groups[title].items() for title in titles):
            operation = Operation(name, self.reference, self.run.inputs, self.run.computed[name])
            plan[name] = member.at(operation, value) if isinstance(member, Family) else member
        return plan

    def pairs(self) -> list[Trial]:
        """Return trials of two alternatives that leave the first tokens as they are in the dump: of those that alone
        leave the least wrong there, with all others.
        """
        first = self.first or self
        titles = [title for title in distinct(first.groups) if title[0] <= _PAIRED and not first._values(title)]
        remaining = {title: first.trial(title).remaining for title in titles}
        best = sorted(titles, key=remaining.__getitem__)[:_BEST]
        together = [
            (one, other)
            for one, other in product(best, titles)
            if self.groups[one].keys().isdisjoint(self.groups[other])
        ]
        found = []
        bar = progress_bar(together, desc="trying pairs", unit="pairs")
        for tried, pair in enumerate(bar):
            if self.cost >= BUDGET:
                self.skipped += len(together) - tried
                break
            if self.first is None or self.first.allows(*pair):
                found.append(self.trial(*pair))
        return found
