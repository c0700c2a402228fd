"""Compare a dump with a reference, record by record: find which records differ, where, and by how much."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.isolation import isolated
from gemma_np.oracle.noise import Expectation, noise_thresholds, relative_errors

STATUSES = ("OK", "DIFF", "SKIPPED", "MISSING", "EXTRA", "UNKNOWN")
"""The possible results for a record: equal, different, of another shape or with NaN, missing from the dump or from the
trace, with a name that no record has."""


class Row(NamedTuple):
    """The result for one record."""

    key: str
    status: str  # one of STATUSES
    error: float = 0.0  # largest difference / largest expected number
    threshold: float = 0.0  # the largest error that passes
    where: tuple[int, ...] = ()  # the index of the largest difference
    note: str = ""

    @property
    def differs(self) -> bool:
        """Return whether the record is in the dump and is not what it should be."""
        return self.status in ("DIFF", "SKIPPED")


def compare(alignment: Alignment, dtype: str, *, isolate: bool = False) -> list[Row]:
    """Return a row for each record of a float64 reference, in the order of execution, and for those it does not have.

    dtype: that of their computation. With `isolate`, each record is compared with what the reference computes from
    *their* inputs, so that errors of earlier records do not count. This takes six forward passes of the reference, and
    with `isolate` eleven: those of rounded runs measure what passes.
    """
    reference, theirs = alignment.reference, alignment.records
    right = {} if isolate else reference.records()
    expectation: Expectation = isolated if isolate else lambda reference, records: right
    errors = relative_errors(reference, theirs, expectation(reference, theirs))
    thresholds = noise_thresholds(reference, theirs, dtype, expectation)
    return rows_of(reference.slices, errors, thresholds, alignment.skipped)


def rows_of(
    keys: Collection[str],
    errors: Mapping[str, tuple[float, tuple[int, ...]]],
    thresholds: Mapping[str, float],
    skipped: Mapping[str, str],
) -> list[Row]:
    """Return a row for each of the keys, and one for each that was skipped because it is none of them.

    errors: largest error and where it is, of each that was compared; skipped: why others were not.
    """
    rows = []
    for key in keys:
        if key in errors:
            error, where = errors[key]
            rows.append(Row(key, "OK" if error <= thresholds[key] else "DIFF", error, thresholds[key], where))
        elif key in skipped:
            rows.append(Row(key, "SKIPPED", note=skipped[key]))
        else:
            rows.append(Row(key, "MISSING"))
    return rows + [Row(key, "UNKNOWN", note=skipped[key]) for key in sorted(skipped.keys() - set(keys))]


def describe_comparison(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table of at least one row, with the number of records of each status at the end."""
    width = max(len(row.key) for row in rows)
    lines = [f"{'record':{width}}  status   error    passes   where it is largest"]
    for row in rows:
        if row.where:
            lines.append(f"{row.key:{width}}  {row.status:7}{row.error:9.2e}{row.threshold:9.2e}  {list(row.where)}")
        else:
            lines.append(f"{row.key:{width}}  {row.status:7} {row.note}")
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    first = next((row for row in rows if row.differs), None)
    return [*lines, f"first difference: {first.key}"] if first else lines
