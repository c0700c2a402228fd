"""Scope: a view of named arrays through a prefix. Tape: a function that every intermediate passes through."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

Tape = Callable[[str, np.ndarray], np.ndarray]
"""A tape is called with the name and value of each intermediate, on the line that computes it, and returns the value
that the model continues with. `gemma_np.model.records` has the names and shapes."""


class Scope(MutableMapping[str, Any]):
    """A view of named arrays through a name prefix.

    Nothing is copied:

        >>> weights = Scope({"model.norm.weight": w})
        >>> (weights / "model")["norm.weight"] is w
        True
    """

    def __init__(self, arrays: Mapping[str, Any], prefix: str = "") -> None:
        self.arrays = arrays
        self.prefix = prefix

    def __truediv__(self, name: str) -> "Scope":
        return Scope(self.arrays, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Any:
        return self.arrays[self.prefix + name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.arrays[self.prefix + name] = value  # type: ignore[index]

    def __delitem__(self, name: str) -> None:
        del self.arrays[self.prefix + name]  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self.arrays if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def no_tape(name: str, value: np.ndarray) -> np.ndarray:
    """Return the value [...] unchanged and record nothing."""
    return value


class Record(dict[str, np.ndarray]):
    """A tape that records every value: name -> value, in the order of execution."""

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Record the value under its name and return it."""
        self[name] = value
        return value


def prefixed(tape: Tape, prefix: str) -> Tape:
    """Return the tape for a part of the model: it prefixes every name with that of the part."""
    if tape is no_tape:
        return no_tape
    return lambda name, value: tape(f"{prefix}.{name}", value)
