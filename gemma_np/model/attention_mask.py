"""The attention mask, computed from positions, and the masked softmax.

Source: Gemma 2 report, section 2 (local layers with a sliding window, global layers).
"""

from collections.abc import Sequence

import numpy as np


def attention_mask(
    query_positions: Sequence[int] | np.ndarray, key_positions: Sequence[int] | np.ndarray, window: int | None
) -> np.ndarray:
    """Return True where a query may see a key: not in the future, and on a local layer fewer than `window` steps back.

    query_positions [T], key_positions [S] -> bool [T, S]

    The mask does not depend on where a key is stored, so one line serves prefill, chunks, decoding and the ring buffer,
    whose slots are out of order.
    """
    distance = np.asarray(query_positions)[:, None] - np.asarray(key_positions)
    return (distance >= 0) & (distance < window) if window else distance >= 0


def masked_softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the softmax over the keys in the mask; all other probabilities are exactly zero.

    scores [..., T, S], mask bool [T, S] with at least one True per row -> probabilities [..., T, S], rows sum to 1
    """
    hide = np.where(mask, scores.dtype.type(0), scores.dtype.type(-np.inf))
    probs = scores + hide
    probs -= probs.max(axis=-1, keepdims=True)  # the largest exponent is 0: nothing overflows
    np.exp(probs, out=probs)
    probs /= probs.sum(axis=-1, keepdims=True)
    return probs


def masked_softmax_backward(dprobs: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Compute the gradient of the scores; it is zero outside the mask, where the probabilities are zero.

    dprobs and probs [..., T, S] -> dscores [..., T, S]
    """
    return probs * (dprobs - np.vecdot(dprobs, probs)[..., None])
