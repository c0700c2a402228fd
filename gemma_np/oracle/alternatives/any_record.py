"""Wrong values that any record may have: a factor, a bias, a coarser dtype, another token's."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from gemma_np.oracle.alternatives.alternative import ANY, HALVES, Alternative, Family, alternatives, rounded
from gemma_np.oracle.operation import Operation

_SAME = 1e-5


@alternatives(ANY)
def other_values(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield what does not depend on the operation."""
    for name, dtype in HALVES.items():
        yield Alternative(f"it is rounded to {name}", partial(_rounded, dtype=dtype))
    yield Alternative("it is zero", lambda op: np.zeros_like(op.right))
    if not operation.name.endswith(("scores", "scores_capped", "probs")):
        yield Alternative("it has the value of the token before", lambda op: np.roll(op.right, 1, axis=-2), rare=True)
        yield Alternative("it has the value of the next token", lambda op: np.roll(op.right, -1, axis=-2), rare=True)
    if operation.found is not None:
        yield from _by_channel(operation)
    yield Family(
        lambda op, value: f"it is multiplied by {value:.6g}",
        lambda op, value: value * op.right,
        np.logspace(-3, 3, 25).tolist(),
        rare=True,
    )


def _rounded(op: Operation, dtype: type) -> np.ndarray:
    return rounded(op.right, dtype)


def _by_channel(operation: Operation) -> Iterator[Alternative]:
    """Yield a bias, and channels that are zero, as they are in the dump."""
    found = np.asarray(operation.found, np.float64)
    size = max(float(np.abs(operation.right).max()), 1e-300)
    bias = (found - operation.right).mean(axis=-2, keepdims=True)
    if np.abs(bias).max() > _SAME * size:
        says = f"a bias is added, from {bias.min():.3g} to {bias.max():.3g}"
        yield Alternative(says, lambda op: op.right + bias)
    is_zero = (found == 0).all(axis=-2, keepdims=True)
    if is_zero.any() and not is_zero.all():
        yield Alternative(f"{is_zero.sum()} of its {is_zero.size} channels are zero", lambda op: op.right * ~is_zero)
