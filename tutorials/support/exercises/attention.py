"""The exercises on attention and its heads: scores, mixing, groups, and merging."""

import math

import numpy as np

from gemma_np.model.attention import grouped_matmul, merge_heads
from gemma_np.model.attention_mask import masked_softmax
from support.exercise import Cases, Exercise, known


def _scores_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one query and one key": (draw((1, 4)), draw((1, 4)), 4),
        "several queries and keys": (draw((3, 4)), draw((3, 4)), 4),
        "more keys than queries": (draw((3, 4)), draw((5, 4)), 4),
        "a query scalar that is not the head dimension": (draw((3, 4)), draw((5, 4)), 6),
    }


def _scores(q: np.ndarray, k: np.ndarray, query_scalar: float) -> np.ndarray:
    return grouped_matmul(q[None] / math.sqrt(query_scalar), k[None].swapaxes(-1, -2))[0]


SCORES = Exercise(
    reference=_scores,
    cases=_scores_cases,
    mistakes={
        known("qscale-head-dim"): lambda q, k, query_scalar: _scores(q, k, q.shape[-1]),
        "scores are not divided; divide them by sqrt(query_scalar)": lambda q, k, query_scalar: _scores(q, k, 1),
        "scores are divided by query_scalar; divide them by its square root": lambda q, k, query_scalar: _scores(
            q, k, query_scalar**2
        ),
        "queries and keys are swapped; a row is for a query, a column for a key": lambda q, k, query_scalar: _scores(
            k, q, query_scalar
        ),
        "scores are multiplied by sqrt(query_scalar); divide them by it": lambda q, k, query_scalar: _scores(
            q, k, 1 / query_scalar
        ),
        "scores are divided by the square root of the number of tokens; divide them by sqrt(query_scalar)": (
            lambda q, k, query_scalar: _scores(q, k, len(k))
        ),
    },
)


def _mix_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one token": (draw((1, 1)), draw((1, 4))),
        "several tokens": (draw((5, 5)), draw((5, 4))),
        "hidden scores far above the others": (draw((5, 5)) + 1000 * (1 - np.tri(5)), draw((5, 4))),
        "scores in the thousands": (draw((5, 5)) * 1000, draw((5, 4))),
    }


def _past(scores: np.ndarray) -> np.ndarray:
    return np.tri(len(scores), dtype=bool)


def _mix(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    context: np.ndarray = masked_softmax(scores, _past(scores)) @ values
    return context


def _mask_after_softmax(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(_past(scores), masked_softmax(scores, np.ones_like(_past(scores))), 0) @ values


def _over_queries(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    return masked_softmax(scores.T, _past(scores).T).T @ values


def _hidden_after_exp(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return NaN where the largest score of a row is hidden and all visible exponentials have become 0."""
    return _weighted(np.where(_past(scores), np.exp(scores - scores.max(axis=-1, keepdims=True)), 0), values)


def _exponentials(scores: np.ndarray, *, largest_off: bool) -> np.ndarray:
    """Return the exponentials of the visible scores, and 0 for the others."""
    visible = np.where(_past(scores), scores, -np.inf)
    return np.exp(visible - visible.max(axis=-1, keepdims=True) if largest_off else visible)


def _overflowing(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _weighted(_exponentials(scores, largest_off=False), values)


def _infinite_times_zero(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _weighted(np.exp(scores) * _past(scores), values)


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    context: np.ndarray = weights / weights.sum(axis=-1, keepdims=True) @ values
    return context


MIX = Exercise(
    reference=_mix,
    cases=_mix_cases,
    mistakes={
        "softmax runs over the queries; the probabilities of a row sum to 1 (axis=-1)": _over_queries,
        "the future is not hidden; a token sees itself and earlier tokens": lambda scores, values: (
            masked_softmax(scores, np.ones_like(_past(scores))) @ values
        ),
        "the past is hidden instead of the future; a token sees itself and earlier tokens": lambda scores, values: (
            masked_softmax(scores, _past(scores).T) @ values
        ),
        "hidden keys are zeroed after softmax, so rows do not sum to 1; hide their scores before softmax": (
            _mask_after_softmax
        ),
        "hidden keys get the score 0, whose exponential is 1; give them -inf": lambda scores, values: (
            masked_softmax(np.where(_past(scores), scores, 0), np.ones_like(_past(scores))) @ values
        ),
        "the largest score of the row is that of a hidden key, so all others become 0; hide first, then "
        "subtract the largest": _hidden_after_exp,
        "large scores overflow in np.exp; subtract the largest of each row first": _overflowing,
        "large scores overflow in np.exp, and infinity times 0 is NaN; hide with -inf, then subtract the largest of "
        "each row, before np.exp": _infinite_times_zero,
        "the exponentials are not divided by their sum; the probabilities of a row sum to 1": lambda scores, values: (
            _exponentials(scores, largest_off=True) @ values
        ),
        "the exponentials are not divided by their sum, and the largest score of the row is not subtracted": (
            lambda scores, values: _exponentials(scores, largest_off=False) @ values
        ),
        "the raw scores weight the values; turn them into probabilities with softmax": lambda scores, values: (
            np.where(_past(scores), scores, 0) @ values
        ),
    },
)


def _grouped_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one head": (draw((1, 3, 4)), draw((1, 5, 4))),
        "as many key-value heads as query heads": (draw((2, 3, 4)), draw((2, 5, 4))),
        "2 query heads for one key-value head": (draw((2, 3, 4)), draw((1, 5, 4))),
        "4 query heads for 2 key-value heads": (draw((4, 3, 4)), draw((2, 5, 4))),
        "a batch of texts": (draw((2, 6, 3, 4)), draw((2, 2, 5, 4))),
    }


def _grouped(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return grouped_matmul(q, k.swapaxes(-1, -2))


def _tiled(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    kv_heads = np.arange(q.shape[-3]) % k.shape[-3]
    tiled: np.ndarray = q @ k[..., kv_heads, :, :].swapaxes(-1, -2)
    return tiled


def _repeated_along_the_first_axis(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    repeated: np.ndarray = q @ np.repeat(k, q.shape[-3] // k.shape[-3], axis=0).swapaxes(-1, -2)
    return repeated


def _left_in_groups(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    scores = _grouped(q, k)
    kv_heads = k.shape[-3]
    return scores.reshape(*scores.shape[:-3], kv_heads, -1, *scores.shape[-2:])


GROUPED_SCORES = Exercise(
    reference=_grouped,
    cases=_grouped_cases,
    mistakes={
        known("gqa-tile"): _tiled,
        "all query heads read key-value head 0; each group has its own": lambda q, k: _grouped(q, k[..., :1, :, :]),
        "the key-value heads are averaged into one; each group has its own": lambda q, k: _grouped(
            q, k.mean(axis=-3, keepdims=True)
        ),
        "the scores are divided by sqrt(h); do not divide them here": lambda q, k: (
            _grouped(q, k) / math.sqrt(q.shape[-1])
        ),
        "axis 0 is repeated, which is the batch here; the heads are always at axis=-3": _repeated_along_the_first_axis,
        "the groups are still separate, [..., K, G, T, S]; reshape to [..., H, T, S]": _left_in_groups,
    },
)


def _merge_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one head": (draw((1, 3, 4)),),
        "one token, two heads": (draw((2, 1, 4)),),
        "several tokens, two heads": (draw((2, 3, 4)),),
        "as many tokens as heads": (draw((3, 3, 4)),),
        "a batch of texts": (draw((2, 3, 5, 4)),),
    }


def _along(axis: int, context: np.ndarray) -> np.ndarray:
    """Join the parts along the first axis."""
    return np.concatenate(list(context), axis=axis)


def _interleaved(context: np.ndarray) -> np.ndarray:
    joined = np.moveaxis(context, -3, -1)  # [..., T, h, H]
    return joined.reshape(*joined.shape[:-2], -1)


def _only_reshaped(context: np.ndarray) -> np.ndarray:
    *batch, H, T, h = context.shape
    return context.reshape(*batch, T, H * h)


MERGE_HEADS = Exercise(
    reference=merge_heads,
    cases=_merge_cases,
    mistakes={
        "reshape alone mixes tokens and heads, since it reads the numbers in order; move the head axis next to the "
        "channels first": _only_reshaped,
        "the channels of the heads alternate; each head has h neighbouring ones": _interleaved,
        "the heads are joined along the tokens; join them along the channels": lambda context: context.reshape(
            *context.shape[:-3], -1, context.shape[-1]
        ),
        "the first axis is taken for the heads, but here it is the batch; the heads are always at axis=-3": (
            lambda context: _along(-1, context)
        ),
        "the heads are summed; o_proj sums them, with a weight for each channel of each head": lambda context: (
            context.sum(axis=-3)
        ),
        "the heads are averaged; join their channels, for o_proj to weight": lambda context: context.mean(axis=-3),
        "the axes are swapped, but the heads are still an axis of their own; reshape to [..., T, H * h]": (
            lambda context: context.swapaxes(-2, -3)
        ),
    },
)
