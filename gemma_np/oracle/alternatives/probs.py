"""Wrong masks and softmaxes."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from gemma_np.model.attention_mask import attention_mask, masked_softmax
from gemma_np.model.soft_cap import soft_cap
from gemma_np.oracle.alternatives.alternative import HALVES, Alternative, Family, alternatives, near, rounded
from gemma_np.oracle.operation import Operation

KNOWN = {
    "a local layer has no window": "window-ignored",
    "a global layer has the window, too": "window-all-layers",
    "local and global layers are exchanged": "window-parity",
    "a query sees one key more than the window": "window-off-by-one",
    "the mask takes a token's row in its pass for its position": "decode-mask-index",
    "once the ring has wrapped, slot numbers are taken for positions": "ring-positions",
}


def own_mask(op: Operation) -> np.ndarray:
    """Return the right mask: bool [N, N]."""
    assert op.layer is not None
    places = range(len(op.reference.ids))
    return attention_mask(places, places, op.config.window(op.layer))


def present(op: Operation) -> np.ndarray:
    """Return True for the keys that are there when a query's pass runs: bool [N, N]."""
    ends = op.reference.pass_ends
    return np.asarray(np.arange(len(ends)) < ends[:, None])


def final_scores(op: Operation) -> np.ndarray:
    """Return what the softmax reads: [H, N, N]."""
    return op["self_attn.scores_capped" if op.config.attn_logit_softcapping else "self_attn.scores"]


def masked(op: Operation, mask: np.ndarray) -> np.ndarray:
    """Return the probabilities under another mask [N, N]; a query that sees nothing has zeros."""
    mask = mask & present(op)
    sees = np.asarray(mask.any(axis=-1, keepdims=True))
    return masked_softmax(final_scores(op), mask | ~sees) * sees


@alternatives("layers.*.self_attn.probs")
def other_masks(operation: Operation) -> Iterator[Alternative]:
    """Yield other sets of visible keys."""
    own = own_mask(operation)
    masks = _causal_masks(operation) | _window_masks(operation) | _mistaken_positions(operation)
    for what, mask in masks.items():
        if (mask != own).any():
            ahead = bool((mask & present(operation) & (_distance(operation) < 0)).any())
            yield Alternative(what, partial(masked, mask=mask), KNOWN.get(what, ""), looks_ahead=ahead)
            if not (mask & present(operation)).any(axis=-1).all():
                itself, everything = partial(masked, mask=_or_itself(mask)), partial(_or_all, mask=mask)
                yield Alternative(f"{what}; one that sees nothing sees itself", itself, looks_ahead=ahead)
                yield Alternative(f"{what}; one that sees nothing sees all", everything, looks_ahead=True)


def _or_itself(mask: np.ndarray) -> np.ndarray:
    return mask | (np.eye(len(mask), dtype=bool) & ~mask.any(axis=-1, keepdims=True))


def _or_all(op: Operation, mask: np.ndarray) -> np.ndarray:
    """Return equal probabilities for a query that sees nothing, as with a large negative number as mask."""
    there = present(op)
    is_blind = ~(mask & there).any(axis=-1, keepdims=True)
    return np.where(is_blind, there / there.sum(axis=-1, keepdims=True), masked(op, mask))


def _distance(op: Operation) -> np.ndarray:
    """Return how far each key lies before each query: [N, N]."""
    places = np.arange(len(op.reference.ids))
    return np.asarray(places[:, None] - places)


def _causal_masks(op: Operation) -> dict[str, np.ndarray]:
    own, distance = own_mask(op), _distance(op)
    return {
        "a query sees keys in its future, too": np.ones_like(own),
        "a query sees only keys in its future, and itself": distance <= 0,
        "a query sees one key too many, in its future": own | (distance == -1),
        "a query does not see itself": own & (distance != 0),
        "a query does not see the first token": own & (np.arange(len(own)) != 0),
    }


def _window_masks(op: Operation) -> dict[str, np.ndarray]:
    assert op.layer is not None
    distance, window = _distance(op), op.config.window(op.layer)
    past = distance >= 0
    if window is None:
        size = op.config.sliding_window
        narrow = past & (distance < size) if size else past
        return {"a global layer has the window, too": narrow, "local and global layers are exchanged": narrow}
    blocks = np.arange(len(past)) // window
    sizes = {
        "one key less than the window": window - 1,
        "one key more than the window": window + 1,
        "two keys more than the window": window + 2,
        "half the window": window // 2,
        "twice the window": 2 * window,
        "twice the window and one key more": 2 * window + 1,
    }
    return {f"a query sees {what}": past & (distance < size) for what, size in sizes.items() if size} | {
        "a local layer has no window": past,
        "local and global layers are exchanged": past,
        "the window reaches as far into the future": np.abs(distance) < window,
        "the first token is always visible": own_mask(op) | (past & (np.arange(len(past)) == 0)),
        "the window does not slide: the text is cut into blocks": past & (blocks[:, None] == blocks),
    }


def _mistaken_positions(op: Operation) -> dict[str, np.ndarray]:
    assert op.layer is not None
    own, starts, window = own_mask(op), op.reference.pass_starts, op.config.window(op.layer)
    keys = np.arange(len(own))
    masks = {
        "the mask takes a token's row in its pass for its position": attention_mask(keys - starts, keys, window),
        "a query sees only the keys of its own pass": own & (keys >= starts[:, None]),
    }
    if window:
        up_to_its_slot = keys % window <= keys[:, None] % window
        in_first_pass = starts[:, None] == 0
        masks["once the ring has wrapped, slot numbers are taken for positions"] = own & (
            up_to_its_slot | in_first_pass
        )
    return masks


@alternatives("layers.*.self_attn.probs")
def other_softmaxes(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield other softmaxes over the right keys."""
    if operation.config.attn_logit_softcapping:
        yield Alternative(
            "the softmax reads scores, not scores_capped",
            lambda op: masked_softmax(op["self_attn.scores"], own_mask(op)),
        )
        yield Alternative(
            "scores are capped after the mask, so that masked keys have a score of -cap",
            _capped_after_mask,
            "attncap-after-mask",
            looks_ahead=True,
        )
    else:
        yield Family(
            lambda op, value: f"scores are capped at {value:.6g}, expected no cap",
            lambda op, value: masked_softmax(soft_cap(final_scores(op), value), own_mask(op)),
            np.logspace(-1, 3, 41).tolist(),
            likely=lambda op: [50.0, 30.0],
        )
    yield Alternative("the softmax runs over the queries", _over_queries, looks_ahead=True)
    yield Alternative("the softmax has one more in its denominator", _off_by_one)
    yield Alternative(
        "the mask is applied after the softmax", lambda op: masked(op, present(op)) * own_mask(op), looks_ahead=True
    )
    yield Alternative("the softmax is left out", lambda op: np.where(own_mask(op), final_scores(op), 0))
    yield Alternative(
        "masked keys have a score of zero",
        lambda op: masked_softmax(np.where(own_mask(op), final_scores(op), 0), present(op)),
        looks_ahead=True,
    )
    for name, dtype in HALVES.items():
        yield Alternative(f"the softmax reads scores rounded to {name}", partial(_rounded_scores, dtype=dtype))
    yield Family(
        _says_factor,
        lambda op, value: masked_softmax(value * final_scores(op), own_mask(op)),
        np.logspace(-2, 2, 33).tolist(),
        likely=lambda op: [math.log(2), 1 / math.log(2)],
    )


def _says_factor(op: Operation, value: float) -> str:
    base = ", as with a base of 2" if near(value, math.log(2)) else ""
    return f"the softmax reads scores times {value:.6g}{base}"


def _capped_after_mask(op: Operation) -> np.ndarray:
    cap = op.config.attn_logit_softcapping
    assert cap is not None
    return masked_softmax(np.where(own_mask(op), final_scores(op), -cap), present(op))


def _over_queries(op: Operation) -> np.ndarray:
    return masked_softmax(final_scores(op).swapaxes(-1, -2), own_mask(op).T).swapaxes(-1, -2)


def _off_by_one(op: Operation) -> np.ndarray:
    weights = np.exp(np.where(own_mask(op), final_scores(op), -np.inf))
    return np.asarray(weights / (1 + weights.sum(axis=-1, keepdims=True)))


def _rounded_scores(op: Operation, dtype: type) -> np.ndarray:
    return masked_softmax(rounded(final_scores(op), dtype), own_mask(op))
