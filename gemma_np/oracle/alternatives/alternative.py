"""An alternative: what an implementation may compute in place of an operation, and in what words one says so."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.oracle.operation import Operation


class Alternative(NamedTuple):
    """One wrong way to compute a record."""

    says: str  # what is computed instead
    compute: Callable[[Operation], np.ndarray]  # returns the record of all N tokens
    known: str = ""  # the entries of the catalogue that this is, separated by spaces
    rare: bool = False  # whether a search leaves it out, and others that explain as much are told instead
    looks_ahead: bool = False  # whether a token's value depends on later tokens of its pass
    together: tuple[str, ...] = ()  # the mistakes that this is a part of; a search plants all parts of one together


class Family(NamedTuple):
    """Wrong ways to compute a record that differ in one number."""

    says: Callable[[Operation, float], str]
    compute: Callable[[Operation, float], np.ndarray]
    values: Sequence[float]  # increasing; the best one, with what lies between its neighbours, is searched for
    known: Callable[[Operation, float], str] = lambda operation, value: ""
    likely: Callable[[Operation], Sequence[float]] = lambda operation: ()  # numbers that are mistaken for it
    rare: bool = False  # as for an alternative
    looks_ahead: bool = False  # as for an alternative
    together: tuple[str, ...] = ()  # as for an alternative; their number is the same

    def at(self, operation: Operation, value: float) -> Alternative:
        """Return the member with this number."""
        says, known = self.says(operation, value), self.known(operation, value)
        return Alternative(says, lambda other: self.compute(other, value), known, self.rare, self.looks_ahead)


Alternatives = Callable[[Operation], Iterator[Alternative | Family]]

ANY = "*"
"""The kind under which the alternatives of every record are registered."""

ALTERNATIVES: dict[str, list[Alternatives]] = {}
"""Kind of record, with `*` for the layer -> functions that yield its alternatives."""


def alternatives(*kinds: str) -> Callable[[Alternatives], Alternatives]:
    """Return a decorator that registers a function as yielding alternatives for these kinds of records."""

    def register(function: Alternatives) -> Alternatives:
        for kind in kinds:
            ALTERNATIVES.setdefault(kind, []).append(function)
        return function

    return register


def candidates(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield everything that may be computed in place of an operation: first what is peculiar to it, then the rest."""
    for kind in (operation.kind, ANY):
        yield from candidates_of_kind(kind, operation)


def candidates_of_kind(kind: str, operation: Operation) -> Iterator[Alternative | Family]:
    """Yield what is registered under one kind."""
    for function in ALTERNATIVES.get(kind, ()):
        yield from function(operation)


def after_first_pass(member: Alternative | Family) -> Alternative | Family:
    """Return the alternative or family that is right in the first pass."""
    if isinstance(member, Alternative):
        says = f"in passes after the first, {member.says}"
        return member._replace(says=says, compute=lambda op: _later(op, member.compute(op)))
    return member._replace(
        says=lambda op, value: f"in passes after the first, {member.says(op, value)}",
        compute=lambda op, value: _later(op, member.compute(op, value)),
    )


def _later(op: Operation, found: np.ndarray) -> np.ndarray:
    """Return a record [..., N, n] that is right for the tokens of the first pass."""
    return np.where(op.reference.pass_starts[:, None] == 0, op.right, found)


def likely_members(member: Alternative | Family, operation: Operation) -> list[Alternative]:
    """Return the alternative, or the likely members of a family."""
    if isinstance(member, Alternative):
        return [member]
    return [member.at(operation, value) for value in member.likely(operation)]


def orders_of_layers(operation: Operation, other: int) -> tuple[str, ...]:
    """Return the wrong orders of all layers in which another one has the place of the operation's."""
    assert operation.layer is not None
    own, count = operation.layer, operation.config.num_hidden_layers
    orders = {"the next one's": (own + 1) % count, "the one's before": (own - 1) % count, "reversed": count - 1 - own}
    return tuple(f"{operation.part}: {order}" for order, layer in orders.items() if layer == other)


HALVES = {"bfloat16": bfloat16, "float16": np.float16}
"""The dtypes of 16 bits, by name."""


def rounded(x: np.ndarray, dtype: type) -> np.ndarray:
    """Return the numbers that a dtype has nearest to these: x [...] -> [...]."""
    return np.asarray(x.astype(dtype).astype(np.float64))


def near(value: float, other: Any, tolerance: float = 1e-3) -> bool:
    """Return whether two numbers are about equal."""
    return bool(abs(value - other) <= tolerance * abs(other))
