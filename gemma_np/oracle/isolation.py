"""Check each operation in isolation: the reference recomputes every record from *their* earlier records.

A tape records each value that the reference computes and replaces it by theirs. So every wrong operation shows, and
correct operations on wrong inputs do not. The same tape plants alternatives: it computes a record in another way.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gemma_np.oracle.alternatives import Alternative
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import RecordSlice, Reference
from gemma_np.scope import Record

Plan = Mapping[str, Alternative]
"""Name of a record, as in `gemma_np.model.records` -> how it is computed instead."""


class IsolatedRun(NamedTuple):
    """A run of the reference on their records."""

    expected: dict[str, np.ndarray]  # what each of their records should be, by its name in the dump
    inputs: dict[str, np.ndarray]  # every record of all N tokens: theirs where they have it
    computed: dict[str, np.ndarray]  # every record of all N tokens, as the reference computes it from these inputs


def isolated(reference: Reference, theirs: Mapping[str, np.ndarray], plan: Plan | None = None) -> dict[str, np.ndarray]:
    """Return what a float64 reference computes from their inputs, for each of their records by name.

    Records that they lack are recomputed, and those in a plan are computed as it says.
    """
    return isolated_run(reference, theirs, plan).expected


def isolated_run(reference: Reference, theirs: Mapping[str, np.ndarray], plan: Plan | None = None) -> IsolatedRun:
    """Run the reference on their records, computing those in a plan as it says."""
    by_name: dict[str, list[RecordSlice]] = {}
    for key in theirs:
        by_name.setdefault(reference.slices[key].name, []).append(reference.slices[key])
    expected, inputs, computed = dict[str, np.ndarray](), Record(), Record()

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        if plan and name in plan:
            value = plan[name].compute(Operation(name, reference, inputs, value))
        computed(name, value)
        replaced = value.copy() if name in by_name else value
        for record_slice in by_name.get(name, ()):
            expected[record_slice.key] = record_slice.select(value)
            found = np.asarray(theirs[record_slice.key], np.float64)
            np.copyto(record_slice.select(replaced), found, where=np.isfinite(found))  # masked scores may be -inf
        return inputs(name, replaced)

    with np.errstate(all="ignore"):  # an alternative may divide by zero
        reference.run(tape)
    return IsolatedRun(expected, inputs, computed)
