"""Check each operation in isolation: the reference recomputes every record from *their* earlier records.

A tape records each value that the reference computes and replaces it by theirs. So every wrong operation shows, and
correct operations on wrong inputs do not.
"""

from collections.abc import Mapping

import numpy as np

from gemma_np.oracle.trace import RecordSlice, Reference


def isolated(reference: Reference, theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a float64 reference computes from their inputs, for each of their records by name.

    Records that they lack are recomputed.
    """
    by_name: dict[str, list[RecordSlice]] = {}
    for key in theirs:
        by_name.setdefault(reference.slices[key].name, []).append(reference.slices[key])
    expected = {}

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        replaced = value.copy()
        for record_slice in by_name.get(name, ()):
            key, masked = record_slice.key, record_slice.masked
            expected[key] = record_slice.select(value)
            visible = True if masked is None else ~masked
            np.copyto(record_slice.select(replaced), np.asarray(theirs[key], np.float64), where=visible)
        return replaced

    reference.run(tape)
    return expected
