"""Judge each operation on its own inputs: the reference recomputes every record from *their* records before it.

A tape keeps each value that the reference computes, then puts theirs in its place. So an operation that is wrong stands
out, and one that only inherits an error does not; when several are wrong, all of them show.
"""

from collections.abc import Mapping

import numpy as np

from gemma_np.oracle.trace import RecordSlice, Reference


def isolated(reference: Reference, theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a float64 reference computes from their inputs, for each of their records, by the same names.

    A record that they lack is recomputed on the way.
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
