"""Which key a query may see, from positions alone; and the softmax that sees no more than that.

Source: Gemma 2 report, section 2: local layers see a sliding window, global layers everything up to the query.
"""

from collections.abc import Sequence

import numpy as np


def attention_mask(
    query_positions: Sequence[int] | np.ndarray, key_positions: Sequence[int] | np.ndarray, window: int | None
) -> np.ndarray:
    """True where the query may see the key: not in the future, and on a local layer fewer than `window` steps back.

    query_positions [T], key_positions [S] -> bool [T, S]

    It asks nothing about where a key is stored, so that one line serves prefill, chunks, decoding and a ring whose
    slots are out of order.
    """
    distance = np.asarray(query_positions)[:, None] - np.asarray(key_positions)
    return (distance >= 0) & (distance < window) if window else distance >= 0


def masked_softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Softmax over the keys that the mask lets through; the others get exactly zero.

    scores [..., T, S], mask bool [T, S], at least one True a row -> probabilities [..., T, S], rows sum to 1
    """
    hide = np.where(mask, scores.dtype.type(0), scores.dtype.type(-np.inf))
    probs = scores + hide
    probs -= probs.max(axis=-1, keepdims=True)  # the largest exponent is 0: nothing overflows
    np.exp(probs, out=probs)
    probs /= probs.sum(axis=-1, keepdims=True)
    return probs


def masked_softmax_backward(dprobs: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The gradient of the scores, from the probabilities; zero where the mask hid the key, as its probability is.

    dprobs and probs [..., T, S] -> dscores [..., T, S]
    """
    return probs * (dprobs - np.vecdot(dprobs, probs)[..., None])
