"""From logits to log-probabilities of the next token.

Source: Gemma 2 report, section 2 (the softmax over the vocabulary follows the final cap).
"""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log of the softmax over the last axis: [..., V] -> [..., V].

    Only differences from the largest logit are exponentiated, so nothing overflows.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return -log P(target) at each position, in nats; the sum over the vocabulary is in float64.

    logits [..., V], targets [...] -> float64 [...]
    """
    largest = logits.max(axis=-1)
    total = np.exp(logits - largest[..., None]).sum(axis=-1, dtype=np.float64)
    at_target = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return np.log(total) + largest.astype(np.float64) - at_target
