"""Wrong embeddings and heads."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.model.log_probs import log_softmax
from gemma_np.model.soft_cap import soft_cap
from gemma_np.oracle.alternatives.alternative import HALVES, Alternative, Family, alternatives, near, rounded
from gemma_np.oracle.operation import Operation

CAPPED_EARLY = "capped early"
"""The input of the head is capped, not the logits."""


@alternatives("embedding")
def other_embeddings(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield other scales, and the rows of other ids."""
    D, ids = operation.config.hidden_size, operation.reference.ids
    scale = float(bfloat16(math.sqrt(D)))
    if scale != math.sqrt(D):
        yield Alternative(
            f"the scale is sqrt({D}) rounded to bfloat16, {scale:g}",
            partial(_rows, scale=scale),
            "embed-scale-rounding",
        )
    yield Family(
        _says_scale,
        _rows,
        np.logspace(-3, 5, 49).tolist(),
        _known_scale,
        lambda op: list(_names_of_scale(op).values()),
    )
    yield Alternative("rows are normalized to a mean square of 1", partial(_normalised, length=math.sqrt(D)))
    yield Alternative("rows are normalized to a length of 1", partial(_normalised, length=1.0))
    yield Alternative("rows are normalized to a length of hidden_size", partial(_normalised, length=float(D)))
    if operation.found is not None:
        others = _nearest_rows(operation)
        if others != ids:
            yield Alternative(_says_ids(ids, others), partial(_rows, ids=others))


def _normalised(op: Operation, length: float) -> np.ndarray:
    rows = op.embedding[op.reference.ids]
    return rows / np.sqrt(np.sum(rows**2, axis=-1, keepdims=True) + 1e-12) * length


def _rows(op: Operation, scale: float | None = None, ids: list[int] | None = None) -> np.ndarray:
    scale = math.sqrt(op.config.hidden_size) if scale is None else scale
    return op.embedding[op.reference.ids if ids is None else ids] * scale


def _names_of_scale(op: Operation) -> dict[str, float]:
    D = op.config.hidden_size
    names = {"1: no scale": 1.0, "hidden_size: twice the scale": D, "1 / sqrt(hidden_size)": D**-0.5}
    return names if math.isqrt(D) ** 2 == D else names | {"the root, rounded down": math.isqrt(D)}


def _says_scale(op: Operation, value: float) -> str:
    named = next(
        (f"; {value:.6g} is {name}" for name, number in _names_of_scale(op).items() if near(value, number)), ""
    )
    return f"rows are multiplied by {value:.6g}, expected sqrt({op.config.hidden_size}){named}"


def _known_scale(op: Operation, value: float) -> str:
    if near(value, 1.0):
        return "embed-scale-absent"
    return "embed-scale-twice" if near(value, op.config.hidden_size) else ""


def _nearest_rows(op: Operation) -> list[int]:
    """Return the id whose row has the direction of each token's vector."""
    assert op.found is not None
    lengths = np.maximum(np.linalg.norm(op.embedding, axis=-1), 1e-300)
    return [int(row) for row in (np.asarray(op.found, np.float64) @ op.embedding.T / lengths).argmax(axis=-1)]


def _says_ids(ids: list[int], others: list[int]) -> str:
    if others[:-1] == ids[1:]:
        return f"the text is shifted: its first id, {ids[0]}, is missing"
    if others[1:] == ids[:-1]:
        return f"the text is shifted: it begins with {others[0]}, and then {ids[0]}"
    place = next(place for place, (one, other) in enumerate(zip(ids, others, strict=True)) if one != other)
    return f"the ids are others: at {place} it is {others[place]}, expected {ids[place]}"


@alternatives("logits")
def other_heads(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield other matrices, inputs and factors."""
    yield Alternative(
        "the head reads the embedding as if it were stored transposed",
        lambda op: op["norm"] @ op.embedding.reshape(op.embedding.shape[::-1]),
        "head-transposed",
    )
    yield Alternative(
        "the head reads the residual stream, without the final norm", lambda op: op.stream @ op.embedding.T
    )
    yield Alternative("every logit stands one id too late", lambda op: op["norm"] @ np.roll(op.embedding, 1, axis=0).T)
    yield Alternative(
        "every logit stands one id too early", lambda op: op["norm"] @ np.roll(op.embedding, -1, axis=0).T
    )
    for name, dtype in HALVES.items():
        yield Alternative(f"they are computed in {name}", partial(_logits_in, dtype=dtype))
    yield Family(
        lambda op, value: f"they are multiplied by {value:.6g}",
        lambda op, value: value * op.right,
        np.logspace(-4, 4, 41).tolist(),
        likely=lambda op: [op.config.hidden_size**0.5, op.config.hidden_size**-0.5, 1 / op.config.hidden_size],
    )
    half = len(operation.embedding) // 2
    yield Alternative("the halves of the vocabulary are exchanged", lambda op: np.roll(op.right, half, axis=-1))
    yield Alternative("they are log-probabilities", _log_probs)
    yield Alternative("they are probabilities", lambda op: np.exp(_log_probs(op)))
    cap = operation.config.final_logit_softcapping
    if cap:
        yield Alternative(
            "the cap is applied to the input of the head",
            lambda op: soft_cap(op["norm"], cap) @ op.embedding.T,
            together=(CAPPED_EARLY,),
        )
    else:
        yield Family(
            lambda op, value: f"logits are capped at {value:.6g}, expected no cap",
            lambda op, value: soft_cap(op.right, value),
            np.logspace(-1, 3, 41).tolist(),
            likely=lambda op: [30.0, 50.0],
        )


def _logits_in(op: Operation, dtype: type) -> np.ndarray:
    return rounded(rounded(op["norm"], dtype) @ rounded(op.embedding, dtype).T, dtype)


def _log_probs(op: Operation) -> np.ndarray:
    return log_softmax(op.right)
