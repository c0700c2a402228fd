"""Find what a dump computes in place of Gemma: operation by operation where it has the records, otherwise by a search.

Each operation of the dump is first compared with the reference on the dump's own inputs. Those that are wrong are
identified: every alternative of the operation is tried on the same inputs. Where inputs are missing, alternatives of
the missing operations are planted in the reference, until the dump's records agree.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.groups import suspects_of
from gemma_np.oracle.identification import Finding, identify
from gemma_np.oracle.isolation import isolated, isolated_run
from gemma_np.oracle.mistakes import CATALOGUE, Mistake
from gemma_np.oracle.noise import Records, excesses, noise_thresholds
from gemma_np.oracle.search import NO_SIGNAL, Search, Trial
from gemma_np.oracle.trace import Reference

_MOST_LINES = 3
_BY_ID = {mistake.id: mistake for mistake in CATALOGUE}


class Cause(NamedTuple):
    """What explains some of the wrong records."""

    says: str  # what is computed instead
    keys: tuple[str, ...]  # the records that are computed so
    known: str = ""  # the entries of the catalogue, separated by spaces
    ties: tuple[str, ...] = ()  # what explains them as well
    error: float = 0.0  # what remains with it, in units of what rounding explains


class Diagnosis(NamedTuple):
    """The result of `diagnose`."""

    wrong: dict[str, float]  # records that are wrong given their inputs: error, in units of its threshold
    causes: list[Cause]  # what explains them
    unexplained: list[str]  # the wrong records that no cause explains
    since: str = ""  # the first operation, by its record, that may have made the first unexplained one wrong
    passes: int = 0  # forward passes of the search
    untried: int = 0  # alternatives that the search had no time for
    skipped: Mapping[str, str] = MappingProxyType({})  # records that could not be compared, and why
    blind_spots: Mapping[str, str] = MappingProxyType({})  # of `gemma_np.oracle.power`, if it was asked
    silent: tuple[str, ...] = ()  # records in which rounding may be as large as the numbers

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Return the entries of the catalogue among the causes; empty when something is unexplained."""
        if self.unexplained:
            return ()
        ids = (known for cause in self.causes for known in cause.known.split())
        return tuple(_BY_ID[known] for known in dict.fromkeys(ids))


def diagnose(alignment: Alignment, dtype: str) -> Diagnosis:
    """Explain a dump.

    alignment: some or all of its records, as `gemma_np.oracle.dump.align_dump` returns them, with a reference in
    float64; dtype: that of their computation.
    """
    reference, theirs, skipped = alignment
    thresholds = noise_thresholds(reference, theirs, dtype, isolated)
    silent = tuple(key for key, threshold in thresholds.items() if threshold >= NO_SIGNAL)
    return _explain(reference, theirs, thresholds, dtype)._replace(skipped=skipped, silent=silent)


def _explain(reference: Reference, theirs: Records, thresholds: Mapping[str, float], dtype: str) -> Diagnosis:
    """Return the causes: of single operations where the dump has their inputs, otherwise of a search."""
    run = isolated_run(reference, theirs)
    found = excesses(reference, theirs, run.expected, thresholds)
    wrong = {key: excess for key, excess in found.items() if excess > 1}
    findings = identify(reference, theirs, run, wrong, thresholds)
    unexplained = [finding.key for finding in findings if not finding.alternatives]
    if not unexplained:
        return Diagnosis(wrong, _grouped(findings), [])
    search = Search(reference, theirs, thresholds, dtype)
    singles = search.singles()
    explaining = [trial for trial in singles if search.explains(trial)]
    explaining = explaining or [trial for trial in search.pairs() if search.explains(trial)]
    passes, untried = round(search.cost), search.skipped
    if explaining:
        return Diagnosis(wrong, _planted(explaining), [], passes=passes, untried=untried)
    since = suspects_of(reference, theirs, {unexplained[0]: np.inf})[0]
    return Diagnosis(wrong, _grouped(findings), unexplained, since, passes, untried)


def _grouped(findings: Sequence[Finding]) -> list[Cause]:
    """Return the causes of the records that are explained, one for each thing that is said.

    Of several alternatives that explain a record equally well, that is chosen which explains the most records.
    """
    count: dict[str, int] = {}
    for finding in findings:
        for alternative in finding.alternatives:
            count[alternative.says] = count.get(alternative.says, 0) + 1
    causes: dict[str, Cause] = {}
    for finding in findings:
        if finding.alternatives:
            best, *others = sorted(finding.alternatives, key=lambda alternative: -count[alternative.says])
            before = causes.get(best.says)
            causes[best.says] = Cause(
                best.says,
                (*(before.keys if before else ()), finding.key),
                best.known,
                tuple(other.says for other in others if count[other.says] == count[best.says]),
                max(finding.error, before.error if before else 0.0),
            )
    return list(causes.values())


def _planted(trials: Sequence[Trial]) -> list[Cause]:
    """Return the causes of the best trial, a known mistake if there is one; the others are its ties."""
    exact = [trial for trial in trials if not trial.is_fitted] or trials
    trials = sorted(exact, key=lambda trial: (not all(member.known for member in trial.plan.values()), trial.rank))
    texts = [" and ".join(_says(trial)) for trial in trials]
    ties = tuple(dict.fromkeys(text for text in texts[1:] if text != texts[0]))
    causes: dict[str, Cause] = {}
    for name, alternative in trials[0].plan.items():
        before = causes.get(alternative.says)
        keys = (*(before.keys if before else ()), name)
        causes[alternative.says] = Cause(alternative.says, keys, alternative.known, ties, trials[0].rank[1])
    return list(causes.values())


def _says(trial: Trial) -> Iterable[str]:
    return dict.fromkeys(alternative.says for alternative in trial.plan.values())


def source_of_right(mistake: Mistake) -> str:
    """Return the file, line and name of the function that does it right."""
    right = inspect.unwrap(mistake.right)
    _, first_line = inspect.getsourcelines(right)
    file = Path(inspect.getsourcefile(right) or "")
    return f"gemma_np/{file.relative_to(Path(__file__).parent.parent)}:{first_line} ({mistake.right.__name__})"


def places(keys: Iterable[str]) -> list[str]:
    """Return names of records with layers and passes in ranges: `layers.0-3.self_attn.probs in passes 0-2`."""
    by_kind: dict[str, dict[int, list[int]]] = {}
    for key in keys:
        number, name = re.fullmatch(r"(?:pass\.(\d+)\.)?(.*)", key).groups()  # type: ignore[union-attr]
        match = re.match(r"layers\.(\d+)\.", name)
        kind = name.replace(match[0], "layers.*.", 1) if match else name
        by_kind.setdefault(kind, {}).setdefault(int(match[1]) if match else -1, []).append(int(number or 0))
    lines = []
    for kind, layers in by_kind.items():
        passes = sorted({number for numbers in layers.values() for number in numbers})
        where = "" if passes == [0] else f" in pass{'es' if len(passes) > 1 else ''} {ranges(passes)}"
        lines.append(kind.replace("*", ranges(sorted(layers))) + where)
    return lines


def ranges(numbers: Sequence[int]) -> str:
    """Return increasing numbers with ranges: "0-3,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def describe_diagnosis(diagnosis: Diagnosis) -> list[str]:
    """Return the lines of a report: wrong records, what explains them and how to fix it, and what cannot be seen."""
    return [*_describe_wrong(diagnosis), *_describe_limits(diagnosis)]


def _describe_wrong(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.wrong:
        if diagnosis.silent:
            return [
                f"Cannot tell at this precision: rounding may be as large as the numbers in {_few(diagnosis.silent)}."
            ]
        return ["Nothing is wrong: every record equals what the reference computes from its inputs, up to rounding."]
    count = len(diagnosis.wrong)
    lines = [f"{count} records are wrong given their inputs; the first ones are:"]
    if count == 1:
        lines = ["1 record is wrong given its inputs:"]
    first_wrong = list(diagnosis.wrong.items())[:_MOST_LINES]
    lines += [f"  {key}: {excess:.3g} times the error that rounding explains" for key, excess in first_wrong]
    for cause in diagnosis.causes:
        lines += _describe_cause(cause)
    if diagnosis.unexplained:
        first = diagnosis.unexplained[0]
        until = f"everything from {diagnosis.since} to {first}" if diagnosis.since not in ("", first) else first
        lines.append(f"Not explained: {'; '.join(places(diagnosis.unexplained))}.")
        lines.append(f"Check the code that computes {until}.")
    if diagnosis.passes:
        until = "" if diagnosis.unexplained else ", up to the first explanation"
        left = f"; {diagnosis.untried} alternatives were not tried" if diagnosis.untried else ""
        lines.append(f"Searched in {diagnosis.passes} forward passes{until}{left}.")
    return lines


def _describe_limits(diagnosis: Diagnosis) -> list[str]:
    lines = [f"Skipped: {key}: {reason}" for key, reason in list(diagnosis.skipped.items())[:_MOST_LINES]]
    if len(diagnosis.skipped) > _MOST_LINES:
        lines.append(f"Skipped: {len(diagnosis.skipped) - _MOST_LINES} other records")
    by_reason: dict[str, list[str]] = {}
    for known, reason in diagnosis.blind_spots.items():
        by_reason.setdefault(reason, []).append(known)
    if by_reason:
        lines.append("This dump could not have shown:")
        lines += [f"  {', '.join(ids)}: {reason}" for reason, ids in by_reason.items()]
    return lines


def _few(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LINES
    return ", ".join(names[:_MOST_LINES]) + (f" and {more} more" if more > 0 else "")


def _describe_cause(cause: Cause) -> list[str]:
    lines = [f"{'; '.join(places(cause.keys))}: {cause.says}"]
    lines.append(f"  with it, {cause.error:.2g} times the error that rounding explains")
    for known in cause.known.split():
        mistake = _BY_ID[known]
        lines += [f"  known as {mistake.id}", f"  right: {source_of_right(mistake)}", f"  fix: {mistake.fix}"]
    lines += [f"  or: {tie}" for tie in cause.ties[:_MOST_LINES]]
    if len(cause.ties) > _MOST_LINES:
        lines.append(f"  or one of {len(cause.ties) - _MOST_LINES} others")
    return lines
