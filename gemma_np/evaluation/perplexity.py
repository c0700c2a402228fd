"""Perplexity: how many tokens the model hesitates between, on average, at each step of a text.

A text longer than the context is read through a window that slides on: each of its positions keeps some of what came
before in sight, and every token is scored once.

Source: Jelinek et al., 1977 (perplexity); Baevski and Auli, arXiv 1809.10853 (windows that score their last tokens).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.evaluation.likelihood import cross_entropy
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.weights.formats import Weights

_CHUNK = 256  # logits of V numbers a token: 262 MB a chunk at V = 256,000


class TextLoss(NamedTuple):
    """How hard a text is to predict."""

    nats: float  # the sum of -log p over its tokens
    tokens: int
    bytes: int  # of the text in UTF-8

    @property
    def perplexity(self) -> float:
        """The exponential of the nats a token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_token(self) -> float:
        """The same, as bits."""
        return self.nats / self.tokens / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """The same, as bits a byte of UTF-8: comparable between tokenizers."""
        return self.nats / self.bytes / math.log(2)


def sliding_losses(
    ids: ArrayLike,
    bos: int,
    weights: Weights,
    config: GemmaConfig,
    context: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """-log p of each token of a text, given those before it in a window of `context` tokens that begins with `<bos>`.

    The window moves on by `stride` tokens, which are the ones it scores (the first window scores all of its own), so
    that each has at least context - 1 - stride tokens before it. Defaults: the longest context that the model reads,
    and windows that do not overlap.

    ids [N], without `<bos>` -> [N] nats, float64. Raises GemmaError for a context or a stride that makes no sense.
    """
    ids = np.asarray(ids)
    context = config.max_position_embeddings if context is None else context
    if not 2 <= context <= config.max_position_embeddings:
        raise GemmaError(f"context: {context}, expected 2 to {config.max_position_embeddings}")
    size = context - 1
    stride = size if stride is None else stride
    if not 1 <= stride <= size:
        raise GemmaError(f"stride: {stride}, expected 1 to context - 1 = {size}")
    losses = []
    scored = 0
    while scored < len(ids):
        end = min(scored + (stride if scored else size), len(ids))
        window = np.concatenate([[bos], ids[max(0, end - size) : end]])
        losses.append(negative_log_likelihood(window, weights, config)[scored - end :])
        scored = end
    return np.concatenate(losses)


def negative_log_likelihood(ids: ArrayLike, weights: Weights, config: GemmaConfig) -> np.ndarray:
    """-log p of each token but the first, given all before it.

    ids [T], T at most the model's maximum -> [T - 1], in nats, float64. The perplexity is the exponential of its mean.
    """
    from tqdm import tqdm

    ids = np.asarray(ids)
    cache = KVCache(config, len(ids), dtype=weights["model.norm.weight"].dtype)
    parts = []
    with tqdm(total=len(ids) - 1, desc="perplexity", unit=" tokens", delay=2, leave=False) as progress:
        for start in range(0, len(ids) - 1, _CHUNK):
            stop = min(start + _CHUNK, len(ids) - 1)
            logits = lm_head(transformer(ids[start:stop], weights, config, cache), weights, config)
            parts.append(cross_entropy(logits, ids[start + 1 : stop + 1]))
            progress.update(stop - start)
    return np.concatenate(parts)
