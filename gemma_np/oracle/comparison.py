"""Compare a dump with a reference, record by record: find which records differ, where, and by how much."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.isolation import isolated
from gemma_np.oracle.noise import Records, exact, noise_thresholds, relative_errors
from gemma_np.oracle.trace import Reference

STATUSES = ("OK", "DIFF", "SHAPE", "MISSING", "EXTRA")
"""The possible results for a record: equal, different, of another shape, missing from the dump or from the trace."""


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
        """Return whether the record is in the dump and differs."""
        return self.status in ("DIFF", "SHAPE")


def compare(reference: Reference, theirs: Records, dtype: str, *, isolate: bool = False) -> list[Row]:
    """Return a row for each record of a float64 reference, in the order of execution.

    theirs: records as `gemma_np.oracle.dump.align_dump` returns them; dtype: that of their computation. With
    `isolate`, each record is compared with what the reference computes from *their* inputs, so that errors of earlier
    records do not count.
    """
    comparable = of_the_right_shape(reference, theirs)
    expectation = isolated if isolate else exact
    errors = relative_errors(reference, comparable, expectation(reference, comparable))
    thresholds = noise_thresholds(reference, comparable, dtype, expectation)
    rows = []
    for key, record_slice in reference.slices.items():
        if key in errors:
            error, where = errors[key]
            rows.append(Row(key, "OK" if error <= thresholds[key] else "DIFF", error, thresholds[key], where))
        elif key in theirs:
            rows.append(Row(key, "SHAPE", note=_shape_note(theirs[key].shape, record_slice.shape)))
        else:
            rows.append(Row(key, "MISSING"))
    return rows


def of_the_right_shape(reference: Reference, theirs: Records) -> Records:
    """Return their records that have the shape of the reference's."""
    return {key: record for key, record in theirs.items() if record.shape == reference.slices[key].shape}


def _shape_note(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Describe how a shape is wrong, and the transpose that fixes it, if there is one."""
    note = f"shape {found}, expected {expected}"
    for order in permutations(range(len(expected))):
        if len(found) == len(expected) and tuple(found[axis] for axis in order) == expected:
            return f"{note}: the axes are in another order; transpose({', '.join(map(str, order))}) fixes it"
    if int(np.prod(found)) == int(np.prod(expected)):
        return f"{note}: the same number of elements, in other axes"
    return note


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
