"""Each operation on its own inputs: the reference recomputes every record from *their* records before it.

The tape replaces each value by theirs, once it has kept what the reference made of their inputs. So an operation that
is wrong stands out, all of them do, and those that merely inherit an error are cleared.
"""

from collections.abc import Mapping

import numpy as np

from gemma_np.oracle.trace import RecordSlice, Reference


def isolated(reference: Reference, theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a float64 reference makes of their inputs, for each of their records, by the same names.

    What they lack is recomputed on the way.
    """
    by_name: dict[str, list[RecordSlice]] = {}
    for key in theirs:
        by_name.setdefault(reference.slices[key].name, []).append(reference.slices[key])
    found = {}

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        replaced = value.copy()
        for place in by_name.get(name, ()):
            found[place.key] = place.of(value)
            seen = True if place.masked is None else ~place.masked
            np.copyto(place.of(replaced), np.asarray(theirs[place.key], np.float64), where=seen)
        return replaced

    reference.run(tape)
    return found
