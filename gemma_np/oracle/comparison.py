"""Two dumps side by side, record by record, in the order of execution: what differs, where, and by how much more than
rounding explains."""

from itertools import permutations
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.isolation import isolated
from gemma_np.oracle.noise import Records, exact, limits, relative_errors
from gemma_np.oracle.trace import Reference


class Row(NamedTuple):
    """The verdict on one record."""

    key: str
    status: str  # OK, DIFF, SHAPE or MISSING
    error: float = 0.0  # largest difference / largest number expected
    limit: float = 0.0  # what passes
    where: tuple[int, ...] = ()  # the largest difference
    note: str = ""


def compare(reference: Reference, theirs: Records, dtype: str, isolate: bool = False) -> list[Row]:
    """A row for each record of a float64 reference, in the order of execution.

    theirs: records as `gemma_np.oracle.dump.align_dump` returns them; dtype: what they were computed in. With `isolate`,
    each is held against what the reference makes of *their* inputs to it, so that an inherited error does not count.
    """
    shaped = of_the_right_shape(reference, theirs)
    expectation = isolated if isolate else exact
    found = relative_errors(reference, shaped, expectation(reference, shaped))
    allowed = limits(reference, shaped, dtype, expectation)
    rows = []
    for key, place in reference.slices.items():
        if key in found:
            error, where = found[key]
            rows.append(Row(key, "OK" if error <= allowed[key] else "DIFF", error, allowed[key], where))
        elif key in theirs:
            rows.append(Row(key, "SHAPE", note=_shape_note(theirs[key].shape, place.shape)))
        else:
            rows.append(Row(key, "MISSING"))
    return rows


def of_the_right_shape(reference: Reference, theirs: Records) -> Records:
    """Those of their records that can be compared."""
    return {key: record for key, record in theirs.items() if record.shape == reference.slices[key].shape}


def _shape_note(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What is wrong with a shape, and whether another order of the axes would mend it."""
    note = f"shape {found}, expected {expected}"
    for order in permutations(range(len(expected))):
        if len(found) == len(expected) and tuple(found[axis] for axis in order) == expected:
            return f"{note}: this is the transpose; transpose({', '.join(map(str, order))}) mends it"
    if int(np.prod(found)) == int(np.prod(expected)):
        return f"{note}: as many numbers, in other axes"
    return note
