"""Perplexity: exp of the mean negative log-likelihood per token.

A text longer than the context is read through a sliding window: every token is scored once, with some of the tokens
before it as context.

Source: Jelinek et al., 1977 (perplexity); Baevski and Auli, arXiv 1809.10853 (windows that score only their last
tokens).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.log_probs import negative_log_likelihood
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.mpi import Ranks
from gemma_np.progress import progress_bar
from gemma_np.weights.formats import Weights

_CHUNK = 256  # tokens; their logits take 262 MB at V = 256,000


class TextLoss(NamedTuple):
    """The loss of a model on a text."""

    nats: float  # the sum of -log p over its tokens
    tokens: int
    bytes: int  # of the text in UTF-8

    @property
    def perplexity(self) -> float:
        """Return exp of the nats per token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_token(self) -> float:
        """Return the loss per token in bits."""
        return self.nats / self.tokens / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Return the loss per byte of UTF-8 in bits, which is comparable between tokenizers."""
        return self.nats / self.bytes / math.log(2)


def sliding_losses(
    ids: ArrayLike,
    bos: int,
    weights: Weights,
    config: GemmaConfig,
    *,
    context: int | None = None,
    stride: int | None = None,
    ranks: Ranks | None = None,
) -> np.ndarray:
    """Return -log P of each token of a text, given the tokens before it in a window that begins with `<bos>`.

    The window has `context` tokens and moves by `stride`. The first window scores all of its tokens, each later one its
    last `stride`, which have at least context - 1 - stride tokens before them. Defaults: the model's context length and
    windows that do not overlap. The ranks share the windows.

    ids [N], without `<bos>` -> float64 [N], nats. Raises GemmaError for a context or a stride out of range.
    """
    ids = np.asarray(ids)
    context = config.max_position_embeddings if context is None else context
    if not 2 <= context <= config.max_position_embeddings:
        raise GemmaError(f"context: {context}, expected 2 to {config.max_position_embeddings}")
    size = context - 1
    stride = size if stride is None else stride
    if not 1 <= stride <= size:
        raise GemmaError(f"stride: {stride}, expected 1 to context - 1 = {size}")
    windows = []  # (start of what is read, start of what is scored, end of both)
    scored = 0
    while scored < len(ids):
        end = min(scored + (stride if scored else size), len(ids))
        windows.append((max(0, end - size), scored, end))
        scored = end
    ranks = ranks or Ranks()
    own, losses = ranks.share(windows), np.zeros(len(ids))
    with progress_bar(total=sum(end - first for first, _, end in own), desc="perplexity", unit="tokens") as progress:
        for first, scored, end in own:
            window = np.concatenate([[bos], ids[first:end]])
            losses[scored:end] = token_losses(window, weights, config, progress.update)[scored - end :]
    ranks.all_reduce(losses)
    return losses


def token_losses(
    ids: ArrayLike, weights: Weights, config: GemmaConfig, progress: Callable[[int], object] = lambda tokens: None
) -> np.ndarray:
    """Return -log P of each token but the first, given all tokens before it; progress: told how many have been read.

    ids [T], T at most the model's context length -> float64 [T - 1], nats. Perplexity is exp of their mean.
    """
    ids = np.asarray(ids)
    cache = KVCache(config, len(ids), dtype=weights["model.norm.weight"].dtype)
    parts = []
    for start in range(0, len(ids) - 1, _CHUNK):
        stop = min(start + _CHUNK, len(ids) - 1)
        logits = lm_head(transformer(ids[start:stop], weights, config, cache), weights, config)
        parts.append(negative_log_likelihood(logits, ids[start + 1 : stop + 1]))
        progress(stop - start)
    return np.concatenate(parts)
