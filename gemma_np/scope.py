"""Two small things that every part of the model is handed: named arrays, and the tape."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

Tape = Callable[[str, np.ndarray], np.ndarray]
"""A tape is called with each intermediate's name and value, on the line that computes it, and returns the value
that the model goes on with. What the names and shapes are: `gemma_np.model.records`."""


class Scope(MutableMapping[str, Any]):
    """Named arrays seen through a name prefix; nothing is copied.

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
    """The tape that is off: the value [...] is handed on, and nothing kept."""
    return value


class Record(dict[str, np.ndarray]):
    """The tape that keeps everything: name -> value, in the order of execution."""

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Keep the value under its name and hand it on."""
        self[name] = value
        return value


def prefixed(tape: Tape, prefix: str) -> Tape:
    """The same tape for a part of the model, whose records get the part's prefix."""
    if tape is no_tape:
        return no_tape
    return lambda name, value: tape(f"{prefix}.{name}", value)
